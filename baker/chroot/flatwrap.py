"""Flatwrap: a whole root filesystem in a sysext, with a script for each program that runs it in there.

PATHs, Mapping ─► view() ─► the parts that come along, below /usr/local/NAME ─► a wrapper for each program
"""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from baker import stopping
from baker.chroot.closure import Closure
from baker.chroot.root import Root
from baker.chroot.taking import Taken, Wanted, check_privileges, wanted
from baker.chroot.tree import Made, make_folder, new_tree
from baker.chroot.units import is_unit, places_of, with_new_places
from baker.chroot.view import Mapping, View, view
from baker.chroot.wrappers import ENTER, INSIDE, MOUNT, ROOTFS, enter_script, inside_script, wrapper
from baker.errors import ImageError
from baker.extension_release import validate_name
from baker.model import Arch
from baker.sparse import clone

_SET_ID = stat.S_ISUID | stat.S_ISGID
_CACHES = ("/var/cache/apt", "/var/lib/apt/lists", "/var/cache/apk", "/var/cache/dnf", "/etc/apk/cache")
"""What package managers can fetch again."""


@dataclass(frozen=True)
class FlatwrapRequest:
    """What to wrap: PATHs of the root filesystem in `folder`, for the sysext `name`."""

    folder: Path
    name: str
    paths: Sequence[str]
    arch: Arch | None = None
    """None: what the programs are for."""
    mapping: Mapping = field(default_factory=Mapping)


def flatwrap(request: FlatwrapRequest, target: Path) -> Made:
    """Make the sysext's tree in the new folder `target`; nothing else is changed.

    Executable PATHs become wrappers, units are copied, and everything else becomes a link into the root filesystem.
    Raises UsageError for PATHs that do not exist or cannot be placed, ImageError that names what could not work.
    """
    validate_name(request.name)
    root = Root(request.folder)
    wishes = wanted(root, request.paths)
    seen = view(root, request.mapping)
    return _Wrapping(request, root, seen, target).make(wishes)


