"""Adding files to a squashfs in place: everything that is there keeps its bytes.

mksquashfs appends to the root folder only, and an unpacked tree packed anew loses owners without root. So this adds
folders' new entries itself: data and tables of the image are kept as they are, new data goes behind the old, and at
the end of the inode and directory tables follow the new files and new versions of the folders on the way to them.
What is added is stored uncompressed: sysexts are compressed already.
"""

from __future__ import annotations

import lzma
import stat
import struct
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO

from baker.diskless.squashfs_format import (
    MAGIC,
    MAX_TABLE,
    METADATA,
    SUPER,
    Entry,
    Super,
    Table,
    copy,
    metadata,
    pack_listing,
    parse,
    seek,
    starts,
    unpacker,
)
from baker.errors import ImageError
from baker.model import Injection

_PLAIN_DATA = 1 << 24  # in the size of a file's block: it is stored as it is
_NONE = 0xFFFFFFFF
_NO_TABLE = 0xFFFFFFFFFFFFFFFF
_HEAD = struct.Struct("<HHHHII")  # of every inode: type, mode, uid, gid, time, number
_DIR, _FILE, _LINK, _BIG_DIR, _BIG_FILE = 1, 2, 3, 8, 9
_DIR_BODY, _BIG_DIR_BODY = struct.Struct("<IIHHI"), struct.Struct("<IIIIHHI")
_FILE_BODY, _LINK_BODY = struct.Struct("<QQQIIII"), struct.Struct("<II")


def add_files(source: Path, target: Path, files: Sequence[Injection], epoch: int) -> None:
    """Write to `target` the squashfs `source` with `files` added; missing folders are made, root:root 0755.

    New files get the time `epoch`. ImageError for a damaged image, one with an unknown compressor, and for an entry
    that is there already and may not be replaced.
    """
    with source.open("rb") as old, target.open("wb") as new:
        try:
            _Writer(old, new, epoch).add(files)
        except (struct.error, zlib.error, lzma.LZMAError, EOFError, IndexError, ValueError) as error:
            raise ImageError(f"{source.name} is a damaged squashfs: {error}.") from error


@dataclass
class _Folder:
    """A folder that gets a new version."""

    number: int
    parent: int
    mode: int = 0o755
    uid: int = 0
    gid: int = 0
    time: int = 0
    links: int = 2
    xattr: int = _NONE
    entries: dict[bytes, Entry] = field(default_factory=dict)
    folders: dict[bytes, _Folder] = field(default_factory=dict)


