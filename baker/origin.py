"""Baking into a qcow2 image without unpacking it: only what a bake can change becomes a raw disk.

All a bake edits is ROOT, OEM and the partition table. The rest, /usr above all, is nine tenths of an image's data, and
stays in the new file as it is encoded in the old one.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from baker.errors import ImageError
from baker.gpt import DiskTable, read_gpt
from baker.model import Partition
from baker.qcow2 import CLUSTER, Qcow2, read_qcow2
from baker.run import Bounds, CommandFailed, run
from baker.sparse import copy_extents

_EDITED = ("ROOT", "OEM")
_TABLE_CLUSTERS = 16  # at both ends of a disk; Flatcar's table is in the first and the last 17 KiB
_CHUNK = 1 << 20


@dataclass(frozen=True)
class Origin:
    """A qcow2 image, and the clusters of its disk that were not unpacked and must stay as they are."""

    image: Qcow2
    kept: tuple[range, ...]

    def unpack_partition(self, partition: Partition, target: Path, jobs: int) -> None:
        """Make `target` a sparse raw disk that has the content of one partition at its place, whoever edits it."""
        _blank(target, self.image.size)
        clusters = range(partition.offset // CLUSTER, -(-(partition.offset + partition.size) // CLUSTER))
        self.image.unpack(target, [clusters], jobs)


def unpack_edited(source: Path, target: Path, jobs: int) -> Origin | None:
    """Make `target` a sparse raw disk with all of `source` but the partitions that no bake edits, which read as zeros.

    None, with no file made, when `source` is not a qcow2 of the plain kind that can be edited in place. Raises
    ImageError when it is damaged or has no sound GPT.
    """
    image = read_qcow2(source)
    if image is None:
        return None
    check_qcow2(source)
    _blank(target, image.size)
    count = len(image.entries)
    ends = [range(min(_TABLE_CLUSTERS, count)), range(max(0, count - _TABLE_CLUSTERS), count)]
    image.unpack(target, ends, jobs)
    kept = tuple(_unedited(read_gpt(target)))
    image.unpack(target, list(_gaps(kept, count)), jobs)
    return Origin(image, kept)


def encoded_stage(encoded: Path, table: DiskTable) -> Origin:
    """The origin of vendors' images that differ in OEM partition and partition table alone: one disk, as qcow2."""
    image = read_qcow2(encoded)
    assert image is not None, "made by write_qcow2"
    oem, count = table.get("OEM"), len(image.entries)
    edited = (
        range(_TABLE_CLUSTERS),
        range(oem.offset // CLUSTER, -(-(oem.offset + oem.size) // CLUSTER)),
        range(max(0, count - _TABLE_CLUSTERS), count),
    )
    return Origin(image, tuple(_gaps(edited, count)))


def copy_edited(source: Path, target: Path, origin: Origin) -> None:
    """Copy of a raw disk what `origin` does not keep to the new sparse file `target` of its size."""
    size = source.stat().st_size
    _blank(target, size)
    with source.open("rb") as old, target.open("r+b") as new:
        for part in _gaps(origin.kept, -(-size // CLUSTER)):
            start, end = part.start * CLUSTER, min(part.stop * CLUSTER, size)
            copy_extents(old.fileno(), new.fileno(), start, start, end - start)


def check_qcow2(path: Path) -> None:
    """Ask qemu-img whether an image is consistent; what a truncated one lacks reads as zeros without any error."""
    try:
        run(["qemu-img", "check", "-q", "-f", "qcow2", path], ok=(0, 3), bounds=Bounds())  # 3: space is wasted
    except CommandFailed as error:
        raise ImageError(f"{path.name} is damaged: qemu-img finds errors in it.", "Get it again.") from error


def prove_edited(raw: Path, target: Path, origin: Origin) -> None:
    """Prove that `target` holds the parts of `raw` that were unpacked, and all else of the origin, byte by byte.

    What was unpacked is read by qemu-img. The rest is in place when its entries and the file's bytes are those of the
    origin. Raises ImageError otherwise; format, size and consistency are the caller's to check.
    """
    made = read_qcow2(target)
    if made is None or any(
        made.entries[part.start : part.stop] != origin.image.entries[part.start : part.stop] for part in origin.kept
    ):
        raise ImageError(f"{target.name} does not refer to the data of {origin.image.path.name} as it should.")
    parts = list(_gaps(origin.kept, len(made.entries)))
    with ThreadPoolExecutor(2) as pool:
        copied = pool.submit(_same_data, origin.image.path, target)
        for part in parts:
            start, end = part.start * CLUSTER, min(part.stop * CLUSTER, made.size)
            _compare(raw, target, start, end - start)
        if not copied.result():
            raise ImageError(f"{target.name} does not hold the data of {origin.image.path.name}.")


def _compare(raw: Path, target: Path, offset: int, size: int) -> None:
    files = ({"driver": driver, "file": {"driver": "file", "filename": str(path)}} for driver, path in (
        ("raw", raw), ("qcow2", target)
    ))  # fmt: skip
    windows = (json.dumps({"driver": "raw", "offset": offset, "size": size, "file": file}) for file in files)
    try:
        run(["qemu-img", "compare", *(f"json:{window}" for window in windows)])
    except CommandFailed as error:
        raise ImageError(f"{target.name} does not hold the disk it was made of.", error.message) from error


def _same_data(base: Path, target: Path) -> bool:
    """Whether a file begins as another one, but for the first cluster, which is the header."""
    with base.open("rb") as old, target.open("rb") as new:
        old.seek(CLUSTER)
        new.seek(CLUSTER)
        while data := old.read(_CHUNK):
            if new.read(len(data)) != data:
                return False
    return True


def _unedited(table: DiskTable) -> Iterator[range]:
    """The clusters that lie within the partitions nobody edits, in the order of the disk."""
    for partition in sorted(table.partitions, key=lambda partition: partition.offset):
        first, end = -(-partition.offset // CLUSTER), (partition.offset + partition.size) // CLUSTER
        if partition.label not in _EDITED and first < end:
            yield range(first, end)


def first_edited(table: DiskTable) -> int:
    """Where on the disk the first partition that bakes edit begins, in bytes; what is before it stays as it is."""
    return min(table.get(label).offset for label in _EDITED)


def _gaps(kept: Iterable[range], count: int) -> Iterator[range]:
    """What of so many clusters is not kept."""
    done = 0
    for part in (*kept, range(count, count)):
        if done < part.start:
            yield range(done, part.start)
        done = max(done, part.stop)


def _blank(path: Path, size: int) -> None:
    with path.open("xb") as file:
        file.truncate(size)
