"""Partitions of a raw disk image: find, grow, take out, put back, check. Nothing here needs root or a loop device.

The table is read by `baker.gpt` and edited by libparted (pyparted), which keeps type GUIDs, partition GUIDs, the disk
GUID and attribute bits; what it wrote is read again and compared.
"""

from __future__ import annotations

import os
import struct
import threading
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import parted

from baker import e2fs, run
from baker.errors import ImageError
from baker.gpt import DiskTable, read_gpt
from baker.model import SECTOR, Partition
from baker.sparse import copy_extents, punch

__all__ = ["DiskTable", "check_filesystems", "extract", "grow_root", "probe_fs", "read_table", "write_back"]

_BACKUP_SECTORS = 33  # header and 128 entries at the end of the disk
_PARTED_ERRORS = (
    parted.PartedException, parted.IOException, parted.DiskException, parted.DiskLabelException,
    parted.PartitionException, parted.ConstraintException,
)  # fmt: skip
_parted_lock = threading.Lock()  # libparted's exception handler is one for the whole process


def read_table(image: Path) -> DiskTable:
    """The partition table of a raw image, with the filesystem found in each partition.

    Raises ImageError for anything that `baker.gpt.read_gpt` refuses.
    """
    table = read_gpt(image)
    with ThreadPoolExecutor(4) as pool:  # blkid has little to do: most of its time is its start
        found = pool.map(lambda part: probe_fs(image, part.offset, part.size), table.partitions)
        partitions = (replace(part, fs=fs) for part, fs in zip(table.partitions, found, strict=True))
        return replace(table, partitions=tuple(partitions))


def probe_fs(image: Path, offset: int, size: int) -> str:
    """What blkid recognises in a range of a file: `ext4`, `btrfs`, `vfat`, `crypto_LUKS` … or "".

    Ambiguous content (two signatures) counts as unrecognised.
    """
    found = run.run(
        ["blkid", "-p", "-O", str(offset), "-S", str(size), "-s", "TYPE", "-o", "value", image.absolute()],
        ok=(0, 2, 8),
        bounds=run.Bounds(),
    )
    return found.text.strip() if found.status == 0 else ""


def extract(image: Path, partition: Partition, target: Path) -> None:
    """Copy a partition to a new sparse file of exactly its size."""
    with image.open("rb") as disk, target.open("xb") as file:
        file.truncate(partition.size)
        copy_extents(disk.fileno(), file.fileno(), partition.offset, 0, partition.size)


def write_back(image: Path, partition: Partition, source: Path) -> None:
    """Replace a partition's content by that of a file of exactly its size; holes stay holes."""
    size = source.stat().st_size
    if size != partition.size:
        raise ImageError(f"{size} bytes do not fit the {partition.label} partition of {partition.size} bytes.")
    with source.open("rb") as file, image.open("r+b") as disk:
        punch(disk.fileno(), partition.offset, partition.size)
        copy_extents(file.fileno(), disk.fileno(), 0, partition.offset, size)


def grow_root(image: Path, root_size: int, disk_size: int, work: Path) -> DiskTable:
    """Make ROOT `root_size` and the disk `disk_size` bytes large, its ext4 included; returns the new table.

    Sizes equal to the present ones change nothing; smaller ones, or a ROOT that does not end within the disk, raise
    ImageError. `work` is a folder for temporary files. The ROOT filesystem is resized as a file of its own:
    resize2fs on a partition inside an image would truncate the image.
    """
    table = read_table(image)
    root = table.get("ROOT")
    if (root.size, table.size) == (root_size, disk_size):
        return table
    _check_growth(table, root, root_size, disk_size)
    grown = replace(root, size=root_size)
    with TemporaryDirectory(dir=work, prefix="grow-") as folder:
        file = Path(folder) / "root"
        if root_size > root.size:
            _grow_ext4(image, root, root_size, file)
        _grow_table(image, table, root_size, disk_size)
        with image.open("r+b") as disk:  # the old backup table, which nothing refers to any more
            punch(disk.fileno(), table.size - _BACKUP_SECTORS * SECTOR, _BACKUP_SECTORS * SECTOR)
        if root_size > root.size:
            write_back(image, grown, file)
    wanted = tuple(grown if part.label == "ROOT" else part for part in table.partitions)
    result = read_table(image)
    if result != DiskTable(table.guid, disk_size, wanted):
        raise ImageError("Enlarging ROOT changed more of the partition table than its size.")
    return result


