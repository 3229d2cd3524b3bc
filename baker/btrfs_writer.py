"""Writing a whole btrfs into a file: the same content gives the same bytes, on every machine and for every user.

mkfs.btrfs --rootdir cannot promise that: it takes over inode numbers and the order of names from a folder, draws
random ids and reads the clock. This writer takes names in order, numbers inodes from 257 on, has no clock, and derives
every id from the filesystem's UUID. It needs no privileges, because owners are just numbers to it.

What it makes is what Flatcar's OEM partition is: one device, data and metadata in mixed block groups, blocks of
4 KiB, no compression. Logical addresses equal physical ones, and nothing lies where superblock copies go. On-disk
structures: btrfs documentation, "On-disk Format"; what a fresh filesystem must hold was read off `mkfs.btrfs` 6.2.
"""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from uuid import UUID, uuid5

from baker import btrfs_items as bt
from baker.btrfs_items import BLOCK, Items, Key
from baker.crc32c import crc32c_blocks

_MIB = 1 << 20
_SUPERBLOCKS = (64 << 10, 64 << 20, 256 << 30)
_SYSTEM_START, _DATA_START = 1 * _MIB, 5 * _MIB
_LARGEST_EXTENT = 4 * _MIB

# Trees, by the number of their owner.
_ROOT, _EXTENT, _CHUNK, _DEV, _FS, _DIRECTORY, _CSUM, _UUID, _FREE = 1, 2, 3, 4, 5, 6, 7, 9, 10
_RELOC, _CSUM_OBJECT = 2**64 - 9, 2**64 - 10
_FIRST_CHUNK = 256

_CSUMS_PER_ITEM = 900
# MIXED_BACKREF, MIXED_GROUPS, EXTENDED_IREF, SKINNY_METADATA, NO_HOLES; FREE_SPACE_TREE and its VALID.
_INCOMPAT, _COMPAT_RO = 0x345, 0x3


class BtrfsFull(Exception):
    """The content does not fit the filesystem."""


@dataclass(frozen=True)
class BtrfsNode:
    """One path of a filesystem to be: `mode` with type bits, `mtime` in seconds for all its times.

    A regular file's content is the host file `source`, a link's text is `symlink`.
    """

    mode: int
    uid: int
    gid: int
    mtime: int
    source: Path | None = None
    symlink: bytes = b""
    xattrs: Mapping[bytes, bytes] = field(default_factory=dict)


def capacity(size: int) -> int:
    """Bytes that a filesystem of `size` bytes has for data and metadata together."""
    return sum(end - start for start, end in _block_groups(size))


def write_btrfs(target: Path, size: int, uuid: UUID, label: str, nodes: Mapping[str, BtrfsNode]) -> None:
    """Make `target`, a new file of `size` bytes, a btrfs with exactly these paths; "/" is the root directory.

    Every path's parent must be among them. Raises BtrfsFull when they do not fit.
    """
    with target.open("xb") as file:
        file.truncate(size)
        _Writer(file.fileno(), size, uuid, label, nodes).write()


def _block_groups(size: int) -> list[tuple[int, int]]:
    """Start and end of the block groups for data and metadata: all of the device but the places of superblocks."""
    groups, start = [], _DATA_START
    for copy in (*_SUPERBLOCKS[1:], size):
        end = min(copy, size) // _MIB * _MIB
        if end > start:
            groups.append((start, end))
        start = copy + _MIB
    return groups


class _Space:
    """Hands out room from the block groups, in order and without gaps; extents never cross the end of a group."""

    def __init__(self, groups: list[tuple[int, int]]) -> None:
        self._groups = groups
        self._group, self._at = 0, groups[0][0] if groups else 0

    def copy(self) -> _Space:
        """Another one that goes on from here."""
        other = _Space(self._groups)
        other._group, other._at = self._group, self._at
        return other

    def take(self, length: int) -> tuple[int, int]:
        """Address and length of the next extent, of at most `length` bytes (multiples of BLOCK)."""
        while self._group < len(self._groups):
            end = self._groups[self._group][1]
            if self._at < end:
                start, self._at = self._at, min(self._at + length, end)
                return start, self._at - start
            self._group += 1
            if self._group < len(self._groups):
                self._at = self._groups[self._group][0]
        raise BtrfsFull


