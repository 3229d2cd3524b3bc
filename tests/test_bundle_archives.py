"""OVA, box, Parallels, GCE and zip: made from real disks, then judged by programs other than their maker."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import random
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from disks import MIB, tool

from baker.bundles import BundleFacts, make_bundle
from baker.bundles.deflate import write_gzip
from baker.bundles.pieces import Member, file_pieces
from baker.bundles.proof import prove_sparse_tar, prove_tar
from baker.bundles.tars import sparse_tar_pieces, tar_pieces
from baker.bundles.zips import make_zip
from baker.console import Bar
from baker.errors import ImageError, UsageError
from baker.model import Arch
from baker.sparse import content_digest
from baker.vendor import Bundle, Vendor
from baker.vendor_files import load_vendors

VENDORS = load_vendors()
EPOCH = 1_700_000_000
BUNDLED = [name for name, vendor in sorted(VENDORS.items()) if vendor.bundle]
SIZE = 12 * MIB


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sparse disk with data at its start, in its middle, and hardly aligned near its end; it ends in a hole."""
    disk = tmp_path_factory.mktemp("raw") / "disk.raw"
    noise = random.Random(5)
    with disk.open("xb") as file:
        file.truncate(SIZE)
        for offset, content in (
            (0, noise.randbytes(70_000)), (3 * MIB + 5, b"x" * 200_000), (8 * MIB, noise.randbytes(MIB + 1)),
            *((9 * MIB + 131072 * number + 777, b"a few bytes") for number in range(20)),
        ):  # fmt: skip
            file.seek(offset)
            file.write(content)
    return disk


@pytest.fixture(scope="module")
def encode(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[Vendor], Path]:
    """The disk in a vendor's format."""
    folder = tmp_path_factory.mktemp("disks")

    def encoded(vendor: Vendor) -> Path:
        if vendor.disk.format == "raw":
            return raw
        options = ",".join(f"{name}={value}" for name, value in vendor.disk.options)
        target = folder / f"{vendor.disk.format}-{options.replace(',', '-')}"
        if not target.exists():
            arguments = ["-o", options] if options else []
            tool("qemu-img", "convert", "-f", "raw", "-O", vendor.disk.format, *arguments, raw, target)
        return target

    return encoded


def facts_of(vendor: Vendor, disk: Path) -> BundleFacts:
    return BundleFacts(vendor, disk, SIZE, Arch.X86_64, "4230.2.3", ("docker",), "a plan's id", EPOCH)


def bundle_of(name: str, encode: Callable[[Vendor], Path], folder: Path, jobs: int = 2) -> Path:
    vendor = VENDORS[name]
    assert vendor.bundle is not None
    return make_bundle(vendor.bundle, facts_of(vendor, encode(vendor)), folder, jobs)


def unpacked(bundle: Path, folder: Path) -> Path:
    """A bundle unpacked by the program that people would use."""
    folder.mkdir()
    if bundle.suffix == ".zip":
        tool("unzip", "-q", bundle, "-d", folder)
    else:
        tool("tar", "-xf", bundle, "-C", folder)
    return folder


@pytest.mark.parametrize("name", BUNDLED)
def test_other_programs_unpack_a_bundle_to_its_disk_and_texts(
    name: str, encode: Callable[[Vendor], Path], raw: Path, tmp_path: Path
) -> None:
    vendor = VENDORS[name]
    bundle = vendor.bundle
    assert bundle is not None
    target = bundle_of(name, encode, tmp_path)
    assert target == tmp_path / bundle.name
    folder = unpacked(target, tmp_path / "unpacked")
    found = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    manifest = {f"flatcar_production_{name}.mf"} if bundle.format == "ova" else set()
    assert found == {vendor.image, *(item.name for item in bundle.members)} | manifest
    assert (folder / vendor.image).read_bytes() == encode(vendor).read_bytes()
    tool("qemu-img", "compare", "-f", "raw", "-F", vendor.disk.format, raw, folder / vendor.image)
    for extra in bundle.members:
        assert (folder / extra.name).read_text() == facts_of(vendor, encode(vendor)).text(extra)
    for path in folder.rglob("*"):
        if path.is_file():
            assert (path.stat().st_mtime, path.stat().st_mode & 0o777) == (EPOCH, 0o644)


