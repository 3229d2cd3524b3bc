"""Growing ROOT, and moving partitions in and out: only what must change changes, without root and loop devices."""

import hashlib
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from disks import (
    DISK_BYTES,
    LAYOUTS,
    MIB,
    SECTOR,
    VM_DISK_BYTES,
    VM_ROOT_BYTES,
    make_disk,
    make_root,
    offset,
    put,
    tool,
)

from baker.disk import check_filesystems, extract, grow_root, read_table, write_back
from baker.errors import ImageError
from baker.offline import OfflineEditor
from baker.sparse import clone, content_digest

FILES = {"/etc/hostname": b"flatcar\n", "/opt/data": bytes(range(256)) * 4096, "/etc/link": "hostname"}


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    return make_disk(tmp_path_factory.mktemp("pristine") / "disk.img", root_files=FILES)


@pytest.fixture
def image(tmp_path, pristine):
    """A disk of the old layout with FILES, alone in tmp_path."""
    clone(pristine, tmp_path / "disk.img")
    return tmp_path / "disk.img"


def digests(image: Path) -> dict[str, str]:
    """sha256 of every partition but ROOT, by label."""
    found = {}
    with image.open("rb") as file:
        for partition in read_table(image).partitions:
            if partition.label != "ROOT":
                file.seek(partition.offset)
                # All that our disks have is in the first part of a partition; the rest are holes.
                found[partition.label] = hashlib.sha256(file.read(min(partition.size, 48 * MIB))).hexdigest()
    return found


