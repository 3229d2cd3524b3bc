"""The records of a btrfs's trees as bytes, and how they fill the leaves of a tree.

Structures: btrfs documentation, "On-disk Format". All trees are made at once, so everything is of generation 1.
"""

from __future__ import annotations

import stat
import struct
from collections.abc import Iterable, Iterator

from baker.crc32c import crc32c

BLOCK = 4096
GENERATION = 1
TOP = 256  # the first inode number, of the root directory

# Types of items.
INODE_ITEM, INODE_REF, XATTR_ITEM, DIR_ITEM, DIR_INDEX, EXTENT_DATA = 1, 12, 24, 84, 96, 108
EXTENT_CSUM, ROOT_ITEM, EXTENT_ITEM, METADATA_ITEM, BLOCK_GROUP, FREE_INFO = 128, 132, 168, 169, 192, 198
FREE_EXTENT, DEV_EXTENT, DEV_ITEM, CHUNK_ITEM, UUID_SUBVOLUME = 199, 204, 216, 228, 251
TREE_BLOCK_REF, EXTENT_DATA_REF = 176, 178

IS_DATA, IS_SYSTEM, IS_MIXED = 1, 2, 1 | 4
IS_TREE_BLOCK = 2
FILE_TYPES = {stat.S_IFREG: 1, stat.S_IFDIR: 2, stat.S_IFLNK: 7}
XATTR_TYPE = 8

HEADER, KEY = 101, struct.Struct("<QBQ")
LEAF_ROOM = BLOCK - HEADER
POINTERS = LEAF_ROOM // 33

Key = tuple[int, int, int]
Items = dict[Key, bytes]


def name_hash(name: bytes) -> int:
    """What the item of a name is found by."""
    return crc32c(name, 0xFFFF_FFFE)


def add_entry(items: Items, key: Key, entry: bytes) -> None:
    """Names with the same hash share an item."""
    items[key] = items.get(key, b"") + entry


def named(location: Key, kind: int, name: bytes, value: bytes = b"") -> bytes:
    """An entry of a directory, or an extended attribute."""
    return KEY.pack(*location) + struct.pack("<QHHB", 0, len(value), len(name), kind) + name + value


def inode(mode: int, size: int, stored: int, uid: int, gid: int, time: int) -> bytes:
    """An inode with one link: `size` is its content's, `stored` what its extents take, `time` are all its times."""
    numbers = struct.pack("<5Q4I3Q32x", GENERATION, 0, size, stored, 0, 1, uid, gid, mode, 0, 0, 0)
    return numbers + struct.pack("<QI", time, 0) * 4


def directory_root(time: int, number: int = TOP) -> Items:
    """The inode of an empty directory that is its own parent."""
    return {
        (number, INODE_ITEM, 0): inode(stat.S_IFDIR | 0o755, 0, 0, 0, 0, time),
        (number, INODE_REF, number): struct.pack("<QH", 0, 2) + b"..",
    }


def leaf_counts(ordered: Iterable[tuple[Key, bytes]]) -> Iterator[int]:
    """How many items go into each leaf; an empty tree has one empty leaf."""
    count = room = 0
    for _, data in ordered:
        if count and room + 25 + len(data) > LEAF_ROOM:
            yield count
            count = room = 0
        count, room = count + 1, room + 25 + len(data)
    yield count


def tree_shape(items: Items) -> list[int]:
    """The number of blocks on each level of a tree, leaves first."""
    shape = [len(list(leaf_counts(sorted(items.items()))))]
    while shape[-1] > 1:
        shape.append(-(-shape[-1] // POINTERS))
    return shape


def leaf_body(items: list[tuple[Key, bytes]]) -> bytes:
    """Item headers from the front, data from the back."""
    headers, data = b"", b""
    for key, value in items:
        data = value + data
        headers += KEY.pack(*key) + struct.pack("<II", LEAF_ROOM - len(data), len(value))
    return headers + bytes(LEAF_ROOM - len(headers) - len(data)) + data