@pytest.mark.parametrize("name", BUNDLED)
def test_a_bundle_is_made_again_byte_for_byte(
    name: str, encode: Callable[[Vendor], Path], raw: Path, tmp_path: Path
) -> None:
    (tmp_path / "again").mkdir()
    first = bundle_of(name, encode, tmp_path, jobs=1)
    vendor = VENDORS[name]
    assert vendor.bundle is not None
    # The same content with no hole in it.
    dense = tmp_path / "dense"
    dense.write_bytes(encode(vendor).read_bytes())
    again = make_bundle(vendor.bundle, facts_of(vendor, dense), tmp_path / "again", jobs=3)
    assert first.read_bytes() == again.read_bytes()


def test_an_ova_is_a_ustar_in_the_order_of_the_standard(encode: Callable[[Vendor], Path], tmp_path: Path) -> None:
    ova = bundle_of("vmware_ova", encode, tmp_path)
    stem = "flatcar_production_vmware_ova"
    with tarfile.open(ova, "r:") as archive:
        infos = archive.getmembers()
        assert [item.name for item in infos] == [f"{stem}.ovf", f"{stem}.mf", f"{stem}_image.vmdk"]
        assert {(item.uid, item.gid, item.type) for item in infos} == {(0, 0, tarfile.REGTYPE)}
        read = {item.name: archive.extractfile(item).read() for item in infos}  # type: ignore[union-attr]
    assert ova.read_bytes()[257:265] == b"ustar\x0000"
    for name in (f"{stem}.ovf", f"{stem}_image.vmdk"):
        assert f"SHA1({name})= {hashlib.sha1(read[name]).hexdigest()}\n".encode() in read[f"{stem}.mf"]
    assert read[f"{stem}.mf"].count(b"\n") == 2


def test_cot_understands_ova_and_ovf(encode: Callable[[Vendor], Path], tmp_path: Path) -> None:
    cot = Path(sys.executable).with_name("cot")
    ova = bundle_of("vmware_ova", encode, tmp_path)
    done = subprocess.run([cot, "info", ova], capture_output=True, text=True, check=True)
    assert "WARNING" not in done.stderr and "ERROR" not in done.stderr
    for said in ("VmxNet3", "vmx-13", "2 GiB", "flatcar_production_vmware_ova_ima", "VirtualSCSI", "SCSI 0:0"):
        assert said in done.stdout, done.stdout
    folder = unpacked(bundle_of("vagrant", encode, tmp_path), tmp_path / "unpacked")
    done = subprocess.run([cot, "info", folder / "box.ovf"], capture_output=True, text=True, check=True)
    assert "WARNING" not in done.stderr and "ERROR" not in done.stderr
    assert "flatcar_production_vagrant_image" in done.stdout and "SATA 0:0" in done.stdout


@pytest.mark.parametrize(
    ("name", "provider", "uri"),
    [
        ("vmware_ova", "", "http://www.vmware.com/interfaces/specifications/vmdk.html#streamOptimized"),
        ("vagrant", "virtualbox", "http://www.vmware.com/specifications/vmdk.html#sparse"),
    ],
)
def test_an_ovf_names_the_format_that_its_disk_has(
    name: str, provider: str, uri: str, encode: Callable[[Vendor], Path], tmp_path: Path
) -> None:
    folder = unpacked(bundle_of(name, encode, tmp_path), tmp_path / "unpacked")
    disk = folder / VENDORS[name].image
    described = json.loads(tool("qemu-img", "info", "--output=json", disk))
    subformat = described["format-specific"]["data"]["create-type"]
    assert ("streamOptimized" in uri) == (subformat == "streamOptimized")
    ovf = next(folder.glob("*.ovf"))

    def said(element: str, attribute: str) -> str:
        path = f"string(//*[local-name()='{element}']/@*[local-name()='{attribute}'])"
        return tool("xmllint", "--xpath", path, ovf).decode().strip()

    assert said("Disk", "format") == uri
    assert said("Disk", "capacity") == str(SIZE)
    assert said("File", "size") == str(disk.stat().st_size)
    assert said("File", "href") == disk.name


@pytest.mark.parametrize(
    ("name", "provider", "wanted"),
    [
        ("vagrant", "virtualbox", "box.ovf"),
        ("vagrant_virtualbox", "virtualbox", "box.ovf"),
        ("vagrant_parallels", "parallels", "*.pvm/config.pvs"),
        ("vagrant_vmware_fusion", "vmware_desktop", "*.vmx"),
    ],
)
def test_a_box_has_what_its_provider_looks_for(
    name: str, provider: str, wanted: str, encode: Callable[[Vendor], Path], tmp_path: Path
) -> None:
    box = bundle_of(name, encode, tmp_path)
    with tarfile.open(box, "r:gz") as archive:
        assert archive.getnames()[0] == "metadata.json"
    folder = unpacked(box, tmp_path / "unpacked")
    assert json.loads((folder / "metadata.json").read_text()) == {"provider": provider, "architecture": "amd64"}
    assert (folder / "Vagrantfile").is_file()
    assert len(list(folder.glob(wanted))) == 1


