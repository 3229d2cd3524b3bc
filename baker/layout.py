"""Disk layouts: how large ROOT and the disk are for a vendor.

The layouts of a release differ only in the size of ROOT (its last partition) and the end of the disk, so
growing both is the whole conversion. Numbers are from flatcar/scripts build_library/disk_layout.json, for both
generations: the newer one (stable 4593.2.0 and later) starts ROOT further back, behind larger ESP, USR and OEM.
"""

from __future__ import annotations

from dataclasses import dataclass

from baker.disk import DiskTable
from baker.errors import ImageError, UsageError
from baker.model import SECTOR

# Disks end on a multiple of 258048 sectors (126 MiB): whole MiB for clouds, whole 16x63 cylinders for VHD.
_DISK_ALIGN = 258048
_GPT_RESERVE = 34  # the backup header, its 32 sectors of entries, and one spare
_ROOT_START_OLD, _ROOT_START_NEW = 4857856, 12722176

# Sectors of ROOT, by the sector ROOT starts at.
_ROOT_SECTORS: dict[str, dict[int, int]] = {
    "base": {_ROOT_START_OLD: 4427776, _ROOT_START_NEW: 3653632},
    "vm": {_ROOT_START_OLD: 12943360, _ROOT_START_NEW: 12943360},
    "azure": {_ROOT_START_OLD: 58875904, _ROOT_START_NEW: 50876416},
    "vagrant": {_ROOT_START_OLD: 33845248, _ROOT_START_NEW: 33845248},
    # Akamai's and Amazon's images changed from base to vm together with the newer generation.
    "vm-new": {_ROOT_START_OLD: 4427776, _ROOT_START_NEW: 12943360},
}
LAYOUTS = tuple(_ROOT_SECTORS)
GENERATIONS = {_ROOT_START_OLD: "old", _ROOT_START_NEW: "new"}
_FIRST_NEW = 4487  # the major number of the first release of the newer generation, an alpha


@dataclass(frozen=True)
class LayoutSize:
    """The bytes that a layout wants for ROOT and for the whole disk."""

    root: int
    disk: int


def layout_size(layout: str, table: DiskTable) -> LayoutSize:
    """What `layout` means for this image; never smaller than what the image already has.

    Raises UsageError for an unknown layout and ImageError where the image's ROOT starts at a place that no
    known generation has and the layout would have to grow it.
    """
    if layout not in _ROOT_SECTORS:
        raise UsageError(f"There is no disk layout {layout!r}.", f"Layouts: {', '.join(LAYOUTS)}.")
    root = table.get("ROOT")
    start = root.offset // SECTOR
    if layout == "base":
        return LayoutSize(root.size, table.size)
    if start not in _ROOT_SECTORS[layout]:
        raise ImageError(
            f"ROOT starts at sector {start}, which no known Flatcar disk layout has.",
            "Bake for the vendor `generic`, which keeps the disk's layout as it is.",
        )
    sectors = _ROOT_SECTORS[layout][start]
    if sectors * SECTOR <= root.size:
        return LayoutSize(root.size, table.size)
    return LayoutSize(sectors * SECTOR, _disk_size(start, sectors))


def _disk_size(start: int, sectors: int) -> int:
    """The bytes of a disk whose ROOT begins at sector `start` and has `sectors`."""
    end = start + sectors + _GPT_RESERVE
    return -(-end // _DISK_ALIGN) * _DISK_ALIGN * SECTOR


def expected_disk_size(layout: str, major: int) -> int:
    """The bytes of the disk that `layout` means for a release of this major version, before there is an image."""
    start = _ROOT_START_NEW if major >= _FIRST_NEW else _ROOT_START_OLD
    return _disk_size(start, _ROOT_SECTORS[layout][start])


def describe(table: DiskTable) -> tuple[str, str]:
    """(generation, layout) of an image by where ROOT starts and how large it is; "unknown" where it fits none."""
    root = table.get("ROOT")
    start = root.offset // SECTOR
    generation = GENERATIONS.get(start, "unknown")
    for name, sizes in _ROOT_SECTORS.items():
        if sizes.get(start, 0) * SECTOR == root.size:
            return generation, name
    return generation, "unknown"