def sgdisk_problems(image: Path) -> str:
    return subprocess.run(["/usr/sbin/sgdisk", "-v", image], capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("layout", ["old", "new"])
def test_growing_to_the_vm_layout_changes_nothing_else(tmp_path, layout):
    image = make_disk(tmp_path / "disk.img", layout, FILES)
    boot_code = bytes(range(200)) * 2
    with image.open("r+b") as file:
        file.write(boot_code)
    before, contents = read_table(image), digests(image)
    with OfflineEditor(image, tmp_path, 0) as editor:
        tree = editor.tree("ROOT")

    after = grow_root(image, VM_ROOT_BYTES, VM_DISK_BYTES[layout], tmp_path)

    assert image.stat().st_size == after.size == VM_DISK_BYTES[layout]
    assert after == read_table(image)
    assert after.guid == before.guid
    assert after.partitions == (*before.partitions[:-1], replace(before.get("ROOT"), size=VM_ROOT_BYTES))
    assert digests(image) == contents
    with image.open("rb") as file:
        assert file.read(len(boot_code)) == boot_code
    assert "No problems found" in sgdisk_problems(image)
    check_filesystems(image, after, ["ROOT", "OEM", "EFI-SYSTEM"], tmp_path)
    with OfflineEditor(image, tmp_path, 0) as editor:
        assert editor.tree("ROOT") == tree
        assert editor.free_bytes("ROOT") > VM_ROOT_BYTES * 9 // 10
    assert image.stat().st_blocks * 512 < 64 * MIB
    assert [path.name for path in tmp_path.iterdir()] == ["disk.img"]


def test_the_same_disk_grows_to_the_same_bytes(image, tmp_path):
    other = tmp_path / "other.img"
    clone(image, other)
    for disk in (image, other):
        grow_root(disk, VM_ROOT_BYTES, VM_DISK_BYTES["old"], tmp_path)
    assert content_digest(image) == content_digest(other)


def test_all_attribute_bits_and_unknown_types_survive(image, tmp_path):
    tool("sfdisk", "--quiet", "--part-attrs", image, "9", "RequiredPartition,LegacyBIOSBootable,GUID:49,52,60,63")
    tool("sfdisk", "--quiet", "--part-type", image, "7", "12345678-1234-5678-1234-567812345678")
    before = read_table(image)
    after = grow_root(image, VM_ROOT_BYTES, VM_DISK_BYTES["old"], tmp_path)
    assert (
        before.get("ROOT").attributes == after.get("ROOT").attributes == 1 | 4 | 1 << 49 | 1 << 52 | 1 << 60 | 1 << 63
    )
    assert after.get("OEM-CONFIG") == before.get("OEM-CONFIG")


def test_a_hybrid_mbr_is_kept(image, tmp_path):
    tool("sgdisk", "--hybrid", "1", image)
    with image.open("rb") as file:
        before = file.read(SECTOR)
    grow_root(image, VM_ROOT_BYTES, VM_DISK_BYTES["old"], tmp_path)
    with image.open("rb") as file:
        assert file.read(SECTOR) == before


def test_only_the_disk_can_grow(image, tmp_path):
    root = read_table(image).get("ROOT")
    after = grow_root(image, root.size, 10 << 30, tmp_path)
    assert after.get("ROOT") == root
    assert image.stat().st_size == 10 << 30
    assert "No problems found" in sgdisk_problems(image)


def test_equal_sizes_change_nothing(image, tmp_path):
    before = content_digest(image)
    grow_root(image, LAYOUTS["old"]["ROOT"][1] * SECTOR, DISK_BYTES["old"], tmp_path)
    assert content_digest(image) == before


@pytest.mark.parametrize(
    ("root_size", "disk_size", "message"),
    [
        (1 << 30, VM_DISK_BYTES["old"], "cannot shrink"),
        (VM_ROOT_BYTES, 1 << 30, "cannot shrink"),
        (VM_ROOT_BYTES, DISK_BYTES["old"], "does not fit"),
        (VM_ROOT_BYTES + 1, VM_DISK_BYTES["old"], "multiples of 512"),
    ],
)
def test_impossible_sizes_are_refused_before_anything_is_written(image, tmp_path, root_size, disk_size, message):
    before = content_digest(image)
    with pytest.raises(ImageError, match=message):
        grow_root(image, root_size, disk_size, tmp_path)
    assert content_digest(image) == before


def test_another_filesystem_on_root_is_named(image, tmp_path):
    with image.open("r+b") as file:
        file.seek(offset("old", "ROOT"))
        file.write(b"XFSB" + bytes(4096))
    with pytest.raises(ImageError, match="ROOT cannot grow: it holds"):
        grow_root(image, VM_ROOT_BYTES, VM_DISK_BYTES["old"], tmp_path)


def test_a_partition_goes_out_and_back_sparsely(image, tmp_path):
    before, root = content_digest(image), read_table(image).get("ROOT")
    extract(image, root, tmp_path / "root")
    assert (tmp_path / "root").stat().st_size == root.size
    assert (tmp_path / "root").stat().st_blocks * 512 < 16 * MIB
    with image.open("r+b") as file:
        file.seek(root.offset + root.size // 2)
        file.write(b"rubbish")
    write_back(image, root, tmp_path / "root")
    assert content_digest(image) == before
    with pytest.raises(ImageError, match="do not fit"):
        write_back(image, read_table(image).get("OEM"), tmp_path / "root")


@pytest.mark.parametrize(
    ("label", "at"), [("ROOT", 4096 + 64), ("OEM", (4 << 20) + 4096), ("EFI-SYSTEM", 2048 + 1024)]
)
def test_damaged_filesystems_are_found(image, tmp_path, label, at):
    table = read_table(image)
    with image.open("r+b") as file:
        for position in range(at, at + (2 << 20), 512):
            file.seek(offset("old", label) + position)
            file.write(b"\x5a" * 16)
    with pytest.raises(ImageError, match=f"{label} is damaged"):
        check_filesystems(image, table, [label], tmp_path)


def test_a_filesystem_larger_than_its_partition_is_refused(image, tmp_path):
    large = make_root(tmp_path / "large", 4 << 30, {})
    with large.open("r+b") as file:
        file.truncate(LAYOUTS["old"]["ROOT"][1] * SECTOR)
    put(image, "old", "ROOT", large)
    with pytest.raises(ImageError, match="claims more space than its partition"):
        check_filesystems(image, read_table(image), ["ROOT"], tmp_path)


def test_odd_folder_names_are_no_options(image, tmp_path):
    folder = tmp_path / "a?offset=0 'b'"
    folder.mkdir()
    odd = image.rename(folder / "disk?x.img")
    grow_root(odd, VM_ROOT_BYTES, VM_DISK_BYTES["old"], folder)
    check_filesystems(odd, read_table(odd), ["ROOT", "OEM"], folder)
