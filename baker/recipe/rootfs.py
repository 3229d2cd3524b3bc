"""Recipes of a root filesystem: what [rootfs] says, and the container that it means. `carving.py` does the work."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from baker.errors import UsageError
from baker.model import Arch
from baker.recipe.model import ContainerBuild, Rootfs
from baker.schema import suggest

if TYPE_CHECKING:
    from baker.recipe.request import RecipeBuild

_PLATFORMS = {Arch.X86_64: "linux/amd64", Arch.ARM64: "linux/arm64"}
OPTIONS = {
    "flix": ("extra-lib", "ignore-missing"),
    "flatwrap": ("etc", "var", "home", "chroot", "host"),
}
"""The options of each tool that a recipe may give; of lists, the words are separated by blanks."""


def expanded_rootfs(request: RecipeBuild) -> Rootfs | None:
    """The recipe's [rootfs] with all words replaced; None for a recipe without."""
    rootfs = request.recipe.rootfs
    if rootfs is None:
        return None

    def text(template: str) -> str:
        return request.scope.expand(template, rootfs.where)

    return replace(
        rootfs, image=text(rootfs.image), packages=tuple(map(text, rootfs.packages)),
        paths=tuple(map(text, rootfs.paths)), options={name: text(value) for name, value in rootfs.options.items()},
    )  # fmt: skip


def rootfs_container(request: RecipeBuild) -> ContainerBuild | None:
    """The container in which the packages are installed; None for a recipe without [rootfs]."""
    rootfs = expanded_rootfs(request)
    if rootfs is None:
        return None
    return ContainerBuild(
        {"": rootfs.image}, platform=_PLATFORMS[request.arch], manager=rootfs.manager, packages=rootfs.packages,
        where=rootfs.where,
    )  # fmt: skip


def check_options(rootfs: Rootfs) -> None:
    """UsageError for an option that the tool does not have."""
    known = OPTIONS[rootfs.tool]
    for name in rootfs.options:
        if name not in known:
            raise UsageError(
                f"{rootfs.where}: {rootfs.tool} has no option {name!r}.",
                suggest(name, known) or f"It has {', '.join(known)}.",
            )
