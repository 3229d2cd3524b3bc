"""An ext4 filesystem inside a raw image: its superblock, and e2fsck in place.

e2fsck and debugfs take `FILE?offset=BYTES`; resize2fs must never be given that: it truncates the image.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from baker import run
from baker.errors import ImageError
from baker.model import Partition
from baker.printable import printable

_SUPERBLOCK_AT, _MAGIC = 1024, 0xEF53
_NEEDS_RECOVERY, _EXTENTS, _LARGE_FILE, _BIGALLOC = 0x4, 0x40, 0x2, 0x200
# Every feature up to Linux 6.1 but those that other devices, readers or writers have to know about: a journal device,
# multiple mounts, encryption, case folding; a filesystem that is read-only for good.
_KNOWN_INCOMPAT, _KNOWN_RO_COMPAT = 0xE6D6, 0x1A77F


@dataclass(frozen=True)
class Superblock:
    """What an ext4 filesystem says about itself; counts are of blocks of `block_size` bytes.

    Layout: the kernel's Documentation/filesystems/ext4/super.rst.
    """

    block_size: int
    blocks: int
    free_blocks: int
    free_inodes: int
    written: int
    """Seconds since the epoch of the last write."""
    has_extents: bool
    """Files are mapped by extents of single blocks (no bigalloc)."""
    has_large_files: bool


def read_superblock(image: Path, partition: Partition) -> Superblock:
    """Read it at a partition's start.

    Raises ImageError when it is none, claims more than the partition, or left a journal to be replayed.
    """
    with image.open("rb") as disk:
        disk.seek(partition.offset + _SUPERBLOCK_AT)
        raw = disk.read(1024).ljust(1024, b"\0")
    inodes_free, log_size = struct.unpack_from("<I", raw, 0x10)[0], struct.unpack_from("<I", raw, 0x18)[0]
    blocks, free = (
        struct.unpack_from("<I", raw, low)[0] | struct.unpack_from("<I", raw, high)[0] << 32
        for low, high in ((0x04, 0x150), (0x0C, 0x158))
    )
    incompat, ro_compat = struct.unpack_from("<II", raw, 0x60)
    if struct.unpack_from("<H", raw, 0x38)[0] != _MAGIC or log_size > 6:
        raise ImageError(f"{partition.label} has no ext4 filesystem.")
    unknown = incompat & ~_KNOWN_INCOMPAT, ro_compat & ~_KNOWN_RO_COMPAT
    if any(unknown):
        raise ImageError(
            f"The ext4 of {partition.label} has features that cannot be edited here "
            f"(incompatible 0x{unknown[0]:x}, read-only compatible 0x{unknown[1]:x}).",
            "Use an unmodified Flatcar image.",
        )
    if blocks << (10 + log_size) > partition.size:
        raise ImageError(f"The filesystem of {partition.label} claims more space than its partition has.")
    if incompat & _NEEDS_RECOVERY:
        raise ImageError(
            f"{partition.label} was in use and not shut down: its journal is not replayed.",
            "Use an image fresh from the release; one that has been booted must not be shipped.",
        )
    return Superblock(
        block_size=1024 << log_size,
        blocks=blocks,
        free_blocks=free,
        free_inodes=inodes_free,
        written=struct.unpack_from("<I", raw, 0x30)[0],
        has_extents=bool(incompat & _EXTENTS) and not ro_compat & _BIGALLOC,
        has_large_files=bool(ro_compat & _LARGE_FILE),
    )


def frozen_time(epoch: int) -> dict[str, str]:
    """The environment in which e2fsprogs take `epoch` for the current time (0 would mean the real one)."""
    return {"E2FSPROGS_FAKE_TIME": str(max(1, epoch)), "E2FSCK_TIME": str(max(1, epoch))}


def first_lines(text: str, lines: int = 3) -> str:
    """The first lines of a tool's output as one, without control characters: it may quote names from the image."""
    return "; ".join(printable(line) for line in text.strip().splitlines()[:lines])


def check(image: Path, partition: Partition, work: Path) -> None:
    """Run `e2fsck -fn` on a partition in place; raises ImageError when it is not entirely clean."""
    read_superblock(image, partition)
    done = _e2fsck(["-fn"], image, partition, work, {})
    if done.status != 0:
        raise ImageError(
            f"The filesystem of {partition.label} is damaged: {first_lines(problems(done.text))}",
            "Fetch the image again, or repair it with e2fsck.",
        )


def repair(image: Path, partition: Partition, work: Path, epoch: int) -> None:
    """Run `e2fsck -fy` on a partition in place, as if the time were `epoch`; raises ImageError when it gives up."""
    done = _e2fsck(["-fy"], image, partition, work, frozen_time(epoch))
    if done.status not in (0, 1):
        raise ImageError(f"e2fsck could not repair {partition.label}: {first_lines(problems(done.text))}")


def _e2fsck(options: list[str], image: Path, partition: Partition, work: Path, env: dict[str, str]) -> run.Completed:
    with TemporaryDirectory(dir=work, prefix="e2fsck-") as folder:
        name = f"{alias(image, Path(folder))}?offset={partition.offset}"
        bounds = run.Bounds(writable=(image.absolute(),))
        return run.run(["e2fsck", *options, name], cwd=Path(folder), env=env, ok=range(256), bounds=bounds)


def problems(report: str) -> str:
    """What an e2fsck report complains of, without its progress and summary lines."""
    return "\n".join(line for line in report.splitlines() if line and not line.startswith(("Pass ", "e2fsck ")))


def alias(image: Path, folder: Path) -> str:
    """A plain name for the image in `folder`: a `?` in a path would be read as the start of options."""
    (folder / "disk").symlink_to(image.absolute())
    return "disk"