class _Wrapping:
    """One tree in the making."""

    def __init__(self, request: FlatwrapRequest, root: Root, seen: View, target: Path) -> None:
        self._root, self._view, self._target = root, seen, target
        self._arch = request.arch
        self._folder = f"/usr/local/{request.name}"
        self._made = Made(target)
        self._lost: dict[str, list[str]] = {}
        self._wrapped: dict[str, str] = {}
        self._units: dict[str, str] = {}

    def make(self, wishes: Sequence[Wanted]) -> Made:
        new_tree(self._target)
        self._rootfs = self._place(f"{self._folder}/{ROOTFS}")
        make_folder(self._target, self._rootfs)
        for path in self._view.image:
            self._copy(path)
        for name, text in self._view.links:
            (self._rootfs / name).symlink_to(text)
        for path in self._view.inner():
            self._mount_point(path)
        inner = Root(self._rootfs)
        mount = self._place(f"{self._folder}/{MOUNT}")
        make_folder(self._target, mount)
        self._write(f"{self._folder}/{ENTER}", enter_script(self._folder, self._view), 0o755)
        self._write(f"{self._folder}/{INSIDE}", inside_script(self._folder, self._view), 0o755)
        for wish in wishes:
            self._entry(inner, wish)
        self._adapt_units()
        self._tell_losses()
        self._made.arch = self._arch
        return self._made

    def _place(self, path: str) -> Path:
        return self._target / path.lstrip("/")

    def _write(self, path: str, text: str, mode: int) -> None:
        file = self._place(path)
        make_folder(self._target, file.parent)
        file.write_bytes(text.encode("utf-8", "surrogateescape"))
        file.chmod(mode)

    def _entry(self, inner: Root, wish: Wanted) -> None:
        """What stands for a PATH in the system."""
        real = inner.resolve(wish.source) or inner.resolve(self._root.resolve(wish.source) or "")
        if real is None:
            raise ImageError(
                f"{wish.source} is not in the part of the root filesystem that comes along.",
                f"That is {', '.join(self._view.image)}; --etc, --var, --home and --chroot choose it.",
            )
        file = inner.host(real)
        source = self._root.host(real) if self._root.resolve(real) == real else file
        if inner.file(real) is None or not source.stat().st_mode & 0o111:
            self._data(inner, real, wish)
            return
        check_privileges(self._root, real, wish.source)
        self._check_program(inner, real, wish)
        # By its own name where that leads there, for programs that are many in one.
        program = wish.source if inner.resolve(wish.source) == real else real
        self._new(wish)
        self._write(wish.dst, wrapper(self._folder, program), 0o755)
        self._wrapped |= places_of(wish.source, wish.dst)
        self._made.say(wish.dst, program, f"runs {program} in the root filesystem", True)

    def _new(self, wish: Wanted) -> None:
        if os.path.lexists(self._place(wish.dst)):
            raise ImageError(f"{wish.word} would become {wish.dst}, which is there already.", "Leave one of them out.")

    def _check_program(self, inner: Root, real: str, wish: Wanted) -> None:
        with inner.host(real).open("rb") as file:
            if file.read(4) != b"\x7fELF":
                return
        elf = inner.elf(real)
        if elf is None or elf.arch not in tuple(Arch) or self._arch not in (None, elf.arch):
            raise ImageError(
                f"{wish.source} is for {elf.arch if elf else 'another kind of machine'}, not for "
                f"{self._arch or 'one that Flatcar runs on'}.",
                f"Use a root filesystem for {self._arch or 'x86-64 or arm64'}.",
            )
        self._arch = Arch(elf.arch)
        hint = "Install the packages that bring them there, or let --chroot bring their folder."
        Closure(inner, self._arch, Taken(), self._folder, flat=False, hint=hint).add([real])

    def _data(self, inner: Root, real: str, wish: Wanted) -> None:
        folder = wish.dst.rpartition("/")[0]
        self._new(wish)
        if is_unit(wish.dst) and inner.file(real) is not None:
            text = inner.host(real).read_bytes().decode("utf-8", "surrogateescape")
            self._units[wish.dst] = text
            self._made.say(wish.dst, real, "a unit", True)
            return
        link = self._place(wish.dst)
        make_folder(self._target, link.parent)
        link.symlink_to(os.path.relpath(f"{self._folder}/{ROOTFS}{real}", folder))
        self._made.say(wish.dst, real, "leads into the root filesystem", True)

    def _adapt_units(self) -> None:
        """Write the units, which run the wrappers."""
        for path, text in self._units.items():
            adapted = with_new_places(text, self._wrapped)
            self._write(path, adapted, 0o644)
            if adapted != text:
                self._made.notes.append(f"the unit {path.rpartition('/')[2]} runs programs at their new places")

    def _copy(self, path: str) -> None:
        """Copy a part of the root filesystem; `path` has no links."""
        target = self._rootfs / path.lstrip("/")
        make_folder(self._rootfs, target.parent)
        self._copy_one(path, target)
        if self._root.is_folder(path):
            for inner in self._root.walk(path):
                stopping.check()
                if not inner.startswith(tuple(f"{cache}/" for cache in _CACHES)):
                    self._copy_one(inner, self._rootfs / inner.lstrip("/"))

    def _copy_one(self, path: str, target: Path) -> None:
        if os.path.lexists(target):
            return  # it came with a part that holds this one
        source = self._root.host(path)
        status = source.lstat()
        if stat.S_ISLNK(status.st_mode):
            target.symlink_to(os.readlink(source))
        elif stat.S_ISDIR(status.st_mode):
            target.mkdir()
            target.chmod(status.st_mode & 0o755 | 0o700)
        elif stat.S_ISREG(status.st_mode):
            clone(source, target)
            target.chmod(status.st_mode & 0o755 | 0o400)
            if status.st_mode & _SET_ID:
                self._lost.setdefault("the set-id bit of", []).append(path)
            elif _has_capabilities(source):
                self._lost.setdefault("the file capabilities of", []).append(path)
        else:
            self._lost.setdefault("devices, pipes and sockets:", []).append(path)

    def _mount_point(self, path: str) -> None:
        """Make sure that there is something to mount on, and no link, which would lead out."""
        inner = Root(self._rootfs)
        folder = inner.resolve(path.rpartition("/")[0])
        if folder is not None and folder != path.rpartition("/")[0]:
            raise ImageError(f"{path} cannot be mounted: in the root filesystem it lies behind a link, in {folder}.")
        place = self._rootfs / path.lstrip("/")
        was_file = inner.file(path) is not None or (place.is_symlink() and not inner.is_folder(path))
        if place.is_symlink():
            place.unlink()
        if not place.exists():
            make_folder(self._rootfs, place if not was_file else place.parent)
            if was_file:
                place.touch()
                place.chmod(0o644)

    def _tell_losses(self) -> None:
        for what, paths in self._lost.items():
            more = f" and {len(paths) - 5} more" if len(paths) > 5 else ""
            self._made.notes.append(f"left out {what} {', '.join(paths[:5])}{more}")


def _has_capabilities(file: Path) -> bool:
    try:
        return bool(os.getxattr(file, "security.capability", follow_symlinks=False))
    except OSError:
        return False
