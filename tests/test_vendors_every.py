"""Every vendor of the catalogue: baked side by side from small releases, and the final files judged by others."""

from __future__ import annotations

import bz2
import json
import random
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from cli import flatcar_bake
from disks import DISK_GUID, MIB, make_disk, make_oem, make_root, put, tool
from keys import TestKey
from mirrors import SignedMirror
from servers import MirrorServer
from sysexts import make_sysext

from baker.disk import extract, read_table
from baker.model import Arch, Channel, Release
from baker.run import run
from baker.sparse import clone, data_extents, file_sha256
from baker.vendor import Vendor, numbers
from baker.vendor_files import load_vendors

VENDORS = load_vendors()
GIB = 1 << 30
_HOLE = 16 * MIB
_FORMATS = {".img": "qcow2", ".bin": "raw"}


@dataclass(frozen=True)
class Batch:
    """A release, the generation of its disk, and the vendors that are baked from it in one run."""

    release: Release
    generation: str
    vendors: tuple[str, ...]

    @property
    def disk(self) -> dict[str, int]:
        """Bytes of the disk for each layout: flatcar/scripts build_library/disk_layout.json of that time, computed."""
        if self.generation == "old":
            return {"base": 4756340736, "vm": 9116319744, "vm-new": 4756340736, "azure": 32633782272}
        return {"base": 8455716864, "vm": 13212057600, "vm-new": 13212057600, "vagrant": 23913824256}


OLD = Release("4459.2.4", Channel.STABLE, Arch.X86_64)
NEW = Release("4757.1.0", Channel.BETA, Arch.X86_64)
ARM64 = Release("4459.2.4", Channel.STABLE, Arch.ARM64)


def members(release: Release, *layouts: str, own: bool = False) -> tuple[str, ...]:
    """The vendors of these layouts; those whose images the release must publish itself are a batch of their own."""
    return tuple(
        name for name, vendor in VENDORS.items()
        if vendor.layout in layouts and bool(published_image(name, release)) == own
    )  # fmt: skip


def published_image(name: str, release: Release) -> str:
    """The image that the release publishes for a vendor with OEM content that is nowhere else; "" for others."""
    vendor = VENDORS[name].at(release.version)
    late = vendor.oem and vendor.oem.sysext and numbers(release.version) < numbers(vendor.oem.since)
    return vendor.published[0] if vendor.published_only or late else ""


BATCHES = {
    "base": Batch(OLD, "old", members(OLD, "base", "vm-new")),
    "larger": Batch(OLD, "old", members(OLD, "vm", "azure")),
    "own images": Batch(OLD, "old", members(OLD, "base", "vm", own=True)),
    # Boxes are made since 4722; what changed its layout with the newer generation is baked for both.
    "boxes": Batch(NEW, "new", (*members(NEW, "vagrant"), "ami", "cloudsigma", "exoscale")),
    "arm64": Batch(ARM64, "old", ("azure", "packet", "qemu_uefi")),
}
# Platforms that take disks of certain sizes only: GCE whole GiB, Exoscale 10 GiB or more.
SIZES = {"gce": 9 * GIB, "exoscale": 10 * GIB}


def packed(file: Path) -> bytes:
    """A file as bz2. Holes become streams of their own, made once: packing gigabytes of zeros takes long."""
    zeros, streams, at = bz2.compress(bytes(_HOLE)), [], 0
    with file.open("rb") as source:
        for start, length in [*data_extents(source.fileno()), (file.stat().st_size, 0)]:
            whole, rest = divmod(start - at, _HOLE)
            streams += [zeros] * whole + ([bz2.compress(bytes(rest))] if rest else [])
            source.seek(start)
            streams.append(bz2.compress(source.read(length), 1))
            at = start + length
    return b"".join(streams)


