"""Recipes of a root filesystem: a distribution's image with packages in it, and what `flix` or `flatwrap` takes of it.

image (pinned) ─► container: packages ─► export ─► unpacked by us ─► flix() | flatwrap() ─► the extension's tree
"""

from __future__ import annotations

from collections.abc import Mapping as Words
from pathlib import Path

from baker.chroot.flatwrap import FlatwrapRequest, flatwrap
from baker.chroot.flix import FlixRequest, flix
from baker.chroot.patching import patchelf
from baker.chroot.tree import Made
from baker.chroot.view import Mapping
from baker.oci.layers import RootFolder
from baker.oci.unpack import LIMITS
from baker.recipe.archives import naming_damage, tar_entries
from baker.recipe.containers import export_root
from baker.recipe.model import Rootfs
from baker.recipe.request import RecipeBuild
from baker.recipe.rootfs import expanded_rootfs, rootfs_container
from baker.run import program_version
from baker.services import Services


def take_rootfs(request: RecipeBuild, services: Services, work: Path, target: Path) -> Made:
    """Make the new folder `target` the tree that the recipe's [rootfs] means; `work` is for what lies between.

    Raises what containers raise, VerificationError for an image that is not the pinned one, ImageError where the
    root filesystem does not hold what the recipe takes, or what is taken could not work.
    """
    rootfs, build = expanded_rootfs(request), rootfs_container(request)
    assert rootfs is not None and build is not None
    archive, folder = work / "rootfs.tar", work / "rootfs"
    export_root(build, archive, work, services)
    with services.console.step(f"Take {request.component} out of the root filesystem"):
        _unpack(archive, folder, rootfs.image)
        archive.unlink()
        made = _tool(rootfs, request, folder, target)
    for note in made.notes:
        services.console.note(note)
    return made


def patchelf_version() -> str:
    """The version of the tool that decides the bytes of `flix` beside the root filesystem."""
    return program_version((patchelf(), "--version"))


def _unpack(archive: Path, folder: Path, image: str) -> None:
    """The container's files as they are in it: nobody vouches for what packages bring, so no entry is trusted."""
    name = f"the root filesystem of {image}"
    root = RootFolder(folder, name, LIMITS.for_archive(archive.stat().st_size), LIMITS.entries)
    root.begin(name)
    with naming_damage(name, "tar"), archive.open("rb") as file:
        for entry, chunks in tar_entries(file, name):
            root.take(entry, chunks)
        root.finish()


def _tool(rootfs: Rootfs, request: RecipeBuild, folder: Path, target: Path) -> Made:
    options = rootfs.options
    if rootfs.tool == "flix":
        return flix(FlixRequest(
            folder, request.component, rootfs.paths, request.arch, _list(options, "extra-lib"),
            _list(options, "ignore-missing"),
        ), target)  # fmt: skip
    mapping = Mapping(
        options.get("etc", "host"), options.get("var", "host"), options.get("home", "host"),
        _list(options, "chroot"), _list(options, "host"),
    )  # fmt: skip
    return flatwrap(FlatwrapRequest(folder, request.component, rootfs.paths, request.arch, mapping), target)


def _list(options: Words[str, str], name: str) -> tuple[str, ...]:
    return tuple(options.get(name, "").split())
