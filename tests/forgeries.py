"""Images that no tool makes: changed behind all tools' backs, with checksums that fit."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from pathlib import Path

from disks import DISK_BYTES, SECTOR


def crc32c(data: bytes) -> int:
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def rename(oem: Path, old: bytes, new: bytes) -> None:
    """Change a name in every tree block of a btrfs, behind all tools' backs, and make the checksums right again."""
    assert len(old) == len(new)
    raw = bytearray(oem.read_bytes())
    fsid = bytes(raw[0x10020:0x10030])
    for start in range(0, len(raw), 4096):
        block = raw[start : start + 4096]
        if old in block and block[0x20:0x30] == fsid:
            block = block.replace(old, new)
            block[:4] = crc32c(block[32:]).to_bytes(4, "little")
            raw[start : start + 4096] = block
    oem.write_bytes(raw)


def patch(image: Path, at: int, data: bytes) -> None:
    """Overwrite bytes of a file."""
    with image.open("r+b") as file:
        file.seek(at)
        file.write(data)


def rewrite_table(image: Path, change: Callable[[bytearray, bytearray], None]) -> None:
    """Change headers and entries of both copies of a table; `change` gets both. Checksums are made right again."""
    for header_at in (SECTOR, DISK_BYTES["old"] - SECTOR):
        with image.open("r+b") as file:
            file.seek(header_at)
            header = bytearray(file.read(92))
            at = struct.unpack_from("<Q", header, 72)[0] * SECTOR
            file.seek(at)
            entries = bytearray(file.read(128 * 128))
            change(header, entries)
            file.seek(at)
            file.write(entries)
            struct.pack_into("<I", header, 88, zlib.crc32(entries))
            struct.pack_into("<I", header, 16, 0)
            struct.pack_into("<I", header, 16, zlib.crc32(header))
            file.seek(header_at)
            file.write(header)
