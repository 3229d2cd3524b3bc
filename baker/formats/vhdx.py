"""VHDX as qemu-img writes it, with its random parts replaced.

Format: Microsoft's [MS-VHDX]. Random are three GUIDs of each header, the header's sequence number, the disk's page 83
identifier in the metadata, and what stays in the log, which a closed file does not use.
"""

from __future__ import annotations

import os
import struct
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from baker.crc32c import crc32c
from baker.errors import ImageError
from baker.formats.seeds import identifier
from baker.sparse import punch

_KIB = 1024
_HEADERS, _REGIONS = (64 * _KIB, 128 * _KIB), 192 * _KIB
_HEADER_BYTES, _TABLE_BYTES = 4 * _KIB, 64 * _KIB
# signature, checksum, sequence number, GUIDs of file write, data write and log, log version, version, log length
# and offset
_HEADER = struct.Struct("<4sIQ16s16s16sHHIQ")
_CHECKSUM_AT = 4
_REGION = struct.Struct("<16sQII")  # GUID, file offset, length, required; from byte 16 on
_ITEM = struct.Struct("<16sIIII")  # GUID, offset in the region, length, flags, reserved; from byte 32 on
_METADATA = uuid.UUID("8b7ca206-4790-4b9a-b8fe-575f050f886e").bytes_le
_PAGE_83 = uuid.UUID("beca12ab-b2e6-4523-93ef-c309e000c746").bytes_le


def settle_vhdx(path: Path, seed: str) -> None:
    """Make the identifiers of a closed VHDX those of the seed, and empty its log. ImageError for what is none."""
    with path.open("r+b") as file:
        fd = file.fileno()
        headers = [_header(os.pread(fd, _HEADER_BYTES, at), path) for at in _HEADERS]
        newest = max(sequence for sequence, _, _ in headers)
        for at, (sequence, log_offset, log_length) in zip(_HEADERS, headers, strict=True):
            os.pwrite(fd, _new_header(seed, 1 + (sequence == newest), log_offset, log_length), at)
        punch(fd, headers[0][1], headers[0][2])
        os.pwrite(fd, identifier(seed, "page 83").bytes_le, _page_83(fd, path))


def _header(raw: bytes, path: Path) -> tuple[int, int, int]:
    """Sequence number, log offset and log length of a header."""
    if len(raw) < _HEADER_BYTES:
        raise _Damaged(path)
    signature, _, sequence, _, _, log, _, _, length, offset = _HEADER.unpack_from(raw)
    if signature != b"head" or log != bytes(16):
        raise _Damaged(path)
    return sequence, offset, length


def _new_header(seed: str, sequence: int, log_offset: int, log_length: int) -> bytes:
    raw = _HEADER.pack(
        b"head", 0, sequence, identifier(seed, "file write").bytes_le, identifier(seed, "data write").bytes_le,
        bytes(16), 0, 1, log_length, log_offset,
    ).ljust(_HEADER_BYTES, b"\0")  # fmt: skip
    return raw[:_CHECKSUM_AT] + (crc32c(raw) ^ 0xFFFF_FFFF).to_bytes(4, "little") + raw[_CHECKSUM_AT + 4 :]


def _page_83(fd: int, path: Path) -> int:
    """Where in the file the disk's page 83 identifier is."""
    region: int
    offset: int
    for guid, region, _, _ in _entries(os.pread(fd, _TABLE_BYTES, _REGIONS), b"regi", 8, 16, _REGION):
        if guid == _METADATA:
            for item, offset, _, _, _ in _entries(os.pread(fd, _TABLE_BYTES, region), b"metadata", 10, 32, _ITEM):
                if item == _PAGE_83:
                    return region + offset
    raise _Damaged(path)


def _entries(raw: bytes, signature: bytes, count_at: int, at: int, entry: struct.Struct) -> Iterator[tuple[Any, ...]]:
    """The entries of a table, whose number is 16 bits at `count_at`."""
    if raw.startswith(signature):
        count = int.from_bytes(raw[count_at : count_at + 2], "little")
        yield from entry.iter_unpack(raw[at : at + count * entry.size])


class _Damaged(ImageError):
    def __init__(self, path: Path) -> None:
        super().__init__(f"{path.name} is no VHDX as qemu-img writes and closes it.")