def _check_growth(table: DiskTable, root: Partition, root_size: int, disk_size: int) -> None:
    if root_size < root.size or disk_size < table.size:
        raise ImageError(
            f"The disk cannot shrink: ROOT has {root.size} bytes of {table.size}, "
            f"{root_size} of {disk_size} were asked for.",
            "Start from an image with a smaller layout.",
        )
    if root_size % SECTOR or disk_size % SECTOR:
        raise ImageError("Sizes of disks and partitions are multiples of 512 bytes.")
    if any(part.offset > root.offset for part in table.partitions):
        raise ImageError("ROOT cannot grow: it is not the last partition on the disk.")
    if root.offset + root_size > disk_size - _BACKUP_SECTORS * SECTOR:
        raise ImageError(f"A ROOT of {root_size} bytes does not fit a disk of {disk_size} bytes.")
    if root_size > root.size and root.fs != "ext4":
        raise ImageError(f"ROOT cannot grow: it holds {root.fs or 'an unknown filesystem'}, not ext4.")


def _grow_ext4(image: Path, root: Partition, size: int, file: Path) -> None:
    """Extract ROOT to `file`, enlarged to `size` bytes."""
    before = e2fs.read_superblock(image, root)
    # Growing is no event of its own: the clock stands still, so that the same input gives the same bytes.
    clock = e2fs.frozen_time(before.written)
    extract(image, root, file)
    os.truncate(file, size)
    bounds = run.Bounds(writable=(file,))
    run.run(["e2fsck", "-fy", file.name], cwd=file.parent, env=clock, ok=(0, 1), bounds=bounds)  # 1: corrected some
    run.run(["resize2fs", file.name], cwd=file.parent, env=clock, bounds=bounds)
    after = e2fs.read_superblock(file, replace(root, offset=0, size=size))
    if after.blocks != size // after.block_size:
        raise ImageError(f"resize2fs left ROOT at {after.blocks} blocks instead of {size // after.block_size}.")


def _grow_table(image: Path, table: DiskTable, root_size: int, disk_size: int) -> None:
    with image.open("rb") as file:
        first_sector = file.read(SECTOR)
    os.truncate(image, disk_size)
    with _parted_lock:
        device = parted.getDevice(os.fspath(image.absolute()))
        parted.register_exn_handler(_resolve)
        try:
            disk = parted.newDisk(device)
            root = next(part for part in disk.partitions if part.number == table.get("ROOT").number)
            wanted = parted.Geometry(device, start=root.geometry.start, length=root_size // SECTOR)
            disk.setPartitionGeometry(root, parted.Constraint(exactGeom=wanted), wanted.start, wanted.end)
            disk.commitToDevice()
        except _PARTED_ERRORS as error:
            raise ImageError(f"The partition table could not be enlarged: {error}") from error
        finally:
            device.removeFromCache()  # libparted remembers devices by path, with the size they had
            parted.clear_exn_handler()
    _restore_first_sector(image, first_sector, table.size, disk_size)


def _resolve(kind: int, options: int, message: str) -> int:
    """Answer libparted's questions: yes, use the added space and move the backup table; anything else is an error."""
    return int(parted.EXCEPTION_RESOLVE_FIX if options & parted.EXCEPTION_RESOLVE_FIX else 0)


def _restore_first_sector(image: Path, sector: bytes, old_size: int, new_size: int) -> None:
    """Put back the boot code and the hybrid MBR that libparted replaces; only a protective entry follows the size.

    Entry format: UEFI specification 2.10, tables 5.3 and 5.4: type at byte 4, start and count as 32-bit sectors.
    """
    raw = bytearray(sector)
    for at in range(446, 510, 16):
        start, count = struct.unpack_from("<II", raw, at + 8)
        if raw[at + 4] == 0xEE and start == 1 and count == old_size // SECTOR - 1:
            struct.pack_into("<I", raw, at + 12, min(new_size // SECTOR - 1, 0xFFFF_FFFF))
    with image.open("r+b") as disk:
        disk.write(raw)


def check_filesystems(image: Path, table: DiskTable, labels: Iterable[str], work: Path) -> None:
    """Check the filesystems of these partitions without changing them; raises ImageError for the first damaged one.

    `work` is a folder for temporary files.
    """
    for label in labels:
        partition = table.get(label)
        if partition.fs.startswith("ext"):
            e2fs.check(image, partition, work)
        elif partition.fs in ("btrfs", "vfat"):
            with TemporaryDirectory(dir=work, prefix="check-") as folder:
                file = Path(folder) / label
                extract(image, partition, file)
                check_file(file, partition)
        else:
            raise ImageError(f"{label} holds {partition.fs or 'no known filesystem'}, which cannot be checked.")


def check_file(file: Path, partition: Partition) -> None:
    """Check an extracted btrfs or FAT; raises ImageError when it is damaged."""
    checker = ["btrfs", "check", "--readonly"] if partition.fs == "btrfs" else ["fsck.vfat", "-n"]
    done = run.run([*checker, file.name], cwd=file.parent, ok=range(256), bounds=run.Bounds())
    if done.status != 0:
        report = e2fs.first_lines(done.stderr or done.text)
        raise ImageError(f"The filesystem of {partition.label} is damaged: {report}", "Fetch the image again.")
