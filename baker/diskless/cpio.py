"""The cpio archives that become the kernel's initramfs: format `newc`, packed by gzip, several of them in a row.

Formats: Documentation/driver-api/early-userspace/buffer-format.rst of Linux, RFC 1951, RFC 1952.
"""

from __future__ import annotations

import gzip
import hashlib
import stat
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from baker import stopping
from baker.errors import ImageError
from baker.model import Injection
from baker.sparse import file_sha256

_MAGIC = b"070701"
_HEADER = 110
_TRAILER = "TRAILER!!!"
_MOST = 0xFFFFFFFF  # bytes of one file: the header has 32 bits for it
_PATH_MAX = 4096
_STORED = 0xFFFF  # bytes of one stored block of deflate
_CHUNK = 1 << 20


class StoredGzip:
    """Writes a gzip member that holds its content as it is: what goes in is compressed already.

    It is a member all the same, so that gunzip reads a file whose other members are compressed. Equal content gives
    equal bytes, whatever zlib is there.
    """

    def __init__(self, target: IO[bytes]) -> None:
        self._target = target
        self._size = self._crc = 0
        self._waiting = bytearray()
        target.write(b"\x1f\x8b\x08\0" + bytes(4) + b"\0\xff")

    def write(self, data: bytes) -> None:
        self._size, self._crc = self._size + len(data), zlib.crc32(data, self._crc)
        self._waiting += data
        whole = len(self._waiting) // _STORED * _STORED
        for start in range(0, whole, _STORED):
            self._block(self._waiting[start : start + _STORED], last=False)
        del self._waiting[:whole]

    def close(self) -> None:
        """Finish the member; the file stays open."""
        self._block(self._waiting, last=True)
        self._target.write(struct.pack("<II", self._crc, self._size & 0xFFFFFFFF))

    def _block(self, data: bytearray, last: bool) -> None:
        self._target.write(struct.pack("<BHH", last, len(data), len(data) ^ 0xFFFF))
        self._target.write(data)


def pack(target: IO[bytes], files: Iterable[Injection], epoch: int) -> None:
    """Append a gzip'ed cpio with `files` to `target`; folders on the way to them are made, all belongs to root.

    ImageError for a file that is too large for the format.
    """
    member = StoredGzip(target)
    number = 0

    def entry(path: str, mode: int, size: int) -> None:
        nonlocal number
        number += 1
        name = path.encode() + b"\0"
        links = 2 if stat.S_ISDIR(mode) else 1
        fields = (number, mode, 0, 0, links, epoch, size, 0, 0, 0, 0, len(name), 0)
        head = _MAGIC + b"".join(b"%08X" % field for field in fields) + name
        member.write(head + bytes(-len(head) % 4))

    made: set[str] = set()
    for item in sorted(files, key=lambda item: item.path):
        path = item.path.lstrip("/")
        for parent in reversed(PurePosixPath(path).parents[:-1]):
            if str(parent) not in made:
                made.add(str(parent))
                entry(str(parent), stat.S_IFDIR | 0o755, 0)
        if item.size > _MOST:
            raise ImageError(f"{path} has {item.size} bytes, and a file in a cpio at most {_MOST}.")
        if item.symlink is not None:
            text = item.symlink.encode()
            entry(path, stat.S_IFLNK | 0o777, len(text))
            member.write(text)
            size = len(text)
        else:
            entry(path, stat.S_IFREG | item.mode, size := item.size)
            _write_content(item, size, member.write)
        member.write(bytes(-size % 4))
    number = -1  # the trailer has the inode 0
    entry(_TRAILER, 0, 0)
    member.close()


def _write_content(item: Injection, size: int, write: Callable[[bytes], None]) -> None:
    if item.source is None:
        write(item.content or b"")
        return
    with item.source.open("rb") as file:
        copied = _copy(file, size, write)
    if copied != size:
        raise ImageError(f"{item.source.name} became shorter while it was read.")


def _copy(file: IO[bytes], size: int, write: Callable[[bytes], object]) -> int:
    left = size
    while left and (data := file.read(min(left, _CHUNK))):
        stopping.check()
        write(data)
        left -= len(data)
    return size - left


