"""Writing btrfs, by our own writer: mkfs.btrfs draws random ids and reads the clock."""

from __future__ import annotations

import os
import stat
from collections.abc import Collection, Mapping
from pathlib import Path
from uuid import UUID

from baker.btrfs_items import BLOCK, LEAF_ROOM
from baker.btrfs_writer import BtrfsFull, BtrfsNode, capacity, write_btrfs
from baker.errors import UsageError
from baker.packing.tree import Entry

_MIB = 1 << 20
_LONGEST_LINK = LEAF_ROOM - 25 - 21  # in a leaf, behind the head of an item and that of an inline extent
_TYPES = {"directory": stat.S_IFDIR, "file": stat.S_IFREG, "symlink": stat.S_IFLNK}


def write_btrfs_image(entries: Mapping[str, Entry], target: Path, epoch: int, uuid: UUID, label: str) -> None:
    """Make `target`, a new file, a btrfs of `entries`; nothing is compressed."""
    folder = target.with_name("contents")
    folder.mkdir()
    nodes = {"/": BtrfsNode(stat.S_IFDIR | 0o755, 0, 0, epoch)}
    for number, entry in enumerate(entries.values()):
        source = entry.source
        if entry.kind == "file" and source is None:
            source = folder / str(number)
            source.write_bytes(entry.content)
        if len(os.fsencode(entry.symlink)) > _LONGEST_LINK:
            raise UsageError(
                f"The link {entry.path} is longer than the {_LONGEST_LINK} bytes that fit a btrfs.",
                "Shorten it, or use another --format.",
            )
        mode = _TYPES[entry.kind] | entry.mode
        nodes[entry.path] = BtrfsNode(mode, 0, 0, epoch, source, os.fsencode(entry.symlink))
    need = _need(entries.values())
    while True:
        size = _MIB
        while capacity(size) < need:
            size += _MIB
        try:
            write_btrfs(target, size, uuid, label, nodes)
            return
        except BtrfsFull:
            target.unlink()
            need += max(_MIB, need // 50)


def _need(entries: Collection[Entry]) -> int:
    """An estimate of the bytes that data and metadata take."""
    data = sum(-(-entry.size // BLOCK) * BLOCK for entry in entries)
    names = sum(len(os.fsencode(entry.path.rpartition("/")[2])) + len(os.fsencode(entry.symlink)) for entry in entries)
    # Six items per file, three of them with its name; leaves are not filled to the brim.
    return data + data // 500 + (600 * len(entries) + 3 * names) * 9 // 8 + 32 * BLOCK
