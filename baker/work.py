"""Work folders: where a bake keeps its intermediate files, on the same filesystem as its output.

A work folder holds a lock file that is flock'ed as long as its owner lives; the kernel drops the lock when the owner
dies, however it dies. So a work folder whose lock can be taken is left over from a crash.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import time
from pathlib import Path
from types import TracebackType

from baker.errors import EnvironmentFault

PREFIX = ".flatcar-bake-"
LOCK_NAME = "pid.lock"
_NEWBORN = 60  # seconds in which a folder may still be without its lock


class WorkFolder:
    """A context manager that makes a work folder inside `parent`, yields its path and removes it at the end.

    With `keep` the folder stays for its user to look at and remove; it loses the lock file, so it is never `stale`.
    Raises EnvironmentFault when `parent` cannot be written to.
    """

    def __init__(self, parent: Path, keep: bool = False) -> None:
        self._parent, self._keep = parent, keep
        self._path = Path()
        self._lock = -1

    def __enter__(self) -> Path:
        try:
            self._path = Path(tempfile.mkdtemp(prefix=PREFIX, dir=self._parent)).resolve()
            self._lock = os.open(self._path / LOCK_NAME, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.flock(self._lock, fcntl.LOCK_EX)
            os.write(self._lock, b"%d\n" % os.getpid())
        except OSError as error:
            raise EnvironmentFault(
                f"Cannot make a work folder in {self._parent}: {error.strerror}.",
                "Choose another folder for the output.",
            ) from error
        return self._path

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._keep:
            (self._path / LOCK_NAME).unlink(missing_ok=True)
        else:
            remove(self._path)
        os.close(self._lock)


def stale(folder: Path) -> list[Path]:
    """The work folders directly inside `folder` whose owner is dead, sorted; none where it cannot be read."""
    try:
        return [entry for entry in sorted(folder.iterdir()) if _is_stale(entry)]
    except OSError:
        return []


def _is_stale(entry: Path) -> bool:
    # A link of that name is not ours, and what it leads to is not ours to remove.
    if not entry.name.startswith(PREFIX) or entry.is_symlink() or not entry.is_dir():
        return False
    try:
        lock = os.open(entry / LOCK_NAME, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:  # its owner died before it locked it, or it was kept on purpose
        return not any(entry.iterdir()) and time.time() - entry.stat().st_mtime > _NEWBORN
    except OSError:  # another user's
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(lock)
    return True


def remove(folder: Path) -> bool:
    """Remove a work folder as far as possible; whether it is gone. Links inside are removed, never followed."""
    shutil.rmtree(folder, ignore_errors=True)  # refuses to begin at a symlink
    return not os.path.lexists(folder)
