"""Baking into a qcow2 in place: the edited parts are those of the raw disk, all else is the published image's."""

import dataclasses
import os
from pathlib import Path

import pytest
from disks import make_disk, offset

from baker.convert import encode, to_raw
from baker.disk import read_table
from baker.errors import ImageError
from baker.model import Injection
from baker.offline import OfflineEditor
from baker.origin import Origin, prove_edited, unpack_edited
from baker.qcow2 import CLUSTER, read_qcow2
from baker.run import run
from baker.sparse import content_digest, copy_extents, file_sha256
from baker.vendor import DiskFormat

QCOW2 = DiskFormat("qcow2", (("compat", "0.10"),), compress=True)


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """A published image: compressed by qemu-img, as Flatcar's build does it."""
    raw = make_disk(tmp_path / "published.raw")
    run(["qemu-img", "convert", "-c", "-O", "qcow2", "-o", "compat=0.10", raw, tmp_path / "published.img"])
    return tmp_path / "published.img"


def unpacked(image: Path, target: Path) -> Origin:
    origin = unpack_edited(image, target, jobs=2)
    assert origin is not None
    return origin


def part_of(disk: Path, label: str, target: Path) -> str:
    """The digest of one partition's content."""
    part = read_table(disk).get(label)
    with disk.open("rb") as source, target.open("wb") as copy:
        copy.truncate(part.size)
        copy_extents(source.fileno(), copy.fileno(), part.offset, 0, part.size)
    return content_digest(target)


def test_only_what_a_bake_edits_is_unpacked(published: Path, tmp_path: Path) -> None:
    origin = unpacked(published, tmp_path / "edited.raw")
    whole = tmp_path / "published.raw"
    assert read_table(tmp_path / "edited.raw").get("ROOT") == read_table(whole).get("ROOT")
    for label in ("ROOT", "OEM"):
        assert part_of(tmp_path / "edited.raw", label, tmp_path / "a") == part_of(whole, label, tmp_path / "b")
    usr = read_table(whole).get("USR-A")
    with (tmp_path / "edited.raw").open("rb") as file:
        file.seek(usr.offset)
        assert file.read(1 << 20) == bytes(1 << 20)
    origin.unpack_partition(usr, tmp_path / "usr.raw", jobs=2)
    with whole.open("rb") as one, (tmp_path / "usr.raw").open("rb") as two:
        one.seek(usr.offset)
        two.seek(usr.offset)
        assert one.read(1 << 20) == two.read(1 << 20) != bytes(1 << 20)


def test_an_edit_in_place_equals_an_edit_of_the_whole_disk(published: Path, tmp_path: Path) -> None:
    sysext = tmp_path / "payload.raw"
    sysext.write_bytes(os.urandom(20 << 20))
    edits = [Injection("/opt/extensions/x/payload.raw", source=sysext)]
    origin = unpacked(published, tmp_path / "edited.raw")
    to_raw(published, tmp_path / "whole.raw")
    for name in ("edited.raw", "whole.raw"):
        with OfflineEditor(tmp_path / name, tmp_path, 1) as editor:
            editor.apply("ROOT", edits)
    digests = {
        encode(tmp_path / "edited.raw", tmp_path / f"{jobs}.img", QCOW2, jobs, origin=origin) for jobs in (1, 2, 5)
    }
    assert digests == {file_sha256(tmp_path / "1.img")}
    to_raw(tmp_path / "1.img", tmp_path / "made.raw")
    assert content_digest(tmp_path / "made.raw") == content_digest(tmp_path / "whole.raw")


def test_the_published_image_stays_untouched(published: Path, tmp_path: Path) -> None:
    before = file_sha256(published)
    published.chmod(0o444)
    origin = unpacked(published, tmp_path / "edited.raw")
    encode(tmp_path / "edited.raw", tmp_path / "made.img", QCOW2, 2, origin=origin)
    assert file_sha256(published) == before


def damage(path: Path, at: int) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        old = file.read(1)
        file.seek(at)
        file.write(bytes([old[0] ^ 1]))


def test_a_changed_byte_anywhere_is_noticed(published: Path, tmp_path: Path) -> None:
    raw, made = tmp_path / "edited.raw", tmp_path / "made.img"
    origin = unpacked(published, raw)
    encode(raw, made, QCOW2, 2, origin=origin)
    prove_edited(raw, made, origin)
    usr = offset("old", "USR-A") // CLUSTER
    for at in (
        origin.image.entries[usr] & ((1 << 54) - 1),  # of /usr, which was kept
        origin.image.entries[0] & ((1 << 54) - 1),  # of the partition table, which was unpacked
    ):
        damage(made, at)
        with pytest.raises(ImageError, match="does not hold"):
            prove_edited(raw, made, origin)
        damage(made, at)
    damage(raw, offset("old", "ROOT") + 1024 + 0x78)  # the volume's name, in the superblock
    with pytest.raises(ImageError, match="does not hold"):
        prove_edited(raw, made, origin)


def test_kept_data_that_is_found_no_more_is_noticed(published: Path, tmp_path: Path) -> None:
    raw, made = tmp_path / "edited.raw", tmp_path / "made.img"
    origin = unpacked(published, raw)
    usr = offset("old", "USR-A") // CLUSTER
    without = tuple(part for part in origin.kept if usr not in part)
    encode(raw, made, QCOW2, 2, origin=dataclasses.replace(origin, kept=without))
    with pytest.raises(ImageError, match="does not refer to the data"):
        prove_edited(raw, made, origin)


def test_images_of_another_kind_are_unpacked_as_a_whole(published: Path, tmp_path: Path) -> None:
    run(["qemu-img", "convert", "-O", "qcow2", "-o", "compat=1.1", published, tmp_path / "new.img"])
    assert unpack_edited(tmp_path / "new.img", tmp_path / "edited.raw", jobs=2) is None
    assert not (tmp_path / "edited.raw").exists()


def test_a_damaged_image_is_refused(published: Path, tmp_path: Path) -> None:
    image = read_qcow2(published)
    assert image is not None
    entry = next(entry for entry in image.entries if entry >> 62 == 1)
    with published.open("r+b") as file:
        file.seek(entry & ((1 << 54) - 1))
        file.write(b"\xff" * 64)
    with pytest.raises(ImageError, match=r"published\.img is damaged"):
        unpack_edited(published, tmp_path / "edited.raw", jobs=2)
