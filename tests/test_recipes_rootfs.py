"""The recipes that take programs out of another distribution's root filesystem, by flix and flatwrap."""

from __future__ import annotations

import subprocess
from pathlib import Path

import chroots
import pytest
from build_images import folder_image, program_image
from recipe_builds import build_recipe
from recipe_checks import listing, unpack, wrong_machines
from upstream import Upstream

from baker.errors import UsageError
from baker.model import Arch
from baker.recipe.build import Built
from baker.recipe.load import load_recipe


def check(made: Built, folder: Path) -> Path:
    """What must be true of every extension; returns its files, unpacked into `folder`."""
    assert {finding.code for finding in made.findings} == set()
    tree = unpack(made.path, folder / "tree")
    assert wrong_machines(tree, made.request.arch) == {}
    return tree


@pytest.mark.parametrize("arch", Arch)
def test_btop_comes_with_its_root_filesystem(arch: Arch, upstream: Upstream, tmp_path: Path) -> None:
    with program_image(arch, "btop") as image:
        made = build_recipe(upstream, tmp_path, "btop", arch, image=image)
    found = listing(made.path)
    assert found["/usr/bin/btop"] == "x" and found["/usr/local/btop/rootfs/usr/bin/btop"] == "x"
    outside = {path for path in found if not path.startswith("/usr/local/btop/rootfs/")}
    assert outside == {"/usr/bin/btop", "/usr/local/btop/enter", "/usr/local/btop/inside"}
    tree = check(made, tmp_path)
    assert (tree / "usr/local/btop/mnt").is_dir(), "there is nothing to mount on"
    if arch is Arch.X86_64:
        said = subprocess.run(chroots.merged(tree, "btop", "--version"), capture_output=True, text=True, check=True)
        assert "btop version: 1." in said.stdout


@pytest.mark.parametrize("arch", Arch)
def test_tilde_comes_with_its_libraries(arch: Arch, upstream: Upstream, tmp_path: Path) -> None:
    if arch is Arch.X86_64:
        # With a real package manager, which fetches it.
        with folder_image(chroots.debian(), tmp_path) as image:
            made = build_recipe(upstream, tmp_path, "tilde", arch, image=image)
    else:
        with program_image(arch, "tilde") as image:
            made = build_recipe(upstream, tmp_path, "tilde", arch, image=image)
    found = listing(made.path)
    assert found["/usr/bin/tilde"] == "x"
    libraries = {path.rpartition("/")[2] for path in found if path.startswith("/usr/local/tilde/")}
    loader = "ld-linux-x86-64.so.2" if arch is Arch.X86_64 else "ld-linux-aarch64.so.1"
    assert {loader, "libc.so.6", "libt3widget.so.2", "libstdc++.so.6"} <= libraries
    tree = check(made, tmp_path)
    if arch is Arch.X86_64:
        said = chroots.alone(tree, "/usr/bin/tilde", "--version")
        assert "Tilde version 1.1.2" in said.stdout + said.stderr
    assert '"docker://' in (tmp_path / "recipes.lock").read_text(), "the image is not pinned"


RECIPE = """\
schema = 1
name = "tool"
title = "A tool"
[version]
form = "bare"
match = '^\\d+$'
[rootfs]
tool = "flix"
image = "docker.io/library/debian:bookworm-slim"
paths = ["/usr/bin/tool"]
"""


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('options = { etc = "chroot" }', "flix has no option 'etc'"),
        ('packages = ["tool={nothing}"]\nmanager = "apt"', "nothing"),
        ('packages = ["tool"]', "has packages but no manager"),
    ],
)
def test_mistakes_in_a_rootfs_are_told(line: str, message: str, tmp_path: Path) -> None:
    home = tmp_path / "tool"
    home.mkdir()
    (home / "recipe.toml").write_text(RECIPE + line + "\n")
    with pytest.raises(UsageError, match=message):
        load_recipe(home)
