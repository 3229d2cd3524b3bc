"""qcow2 images, read and written natively: on all cores, and without encoding again what has not changed.

Format: QEMU's docs/interop/qcow2. This module knows what Flatcar publishes and what every reader takes: version 2
(`compat=0.10`), clusters of 64 KiB, 16-bit reference counts, compressed clusters as raw deflate with a 12-bit window,
no snapshots, no backing file. Offsets of the guest's disk are counted in clusters here; an *entry* is what the L2
table says of one such cluster, 0 for a cluster of zeros.
"""

from __future__ import annotations

import os
import struct
import sys
import zlib
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from baker.blocks import BLOCK, chunks, deflate, shrinks, side_by_side, used_blocks
from baker.errors import ImageError
from baker.sparse import clone

CLUSTER = BLOCK
_HEADER = struct.Struct(">4sIQIIQIIQQIIQ")
_MAGIC, _VERSION, _CLUSTER_BITS = b"QFI\xfb", 2, 16
_SECTOR = 512
_COPIED, _COMPRESSED = 1 << 63, 1 << 62
_OFFSET = 0x00FF_FFFF_FFFF_FE00
# A compressed cluster's entry: 54 bits of file offset, then 8 bits for the number of further sectors.
_SECTORS_AT = 62 - (_CLUSTER_BITS - 8)
_PER_TABLE = CLUSTER // 8
_PER_REFCOUNT_BLOCK = CLUSTER // 2
_LARGEST = 1 << 40  # bytes of a disk; above it the tables themselves would be a burden
_ZEROS = bytes(CLUSTER)
_WINDOW = -12  # raw deflate, as the format wants it
_PACK = 4 << 20  # bytes of compressed clusters that are written in one go, so that little of the last cluster is lost


@dataclass(frozen=True)
class Qcow2:
    """A qcow2 file: the size of its disk in bytes, and one entry for each cluster of it."""

    path: Path
    size: int
    entries: array[int]

    def unpack(self, target: Path, clusters: Sequence[range], jobs: int) -> None:
        """Write these clusters of the disk into the raw file `target`, which has its size and reads as zeros there.

        Raises ImageError when a cluster cannot be decompressed.
        """
        with self.path.open("rb") as source, target.open("r+b") as disk:

            def copy(chunk: Sequence[int]) -> None:
                for index in chunk:
                    data = self.cluster(source.fileno(), index)
                    if data != _ZEROS:
                        start = index * CLUSTER
                        os.pwrite(disk.fileno(), data[: self.size - start], start)

            used = [index for part in clusters for index in part if self.entries[index]]
            for _ in side_by_side(copy, chunks(used), jobs):
                pass

    def cluster(self, fd: int, index: int) -> bytes:
        """The content of one cluster, from the file's descriptor; always 64 KiB."""
        entry = self.entries[index]
        if not entry:
            return _ZEROS
        offset, length = _place(entry)
        stored = os.pread(fd, length, offset)
        if not entry & _COMPRESSED:
            return stored.ljust(CLUSTER, b"\0")
        try:
            data = zlib.decompressobj(_WINDOW).decompress(stored, CLUSTER)
        except zlib.error as error:
            raise ImageError(f"{self.path.name} is damaged: a cluster cannot be decompressed.", str(error)) from None
        if len(data) != CLUSTER:
            raise ImageError(f"{self.path.name} is damaged: a compressed cluster is too short.")
        return data