class _Writer:
    """Adds files to one image."""

    def __init__(self, old: IO[bytes], new: IO[bytes], epoch: int) -> None:
        self._old, self._new, self._time = old, new, epoch
        self._super = head = Super(*SUPER.unpack(old.read(SUPER.size)))
        if head.magic != MAGIC or head.major != 4 or head.block_size != 1 << head.block_log:
            raise ValueError("its superblock is not of squashfs 4")
        unpack = unpacker(head.compression)
        self._exports = head.export_table != _NO_TABLE
        self._pointers = {
            "fragment": self._index(head.fragment_table, head.fragments * 16) if head.fragments else (),
            "export": self._index(head.export_table, head.inodes * 8) if self._exports else (),
            "id": self._index(head.id_table, head.ids * 4),
        }
        behind = min(pointers[0] for pointers in self._pointers.values() if pointers)
        self._inodes = Table(old, head.inode_table, head.directory_table, unpack)
        self._folders = Table(old, head.directory_table, behind, unpack)
        ids = Table(old, self._pointers["id"][0], head.id_table, unpack).everything()
        self._root_id = struct.unpack(f"<{head.ids}I", ids).index(0)
        self._export: list[int] = []
        if self._exports:
            table = Table(old, self._pointers["export"][0], head.export_table, unpack).everything()
            self._export = list(struct.unpack(f"<{head.inodes}Q", table))
        self._data_end = head.inode_table

    def _index(self, start: int, size: int) -> tuple[int, ...]:
        """The positions of a table's metadata blocks, kept in an array at `start`."""
        count = -(-size // METADATA)
        if not 0 < size <= MAX_TABLE:
            raise ValueError("a table has no sensible size")
        seek(self._old, start)
        return struct.unpack(f"<{count}Q", self._old.read(8 * count))

    def add(self, files: Iterable[Injection]) -> None:
        """Copy the image and add the files."""
        self._old.seek(0)
        copy(self._old, self._new, self._super.inode_table)
        root = self._read_folder(self._super.root >> 16, self._super.root & 0xFFFF)
        for item in sorted(files, key=lambda item: item.path):
            self._add(root, item)
        entry = self._write_folder(b"", root)
        self._finish(entry.block << 16 | entry.offset)

    def _add(self, root: _Folder, item: Injection) -> None:
        *parents, name = (part.encode() for part in item.path.strip("/").split("/"))
        folder = root
        for part in parents:
            folder = self._enter(folder, part, item.path)
        there = folder.entries.get(name)
        if there is not None and (not item.replace or there.type == _DIR):
            raise ImageError(f"{item.path} is in /usr already.", "Give the sysext another name.")
        folder.entries[name] = self._write_file(name, item)

    def _enter(self, folder: _Folder, name: bytes, path: str) -> _Folder:
        """A folder below another one, to be changed."""
        if name not in folder.folders:
            there = folder.entries.get(name)
            if there is None:
                made = _Folder(self._new_number(), folder.number, uid=self._root_id, gid=self._root_id)
                folder.folders[name] = replace(made, time=self._time)
                folder.links += 1
            elif there.type != _DIR:
                raise ImageError(f"{path} cannot be put into /usr: a folder on the way to it is none.")
            else:
                folder.folders[name] = self._read_folder(there.block, there.offset)
        return folder.folders[name]

    def _new_number(self) -> int:
        self._super.inodes += 1
        self._export.append(0)
        return self._super.inodes

    def _read_folder(self, block: int, offset: int) -> _Folder:
        kind, mode, uid, gid, time, number = _HEAD.unpack(self._inodes.read(block, offset, _HEAD.size))
        xattr = _NONE
        size = _HEAD.size
        if kind == _DIR:
            body = self._inodes.read(block, offset, size + _DIR_BODY.size)[size:]
            start, links, length, where, parent = _DIR_BODY.unpack(body)
        elif kind == _BIG_DIR:
            body = self._inodes.read(block, offset, size + _BIG_DIR_BODY.size)[size:]
            links, length, start, parent, _, where, xattr = _BIG_DIR_BODY.unpack(body)
        else:
            raise ValueError("a folder's inode is of another type")
        folder = _Folder(number, parent, mode, uid, gid, time, links, xattr)
        # The length counts `.` and `..` with three bytes that are not there.
        listing = self._folders.read(start, where, length - 3) if length > 3 else b""
        folder.entries = {entry.name: entry for entry in parse(listing)}
        return folder

    def _write_file(self, name: bytes, item: Injection) -> Entry:
        number = self._new_number()
        if item.symlink is not None:
            text = item.symlink.encode()
            head = _HEAD.pack(_LINK, 0o777, self._root_id, self._root_id, self._time, number)
            return self._place(name, number, _LINK, head + _LINK_BODY.pack(1, len(text)) + text)
        start, sizes, length = self._write_data(item)
        head = _HEAD.pack(_BIG_FILE, stat.S_IMODE(item.mode), self._root_id, self._root_id, self._time, number)
        body = _FILE_BODY.pack(start, length, 0, 1, _NONE, 0, _NONE)
        return self._place(name, number, _FILE, head + body + struct.pack(f"<{len(sizes)}I", *sizes))

    def _write_data(self, item: Injection) -> tuple[int, list[int], int]:
        """Append a file's content in blocks; returns where it begins, the blocks' sizes, and its length."""
        start, sizes, length = self._data_end, [], 0

        def take(block: bytes) -> None:
            nonlocal length
            self._new.write(block)
            sizes.append(len(block) | _PLAIN_DATA)
            length += len(block)

        if item.source is not None:
            with item.source.open("rb") as file:
                while block := file.read(self._super.block_size):
                    take(block)
        elif item.content:
            for position in range(0, len(item.content), self._super.block_size):
                take(item.content[position : position + self._super.block_size])
        self._data_end += length
        return start, sizes, length

    def _write_folder(self, name: bytes, folder: _Folder) -> Entry:
        for inner, child in folder.folders.items():
            folder.entries[inner] = self._write_folder(inner, child)
        listing = pack_listing(folder.entries.values())
        start, offset = self._folders.add(listing)
        length = len(listing) + 3
        small = length <= 0xFFFF and folder.xattr == _NONE
        head = _HEAD.pack(_DIR if small else _BIG_DIR, folder.mode, folder.uid, folder.gid, folder.time, folder.number)
        body = (
            _DIR_BODY.pack(start, folder.links, length, offset, folder.parent)
            if small
            else _BIG_DIR_BODY.pack(folder.links, length, start, folder.parent, 0, offset, folder.xattr)
        )
        return self._place(name, folder.number, _DIR, head + body)

    def _place(self, name: bytes, number: int, kind: int, inode: bytes) -> Entry:
        block, offset = self._inodes.add(inode)
        if self._exports:
            self._export[number - 1] = block << 16 | offset
        return Entry(name, block, offset, number, kind)

    def _finish(self, root: int) -> None:
        """Write the tables in the order that the kernel checks them in, then the superblock."""
        head, old = self._super, replace(self._super)
        head.root, head.inode_table = root, self._data_end
        inodes, folders = self._inodes.packed(), self._folders.packed()
        head.directory_table = head.inode_table + len(inodes)
        self._new.write(inodes + folders)
        if old.fragments:
            head.fragment_table = self._move("fragment", old.fragment_table)
        if self._exports:
            start = self._new.tell()
            blocks = metadata(struct.pack(f"<{len(self._export)}Q", *self._export))
            self._new.write(blocks)
            head.export_table = self._new.tell()
            self._new.write(starts(start, blocks))
        head.id_table = self._move("id", old.id_table)
        if old.xattr_table != _NO_TABLE:
            head.xattr_table = self._move_xattrs(old.xattr_table)
        if not old.fragments:
            head.fragment_table = self._new.tell() if old.fragment_table != _NO_TABLE else _NO_TABLE
        head.used = self._new.tell()
        self._new.write(bytes(-head.used % 4096))  # as mksquashfs does, for loop devices
        self._new.seek(0)
        self._new.write(head.pack())

    def _move(self, name: str, start: int) -> int:
        """Copy a table and its array of positions; returns where the array is now."""
        pointers = self._pointers[name]
        shift = self._new.tell() - pointers[0]
        seek(self._old, pointers[0])
        copy(self._old, self._new, start - pointers[0])
        here = self._new.tell()
        self._new.write(struct.pack(f"<{len(pointers)}Q", *(pointer + shift for pointer in pointers)))
        return here

    def _move_xattrs(self, start: int) -> int:
        """The same for extended attributes: keys and values, then a table that leads to them."""
        seek(self._old, start)
        first, count, unused = struct.unpack("<QII", self._old.read(16))
        pointers = self._index(start + 16, count * 16)
        shift = self._new.tell() - first
        seek(self._old, first)
        copy(self._old, self._new, start - first)
        here = self._new.tell()
        moved = (pointer + shift for pointer in pointers)
        self._new.write(struct.pack(f"<QII{len(pointers)}Q", first + shift, count, unused, *moved))
        return here
