"""Flix: programs out of a root filesystem, with every library they need, so that they run on any system.

PATHs ─► take() ─► Closure ─► files in a tree, libraries and dynamic linker in /usr/local/NAME ─► patch()
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from baker.chroot.closure import Closure, Library
from baker.chroot.patching import patch
from baker.chroot.root import Root
from baker.chroot.scripts import check_script, read_script
from baker.chroot.taking import Piece, Taken, check_privileges, take, wanted
from baker.chroot.tree import Made, make_folder, new_tree
from baker.chroot.units import is_unit, places_of, with_new_places
from baker.errors import ImageError
from baker.extension_release import validate_name
from baker.model import Arch
from baker.sparse import clone

_ELF = b"\x7fELF"
_JOBS = 4


@dataclass(frozen=True)
class FlixRequest:
    """What to take: PATHs of the root filesystem in `folder`, for the sysext `name`."""

    folder: Path
    name: str
    paths: Sequence[str]
    arch: Arch | None = None
    """None: what the programs are for."""
    extra_libs: Sequence[str] = ()
    """Libraries that programs load by themselves: paths, or names that the dynamic linker would find."""
    ignore_missing: Sequence[str] = ()
    """Globs of names of libraries that the programs can do without."""


def flix(request: FlixRequest, target: Path) -> Made:
    """Make the sysext's tree in the new folder `target`; nothing else is changed.

    Raises UsageError for PATHs that do not exist or cannot be placed, ImageError that names what could not work:
    a missing library, another architecture, a set-id program, a script without its interpreter.
    """
    validate_name(request.name)
    root = Root(request.folder)
    taken = take(root, wanted(root, request.paths))
    arch, programs = _programs(root, taken, request.arch)
    private = f"/usr/local/{request.name}"
    reasons = {
        piece.dst: check_script(root, piece, script, taken)
        for piece in taken.pieces.values()
        if piece.kind == "file" and (script := read_script(root.head(piece.source, 256)))
    }
    extras: list[Library] = []
    closure = Closure(root, arch or Arch.X86_64, taken, private, request.ignore_missing)
    closure.add(programs)
    for name in request.extra_libs:
        extras += closure.add_extra(name)
    return _Tree(target, private).fill(closure, extras, reasons, arch)


def _programs(root: Root, taken: Taken, arch: Arch | None) -> tuple[Arch | None, list[str]]:
    """The architecture of it all, and the ELF files that are for it."""
    found = []
    elves = [piece for piece in taken.pieces.values() if piece.kind == "file" and root.head(piece.source, 4) == _ELF]
    for piece in sorted(elves, key=lambda piece: not piece.asked):
        elf = root.elf(piece.source)
        told = elf.arch if elf else "another kind of machine"
        if elf is not None and elf.arch in tuple(Arch) and arch in (None, elf.arch):
            arch = Arch(elf.arch)
            found.append(piece.source)
        elif piece.asked:
            raise ImageError(
                f"{piece.source} is for {told}, not for {arch or 'a machine that Flatcar runs on'}.",
                f"Use a root filesystem for {arch or 'x86-64 or arm64'}.",
            )
        else:
            taken.notes.append(f"{piece.dst} is for {told}, and stays as it is")
    return arch, found


class _Tree:
    """Writes the pieces and libraries below a folder."""

    def __init__(self, target: Path, private: str) -> None:
        self._target, self._private = target, private
        self._work: list[tuple[Path, str, tuple[str, ...]]] = []
        self._made = Made(target)

    def fill(
        self, closure: Closure, extras: Sequence[Library], reasons: dict[str, str], arch: Arch | None
    ) -> Made:  # fmt: skip
        new_tree(self._target)
        taken, root, made = closure.taken, closure.root, self._made
        self._extra = f"{self._private}/extralibs" if extras else ""
        for piece in taken.pieces.values():
            self._piece(root, piece, closure)
            words = reasons.get(piece.dst)
            made.say(
                piece.dst, piece.source or piece.link, f"{piece.why}; {words}" if words else piece.why, piece.asked
            )
        for folder, libraries in ((self._private, list(closure.libraries.values())), (self._extra, extras)):
            self._libraries(root, folder, libraries, closure)
        with ThreadPoolExecutor(_JOBS) as pool:
            for done in [pool.submit(patch, *work) for work in self._work]:
                done.result()
        made.arch = arch
        made.notes += [*taken.notes, *closure.notes]
        return made

    def _host(self, dst: str) -> Path:
        path = self._target / dst.lstrip("/")
        make_folder(self._target, path.parent)
        return path

    def _piece(self, root: Root, piece: Piece, closure: Closure) -> None:
        path = self._host(piece.dst)
        if piece.kind == "folder":
            make_folder(self._target, path)
        elif piece.kind == "link":
            path.symlink_to(piece.link)
        else:
            self._copy(root, piece.source, path, closure)
            if is_unit(piece.dst):
                self._adapt(path, closure.taken)

    def _adapt(self, unit: Path, taken: Taken) -> None:
        """Let a unit run programs where they are in the sysext."""
        places: dict[str, str] = {}
        for source, dst in taken.shipped.items():
            places |= places_of(source, dst) if taken.pieces[dst].asked else {}
        before = unit.read_bytes()
        after = with_new_places(before.decode("utf-8", "surrogateescape"), places)
        if after.encode("utf-8", "surrogateescape") != before:
            unit.write_bytes(after.encode("utf-8", "surrogateescape"))
            self._made.notes.append(f"the unit {unit.name} runs programs at their new places")

    def _libraries(self, root: Root, folder: str, libraries: Sequence[Library], closure: Closure) -> None:
        there: dict[str, str] = {}
        for library in sorted(libraries, key=lambda library: library.name):
            check_privileges(root, library.real, library.real)
            path = self._host(f"{folder}/{library.name}")
            if library.real in there:
                path.symlink_to(there[library.real])
            else:
                there[library.real] = library.name
                self._copy(root, library.real, path, closure)
            self._made.say(f"{folder}/{library.name}", library.real, library.why, False)

    def _copy(self, root: Root, real: str, path: Path, closure: Closure) -> None:
        """Copy a file, and note it down for patching where that is needed."""
        source = root.host(real)
        clone(source, path)
        path.chmod(0o755 if source.stat().st_mode & 0o111 else 0o644)
        elf = root.elf(real)
        folders = closure.rpaths.get(real)
        # A dynamic linker needs nothing, and must stay as it is; so may a plugin that needs nothing.
        if elf is not None and folders is not None and (elf.needed or real in closure.interpreters):
            folders = [*folders, self._extra] if self._extra else folders
            self._work.append((path, closure.interpreters.get(real, ""), tuple(folders)))
