"""The stand-in's disk images have exactly a Flatcar release's partition table and filesystems."""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from baker.run import run

CURRENT = "stable/amd64-usr/current"
SECTOR = 512
RESERVED = "C95DC21A-DF0E-4340-8D7B-26CBFA9A03E0"
USR = "5DFBF5F4-2848-4BAC-AA5E-0D9A20B745A6"
TYPES = {
    "EFI-SYSTEM": "C12A7328-F81F-11D2-BA4B-00A0C93EC93B",
    "BIOS-BOOT": "21686148-6449-6E6F-744E-656564454649",
    "USR-A": USR,
    "USR-B": USR,
    "OEM": "0FC63DAF-8483-4772-8E79-3D69D8477DE4",
    "OEM-CONFIG": RESERVED,
    "ROOT": "3884DD41-8582-4404-B9A8-E9B84F2DF50E",
}
# label: number, first sector, sectors; from build_library/disk_layout.json of flatcar/scripts before and after the
# commit 07cc8512ef.
OLD = {
    "EFI-SYSTEM": (1, 4096, 262144), "BIOS-BOOT": (2, 266240, 4096), "USR-A": (3, 270336, 2097152),
    "USR-B": (4, 2367488, 2097152), "OEM": (6, 4464640, 262144), "OEM-CONFIG": (7, 4726784, 131072),
    "ROOT": (9, 4857856, 4427776),
}  # fmt: skip
NEW = {
    "EFI-SYSTEM": (1, 4096, 2097152), "BIOS-BOOT": (2, 2101248, 4096), "USR-A": (3, 2105344, 4194304),
    "USR-B": (4, 6299648, 4194304), "OEM": (6, 10493952, 2097152), "OEM-CONFIG": (7, 12591104, 131072),
    "ROOT": (9, 12722176, 3653632),
}  # fmt: skip
VM_ROOT = 12943360
IMAGES = {
    # fixture, layout, and bytes of the generic and of the vendor's disk
    "old": ("stand_in", OLD, 4756340736, 9116319744),
    "new": ("stand_in_new", NEW, 8455716864, 13212057600),
}


@pytest.fixture(scope="module", params=IMAGES)
def disks(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path, Path]:
    """The generation's name, and its generic and vendor image as raw files."""
    folder = request.getfixturevalue(IMAGES[request.param][0]) / CURRENT
    work = tmp_path_factory.mktemp("disks")
    generic, vendor = work / "generic.bin", work / "vendor.bin"
    packed = folder / "flatcar_production_image.bin.bz2"
    with subprocess.Popen(["lbzip2", "-dc", packed], stdout=subprocess.PIPE) as lbzip2:
        subprocess.run(["cp", "--sparse=always", "/dev/stdin", generic], stdin=lbzip2.stdout, check=True)
    assert lbzip2.returncode == 0
    published = folder / "flatcar_production_qemu_uefi_image.img"
    run(["qemu-img", "convert", "-f", "qcow2", "-O", "raw", published, vendor])
    return request.param, generic, vendor


@dataclass(frozen=True)
class Entry:
    """A partition as sfdisk reads it; positions in bytes."""

    number: int
    offset: int
    size: int
    type: str
    uuid: str
    attributes: str


def header(image: Path) -> dict[str, Any]:
    """What sfdisk says of the table, its partitions included."""
    found: dict[str, Any] = json.loads(run(["sfdisk", "--json", image]).stdout)["partitiontable"]
    return found


def partitions(image: Path) -> dict[str, Entry]:
    """The partitions by label, in the order of their numbers."""
    return {
        entry["name"]: Entry(
            int(entry["node"].removeprefix(str(image))), entry["start"] * SECTOR, entry["size"] * SECTOR,
            entry["type"], entry["uuid"], entry.get("attrs", ""),
        )
        for entry in header(image)["partitions"]
    }  # fmt: skip


