"""The engine on tiny recipes: what entries do, and what stops a build with nothing left behind."""

import dataclasses
import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest
from recipe_checks import listing, unpack

from baker.console import Console
from baker.errors import BakeError, ImageError, UsageError, VerificationError
from baker.fetch import FileMissing
from baker.model import Arch
from baker.recipe.build import Built
from baker.recipe.load import find_recipe
from baker.recipe.output import write_sysext
from baker.recipe.request import settle
from baker.recipe.versions import Catalogue
from baker.services import Services, Settings
from recipes import RECIPE, UNIT, UNIT_PATH, archive, program, write_recipe

MEMBERS = {"tool": program(), "README.md": "read me\n", "etc/tool.conf": "port = 1\nport = 2\n"}
UP = '[[install]]\nfrom = "release"\nsrc = "etc/tool.conf"\ndst = "/usr/share/tool/"\n'
OVERLAY = {UNIT_PATH: UNIT}
PATHS = {
    "/usr/bin/tool": "x", f"/{UNIT_PATH}": "",
    "/usr/lib/systemd/system/multi-user.target.d/10-tool-service.conf": "",
}  # fmt: skip


@pytest.fixture
def kitchen(tmp_path: Path) -> "Kitchen":
    return Kitchen(tmp_path)


class Kitchen:
    """A recipe, its upstream, and a cache."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.out = folder / "out"
        self.publish(MEMBERS)

    def publish(self, members: dict[str, str | bytes], arch: str = "amd64", sums: str = "") -> None:
        """Put the archive and its checksum file where the recipe looks for them."""
        place = self.folder / "up/v1.2.3"
        place.mkdir(parents=True, exist_ok=True)
        data = archive(members)
        (place / f"tool-{arch}.tar.gz").write_bytes(data)
        digest = sums or hashlib.sha256(data).hexdigest()
        (place / f"tool-{arch}.tar.gz.sha256").write_text(f"{digest}  tool-{arch}.tar.gz\n")

    def build(self, text: str = RECIPE, files: dict[str, str] = OVERLAY, **settings: object) -> Built:
        """Build the recipe `text` into the folder `out`."""
        recipes = self.folder / "recipes"
        if not recipes.exists():
            write_recipe(recipes, text, files)
        chosen = Settings(
            cache_dir=self.folder / "cache", recipe_folders=(recipes,),
            mirror_urls=(f"https://up.example/={self.folder}/up/",),
        )  # fmt: skip
        sysupdate = str(settings.pop("sysupdate", ""))
        with Services(chosen, Console()) as services:
            recipe = find_recipe("tool", services.recipes)
            catalogue = Catalogue(services, services.rewrites, services.recipes)
            arch = settings.pop("arch", Arch.X86_64)
            assert isinstance(arch, Arch)
            request = settle(recipe, "1.2.3", arch, catalogue, **settings)  # type: ignore[arg-type]
            request = dataclasses.replace(request, compression="lz4")
            return write_sysext(request, services, self.out / request.file_name, sysupdate, False)[0]

    def refused(self, kind: type[BakeError], *args: object, **settings: object) -> str:
        """What a build that fails says. Nothing is written."""
        with pytest.raises(kind) as error:
            self.build(*args, **settings)  # type: ignore[arg-type]
        assert not self.out.exists() or not list(self.out.iterdir())
        return f"{error.value.message} {error.value.hint}"

    def content(self, path: str) -> str:
        """A file of the only image in `out`."""
        tree = self.folder / "tree"
        if not tree.exists():
            (image,) = self.out.glob("*.raw")
            unpack(image, tree)
        return (tree / path.lstrip("/")).read_text()


def test_a_whole_recipe(kitchen):
    built = kitchen.build()
    assert listing(kitchen.out / "tool-v1.2.3-x86-64.raw") == PATHS
    assert built.sysext.architecture == "x86-64" and built.sysext.reload_manager
    assert "Upholds=tool.service" in kitchen.content(
        "/usr/lib/systemd/system/multi-user.target.d/10-tool-service.conf"
    )
    (record,) = built.record["inputs"]
    assert record["url"] == "https://up.example/v1.2.3/tool-amd64.tar.gz"
    assert "tool-amd64.tar.gz.sha256" in record["trust"] or "checksum" in record["trust"]


def test_entries_in_their_order(kitchen):
    text = RECIPE + (
        UP + '[[generate]]\npath = "/usr/share/tool/version"\ncontent = "{v} {arch}\\n"\n'
        '[[symlink]]\npath = "/usr/bin/t"\ntarget = "tool"\n'
        '[[edit]]\npath = "/usr/share/tool/tool.conf"\nreplace = [["port = ", "p="]]\ncount = 2\n'
        '[[install]]\nfrom = "release"\nsrc = "**"\ndst = "/usr/share/all/"\nexclude = ["*.md", "tool"]\n'
        '[[remove]]\npaths = ["/usr/share/gone"]\n[[remove]]\npaths = ["/usr/never"]\noptional = true\n'
    )
    kitchen.build(text, {UNIT_PATH: UNIT, "usr/share/gone/deep/x": ""})
    found = listing(next(kitchen.out.glob("*.raw")))
    shared = {"/usr/share/tool/version": "", "/usr/share/tool/tool.conf": "", "/usr/share/all/etc/tool.conf": ""}
    assert found == {**PATHS, **shared, "/usr/bin/t": "tool"}
    assert kitchen.content("/usr/share/tool/version") == "v1.2.3 x86-64\n"
    assert kitchen.content("/usr/share/tool/tool.conf") == "p=1\np=2\n"
    assert kitchen.content("/usr/share/all/etc/tool.conf") == "port = 1\nport = 2\n", "each copy is its own"


@pytest.mark.parametrize(
    ("change", "installed"),
    [
        ('src = "tool"\ndst = "/usr/bin/other"', "/usr/bin/other"),
        ('find = "tool.conf"\ndst = "/usr/share/"', "/usr/share/tool.conf"),
        ('src = "etc"\ndst = "/usr/share/tool"', "/usr/share/tool/tool.conf"),
        ('src = "etc"\ndst = "/usr/share/"', "/usr/share/etc/tool.conf"),
        ('src = "*.none"\noptional = true\ndst = "/usr/share/"', ""),
    ],
    ids=["renamed", "found", "folder renamed", "folder", "optional"],
)
def test_where_files_go(change, installed, kitchen):
    kitchen.build(RECIPE + f'[[install]]\nfrom = "release"\n{change}\n')
    extra = set(listing(next(kitchen.out.glob("*.raw")))) - set(PATHS)
    assert extra == ({installed} if installed else set())


# Text to add to the recipe, the error's kind, and what it says.
REFUSED: dict[str, tuple[str, type[BakeError], str]] = {
    "nothing matches": ('[[install]]\nfrom = "release"\nsrc = "tol"\ndst = "/usr/x/"\n', ImageError,
                        "Did you mean tool"),
    "several for one": ('[[install]]\nfrom = "release"\nsrc = "**"\ndst = "/usr/x"\n', ImageError, "would all become"),
    "not found": ('[[install]]\nfrom = "release"\nfind = "x"\ndst = "/usr/x"\n', ImageError, "nothing that matches"),
    "twice": ('[[install]]\nfrom = "release"\nsrc = "tool"\ndst = "/usr/bin/"\n', UsageError,
              "in the extension already"),
    "below a file": ('[[generate]]\npath = "/usr/bin/tool/x"\ncontent = ""\n', UsageError, "which is no folder"),
    "edit count": (UP + '[[edit]]\npath = "/usr/share/tool/tool.conf"\nreplace = [["port", "p"]]\n',
                   ImageError, "'port' 2 times, not 1"),
    "edit of nothing": ('[[edit]]\npath = "/usr/x"\nreplace = [["a", "b"]]\n', ImageError, "no file /usr/x"),
    "edit of a program": ('[[edit]]\npath = "/usr/bin/tool"\nreplace = [["a", "b"]]\n', ImageError, "no text"),
    "remove nothing": ('[[remove]]\npaths = ["/usr/share/none"]\n', ImageError, "nothing in the extension matches"),
    "missing unit": ('[[uphold]]\ntarget = "multi-user.target"\nunit = "tol.service"\n', UsageError,
                     "Did you mean tool.service"),
    "drop-in": ('[[generate]]\npath = "/usr/lib/systemd/system/a.service.d/x"\ncontent = ""\n', UsageError,
                "systemd ignores"),
    "test path": ('[test]\npaths = ["/usr/bin/tol"]\n', ImageError, "lacks /usr/bin/tol"),
    "test elf": (f'[test]\nelf = ["/{UNIT_PATH}"]\n', ImageError, "no ELF program"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_stops_a_build(case, kitchen):
    added, kind, message = REFUSED[case]
    assert message in kitchen.refused(kind, RECIPE + added)


def test_a_link_of_an_archive_is_never_followed(kitchen):
    """An overlay's link stands for one that an archive brought: what goes below it would land outside."""
    home = write_recipe(kitchen.folder / "recipes", RECIPE + UP)
    (home / "files/usr/share").mkdir(parents=True)
    (home / "files/usr/share/tool").symlink_to(kitchen.folder)
    assert "which is no folder" in kitchen.refused(UsageError)
    assert not (kitchen.folder / "tool.conf").exists()