def read_qcow2(path: Path) -> Qcow2 | None:
    """Read the tables of a qcow2 file.

    None when it is not one, is damaged, or uses something that this module does not know; qemu-img can tell which.
    """
    with path.open("rb") as file:
        length = os.fstat(file.fileno()).st_size
        raw = file.read(_HEADER.size)
        if len(raw) < _HEADER.size:
            return None
        magic, version, backing, _, bits, size, crypt, l1_count, l1_at, _, _, snapshots, _ = _HEADER.unpack(raw)
        known = (magic, version, backing, bits, crypt, snapshots) == (_MAGIC, _VERSION, 0, _CLUSTER_BITS, 0, 0)
        count = -(-size // CLUSTER)
        if not known or size > _LARGEST or l1_count < -(-count // _PER_TABLE):
            return None
        entries: array[int] = array("Q")
        for entry in _read_table(file.fileno(), l1_at, -(-count // _PER_TABLE)):
            at = entry & _OFFSET
            table = _read_table(file.fileno(), at, _PER_TABLE) if at else array("Q", bytes(CLUSTER))
            if len(table) < _PER_TABLE:
                return None
            entries += table
        if len(entries) < count or any(entries[count:]):
            return None
        entries = entries[:count]
    return Qcow2(path, size, entries) if all(_is_sound(entry, length) for entry in entries if entry) else None


def write_qcow2(raw: Path, target: Path, jobs: int, base: Qcow2 | None = None, kept: Sequence[range] = ()) -> None:
    """Write a raw disk as the new qcow2 file `target`; equal input gives equal bytes, whatever `jobs` is.

    With `base` the new file begins as a copy of that one. Of the disk, the clusters `kept` are taken from `base`
    whatever `raw` has there; of the others, those with equal content stay as they are encoded in `base`.
    """
    size = raw.stat().st_size
    if base is not None:
        clone(base.path, target)
    with target.open("xb" if base is None else "r+b") as file, raw.open("rb") as disk:
        start = CLUSTER if base is None else _aligned(os.fstat(file.fileno()).st_size)
        writer = _Writer(file.fileno(), start, -(-size // CLUSTER))
        encoder = _Encoder(disk.fileno(), file.fileno(), size, base)
        if base is not None:
            for part in kept:
                writer.entries[part.start : part.stop] = base.entries[part.start : part.stop]
        for encoded in side_by_side(encoder.encode, chunks(used_blocks(disk.fileno(), kept)), jobs):
            for item in encoded:
                writer.put(item)
        writer.finish(size)


@dataclass(frozen=True)
class _Encoded:
    """One cluster for the new file: its data, compressed or not, or the entry that it keeps."""

    index: int
    data: bytes = b""
    compressed: bool = False
    entry: int = 0


class _Encoder:
    """Turns clusters of a raw disk into what the file is to hold. Safe to share between threads."""

    def __init__(self, disk: int, copy: int, size: int, base: Qcow2 | None) -> None:
        self._disk, self._copy, self._size, self._base = disk, copy, size, base

    def encode(self, chunk: Sequence[int]) -> list[_Encoded]:
        """Encode clusters that follow each other, in order; those of zeros are left out."""
        start = chunk[0] * CLUSTER
        data = os.pread(self._disk, min(len(chunk) * CLUSTER, self._size - start), start)
        encoded = []
        for number, index in enumerate(chunk):
            cluster = data[number * CLUSTER : (number + 1) * CLUSTER].ljust(CLUSTER, b"\0")
            if cluster != _ZEROS:
                encoded.append(self._cluster(index, cluster))
        return encoded

    def _cluster(self, index: int, data: bytes) -> _Encoded:
        base = self._base
        if base is not None and index < len(base.entries) and base.cluster(self._copy, index) == data:
            return _Encoded(index, entry=base.entries[index])
        if shrinks(data):
            compressed = deflate(data, _WINDOW)
            if len(compressed) < CLUSTER:
                return _Encoded(index, compressed, compressed=True)
        return _Encoded(index, data)


class _Writer:
    """Appends clusters to a file from `end` on, a multiple of the cluster size, then the tables that find them."""

    def __init__(self, fd: int, end: int, count: int) -> None:
        self._fd, self._end = fd, end
        self.entries: array[int] = array("Q", bytes(8 * count))
        self._pack: list[_Encoded] = []
        self._packed = 0

    def put(self, item: _Encoded) -> None:
        """Add one cluster of the disk."""
        if item.entry:
            self.entries[item.index] = item.entry
        elif not item.compressed:
            self.entries[item.index] = self._append(item.data)
        else:
            if self._packed + len(item.data) > _PACK:
                self._write_pack()
            self._pack.append(item)
            self._packed += len(item.data)

    def finish(self, size: int) -> None:
        """Write L2 tables, L1 table, reference counts and the header. Raises ImageError where a count overflows."""
        self._write_pack()
        counts = _references(self.entries)
        # The flag says that a cluster has one owner and may be written in place. Compressed ones never have it.
        for index, entry in enumerate(self.entries):
            if entry and not entry & _COMPRESSED:
                offset = entry & _OFFSET
                self.entries[index] = offset | (_COPIED if counts[offset // CLUSTER] == 1 else 0)
        l1: array[int] = array("Q")
        first_table = self._end
        for start in range(0, len(self.entries), _PER_TABLE):
            table = self.entries[start : start + _PER_TABLE]
            l1.append(self._append(_big_endian(table)) | _COPIED if any(table) else 0)
        l1_at = self._append(_big_endian(l1))
        refcounts_at, refcounts_length = self._write_refcounts(counts, first_table)
        os.ftruncate(self._fd, self._end)
        header = _HEADER.pack(
            _MAGIC, _VERSION, 0, 0, _CLUSTER_BITS, size, 0, len(l1), l1_at, refcounts_at, refcounts_length, 0, 0
        )
        _write(self._fd, header.ljust(CLUSTER, b"\0"), 0)

    def _write_refcounts(self, counts: dict[int, int], tables_from: int) -> tuple[int, int]:
        """Write the reference counts of all clusters; returns where their table is, and its length in clusters."""
        before = self._end // CLUSTER
        blocks, table_clusters = _refcount_space(before)
        total = before + blocks + table_clusters
        refcounts = array("H", bytes(2 * blocks * _PER_REFCOUNT_BLOCK))
        if counts and max(counts.values()) > 0xFFFF:
            raise ImageError("The qcow2 image refers to one cluster far too often.", "Use an image from the release.")
        for cluster, count in counts.items():
            refcounts[cluster] = count
        for cluster in (0, *range(tables_from // CLUSTER, total)):
            refcounts[cluster] = 1
        start = self._append(_big_endian(refcounts))
        table = array("Q", range(start, start + blocks * CLUSTER, CLUSTER))
        return self._append(_big_endian(table)), table_clusters

    def _write_pack(self) -> None:
        offset = self._end
        for item in self._pack:
            further = (offset + len(item.data) - 1) // _SECTOR - offset // _SECTOR
            self.entries[item.index] = _COMPRESSED | further << _SECTORS_AT | offset
            offset += len(item.data)
        self._append(b"".join(item.data for item in self._pack))
        self._pack.clear()
        self._packed = 0

    def _append(self, data: bytes) -> int:
        """Write at the end, filled up to whole clusters; returns where."""
        at = self._end
        self._end = _aligned(at + len(data))
        _write(self._fd, data.ljust(self._end - at, b"\0"), at)
        return at


def _place(entry: int) -> tuple[int, int]:
    """Offset and greatest length in the file of what an entry refers to."""
    if not entry & _COMPRESSED:
        return entry & _OFFSET, CLUSTER
    offset = entry & ((1 << _SECTORS_AT) - 1)
    sectors = (entry >> _SECTORS_AT & 0xFF) + 1
    return offset, sectors * _SECTOR - offset % _SECTOR


def _is_sound(entry: int, file_size: int) -> bool:
    """Whether an entry points into the file; a compressed cluster's last sector may be cut off by its end."""
    offset, length = _place(entry)
    if entry & _COMPRESSED:
        return offset >= CLUSTER and offset + length < file_size + _SECTOR
    return not entry & ~(_OFFSET | _COPIED) and offset % CLUSTER == 0 and CLUSTER <= offset < file_size


def _references(entries: Iterable[int]) -> dict[int, int]:
    """How often each cluster of the file is used. Compressed ones count for every cluster that their sectors touch."""
    counts: dict[int, int] = {}
    for entry in filter(None, entries):
        offset, length = _place(entry)
        for cluster in range(offset // CLUSTER, (offset + length - 1) // CLUSTER + 1):
            counts[cluster] = counts.get(cluster, 0) + 1
    return counts


def _refcount_space(clusters: int) -> tuple[int, int]:
    """Refcount blocks, and clusters of their table, for a file of so many clusters and for themselves."""
    blocks = table = 1
    while blocks * _PER_REFCOUNT_BLOCK < clusters + blocks + table or table * _PER_TABLE < blocks:
        blocks = -(-(clusters + blocks + table) // _PER_REFCOUNT_BLOCK)
        table = -(-blocks // _PER_TABLE)
    return blocks, table


def _aligned(offset: int) -> int:
    return -(-offset // CLUSTER) * CLUSTER


def _read_table(fd: int, offset: int, count: int) -> array[int]:
    """A table of 64-bit numbers; shorter where the file ends."""
    raw = os.pread(fd, count * 8, offset) if offset < 1 << 63 else b""
    table: array[int] = array("Q", raw[: len(raw) - len(raw) % 8])
    if sys.byteorder == "little":
        table.byteswap()
    return table


def _big_endian(table: array[int]) -> bytes:
    copy = table[:]
    if sys.byteorder == "little":
        copy.byteswap()
    return copy.tobytes()


def _write(fd: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        count = os.pwrite(fd, view, offset)
        view, offset = view[count:], offset + count