def test_tables_are_exact(disks: tuple[str, Path, Path]) -> None:
    generation, generic, vendor = disks
    _, layout, generic_size, vendor_size = IMAGES[generation]
    for image, size, root in ((generic, generic_size, layout["ROOT"][2]), (vendor, vendor_size, VM_ROOT)):
        assert image.stat().st_size == size
        read = header(image)
        assert (read["label"], read["id"]) == ("gpt", "00000000-0000-0000-0000-000000000001")
        assert read["lastlba"] == size // SECTOR - 34, "the backup table is not at the end"
        expected = layout | {"ROOT": (*layout["ROOT"][:2], root)}
        assert {
            label: (entry.number, entry.offset // SECTOR, entry.size // SECTOR, entry.type)
            for label, entry in partitions(image).items()
        } == {label: (*numbers, TYPES[label]) for label, numbers in expected.items()}


def test_usr_is_bootable_and_has_fixed_guids(disks: tuple[str, Path, Path]) -> None:
    for image in disks[1:]:
        found = partitions(image)
        assert found["USR-A"].uuid == "7130C94A-213A-4E5A-8E26-6CCE9662F132"
        assert found["USR-B"].uuid == "E03DD35C-7C2D-4A47-B3FE-27F15780A57C"
        # ChromeOS's bits: priority 1, successful 1
        attributes = {label: entry.attributes for label, entry in found.items() if entry.attributes}
        assert attributes == {"USR-A": "GUID:48,56"}


def test_vendor_image_keeps_the_generic_guids(disks: tuple[str, Path, Path]) -> None:
    generic, vendor = partitions(disks[1]), partitions(disks[2])
    assert {label: entry.uuid for label, entry in generic.items()} == {
        label: entry.uuid for label, entry in vendor.items()
    }


def test_sgdisk_finds_no_problems(disks: tuple[str, Path, Path]) -> None:
    for image in disks[1:]:
        assert "No problems found" in run(["sgdisk", "--verify", image]).text


def test_filesystems_are_flatcars(disks: tuple[str, Path, Path]) -> None:
    expected = {
        "EFI-SYSTEM": ("vfat", "EFI-SYSTEM"), "USR-A": ("btrfs", "USR-A"), "OEM": ("btrfs", "OEM"),
        "ROOT": ("ext4", "ROOT"), "USR-B": ("", ""), "OEM-CONFIG": ("", ""),
    }  # fmt: skip
    for image in disks[1:]:
        for label, (kind, name) in expected.items():
            entry = partitions(image)[label]
            place = ["-O", str(entry.offset), "-S", str(entry.size)]
            probe = run(["blkid", "-p", *place, "-o", "export", image], ok=(0, 2)).text
            fields = dict(line.split("=", 1) for line in probe.splitlines() if "=" in line)
            assert (fields.get("TYPE", ""), fields.get("LABEL", "")) == (kind, name), label


def test_usr_leaves_room_for_verity(disks: tuple[str, Path, Path]) -> None:
    size = 260094 * 4096
    for image in disks[1:]:
        entry = partitions(image)["USR-A"]
        with image.open("rb") as file:
            # btrfs's superblock is 64 KiB into it; total_bytes is at 0x70 (btrfs on-disk format).
            file.seek(entry.offset + 0x10000 + 0x70)
            assert int.from_bytes(file.read(8), "little") == size
            file.seek(entry.offset + size)
            assert file.read(1 << 20) == bytes(1 << 20)


def test_root_is_as_good_as_empty_and_fills_its_partition(disks: tuple[str, Path, Path]) -> None:
    for image in disks[1:]:
        entry = partitions(image)["ROOT"]
        where = f"{image}?offset={entry.offset}"
        names = {line.split("/")[5] for line in run(["debugfs", "-R", "ls -p /", where]).text.splitlines() if line}
        assert names == {".", "..", "lost+found", "boot", "usr", "oem"}
        lines = run(["dumpe2fs", "-h", where]).text.splitlines()
        blocks = next(line.split()[-1] for line in lines if line.startswith("Block count:"))
        assert int(blocks) * 4096 == entry.size
        run(["e2fsck", "-fn", where])


def test_oem_of_the_vendor_image_is_filled(disks: tuple[str, Path, Path], tmp_path: Path) -> None:
    generation, _, vendor = disks
    version = {"old": "4459.2.4", "new": "4593.2.5"}[generation]
    entry = partitions(vendor)["OEM"]
    part, tree = tmp_path / "oem", tmp_path / "tree"
    run([
        "dd", f"if={vendor}", f"of={part}", "bs=1M", "conv=sparse", "iflag=skip_bytes,count_bytes", "status=none",
        f"skip={entry.offset}", f"count={entry.size}",
    ])  # fmt: skip
    run(["btrfs", "check", "--readonly", part])
    assert "MIXED_GROUPS" in run(["btrfs", "inspect-internal", "dump-super", part]).text
    tree.mkdir()
    run(["btrfs", "restore", part, tree])
    files = {str(path.relative_to(tree)) for path in tree.rglob("*") if path.is_file()}
    assert files == {"grub.cfg", "oem-release", f"sysext/oem-qemu-{version}.raw", "sysext/active-oem-qemu"}
    assert 'set oem_id="qemu"' in (tree / "grub.cfg").read_text()
    assert "ID=qemu\n" in (tree / "oem-release").read_text()


def test_arm64_has_the_same_table_and_its_own_loader(stand_in_arm64: Path, tmp_path: Path) -> None:
    image = tmp_path / "disk"
    published = stand_in_arm64 / "stable/arm64-usr/current/flatcar_production_qemu_uefi_image.img"
    run(["qemu-img", "convert", "-f", "qcow2", "-O", "raw", published, image])
    assert {label: entry.offset // SECTOR for label, entry in partitions(image).items()} == {
        label: start for label, (_, start, _) in OLD.items()
    }
    listing = run(["mdir", "-/", "-b", "-i", f"{image}@@{4096 * SECTOR}", "::/"]).text
    assert "::/EFI/boot/bootaa64.efi" in listing
    assert "::/flatcar/first_boot" in listing
