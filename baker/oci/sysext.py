"""An image that is nothing but a sysext's tree: some are passed on through registries."""

from __future__ import annotations

import shutil
from pathlib import Path

from baker.chroot.tree import Made
from baker.errors import UsageError

_OF_CONTAINERS = ("dev", "etc", "proc", "run", "sys", "tmp")
"""Folders that builders of images make; empty, they mean nothing."""


def sysext_tree(folder: Path, target: Path) -> Made:
    """Copy the usr/ and opt/ of a root filesystem into the new folder `target`.

    UsageError when there is more in it, as in an image of a whole distribution, which cannot be laid over another.
    """
    found = sorted(path.name for path in folder.iterdir())
    more = [name for name in found if name not in ("usr", "opt") and not _is_empty(folder / name)]
    if more:
        raise UsageError(
            f"The image is a root filesystem, with /{more[0]} in it, and no sysext.",
            f"Take what you need out of {folder}: flatcar-bake flix, or flatwrap.",
        )
    if not {"usr", "opt"} & set(found):
        raise UsageError("The image holds no sysext: it has neither /usr nor /opt.")
    target.mkdir()
    for name in ("usr", "opt"):
        if name in found:
            _copy(folder / name, target / name)
    return Made(target)


def _is_empty(path: Path) -> bool:
    return path.name in _OF_CONTAINERS and not path.is_symlink() and path.is_dir() and not any(path.iterdir())


def _copy(source: Path, target: Path) -> None:
    if source.is_symlink() or not source.is_dir():
        raise UsageError(f"/{source.name} of the image is no folder, so it is no sysext's.")
    shutil.copytree(source, target, symlinks=True, ignore=_refuse_special)


def _refuse_special(folder: str, names: list[str]) -> list[str]:
    """Nothing is left out, but what cannot be copied is named: copytree would wait for the writer of a pipe."""
    for name in names:
        path = Path(folder) / name
        if not (path.is_symlink() or path.is_file() or path.is_dir()):
            raise UsageError(f"{path} is a device, pipe or socket, which a sysext cannot hold.")
    return []
