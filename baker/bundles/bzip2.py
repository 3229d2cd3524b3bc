"""Bzip2 on all cores, as one stream that every reader takes, with equal bytes wherever it is made.

Not every reader goes on after the first of several streams, so ours is a single one. libbz2 compresses each piece to a
stream of one block; here the blocks are taken out of their streams, which is a matter of bits, and put side by side.
To read them back, each is made a stream again.
Format: bits, highest first. "BZh9"; blocks that start with 0x314159265359 and the CRC of their content; then
0x177245385090, the CRC of all blocks, and zeros up to the next byte.
"""

from __future__ import annotations

import bz2
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache, lru_cache
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


def write_bzip2(target: IO[bytes], pieces: Iterable[bytes], jobs: int) -> tuple[int, ...]:
    """Write pieces of at most `PIECE` bytes as a bzip2 file; returns how many bits the block of each has."""
    target.write(_HEADER)
    lengths = []
    rest, count, crc = 0, 0, 0  # `count` bits that do not fill a byte yet
    for block in side_by_side(_compress, pieces, jobs):
        lengths.append(block.length)
        crc = _combine(crc, block.crc)
        rest, count = rest << block.length | block.bits, count + block.length
        target.write((rest >> count % 8).to_bytes(count // 8, "big"))
        rest, count = rest & (1 << count % 8) - 1, count % 8
    target.write(_to_bytes((rest << 48 | _END) << 32 | crc, count + _TRAILER))
    return tuple(lengths)


def prove_bzip2(file: IO[bytes], lengths: Iterable[int], pieces: Iterable[bytes], jobs: int) -> None:
    """Read a whole file back; ValueError or OSError unless it holds these pieces, in blocks of these lengths."""
    if file.read(len(_HEADER)) != _HEADER:
        raise ValueError("it is no bzip2 file")
    rest, count = 0, 0

    def blocks() -> Iterator[tuple[bytes, int, int]]:
        nonlocal rest, count
        for piece, length in zip(pieces, lengths, strict=True):
            more = -(-(length - count) // 8)
            rest, count = rest << 8 * more | int.from_bytes(file.read(more), "big"), count + 8 * more - length
            yield piece, rest >> count, length
            rest &= (1 << count) - 1

    crc = 0
    for block_crc in side_by_side(_decompress, blocks(), jobs):
        crc = _combine(crc, block_crc)
    # Of the trailer `count` bits are read already.
    end = _END << 32 | crc
    if rest != end >> _TRAILER - count or file.read() != _to_bytes(
        end & (1 << _TRAILER - count) - 1, _TRAILER - count
    ):
        raise ValueError("it does not end as it should")


def _combine(stream: int, block: int) -> int:
    """The CRC of a stream that goes on with a block."""
    return ((stream << 1 | stream >> 31) & _MASK) ^ block


def _to_bytes(bits: int, count: int) -> bytes:
    """Bits as bytes, with zeros behind them."""
    padding = -count % 8
    return (bits << padding).to_bytes((count + padding) // 8, "big")


def _compress(piece: bytes) -> _Block:
    return _zero_block(len(piece)) if piece is zeros(len(piece)) else _single_block(bz2.compress(piece, 9))


@cache
def _zero_block(size: int) -> _Block:
    return _single_block(bz2.compress(zeros(size), 9))


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


def _decompress(work: tuple[bytes, int, int]) -> int:
    """The CRC of a block, when it unpacks to its piece."""
    piece, bits, length = work
    return _unpacked_zeros(len(piece), bits, length) if piece is zeros(len(piece)) else _unpacked(piece, bits, length)


@lru_cache(16)
def _unpacked_zeros(size: int, bits: int, length: int) -> int:
    return _unpacked(zeros(size), bits, length)


def _unpacked(piece: bytes, bits: int, length: int) -> int:
    crc = bits >> length - 80 & _MASK
    stream = _HEADER + _to_bytes((bits << 48 | _END) << 32 | crc, length + _TRAILER)
    decoder = bz2.BZ2Decompressor()
    if decoder.decompress(stream, len(piece) + 1) != piece or not decoder.eof or decoder.unused_data:
        raise ValueError("it unpacks to something else")
    return crc
