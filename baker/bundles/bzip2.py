"""Bzip2 on all cores, as one stream that every reader takes, with equal bytes wherever it is made.

Not every reader goes on after the first of several streams, so ours is a single one. libbz2 compresses each piece to a
stream of one block; here the blocks are taken out of their streams, which is a matter of bits, and put side by side.
Format: bits, highest first. "BZh9"; blocks that start with 0x314159265359 and the CRC of their content; then
0x177245385090, the CRC of all blocks, and zeros up to the next byte.
"""

from __future__ import annotations

import bz2
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import IO

from baker.blocks import side_by_side
from baker.bundles.pieces import zeros

PIECE = 700 << 10
"""A block holds 899981 bytes, after runs of four equal bytes have become five; so this is surely one block."""

_HEADER = b"BZh9"
_BLOCK, _END = 0x314159265359, 0x177245385090
_MASK = 0xFFFFFFFF
_TRAILER = 48 + 32  # bits


@dataclass(frozen=True)
class _Block:
    """A compressed block: its bits as a number, how many they are, and the CRC of its content."""

    bits: int
    length: int
    crc: int


def write_bzip2(target: IO[bytes], pieces: Iterable[bytes], jobs: int) -> None:
    """Write pieces of at most `PIECE` bytes as a bzip2 file."""
    target.write(_HEADER)
    rest, count, crc = 0, 0, 0  # `count` bits that do not fill a byte yet
    for block in side_by_side(_compress, pieces, jobs):
        crc = ((crc << 1 | crc >> 31) & _MASK) ^ block.crc
        rest, count = rest << block.length | block.bits, count + block.length
        target.write((rest >> count % 8).to_bytes(count // 8, "big"))
        rest, count = rest & (1 << count % 8) - 1, count % 8
    rest, count = (rest << 48 | _END) << 32 | crc, count + _TRAILER
    padding = -count % 8
    target.write((rest << padding).to_bytes((count + padding) // 8, "big"))


def _compress(piece: bytes) -> _Block:
    return _zero_block(len(piece)) if piece is zeros(len(piece)) else _single_block(bz2.compress(piece, 9))


@cache
def _zero_block(size: int) -> _Block:
    return _single_block(bz2.compress(bytes(size), 9))


def _single_block(stream: bytes) -> _Block:
    """The block of a stream that has exactly one."""
    content = stream[len(_HEADER) :]
    number = int.from_bytes(content, "big")
    crc = int.from_bytes(content[6:10], "big")
    # With a single block its CRC is that of the stream too, which tells where the trailer ends among the last bits.
    trailer = _END << 32 | crc
    tail = int.from_bytes(content[-11:], "big")
    padding = next(bits for bits in range(8) if tail >> bits & (1 << _TRAILER) - 1 == trailer)
    assert int.from_bytes(content[:6], "big") == _BLOCK
    return _Block(number >> padding + _TRAILER, 8 * len(content) - padding - _TRAILER, crc)
