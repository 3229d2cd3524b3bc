"""Publishing: finished files get their names in the output folder, all or none of them.

No filesystem gives several files their names at once, and a bake can be killed between two of them. So each file
keeps a second name in the work folder: whoever finds the work folder of a dead bake sees which names in the output
folder are of a publishing that never reached its last file, the manifest, and takes them back.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from baker.errors import UsageError
from baker.stopping import unbroken
from baker.work import remove, stale

MANIFEST_NAME = "bake-manifest.json"
FINISHED = "out"
"""The folder inside a work folder where files wait to be published."""

_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK, errno.ENOSYS)  # vfat, exfat and some network filesystems


def publish(files: Sequence[Path], folder: Path, force: bool) -> None:
    """Give `files` (in a FINISHED folder on the same filesystem) their names in `folder`, the manifest last.

    The presence of a manifest means that all is there. Raises UsageError, and publishes nothing, when a name is
    taken; with `force` it is overwritten.
    """
    order = sorted(files, key=lambda path: path.name == MANIFEST_NAME)
    for path in order:
        with path.open("rb") as file:
            os.fsync(file.fileno())
    with unbroken(), _locked(folder):
        if force:
            (folder / MANIFEST_NAME).unlink(missing_ok=True)
        done: list[Path] = []
        try:
            for path in order:
                give_name(path, folder / path.name, force)
                done.append(folder / path.name)
        except BaseException as error:
            for target in done:
                target.unlink(missing_ok=True)
            if isinstance(error, FileExistsError):
                raise UsageError(
                    f"{folder / path.name} appeared while the bake ran.",
                    "Bake into another --output-dir, or use --force.",
                ) from error
            raise


def give_name(path: Path, target: Path, force: bool) -> None:
    """Make `target` another name of `path`, or its only one; FileExistsError without `force` when it is taken."""
    new = path.with_name(f"{path.name}.new") if force else target
    try:
        os.link(path, new)
        if force:
            new.replace(target)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        if not force and os.path.lexists(target):
            raise FileExistsError from error
        path.replace(target)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Be the only one who publishes into this folder, or tidies it up."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
        except OSError:
            pass  # a network filesystem that locks no folders
        yield
        os.fsync(fd)
    finally:
        os.close(fd)


def unfinished(folder: Path) -> list[Path]:
    """The files in an output folder that a killed bake had published when it had not published them all."""
    return [path for work in stale(folder) for path in _half_published(work, folder)]


def _half_published(work: Path, folder: Path) -> list[Path]:
    try:
        pairs = [(folder / path.name, path) for path in (work / FINISHED).iterdir()]
        published = [name for name, path in pairs if name.is_file() and name.samefile(path)]
    except OSError:
        return []
    return [] if folder / MANIFEST_NAME in published else published


def tidy(folder: Path) -> tuple[list[Path], list[Path]]:
    """Remove what killed bakes left in an output folder; returns (what is gone, work folders that resist)."""
    gone: list[Path] = []
    resisting: list[Path] = []
    if works := stale(folder):
        with _locked(folder):
            for work in works:
                for path in _half_published(work, folder):
                    path.unlink(missing_ok=True)
                    gone.append(path)
                (gone if remove(work) else resisting).append(work)
    return gone, resisting
