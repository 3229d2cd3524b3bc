"""Every disk format holds the disk it was made of, the same bytes each time, and damage to it is noticed."""

import os
import random
import struct
import zlib
from pathlib import Path

import pytest

from baker.errors import ImageError
from baker.formats import NATIVE_QCOW2, check_form, prove_disk, takes_over, write_disk
from baker.formats.probe import image_info
from baker.run import run
from baker.sparse import clone
from baker.vendor import DiskFormat

MIB = 1 << 20
ZSTD = DiskFormat("qcow2", (("compat", "1.1"), ("compression_type", "zstd")), compress=True)
FIXED = DiskFormat("vpc", (("force_size", "on"), ("subformat", "fixed")))
DYNAMIC = DiskFormat("vpc", (("subformat", "dynamic"),))
STREAM = DiskFormat("vmdk", (("adapter_type", "lsilogic"), ("subformat", "streamOptimized")))
FORMATS = {
    "raw": DiskFormat("raw"),
    "qcow2": NATIVE_QCOW2,
    "qcow2 zstd": ZSTD,
    "vhd dynamic": DYNAMIC,
    "vhd fixed": FIXED,
    "vhdx": DiskFormat("vhdx"),
    "vmdk ide": DiskFormat("vmdk", (("adapter_type", "ide"),)),
    "vmdk lsilogic": DiskFormat("vmdk", (("adapter_type", "lsilogic"),)),
    "vmdk stream": STREAM,
    "vdi": DiskFormat("vdi"),
    "parallels": DiskFormat("parallels"),
}
every_format = pytest.mark.parametrize("disk", FORMATS.values(), ids=FORMATS)


def make_raw(path: Path, size: int = 80 * MIB) -> Path:
    """A disk of noise, text and zeros, in its first and its last sector too."""
    noise = random.Random(size)
    with path.open("wb") as file:
        file.truncate(size)
        for offset, data in (
            (0, noise.randbytes(512)),
            (20 * MIB + 512, noise.randbytes(MIB)),
            (40 * MIB, b"text " * 50_000),
            (size - 512, noise.randbytes(512)),
        ):
            if offset < size:
                os.pwrite(file.fileno(), data[: size - offset], offset)
    return path


def write(raw: Path, target: Path, disk: DiskFormat, seed: str = "seed", jobs: int = 2) -> Path:
    """As `write_disk`, but the raw disk stays."""
    source = target.parent / f"{target.name}.source"
    clone(raw, source)
    write_disk(source, target, disk, jobs, seed)
    assert source.exists() != takes_over(disk)
    source.unlink(missing_ok=True)
    return target


@every_format
def test_a_disk_comes_back_whole_and_twice_the_same(disk: DiskFormat, tmp_path: Path) -> None:
    raw = make_raw(tmp_path / "disk.raw")
    results = []
    for jobs in (1, 3):
        (tmp_path / str(jobs)).mkdir()
        results.append(write(raw, tmp_path / str(jobs) / "disk.img", disk, jobs=jobs))
        prove_disk(raw, results[-1], disk)
    assert results[0].read_bytes() == results[1].read_bytes()
    assert results[0].stat().st_blocks * 512 < 16 * MIB, "zeros were written"


@pytest.mark.parametrize("size", [MIB + 512, 33 * MIB + 7 * 512, 5 * 126 * MIB + 1536], ids=str)
@every_format
def test_odd_sizes_and_empty_disks(disk: DiskFormat, size: int, tmp_path: Path) -> None:
    # qemu-img itself rounds these two up, and such disks are no vendor's.
    rounded = disk.format in ("vhdx", "parallels") and size % MIB
    for name, raw in (("data", make_raw(tmp_path / "data.raw", size)), ("zeros", tmp_path / "zeros.raw")):
        with raw.open("ab") as file:
            file.truncate(size)
        target = write(raw, tmp_path / name, disk)
        if rounded and image_info(target, disk.format).virtual_size != size:
            with pytest.raises(ImageError, match="bytes"):
                prove_disk(raw, target, disk)
        else:
            prove_disk(raw, target, disk)


@pytest.mark.parametrize("name", ["vhd dynamic", "vhd fixed", "vhdx", "vmdk ide", "vmdk stream", "vdi"])
def test_another_seed_gives_another_identity_of_the_same_disk(name: str, tmp_path: Path) -> None:
    raw = make_raw(tmp_path / "disk.raw")
    one, two = (write(raw, tmp_path / seed, FORMATS[name], seed) for seed in ("one", "two"))
    assert one.read_bytes() != two.read_bytes()
    prove_disk(raw, two, FORMATS[name])


@every_format
def test_a_changed_byte_of_the_disk_is_noticed(disk: DiskFormat, tmp_path: Path) -> None:
    raw = make_raw(tmp_path / "disk.raw")
    target = write(raw, tmp_path / "disk.img", disk)
    with raw.open("r+b") as file:
        file.seek(50 * MIB)
        file.write(b"x")
    with pytest.raises(ImageError, match="does not hold the disk"):
        prove_disk(raw, target, disk)


