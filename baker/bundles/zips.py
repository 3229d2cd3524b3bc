"""Zip files (PKWARE's APPNOTE) with members that are compressed on all cores; equal content gives equal bytes.

Python's zipfile compresses on one core and cannot take what is compressed already; it reads what we write.
"""

from __future__ import annotations

import struct
import time
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from baker.bundles.deflate import Deflated, prove_deflate, write_deflate
from baker.bundles.pieces import Member, counted
from baker.bundles.proof import proving
from baker.console import Bar

_LOCAL = struct.Struct("<4s5H3I2H")
_CENTRAL = struct.Struct("<4s6H3I5H2I")
_END = struct.Struct("<4s4H2IH")
_END_64 = struct.Struct("<4sQ2H2I4Q")
_LOCATOR_64 = struct.Struct("<4sIQI")
_DEFLATE = 8
_UNIX = 3 << 8  # made by: what the attributes mean
_FILL_16, _FILL_32 = 0xFFFF, 0xFFFFFFFF  # the true value is in a zip64 record
_REGULAR = 0o100000


@dataclass(frozen=True)
class _Entry:
    """A member as it was written at `offset`; `wide` when its sizes are in zip64 fields."""

    member: Member
    offset: int
    wide: bool
    done: Deflated


def make_zip(target: Path, members: Sequence[Member], jobs: int, epoch: int, bar: Bar) -> None:
    """Write the new file `target` and read it back. Members get the time `epoch`, in UTC, and their modes.

    Raises ImageError when what is read back is not what was packed.
    """
    stamp = _dos_time(epoch)
    with target.open("xb") as file:
        entries = [_write_member(file, member, stamp, jobs, bar) for member in members]
        start = file.tell()
        for entry in entries:
            file.write(_central(entry, stamp))
        file.write(_end(len(entries), start, file.tell() - start))
    with proving(target), zipfile.ZipFile(target) as archive, target.open("rb") as file:
        for entry, info in zip(entries, archive.infolist(), strict=True):
            _prove_member(file, entry, info, jobs)


def _prove_member(file: IO[bytes], entry: _Entry, info: zipfile.ZipInfo, jobs: int) -> None:
    """ValueError or zlib.error unless the directory and the data are as they should be."""
    member, done = entry.member, entry.done
    said = info.filename, info.header_offset, info.file_size, info.compress_size, info.CRC
    if said != (member.name, entry.offset, member.size, done.packed, done.crc):
        raise ValueError(f"its directory is wrong about {member.name}")
    file.seek(entry.offset)
    header = _local(entry, (0, 0))
    found = file.read(len(header))
    if (found[:10], found[14:]) != (header[:10], header[14:]):  # all but the time
        raise ValueError(f"the header of {member.name} is wrong")
    prove_deflate(file, done, member.pieces(), jobs)


def _write_member(file: IO[bytes], member: Member, stamp: tuple[int, int], jobs: int, bar: Bar) -> _Entry:
    # The sizes are known afterwards, but whether they need 64 bits must be before. Deflate may add a little.
    wide = member.size + (member.size >> 10) + 1024 > _FILL_32
    offset = file.tell()
    file.write(_local(_Entry(member, offset, wide, Deflated()), stamp))
    done = write_deflate(file, counted(member.pieces(), bar), jobs)
    end = file.tell()
    entry = _Entry(member, offset, wide, done)
    file.seek(offset)
    file.write(_local(entry, stamp))
    file.seek(end)
    return entry


def _local(entry: _Entry, stamp: tuple[int, int]) -> bytes:
    """The header before a member's data; of the same length whatever the sizes are."""
    name, done = entry.member.name.encode(), entry.done
    extra = struct.pack("<2H2Q", 1, 16, done.size, done.packed) if entry.wide else b""
    packed, size = (_FILL_32, _FILL_32) if entry.wide else (done.packed, done.size)
    return _LOCAL.pack(
        b"PK\3\4", 45 if entry.wide else 20, _flags(name), _DEFLATE, *stamp, done.crc, packed, size, len(name),
        len(extra),
    ) + name + extra  # fmt: skip


def _central(entry: _Entry, stamp: tuple[int, int]) -> bytes:
    """A member's record in the directory at the end."""
    name, done = entry.member.name.encode(), entry.done
    values = [done.size, done.packed] if entry.wide else []
    if far := entry.offset >= _FILL_32:
        values.append(entry.offset)
    extra = struct.pack(f"<2H{len(values)}Q", 1, 8 * len(values), *values) if values else b""
    version = 45 if values else 20
    packed, size = (_FILL_32, _FILL_32) if entry.wide else (done.packed, done.size)
    attributes = (_REGULAR | entry.member.mode) << 16
    return _CENTRAL.pack(
        b"PK\1\2", _UNIX | version, version, _flags(name), _DEFLATE, *stamp, done.crc, packed, size, len(name),
        len(extra), 0, 0, 0, attributes, _FILL_32 if far else entry.offset,
    ) + name + extra  # fmt: skip


def _end(count: int, start: int, length: int) -> bytes:
    """What ends the file: where the directory of `length` bytes starts."""
    wide = b""
    if start >= _FILL_32:
        wide = _END_64.pack(b"PK\6\6", 44, _UNIX | 45, 45, 0, 0, count, count, length, start)
        wide += _LOCATOR_64.pack(b"PK\6\7", 0, start + length, 1)
    return wide + _END.pack(b"PK\5\6", 0, 0, count, count, length, min(start, _FILL_32), 0)


def _flags(name: bytes) -> int:
    return 0 if name.isascii() else 1 << 11  # the name is UTF-8


def _dos_time(epoch: int) -> tuple[int, int]:
    """Time and date as DOS had them: two seconds' steps from 1980 to 2107."""
    first, last = 315532800, 4354819198
    at = time.gmtime(min(max(epoch, first), last))
    return (
        at.tm_hour << 11 | at.tm_min << 5 | at.tm_sec // 2,
        at.tm_year - 1980 << 9 | at.tm_mon << 5 | at.tm_mday,
    )
