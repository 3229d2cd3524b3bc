"""What of a folder goes into a sysext, with which mode: one decision for all filesystems.

The folder is only read, and its links are never followed. Whatever would make the image depend on who made the folder
and when is left behind here: owners, times, extended attributes, hard links, holes, and modes but for one bit.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO
from uuid import UUID

from baker.errors import ImageError, UsageError
from baker.inject import is_too_deep, kind_of
from baker.model import Node

_CAPABILITY = "security.capability"
_NO_XATTRS = (errno.ENODATA, errno.EOPNOTSUPP, errno.ENOSYS)
_SET_ID = {stat.S_ISUID: "set-user-id", stat.S_ISGID: "set-group-id"}
_SPECIAL = {
    stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket", stat.S_IFBLK: "a block device",
    stat.S_IFCHR: "a character device",
}  # fmt: skip
_DEFAULTS_HINT = "Move what is needed below usr/; defaults for /etc go below usr/share, copied by tmpfiles.d."


@dataclass(frozen=True)
class Entry:
    """One path of the image to be, absolute within it. Everything belongs to root.

    A regular file's bytes are those of the host file `source`, or `content` where there is none.
    """

    path: str
    kind: str
    """`directory`, `file` or `symlink`."""
    mode: int
    """Permission bits."""
    size: int = 0
    source: Path | None = None
    content: bytes = b""
    symlink: str = ""

    @property
    def node(self) -> Node:
        """The entry as a reader of the image must find it."""
        return Node(self.path, self.kind, self.mode, 0, 0, self.size, symlink=self.symlink)

    def open(self) -> BinaryIO:
        """Open the host file of a regular file; ImageError when it is no longer what it was."""
        assert self.source is not None
        try:
            fd = os.open(self.source, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            raise UsageError(f"Cannot read {self.source}: {error.strerror}.") from error
        file = os.fdopen(fd, "rb")
        found = os.fstat(file.fileno())
        if not stat.S_ISREG(found.st_mode) or found.st_size != self.size:
            file.close()
            raise changed(self.path)
        return file


def changed(path: str) -> ImageError:
    """The error for a file of the folder that somebody writes to meanwhile."""
    return ImageError(f"{path} changed while it was packed.", "Pack the folder when nobody writes to it.")


def directory(path: str) -> Entry:
    """A folder of the image."""
    return Entry(path, "directory", 0o755)


def text_file(path: str, content: bytes) -> Entry:
    """A file of the image that no host file stands for."""
    return Entry(path, "file", 0o644, len(content), content=content)


def read_tree(folder: Path, *, keep_modes: bool = False, drop_capabilities: bool = False) -> dict[str, Entry]:
    """Everything below `folder` by its path in the image: parents before children, names in the order of their bytes.

    Modes become 0755 or 0644, unless `keep_modes` keeps those of files and folders. Raises UsageError for what a
    sysext cannot or must not hold, by name: anything outside usr/ and opt/, devices, pipes, sockets, set-id bits,
    file capabilities (unless `drop_capabilities`), and names that the tools cannot list without doubt.
    """
    entries = {}
    for path, item in _walk(folder, ""):
        entries[path] = _entry(path, item, keep_modes)
        if not drop_capabilities and entries[path].kind == "file":
            _check_capabilities(path, item)
    if not entries:
        raise UsageError(f"The folder {folder} is empty.", "A sysext's files go to usr/ and opt/ in it.")
    return entries


def _walk(folder: Path, below: str) -> Iterator[tuple[str, os.DirEntry[str]]]:
    try:
        with os.scandir(folder) as found:
            items = sorted(found, key=lambda item: os.fsencode(item.name))
    except OSError as error:
        raise UsageError(f"Cannot read the folder {folder}: {error.strerror}.") from error
    for item in items:
        path = f"{below}/{item.name}"
        _check_name(path)
        yield path, item
        if item.is_dir(follow_symlinks=False):
            yield from _walk(folder / item.name, path)


def _check_name(path: str) -> None:
    if path.count("/") == 1 and path not in ("/usr", "/opt"):
        raise UsageError(f"{path[1:]!r} is neither usr nor opt, and would not appear in the system.", _DEFAULTS_HINT)
    if "\n" in path:
        raise UsageError(f"The name {path!r} has a line break in it.", "Rename it: such an image cannot be checked.")
    if is_too_deep(path):
        raise UsageError(f"{path[:60]!r}… is nested too deep for any system.")


def _entry(path: str, item: os.DirEntry[str], keep_modes: bool) -> Entry:
    found = item.stat(follow_symlinks=False)
    kind = kind_of(found.st_mode)
    if kind == "other":
        what = _SPECIAL.get(stat.S_IFMT(found.st_mode), "no file")
        raise UsageError(f"{path} is {what}, which a sysext cannot hold.", "Leave it out of the folder.")
    if kind == "symlink":
        target = os.readlink(item.path)
        if "\n" in target or " -> " in path:
            raise UsageError(f"The link {path!r} -> {target!r} cannot be listed without doubt.", "Rename it.")
        return Entry(path, "symlink", 0o777, symlink=target)
    mode = stat.S_IMODE(found.st_mode)
    if kind == "directory":
        return Entry(path, "directory", mode & 0o777 if keep_modes else 0o755)
    for bit, word in _SET_ID.items():
        if mode & bit:
            raise UsageError(
                f"{path} is a {word} program; a sysext must not bring new ways to become root.",
                "Take the bit away (chmod ug-s), or start it by a unit as root.",
            )
    normal = 0o755 if mode & 0o111 else 0o644
    return Entry(path, "file", mode & 0o777 if keep_modes else normal, found.st_size, Path(item.path))


def _check_capabilities(path: str, item: os.DirEntry[str]) -> None:
    try:
        os.getxattr(item.path, _CAPABILITY, follow_symlinks=False)
    except OSError as error:
        if error.errno in _NO_XATTRS:
            return
        raise UsageError(f"Cannot read the attributes of {item.path}: {error.strerror}.") from error
    raise UsageError(
        f"{path} has file capabilities, which a sysext does not carry.",
        "Give them by AmbientCapabilities= of a unit; to pack it without them: --drop-capabilities",
    )


def identity(entries: Mapping[str, Entry], epoch: int) -> UUID:
    """An id for a filesystem with these entries: the kernel refuses to mount two with the same one side by side.

    It tells apart what systemd merges at the same time, so names, sizes and small contents are enough.
    """
    digest = hashlib.sha256(b"flatcar-bake sysext 1\n%d\n" % epoch)
    for entry in entries.values():
        line = f"{entry.path}\0{entry.kind}\0{entry.mode:o}\0{entry.size}\0{entry.symlink}\0"
        digest.update(line.encode("utf-8", "surrogateescape") + entry.content)
    return UUID(bytes=digest.digest()[:16], version=4)
