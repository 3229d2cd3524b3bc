"""Stream-optimized VMDK: one pass of compressed grains with markers, the form that ESXi and the clouds import.

Format: VMware's "Virtual Disk Format 5.0", section "Stream-Optimized Compressed Sparse Extents". qemu-img writes a
file of this name with its tables in front and no footer nor end-of-stream marker, which ESXi has refused; this writer
is complete. The order in the file is: header (its grain directory is "at the end"), descriptor; then for every 512
grains those with data, each after a marker, and their grain table; the grain directory; the footer, which is the
header again but for the directory's place; the end-of-stream marker. Grains and tables of zeros are left out.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import BinaryIO

from baker.blocks import BLOCK, chunks, deflate, shrinks, side_by_side, used_blocks
from baker.errors import ImageError
from baker.formats.seeds import identifier
from baker.model import SECTOR

PER_TABLE = 512
"""Grains that one grain table has."""
GRAIN_SECTORS = BLOCK // SECTOR

_MAGIC, _VERSION = b"KDMV", 3  # ESXi refuses version 1
_FLAGS = 1 | 1 << 16 | 1 << 17  # newline test, compressed grains, markers
_AT_END = 0xFFFF_FFFF_FFFF_FFFF
_DESCRIPTOR_SECTORS, _OVERHEAD_SECTORS = 20, 128
_DEFLATE = 1
# magic, version, flags, capacity, grain size, descriptor offset and size (sectors), entries of a grain table,
# offsets of the redundant and the grain directory, overhead, unclean, newline test, compression
_HEADER = struct.Struct("<4sIIQQQQIQQQB4sH")
_MARKER = struct.Struct("<QII")  # value, size (0 for metadata), type
_GRAIN = struct.Struct("<QI")  # first sector of the disk, bytes of compressed data, which follow
_STORED = 0  # zlib's level that only wraps
_WINDOW = 15  # a zlib stream, header and Adler-32 included
_BUFFER = 4 << 20
_ZEROS = bytes(BLOCK)


class Marker(IntEnum):
    """Types of metadata markers."""

    END_OF_STREAM = 0
    GRAIN_TABLE = 1
    GRAIN_DIRECTORY = 2
    FOOTER = 3


@dataclass(frozen=True)
class StreamOptions:
    """What of the descriptor differs between platforms."""

    adapter: str = "lsilogic"
    hardware: str = "6"
    """The virtual hardware version: 6 is what every VMware product since 2006 takes."""

    @classmethod
    def of(cls, options: Mapping[str, str]) -> StreamOptions:
        """From qemu-img's options for such a file: adapter_type, hwversion and compat6."""
        default = cls()
        return cls(options.get("adapter_type", default.adapter), options.get("hwversion", default.hardware))


def write_stream(raw: Path, target: Path, options: StreamOptions, jobs: int, seed: str) -> None:
    """Write a raw disk as the new stream-optimized VMDK `target`; equal input and seed give equal bytes.

    `jobs` threads compress. Raises ImageError for a disk that is not whole sectors.
    """
    size = raw.stat().st_size
    if size % SECTOR:
        raise ImageError(f"A VMDK cannot hold a disk of {size} bytes, which is not a multiple of {SECTOR}.")
    capacity = size // SECTOR
    with raw.open("rb") as disk, target.open("xb", buffering=_BUFFER) as file:
        writer = _Writer(file, capacity)
        writer.begin(_descriptor(target.name, capacity, options, seed))

        def encode(chunk: Sequence[int]) -> list[tuple[int, bytes]]:
            return [(index, _compress(data)) for index in chunk if (data := _grain(disk.fileno(), index)) != _ZEROS]

        for encoded in side_by_side(encode, chunks(used_blocks(disk.fileno())), jobs):
            for index, data in encoded:
                writer.put(index, data)
        writer.finish()


def _grain(disk: int, index: int) -> bytes:
    return os.pread(disk, BLOCK, index * BLOCK).ljust(BLOCK, b"\0")


