"""Work folders: where a bake keeps its intermediate files, on the same filesystem as its output.

A work folder holds a lock file that is flock'ed as long as its owner lives; the kernel drops the lock when the owner
dies, however it dies. So a work folder whose lock can be taken is left over from a crash. Whoever makes the next one
in the same place removes it.
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
from baker.stopping import unbroken

PREFIX = ".flatcar-bake-"
LOCK_NAME = "pid.lock"
_NEWBORN = 60  # seconds in which a folder may still be without its lock, or the lock be without its holder


class WorkFolder:
    """A folder for intermediate files inside `parent`; a context manager that yields its path and removes it.

    With `keep` the folder stays for its user to look at and remove; it loses the lock file, so it is never `stale`.
    Raises EnvironmentFault when `parent` cannot be written to.
    """

    def __init__(self, parent: Path, keep: bool = False) -> None:
        self._parent, self._keep = parent, keep
        self._path: Path | None = None
        self._lock: int | None = None

    def __enter__(self) -> Path:
        return self.open()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def open(self) -> Path:
        """Make the folder, unless that has happened; returns its path."""
        if self._path is not None:
            return self._path
        try:
            with unbroken():
                self._path = Path(tempfile.mkdtemp(prefix=PREFIX, dir=self._parent)).resolve()
                self._lock = os.open(self._path / LOCK_NAME, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
                fcntl.flock(self._lock, fcntl.LOCK_EX)
                os.write(self._lock, b"%d\n" % os.getpid())
                return self._path
        except OSError as error:
            self.close()
            raise EnvironmentFault(
                f"Cannot make a work folder in {self._parent}: {error.strerror}.",
                "Choose another folder for the output.",
            ) from error
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Remove the folder, or leave it to the user; once is enough."""
        with unbroken():
            if self._path is not None and self._keep:
                (self._path / LOCK_NAME).unlink(missing_ok=True)
            elif self._path is not None:
                remove(self._path)
            if self._lock is not None:
                os.close(self._lock)
            self._path = self._lock = None


def scratch() -> WorkFolder:
    """A work folder for small things, in the system's folder for temporary files."""
    parent = Path(tempfile.gettempdir())
    for left in stale(parent):
        remove(left)
    return WorkFolder(parent)


def stale(folder: Path) -> list[Path]:
    """Our work folders directly inside `folder` whose owner is dead, sorted; none where it cannot be read."""
    try:
        return [entry for entry in sorted(folder.iterdir()) if _is_stale(entry)]
    except OSError:
        return []


def _is_stale(entry: Path) -> bool:
    # A link of that name is not ours, and what it leads to is not ours to remove.
    if not entry.name.startswith(PREFIX) or entry.is_symlink():
        return False
    try:
        found = entry.stat()
        newborn = time.time() - found.st_mtime <= _NEWBORN
        if found.st_uid != os.geteuid():  # laid out for us in a folder for everybody, such as /tmp
            return False
        lock = os.open(entry / LOCK_NAME, os.O_WRONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:  # its owner died before it locked it, or it was kept on purpose, or it is gone by now
        return entry.is_dir() and not newborn and not any(entry.iterdir())
    except OSError:  # no folder, or not ours to look into
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # The owner writes to the file as soon as it has the lock; we may have been faster.
        return os.fstat(lock).st_size > 0 or not newborn
    except BlockingIOError:
        return False
    finally:
        os.close(lock)


def remove(folder: Path) -> bool:
    """Remove a work folder as far as possible; whether it is gone. Links inside are removed, never followed."""
    if not folder.is_symlink():
        # The lock goes last: without it, what is left if we fail or are killed would look like a folder that was kept.
        for entry in _entries(folder):
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry, ignore_errors=True)
            elif entry.name != LOCK_NAME:
                try:
                    entry.unlink()
                except OSError:
                    pass  # gone, or not ours to remove, which the look below tells
        if all(entry.name == LOCK_NAME for entry in _entries(folder)):
            shutil.rmtree(folder, ignore_errors=True)
    return not os.path.lexists(folder)


def _entries(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError:
        return []