@pytest.mark.parametrize("name", ["parallels", "vagrant_parallels"])
def test_a_parallels_folder_describes_the_disk_in_it(
    name: str, encode: Callable[[Vendor], Path], tmp_path: Path
) -> None:
    folder = unpacked(bundle_of(name, encode, tmp_path), tmp_path / "unpacked")
    (descriptor,) = folder.rglob("DiskDescriptor.xml")

    def said(path: str) -> int:
        return int(tool("xmllint", "--xpath", f"string(//{path})", descriptor))

    assert said("Disk_size") == said("End") == said("Cylinders") * said("Heads") * said("Sectors") == SIZE // 512
    file = tool("xmllint", "--xpath", "string(//Image/File)", descriptor).decode().strip()
    header = (descriptor.parent / file).read_bytes()[:64]
    assert said("Blocksize") == int.from_bytes(header[28:32], "little")  # qemu's docs/interop/parallels.txt: tracks
    (config,) = folder.rglob("config.pvs")
    named = tool("xmllint", "--xpath", "string(//Hdd/SystemName)", config).decode().strip()
    assert (config.parent / named).samefile(descriptor.parent)
    assert (descriptor.parent / named).read_bytes() == b""


def test_gnu_tar_unpacks_the_image_for_gce_as_sparse_as_it_was(
    encode: Callable[[Vendor], Path], raw: Path, tmp_path: Path
) -> None:
    target = bundle_of("gce", encode, tmp_path)
    listed = tool("tar", "-tvzf", target).decode().splitlines()
    assert len(listed) == 1
    assert listed[0].startswith("-rw-r--r-- root/root") and listed[0].endswith(" disk.raw")
    folder = unpacked(target, tmp_path / "unpacked")
    disk = folder / "disk.raw"
    assert content_digest(disk) == content_digest(raw)
    assert disk.stat().st_blocks * 512 < 6 * MIB
    head = subprocess.run(["gzip", "-dc", target], capture_output=True, check=True).stdout[:512]
    assert (head[257:265], head[156:157]) == (b"ustar  \0", b"S")
    with tarfile.open(target) as archive:
        assert archive.getmembers()[0].size == SIZE


@pytest.mark.parametrize("data_at", [(), (0,), (9 << 30,)], ids=["a hole", "begins with data", "data behind 9 GiB"])
def test_a_sparse_tar_of_a_large_disk_is_small_and_whole(data_at: tuple[int, ...], tmp_path: Path) -> None:
    disk = tmp_path / "disk.raw"
    with disk.open("xb") as file:
        file.truncate((9 << 30) + MIB)
        for offset in data_at:
            file.seek(offset)
            file.write(b"data")
    target = tmp_path / "large.tar"
    with target.open("xb") as file:
        file.writelines(sparse_tar_pieces("disk.raw", disk, EPOCH))
    assert target.stat().st_size < 100_000
    folder = unpacked(target, tmp_path / "unpacked")
    assert content_digest(folder / "disk.raw") == content_digest(disk)


def test_a_disk_that_no_ova_can_hold_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    disk = tmp_path / "disk.vmdk"
    with disk.open("xb") as file:
        file.truncate(8 << 30)
    vendor = VENDORS["vmware_ova"]
    assert vendor.bundle is not None
    with pytest.raises(ImageError, match="no file in an OVA may have more than 8589934591"):
        make_bundle(vendor.bundle, facts_of(vendor, disk), tmp_path)
    assert list(tmp_path.iterdir()) == [disk]


def test_a_bundle_that_its_vendor_describes_wrongly_is_an_error(
    encode: Callable[[Vendor], Path], tmp_path: Path
) -> None:
    for name, reason in (("vmware_ova", r"needs one member \*\.ovf"), ("vagrant", r"needs one member metadata\.json")):
        vendor = VENDORS[name]
        assert vendor.bundle is not None
        bundle = Bundle(vendor.bundle.format, "x", ())
        with pytest.raises(UsageError, match=reason):
            make_bundle(bundle, facts_of(vendor, encode(vendor)), tmp_path)
    vendor = dataclasses.replace(VENDORS["gce"], image="other.raw")
    assert vendor.bundle is not None
    with pytest.raises(UsageError, match=r"a raw disk called disk\.raw and nothing else"):
        make_bundle(vendor.bundle, facts_of(vendor, encode(vendor)), tmp_path)
    assert not list(tmp_path.iterdir())


