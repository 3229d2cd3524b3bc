"""Where the entries of a foreign archive land: a folder that they cannot leave, whatever their names and links say.

The folder starts empty and gets its symbolic links last. So while files are written there is no link that a name
could lead through, and when the links are made, all of them are known and can be judged together.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from baker.errors import EnvironmentFault, ImageError, UsageError

_HARM_HINT = "The archive is damaged or made to do harm; nothing of it is used."
LATEST = 1 << 33  # seconds; a time behind this is nonsense, and not every filesystem can store it
MOST_HOPS = 40  # the kernel's own limit for links on the way to a file
DEEPEST = 200  # shutil.rmtree of a much deeper tree is too much for Python's stack
_SETUID_SETGID = 0o6000


@dataclass(frozen=True)
class Limits:
    """What an archive may unpack to at most. No honest one comes near."""

    entries: int = 500_000
    size: int = 32 << 30
    """Bytes of all files together."""
    ratio: int = 200
    """Bytes of all files for each byte of the archive; it counts from `floor` on."""
    floor: int = 1 << 30

    def for_archive(self, size: int) -> int:
        """The bytes that an archive of `size` bytes may unpack to."""
        return min(self.size, max(self.floor, size * self.ratio))


class Guard:
    """What every way of unpacking into a folder has in common: limits, and errors that name the entry.

    `archive` names the archive in messages. `most` is the sum of all file sizes that is accepted, `entries` their
    number. Raises UsageError when `folder` is not empty.
    """

    def __init__(self, folder: Path, archive: str, most: int, entries: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise UsageError(f"{folder} is not empty, so no archive is unpacked there.")
        self._root, self._archive = folder, archive
        self._left, self._most = most, most
        self._entries_left = entries

    def _count_entry(self, name: str) -> None:
        self._entries_left -= 1
        if self._entries_left < 0:
            raise self._refuse(name, "is one of too many entries")

    def _count(self, name: str, size: int) -> None:
        self._left -= size
        if self._left < 0:
            raise self._refuse(name, f"makes it unpack to more than {self._most} bytes, far too much for its size")

    def _refuse(self, name: str, why: str) -> ImageError:
        shown = name if name.isprintable() else repr(name)
        return ImageError(f"{self._archive}: the entry {shown} {why}.", _HARM_HINT)

    @contextmanager
    def _telling(self, name: str) -> Iterator[None]:
        """Turn what the system says about a path of the archive's choosing into our errors."""
        try:
            yield
        except FileExistsError:
            raise self._refuse(name, "is in it twice, or once as a folder and once as something else") from None
        except OSError as error:
            if error.errno in (
                errno.ENAMETOOLONG,
                errno.ENOTDIR,
                errno.EINVAL,
                errno.EILSEQ,
                errno.ELOOP,
                errno.EMLINK,
            ):
                raise self._refuse(name, f"has an impossible name ({error.strerror})") from None
            raise EnvironmentFault(
                f"{self._archive} cannot be unpacked into {self._root}: {error.strerror}.",
                "Free some space, or use another folder for the output.",
            ) from error


