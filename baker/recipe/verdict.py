"""The finished tree, judged before it is packed: what the engine promises, and what the recipe itself tests."""

from __future__ import annotations

from baker.errors import ImageError, UsageError
from baker.recipe.model import Recipe
from baker.recipe.steps import Build
from baker.recipe.tree import Tree
from baker.survey.elf import Elf, read_elf

_BPF = "machine 247"  # programs for the kernel, the same for every architecture
_CONFIG_FOLDERS = ("/usr/lib/systemd/system/", "/usr/local/lib/systemd/system/")


def judge(tree: Tree, build: Build) -> None:
    """Raise ImageError for what would not work on the machine, UsageError for what the recipe does wrong."""
    recipe = build.recipe
    paths = tree.paths()
    if not paths:
        raise UsageError(f"{recipe.path}: the extension would be empty.", "Add [[install]] or a folder files/.")
    for path in paths:
        check_drop_in(path, recipe)
    programs = {path: elf for path in paths if (elf := _elf(tree, path)) is not None}
    for path, elf in programs.items():
        if elf.arch not in (build.scope.arch, _BPF):
            raise ImageError(
                f"{path} is for {elf.arch}, not for {build.scope.arch}.",
                f"Upstream published a wrong file, or a word of [arch] in {recipe.path} is wrong.",
            )
    _check_tests(tree, build, programs)


def check_drop_in(path: str, recipe: Recipe) -> None:
    """Refuse a drop-in that systemd would not read."""
    folder, _, name = path.rpartition("/")
    if folder.startswith(_CONFIG_FOLDERS) and folder.endswith(".d") and not name.endswith(".conf"):
        raise UsageError(f"{recipe.path}: systemd ignores the drop-in {path}.", "Its name must end in .conf.")


def _elf(tree: Tree, path: str) -> Elf | None:
    file = tree.file(path)
    if file is None:
        return None

    def read(limit: int) -> bytes:
        with file.open("rb") as opened:
            return opened.read(limit)

    return read_elf(read)


def _check_tests(tree: Tree, build: Build, programs: dict[str, Elf]) -> None:
    """[test]: what the recipe says must be there. What the variant leaves out does not count."""
    tests, place = build.recipe.tests, build.recipe.path
    for path in (*tests.paths, *tests.elf, *tests.static):
        if not build.drops(path) and not tree.has(path):
            raise ImageError(f"{place}: the extension lacks {path}, which [test] asks for.")
    for path in (*tests.elf, *tests.static):
        if not build.drops(path) and path not in programs:
            raise ImageError(f"{place}: {path} is no ELF program, which [test] asks for.")
    for path in tests.static:
        if not build.drops(path) and not programs[path].is_static:
            raise ImageError(
                f"{place}: {path} needs a dynamic linker, but [test] asks for a static program.",
                "On Flatcar it would depend on the libraries of whatever release is running.",
            )