def test_a_program_for_another_machine(kitchen):
    kitchen.publish(MEMBERS | {"tool": program(Arch.ARM64)})
    said = kitchen.refused(ImageError)
    assert "/usr/bin/tool is for arm64, not for x86-64" in said and "[arch]" in said


def test_a_bad_checksum(kitchen):
    kitchen.publish(MEMBERS, sums="0" * 64)
    assert "tool-amd64.tar.gz" in kitchen.refused(VerificationError)


def test_a_missing_asset_of_one_architecture(kitchen):
    said = kitchen.refused(FileMissing, arch=Arch.ARM64)
    assert "tool-arm64.tar.gz" in said and "recipe versions tool" in said


def test_variants_leave_out_what_they_say(kitchen):
    text = RECIPE + (
        '[[generate]]\npath = "/usr/share/small"\ncontent = ""\nvariant = "small"\n'
        '[test]\npaths = ["/usr/lib/systemd/system/tool.service"]\n'
        '[variant.small]\ndrop = ["/usr/lib/systemd"]\ndrop_uphold = ["tool.service"]\nenv = { ONLY_TOOL = "1" }\n'
        '[variant.other]\nenv = { ONLY_OTHER = "1" }\n'
    )
    kitchen.build(text, variant="small", name="mine")
    assert set(listing(kitchen.out / "mine-v1.2.3-x86-64.raw")) == {"/usr/bin/tool", "/usr/share/small"}
    by_variable = kitchen.build(environment={"ONLY_TOOL": "1"})
    assert by_variable.record["choices"] == {"variant": "small"}
    assert "exclude each other" in refusal(lambda: kitchen.build(environment={"ONLY_TOOL": "1", "ONLY_OTHER": "1"}))
    assert "small" in refusal(lambda: kitchen.build(variant="smal"))


