"""What of a root filesystem a sysext takes, and where it goes: the PATHs of flix and flatwrap, spelled out.

A PATH below /usr keeps its place, another is `SOURCE:/usr/DESTINATION`. /usr/sbin becomes /usr/bin, which on Flatcar
is the same folder.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterable
from dataclasses import dataclass, field

from baker.chroot.root import Root
from baker.errors import ImageError, UsageError
from baker.schema import suggest

_CAPABILITY = "security.capability"
_SET_ID = stat.S_ISUID | stat.S_ISGID


@dataclass(frozen=True)
class Wanted:
    """One PATH: where it is in the root filesystem, links on the way resolved (it may be one), and its place."""

    word: str
    source: str
    dst: str
    moved: bool
    """Whether the user said where it goes."""


@dataclass(frozen=True)
class Piece:
    """One file, folder or link of the sysext."""

    dst: str
    kind: str
    """`file`, `folder` or `link`."""
    why: str
    source: str = ""
    """The path of a file in the root filesystem, without links."""
    link: str = ""
    asked: bool = False
    """Whether it was asked for by name, rather than found in a folder."""


@dataclass
class Taken:
    """All pieces by their place, and where the files of the root filesystem went."""

    pieces: dict[str, Piece] = field(default_factory=dict)
    shipped: dict[str, str] = field(default_factory=dict)
    """Path in the root filesystem → place in the sysext; for links and folders, too."""
    notes: list[str] = field(default_factory=list)

    def add(self, piece: Piece, origin: str = "") -> None:
        """Add a piece; ImageError when something else is in its place. `origin` is its path if that is a link's."""
        there = self.pieces.get(piece.dst)
        if there is not None and (there.kind, there.source, there.link) != (piece.kind, piece.source, piece.link):
            raise ImageError(
                f"{there.source or there.link} and {piece.source or piece.link} would both become {piece.dst}.",
                "Give one of them another place: SOURCE:/usr/DESTINATION",
            )
        if there is None or piece.asked:
            self.pieces[piece.dst] = piece
        if origin or piece.source:
            self.shipped.setdefault(origin or piece.source, piece.dst)


def wanted(root: Root, words: Iterable[str]) -> list[Wanted]:
    """The PATHs, checked; UsageError for one that does not exist, cannot be placed, or is no path."""
    found = [_wanted(root, word) for word in words]
    if not found:
        raise UsageError("There is nothing to take.", "Give paths of the root filesystem, such as /usr/bin/htop.")
    return found


def _wanted(root: Root, word: str) -> Wanted:
    source, colon, dst = word.partition(":")
    for path in (source, dst) if colon else (source,):
        if not path.startswith("/") or not path.isprintable() or not {".", ".."}.isdisjoint(path.split("/")):
            raise UsageError(f"{word!r} is no path of the root filesystem.", "Write /usr/PATH or /PATH:/usr/PATH")
    place = root.place(source)
    if place is None or place == "/":
        folder, _, name = source.rstrip("/").rpartition("/")
        raise UsageError(f"The root filesystem has no {source}.", suggest(name, root.names(folder or "/")))
    target = dst.rstrip("/") if colon else usr_merged(place)
    if not target.startswith("/usr/") or "//" in target:
        raise UsageError(
            f"{target} is outside of /usr, where a sysext cannot put it.",
            f"Say where it goes: {source}:/usr/share/… or {source}:/usr/lib/…",
        )
    return Wanted(word, place, without_sbin(target), bool(colon))


def usr_merged(path: str) -> str:
    """/usr/bin/x for /bin/x and the like, which are the same on Flatcar and need not be in the root filesystem."""
    return re.sub(r"^/(bin|sbin|lib|lib64)(?=/)", r"/usr/\1", path)


def without_sbin(path: str) -> str:
    """A path with /usr/bin for /usr/sbin: on Flatcar that is a link, which a folder of a sysext would hide."""
    for folder in ("/usr/", "/usr/local/"):
        if path == f"{folder}sbin" or path.startswith(f"{folder}sbin/"):
            return f"{folder}bin{path.removeprefix(f'{folder}sbin')}"
    return path


