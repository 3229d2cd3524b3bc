"""CRC-32C, which btrfs uses for everything, in plain Python and still fast: many blocks advance side by side."""

from __future__ import annotations

from functools import cache

_POLYNOMIAL = 0x82F63B78
START = 0xFFFF_FFFF
_FEW = 12  # blocks; below, a loop over bytes is faster


@cache
def _table() -> list[int]:
    table = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (_POLYNOMIAL if value & 1 else 0)
        table.append(value)
    return table


@cache
def _planes() -> tuple[bytes, ...]:
    """The table's four bytes, lowest first, each as a table of its own."""
    return tuple(bytes(value >> shift & 0xFF for value in _table()) for shift in (0, 8, 16, 24))


def crc32c(data: bytes, start: int = START) -> int:
    """The checksum of a few bytes, without the inversion at the end that the standard adds."""
    table, crc = _table(), start
    for byte in data:
        crc = crc >> 8 ^ table[crc & 0xFF ^ byte]
    return crc


def crc32c_blocks(data: bytes, block: int) -> bytes:
    """The standard checksums of consecutive blocks of `block` bytes, four little-endian bytes for each.

    All blocks advance by one byte at a time: a column of bytes goes through the tables by `bytes.translate`, and the
    states of all blocks are one long number, the lowest bytes of all first. That is some fifty times faster than a
    loop over bytes.
    """
    count = len(data) // block
    if count < _FEW:
        plain = (crc32c(data[at : at + block]) ^ START for at in range(0, count * block, block))
        return b"".join(value.to_bytes(4, "little") for value in plain)
    tables, plane = _planes(), 8 * count
    state = (1 << 4 * plane) - 1
    lowest = (1 << plane) - 1
    for column in range(block):
        index = (state & lowest ^ int.from_bytes(data[column::block], "little")).to_bytes(count, "little")
        steps = b"".join([index.translate(table) for table in tables])
        state = state >> plane ^ int.from_bytes(steps, "little")
    ends = (state ^ (1 << 4 * plane) - 1).to_bytes(4 * count, "little")
    sums = bytearray(4 * count)
    for number in range(4):
        sums[number::4] = ends[number * count : (number + 1) * count]
    return bytes(sums)
