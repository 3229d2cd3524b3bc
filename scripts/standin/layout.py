"""Flatcar's partition table as numbers: both generations, and how the layouts of one generation differ.

Taken from `build_library/disk_layout.json` and `disk_util` of the public repository flatcar/scripts.
All positions and lengths are sectors of 512 bytes unless a name says bytes.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass, replace

SECTOR = 512
DISK_GUID = "00000000-0000-0000-0000-000000000001"
DISK_UNIT = 258048
"""A disk's length is a multiple of this: 126 MiB, whole MiB and whole cylinders alike."""
GPT_RESERVE = 34
USR_FILESYSTEM_BYTES = 260094 * 4096
"""Both generations: /usr's filesystem ends here, the rest of its partition belongs to dm-verity."""
VM_ROOT = 12943360
"""The length of ROOT in the `vm` layout of both generations."""

EFI_TYPE = "C12A7328-F81F-11D2-BA4B-00A0C93EC93B"
BIOS_TYPE = "21686148-6449-6E6F-744E-656564454649"
USR_TYPE = "5DFBF5F4-2848-4BAC-AA5E-0D9A20B745A6"
DATA_TYPE = "0FC63DAF-8483-4772-8E79-3D69D8477DE4"
RESERVED_TYPE = "C95DC21A-DF0E-4340-8D7B-26CBFA9A03E0"
RESIZE_TYPE = "3884DD41-8582-4404-B9A8-E9B84F2DF50E"

USR_A_GUID = "7130C94A-213A-4E5A-8E26-6CCE9662F132"
USR_B_GUID = "E03DD35C-7C2D-4A47-B3FE-27F15780A57C"
BOOTABLE_BITS = (48, 56)
"""Bits of USR-A's attributes: priority 1 (48 to 51), tries 0 (52 to 55), successful 1 (56)."""


@dataclass(frozen=True)
class Entry:
    """One partition; `bits` are attribute bit numbers."""

    number: int
    label: str
    type_guid: str
    start: int
    length: int
    guid: str
    bits: tuple[int, ...] = ()

    @property
    def offset_bytes(self) -> int:
        return self.start * SECTOR

    @property
    def size_bytes(self) -> int:
        return self.length * SECTOR


@dataclass(frozen=True)
class Layout:
    """A whole disk."""

    entries: tuple[Entry, ...]

    def get(self, label: str) -> Entry:
        return next(entry for entry in self.entries if entry.label == label)

    def with_root(self, length: int) -> Layout:
        """The same disk with a ROOT of `length` sectors, the last partition; nothing else moves."""
        changed = (replace(entry, length=length) if entry.label == "ROOT" else entry for entry in self.entries)
        return Layout(tuple(changed))

    @property
    def disk_bytes(self) -> int:
        """The image's size: the last partition, the backup table, rounded up to whole units."""
        end = max(entry.start + entry.length for entry in self.entries) + GPT_RESERVE
        return -(-end // DISK_UNIT) * DISK_UNIT * SECTOR


_STARTS = {
    "old": {
        "EFI-SYSTEM": 4096, "BIOS-BOOT": 266240, "USR-A": 270336, "USR-B": 2367488,
        "OEM": 4464640, "OEM-CONFIG": 4726784, "ROOT": 4857856,
    },
    "new": {
        "EFI-SYSTEM": 4096, "BIOS-BOOT": 2101248, "USR-A": 2105344, "USR-B": 6299648,
        "OEM": 10493952, "OEM-CONFIG": 12591104, "ROOT": 12722176,
    },
}  # fmt: skip
_LENGTHS = {
    "old": {
        "EFI-SYSTEM": 262144, "BIOS-BOOT": 4096, "USR-A": 2097152, "USR-B": 2097152,
        "OEM": 262144, "OEM-CONFIG": 131072, "ROOT": 4427776,
    },
    "new": {
        "EFI-SYSTEM": 2097152, "BIOS-BOOT": 4096, "USR-A": 4194304, "USR-B": 4194304,
        "OEM": 2097152, "OEM-CONFIG": 131072, "ROOT": 3653632,
    },
}  # fmt: skip
GENERATIONS = tuple(_STARTS)


def base(generation: str) -> Layout:
    """The `base` layout (the generic image) of the `old` or `new` generation.

    As in Flatcar, only /usr's partition GUIDs are fixed; the others are drawn anew by each call.
    """

    def entry(number: int, label: str, type_guid: str, guid: str = "", bits: tuple[int, ...] = ()) -> Entry:
        start, length = _STARTS[generation][label], _LENGTHS[generation][label]
        return Entry(number, label, type_guid, start, length, guid or str(uuid.uuid4()).upper(), bits)

    return Layout(
        (
            entry(1, "EFI-SYSTEM", EFI_TYPE),
            entry(2, "BIOS-BOOT", BIOS_TYPE),
            entry(3, "USR-A", USR_TYPE, USR_A_GUID, BOOTABLE_BITS),
            entry(4, "USR-B", USR_TYPE, USR_B_GUID),
            entry(6, "OEM", DATA_TYPE),
            entry(7, "OEM-CONFIG", RESERVED_TYPE),
            entry(9, "ROOT", RESIZE_TYPE),
        )
    )