def check_privileges(root: Root, real: str, name: str) -> None:
    """Refuse a file that becomes more than its user when it runs; ImageError."""
    if os.lstat(root.host(real)).st_mode & _SET_ID:
        raise ImageError(
            f"{name} is a set-id program; a sysext must not bring new ways to become root, and without it would fail.",
            "Start it by a unit as root, or take the bit away: chmod ug-s",
        )
    try:
        os.getxattr(root.host(real), _CAPABILITY, follow_symlinks=False)
    except OSError:
        return
    raise ImageError(
        f"{name} has file capabilities, which a sysext does not carry.",
        "Start it by a unit with AmbientCapabilities=, or take them away: setcap -r",
    )


def take(root: Root, wishes: Iterable[Wanted]) -> Taken:
    """Spell out folders and links. Raises ImageError for what a sysext cannot hold, and for links to nowhere."""
    taken = Taken()
    wishes = list(wishes)
    for wish in wishes:
        if root.link(wish.source) is None:
            _take(root, wish.source, wish.dst, wish, taken)
    # Links last: what they lead to may have been asked for as well, at a place of its own.
    for wish in wishes:
        if root.link(wish.source) is not None:
            _take_link(root, wish, taken)
    _settle_links(root, taken)
    return taken


def _take(root: Root, real: str, dst: str, wish: Wanted, taken: Taken) -> None:
    kind = stat.S_IFMT(os.lstat(root.host(real)).st_mode)
    if kind == stat.S_IFREG:
        check_privileges(root, real, real)
        taken.add(Piece(dst, "file", f"asked for: {wish.word}", real, asked=True))
    elif kind == stat.S_IFDIR:
        taken.add(Piece(dst, "folder", f"asked for: {wish.word}"), real)
        for path in root.walk(real):
            _take_inner(root, path, dst + path.removeprefix(real), wish, taken)
    else:
        raise ImageError(f"{real} is neither a file, a folder nor a link.", "A sysext cannot hold it.")


def _take_inner(root: Root, path: str, dst: str, wish: Wanted, taken: Taken) -> None:
    dst = without_sbin(dst)
    why = f"in the folder {wish.word.partition(':')[0]}"
    kind = stat.S_IFMT(os.lstat(root.host(path)).st_mode)
    if kind == stat.S_IFLNK:
        taken.add(Piece(dst, "link", why, link=os.readlink(root.host(path))), path)
    elif kind == stat.S_IFDIR:
        taken.add(Piece(dst, "folder", why), path)
    elif kind == stat.S_IFREG:
        check_privileges(root, path, path)
        taken.add(Piece(dst, "file", why, path))
    else:
        raise ImageError(f"{path} is neither a file, a folder nor a link.", "A sysext cannot hold it.")


def _take_link(root: Root, wish: Wanted, taken: Taken) -> None:
    """A link that was asked for: what it leads to keeps its place where it has one, and the link leads there."""
    real = root.resolve(wish.source)
    if real is None:
        raise ImageError(f"{wish.source} is a link to {root.link(wish.source)}, which does not exist.")
    place = taken.shipped.get(real)
    if place is None:
        own = without_sbin(usr_merged(real))
        place = wish.dst if wish.moved or not own.startswith("/usr/") else own
        _take(root, real, place, wish, taken)
    if place != wish.dst:
        taken.add(Piece(wish.dst, "link", f"asked for: {wish.word}", link=_relative(wish.dst, place)), wish.source)


def _settle_links(root: Root, taken: Taken) -> None:
    """Let links out of folders lead to what they mean: where that went, or to a copy of a file that did not."""
    for origin, dst in list(taken.shipped.items()):
        piece = taken.pieces[dst]
        if piece.kind != "link" or piece.asked or piece.why.startswith("asked"):
            continue
        real = root.resolve(origin)
        if real is None:
            taken.notes.append(f"{dst} leads nowhere, as in the root filesystem")
        elif real in taken.shipped:
            target = taken.shipped[real]
            if piece.link.startswith("/") or _joined(dst, piece.link) != target:
                taken.pieces[dst] = Piece(dst, "link", piece.why, link=_relative(dst, target))
        elif root.file(real) is not None:
            check_privileges(root, real, real)
            taken.pieces[dst] = Piece(dst, "file", f"{piece.why}, as a link to it", real)
            taken.notes.append(f"{dst} is a copy of {real}, to which it was a link")
        else:
            taken.notes.append(f"{dst} is a link to the folder {real}, which is not in the sysext")


def _joined(dst: str, link: str) -> str:
    return os.path.normpath(f"{dst.rpartition('/')[0]}/{link}")


def _relative(dst: str, target: str) -> str:
    return os.path.relpath(target, dst.rpartition("/")[0])
