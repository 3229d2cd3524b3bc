"""A private copy of a tree, for the mkfs tools that read folders and take modes and times from there."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from baker import stopping
from baker.packing.tree import Entry, changed
from baker.sparse import copy_range


@contextmanager
def staged(entries: Iterable[Entry], folder: Path, epoch: int, own: bool) -> Iterator[Path]:
    """Make `entries` in the new folder `folder`, with their modes and the time `epoch`, and no attributes.

    `own`: the host files are ours to change, so they are linked here instead of copied where that is possible.
    Behind the block the folder can be removed by its owner, whatever modes were asked for.
    """
    ordered = list(entries)
    try:
        _stage(ordered, folder, epoch, own)
        yield folder
    finally:
        for entry in ordered:
            path = folder / entry.path.lstrip("/")
            if entry.kind == "directory" and entry.mode & 0o700 != 0o700 and path.is_dir():
                path.chmod(0o700)


def _stage(ordered: list[Entry], folder: Path, epoch: int, own: bool) -> None:
    folder.mkdir()
    for entry in ordered:
        stopping.check()
        path = folder / entry.path.lstrip("/")
        if entry.kind == "directory":
            path.mkdir()
        elif entry.kind == "symlink":
            path.symlink_to(entry.symlink)
        elif entry.source is None:
            path.write_bytes(entry.content)
        elif not (own and _link(entry.source, path)):
            _copy(entry, path)
    # Children first: making them changes the time of their folder.
    for entry in reversed(ordered):
        _settle(folder / entry.path.lstrip("/"), entry, epoch)
    _settle(folder, Entry("/", "directory", 0o755), epoch)


def _link(source: Path, path: Path) -> bool:
    if source.lstat().st_nlink > 1:
        return False  # two names of one file would stay that in the image
    try:
        os.link(source, path, follow_symlinks=False)
    except OSError as error:
        if error.errno in (errno.EXDEV, errno.EPERM, errno.EOPNOTSUPP):
            return False
        raise
    return True


def _copy(entry: Entry, path: Path) -> None:
    with entry.open() as old, path.open("xb") as new:
        try:
            copy_range(old.fileno(), new.fileno(), 0, 0, entry.size)
        except OSError as error:
            if error.errno == errno.EIO:
                raise changed(entry.path) from error
            raise


def _settle(path: Path, entry: Entry, epoch: int) -> None:
    for name in os.listxattr(path, follow_symlinks=False):
        try:
            os.removexattr(path, name, follow_symlinks=False)
        except OSError:
            pass  # a label that the system itself gives to every file
    if entry.kind != "symlink":
        path.chmod(entry.mode)
    os.utime(path, (epoch, epoch), follow_symlinks=False)
