"""The parts of a squashfs: superblock, tables of metadata blocks, listings of folders.

Format: Documentation/filesystems/squashfs.rst and fs/squashfs/squashfs_fs.h of Linux.
"""

from __future__ import annotations

import lzma
import os
import struct
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import IO

from baker.errors import ImageError
from baker.run import run

MAGIC = b"hsqs"
SUPER = struct.Struct("<4sIIIIHHHHHHQQQQQQQQ")
METADATA = 8192  # bytes of a metadata block before compression
_PLAIN = 0x8000  # in a metadata block's header: it is stored as it is
MAX_TABLE = 256 << 20  # no honest image has tables near this
_RUN, _ENTRY = struct.Struct("<III"), struct.Struct("<HhHH")
_RUN_ENTRIES = 256
_CHUNK = 1 << 20


@dataclass
class Super:
    """The superblock's fields, in their order."""

    magic: bytes
    inodes: int
    time: int
    block_size: int
    fragments: int
    compression: int
    block_log: int
    flags: int
    ids: int
    major: int
    minor: int
    root: int
    used: int
    id_table: int
    xattr_table: int
    inode_table: int
    directory_table: int
    fragment_table: int
    export_table: int

    def pack(self) -> bytes:
        return SUPER.pack(*self.__dict__.values())


@dataclass
class Entry:
    """One name in a folder: where its inode is (block in the inode table, offset in it), its number and basic type."""

    name: bytes
    block: int
    offset: int
    number: int
    type: int


class Table:
    """A table of metadata blocks at `start`, to read from and to add to; ends at `end`."""

    def __init__(self, file: IO[bytes], start: int, end: int, unpack: Callable[[bytes], bytes]) -> None:
        if not 0 < end - start <= MAX_TABLE:
            raise ValueError("a table has no sensible size")
        seek(file, start)
        self.raw = file.read(end - start)
        self._unpack = unpack
        self._known: dict[int, tuple[bytes, int]] = {}
        self._added = bytearray()
        position = self._last = 0
        while position < len(self.raw):
            self._last, position = position, position + 2 + self._stored(position)
        if position != len(self.raw):
            raise ValueError("a table does not end where the next one begins")
        # A block that is not full has to be filled up: readers take all but the last one to be full.
        content, _ = self._block(self._last)
        self._keep = content if len(content) < METADATA else b""
        self._base = self._last if self._keep else len(self.raw)

    def _stored(self, position: int) -> int:
        size = int.from_bytes(self.raw[position : position + 2], "little") & ~_PLAIN
        return size or _PLAIN

    def _block(self, position: int) -> tuple[bytes, int]:
        """A block's content and where the next one begins."""
        if position not in self._known:
            size = self._stored(position)
            data = self.raw[position + 2 : position + 2 + size]
            plain = self.raw[position + 1] & (_PLAIN >> 8)
            content = data if plain else self._unpack(data)
            if len(data) != size or len(content) > METADATA:
                raise ValueError("a metadata block is cut short or too long")
            self._known[position] = content, position + 2 + size
        return self._known[position]

    def read(self, block: int, offset: int, size: int) -> bytes:
        """`size` bytes from `offset` in the block that begins at `block`."""
        found = bytearray()
        while len(found) < size:
            content, following = self._block(block)
            found += content[offset : offset + size - len(found)]
            if not content[offset:]:
                raise ValueError("a reference leads out of a table")
            block, offset = following, 0
        return bytes(found)

    def everything(self) -> bytes:
        """All content, decompressed."""
        content, position = bytearray(), 0
        while position < len(self.raw):
            data, position = self._block(position)
            content += data
        return bytes(content)

    def add(self, data: bytes) -> tuple[int, int]:
        """Add data at the end; returns its (block, offset)."""
        position = len(self._keep) + len(self._added)
        self._added += data
        number, offset = divmod(position, METADATA)
        return self._base + number * (2 + METADATA), offset

    def packed(self) -> bytes:
        """The table as it is to be written."""
        return self.raw[: self._base] + metadata(self._keep + bytes(self._added))


def metadata(content: bytes) -> bytes:
    """Content as metadata blocks that are stored as they are."""
    chunks = (content[start : start + METADATA] for start in range(0, len(content), METADATA))
    return b"".join(struct.pack("<H", len(chunk) | _PLAIN) + chunk for chunk in chunks)


def unpacker(compression: int) -> Callable[[bytes], bytes]:
    """What decompresses metadata blocks; numbers of squashfs_fs.h."""
    if compression == 1:
        return zlib.decompress
    if compression == 4:
        return lzma.decompress
    if compression == 6:
        return lambda data: run(["zstd", "--decompress", "--stdout", "--quiet"], input=data).stdout
    raise ImageError(f"The squashfs uses the compressor number {compression}, which flatcar-bake cannot read.")


def starts(start: int, blocks: bytes) -> bytes:
    """The positions of plain metadata blocks that begin at `start`."""
    return b"".join(struct.pack("<Q", start + at) for at in range(0, len(blocks), METADATA + 2))


def parse(listing: bytes) -> Iterable[Entry]:
    """The entries of a folder."""
    position = 0
    while position < len(listing):
        count, block, base = _RUN.unpack_from(listing, position)
        position += _RUN.size
        if count >= _RUN_ENTRIES:
            raise ValueError("a folder's listing is wrong")
        for _ in range(count + 1):
            offset, delta, kind, size = _ENTRY.unpack_from(listing, position)
            position += _ENTRY.size
            yield Entry(listing[position : position + size + 1], block, offset, base + delta, kind)
            position += size + 1


def pack_listing(entries: Iterable[Entry]) -> bytes:
    """A folder's listing: sorted by name, in runs whose inodes lie in one block and have numbers near each other."""
    listing = bytearray()
    run_: list[Entry] = []

    def close() -> None:
        if run_:
            listing.extend(_RUN.pack(len(run_) - 1, run_[0].block, run_[0].number))
            for entry in run_:
                delta = entry.number - run_[0].number
                listing.extend(_ENTRY.pack(entry.offset, delta, entry.type, len(entry.name) - 1) + entry.name)
            run_.clear()

    for entry in sorted(entries, key=lambda entry: entry.name):
        near = run_ and entry.block == run_[0].block and abs(entry.number - run_[0].number) < 0x7FFF
        if not near or len(run_) == _RUN_ENTRIES:
            close()
        run_.append(entry)
    close()
    return bytes(listing)


def seek(file: IO[bytes], position: int) -> None:
    """Go to a position; ValueError for one behind the end."""
    if position > os.fstat(file.fileno()).st_size:
        raise ValueError("a reference leads out of the image")
    file.seek(position)


def copy(old: IO[bytes], new: IO[bytes], size: int) -> None:
    """Copy from where two files stand; EOFError when the first ends too early."""
    while size:
        data = old.read(min(size, _CHUNK))
        if not data:
            raise EOFError("it is cut short")
        new.write(data)
        size -= len(data)
