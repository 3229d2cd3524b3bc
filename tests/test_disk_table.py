"""Reading partition tables: exact for both layout generations, and nothing doubtful is accepted."""

import struct
import subprocess
import zlib
from pathlib import Path

import pytest
from disks import DISK_BYTES, DISK_GUID, LAYOUTS, SECTOR, USR_A_GUID, make_disk
from forgeries import patch, rewrite_table

from baker.disk import probe_fs, read_table
from baker.errors import ImageError
from baker.sparse import clone

PRIMARY = SECTOR
BACKUP = DISK_BYTES["old"] - SECTOR


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    return make_disk(tmp_path_factory.mktemp("pristine") / "disk.img")


@pytest.fixture
def disk(tmp_path, pristine):
    clone(pristine, tmp_path / "disk.img")
    return tmp_path / "disk.img"


def rewrite_entries(image: Path, change) -> None:
    """Change the partition entries of both copies: `change` gets a bytearray."""
    rewrite_table(image, lambda _, entries: change(entries))


@pytest.mark.parametrize("layout", ["old", "new"])
def test_every_field_of_both_layouts_is_read(tmp_path, layout):
    table = read_table(make_disk(tmp_path / "disk.img", layout))
    assert (table.guid, table.size) == (DISK_GUID, DISK_BYTES[layout])
    assert {p.label: (p.offset // SECTOR, p.size // SECTOR) for p in table.partitions} == LAYOUTS[layout]
    usr = table.get("USR-A")
    assert (usr.number, usr.guid) == (3, USR_A_GUID)
    assert usr.type_guid == "5dfbf5f4-2848-4bac-aa5e-0d9a20b745a6"
    assert usr.attributes == 1 << 48 | 1 << 56
    filesystems = {p.label: p.fs for p in table.partitions if p.fs}
    assert filesystems == {"EFI-SYSTEM": "vfat", "OEM": "btrfs", "ROOT": "ext4"}


def test_it_agrees_with_sfdisk(disk):
    dump = subprocess.run(["/usr/sbin/sfdisk", "--dump", disk], capture_output=True, text=True, check=True).stdout
    for partition in read_table(disk).partitions:
        assert f'uuid={partition.guid.upper()}, name="{partition.label}"' in dump


def test_a_missing_label_is_named_with_those_there_are(disk):
    with pytest.raises(ImageError, match="no STATE partition") as error:
        read_table(disk).get("STATE")
    assert "EFI-SYSTEM, BIOS-BOOT, USR-A, USR-B, OEM, OEM-CONFIG, ROOT" in (error.value.hint or "")


@pytest.mark.parametrize("content", [b"", b"x" * 100, bytes(1 << 20), b"QFI\xfb" + bytes(1 << 20)])
def test_a_file_without_a_gpt_is_refused(tmp_path, content):
    file = tmp_path / "x"
    file.write_bytes(content)
    with pytest.raises(ImageError, match="no GPT"):
        read_table(file)


@pytest.mark.parametrize(
    ("offset", "message"),
    [
        (PRIMARY + 60, "primary .* header fails"),
        (2 * SECTOR + 40, "primary .* entries fail"),
        (BACKUP + 60, "backup .* header fails"),
        (BACKUP - 32 * SECTOR + 40, "backup .* entries fail"),
        (BACKUP, "backup partition table .* is missing"),
    ],
)
def test_damage_in_either_copy_is_refused(disk, offset, message):
    patch(disk, offset, b"\xa5")
    with pytest.raises(ImageError, match=message):
        read_table(disk)


def test_copies_that_differ_are_refused(disk):
    with disk.open("r+b") as file:
        file.seek(BACKUP)
        header = bytearray(file.read(92))
        header[56:72] = bytes(16)
        struct.pack_into("<I", header, 16, 0)
        struct.pack_into("<I", header, 16, zlib.crc32(header))
        file.seek(BACKUP)
        file.write(header)
    with pytest.raises(ImageError, match=r"copies .* differ"):
        read_table(disk)


def test_a_shortened_file_is_refused(disk):
    with disk.open("r+b") as file:
        file.truncate(DISK_BYTES["old"] - 1)
    with pytest.raises(ImageError, match="shorter than its partition table"):
        read_table(disk)


def test_overlapping_partitions_are_refused(disk):
    rewrite_entries(
        disk, lambda entries: struct.pack_into("<Q", entries, 3 * 128 + 32, LAYOUTS["old"]["USR-A"][0] + 8)
    )
    with pytest.raises(ImageError, match="'USR-B' overlaps 'USR-A'"):
        read_table(disk)


@pytest.mark.parametrize("last", [DISK_BYTES["old"] // SECTOR - 20, 1 << 60, 0])
def test_partitions_outside_the_disk_are_refused(disk, last):
    rewrite_entries(disk, lambda entries: struct.pack_into("<Q", entries, 8 * 128 + 40, last))
    with pytest.raises(ImageError, match="'ROOT' reaches beyond the end"):
        read_table(disk)


def test_a_partition_over_the_table_itself_is_refused(disk):
    rewrite_entries(disk, lambda entries: struct.pack_into("<Q", entries, 32, 2))
    with pytest.raises(ImageError, match="'EFI-SYSTEM' overlaps"):
        read_table(disk)


def test_two_partitions_with_one_label_are_refused(disk):
    def relabel(entries: bytearray) -> None:
        entries[3 * 128 + 56 : 3 * 128 + 128] = entries[8 * 128 + 56 : 8 * 128 + 128]

    rewrite_entries(disk, relabel)
    with pytest.raises(ImageError, match="two partitions labelled 'ROOT'"):
        read_table(disk)


def test_other_filesystems_are_named(tmp_path):
    file = tmp_path / "x"
    file.write_bytes(bytes(4096) + b"LUKS\xba\xbe\x00\x01" + bytes(1 << 20))
    assert probe_fs(file, 4096, 1 << 20) == "crypto_LUKS"
    file.write_bytes(bytes(1 << 20))
    assert probe_fs(file, 0, 1 << 20) == ""
