"""Between raw disks and the formats vendors take. Every result is read back and compared before it counts."""

from __future__ import annotations

import json
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from baker.errors import ImageError
from baker.origin import Origin, check_qcow2, prove_edited
from baker.qcow2 import write_qcow2
from baker.run import Bounds, CommandFailed, run
from baker.sparse import LeadingDigest, clone, file_sha256
from baker.vendor import DiskFormat

_NATIVE = DiskFormat("qcow2", (("compat", "0.10"),), compress=True)


@dataclass(frozen=True)
class ImageInfo:
    """What qemu-img says of a disk image; `virtual_size` in bytes."""

    format: str
    virtual_size: int


def image_info(path: Path, assume: str | None = None) -> ImageInfo:
    """Probe an image file. `assume` names the format where it cannot be probed safely (raw, fixed VHD).

    Raises ImageError for a file qemu-img cannot read, and for one that names other files (a backing file, an external
    data file or extents): an image is untrusted, and following its references would read any file we can read.
    """
    argv = ["qemu-img", "info", "--output=json", *(["-f", assume] if assume else []), os.fspath(path)]
    try:
        found: dict[str, Any] = json.loads(run(argv, bounds=Bounds()).text)
    except CommandFailed as error:
        raise ImageError(f"{path.name} is not a readable disk image.", error.message) from error
    specific = found.get("format-specific", {}).get("data", {})
    extents = {extent.get("filename") for extent in specific.get("extents", [])}
    if "backing-filename" in found or "data-file" in specific or extents - {os.fspath(path)}:
        raise ImageError(
            f"{path.name} refers to another file, which a disk image from outside must not.",
            "Flatten it first: qemu-img convert -O qcow2 IMAGE FLAT.",
        )
    return ImageInfo(str(found["format"]), int(found["virtual-size"]))


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
    return disk == _NATIVE


def encode(
    raw: Path,
    target: Path,
    disk: DiskFormat,
    jobs: int,
    origin: Origin | None = None,
    leading: LeadingDigest | None = None,
) -> str:
    """Write the raw disk as `disk.format` to the new file `target`, prove that it holds the same disk, and return
    the sha256 of the file.

    `jobs` threads take part; the bytes do not depend on it. With `origin` (see `edits_in_place`) what `raw` lacks is
    taken from there. A raw result takes the source over by renaming it, so `raw` is gone then; `leading` has begun
    its digest.
    Raises ImageError when format, size or content read back differ.
    """
    if disk.format == "raw":
        raw.rename(target)
        return settle(target, leading)
    if disk != _NATIVE:
        _convert(raw, target, disk)
    elif origin is None:
        write_qcow2(raw, target, jobs)
    else:
        write_qcow2(raw, target, jobs, origin.image, origin.kept)
    with ThreadPoolExecutor(1) as pool:
        digest = pool.submit(settle, target)
        if origin is None:
            prove_same(raw, target, disk.format)
        else:
            _prove_sound(raw, target, disk.format)
            prove_edited(raw, target, origin)
        return digest.result()


def settle(file: Path, leading: LeadingDigest | None = None) -> str:
    """The sha256 of a finished file; meanwhile the system begins to write it to the disk."""
    with file.open("rb") as opened, ThreadPoolExecutor(1) as pool:
        pool.submit(os.fsync, opened.fileno())
        return leading.complete(file) if leading else file_sha256(file)


def _convert(raw: Path, target: Path, disk: DiskFormat) -> None:
    options = ",".join(f"{name}={value}" for name, value in disk.options)
    # Sixteen coroutines overlap reading with compressing; out-of-order writes (-W) would be faster still but give
    # other bytes on each run.
    run([
        "qemu-img", "convert", "-m", "16", *(["-c"] if disk.compress else []),
        "-f", "raw", "-O", disk.format, *(["-o", options] if options else []), raw, target,
    ])  # fmt: skip


def prove_same(raw: Path, target: Path, expected_format: str) -> None:
    """Read an encoded image back: its format, its virtual size, its own consistency, and every byte of the disk."""
    _prove_sound(raw, target, expected_format)
    try:
        run(["qemu-img", "compare", "-f", "raw", "-F", expected_format, raw, target])
    except CommandFailed as error:
        raise ImageError(f"{target.name} does not hold the disk it was made of.", error.message) from error


def _prove_sound(raw: Path, target: Path, expected_format: str) -> None:
    info = image_info(target)
    size = raw.stat().st_size
    if (info.format, info.virtual_size) != (expected_format, size):
        raise ImageError(
            f"{target.name} came out as {info.format} of {info.virtual_size} bytes "
            f"instead of {expected_format} of {size} bytes."
        )
    try:
        run(["qemu-img", "check", "-q", "-f", expected_format, target])
    except CommandFailed as error:
        raise ImageError(f"{target.name} came out inconsistent.", error.message) from error
