"""Reading a GUID partition table: strictly, from the bytes, because an image is not to be trusted.

Partitioning tools repair what they read or say so only in prose; this reader takes a table only when both copies are
whole and agree. Format: UEFI specification 2.10, section 5.3 (tables 5.5 and 5.6). Sectors are 512 bytes.
"""

from __future__ import annotations

import os
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO
from uuid import UUID

from baker.errors import ImageError
from baker.model import SECTOR, Partition

_HEADER = struct.Struct("<8sIIIIQQQQ16sQIII")
_ENTRY = struct.Struct("<16s16sQQQ72s")
_MAX_ENTRIES = 1024


@dataclass(frozen=True)
class DiskTable:
    """The partition table of an image: disk GUID, size of the image file in bytes, partitions by number."""

    guid: str
    size: int
    partitions: tuple[Partition, ...]

    def get(self, label: str) -> Partition:
        """The partition with a GPT label; raises ImageError that names the labels there are."""
        for partition in self.partitions:
            if partition.label == label:
                return partition
        labels = ", ".join(partition.label for partition in self.partitions if partition.label) or "none"
        raise ImageError(f"The image has no {label} partition.", f"Its partitions are: {labels}.")


@dataclass(frozen=True)
class _Header:
    """The fields of a GPT header that matter here; addresses are sector numbers."""

    alternate: int
    first_usable: int
    last_usable: int
    guid: bytes
    entries_at: int
    entry_count: int
    entry_size: int
    entries_crc: int


def read_gpt(image: Path) -> DiskTable:
    """Read and check the table of a raw image; `Partition.fs` is left empty.

    Raises ImageError when there is no GPT, a copy is damaged or missing, the copies differ, partitions overlap, lie
    outside the disk or share a label, or the file is shorter than the table says.
    """
    with image.open("rb") as disk:
        size = os.fstat(disk.fileno()).st_size
        primary = _read_header(disk, 1, "primary")
        if (primary.alternate + 1) * SECTOR > size:
            raise ImageError(
                f"{image.name} is shorter than its partition table says: {size} bytes, at least "
                f"{(primary.alternate + 1) * SECTOR} expected.",
                "It was cut off, or is not a raw disk image.",
            )
        entries = _read_entries(disk, primary, "primary")
        backup = _read_header(disk, primary.alternate, "backup")
        if _read_entries(disk, backup, "backup") != entries or backup.guid != primary.guid:
            raise ImageError(f"The two copies of the partition table in {image.name} differ.")
    partitions = tuple(
        partition
        for number, entry in enumerate(_ENTRY.iter_unpack(entries), start=1)
        if (partition := _partition(number, entry)) is not None
    )
    _check_ranges(partitions, primary)
    _check_labels(partitions)
    return DiskTable(str(UUID(bytes_le=primary.guid)), size, partitions)


def _name(disk: BinaryIO) -> str:
    return os.path.basename(disk.name)


def _read_header(disk: BinaryIO, sector: int, which: str) -> _Header:
    disk.seek(sector * SECTOR)
    raw = disk.read(SECTOR)
    if len(raw) < SECTOR or not raw.startswith(b"EFI PART"):
        if which == "primary":
            raise ImageError(
                f"{_name(disk)} has no GPT.",
                "A raw disk image is needed, not a qcow2 or another format.",
            )
        raise ImageError(f"The backup partition table of {_name(disk)} is missing.", "The image is not complete.")
    (_, _, header_size, crc, _, own, alternate, first, last, guid, entries_at, count, entry_size, entries_crc) = (
        _HEADER.unpack_from(raw)
    )
    covered = raw[:16] + bytes(4) + raw[20:header_size]
    if not _HEADER.size <= header_size <= SECTOR or zlib.crc32(covered) != crc or own != sector:
        raise ImageError(f"The {which} partition table of {_name(disk)} is damaged: its header fails the checksum.")
    return _Header(alternate, first, last, guid, entries_at, count, entry_size, entries_crc)


def _read_entries(disk: BinaryIO, header: _Header, which: str) -> bytes:
    if header.entry_size != _ENTRY.size or header.entry_count > _MAX_ENTRIES:
        raise ImageError(f"The {which} partition table of {_name(disk)} has an unusual form.")
    # Not every 64-bit sector number is an offset that a file can have.
    disk.seek(min(header.entries_at * SECTOR, os.fstat(disk.fileno()).st_size))
    raw = disk.read(header.entry_count * header.entry_size)
    if len(raw) < header.entry_count * header.entry_size or zlib.crc32(raw) != header.entries_crc:
        raise ImageError(f"The {which} partition table of {_name(disk)} is damaged: its entries fail the checksum.")
    return raw


def _partition(number: int, entry: tuple[bytes, bytes, int, int, int, bytes]) -> Partition | None:
    kind, guid, first, last, attributes, name = entry
    if not any(kind):
        return None
    return Partition(
        label=name.decode("utf-16-le", "replace").partition("\0")[0],
        number=number,
        type_guid=str(UUID(bytes_le=kind)),
        guid=str(UUID(bytes_le=guid)),
        attributes=attributes,
        offset=first * SECTOR,
        size=(last - first + 1) * SECTOR,
    )


def _check_ranges(partitions: tuple[Partition, ...], header: _Header) -> None:
    end, previous = header.first_usable * SECTOR, "the partition table"
    for partition in sorted(partitions, key=lambda partition: partition.offset):
        name = partition.label or f"number {partition.number}"
        if partition.size <= 0 or partition.offset + partition.size > (header.last_usable + 1) * SECTOR:
            raise ImageError(f"Partition {name!r} reaches beyond the end of the disk.")
        if partition.offset < end:
            raise ImageError(f"Partition {name!r} overlaps {previous!r}.")
        end, previous = partition.offset + partition.size, name


def _check_labels(partitions: tuple[Partition, ...]) -> None:
    seen: set[str] = set()
    for partition in partitions:
        if partition.label and partition.label in seen:
            raise ImageError(f"The image has two partitions labelled {partition.label!r}.")
        seen.add(partition.label)
