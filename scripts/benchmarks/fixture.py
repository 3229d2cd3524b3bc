"""The release to measure with: the stand-in release, filled up to the size of a real one, and sysexts of any size.

Flatcar's images hold about 470 MiB of data, most of it compressed already (/usr is btrfs with zstd). The stand-in has
less, so its /usr gets a file of noise; the noise is the same on every machine.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from standin import image, layout, mirror, signing, sysexts
from standin.main import DEFAULT_VERSION, make
from standin.release import Spec

from baker.console import Console
from baker.disk import extract, read_table, write_back
from baker.model import Arch
from baker.run import run
from baker.sparse import clone

VERSION = DEFAULT_VERSION["old"]
DATA_BYTES = 472 << 20
_GENERIC = "flatcar_production_image.bin"
_QEMU = "flatcar_production_qemu_uefi_image.img"
_STAMP = "filled"


@dataclass(frozen=True)
class Fixture:
    """A folder with `release` (a mirror), `generic.raw` (its generic image, unpacked) and sysexts."""

    folder: Path

    @property
    def release(self) -> Path:
        return self.folder / "release"

    @property
    def files(self) -> Path:
        """The folder of the release's files."""
        return mirror.release_folder(self.release, Spec(VERSION, "stable", Arch.X86_64, "old"))

    @property
    def generic_raw(self) -> Path:
        return self.folder / "generic.raw"

    @property
    def compressed(self) -> Path:
        """The generic image as it is downloaded."""
        return self.files / f"{_GENERIC}.bz2"

    @property
    def key(self) -> Path:
        return self.release / signing.PUBLIC

    def sysext(self, megabytes: int, name: str = "payload") -> Path:
        """A sysext of about so many MB that does not compress; made when it is first asked for."""
        path = self.folder / f"{name}-{megabytes}.0.0-x86-64.raw"
        if not path.exists():
            noise = self.folder / f"{name}.noise"
            write_noise(noise, megabytes * 1000**2, f"{name} {megabytes}")
            release = sysexts.release_file(id="flatcar", sysext_level="1.0", architecture="x86-64")
            sysexts.pack(path, name, release, {f"usr/share/{name}/data": sysexts.Content(noise)})
            noise.unlink()
        return path


def prepare(folder: Path, console: Console) -> Fixture:
    """Build the fixture in a folder, or take it as it is there."""
    fixture = Fixture(folder)
    if (folder / _STAMP).exists():
        return fixture
    folder.mkdir(parents=True, exist_ok=True)
    make(fixture.release, Spec(VERSION, "stable", Arch.X86_64, "old"), console)
    with TemporaryDirectory(dir=folder, prefix="fill-") as work, signing.signer(fixture.release) as signer:
        with console.step("Fill the release up to the size of a real one"):
            _fill(fixture, Path(work))
        with console.step("Sign it"):
            signing.sign_folder(fixture.files, signer)
    (folder / _STAMP).touch()
    return fixture


def write_noise(path: Path, size: int, seed: str) -> None:
    """A file of random bytes that depend on `seed` only."""
    source = random.Random(seed)
    with path.open("wb") as file:
        for start in range(0, size, 1 << 20):
            file.write(source.randbytes(min(1 << 20, size - start)))


def _fill(fixture: Fixture, work: Path) -> None:
    for stale in [fixture.generic_raw, *fixture.files.glob("*.sig"), *fixture.files.glob("*.DIGESTS")]:
        stale.unlink(missing_ok=True)
    run(["qemu-img", "convert", "-O", "raw", fixture.files / _QEMU, work / "vendor.raw"])
    _unpack(fixture.compressed, fixture.generic_raw)
    usr = _larger_usr(fixture.generic_raw, work)
    for disk in (fixture.generic_raw, work / "vendor.raw"):
        part = read_table(disk).get("USR-A")
        with usr.open("r+b") as file:
            file.truncate(part.size)
        write_back(disk, part, usr)
    run(["lbzip2", "--compress", "--keep", "--force", fixture.generic_raw])
    Path(f"{fixture.generic_raw}.bz2").rename(fixture.compressed)
    (fixture.files / _QEMU).unlink()
    (fixture.files / f"{_QEMU}.bz2").unlink(missing_ok=True)
    run(["qemu-img", "convert", "-c", "-m", "16", "-O", "qcow2", "-o", "compat=0.10", work / "vendor.raw",
         fixture.files / _QEMU])  # fmt: skip


def _unpack(compressed: Path, target: Path) -> None:
    copy = target.with_suffix(".dense.bz2")
    shutil.copyfile(compressed, copy)
    run(["lbzip2", "--decompress", copy])
    clone(copy.with_suffix(""), target)
    run(["fallocate", "--dig-holes", target])
    copy.with_suffix("").unlink()


def _larger_usr(disk: Path, work: Path) -> Path:
    """The filesystem of /usr, made anew with noise in it."""
    extract(disk, read_table(disk).get("USR-A"), work / "usr.old")
    tree = work / "usr"
    tree.mkdir()
    run(["btrfs", "restore", "--metadata", "--symlinks", work / "usr.old", tree])
    missing = DATA_BYTES - disk.stat().st_blocks * 512
    write_noise(tree / "noise", missing, "usr")
    image.make_btrfs(work / "usr.new", "USR-A", layout.USR_FILESYSTEM_BYTES, tree)
    return work / "usr.new"


def bake_environment(fixture: Fixture, url: str, cache: Path) -> dict[str, str]:
    """The variables that make flatcar-bake use this release from a server at `url`, and a cache of its own."""
    lines = (line.partition("=") for line in (fixture.release / "env").read_text().splitlines())
    values = {name: value.strip("'") for name, _, value in lines}
    return values | {
        "FLATCAR_BAKE_MIRROR": url, "FLATCAR_BAKE_CACHE_DIR": str(cache), "FLATCAR_BAKE_PROGRESS": "plain",
        "FLATCAR_BAKE_RELEASE": VERSION,
    }  # fmt: skip


def small_sysexts(fixture: Fixture, count: int) -> Iterator[str]:
    """NAME:FILE of so many sysexts of 2 MB each."""
    for number in range(count):
        yield f"part{number:02}:{fixture.sysext(2, f'part{number:02}')}"
