"""Between raw disks and the formats vendors take. Every result is read back and compared before it counts."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from baker.errors import ImageError
from baker.formats import NATIVE_QCOW2, check_form, prove_disk, takes_over, write_disk
from baker.formats.probe import image_info
from baker.origin import Origin, check_qcow2, prove_edited
from baker.qcow2 import write_qcow2
from baker.run import Bounds, CommandFailed, run
from baker.sparse import LeadingDigest, clone, file_sha256
from baker.vendor import DiskFormat


def to_raw(source: Path, target: Path) -> None:
    """Write `source` (raw or qcow2) as a new sparse raw disk. Raises ImageError for another or a broken format."""
    info = image_info(source)
    if info.format == "raw":
        clone(source, target)
        return
    if info.format != "qcow2":
        raise ImageError(f"{source.name} is a {info.format} image; only raw and qcow2 can be baked into.")
    check_qcow2(source)
    try:
        bounds = Bounds(writable=(target.parent,))
        run(["qemu-img", "convert", "-f", "qcow2", "-O", "raw", source, target], bounds=bounds)
    except CommandFailed as error:
        raise ImageError(f"{source.name} is damaged: qemu-img cannot read all of it.", "Get it again.") from error


def edits_in_place(disk: DiskFormat) -> bool:
    """Whether `encode` can make this format of an image's origin and the raw disk of its edited parts."""
    return disk == NATIVE_QCOW2


def convert(
    raw: Path, target: Path, disk: DiskFormat, jobs: int, seed: str = "", origin: Origin | None = None
) -> None:
    """As `encode`, for a file that is only a step on the way: no digest, no care that it reaches the disk."""
    size = raw.stat().st_size
    _write(raw, target, disk, jobs, seed, origin)
    _prove(raw, size, target, disk, origin)


def encode(
    raw: Path,
    target: Path,
    disk: DiskFormat,
    jobs: int,
    seed: str = "",
    origin: Origin | None = None,
    leading: LeadingDigest | None = None,
) -> str:
    """Write the raw disk as the new file `target` in the format `disk`, prove that it holds the same disk, and return
    the sha256 of the file.

    `jobs` threads take part; the bytes do not depend on it, but on `seed` where the format wants something unique.
    With `origin` (see `edits_in_place`) what `raw` lacks is taken from there. Where the format `takes_over` the disk
    `raw` is gone then, and `leading` has begun the digest.
    Raises ImageError when format, size or content read back differ.
    """
    size = raw.stat().st_size
    _write(raw, target, disk, jobs, seed, origin)
    with ThreadPoolExecutor(1) as pool:
        digest = pool.submit(settle, target, leading if takes_over(disk) else None)
        _prove(raw, size, target, disk, origin)
        return digest.result()


def _write(raw: Path, target: Path, disk: DiskFormat, jobs: int, seed: str, origin: Origin | None) -> None:
    if origin is None:
        write_disk(raw, target, disk, jobs, seed)
    else:
        write_qcow2(raw, target, jobs, origin.image, origin.kept)


def _prove(raw: Path, size: int, target: Path, disk: DiskFormat, origin: Origin | None) -> None:
    if origin is None and not takes_over(disk):
        prove_disk(raw, target, disk)
        return
    check_form(target, disk, size)
    if origin is not None:
        prove_edited(raw, target, origin)


def settle(file: Path, leading: LeadingDigest | None = None) -> str:
    """The sha256 of a finished file; meanwhile the system begins to write it to the disk."""
    with file.open("rb") as opened, ThreadPoolExecutor(1) as pool:
        pool.submit(os.fsync, opened.fileno())
        return leading.complete(file) if leading else file_sha256(file)
