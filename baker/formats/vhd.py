"""VHD, which qemu-img calls vpc: the footer that tells a fixed one from a raw disk, written and checked here.

Format: Microsoft's "Virtual Hard Disk Image Format Specification" 1.0. A fixed VHD is the raw disk and a footer of 512
bytes behind it; a dynamic one has the footer at both ends and a table of blocks between. The footer says what
qemu-img's `force_size` says, which is what Azure gets from every distribution: the application "qem2" and the largest
geometry there is, so that the size in bytes counts, which a geometry could only approximate.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from pathlib import Path

from baker.errors import ImageError
from baker.formats.seeds import identifier

FIXED, DYNAMIC = 2, 3
FOOTER_BYTES = 512

# cookie, features, format, data offset, timestamp, application, its version, system, original and current size,
# cylinders, heads, sectors, disk type, checksum, UUID; zeros follow.
_FOOTER = struct.Struct(">8sIIQI4sI4sQQHBBII16s")
_COOKIE, _FEATURES, _VERSION = b"conectix", 2, 0x10000
_CREATOR, _CREATOR_VERSION, _SYSTEM = b"qem2", 0x50003, b"Wi2k"
_LARGEST_GEOMETRY = (65535, 16, 255)
_NO_OFFSET = 0xFFFF_FFFF_FFFF_FFFF
_TIMESTAMP = 0  # seconds since 2000; nothing reads it, and the same bake shall give the same bytes
_CHECKSUM_AT, _TIMESTAMP_AT, _UUID_AT = 64, 24, 68

# cookie, data offset, table offset, version, table entries, block size, checksum; parents and zeros follow.
_DYNAMIC = struct.Struct(">8sQQIIII")
_DYNAMIC_BYTES, _DYNAMIC_CHECKSUM_AT = 1024, 36


@dataclass(frozen=True)
class Footer:
    """What a VHD's footer says, its checksum verified. Sizes in bytes."""

    kind: int
    """FIXED or DYNAMIC."""
    size: int
    creator: bytes
    geometry: tuple[int, int, int]
    """Cylinders, heads, sectors."""
    data_offset: int


def make_footer(size: int, seed: str) -> bytes:
    """The footer of a fixed VHD for a disk of `size` bytes."""
    raw = _FOOTER.pack(
        _COOKIE, _FEATURES, _VERSION, _NO_OFFSET, _TIMESTAMP, _CREATOR, _CREATOR_VERSION, _SYSTEM, size, size,
        *_LARGEST_GEOMETRY, FIXED, 0, identifier(seed, "vhd").bytes,
    )  # fmt: skip
    return _sealed(raw.ljust(FOOTER_BYTES, b"\0"), _CHECKSUM_AT)


def append_footer(disk: Path, seed: str) -> None:
    """Make a raw disk a fixed VHD."""
    footer = make_footer(disk.stat().st_size, seed)
    with disk.open("ab") as file:
        file.write(footer)


def settle_dynamic(path: Path, seed: str) -> None:
    """Give a dynamic VHD of qemu-img's the UUID of the seed and no time, in both footers."""
    end = path.stat().st_size - FOOTER_BYTES
    with path.open("r+b") as file:
        footer = bytearray(os.pread(file.fileno(), FOOTER_BYTES, end))
        footer[_TIMESTAMP_AT : _TIMESTAMP_AT + 4] = _TIMESTAMP.to_bytes(4, "big")
        footer[_UUID_AT : _UUID_AT + 16] = identifier(seed, "vhd").bytes
        for at in (0, end):
            os.pwrite(file.fileno(), _sealed(bytes(footer), _CHECKSUM_AT), at)


def parse_footer(raw: bytes) -> Footer:
    """Understand a footer; ImageError where it is none, is damaged, or is of a kind with a parent."""
    if len(raw) != FOOTER_BYTES or not raw.startswith(_COOKIE):
        raise ImageError("There is no VHD footer.")
    if raw != _sealed(raw, _CHECKSUM_AT):
        raise ImageError("The checksum of the VHD footer is wrong.")
    _, _, version, data_offset, _, creator, _, _, _, size, *rest = _FOOTER.unpack_from(raw)
    cylinders, heads, sectors, kind, _, _ = rest
    if version != _VERSION or kind not in (FIXED, DYNAMIC):
        raise ImageError(f"The VHD footer is of version {version:#x} and type {kind}.")
    return Footer(kind, size, creator, (cylinders, heads, sectors), data_offset)


def check_vhd(path: Path, kind: int, size: int) -> None:
    """Check that a file is a VHD of this kind for a disk of `size` bytes; ImageError names the rule it breaks."""
    length = path.stat().st_size
    with path.open("rb") as file:
        raw = os.pread(file.fileno(), FOOTER_BYTES, max(length - FOOTER_BYTES, 0))
        head = os.pread(file.fileno(), FOOTER_BYTES, 0)
        try:
            footer = parse_footer(raw)
            if (footer.kind, footer.size) != (kind, size):
                raise ImageError(f"The VHD is of type {footer.kind} and {footer.size} bytes, not {kind} and {size}.")
            if kind == FIXED:
                _check_fixed(footer, length)
            else:
                _check_dynamic(os.pread(file.fileno(), _DYNAMIC_BYTES, footer.data_offset), size)
                if head != raw:
                    raise ImageError("The VHD's footer and its copy at the start differ.")
        except ImageError as error:
            raise ImageError(f"{path.name} came out wrong: {error.message}") from error


def _check_fixed(footer: Footer, length: int) -> None:
    if footer.data_offset != _NO_OFFSET or length != footer.size + FOOTER_BYTES:
        raise ImageError(f"A fixed VHD of {footer.size} bytes has a file of {length} bytes.")


def _check_dynamic(raw: bytes, size: int) -> None:
    if len(raw) != _DYNAMIC_BYTES or not raw.startswith(b"cxsparse"):
        raise ImageError("The VHD has no dynamic disk header.")
    _, _, _, _, entries, block, _ = _DYNAMIC.unpack_from(raw)
    if raw != _sealed(raw, _DYNAMIC_CHECKSUM_AT):
        raise ImageError("The checksum of the VHD's dynamic disk header is wrong.")
    if entries * block < size:
        raise ImageError(f"The VHD's table has {entries} blocks of {block} bytes, which do not hold {size} bytes.")


def _sealed(raw: bytes, at: int) -> bytes:
    """A footer or header with its checksum, the one's complement of the sum of all its other bytes, at `at`."""
    blank = raw[:at] + bytes(4) + raw[at + 4 :]
    return raw[:at] + (~sum(blank) & 0xFFFF_FFFF).to_bytes(4, "big") + raw[at + 4 :]
