"""The cache of verified files: content-addressed, shared by bakes that run at once, limited in size.

Below the root (CACHE_VERSION is part of the path, so an old layout is simply never read):

    objects/DIGEST.file     a verified file, named by its sha256
    objects/DIGEST.raw      a decoded disk image, sparse, named by its content digest (baker.sparse.content_digest)
    index/KEY.json          what is known of a file; KEY is a digest of the file's identity
    partial/KEY…            downloads under way or broken off
    locks/KEY               flock'ed by the one bake that downloads
    seen/KEY                unverified small files for use without a network (the release feed, lists of a bakery),
                            and what was found inside verified files

An object in use is flock'ed shared, so pruning leaves it alone; the kernel drops such locks with the process.
Objects are not fsync'ed: what a power failure tears, the digest check of the next use finds.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from baker.console import Console
from baker.errors import EnvironmentFault
from baker.partial import origin_path
from baker.sparse import content_digest, file_sha256
from baker.verify import Signer

CACHE_VERSION = "1"
"""Raise it when a fix makes what older versions stored unusable: it salts every key and the folder."""

_ABANDONED = 7 * 86400  # seconds after which nobody comes back for a broken download
_POLL = 0.2  # seconds between looks at a lock that another bake holds

_KEY_LENGTH = 64  # hexadecimal digits of a sha256

Identity = tuple[str, ...]
"""What a file is, wherever it comes from, e.g. channel, board, version, name and the pinned signer."""


@dataclass(frozen=True)
class Record:
    """What the index knows about one verified file."""

    name: str
    url: str
    size: int
    """Bytes of the stored file; of a decoded image, its full length."""
    sha256: str
    """Of the file as it was downloaded."""
    content_digest: str = ""
    """Of the decoded image; empty for files stored as they came."""
    signer: Signer | None = None

    @property
    def object_name(self) -> str:
        return f"{self.content_digest}.raw" if self.content_digest else f"{self.sha256}.file"


@dataclass(frozen=True)
class Item:
    """One stored object, for listings. `size` is what it takes on the disk in bytes, `used` a time of last use."""

    name: str
    size: int
    used: float
    path: Path


class Cache:
    """See the module. `limit`: bytes on disk that pruning keeps; safe to share between threads and processes."""

    def __init__(self, root: Path, limit: int, console: Console | None = None) -> None:
        self.root = root
        self._base = root / f"v{CACHE_VERSION}"
        self._limit = limit
        self._console = console or Console()
        self._leases: dict[Path, int] = {}
        self._guard = threading.Lock()

    def find(self, identity: Identity) -> tuple[Record, Path] | None:
        """The verified file of an identity, checked against its digest just now and leased until `close`.

        A damaged object is dropped with a warning, as if it had never been there.
        """
        record = self.record(identity)
        if record is None:
            return None
        path = self._objects / record.object_name
        if not self._lease(path):
            return None
        try:
            intact = (
                content_digest(path) == record.content_digest
                if record.content_digest
                else file_sha256(path) == record.sha256
            )
        except OSError:
            intact = False
        if not intact:
            self._console.warn(f"{record.name} in the cache is damaged and will be fetched again.")
            self._discard(path)
            return None
        try:
            os.utime(path)
            self._drop_rest(identity)
        except OSError:
            pass  # a cache that we may only read keeps its order
        return record, path

    def record(self, identity: Identity) -> Record | None:
        """What the index says about an identity, without looking at the file's content."""
        record = _read_record(self._index / f"{self._key(identity)}.json")
        return record if record is not None and (self._objects / record.object_name).exists() else None

    @contextmanager
    def lock(self, identity: Identity, name: str) -> Iterator[None]:
        """Be the only one, of all bakes, that fetches this file. Waits while another does."""
        told = False
        while True:
            with ExitStack() as stack:
                with self._writing():
                    path = self._folder("locks") / self._key(identity)
                    mine = stack.enter_context(_exclusive(path, os.O_RDWR | os.O_CREAT)) is not None
                if mine:
                    yield
                    return
            if not told:
                told = True
                self._console.note(f"waiting for another bake that downloads {name}")
            time.sleep(_POLL)

    def partial(self, identity: Identity) -> Path:
        """Where a download of this file is kept while it is not complete and verified."""
        with self._writing():
            return self._folder("partial") / self._key(identity)

    def drop_partial(self, identity: Identity) -> None:
        """Forget a download: its bytes are of no use."""
        partial = self.partial(identity)
        partial.unlink(missing_ok=True)
        origin_path(partial).unlink(missing_ok=True)

    def publish(self, identity: Identity, record: Record, file: Path) -> Path:
        """Move a VERIFIED file into the cache; returns where it is now, leased until `close`.

        `file` is on the cache's filesystem (made beside `partial`). Older objects go when the limit is passed.
        """
        with self._writing():
            file.chmod(0o444)  # others clone it, nobody writes to it
            path = self._folder("objects") / record.object_name
            fd = os.open(file, os.O_RDONLY)
            fcntl.flock(fd, fcntl.LOCK_SH)  # before it has its name: a lock belongs to the inode, so no prune can win
            os.replace(file, path)
            self._keep(path, fd)
            _write_atomically(self._folder("index") / f"{self._key(identity)}.json", _dump_record(record))
        self.prune()
        return path

    def remember(self, url: str, data: bytes) -> None:
        """Keep a small file, for times without a network or for speed. A cache that cannot be written is no error."""
        try:
            _write_atomically(self._folder("seen") / self._key((url,)), data)
        except OSError:
            pass

    def recall(self, url: str) -> bytes | None:
        """What `remember` kept last, or None."""
        try:
            return (self._base / "seen" / self._key((url,))).read_bytes()
        except OSError:
            return None

    def items(self) -> list[Item]:
        """All objects, the one used last first."""
        names: dict[str, set[str]] = {}
        for entry in self._index.glob("*.json"):
            record = _read_record(entry)
            if record is not None:
                names.setdefault(record.object_name, set()).add(record.name)
        items = []
        for path in self._objects.glob("*"):
            try:
                stat = path.stat()
            except FileNotFoundError:
                continue  # pruned by another process just now
            label = ", ".join(sorted(names.get(path.name, {path.name})))
            items.append(Item(label, stat.st_blocks * 512, stat.st_mtime, path))
        return sorted(items, key=lambda item: item.used, reverse=True)

    def prune(self, limit: int | None = None) -> list[Item]:
        """Drop the objects used least recently until `limit` bytes (default: the cache's own) are kept; 0 drops all.

        What a bake uses right now stays. Broken downloads go after a week, or at once with 0. Returns what went.
        """
        keep = self._limit if limit is None else limit
        items = self.items()
        total = sum(item.size for item in items)
        dropped = []
        with self._writing():
            for item in reversed(items):
                if total <= keep and keep > 0:
                    break
                if self._drop(item.path):
                    total -= item.size
                    dropped.append(item)
            self._drop_leftovers(0 if keep == 0 else _ABANDONED)
        return dropped

    def close(self) -> None:
        """Give up the leases: from now on others may prune what was in use."""
        with self._guard:
            for fd in self._leases.values():
                os.close(fd)
            self._leases.clear()

    @property
    def _objects(self) -> Path:
        return self._base / "objects"

    @property
    def _index(self) -> Path:
        return self._base / "index"

    def _folder(self, name: str) -> Path:
        folder = self._base / name
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        return folder

    def _key(self, identity: Identity) -> str:
        return hashlib.sha256(json.dumps([CACHE_VERSION, *identity]).encode()).hexdigest()

    @contextmanager
    def _writing(self) -> Iterator[None]:
        with disk_faults(self.root):
            yield

    def _lease(self, path: Path) -> bool:
        """Hold an object until `close`; False when it is gone."""
        with self._guard:
            if path in self._leases and _is_still(path, self._leases[path]):
                return True
        try:
            fd = os.open(path, os.O_RDONLY)
        except OSError:
            return False
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            os.close(fd)  # being pruned
            return False
        self._keep(path, fd)
        return _is_still(path, fd)

    def _keep(self, path: Path, fd: int) -> None:
        with self._guard:
            old = self._leases.pop(path, None)
            self._leases[path] = fd
        if old is not None:
            os.close(old)

    def _drop_rest(self, identity: Identity) -> None:
        """Remove what a bake left beside a file that it had published when it was killed."""
        key = self._key(identity)
        rest = list((self._base / "partial").glob(f"{key}*"))
        if not rest:
            return
        with _exclusive(self._folder("locks") / key, os.O_RDWR | os.O_CREAT) as fd:
            if fd is not None:  # else somebody downloads it right now
                for path in rest:
                    path.unlink(missing_ok=True)

    def _discard(self, path: Path) -> None:
        """Remove a damaged object; whoever has it open keeps what he has."""
        with self._guard:
            fd = self._leases.pop(path, None)
        if fd is not None:
            os.close(fd)
        with self._writing():
            path.unlink(missing_ok=True)

    def _drop(self, path: Path) -> bool:
        """Remove an object unless somebody uses it."""
        with _exclusive(path, os.O_RDONLY) as fd:
            if fd is None:
                return False
            path.unlink()
        return True

    def _drop_leftovers(self, age: float) -> None:
        """Remove downloads that nobody works on and that are older than `age` seconds, and what points to nothing."""
        folders = [self._base / name for name in ("locks", "partial")]
        for key in {path.name[:_KEY_LENGTH] for folder in folders if folder.exists() for path in folder.iterdir()}:
            lock = self._folder("locks") / key
            with _exclusive(lock, os.O_RDWR | os.O_CREAT) as fd:
                if fd is None:
                    continue
                partials = list((self._base / "partial").glob(f"{key}*"))
                if all(path.stat().st_mtime <= time.time() - age for path in partials):
                    for path in partials:
                        path.unlink(missing_ok=True)
                lock.unlink()  # whoever opened it meanwhile sees that it is gone, and makes a new one
        for entry in self._index.glob("*.json"):
            record = _read_record(entry)
            if record is None or not (self._objects / record.object_name).exists():
                entry.unlink(missing_ok=True)
        if age == 0:
            for path in (self._base / "seen").glob("*"):
                path.unlink(missing_ok=True)