def refusal(action: Callable[[], object]) -> str:
    with pytest.raises(UsageError) as error:
        action()
    return f"{error.value.message} {error.value.hint}"


PARAMETERS = """
[param.level]
description = "how much"
choices = ["low", "high"]
required = true
[param.plugin]
normalise = "v"
env = "PLUGIN_VERSION"
aliases = ["plugin-version"]
[param.late]
default = "x"
when = "version >= 2"
[[generate]]
path = "/usr/share/tool/words"
content = "{p.level} {p.plugin} {p.late}"
[[generate]]
path = "/usr/share/tool/plugged"
content = ""
when = "p.plugin >= 2 and p.level == 'low'"
"""


def test_parameters(kitchen):
    kitchen.build(RECIPE + PARAMETERS, parameters={"level": "low"}, environment={"PLUGIN_VERSION": "2.0"})
    assert kitchen.content("/usr/share/tool/words") == "low v2.0 "
    assert (kitchen.folder / "tree/usr/share/tool/plugged").exists()


@pytest.mark.parametrize(
    ("given", "message"),
    [({}, "needs the parameter level: how much"), ({"level": "mid"}, "cannot be 'mid'"),
     ({"lavel": "low"}, "Did you mean level"), ({"level": "low", "late": "y"}, "means nothing for tool v1.2.3")],
)  # fmt: skip
def test_parameters_that_do_not_fit(given, message, kitchen):
    assert message in kitchen.refused(UsageError, RECIPE + PARAMETERS, parameters=given)


def test_a_second_build_comes_from_the_cache_and_is_the_same(kitchen):
    first = kitchen.build()
    (image,) = kitchen.out.iterdir()
    content = image.read_bytes()
    image.unlink()
    second = kitchen.build()
    assert second.from_cache and not first.from_cache
    assert image.read_bytes() == content and image.stat().st_mode & 0o777 == 0o644
    assert second.record == first.record


def test_the_cache_knows_what_changed(kitchen):
    first = kitchen.build()
    (kitchen.folder / "recipes/tool/files" / UNIT_PATH).write_text(UNIT + "# changed\n")
    next(kitchen.out.iterdir()).unlink()
    second = kitchen.build()
    assert not second.from_cache and second.sysext.sha256 != first.sysext.sha256


def test_what_exists_is_not_overwritten(kitchen):
    kitchen.build()
    with pytest.raises(UsageError, match=r"tool-v1\.2\.3-x86-64\.raw exists"):
        kitchen.build()


STREAMS = """
[[stream]]
name = "tool"
pattern = "tool-@v-%a.raw"
[[stream]]
per = "minor"
name = "tool-v{minor}"
pattern = "tool-v{minor}.@v-%a.raw"
target = "tool"
"""


@pytest.mark.parametrize("name", ["tool", "mine"])
def test_every_stream_has_its_config(name, kitchen):
    kitchen.build(RECIPE + STREAMS, name=name, sysupdate="https://up.example/bakery")
    assert {path.name for path in kitchen.out.iterdir()} == {
        f"{name}-v1.2.3-x86-64.raw", f"{name}.conf", f"{name}-v1.2.conf", "noop.conf"
    }  # fmt: skip
    text = (kitchen.out / f"{name}-v1.2.conf").read_text()
    for line in (
        f"Path=https://up.example/bakery/{name}/", f"MatchPattern={name}-v1.2.@v-%a.raw",
        f"Path=/opt/extensions/{name}", f"CurrentSymlink=/etc/extensions/{name}.raw",
    ):  # fmt: skip
        assert line in text.splitlines()
