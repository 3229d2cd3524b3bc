"""The libraries that programs need, down to the last one, each with who asked for it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from baker.chroot.libraries import Libraries, Member, needs_musl, usual_interpreter
from baker.chroot.root import Root
from baker.chroot.taking import Taken
from baker.errors import ImageError
from baker.model import Arch
from baker.survey.elf import Elf


def is_file_name(text: str) -> bool:
    """Whether a text out of an ELF file may become the name of a file."""
    return text not in ("", ".", "..") and "/" not in text and text.isprintable()


@dataclass(frozen=True)
class Library:
    """A library that comes along: its name for the dynamic linker, its path without links, and what needs it."""

    name: str
    real: str
    why: str


@dataclass
class Closure:
    """What a set of programs needs. `private` is the folder of the sysext for libraries, /usr/local/NAME."""

    root: Root
    arch: Arch
    taken: Taken
    private: str
    ignored: Sequence[str] = ()
    """Globs of names of libraries that may be missing."""
    hint: str = "Install the packages that bring them there. If the program can do without: --ignore-missing NAME"
    """What to do about a missing library."""
    flat: bool = True
    """Whether all libraries go to one folder, where each name is there once."""
    libraries: dict[str, Library] = field(default_factory=dict)
    """By name, those that go to `private`; dynamic linkers too."""
    rpaths: dict[str, list[str]] = field(default_factory=dict)
    """The folders of the sysext, by the path of a file in the root filesystem, that it must be told of."""
    interpreters: dict[str, str] = field(default_factory=dict)
    """Path of a file in the root filesystem → the dynamic linker in the sysext that it is to use."""
    notes: list[str] = field(default_factory=list)
    _missing: list[str] = field(default_factory=list)
    _finders: dict[str, Libraries] = field(default_factory=dict)

    def add(self, reals: Iterable[str]) -> None:
        """Resolve what some ELF files need. Programs come first: they tell which dynamic linker the others get.

        Raises ImageError that names every library that is missing, or two that would take the same place.
        """
        members = [(real, elf) for real in reals if (elf := self.root.elf(real)) is not None and elf.dynamic]
        members.sort(key=lambda member: not member[1].interpreter)
        for real, elf in members:
            self._resolve([Member(real, real, elf)], self._finder(elf))
        if self._missing:
            raise ImageError(f"Libraries are missing in the root filesystem: {'; '.join(self._missing)}.", self.hint)

    def add_extra(self, name: str) -> list[Library]:
        """Find a library that programs load by themselves, by its path or its name; where it is for the linker.

        What it needs is added; it itself is returned, under its name and that by which others know it.
        """
        real = self.root.file(name) if name.startswith("/") else None
        if not name.startswith("/"):
            nobody = [Member("/", "/", Elf(self.arch, "", ()))]
            finders = list(self._finders.values()) or [self._finder(nobody[0].elf)]
            found = [member for finder in finders if (member := finder.find(name, nobody)) is not None]
            real = found[0].real if found else None
        elf = self.root.elf(real) if real is not None else None
        if real is None or elf is None:
            raise ImageError(f"There is no library {name} in the root filesystem.", "Give a path, or a name to find.")
        if elf.arch != self.arch:
            raise ImageError(f"The library {name} is for {elf.arch}, not for {self.arch}.")
        self.add([real])
        names = dict.fromkeys(each for each in (name.rpartition("/")[2], elf.soname) if is_file_name(each))
        return [Library(each, real, "asked for by --extra-lib") for each in names]

    def _finder(self, elf: Elf) -> Libraries:
        """What finds libraries for a file: by its own dynamic linker, else by that of the programs here."""
        interpreter = elf.interpreter
        if not interpreter or self.root.file(interpreter) is None:
            libc = needs_musl(elf.needed)
            known = [each for each, finder in self._finders.items() if libc in (None, finder.is_musl)]
            interpreter = interpreter or (known[0] if known else usual_interpreter(self.root, self.arch, libc))
        if interpreter not in self._finders:
            self._finders[interpreter] = Libraries(self.root, self.arch, interpreter)
        return self._finders[interpreter]

    def _resolve(self, chain: list[Member], finder: Libraries) -> None:
        own = chain[0]
        if own.real in self.rpaths:
            return
        # Folders of the sysext that it, or a plugin of it, looks into by itself stay known to it.
        known = [self.taken.shipped.get(folder) for folder in self._real_folders(own, finder)]
        self.rpaths[own.real] = folders = [folder for folder in known if folder]
        if own.elf.interpreter and not finder.is_loader(own.elf.soname or own.real.rpartition("/")[2]):
            self._take_loader(own, finder)
        for name in own.elf.needed:
            if finder.is_loader(name):
                continue
            member = finder.find(name, chain)
            if member is None:
                self._miss(name, chain)
                continue
            place = self._place(member, name)
            if "/" in name:
                self._check_by_path(member, name, own)
            elif place is None:
                self._take_library(Library(name, member.real, f"needed by {own.real}"))
            elif place not in folders:
                folders.append(place)
            self._resolve([member, *chain], finder)
        folders += [self.private] if self.private not in folders else []

    def _check_by_path(self, member: Member, name: str, own: Member) -> None:
        """A library that is needed by its path must be at that path."""
        if self.flat and self.taken.shipped.get(member.real) != name:
            raise ImageError(
                f"{own.real} needs a library by its path, {name}, and not by its name.",
                f"Take {name}, too, where it has that path in the sysext; or use flatwrap.",
            )

    def _real_folders(self, own: Member, finder: Libraries) -> list[str]:
        folders = finder.own_folders(own, own.elf.runpath or own.elf.rpath)
        return [real for folder in folders if (real := self.root.resolve(folder)) is not None]

    def _place(self, member: Member, name: str) -> str | None:
        """The folder of the sysext in which a library is under its name, as part of a folder that was taken."""
        found = self.root.place(member.found)
        place = self.taken.shipped.get(found or "")
        return place.rpartition("/")[0] if place is not None and place.rpartition("/")[2] == name else None

    def _take_loader(self, own: Member, finder: Libraries) -> None:
        if finder.loader is None:
            self._missing.append(f"{own.elf.interpreter}, the dynamic linker of {own.real}")
            return
        elf = self.root.elf(finder.loader)
        if elf is None or elf.arch != self.arch:
            raise ImageError(f"{finder.loader}, the dynamic linker of {own.real}, is not for {self.arch}.")
        self._take_library(Library(finder.loader_name, finder.loader, f"the dynamic linker of {own.real}"))
        self.interpreters[own.real] = f"{self.private}/{finder.loader_name}"

    def _take_library(self, library: Library) -> None:
        if not is_file_name(library.name):
            raise ImageError(
                f"{library.real} would be called {library.name!r} ({library.why}), which is no file name."
            )
        there = self.libraries.setdefault(library.name, library)
        if self.flat and there.real != library.real and not self._same(there.real, library.real):
            raise ImageError(
                f"Two different libraries are called {library.name}: {there.real} ({there.why}) and {library.real} "
                f"({library.why}).",
                "Make two sysexts, or use flatwrap.",
            )

    def _same(self, one: str, other: str) -> bool:
        return self.root.host(one).read_bytes() == self.root.host(other).read_bytes()

    def _miss(self, name: str, chain: Sequence[Member]) -> None:
        through = f" (through {chain[-1].real})" if len(chain) > 1 else ""
        text = f"{name}, needed by {chain[0].real}{through}"
        if any(fnmatchcase(name, pattern) for pattern in self.ignored):
            self.notes.append(f"{text}, is missing")
        else:
            self._missing.append(text)