@contextmanager
def published(batch: Batch, folder: Path) -> Iterator[dict[str, str]]:
    """The signed release of a batch on a server; yields the environment that uses it."""
    release = batch.release
    disk = make_disk(folder / "disk.raw", batch.generation)
    os_release = f"ID=flatcar\nVERSION={release.version}\nFLATCAR_BOARD={release.board}\n".encode()
    put(disk, batch.generation, "USR-A", make_root(folder / "usr", 8 * MIB, {"/lib/os-release": os_release}))
    with TestKey() as key, MirrorServer(folder / "www") as server:
        key.add_subkey()
        (folder / "key").write_bytes(key.export())
        mirror = SignedMirror(folder / "www", key)
        mirror.put("flatcar_production_image.bin.bz2", packed(disk), release)
        mirror.put_version(release)
        mirror.put_feed((release.version, release.channel, ["amd64", "arm64"]))
        for name in batch.vendors:
            oem, image = VENDORS[name].oem, published_image(name, release)
            if oem and image:
                mirror.put(image, _own_image(disk, batch.generation, image, oem.id, folder), release)
            elif oem and oem.sysext and not (folder / f"oem-{oem.sysext}.raw").exists():
                made = make_sysext(folder, f"oem-{oem.sysext}", f"ID=flatcar\nVERSION_ID={release.version}\n")
                mirror.put(made.name, made.read_bytes(), release)
        yield {
            "FLATCAR_BAKE_MIRROR": server.url, "FLATCAR_BAKE_SIGNING_KEY": str(folder / "key"),
            "FLATCAR_BAKE_FINGERPRINT": key.fingerprint, "FLATCAR_BAKE_CACHE_DIR": str(folder / "cache"),
        }  # fmt: skip


def _own_image(disk: Path, generation: str, name: str, oem_id: str, folder: Path) -> bytes:
    """A vendor's image with OEM files of the kind that came before OEM sysexts."""
    texts = {
        "/grub.cfg": f'set oem_id="{oem_id}"\n'.encode(), "/oem-release": f"ID={oem_id}\n".encode(),
        "/cloud-config.yml": b"#cloud-config\n",
    }  # fmt: skip
    work = folder / f"own-{name}"
    work.mkdir(exist_ok=True)
    raw = work / "raw"
    if not raw.exists():
        clone(disk, raw)
        put(raw, generation, "OEM", make_oem(work / "oem", 128 * MIB, texts))
    made = work / name.removesuffix(".bz2")
    tool("qemu-img", "convert", "-f", "raw", "-O", _FORMATS[made.suffix], raw, made)
    return packed(made) if name.endswith(".bz2") else made.read_bytes()


@dataclass(frozen=True)
class Baked:
    """What one bake for many vendors wrote."""

    out: Path
    batch: Batch
    sysext: Path
    outputs: dict[str, str]


