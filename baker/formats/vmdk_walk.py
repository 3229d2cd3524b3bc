"""Checks a stream-optimized VMDK by walking it from marker to marker, as a reader does that cannot seek.

qemu-img reads such a file through its tables and never looks at most markers; an importer does the opposite. Both
must find the same grains. What is in the grains is qemu-img's to compare.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from baker.errors import ImageError
from baker.formats.vmdk_stream import GRAIN_SECTORS, PER_TABLE, Marker
from baker.model import SECTOR

_HEADER = struct.Struct("<4sIIQQQQIQQQB4sH")
_MARKER = struct.Struct("<QII")


@dataclass
class Walk:
    """What a walk has met: sectors of grains by their place on the disk, of grain tables by their number."""

    grains: dict[int, int] = field(default_factory=dict)
    tables: list[int] = field(default_factory=list)
    directory: int = 0
    footer: bytes = b""
    pending: dict[int, int] = field(default_factory=dict)
    """The grains since the last table."""


def check_stream(path: Path, size: int) -> Walk:
    """Walk a stream-optimized VMDK that must be for a disk of `size` bytes; ImageError names what is wrong."""
    with path.open("rb") as file:
        try:
            return _walk(file, path.stat().st_size, size // SECTOR)
        except (ImageError, struct.error) as error:
            raise ImageError(f"{path.name} came out wrong: {error}") from error


def _walk(file: BinaryIO, length: int, capacity: int) -> Walk:
    header = file.read(SECTOR)
    magic, version, _, found, grain, _, _, entries, _, directory, overhead, _, _, _ = _HEADER.unpack_from(header)
    _rule((magic, version, grain, entries) == (b"KDMV", 3, GRAIN_SECTORS, PER_TABLE), "the header is of another kind")
    _rule(found == capacity, f"its disk has {found} sectors, not {capacity}")
    _rule(directory == 0xFFFF_FFFF_FFFF_FFFF, "the header does not say that the grain directory comes last")
    walk = Walk()
    file.seek(overhead * SECTOR)
    while _step(file, walk, capacity):
        pass
    _rule(file.tell() == length, "the end-of-stream marker is not its last sector")
    _rule(not walk.pending, "grains are in no grain table")
    place = _HEADER.unpack_from(walk.footer)[9]
    _rule(place == walk.directory != 0, "the footer does not tell where the grain directory is")
    _rule(
        walk.footer == header[:56] + place.to_bytes(8, "little") + header[64:], "the footer is not the header's copy"
    )
    return walk


def _step(file: BinaryIO, walk: Walk, capacity: int) -> bool:
    """Read a marker and what belongs to it; False after the end of the stream."""
    at = file.tell() // SECTOR
    value, size, kind = _MARKER.unpack_from(file.read(SECTOR))
    if size:
        _rule(value % GRAIN_SECTORS == 0 and value < capacity, f"sector {at} has a grain beyond the disk")
        _rule(
            not walk.grains or value > max(next(reversed(walk.grains)), 0), f"the grain in sector {at} is out of order"
        )
        walk.grains[value] = walk.pending[value] = at
        file.seek(at * SECTOR + -(-(12 + size) // SECTOR) * SECTOR)
        return True
    data = file.read(value * SECTOR)
    _rule(len(data) == value * SECTOR, f"the file ends in the metadata after sector {at}")
    if kind == Marker.GRAIN_TABLE:
        _table(walk, at + 1, data)
    elif kind == Marker.GRAIN_DIRECTORY:
        walk.directory = at + 1
        tables = [entry for entry in struct.unpack(f"<{len(data) // 4}I", data) if entry]
        _rule(tables == walk.tables, "the grain directory lists other tables than there are")
    elif kind == Marker.FOOTER:
        walk.footer = data
    else:
        _rule(kind == Marker.END_OF_STREAM and len(walk.footer) == SECTOR, f"sector {at} has an unexpected marker")
        return False
    return True


def _table(walk: Walk, at: int, data: bytes) -> None:
    entries = struct.unpack(f"<{PER_TABLE}I", data)
    first = next(iter(walk.pending), 0) // (GRAIN_SECTORS * PER_TABLE) * PER_TABLE
    listed = {(first + number) * GRAIN_SECTORS: entry for number, entry in enumerate(entries) if entry}
    _rule(listed == walk.pending != {}, f"the grain table in sector {at} lists other grains than precede it")
    walk.tables.append(at)
    walk.pending = {}


def _rule(holds: bool, otherwise: str) -> None:
    if not holds:
        raise ImageError(otherwise)
