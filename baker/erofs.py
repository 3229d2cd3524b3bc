"""Reads the tree of an EROFS image without mounting it: names, types, modes, owners, and uncompressed content.

The distributions' erofs-utils differ in which compressors they know and only list one folder per call, while the
metadata of EROFS is never compressed and simple. The layout is the kernel's: fs/erofs/erofs_fs.h and
Documentation/filesystems/erofs.rst. The image is not trusted: every read is checked against its end.
"""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Iterator
from dataclasses import dataclass

SUPERBLOCK_OFFSET = 1024
MAGIC = 0xE0F5E1E2

# Feature bits whose inodes and folders are laid out as here: padding, compression configs, chunked files, device
# table, inline tails, fragments, xattr prefixes. Later bits (48-bit addresses, metabox) move the metadata.
_KNOWN_FEATURES = 0x7F

_PLAIN, _COMPRESSED_FULL, _INLINE, _COMPRESSED_COMPACT, _CHUNKS = range(5)
_XATTR_HEADER = 12
_DIRENT = struct.Struct("<QHBB")
_COMPACT_INODE = struct.Struct("<HHHHIIIIHHI")
_EXTENDED_INODE = struct.Struct("<HHHHQIIII")
_EXTENDED_SIZE = 64
_HOLE = 0xFFFFFFFF


class Damaged(Exception):
    """The image cannot be right. The text is a predicate, to put behind the image's name: "is cut short"."""


class Unsupported(Exception):
    """The image is sound as far as we can tell, yet uses something that we cannot read; the text says what."""


@dataclass(frozen=True)
class Inode:
    """One inode: `mode` with its file type bits, `size` in bytes, and where its data is."""

    nid: int
    mode: int
    uid: int
    gid: int
    size: int
    layout: int
    block: int
    """The number of its first block, or the chunk format, as the layout says."""
    tail: int
    """Where the data within the metadata begins: behind the inode and its extended attributes."""

    @property
    def is_directory(self) -> bool:
        return stat.S_ISDIR(self.mode)

    @property
    def is_compressed(self) -> bool:
        return self.layout in (_COMPRESSED_FULL, _COMPRESSED_COMPACT)


class ErofsReader:
    """An EROFS filesystem within `fd`, from `offset` for `size` bytes.

    Raises Damaged when it is damaged and Unsupported when it is of a kind we cannot read.
    """

    def __init__(self, fd: int, offset: int, size: int) -> None:
        self._fd, self._offset, self._size = fd, offset, size
        raw = self._read(SUPERBLOCK_OFFSET, 128)
        magic, _, _, block_bits, _, root = struct.unpack_from("<IIIBBH", raw)
        blocks, meta_block = struct.unpack_from("<II", raw, 36)
        features = struct.unpack_from("<I", raw, 80)[0]
        if magic != MAGIC:
            raise Damaged("has no EROFS superblock")
        if features & ~_KNOWN_FEATURES:
            raise Unsupported(f"it uses EROFS features we do not know (0x{features & ~_KNOWN_FEATURES:x})")
        if not 9 <= block_bits <= 16:
            raise Damaged("has a damaged EROFS superblock: the block size makes no sense")
        self._block: int = 1 << block_bits
        self._metadata: int = meta_block * self._block
        if blocks * self._block > size:
            raise Damaged(f"is cut short: {size} of {blocks * self._block} bytes are there")
        self.root = self.inode(root)
        if not self.root.is_directory:
            raise Damaged("has a damaged EROFS superblock: the root is not a directory")

    def inode(self, nid: int) -> Inode:
        """Read one inode by its number."""
        at = self._metadata + nid * 32
        form, xattrs, mode = struct.unpack_from("<HHH", self._read(at, 32))
        layout = form >> 1 & 0x7
        if form & 1:
            *_, size, block, _ino, uid, gid = _EXTENDED_INODE.unpack_from(self._read(at, _EXTENDED_SIZE))
            length = _EXTENDED_SIZE
        else:
            _, _, _, _, size, _, block, _ino, uid, gid, _ = _COMPACT_INODE.unpack(self._read(at, 32))
            length = 32
        if layout > _CHUNKS:
            raise Unsupported(f"it has an inode of the unknown layout {layout}")
        tail = at + length + (_XATTR_HEADER + 4 * (xattrs - 1) if xattrs else 0)
        return Inode(nid, mode, uid, gid, size, layout, block, tail)

    def entries(self, directory: Inode) -> Iterator[tuple[bytes, int]]:
        """Yield (name, inode number) of a directory, without `.` and `..`."""
        for start in range(0, directory.size, self._block):
            block = self.read(directory, start, min(self._block, directory.size - start))
            yield from _block_entries(block)

    def read(self, inode: Inode, start: int, length: int) -> bytes:
        """Bytes of a file, directory or symlink; fewer at its end. Unsupported when they are compressed."""
        end = min(start + length, inode.size)
        parts = []
        while start < end:
            step = min(end, (start // self._block + 1) * self._block) - start
            at = self._locate(inode, start)
            parts.append(bytes(step) if at is None else self._read(at, step))
            start += step
        return b"".join(parts)

    def _locate(self, inode: Inode, start: int) -> int | None:
        """Where a byte of a file is within the filesystem; None for a hole."""
        number, within = divmod(start, self._block)
        if inode.layout == _INLINE and number == (inode.size - 1) // self._block:
            return inode.tail + within
        if inode.layout in (_PLAIN, _INLINE):
            return (inode.block + number) * self._block + within
        if inode.layout == _CHUNKS:
            return self._locate_chunk(inode, start)
        raise Unsupported("the file is compressed")

    def _locate_chunk(self, inode: Inode, start: int) -> int | None:
        chunk = self._block << (inode.block & 0x1F)
        number, within = divmod(start, chunk)
        # An index has 8 bytes: the last 4 are the block, 2 before them a device. Else there are 4 bytes of block.
        width = 8 if inode.block & 0x20 else 4
        table = -(-inode.tail // width) * width
        entry = self._read(table + width * number, width)
        if width == 8 and entry[2:4] != b"\0\0":
            raise Unsupported("the file's data is on another device")
        block = int.from_bytes(entry[-4:], "little")
        return None if block == _HOLE else block * self._block + within

    def _read(self, at: int, length: int) -> bytes:
        if at < 0 or at + length > self._size:
            raise Damaged("is damaged: its EROFS metadata points beyond its end")
        data = os.pread(self._fd, length, self._offset + at)
        if len(data) != length:
            raise Damaged("is cut short")
        return data


def _block_entries(block: bytes) -> Iterator[tuple[bytes, int]]:
    """The entries of one directory block: fixed records first, then their names up to the end of the block."""
    if len(block) < _DIRENT.size:
        raise Damaged("is damaged: an EROFS directory is too short")
    first_name = _DIRENT.unpack_from(block)[1]
    count = first_name // _DIRENT.size
    if not count or first_name % _DIRENT.size or first_name > len(block):
        raise Damaged("is damaged: an EROFS directory makes no sense")
    records = [_DIRENT.unpack_from(block, index * _DIRENT.size) for index in range(count)]
    ends = [record[1] for record in records[1:]] + [len(block)]
    for (nid, begin, _, _), end in zip(records, ends, strict=True):
        if not first_name <= begin <= end <= len(block):
            raise Damaged("is damaged: a name of an EROFS directory is out of place")
        name = block[begin:end].split(b"\0", 1)[0]
        if name not in (b".", b".."):
            yield name, nid
