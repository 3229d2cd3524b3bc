"""The disk formats of virtual machines: written so that equal input gives equal bytes, and proven by reading back.

Random numbers that a format demands come from a seed. Formats that qemu-img writes get theirs replaced afterwards:

    raw                   nothing random; the raw disk itself, renamed
    qcow2                 nothing random; 0.10 compressed by `baker.qcow2`, anything else by qemu-img
    vpc, fixed            the raw disk itself, and a footer of ours                        vhd.py
    vpc, dynamic          qemu-img; UUID and time in both footers                          vhd.py
    vhdx                  qemu-img; GUIDs of headers and metadata, sequence numbers, log   vhdx.py
    vmdk                  qemu-img; content ID                                             patches.py
    vmdk, streamOptimized ours                                                             vmdk_stream.py
    vdi                   qemu-img; two UUIDs                                              patches.py
    parallels             qemu-img; nothing random
"""

from __future__ import annotations

from pathlib import Path

from baker.errors import ImageError
from baker.formats.patches import settle_vdi, settle_vmdk
from baker.formats.probe import image_info
from baker.formats.vhd import DYNAMIC, FIXED, append_footer, check_vhd, settle_dynamic
from baker.formats.vhdx import settle_vhdx
from baker.formats.vmdk_stream import StreamOptions, write_stream
from baker.formats.vmdk_walk import check_stream
from baker.qcow2 import write_qcow2
from baker.run import CommandFailed, run
from baker.vendor import DiskFormat

NATIVE_QCOW2 = DiskFormat("qcow2", (("compat", "0.10"),), compress=True)
"""What most of Flatcar's own images are, and every reader of qcow2 takes."""

_SETTLE = {"vpc": settle_dynamic, "vhdx": settle_vhdx, "vdi": settle_vdi, "vmdk": settle_vmdk}
_UNCHECKED = ("raw", "vpc")  # qemu-img has no `check` for these


def takes_over(disk: DiskFormat) -> bool:
    """Whether `write_disk` makes the raw disk itself the result, which costs neither time nor space."""
    return disk.format == "raw" or _is_fixed_vhd(disk)


def write_disk(raw: Path, target: Path, disk: DiskFormat, jobs: int, seed: str) -> None:
    """Write a raw disk as the new file `target`, on at most `jobs` cores; its bytes depend on disk and `seed` alone.

    With `takes_over(disk)` `raw` is renamed, and so gone. Raises ImageError for a disk that the format cannot hold,
    EnvironmentFault when qemu-img fails.
    """
    if takes_over(disk):
        raw.rename(target)
        if disk.format == "vpc":
            append_footer(target, seed)
    elif disk == NATIVE_QCOW2:
        write_qcow2(raw, target, jobs)
    elif _is_stream(disk):
        write_stream(raw, target, StreamOptions.of(dict(disk.options)), jobs, seed)
    else:
        _convert(raw, target, disk)
        if settle := _SETTLE.get(disk.format):
            settle(target, seed)


def prove_disk(raw: Path, target: Path, disk: DiskFormat) -> None:
    """Read an encoded image back: its form, as `check_form` does, and every byte of the disk. ImageError otherwise."""
    check_form(target, disk, raw.stat().st_size)
    try:
        run(["qemu-img", "compare", "-f", "raw", "-F", disk.format, raw, target])
    except CommandFailed as error:
        raise ImageError(f"{target.name} does not hold the disk it was made of.", error.message) from error


def check_form(target: Path, disk: DiskFormat, size: int) -> None:
    """Check that a file is of this format, consistent, and for a disk of `size` bytes; ImageError otherwise."""
    if disk.format == "vpc":
        check_vhd(target, FIXED if _is_fixed_vhd(disk) else DYNAMIC, size)
    elif _is_stream(disk):
        check_stream(target, size)
    # Neither a raw disk nor a fixed VHD, which begins with its disk's first byte, may be guessed at by its content.
    info = image_info(target, disk.format if disk.format in _UNCHECKED else None)
    if (info.format, info.virtual_size) != (disk.format, size):
        raise ImageError(
            f"{target.name} came out as {info.format} of {info.virtual_size} bytes "
            f"instead of {disk.format} of {size} bytes."
        )
    if disk.format not in _UNCHECKED:
        try:
            run(["qemu-img", "check", "-q", "-f", disk.format, target])
        except CommandFailed as error:
            raise ImageError(f"{target.name} came out inconsistent.", error.message) from error


def _is_fixed_vhd(disk: DiskFormat) -> bool:
    return disk.format == "vpc" and dict(disk.options).get("subformat") == "fixed"


def _is_stream(disk: DiskFormat) -> bool:
    return disk.format == "vmdk" and dict(disk.options).get("subformat") == "streamOptimized"


def _convert(raw: Path, target: Path, disk: DiskFormat) -> None:
    options = dict(disk.options)
    if disk.format == "vmdk" and options.get("subformat", "monolithicSparse") != "monolithicSparse":
        raise ImageError(f"VMDK images of the kind {options['subformat']} cannot be written.")
    if disk.format == "vpc":
        options["force_size"] = "on"  # without it the size is what a geometry can say, and the disk may grow
    words = ",".join(f"{name}={value}" for name, value in sorted(options.items()))
    # Sixteen coroutines overlap reading with compressing; out-of-order writes (-W) would be faster still but give
    # other bytes on each run.
    run([
        "qemu-img", "convert", "-m", "16", *(["-c"] if disk.compress else []),
        "-f", "raw", "-O", disk.format, *(["-o", words] if words else []), raw, target,
    ])  # fmt: skip