@dataclass(frozen=True)
class Member:
    """A file in an archive: `head` are its header and name as they are there, padded."""

    name: str
    size: int
    head: bytes
    stream: IO[bytes]

    def copy(self, write: Callable[[bytes], object]) -> None:
        """Pass on the content; ImageError when it is cut short."""
        if _copy(self.stream, self.size, write) != self.size:
            raise ImageError(f"{self.name} is cut short.")


def extract(source: Path, name: str, target: Path) -> None:
    """Write the file `name` of a gzip'ed cpio to `target`; ImageError when there is none, or for a damaged archive."""
    with _opened(source) as stream, target.open("wb") as file:
        for member in _members(stream, lambda data: None):
            if member.name == name:
                member.copy(file.write)
                return
    raise ImageError(f"{source.name} has no {name}.")


def check(source: Path, files: Iterable[Injection]) -> None:
    """Read back an archive that `pack` wrote; ImageError unless every file is in it with its content."""
    wanted = {item.path.lstrip("/"): item for item in files}
    with _opened(source) as stream:
        for member in _members(stream, lambda data: None):
            digest = hashlib.sha256()
            member.copy(digest.update)
            item = wanted.pop(member.name, None)
            if item is not None and digest.hexdigest() != _sha256(item):
                raise ImageError(f"{member.name} in {source.name} does not have the content that was written.")
    if wanted:
        raise ImageError(f"{min(wanted)} is missing in {source.name}.")


def _sha256(item: Injection) -> str:
    if item.source is not None:
        return file_sha256(item.source)
    return hashlib.sha256(item.symlink.encode() if item.symlink is not None else item.content or b"").hexdigest()


def replace(source: Path, name: str, content: Path, target: IO[bytes]) -> None:
    """Append to `target` all of a gzip'ed cpio, with other content for the file `name`; as `extract`."""
    size, found = content.stat().st_size, False
    if size > _MOST:
        raise ImageError(f"{name} would have {size} bytes, and a file in a cpio at most {_MOST}.")
    result = StoredGzip(target)
    with _opened(source) as stream:
        for member in _members(stream, result.write):
            if member.name != name or found:
                result.write(member.head)
                member.copy(result.write)
                result.write(bytes(-member.size % 4))
                continue
            found = True
            result.write(member.head[:54] + b"%08X" % size + member.head[62:])
            member.copy(lambda data: None)
            with content.open("rb") as file:
                _copy(file, size, result.write)
            result.write(bytes(-size % 4))
    if not found:
        raise ImageError(f"{source.name} has no {name}.")
    result.close()


class _opened:
    """The content of a gzip'ed file; a damaged one is an ImageError."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> IO[bytes]:
        self._file: IO[bytes] = gzip.open(self._path, "rb")  # type: ignore[assignment]
        return self._file

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._file.close()
        if isinstance(error, (EOFError, zlib.error, gzip.BadGzipFile, ValueError)):
            raise ImageError(f"{self._path.name} is damaged: {error}.") from error


def _members(stream: IO[bytes], between: Callable[[bytes], None]) -> Iterator[Member]:
    """The files of all archives in a row; each must be copied before the next one is asked for.

    The zeros between archives go to `between`, which makes a copy complete.
    """
    while True:
        start = stream.read(4)
        if not start.strip(b"\0"):
            if len(start) < 4:
                between(start)
                return
            between(start)  # archives begin at multiples of four
            continue
        head = start + stream.read(_HEADER - 4)
        if len(head) < _HEADER or not head.startswith(_MAGIC):
            raise ValueError("it is no cpio in the format newc")
        size, name_size = int(head[54:62], 16), int(head[94:102], 16)
        if not 0 < name_size <= _PATH_MAX:
            raise ValueError("a file's name has no sensible length")
        head += stream.read(name_size + -(_HEADER + name_size) % 4)
        name = head[_HEADER : _HEADER + name_size].rstrip(b"\0").decode("utf-8", "surrogateescape")
        yield Member(name, size, head, stream)
        stream.read(-size % 4)
