"""Conversions keep every byte, and a result that is not the same disk is refused."""

import os
from pathlib import Path

import pytest

from baker.convert import encode, to_raw
from baker.errors import ImageError
from baker.formats import NATIVE_QCOW2 as QCOW2
from baker.formats import prove_disk
from baker.formats.probe import image_info
from baker.run import run
from baker.sparse import content_digest
from baker.vendor import DiskFormat


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """A 64 MiB disk with data at the start, a megabyte of it in the middle, and in the last sector."""
    path = tmp_path / "disk.raw"
    with path.open("wb") as file:
        file.truncate(64 << 20)
        for offset, length in ((0, 512), (20 << 20, 1 << 20), ((64 << 20) - 512, 512)):
            os.pwrite(file.fileno(), os.urandom(length), offset)
    return path


def test_qcow2_keeps_every_byte_and_the_old_readers_happy(raw: Path, tmp_path: Path) -> None:
    target = tmp_path / "disk.img"
    encode(raw, target, QCOW2, jobs=2)
    assert image_info(target).format == "qcow2"
    assert b"compat: 0.10" in run(["qemu-img", "info", target]).stdout
    to_raw(target, tmp_path / "again.raw")
    assert content_digest(tmp_path / "again.raw") == content_digest(raw)


def test_the_same_disk_encodes_to_the_same_bytes(raw: Path, tmp_path: Path) -> None:
    encode(raw, tmp_path / "one.img", QCOW2, jobs=2)
    encode(raw, tmp_path / "two.img", QCOW2, jobs=2)
    assert (tmp_path / "one.img").read_bytes() == (tmp_path / "two.img").read_bytes()


def test_a_raw_result_takes_the_disk_over_without_copying(raw: Path, tmp_path: Path) -> None:
    inode = raw.stat().st_ino
    encode(raw, tmp_path / "out.bin", DiskFormat("raw"), jobs=2)
    assert (tmp_path / "out.bin").stat().st_ino == inode
    assert not raw.exists()


def test_a_result_with_one_other_byte_is_refused(raw: Path, tmp_path: Path) -> None:
    target = tmp_path / "disk.img"
    encode(raw, target, QCOW2, jobs=2)
    with raw.open("r+b") as file:
        file.seek(30 << 20)
        file.write(b"x")
    with pytest.raises(ImageError, match="does not hold the disk"):
        prove_disk(raw, target, QCOW2)


def test_a_result_of_another_size_or_format_is_refused(raw: Path, tmp_path: Path) -> None:
    target = tmp_path / "disk.img"
    encode(raw, target, QCOW2, jobs=2)
    with pytest.raises(ImageError, match="instead of raw"):
        prove_disk(raw, target, DiskFormat("raw"))
    os.truncate(raw, 65 << 20)
    with pytest.raises(ImageError, match="bytes"):
        prove_disk(raw, target, QCOW2)


def test_an_image_that_points_at_another_file_is_refused(raw: Path, tmp_path: Path) -> None:
    overlay = tmp_path / "overlay.qcow2"
    run(["qemu-img", "create", "-q", "-f", "qcow2", "-b", raw, "-F", "raw", overlay])
    with pytest.raises(ImageError, match="refers to another file"):
        to_raw(overlay, tmp_path / "out.raw")
    with_data = tmp_path / "with-data.qcow2"
    run(["qemu-img", "create", "-q", "-f", "qcow2", "-o", f"data_file={tmp_path}/data.raw", with_data, "1M"])
    with pytest.raises(ImageError, match="refers to another file"):
        to_raw(with_data, tmp_path / "out.raw")


def test_a_damaged_qcow2_is_refused(raw: Path, tmp_path: Path) -> None:
    target = tmp_path / "disk.img"
    encode(raw, target, QCOW2, jobs=2)
    os.truncate(target, target.stat().st_size // 2)
    with pytest.raises(ImageError, match=r"disk\.img"):
        to_raw(target, tmp_path / "out.raw")


def test_a_format_that_cannot_be_edited_is_named(raw: Path, tmp_path: Path) -> None:
    run(["qemu-img", "convert", "-O", "vmdk", raw, tmp_path / "disk.vmdk"])
    with pytest.raises(ImageError, match="is a vmdk image"):
        to_raw(tmp_path / "disk.vmdk", tmp_path / "out.raw")