@pytest.mark.parametrize(("name", "at", "message"), [
    ("vhd fixed", -512 + 20, "checksum of the VHD footer"), ("vhd fixed", -512, "no VHD footer"),
    ("vhd dynamic", -512 + 70, "checksum of the VHD footer"), ("vhd dynamic", 70, "copy at the start differ"),
    ("vhd dynamic", 512 + 900, "checksum of the VHD's dynamic"), ("vhdx", 192 * 1024 + 20, "not a readable"),
    ("vmdk stream", 128 * 512, "out of order|beyond|precede"), ("vmdk stream", -512 + 12, "unexpected marker"),
    ("vmdk stream", -3 * 512 + 12, "unexpected marker"), ("vmdk stream", -2 * 512 + 16, "footer is not the header's"),
])  # fmt: skip
def test_a_changed_byte_of_the_form_is_noticed(name: str, at: int, message: str, tmp_path: Path) -> None:
    raw = make_raw(tmp_path / "disk.raw")
    target = write(raw, tmp_path / "disk.img", FORMATS[name])
    check_form(target, FORMATS[name], raw.stat().st_size)
    with target.open("r+b") as file:
        file.seek(at, os.SEEK_END if at < 0 else os.SEEK_SET)
        old = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([old ^ 0x55]))
    with pytest.raises(ImageError, match=message):
        check_form(target, FORMATS[name], raw.stat().st_size)


def test_a_fixed_vhd_is_what_qemu_writes_but_for_time_and_uuid(tmp_path: Path) -> None:
    raw = make_raw(tmp_path / "disk.raw", 126 * MIB)
    ours = write(raw, tmp_path / "ours.vhd", FIXED).read_bytes()
    run(["qemu-img", "convert", "-O", "vpc", "-o", "subformat=fixed,force_size=on", raw, tmp_path / "theirs.vhd"])
    theirs = (tmp_path / "theirs.vhd").read_bytes()
    assert len(ours) == len(theirs) == 126 * MIB + 512
    differing = {at - 126 * MIB for at in range(126 * MIB, len(ours)) if ours[at] != theirs[at]}
    assert ours[: 126 * MIB] == theirs[: 126 * MIB]
    assert differing <= {*range(24, 28), *range(64, 84)}


def walked(path: Path) -> tuple[list[int], dict[int, bytes], bytes, bytes]:
    """An importer that cannot seek: the kinds of the markers in their order, the grains, the header and the footer."""
    kinds, grains = [], {}
    footer = b""
    with path.open("rb") as file:
        header = file.read(512)
        file.read(struct.unpack_from("<Q", header, 64)[0] * 512 - 512)
        while block := file.read(512):
            value, size, kind = struct.unpack_from("<QII", block)
            if size:
                data = block[12:] + file.read(-(-(12 + size) // 512) * 512 - 512)
                grains[value] = zlib.decompress(data[:size])
                assert not any(data[size:])
                continue
            kinds.append(kind)
            data = file.read(value * 512)
            footer = data if kind == 3 else footer
    return kinds, grains, header, footer


def test_a_stream_can_be_read_without_seeking(tmp_path: Path) -> None:
    raw = make_raw(tmp_path / "disk.raw", 100 * MIB + 512)
    kinds, grains, header, footer = walked(write(raw, tmp_path / "disk.vmdk", STREAM))
    assert kinds == [1, 1, 1, 2, 3, 0]  # three of four tables have grains; directory, footer, end
    disk = bytearray(raw.stat().st_size)
    for sector, data in grains.items():
        assert len(data) == 65536
        part = data[: len(disk) - sector * 512]
        disk[sector * 512 : sector * 512 + len(part)] = part
    assert disk == raw.read_bytes()
    assert header[:8] == footer[:8] == b"KDMV\3\0\0\0"
    assert header[56:64] == b"\xff" * 8 != footer[56:64]


def test_the_descriptor_of_a_stream_names_adapter_hardware_and_extent(tmp_path: Path) -> None:
    raw = make_raw(tmp_path / "disk.raw", 126 * MIB)
    options = (("adapter_type", "ide"), ("hwversion", "13"), ("subformat", "streamOptimized"))
    target = write(raw, tmp_path / "flatcar.vmdk", DiskFormat("vmdk", options))
    text = target.read_bytes()[512 : 21 * 512].rstrip(b"\0").decode()
    assert f'RDONLY {126 * 2048} SPARSE "flatcar.vmdk"' in text
    assert 'ddb.adapterType = "ide"' in text
    assert 'ddb.virtualHWVersion = "13"' in text
    assert 'ddb.geometry.cylinders = "256"' in text
    cid = text.partition("\nCID=")[2][:8]
    assert f'{cid}"' in text.partition("ddb.longContentID")[2].splitlines()[0]


def test_what_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "odd.raw").write_bytes(b"x" * 1000)
    with pytest.raises(ImageError, match="1000 bytes"):
        write_disk(tmp_path / "odd.raw", tmp_path / "odd.vmdk", STREAM, 1, "")
    raw = make_raw(tmp_path / "disk.raw")
    with pytest.raises(ImageError, match="monolithicFlat"):
        write_disk(raw, tmp_path / "flat.vmdk", DiskFormat("vmdk", (("subformat", "monolithicFlat"),)), 1, "")
