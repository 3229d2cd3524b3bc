"""The per-user cache of what is the same in every stand-in release: packages, the guest system, a packed program.

Each item is a folder named after a digest of everything it was made from, appears by one rename, and is never changed.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

SCRIPTS = Path(__file__).resolve().parent
KEEP_DAYS = 2


def folder() -> Path:
    """The cache folder, made when it is missing: `$XDG_CACHE_HOME` or ~/.cache, then flatcar-bake-stand-in."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    path = base / "flatcar-bake-stand-in"
    path.mkdir(parents=True, exist_ok=True)
    return path


def scripts_digest(*names: str) -> str:
    """A short digest over the scripts that a release is made with: all of them, or the named files and folders."""
    digest = hashlib.sha256()
    for path in sorted(SCRIPTS.rglob("*")):
        inside = path.relative_to(SCRIPTS)
        if "__pycache__" in inside.parts or path.is_dir() or (names and inside.parts[0] not in names):
            continue
        content = os.readlink(path).encode() if path.is_symlink() else path.read_bytes()
        digest.update(f"{inside}\0{path.lstat().st_mode & 0o100:o}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()[:16]


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on the file `path` (made if missing); waits for others, ends with the process."""
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def item(kind: str, ingredients: object, make: Callable[[Path], None]) -> Path:
    """The cached folder of `kind` made from `ingredients` (anything with a stable repr); `make` fills a new one.

    Safe with several processes at once; a `make` that fails or is killed leaves nothing behind that counts.
    """
    name = f"{kind}-{hashlib.sha256(repr(ingredients).encode()).hexdigest()[:16]}"
    path = folder() / name
    with locked(folder() / f"{kind}.lock"):
        if not path.exists():
            for stale in folder().glob(f".{kind}-*"):
                shutil.rmtree(stale, ignore_errors=True)
            work = Path(tempfile.mkdtemp(prefix=f".{kind}-", dir=folder()))
            make(work)
            work.chmod(0o755)
            work.rename(path)
        keep(kind, path)
    return path


def keep(kind: str, current: Path) -> None:
    """Note that an item is in use, and remove those of its kind that nobody has asked for in KEEP_DAYS."""
    os.utime(current)
    for path in folder().glob(f"{kind}-*"):
        if path != current and path.stat().st_mtime < time.time() - KEEP_DAYS * 86400:
            shutil.rmtree(path, ignore_errors=True)