@contextmanager
def disk_faults(folder: Path) -> Iterator[None]:
    """Turn the system's errors about a folder into EnvironmentFault with a hint."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            message = f"There is no space left for the cache in {folder}."
            hint = "Free some with `flatcar-bake cache prune`, or use another place: --cache-dir FOLDER."
        else:
            message = f"The cache folder {folder} cannot be used: {error.strerror or error}."
            hint = "Use a folder that you can write to: --cache-dir FOLDER, or set XDG_CACHE_HOME."
        raise EnvironmentFault(message, hint) from error


@contextmanager
def _exclusive(path: Path, flags: int) -> Iterator[int | None]:
    """Open and flock a file if nobody else holds it; None when somebody does, or when it is gone."""
    try:
        fd = os.open(path, flags, 0o600)
    except FileNotFoundError:
        yield None
        return
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            held = _is_still(path, fd)
        except BlockingIOError:
            held = False
        yield fd if held else None
    finally:
        os.close(fd)


def _is_still(path: Path, fd: int) -> bool:
    """Whether a path still names the file that was opened: it may have been replaced or removed before the lock."""
    try:
        return os.path.samestat(path.stat(), os.fstat(fd))
    except FileNotFoundError:
        return False


def _write_atomically(path: Path, data: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _dump_record(record: Record) -> bytes:
    return json.dumps(asdict(record), indent=1).encode()


def _read_record(path: Path) -> Record | None:
    """An index entry; None when there is none, or it cannot be read: then the file is fetched again."""
    try:
        fields = json.loads(path.read_bytes())
        signer = fields.pop("signer")
        return Record(**fields, signer=Signer(**signer) if signer else None)
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None