def bake(batch: Batch, folder: Path) -> Baked:
    machine = batch.release.arch
    words = f"ID=_any\nARCHITECTURE={machine}\n"
    sysext = make_sysext(folder, "tools", words, files={"usr/share/tools/data": random.Random(3).randbytes(3 * MIB)})
    with published(batch, folder) as env:
        done = flatcar_bake(
            "--release", batch.release.version, "--arch", machine, "--vendor", ",".join(batch.vendors), "--json",
            "--kernel-arg", "baked=yes", "-j", "2", "-o", folder / "out", f"tools:{sysext}", env=env,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    outputs = {item["file"]: item["vendor"] for item in json.loads(done.stdout)["outputs"]}
    return Baked(folder / "out", batch, sysext, outputs)


@pytest.mark.long
@pytest.mark.parametrize("batch", BATCHES)
def test_the_final_files_of_every_vendor_hold_what_was_baked(batch: str, tmp_path: Path) -> None:
    baked = bake(BATCHES[batch], tmp_path)
    for name in baked.batch.vendors:
        assert {file for file, vendor in baked.outputs.items() if vendor == name} == set(VENDORS[name].outputs)
        try:
            with TemporaryDirectory(dir=tmp_path) as folder:
                check(baked, VENDORS[name], Path(folder))
        except Exception as error:
            error.add_note(f"This is {name}.")
            raise


def check(baked: Baked, vendor: Vendor, folder: Path) -> None:
    """Read a vendor's final file back to a raw disk, and look into that."""
    disk = unwrapped(baked.out / vendor.result, vendor, folder)
    raw = decoded(disk, vendor, folder)
    assert raw.stat().st_size == SIZES.get(vendor.name, baked.batch.disk[vendor.layout])
    assert "No problems found" in run(["sgdisk", "-v", raw]).text
    table = read_table(raw)
    assert json.loads(run(["sfdisk", "--json", raw]).text)["partitiontable"]["id"] == DISK_GUID.upper()
    root, oem = (part_of(raw, label, folder) for label in ("ROOT", "OEM"))
    assert root.stat().st_size == table.get("ROOT").size
    run(["e2fsck", "-fn", root])
    facts = dict(line.split(":", 1) for line in run(["dumpe2fs", "-h", root]).text.splitlines() if ":" in line)
    assert int(facts["Block count"]) * int(facts["Block size"]) == root.stat().st_size, "ROOT is not filled"
    run(["debugfs", "-R", f"dump /opt/extensions/tools/tools.raw {folder}/tools.raw", root])
    assert file_sha256(folder / "tools.raw") == file_sha256(baked.sysext)
    run(["btrfs", "check", oem])
    check_oem(raw, vendor.at(baked.batch.release.version), baked.batch.release)


def check_oem(raw: Path, vendor: Vendor, release: Release) -> None:
    """What GRUB reads in the OEM partition."""
    listing = run(["grub-fstest", raw, "ls", "(loop0,gpt6)/"]).text.split()
    if vendor.oem is None:
        assert "oem-release" not in listing
        return
    grub = run(["grub-fstest", raw, "cat", "(loop0,gpt6)/grub.cfg"]).text
    assert f'set oem_id="{vendor.oem.id}"' in grub
    assert "baked=yes" in grub
    if published_image(vendor.name, release):
        assert "cloud-config.yml" in listing
    elif sysext := vendor.oem.sysext:
        held = run(["grub-fstest", raw, "ls", "(loop0,gpt6)/sysext/"]).text.split()
        assert {f"oem-{sysext}-{release.version}.raw", f"active-oem-{sysext}"} <= set(held)


def part_of(raw: Path, label: str, folder: Path) -> Path:
    """A partition as a file."""
    target = folder / label
    extract(raw, read_table(raw).get(label), target)
    return target


def unwrapped(file: Path, vendor: Vendor, folder: Path) -> Path:
    """The disk in the file that is handed to the platform, taken out by the programs that people use."""
    target = folder / vendor.image
    if vendor.bundle and vendor.bundle.format == "zip":
        tool("unzip", "-q", file, "-d", folder)
    elif vendor.bundle:
        tool("tar", "-xSf", file, "-C", folder)
    elif vendor.compress == "zip":
        tool("unzip", "-q", file, "-d", folder)
    elif vendor.compress:
        program = {"gz": "gzip", "bz2": "lbzip2", "zst": "zstd"}[vendor.compress]
        with subprocess.Popen([program, "-dc", file], stdout=subprocess.PIPE) as unpack:
            subprocess.run(
                ["dd", f"of={target}", "bs=1M", "iflag=fullblock", "conv=sparse", "status=none"],
                stdin=unpack.stdout, check=True,
            )  # fmt: skip
        assert unpack.returncode == 0
    else:
        return file
    return target


def decoded(disk: Path, vendor: Vendor, folder: Path) -> Path:
    """The raw disk in an image, which must be whole by the rules of its format."""
    kind = vendor.disk.format
    described = json.loads(run(["qemu-img", "info", "-f", kind, "--output=json", disk]).text)
    assert described["format"] == kind
    if kind in ("qcow2", "vmdk", "vhdx", "parallels", "vdi"):
        run(["qemu-img", "check", "-f", kind, disk])
    if kind == "raw":
        return disk
    raw = folder / "disk.raw"
    run(["qemu-img", "convert", "-f", kind, "-O", "raw", disk, raw])
    return raw


def test_every_vendor_is_in_a_batch() -> None:
    with_disks = {name for name, vendor in VENDORS.items() if not vendor.diskless}
    assert {name for batch in BATCHES.values() for name in batch.vendors} == with_disks
