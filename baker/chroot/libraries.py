"""Where a dynamic linker would find a library in a root filesystem: glibc's and musl's rules, without the cache.

glibc: ld.so(8) and its source (RPATH of the object and of everything that loaded it, then RUNPATH, ld.so.conf, the
built-in folders). musl: ldso/dynlink.c (rpath of the object and of what loaded it, then /etc/ld-musl-ARCH.path or the
built-in folders; the names of its own libraries mean itself). Folders for special processors (glibc-hwcaps) are
passed over: what is in them is there for all processors as well.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property

from baker.chroot.root import Root
from baker.model import Arch
from baker.survey.elf import Elf

_MULTIARCH = {Arch.X86_64: "x86_64-linux-gnu", Arch.ARM64: "aarch64-linux-gnu"}
_PLATFORM = {Arch.X86_64: "x86_64", Arch.ARM64: "aarch64"}
_GLIBC_LOADERS = {Arch.X86_64: "/lib64/ld-linux-x86-64.so.2", Arch.ARM64: "/lib/ld-linux-aarch64.so.1"}
_MUSL_OWN = re.compile(r"lib(c|pthread|rt|m|dl|util|xnet)\.")
_MUSL_FOLDERS = ("/lib", "/usr/local/lib", "/usr/lib")
_MOST_CONFIGS = 100
_TOKEN = re.compile(r"\$\{?(ORIGIN|LIB|PLATFORM)\b\}?")


@dataclass(frozen=True)
class Member:
    """A file that takes part in a program: its path as it was found, without links, and what it says."""

    found: str
    real: str
    elf: Elf


class Libraries:
    """Finds libraries for programs of `arch` that ask for the dynamic linker `interpreter`, a path in `root`."""

    def __init__(self, root: Root, arch: Arch, interpreter: str) -> None:
        self.root, self.arch, self.interpreter = root, arch, interpreter
        self.loader_name = interpreter.rpartition("/")[2]
        self.is_musl = self.loader_name.startswith("ld-musl-")
        self.loader = root.file(interpreter)
        """The dynamic linker itself; None when the root filesystem lacks it."""

    def is_loader(self, name: str) -> bool:
        """Whether a needed library is the dynamic linker itself, which is there before anything is looked for."""
        return name == self.loader_name or (self.is_musl and _MUSL_OWN.match(name) is not None)

    def find(self, name: str, chain: Sequence[Member]) -> Member | None:
        """The library `name`, needed by the first of `chain`; each other one there loaded the one before it."""
        if "/" in name:
            return self._member(name) if name.startswith("/") else None
        for folder in self.folders(chain):
            found = self._member(f"{folder}/{name}")
            if found is not None:
                return found
        return None

    def folders(self, chain: Sequence[Member]) -> Iterator[str]:
        """Where is looked for what the first of `chain` needs, in order."""
        own = chain[0]
        if self.is_musl:
            for member in chain:
                yield from self.own_folders(member, member.elf.runpath or member.elf.rpath)
            yield from self._musl_folders
            return
        if not own.elf.runpath:
            for member in chain:
                if not member.elf.runpath:
                    yield from self.own_folders(member, member.elf.rpath)
        yield from self.own_folders(own, own.elf.runpath)
        yield from self._glibc_folders

    def own_folders(self, member: Member, texts: Sequence[str]) -> Iterator[str]:
        """What an rpath of `member` means. Relative folders mean the user's, wherever that is, and are left out."""
        origins = dict.fromkeys(path.rpartition("/")[0] or "/" for path in (member.real, member.found))
        libs = (f"lib/{_MULTIARCH[self.arch]}", "lib64", "lib")
        for text in texts:
            words = set(_TOKEN.findall(text))
            for origin in origins if "ORIGIN" in words else ("",):
                for lib in libs if "LIB" in words else ("",):
                    meaning = {"ORIGIN": origin, "LIB": lib, "PLATFORM": _PLATFORM[self.arch]}
                    folder = _TOKEN.sub(lambda match, meaning=meaning: meaning[match[1]], text)  # type: ignore[misc]
                    if folder.startswith("/"):
                        yield folder

    def _member(self, path: str) -> Member | None:
        real = self.root.file(path)
        elf = self.root.elf(real) if real is not None else None
        # Both linkers pass over files of another machine.
        return Member(path, real, elf) if real is not None and elf is not None and elf.arch == self.arch else None

    @cached_property
    def _glibc_folders(self) -> tuple[str, ...]:
        tuples = (f"/lib/{_MULTIARCH[self.arch]}", f"/usr/lib/{_MULTIARCH[self.arch]}")
        usual = ("/lib64", "/usr/lib64", "/lib", "/usr/lib", "/usr/local/lib64", "/usr/local/lib")
        return tuple(dict.fromkeys([*self._configured("/etc/ld.so.conf", set()), *tuples, *usual]))

    def _configured(self, path: str, seen: set[str]) -> Iterator[str]:
        """The folders that an ld.so.conf names, with those that it includes."""
        if path in seen or len(seen) > _MOST_CONFIGS:
            return
        seen.add(path)
        for line in self._lines(path):
            word, _, rest = line.partition(" ")
            if word == "include":
                for pattern in rest.split():
                    whole = pattern if pattern.startswith("/") else f"{path.rpartition('/')[0]}/{pattern}"
                    folder, _, names = whole.rpartition("/")
                    for name in self.root.names(folder):
                        if fnmatchcase(name, names):
                            yield from self._configured(f"{folder}/{name}", seen)
            elif line.startswith("/"):
                yield line

    @cached_property
    def _musl_folders(self) -> tuple[str, ...]:
        machine = self.loader_name.removeprefix("ld-musl-").partition(".")[0]
        text = " ".join(self._lines(f"/etc/ld-musl-{machine}.path"))
        return tuple(word for word in re.split(r"[\s:]+", text) if word) or _MUSL_FOLDERS

    def _lines(self, path: str) -> list[str]:
        real = self.root.file(path)
        if real is None:
            return []
        text = self.root.head(real, 1 << 16).decode("utf-8", "surrogateescape")
        return [line for line in (line.partition("#")[0].strip() for line in text.splitlines()) if line]


def needs_musl(needed: Sequence[str]) -> bool | None:
    """Whether a file is linked with musl, told by the names that it needs; None where they do not tell."""
    if "libc.so.6" in needed:
        return False
    return True if any(name == "libc.so" or name.startswith("libc.musl-") for name in needed) else None


def usual_interpreter(root: Root, arch: Arch, musl: bool | None) -> str:
    """The dynamic linker that a library without a program is made for."""
    path = f"/lib/ld-musl-{_PLATFORM[arch]}.so.1"
    if musl or (musl is None and not root.file(_GLIBC_LOADERS[arch]) and root.file(path)):
        return path
    return _GLIBC_LOADERS[arch]
