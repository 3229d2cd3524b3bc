"""Images that no tool makes: changed behind all tools' backs, with checksums that fit."""

from __future__ import annotations

from pathlib import Path


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
