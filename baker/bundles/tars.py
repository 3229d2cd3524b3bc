"""Tar archives as streams of pieces, ready to be compressed: ordinary ones, and GNU's sparse one for GCE.

All members belong to root and have one time, so equal content gives equal bytes.
"""

from __future__ import annotations

import os
import struct
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from baker import stopping
from baker.bundles.pieces import PIECE, Member
from baker.sparse import BLOCK, data_extents

USTAR_LARGEST = 8**11 - 1
"""The most bytes that the eleven octal digits of ustar's size field can tell."""

_TAR_BLOCK = 512
_RECORD = 20 * _TAR_BLOCK  # archives end at a multiple of this, as tar(1) has always written them
_ZEROS = bytes(BLOCK)


def tar_pieces(
    members: Iterable[Member], epoch: int, format: Literal[0, 1, 2] = tarfile.GNU_FORMAT
) -> Iterator[bytes]:
    """A whole archive; `format` is one of tarfile's. With USTAR_FORMAT no member may exceed `USTAR_LARGEST`."""
    written = 0
    for member in members:
        header = _info(member.name, member.size, member.mode, epoch).tobuf(format)
        yield header
        yield from member.pieces()
        yield bytes(-member.size % _TAR_BLOCK)
        written += len(header) + member.size + -member.size % _TAR_BLOCK
    yield _end(written)


def _info(name: str, size: int, mode: int, epoch: int) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.size, info.mode, info.mtime = size, mode, epoch
    info.uname = info.gname = "root"
    return info


def _end(written: int) -> bytes:
    """Two blocks of zeros, and more up to the end of the record."""
    return bytes(2 * _TAR_BLOCK + -(written + 2 * _TAR_BLOCK) % _RECORD)


@dataclass(frozen=True)
class Run:
    """A stretch of a file that is not all zeros; bytes."""

    offset: int
    length: int


def sparse_tar_pieces(name: str, file: Path, epoch: int) -> Iterator[bytes]:
    """An archive in GNU's old format (`tar --format=oldgnu --sparse`) with one file and without its zeros.

    What counts as a hole is told by content, not by the filesystem: it is an aligned 64 KiB of zeros.
    """
    runs = data_runs(file)
    size = file.stat().st_size
    stored = sum(run.length for run in runs)
    head = _sparse_header(name, size, stored, epoch, runs)
    yield head
    with file.open("rb") as source:
        for run in runs:
            for begin in range(run.offset, run.offset + run.length, PIECE):
                yield os.pread(source.fileno(), min(PIECE, run.offset + run.length - begin), begin)
    yield bytes(-stored % _TAR_BLOCK)
    yield _end(len(head) + stored + -stored % _TAR_BLOCK)


def data_runs(file: Path) -> Sequence[Run]:
    """Where a file has data, in aligned blocks of 64 KiB that are not all zeros, joined where they touch."""
    runs: list[Run] = []
    with file.open("rb") as source:
        size = os.fstat(source.fileno()).st_size
        done = 0
        for begin, length in data_extents(source.fileno()):
            for position in range(max(done, begin - begin % BLOCK), begin + length, BLOCK):
                stopping.check()
                block = os.pread(source.fileno(), min(BLOCK, size - position), position)
                if block == _ZEROS[: len(block)]:
                    continue
                if runs and runs[-1].offset + runs[-1].length == position:
                    runs[-1] = Run(runs[-1].offset, runs[-1].length + len(block))
                else:
                    runs.append(Run(position, len(block)))
            done = -(-(begin + length) // BLOCK) * BLOCK
    return runs


_MAP_AT, _MAP_ENTRIES, _MORE_AT, _SIZE_AT = 386, 4, 482, 483
_FURTHER_ENTRIES, _FURTHER_MORE_AT = 21, 504


def _sparse_header(name: str, size: int, stored: int, epoch: int, runs: Sequence[Run]) -> bytes:
    """The header of type S, and as many blocks as its map needs. Layout: "Basic Tar Format" in the manual of GNU tar.

    `size` is the file's own, `stored` the bytes of its runs.
    """
    info = _info(name, stored, 0o644, epoch)
    info.type = tarfile.GNUTYPE_SPARSE
    header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    # As GNU tar does: an empty run at the end stands for a hole there.
    ends_in_hole = not runs or runs[-1].offset + runs[-1].length < size
    entries = [*runs, Run(size, 0)] if ends_in_hole else list(runs)
    _put_map(header, _MAP_AT, entries[:_MAP_ENTRIES])
    rest = entries[_MAP_ENTRIES:]
    header[_MORE_AT] = bool(rest)
    struct.pack_into("12s", header, _SIZE_AT, _number(size))
    checksum = sum(header) - sum(header[148:156]) + 8 * ord(" ")
    struct.pack_into("8s", header, 148, b"%06o\0 " % checksum)
    blocks = [bytes(header)]
    while rest:
        block = bytearray(_TAR_BLOCK)
        _put_map(block, 0, rest[:_FURTHER_ENTRIES])
        rest = rest[_FURTHER_ENTRIES:]
        block[_FURTHER_MORE_AT] = bool(rest)
        blocks.append(bytes(block))
    return b"".join(blocks)


def _put_map(block: bytearray, at: int, runs: Sequence[Run]) -> None:
    for number, run in enumerate(runs):
        struct.pack_into("12s12s", block, at + 24 * number, _number(run.offset), _number(run.length))


def _number(value: int) -> bytes:
    """A field of 12 bytes: octal digits, or from 8 GiB on GNU's binary form, which has the highest bit set."""
    return b"%011o\0" % value if value <= USTAR_LARGEST else (1 << 95 | value).to_bytes(12, "big")