class Landing(Guard):
    """Takes entries by name; call `finish` when all are there.

    `strip` leading folders of each name are dropped, and with them every entry that has no more. Every method raises
    ImageError that names the entry, and EnvironmentFault for a full disk.
    """

    def __init__(self, folder: Path, archive: str, strip: int, most: int, entries: int) -> None:
        super().__init__(folder, archive, most, entries)
        self._strip = strip
        self._links: dict[str, str] = {}
        self._files: set[str] = set()
        self._folders: set[str] = {""}

    def folder(self, name: str) -> None:
        """A folder; it may come several times."""
        place = self._place(name)
        if place:
            with self._telling(name):
                self._make_folder(place)

    def file(self, name: str, mode: int, modified: float, chunks: Iterable[bytes | memoryview]) -> None:
        """A file; of `mode` counts whether it may be executed. `chunks` are read only where the file is wanted."""
        if mode & _SETUID_SETGID:
            raise self._refuse(name, "is setuid or setgid, which nothing from an archive may be")
        place = self._place(name)
        if not place:
            return
        with self._telling(name):
            self._make_folder(os.path.dirname(place))
            fd = os.open(self._root / place, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            for chunk in chunks:
                self._count(name, len(chunk))
                with self._telling(name):
                    write_all(fd, chunk)
            os.fchmod(fd, 0o755 if mode & 0o111 else 0o644)
            when = min(max(modified, 0), LATEST)
            os.utime(fd, (when, when))
        finally:
            os.close(fd)
        self._files.add(place)

    def symlink(self, name: str, target: str) -> None:
        """A symbolic link, made by `finish`."""
        place = self._place(name)
        if not place:
            return
        if place in self._links or place in self._files:
            raise self._refuse(name, "is in it twice")
        if not target.isprintable():
            raise self._refuse(name, f"is a link to {target!r}, which is no plain text")
        self._links[place] = target

    def hard_link(self, name: str, target: str) -> None:
        """Another name of a file that came before."""
        place, origin = self._place(name), self._place(target, counts=False)
        if not place:
            return
        if origin in self._links:
            raise self._refuse(name, f"is a hard link to the symbolic link {target}")
        if origin not in self._files:
            raise self._refuse(name, f"is a hard link to {target}, which does not come before it")
        with self._telling(name):
            self._make_folder(os.path.dirname(place))
            os.link(self._root / origin, self._root / place, follow_symlinks=False)
        self._files.add(place)

    def special(self, name: str) -> None:
        """A device, FIFO or socket: always refused."""
        raise self._refuse(name, "is neither a file, a folder nor a link")

    def finish(self) -> None:
        """Make the symbolic links, if all of them stay inside."""
        for place, target in self._links.items():
            if not stays_inside(place, self._links):
                raise self._refuse(place, f"is a link to {target}, which leads out of the archive or in a circle")
        for place, target in self._links.items():
            with self._telling(place):
                self._make_folder(os.path.dirname(place))
                os.symlink(target, self._root / place)

    def _place(self, name: str, counts: bool = True) -> str:
        """The path below the folder for an entry, "" when `strip` leaves nothing of it."""
        if counts:
            self._count_entry(name)
        if not name.isprintable():
            raise self._refuse(name, "has a name that is no plain text")
        if name.startswith("/"):
            raise self._refuse(name, "has an absolute name")
        parts = [part for part in name.split("/") if part not in ("", ".")]
        if ".." in parts:
            raise self._refuse(name, "has a name with `..` in it")
        if len(parts) > DEEPEST:
            raise self._refuse(name, f"lies more than {DEEPEST} folders deep")
        return "/".join(parts[self._strip :])

    def _make_folder(self, place: str) -> None:
        missing = []
        while place not in self._folders:
            missing.append(place)
            place = os.path.dirname(place)
        for new in reversed(missing):
            (self._root / new).mkdir()
            (self._root / new).chmod(0o755)
            self._folders.add(new)


def stays_inside(name: str, links: Mapping[str, str]) -> bool:
    """Whether the link `name` leads to a place below the root of the tree, by way of all `links` (path → target).

    What is no link counts as a folder, there or not. Circles and absolute targets do not stay inside.
    """
    todo = name.split("/")[::-1]
    at: list[str] = []
    hops = 0
    while todo:
        part = todo.pop()
        if part in ("", "."):
            continue
        if part == "..":
            if not at:
                return False
            at.pop()
            continue
        target = links.get("/".join([*at, part]))
        if target is None:
            at.append(part)
            continue
        hops += 1
        if target.startswith("/") or hops > MOST_HOPS:
            return False
        todo += target.split("/")[::-1]
    return True


def write_all(fd: int, chunk: bytes | memoryview) -> None:
    """Write all of a chunk."""
    view = memoryview(chunk)
    while view:
        view = view[os.write(fd, view) :]
