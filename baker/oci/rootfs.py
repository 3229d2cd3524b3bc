"""`oci-rootfs`: the root filesystem of a container image in a folder, all of it or nothing."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from baker.console import Console
from baker.errors import EnvironmentFault, UsageError
from baker.oci.layers import LeftOut
from baker.oci.pull import MADE_BY_ENGINES, Obtained, Wanted, obtain
from baker.oci.unpack import unpack
from baker.publish import tidy
from baker.stopping import unbroken
from baker.work import WorkFolder

_SHOWN = 5  # paths in a message


@dataclass(frozen=True)
class Rootfs:
    """A root filesystem that was made."""

    folder: Path
    image: str
    digest: str
    """Of the manifest: the registry's, or that of the layout; "" where there is none."""
    config_digest: str
    """Which is the same wherever the image is kept."""
    engine: str
    layers: int
    paths: int
    left_out: LeftOut = field(default_factory=LeftOut)

    def as_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "folder": str(self.folder), "image": self.image, "digest": self.digest, "config": self.config_digest,
            "engine": self.engine, "layers": self.layers, "paths": self.paths,
            "devices_left_out": self.left_out.devices, "set_id": self.left_out.set_id,
            "without_capabilities": self.left_out.capabilities,
        }  # fmt: skip


def make_rootfs(
    wanted: Wanted, folder: Path, console: Console, *, devices: bool = False, force: bool = False
) -> Rootfs:
    """Make `folder` hold the root filesystem of an image; one that is there already is replaced with `force` only.

    As root everything keeps its owner; as somebody else, everything is theirs. The folder is open to its owner only,
    for the set-user-id programs in it. Raises UsageError for a folder that must not be replaced, and the errors of
    `obtain` and `unpack`; then nothing has changed.
    """
    folder = _checked(folder, force)
    if devices and os.geteuid():
        raise UsageError("Only root can make device nodes.", "Leave out --devices: hardly anything needs them.")
    tidy(folder.parent)
    with WorkFolder(folder.parent) as work:
        obtained = obtain(wanted, work, console)
        done = unpack(
            obtained.image, str(wanted.image), work / "root", console, devices=devices,
            unless_new=MADE_BY_ENGINES if wanted.command else (),
        )  # fmt: skip
        with unbroken():
            _publish(work / "root", folder, work / "old", force)
    result = _result(wanted, folder, obtained, done.count, done.left_out)
    _remark(result, obtained.digest, console)
    return result


def _result(wanted: Wanted, folder: Path, obtained: Obtained, count: int, left_out: LeftOut) -> Rootfs:
    image = obtained.image
    own = "" if wanted.command else image.digest  # a command makes an image that nobody else has
    return Rootfs(
        folder, str(wanted.image), obtained.digest or own, image.config_digest, obtained.program,
        len(image.layers), count, left_out,
    )  # fmt: skip


def _checked(folder: Path, force: bool) -> Path:
    """The folder to make, without links on the way. UsageError for what must not be replaced."""
    if folder.is_symlink() and not folder.exists():
        raise UsageError(f"{folder} is a link to nowhere.", "Remove it, or give another folder.")
    folder = folder.resolve()
    if not folder.parent.is_dir():
        raise UsageError(f"There is no folder {folder.parent}.", f"Make it: mkdir -p {folder.parent}")
    if not os.path.lexists(folder):
        return folder
    if not folder.is_dir():
        raise UsageError(f"{folder} is no folder.", "Give another one.")
    precious = [Path.cwd(), Path(os.path.expanduser("~")), Path("/")]  # a user may have no home
    if folder.is_mount() or any(path.is_relative_to(folder) for path in precious):
        raise UsageError(f"{folder} cannot be replaced by a root filesystem.", "Give a folder of its own.")
    if any(folder.iterdir()) and not force:
        raise UsageError(f"{folder} is not empty.", "Give another folder, or use --force to replace it.")
    return folder


def _publish(root: Path, folder: Path, old: Path, force: bool) -> None:
    try:
        if force and os.path.lexists(folder):
            folder.rename(old)
        root.rename(folder)
    except OSError as error:
        if os.path.lexists(old) and not os.path.lexists(folder):
            old.rename(folder)
        raise EnvironmentFault(f"{folder} cannot be put in its place: {error.strerror}.") from error


def _remark(result: Rootfs, digest: str, console: Console) -> None:
    left = result.left_out
    if digest and "@" not in result.image:
        console.note(f"{result.image} is {digest}: with @ and that behind its name it will be the same.")
    if left.devices:
        console.note(f"Device nodes are left out (--devices makes them): {_some(left.devices)}.")
    if left.set_id:
        console.note(f"Set-id programs are in it, so only its owner can enter it: {_some(left.set_id)}.")
    if left.capabilities:
        console.warn(f"These lack their capabilities, which only root can give: {_some(left.capabilities)}.")
    if left.foreign and os.geteuid():
        console.note(f"{left.foreign} paths belong to others than root in the image; here all of them are yours.")


def _some(paths: list[str]) -> str:
    more = f" and {len(paths) - _SHOWN} more" if len(paths) > _SHOWN else ""
    return ", ".join(paths[:_SHOWN]) + more
