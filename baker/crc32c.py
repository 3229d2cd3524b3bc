"""CRC-32C, which btrfs uses for everything: the processor's own instruction, through google-crc32c."""

from __future__ import annotations

import google_crc32c

START = 0xFFFF_FFFF


def crc32c(data: bytes, start: int = START) -> int:
    """The checksum of `data` without the inversions that the standard puts before and after."""
    checksum: int = google_crc32c.extend(start ^ START, data)
    return checksum ^ START


def crc32c_blocks(data: bytes, block: int) -> bytes:
    """The standard checksums of consecutive blocks of `block` bytes, four little-endian bytes for each."""
    return b"".join(
        google_crc32c.value(data[at : at + block]).to_bytes(4, "little") for at in range(0, len(data), block)
    )