def _compress(data: bytes) -> bytes:
    return deflate(data, _WINDOW) if shrinks(data) else deflate(data, _WINDOW, _STORED)


class _Writer:
    """Appends sectors, and remembers where grains and tables went."""

    def __init__(self, file: BinaryIO, capacity: int) -> None:
        self._file, self._capacity = file, capacity
        tables = -(-capacity // (GRAIN_SECTORS * PER_TABLE))
        self._directory = [0] * tables
        self._table: list[int] = [0] * PER_TABLE
        self._number = 0  # of the table that is being filled
        self._sector = 0

    def begin(self, descriptor: bytes) -> None:
        """Write all that comes before the first grain."""
        self._append(_header(self._capacity, _AT_END))
        self._append(descriptor.ljust(_DESCRIPTOR_SECTORS * SECTOR, b"\0"))
        self._append(bytes((_OVERHEAD_SECTORS - self._sector) * SECTOR))

    def put(self, index: int, data: bytes) -> None:
        """Write a grain; indexes must rise."""
        number, entry = divmod(index, PER_TABLE)
        if number != self._number:
            self._write_table()
            self._number = number
        self._table[entry] = self._append(_GRAIN.pack(index * GRAIN_SECTORS, len(data)) + data)

    def finish(self) -> None:
        """Write the tables and markers behind the last grain."""
        self._write_table()
        directory = self._metadata(Marker.GRAIN_DIRECTORY, _entries(self._directory))
        self._metadata(Marker.FOOTER, _header(self._capacity, directory))
        self._metadata(Marker.END_OF_STREAM, b"")

    def _write_table(self) -> None:
        if any(self._table):
            self._directory[self._number] = self._metadata(Marker.GRAIN_TABLE, _entries(self._table))
            self._table = [0] * PER_TABLE

    def _metadata(self, kind: Marker, data: bytes) -> int:
        """Write a marker and what it announces; returns the sector of the latter."""
        self._append(_MARKER.pack(-(-len(data) // SECTOR), 0, kind))
        return self._append(data)

    def _append(self, data: bytes) -> int:
        at, count = self._sector, -(-len(data) // SECTOR)
        if at + count > 0xFFFF_FFFF:
            raise ImageError("The disk is too large for one VMDK.")
        self._file.write(data.ljust(count * SECTOR, b"\0"))
        self._sector += count
        return at


def _entries(numbers: Sequence[int]) -> bytes:
    return struct.pack(f"<{len(numbers)}I", *numbers)


def _header(capacity: int, directory: int) -> bytes:
    return _HEADER.pack(
        _MAGIC, _VERSION, _FLAGS, capacity, GRAIN_SECTORS, 1, _DESCRIPTOR_SECTORS, PER_TABLE, 0, directory,
        _OVERHEAD_SECTORS, 0, b"\n \r\n", _DEFLATE,
    ).ljust(SECTOR, b"\0")  # fmt: skip


def _descriptor(name: str, capacity: int, options: StreamOptions, seed: str) -> bytes:
    heads, most = (16, 16383) if options.adapter == "ide" else (255, 65535)
    content = identifier(seed, "vmdk").hex
    lines = [
        "# Disk DescriptorFile", "version=1", f"CID={content[-8:]}", "parentCID=ffffffff",
        'createType="streamOptimized"', "", "# Extent description", f'RDONLY {capacity} SPARSE "{name}"', "",
        "# The Disk Data Base", "#DDB", "", f'ddb.adapterType = "{options.adapter}"',
        f'ddb.geometry.cylinders = "{min(capacity // (heads * 63), most)}"', f'ddb.geometry.heads = "{heads}"',
        'ddb.geometry.sectors = "63"', f'ddb.longContentID = "{content}"', 'ddb.toolsVersion = "2147483647"',
        f'ddb.virtualHWVersion = "{options.hardware}"',
    ]  # fmt: skip
    return ("\n".join(lines) + "\n").encode()
