"""The layers of an image laid over each other in one folder, which nothing in them can lead out of.

Format: OCI image-spec, layer.md (changesets, whiteouts). A model of the tree in memory decides everything: every name
is resolved in it, by way of the image's own links and never above its root, as a kernel in a chroot would. On disk
there are only files and folders until `finish`, which makes links and devices last. So while files are written there
is no link that the kernel could follow, whatever the layers say.
"""

from __future__ import annotations

import os
import stat
import tarfile
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from baker.errors import EnvironmentFault
from baker.recipe.landing import DEEPEST, LATEST, MOST_HOPS, Guard, write_all

_WHITEOUT, _AUFS = ".wh.", ".wh..wh."
_OPAQUE = ".wh..wh..opq"
_XATTR = "SCHILY.xattr."
_KEPT_XATTRS = ("user.", "security.capability")  # trusted.* would mean something to overlayfs, labels to SELinux
_LARGEST_ID = 2**32 - 2
_LONGEST_TARGET = 4095


@dataclass(frozen=True, slots=True)
class Meta:
    """What an entry says about a path besides its content."""

    mode: int = 0o755
    uid: int = 0
    gid: int = 0
    modified: int = 0
    xattrs: tuple[tuple[str, bytes], ...] = ()


_IMPLIED = Meta()
"""Of folders that no entry speaks about."""


@dataclass(slots=True)
class _Node:
    """One path of the tree. `layer` is the number of the last layer that spoke about it."""

    kind: str
    """`folder`, `file`, `link`, `fifo`, `block` or `character`."""
    layer: int
    meta: Meta = _IMPLIED
    target: str = ""
    device: tuple[int, int] = (0, 0)
    children: dict[str, _Node] = field(default_factory=dict)


@dataclass
class LeftOut:
    """What the folder lacks of the image, or what its user should know of, as paths within the image."""

    devices: list[str] = field(default_factory=list)
    capabilities: list[str] = field(default_factory=list)
    """Programs that lack the capabilities which the image gives them."""
    foreign: int = 0
    """How many paths belong to somebody else in the image."""
    set_id: list[str] = field(default_factory=list)
    """Set-user-id and set-group-id programs; these are in the folder as they are in the image."""


