"""A root filesystem in a folder, looked into as if it were mounted at /: its links lead to places within it.

The folder comes from an image of somebody else. Whatever it says, no path that leaves here is outside of it, and none
has a link in it. It must not change meanwhile.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from baker.erofs import Unsupported
from baker.errors import UsageError
from baker.survey.elf import Elf, read_elf, reader

_MOST_HOPS = 40  # the kernel's own limit for links on the way to a file


class Root:
    """The root filesystem in `folder`; paths are absolute within it. UsageError when there is no such folder."""

    def __init__(self, folder: Path) -> None:
        if not folder.is_dir():
            what = "is not a folder" if folder.exists() else "does not exist"
            raise UsageError(f"{folder} {what}.", "Give the folder of a root filesystem: with usr/ and etc/ in it.")
        self.folder = folder.resolve()
        self._elf: dict[str, Elf | None] = {}

    def resolve(self, path: str) -> str | None:
        """The path without links, "/" for the root itself; None where nothing is, or links lead in a circle."""
        todo = path.split("/")[::-1]
        at: list[str] = []
        hops = 0
        while todo:
            part = todo.pop()
            if part in ("", "."):
                continue
            if part == "..":
                at[-1:] = []
                continue
            try:
                mode = os.lstat(self._raw([*at, part])).st_mode
            except OSError:
                return None
            if not stat.S_ISLNK(mode):
                at.append(part)
                if todo and any(todo) and not stat.S_ISDIR(mode):
                    return None
                continue
            hops += 1
            if hops > _MOST_HOPS:
                return None
            target = os.readlink(self._raw([*at, part]))
            if target.startswith("/"):
                at = []
            todo += target.split("/")[::-1]
        return "/" + "/".join(at)

    def place(self, path: str) -> str | None:
        """Like `resolve`, but a link at the end of the path stays: the path at which the thing itself is."""
        folder, _, name = path.rstrip("/").rpartition("/")
        if name in ("", ".", ".."):
            return self.resolve(path)
        real = self.resolve(folder or "/")
        if real is None:
            return None
        full = f"{real.rstrip('/')}/{name}"
        return full if os.path.lexists(self.host(full)) else None

    def host(self, real: str) -> Path:
        """Where a path without links, as `resolve` and `place` give it, is on this machine."""
        return self.folder / real.lstrip("/")

    def file(self, path: str) -> str | None:
        """Like `resolve`, for regular files only."""
        real = self.resolve(path)
        return real if real is not None and stat.S_ISREG(os.lstat(self.host(real)).st_mode) else None

    def is_folder(self, path: str) -> bool:
        """Whether a path leads to a folder."""
        real = self.resolve(path)
        return real is not None and stat.S_ISDIR(os.lstat(self.host(real)).st_mode)

    def link(self, real: str) -> str | None:
        """The text of a link; None for what is none."""
        try:
            return os.readlink(self.host(real))
        except OSError:
            return None

    def names(self, path: str) -> list[str]:
        """The names in a folder, sorted; none where there is no folder."""
        real = self.resolve(path)
        return sorted(os.listdir(self.host(real))) if real is not None and self.is_folder(real) else []

    def elf(self, real: str) -> Elf | None:
        """What a file without links on its way says about itself; None for what is no ELF file of 64 bits."""
        if real not in self._elf:
            self._elf[real] = file_elf(self.host(real))
        return self._elf[real]

    def head(self, real: str, size: int) -> bytes:
        """The first bytes of a file."""
        return reader(self.host(real))(size)

    def walk(self, real: str) -> Iterator[str]:
        """Everything below a folder: folders before what is in them, names in order. No link is followed."""
        for name in sorted(os.listdir(self.host(real))):
            path = f"{real.rstrip('/')}/{name}"
            yield path
            if stat.S_ISDIR(os.lstat(self.host(path)).st_mode):
                yield from self.walk(path)

    def _raw(self, parts: list[str]) -> str:
        return os.path.join(self.folder, *parts)


def file_elf(file: Path) -> Elf | None:
    """What a file of this machine says about itself as an ELF file; None when it is none. A link is not followed."""
    try:
        return read_elf(reader(file))
    except Unsupported:
        return None