def test_what_was_packed_wrongly_is_found(tmp_path: Path) -> None:
    def written(*members: Member) -> Path:
        target = tmp_path / "x.tgz"
        with target.open("wb") as file:
            write_gzip(file, tar_pieces(members, EPOCH), 1)
        return target

    good = [Member("a", b"content"), Member("b", b"more")]
    prove_tar(written(*good), good)
    for wrong in ([Member("a", b"CONTENT"), good[1]], [Member("a", b"content!"), good[1]], good[:1], good[::-1],
                  [*good, Member("c", b"")]):  # fmt: skip
        with pytest.raises(ImageError):
            prove_tar(written(*wrong), good)
    target = written(*good)
    target.write_bytes(target.read_bytes()[:-30])
    with pytest.raises(ImageError, match="cannot be read back"):
        prove_tar(target, good)


def test_a_sparse_tar_that_was_packed_wrongly_is_found(raw: Path, tmp_path: Path) -> None:
    def prove(other: Path, name: str = "disk.raw") -> None:
        target = tmp_path / "x.tar.gz"
        with target.open("wb") as file:
            write_gzip(file, sparse_tar_pieces(name, other, EPOCH), 1)
        prove_sparse_tar(target, "disk.raw", raw)

    prove(raw)
    with pytest.raises(ImageError, match=r"without disk\.raw"):
        prove(raw, name="other.raw")
    for offset, change, reason in ((8 * MIB + 5, b"other", "does not unpack"), (2 * MIB, b"other", "other holes")):
        other = tmp_path / "other"
        other.write_bytes(raw.read_bytes())
        with other.open("r+b") as file:
            file.seek(offset)
            file.write(change)
        with pytest.raises(ImageError, match=reason):
            prove(other)


def test_the_insecure_zip_holds_no_private_key(encode: Callable[[Vendor], Path], tmp_path: Path) -> None:
    folder = unpacked(bundle_of("vmware_insecure", encode, tmp_path), tmp_path / "unpacked")
    texts = [path.read_bytes() for path in folder.rglob("*") if path.is_file()]
    assert texts and not any(b"PRIVATE KEY" in text for text in texts)


@pytest.mark.parametrize(("epoch", "shown"), [(0, (1980, 1, 1, 0, 0, 0)), (EPOCH, (2023, 11, 14, 22, 13, 20))])
def test_a_zip_is_read_by_others(epoch: int, shown: tuple[int, ...], raw: Path, tmp_path: Path) -> None:
    target = tmp_path / "x.zip"
    make_zip(target, [Member("empty", b""), Member("a/disk", raw), Member("script", b"#!/bin/sh\n", 0o755)], 2, epoch,
              Bar())  # fmt: skip
    tool("unzip", "-tq", target)
    with zipfile.ZipFile(target) as archive:
        assert archive.testzip() is None
        infos = archive.infolist()
        assert [(item.filename, item.file_size, item.date_time) for item in infos] == [
            ("empty", 0, shown), ("a/disk", SIZE, shown), ("script", 10, shown),
        ]  # fmt: skip
        assert [item.external_attr >> 16 & 0o777 for item in infos] == [0o644, 0o644, 0o755]


def test_a_zip_of_more_than_4_gib_is_read_by_others(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    with disk.open("xb") as file:
        file.truncate((4 << 30) + 5)
        file.seek(1 << 30)
        file.write(b"data")
    target = tmp_path / "x.zip"
    make_zip(target, [Member("disk", disk), Member("text", b"text")], 2, EPOCH, Bar())
    with zipfile.ZipFile(target) as archive:
        assert [item.file_size for item in archive.infolist()] == [(4 << 30) + 5, 4]
        assert archive.read("text") == b"text"
    assert b"text: OK" in tool("unzip", "-t", target, "text").replace(b"  ", b"").replace(b"text OK", b"text: OK")


def test_pieces_are_the_file_whatever_its_holes(raw: Path, tmp_path: Path) -> None:
    for size in (MIB, 700 << 10, 4096):
        assert b"".join(file_pieces(raw, size)) == raw.read_bytes()
    for length in (0, 1, MIB, MIB + 1):
        hole = tmp_path / "hole"
        with hole.open("wb") as file:
            file.truncate(length)
        assert [len(piece) for piece in file_pieces(hole)] == [MIB] * (length // MIB) + [length % MIB] * (
            length % MIB > 0
        )
