"""Deflate on all cores, and the gzip file around it (RFC 1951, RFC 1952).

Every piece is compressed for itself and ends on a byte boundary (zlib's full flush), so the pieces side by side are
one ordinary deflate stream, and are read back side by side as well. The bytes depend on the content and on zlib,
never on the number of threads.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import IO

from baker.blocks import side_by_side
from baker.bundles.pieces import zeros

_LEVEL = 6
_END = b"\x03\x00"  # an empty last block
_POLYNOMIAL = 0xEDB88320  # of CRC-32, lowest bit first
_GZIP_HEADER = b"\x1f\x8b\x08\0" + bytes(4) + b"\0\xff"  # no name, no time, no system: equal content, equal bytes


@dataclass(frozen=True)
class Deflated:
    """What went into a deflate stream (bytes and CRC-32), the length of what came out, and of each piece's part."""

    size: int = 0
    crc: int = 0
    packed: int = 0
    parts: tuple[int, ...] = ()


def write_deflate(target: IO[bytes], pieces: Iterable[bytes], jobs: int) -> Deflated:
    """Write the pieces as one raw deflate stream."""
    size = crc = 0
    parts = []
    for part, length, piece_crc in side_by_side(_deflate, pieces, jobs):
        target.write(part)
        parts.append(len(part))
        size, crc = size + length, combine(crc, piece_crc, length)
    target.write(_END)
    return Deflated(size, crc, sum(parts) + len(_END), tuple(parts))


def prove_deflate(file: IO[bytes], done: Deflated, pieces: Iterable[bytes], jobs: int) -> None:
    """Read a stream back from where `file` stands; ValueError or zlib.error unless it holds these pieces.

    No part refers to what is before it, so if each of them alone unpacks to its piece, all together do so too.
    """
    parts = ((piece, file.read(length)) for piece, length in zip(pieces, done.parts, strict=True))
    size = crc = 0
    for length, piece_crc in side_by_side(_inflate, parts, jobs):
        size, crc = size + length, combine(crc, piece_crc, length)
    if file.read(len(_END)) != _END or (size, crc) != (done.size, done.crc):
        raise ValueError("its check sum is wrong")


def write_gzip(target: IO[bytes], pieces: Iterable[bytes], jobs: int) -> Deflated:
    """Write the pieces as a gzip file of one member."""
    target.write(_GZIP_HEADER)
    done = write_deflate(target, pieces, jobs)
    target.write(_gzip_trailer(done))
    return done


def prove_gzip(file: IO[bytes], done: Deflated, pieces: Iterable[bytes], jobs: int) -> None:
    """Read a whole gzip file back; ValueError or zlib.error unless it holds these pieces and nothing else."""
    if file.read(len(_GZIP_HEADER)) != _GZIP_HEADER:
        raise ValueError("it is no gzip file")
    prove_deflate(file, done, pieces, jobs)
    if file.read() != _gzip_trailer(done):
        raise ValueError("it does not end as it should")


def _gzip_trailer(done: Deflated) -> bytes:
    return struct.pack("<II", done.crc, done.size & 0xFFFFFFFF)


def _deflate(piece: bytes) -> tuple[bytes, int, int]:
    """A piece compressed, its length, and its CRC-32."""
    return _deflated_zeros(len(piece)) if piece is zeros(len(piece)) else _deflated(piece)


@cache
def _deflated_zeros(size: int) -> tuple[bytes, int, int]:
    return _deflated(zeros(size))


def _deflated(piece: bytes) -> tuple[bytes, int, int]:
    engine = zlib.compressobj(_LEVEL, zlib.DEFLATED, -15)
    return engine.compress(piece) + engine.flush(zlib.Z_FULL_FLUSH), len(piece), zlib.crc32(piece)


def _inflate(work: tuple[bytes, bytes]) -> tuple[int, int]:
    """Length and CRC-32 of a piece, when its part unpacks to it."""
    piece, part = work
    return _inflated_zeros(len(piece), part) if piece is zeros(len(piece)) else _inflated(piece, part)


@lru_cache(16)
def _inflated_zeros(size: int, part: bytes) -> tuple[int, int]:
    return _inflated(zeros(size), part)


def _inflated(piece: bytes, part: bytes) -> tuple[int, int]:
    engine = zlib.decompressobj(-15)
    # Only between two blocks can the last one follow.
    found = engine.decompress(part + _END, len(piece) + 1)
    if found != piece or not engine.eof or engine.unused_data:
        raise ValueError("it unpacks to something else")
    return len(found), zlib.crc32(found)


def combine(first: int, second: int, length: int) -> int:
    """The CRC-32 of two byte strings side by side, of which the second has `length` bytes.

    To go past a zero bit is to multiply by x, so the first one's is multiplied by x^(8 length), all modulo CRC-32's
    polynomial.
    """
    return _multiply(first, _x_power(8 * length)) ^ second


def _multiply(a: int, b: int) -> int:
    """The product of two polynomials; the highest bit of 32 is x^0, as CRC-32 has it."""
    product = 0
    for bit in range(31, -1, -1):
        if a >> bit & 1:
            product ^= b
        b = b >> 1 ^ (_POLYNOMIAL if b & 1 else 0)
    return product


@cache
def _x_power(exponent: int) -> int:
    result, power = 1 << 31, 1 << 30  # x^0, x^1
    while exponent:
        if exponent & 1:
            result = _multiply(result, power)
        power = _multiply(power, power)
        exponent >>= 1
    return result
