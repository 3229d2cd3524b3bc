"""Disk images: filesystems made from folders, put into a GPT; no mount, no loop device."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from baker.run import run
from baker.sparse import clone, copy_extents
from standin.layout import DISK_GUID, Entry, Layout


def make_btrfs(target: Path, label: str, size: int, tree: Path, *, mixed: bool = False) -> None:
    """A btrfs of `size` bytes with the content of the folder `tree`."""
    with target.open("wb") as file:
        file.truncate(size)
    options = ["--mixed"] if mixed else []
    single = ["--metadata", "single", "--data", "single"]
    run(["mkfs.btrfs", "-q", *options, *single, "-b", str(size), "-L", label, "--rootdir", tree, target])


def make_root(target: Path, size: int, work: Path) -> None:
    """The ext4 of ROOT, as good as empty: Flatcar's build leaves only the mount points."""
    tree = work / "root"
    for name in ("boot", "usr", "oem"):
        (tree / name).mkdir(parents=True)
    with target.open("wb") as file:
        file.truncate(size)
    run(["mke2fs", "-q", "-F", "-t", "ext4", "-b", "4096", "-L", "ROOT", "-E", "root_owner=0:0", "-d", tree, target])


def grow_root(source: Path, target: Path, size: int) -> None:
    """A copy of the ROOT filesystem, grown to `size` bytes."""
    clone(source, target)
    os.truncate(target, size)
    run(["resize2fs", target])


def assemble(target: Path, layout: Layout, filesystems: Mapping[str, Path]) -> None:
    """A new raw disk image with the partition table `layout` and the given filesystems, by partition label."""
    with target.open("xb") as file:
        file.truncate(layout.disk_bytes)
    _write_table(target, layout)
    with target.open("r+b") as disk:
        for label, source in filesystems.items():
            _place(disk.fileno(), layout.get(label), source)


def _write_table(image: Path, layout: Layout) -> None:
    options = ["--clear", "--set-alignment=1", f"--disk-guid={DISK_GUID}"]
    for entry in layout.entries:
        number = entry.number
        options += [
            f"--new={number}:{entry.start}:{entry.start + entry.length - 1}",
            f"--typecode={number}:{entry.type_guid}",
            f"--change-name={number}:{entry.label}",
            f"--partition-guid={number}:{entry.guid}",
            *(f"--attributes={number}:set:{bit}" for bit in entry.bits),
        ]
    run(["sgdisk", *options, image])


def _place(disk: int, entry: Entry, source: Path) -> None:
    with source.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        assert size <= entry.size_bytes, f"{source.name} does not fit into {entry.label}"
        copy_extents(file.fileno(), disk, 0, entry.offset_bytes, size)