class _Writer:
    def __init__(self, file: int, size: int, uuid: UUID, label: str, nodes: Mapping[str, BtrfsNode]) -> None:
        self._file, self._size, self._uuid, self._label, self._nodes = file, size, uuid, label, nodes
        self._chunk_uuid, self._device_uuid, self._files_uuid = (
            uuid5(uuid, name).bytes for name in ("chunk tree", "device", "files")
        )
        self._groups = _block_groups(size)
        self._space = _Space(self._groups)
        self._data: dict[int, tuple[int, bytes]] = {}
        """Length and extent item of every data extent, by address."""

    def write(self) -> None:
        """Everything: file contents first, then the trees that describe them, the superblocks last."""
        trees: dict[int, Items] = {_CSUM: {}}
        trees[_FS] = self._file_tree(trees[_CSUM])
        trees |= {_DEV: self._device_tree(), _UUID: self._uuid_tree(), _RELOC: bt.directory_root(0)}
        trees[_CHUNK] = self._chunk_tree()
        places = self._settle(trees)
        roots = {owner: self._write_tree(owner, trees[owner], places[owner]) for owner in trees}
        self._write_superblocks(roots[_ROOT], roots[_CHUNK], self._used(places))

    # Files

    def _file_tree(self, csums: Items) -> Items:
        """The tree of names and inodes; file contents are written on the way, their checksums go to `csums`."""
        numbers = {path: bt.TOP + number for number, path in enumerate(sorted(self._nodes, key=_parts))}
        children: dict[str, list[str]] = {path: [] for path in numbers}
        for path in numbers:
            if path != "/":
                children[path.rpartition("/")[0] or "/"].append(path)
        items: Items = {(bt.TOP, bt.INODE_REF, bt.TOP): struct.pack("<QH", 0, 2) + b".."}
        for path, number in numbers.items():
            node, size, stored = self._nodes[path], 0, 0
            for index, child in enumerate(children[path], 2):
                name = os.fsencode(child.rpartition("/")[2])
                size += 2 * len(name)
                kind = bt.FILE_TYPES[stat.S_IFMT(self._nodes[child].mode)]
                entry = bt.named((numbers[child], bt.INODE_ITEM, 0), kind, name)
                bt.add_entry(items, (number, bt.DIR_ITEM, bt.name_hash(name)), entry)
                items[number, bt.DIR_INDEX, index] = entry
                items[numbers[child], bt.INODE_REF, number] = struct.pack("<QH", index, len(name)) + name
            if stat.S_ISLNK(node.mode):
                size = stored = len(node.symlink)
                items[number, bt.EXTENT_DATA, 0] = (
                    struct.pack("<QQBBHB", bt.GENERATION, size, 0, 0, 0, 0) + node.symlink
                )
            elif node.source is not None:
                size, stored = self._content(number, node.source, items, csums)
            for name, value in sorted(node.xattrs.items()):
                bt.add_entry(
                    items, (number, bt.XATTR_ITEM, bt.name_hash(name)), bt.named((0, 0, 0), bt.XATTR_TYPE, name, value)
                )
            items[number, bt.INODE_ITEM, 0] = bt.inode(node.mode, size, stored, node.uid, node.gid, node.mtime)
        return items

    def _content(self, number: int, source: Path, items: Items, csums: Items) -> tuple[int, int]:
        """Copy a file's content; returns its size and the bytes of its blocks."""
        done = 0
        with source.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            while done < size:
                address, length = self._space.take(min(_LARGEST_EXTENT, _whole_blocks(size - done)))
                data = file.read(length).ljust(length, b"\0")
                os.pwrite(self._file, data, address)
                self._add_checksums(csums, address, crc32c_blocks(data, BLOCK))
                items[number, bt.EXTENT_DATA, done] = struct.pack(
                    "<QQBBHBQQQQ", bt.GENERATION, length, 0, 0, 0, 1, address, length, 0, length
                )
                backref = struct.pack("<BQQQI", bt.EXTENT_DATA_REF, _FS, number, done, 1)
                self._data[address] = length, struct.pack("<QQQ", 1, bt.GENERATION, bt.IS_DATA) + backref
                done += length
        return size, done

    def _add_checksums(self, csums: Items, address: int, sums: bytes) -> None:
        step = 4 * _CSUMS_PER_ITEM
        for at in range(0, len(sums), step):
            csums[_CSUM_OBJECT, bt.EXTENT_CSUM, address + at // 4 * BLOCK] = sums[at : at + step]

    # The device and its chunks

    def _chunks(self) -> list[tuple[int, int, int]]:
        """Start, length and type of all chunks."""
        system = (_SYSTEM_START, _DATA_START - _SYSTEM_START, bt.IS_SYSTEM)
        return [system, *((start, end - start, bt.IS_MIXED) for start, end in self._groups)]

    def _chunk_tree(self) -> Items:
        items = {(1, bt.DEV_ITEM, 1): self._device()}
        for start, length, kind in self._chunks():
            unit = BLOCK if kind == bt.IS_SYSTEM else 64 << 10
            items[_FIRST_CHUNK, bt.CHUNK_ITEM, start] = (
                struct.pack("<QQQQ", length, _EXTENT, 64 << 10, kind)
                + struct.pack("<IIIHH", unit, unit, BLOCK, 1, 0)
                + struct.pack("<QQ16s", 1, start, self._device_uuid)
            )
        return items

    def _device(self) -> bytes:
        allocated = sum(length for _, length, _ in self._chunks())
        return struct.pack(
            "<QQQIIIQQQIBB16s16s", 1, self._size, allocated, BLOCK, BLOCK, BLOCK, 0, 0, 0, 0, 0, 0, self._device_uuid,
            self._uuid.bytes,
        )  # fmt: skip

    def _device_tree(self) -> Items:
        return {
            (1, bt.DEV_EXTENT, start): struct.pack("<QQQQ16s", _CHUNK, _FIRST_CHUNK, start, length, self._chunk_uuid)
            for start, length, _ in self._chunks()
        }

    def _uuid_tree(self) -> Items:
        low, high = struct.unpack("<QQ", self._files_uuid)
        return {(low, bt.UUID_SUBVOLUME, high): struct.pack("<Q", _FS)}

    # Trees that describe where the trees are

    def _settle(self, trees: dict[int, Items]) -> dict[int, list[list[int]]]:
        """Find room for all tree blocks, and add the trees that list it; returns each tree's addresses per level.

        Those trees list their own blocks too, so their sizes are assumed, and again until they come out as assumed.
        """
        shapes = {owner: bt.tree_shape(items) for owner, items in trees.items()} | {
            _EXTENT: [1],
            _FREE: [1],
            _ROOT: [1],
        }
        while True:
            space = self._space.copy()
            places = {
                owner: [[self._block(owner, space) for _ in range(count)] for count in shape]
                for owner, shape in shapes.items()
            }
            trees[_EXTENT], trees[_FREE] = self._extent_tree(places), self._free_tree(places)
            trees[_ROOT] = self._root_tree(places)
            found = {owner: bt.tree_shape(trees[owner]) for owner in shapes}
            if found == shapes:
                return places
            shapes = found

    def _block(self, owner: int, space: _Space) -> int:
        return _SYSTEM_START if owner == _CHUNK else space.take(BLOCK)[0]

    def _used(self, places: dict[int, list[list[int]]]) -> dict[int, int]:
        """Bytes in use in every chunk, by its start."""
        extents = [(address, length) for address, (length, _) in self._data.items()]
        extents += [(address, BLOCK) for levels in places.values() for level in levels for address in level]
        return {
            start: sum(size for address, size in extents if start <= address < start + length)
            for start, length, _ in self._chunks()
        }

    def _extent_tree(self, places: dict[int, list[list[int]]]) -> Items:
        items = {(address, bt.EXTENT_ITEM, length): item for address, (length, item) in self._data.items()}
        for owner, levels in places.items():
            record = struct.pack("<QQQBQ", 1, bt.GENERATION, bt.IS_TREE_BLOCK, bt.TREE_BLOCK_REF, owner)
            for level, addresses in enumerate(levels):
                items |= {(address, bt.METADATA_ITEM, level): record for address in addresses}
        used = self._used(places)
        for start, length, kind in self._chunks():
            items[start, bt.BLOCK_GROUP, length] = struct.pack("<QQQ", used[start], _FIRST_CHUNK, kind)
        return items

    def _free_tree(self, places: dict[int, list[list[int]]]) -> Items:
        items: Items = {}
        used = self._used(places)
        for start, length, _ in self._chunks():
            left = length - used[start]
            items[start, bt.FREE_INFO, length] = struct.pack("<II", 1 if left else 0, 0)
            if left:
                items[start + used[start], bt.FREE_EXTENT, left] = b""
        return items

    def _root_tree(self, places: dict[int, list[list[int]]]) -> Items:
        items: Items = {}
        for owner, levels in places.items():
            if owner not in (_ROOT, _CHUNK):
                items[owner, bt.ROOT_ITEM, 0] = self._root(owner, levels)
        name = b"default"
        items[_FS, bt.INODE_REF, _DIRECTORY] = struct.pack("<QH", 0, len(name)) + name
        items |= bt.directory_root(self._nodes["/"].mtime, _DIRECTORY)
        items[_DIRECTORY, bt.DIR_ITEM, bt.name_hash(name)] = bt.named(
            (_FS, bt.ROOT_ITEM, 2**64 - 1), bt.FILE_TYPES[stat.S_IFDIR], name
        )
        return items

    def _root(self, owner: int, levels: list[list[int]]) -> bytes:
        files = owner == _FS
        uuid = self._files_uuid if files else bytes(16)
        time = struct.pack("<QI", self._nodes["/"].mtime if files else 0, 0)
        return (
            bt.inode(stat.S_IFDIR | 0o755, 3, BLOCK, 0, 0, 0)
            + struct.pack(
                "<QQQQQQQI17sBB", bt.GENERATION, bt.TOP if owner in (_FS, _RELOC) else 0, levels[-1][0], 0,
                BLOCK * sum(map(len, levels)), 0, 0, 1, bytes(17), 0, len(levels) - 1,
            )
            + struct.pack("<Q16s64x", bt.GENERATION, uuid)  # no parent, nothing received
            + time * 2
            + bytes(24 + 64)
        )  # fmt: skip

    # Blocks

    def _write_tree(self, owner: int, items: Items, places: list[list[int]]) -> tuple[int, int]:
        """Write all blocks of a tree; returns address and level of its root."""
        blocks = []
        level_keys: list[Key] = []
        ordered = sorted(items.items())
        start = 0
        for address, count in zip(places[0], bt.leaf_counts(ordered), strict=True):
            leaf = ordered[start : start + count]
            start += count
            level_keys.append(leaf[0][0] if leaf else (0, 0, 0))
            blocks.append((address, self._block_bytes(owner, address, 0, len(leaf), bt.leaf_body(leaf))))
        for level, addresses in enumerate(places[1:], 1):
            below = list(zip(level_keys, places[level - 1], strict=True))
            level_keys = []
            for number, address in enumerate(addresses):
                pointers = below[number * bt.POINTERS : (number + 1) * bt.POINTERS]
                level_keys.append(pointers[0][0])
                body = b"".join(
                    bt.KEY.pack(*key) + struct.pack("<QQ", child, bt.GENERATION) for key, child in pointers
                )
                blocks.append((address, self._block_bytes(owner, address, level, len(pointers), body)))
        sums = crc32c_blocks(b"".join(block for _, block in blocks), BLOCK - 32)
        for number, (address, block) in enumerate(blocks):
            os.pwrite(self._file, sums[4 * number : 4 * number + 4] + bytes(28) + block, address)
        return places[-1][0], len(places) - 1

    def _block_bytes(self, owner: int, address: int, level: int, count: int, body: bytes) -> bytes:
        """A tree block without the 32 bytes of its checksum."""
        flags = 1 | 1 << 56  # written; back references of the present kind
        header = struct.pack(
            "<16sQQ16sQQIB", self._uuid.bytes, address, flags, self._chunk_uuid, bt.GENERATION, owner, count, level
        )
        return (header + body).ljust(BLOCK - 32, b"\0")

    def _write_superblocks(self, root: tuple[int, int], chunk: tuple[int, int], used: dict[int, int]) -> None:
        system = self._chunk_tree()[_FIRST_CHUNK, bt.CHUNK_ITEM, _SYSTEM_START]
        array = bt.KEY.pack(_FIRST_CHUNK, bt.CHUNK_ITEM, _SYSTEM_START) + system
        for address in _SUPERBLOCKS:
            if address + BLOCK > self._size:
                break
            body = struct.pack(
                "<16sQQ8sQQQQQQQQQIIIIIQQQQHBBB98s256sQQ",
                self._uuid.bytes, address, 1, b"_BHRfS_M", bt.GENERATION, root[0], chunk[0], 0, 0, self._size,
                sum(used.values()), _DIRECTORY, 1, BLOCK, BLOCK, BLOCK, BLOCK, len(array), bt.GENERATION, 0,
                _COMPAT_RO, _INCOMPAT, 0, root[1], chunk[1], 0, self._device(),
                self._label.encode("utf-8", "surrogateescape"), 0, bt.GENERATION,
            )  # fmt: skip
            block = (body.ljust(0x32B - 32, b"\0") + array).ljust(BLOCK - 32, b"\0")
            os.pwrite(self._file, crc32c_blocks(block, len(block)) + bytes(28) + block, address)


def _parts(path: str) -> tuple[bytes, ...]:
    """Sorts parents before their children and siblings by name."""
    return tuple(os.fsencode(path).strip(b"/").split(b"/")) if path != "/" else ()


def _whole_blocks(size: int) -> int:
    return -(-size // BLOCK) * BLOCK