class RootFolder(Guard):
    """Takes the entries of one layer after the other; call `finish` when all are there.

    As root, everything gets its owner, mode and capabilities, and with `devices` device nodes are made. Otherwise all
    belongs to us, and we may read every file and change every folder. Methods raise ImageError that names layer and
    entry, and EnvironmentFault when the disk is full or something is not allowed.
    """

    def __init__(self, folder: Path, image: str, most: int, entries: int, devices: bool = False) -> None:
        super().__init__(folder, image, most, entries)
        self._top = _Node("folder", 0)
        self._layer = 0
        self._devices = devices
        self._as_root = os.geteuid() == 0
        self.left_out = LeftOut()
        self.capable: list[str] = []
        """Programs that got their capabilities."""
        self.count = 0
        """Paths in the finished folder."""

    def begin(self, name: str) -> None:
        """Entries are of the next layer now, which messages call `name`."""
        self._archive = name
        self._layer += 1

    def take(self, entry: tarfile.TarInfo, chunks: Iterable[bytes]) -> None:
        """Lay one entry over what is there. `chunks` are read for regular files only."""
        self._count_entry(entry.name)
        parts = self._parts(entry.name, entry.name)
        if not parts:
            if entry.isdir():
                self._top.meta = self._meta(entry)
            return
        *above, name = parts
        hidden = next((part for part in above if part.startswith(_WHITEOUT)), "")
        if hidden and not hidden.startswith(_AUFS):
            raise self._refuse(entry.name, "lies below a whiteout")
        if hidden or name.startswith(_WHITEOUT):
            self._whiteout(entry.name, above, name)
            return
        folder, place = self._folder(above, entry.name)
        if entry.isdir():
            self._take_folder(folder, place, name, entry)
        elif entry.islnk():
            self._take_hard_link(folder, place, name, entry)
        elif entry.isreg():
            self._remove(folder, place, name)
            self._write_file(_join(place, name), entry, chunks)
            folder.children[name] = _Node("file", self._layer, self._meta(entry))
        else:
            self._take_special(folder, place, name, entry)

    def finish(self) -> None:
        """Make links and devices, and give folders their modes; the top one is open to its owner only."""
        self._settle(self._top, "")
        os.chmod(self._root, 0o700)
        self.count -= 1

    def lacks(self, path: str, among: Collection[str]) -> bool:
        """Whether an entry's path is one of `among` that is not there yet."""
        node, parts = self._top, [part for part in path.split("/") if part not in ("", ".")]
        if "/".join(parts) not in among:
            return False
        for part in parts:
            if part not in node.children:
                return True
            node = node.children[part]
        return False

    def _parts(self, path: str, name: str) -> list[str]:
        """The names in a path below the image's root."""
        parts = [part for part in path.split("/") if part not in ("", ".")]
        if ".." in parts:
            raise self._refuse(name, "has a name with `..` in it")
        if "\0" in path:
            raise self._refuse(name, "has a name with a zero byte in it")
        return parts

    def _meta(self, entry: tarfile.TarInfo) -> Meta:
        if not (0 <= entry.uid <= _LARGEST_ID and 0 <= entry.gid <= _LARGEST_ID):
            raise self._refuse(entry.name, f"belongs to {entry.uid}:{entry.gid}, which no system knows")
        xattrs = tuple(
            (key.removeprefix(_XATTR), value.encode("utf-8", "surrogateescape"))
            for key, value in entry.pax_headers.items()
            if key.startswith(tuple(_XATTR + kept for kept in _KEPT_XATTRS))
        )
        modified = int(min(max(entry.mtime, 0), LATEST))
        return Meta(stat.S_IMODE(entry.mode), entry.uid, entry.gid, modified, xattrs)

    def _folder(self, parts: list[str], name: str) -> tuple[_Node, str]:
        """The folder that a path leads to by way of links, and where it is; what lacks is made."""
        found = self._resolve(parts, name, make=True)
        assert found is not None
        return found

    def _resolve(self, parts: list[str], name: str, make: bool) -> tuple[_Node, str] | None:
        """Like a kernel in a chroot: an absolute link starts at the image's root, and there is nothing above that."""
        todo = parts[::-1]
        stack = [(self._top, "")]
        hops = 0
        while todo:
            part = todo.pop()
            if part in ("", "."):
                continue
            if part == "..":
                if len(stack) > 1:
                    stack.pop()
                continue
            folder, place = stack[-1]
            child = folder.children.get(part)
            if child is not None and child.kind == "link":
                hops += 1
                if hops > MOST_HOPS:
                    raise self._refuse(name, "leads in a circle of links")
                if child.target.startswith("/"):
                    del stack[1:]
                todo += child.target.split("/")[::-1]
                continue
            if child is None or child.kind != "folder":
                if not make:
                    return None
                if child is not None and child.layer == self._layer:
                    raise self._refuse(name, "lies below something that is no folder")
                child = self._new_folder(folder, place, part, name)
            stack.append((child, _join(place, part)))
            if len(stack) > DEEPEST:
                raise self._refuse(name, f"lies more than {DEEPEST} folders deep")
        return stack[-1]

    def _new_folder(self, folder: _Node, place: str, part: str, name: str) -> _Node:
        self._remove(folder, place, part)
        with self._telling(name):
            os.mkdir(self._root / place / part, 0o700)
        child = _Node("folder", self._layer)
        folder.children[part] = child
        return child

    def _take_folder(self, folder: _Node, place: str, name: str, entry: tarfile.TarInfo) -> None:
        child = folder.children.get(name)
        if child is None or child.kind != "folder":
            child = self._new_folder(folder, place, name, entry.name)
        if len(_join(place, name).split("/")) >= DEEPEST:
            raise self._refuse(entry.name, f"lies more than {DEEPEST} folders deep")
        child.layer, child.meta = self._layer, self._meta(entry)

    def _take_hard_link(self, folder: _Node, place: str, name: str, entry: tarfile.TarInfo) -> None:
        """Another name of what is there already, in this layer or in one below it."""
        *above, last = self._parts(entry.linkname, entry.name) or [""]
        found = self._resolve(above, entry.name, make=False)
        origin = found[0].children.get(last) if found else None
        if found is None or origin is None or origin.kind == "folder":
            raise self._refuse(entry.name, f"is a hard link to {entry.linkname!r}, which is no file before it")
        source, path = _join(found[1], last), _join(place, name)
        if f"{source}/".startswith(f"{path}/"):
            raise self._refuse(entry.name, "is a hard link to itself")
        self._remove(folder, place, name)
        if origin.kind == "file":
            with self._telling(entry.name):
                os.link(self._root / source, self._root / path, follow_symlinks=False)
        folder.children[name] = _Node(origin.kind, self._layer, origin.meta, origin.target, origin.device)

    def _take_special(self, folder: _Node, place: str, name: str, entry: tarfile.TarInfo) -> None:
        """A symbolic link, a FIFO or a device, which `finish` makes."""
        kinds = {tarfile.SYMTYPE: "link", tarfile.FIFOTYPE: "fifo", tarfile.BLKTYPE: "block",
                 tarfile.CHRTYPE: "character"}  # fmt: skip
        kind = kinds.get(entry.type, "")
        if not kind:
            raise self._refuse(entry.name, "is neither a file, a folder, a link nor a device")
        target = entry.linkname if kind == "link" else ""
        if kind == "link" and (not target or "\0" in target or len(os.fsencode(target)) > _LONGEST_TARGET):
            raise self._refuse(entry.name, "is a link to an impossible name")
        self._remove(folder, place, name)
        device = (entry.devmajor, entry.devminor)
        folder.children[name] = _Node(kind, self._layer, self._meta(entry), target, device)

    def _write_file(self, path: str, entry: tarfile.TarInfo, chunks: Iterable[bytes]) -> None:
        with self._telling(entry.name):
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            fd = os.open(self._root / path, flags, 0o600)
        try:
            for chunk in chunks:
                self._count(entry.name, len(chunk))
                with self._telling(entry.name):
                    write_all(fd, chunk)
        finally:
            os.close(fd)

    def _whiteout(self, name: str, above: list[str], last: str) -> None:
        """Take away what layers below have there; what this one brings stays, wherever it stands in the archive."""
        if last != _OPAQUE and (last.startswith(_AUFS) or not last.startswith(_WHITEOUT)):
            return  # aufs kept its hard links and the like in files of such names
        victim = last.removeprefix(_WHITEOUT)
        if victim in ("", ".", ".."):
            raise self._refuse(name, "is a whiteout of no name")
        found = self._resolve(above, name, make=False)
        if found is None:
            return
        folder, place = found
        for child in list(folder.children) if last == _OPAQUE else [victim]:
            self._remove_lower(folder, place, child)

    def _remove_lower(self, folder: _Node, place: str, name: str) -> None:
        child = folder.children.get(name)
        if child is None:
            return
        for below in list(child.children):
            self._remove_lower(child, _join(place, name), below)
        if child.layer < self._layer and not child.children:
            self._remove(folder, place, name)

    def _remove(self, folder: _Node, place: str, name: str) -> None:
        child = folder.children.pop(name, None)
        if child is None:
            return
        path = _join(place, name)
        for below in list(child.children):
            self._remove(child, path, below)
        if child.kind == "folder":
            os.rmdir(self._root / path)
        elif child.kind == "file":
            os.unlink(self._root / path)

    def _settle(self, node: _Node, path: str) -> None:
        """Make what is still missing below a path, then give it its owner, mode and time."""
        full = self._root / path
        with self._telling(path or "/"):
            if node.kind == "link":
                os.symlink(node.target, full)
            elif node.kind == "fifo":
                os.mkfifo(full, 0o600)
            elif node.kind in ("block", "character") and not self._make_device(node, path):
                return
            for name, child in node.children.items():
                self._settle(child, _join(path, name))
            self.count += 1
            self._own(node, path)
            os.utime(full, (node.meta.modified, node.meta.modified), follow_symlinks=False)

    def _make_device(self, node: _Node, path: str) -> bool:
        """Whether the device is made. One of 0/0 never is: overlayfs takes that for a whiteout."""
        if not self._devices or node.device == (0, 0):
            self.left_out.devices.append(f"/{path}")
            return False
        kind = stat.S_IFBLK if node.kind == "block" else stat.S_IFCHR
        try:
            os.mknod(self._root / path, kind | 0o600, os.makedev(*node.device))
        except (PermissionError, OverflowError) as error:
            raise EnvironmentFault(
                f"The device /{path} cannot be made: {error}.", "Leave out --devices, or run as root of the machine."
            ) from error
        return True

    def _own(self, node: _Node, path: str) -> None:
        meta, full = node.meta, self._root / path
        if (meta.uid, meta.gid) != (0, 0):
            self.left_out.foreign += 1
        if self._as_root:
            try:
                os.chown(full, meta.uid, meta.gid, follow_symlinks=False)
            except OSError as error:
                raise EnvironmentFault(
                    f"/{path} cannot be given to {meta.uid}:{meta.gid}: {error.strerror}.",
                    "Run it as an ordinary user, who needs no other owners.",
                ) from error
        if node.kind == "link":
            return
        own = {"folder": 0o700, "file": 0o400}.get(node.kind, 0) if not self._as_root else 0
        os.chmod(full, meta.mode | own)
        if node.kind == "file" and meta.mode & (stat.S_ISUID | stat.S_ISGID):
            self.left_out.set_id.append(f"/{path}")
        for key, value in meta.xattrs:
            if key.startswith("user.") or self._as_root:
                self._set_xattr(full, key, value)
                self.capable += [f"/{path}"] if not key.startswith("user.") else []
            else:
                self.left_out.capabilities.append(f"/{path}")

    def _set_xattr(self, full: Path, key: str, value: bytes) -> None:
        try:
            os.setxattr(full, key, value, follow_symlinks=False)
        except OSError as error:
            if not key.startswith("user."):  # a filesystem without attributes for everybody loses little
                raise EnvironmentFault(
                    f"The capabilities of {full} cannot be set: {error.strerror}.",
                    "Use a folder on a filesystem with extended attributes.",
                ) from error


def _join(place: str, name: str) -> str:
    return f"{place}/{name}" if place else name
