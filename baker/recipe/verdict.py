"""The finished tree, judged before it is packed: what the engine promises, and what the recipe itself tests."""

from __future__ import annotations

from collections.abc import Container

from baker.errors import ImageError, UsageError
from baker.recipe.model import Recipe
from baker.recipe.steps import Build
from baker.recipe.tree import Tree
from baker.survey.elf import read_elf, read_machine, reader

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
    programs = {path: machine for path in paths if (machine := _machine(tree, path)) is not None}
    for path, machine in programs.items():
        if machine not in (build.scope.arch, _BPF):
            raise ImageError(
                f"{path} is for {machine}, not for {build.scope.arch}.",
                f"Upstream published a wrong file, or a word of [arch] in {recipe.path} is wrong.",
            )
    _check_tests(tree, build, programs)


def check_drop_in(path: str, recipe: Recipe) -> None:
    """Refuse a drop-in that systemd would not read."""
    folder, _, name = path.rpartition("/")
    if folder.startswith(_CONFIG_FOLDERS) and folder.endswith(".d") and not name.endswith(".conf"):
        raise UsageError(f"{recipe.path}: systemd ignores the drop-in {path}.", "Its name must end in .conf.")


def _machine(tree: Tree, path: str) -> str | None:
    file = tree.file(path)
    return None if file is None else read_machine(reader(file))


def _is_static(tree: Tree, path: str) -> bool:
    file = tree.file(path)
    elf = None if file is None else read_elf(reader(file))
    return elf is not None and elf.is_static


def _check_tests(tree: Tree, build: Build, programs: Container[str]) -> None:
    """[test]: what the recipe says must be there. What the variant leaves out does not count."""
    tests, place = build.recipe.tests, build.recipe.path
    for path in (*tests.paths, *tests.elf, *tests.static):
        if not build.drops(path) and not tree.has(path):
            raise ImageError(f"{place}: the extension lacks {path}, which [test] asks for.")
    for path in (*tests.elf, *tests.static):
        if not build.drops(path) and path not in programs:
            raise ImageError(f"{place}: {path} is no ELF program, which [test] asks for.")
    for path in tests.static:
        if not build.drops(path) and not _is_static(tree, path):
            raise ImageError(
                f"{place}: {path} needs a dynamic linker, but [test] asks for a static program.",
                "On Flatcar it would depend on the libraries of whatever release is running.",
            )
