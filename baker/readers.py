"""Readers of the filesystems a sysext can have: squashfs by unsquashfs, ext4 by debugfs, btrfs by btrfs, and EROFS.

Each lists the whole tree when it is made. All raise Damaged for what cannot be right.
"""

from __future__ import annotations

import os
import re
import stat
import struct
import tempfile
from collections.abc import Iterator
from pathlib import Path

from baker.btrfs_tree import HasSubvolumes, read_super, restore, scan
from baker.debugfs import Debugfs
from baker.debugfs import Inode as InodeOfExt
from baker.erofs import Damaged, ErofsReader, Inode, Unsupported
from baker.errors import ImageError
from baker.inject import is_too_deep
from baker.model import Node, Partition
from baker.run import Bounds, CommandFailed, check_killed, run, spawn

MAX_ENTRIES = 500_000
_PATH_MAX = 4096
_EXT_ROOT = 2  # the root's inode
_SMALL = 4096  # bytes of a file that is kept once it was read, as starting a program takes longer than reading
_MAX_EXTRACTED = 1 << 30  # bytes of a whole EROFS image that we unpack to get at one compressed file


class Tree:
    """Collects nodes by absolute path, and refuses what no sound filesystem has."""

    def __init__(self) -> None:
        self.nodes: dict[str, Node] = {}

    def add(self, node: Node) -> None:
        parent, _, name = node.path.rpartition("/")
        if name in ("", ".", "..") or "\0" in name or (parent and parent not in self.nodes):
            raise Damaged(f"is damaged: it has a file named {name!r}")
        if node.path in self.nodes:
            raise Damaged(f"is damaged: {node.path!r} is there twice")
        if is_too_deep(node.path):
            raise Damaged("nests folders deeper than any sysext needs")
        if len(self.nodes) >= MAX_ENTRIES:
            raise Damaged(f"has more than {MAX_ENTRIES} files, which no sysext needs")
        self.nodes[node.path] = node

    def link(self, path: str) -> str:
        return self.nodes[path].symlink


def _below(parent: str, name: str) -> str:
    """The path of an entry; Damaged for a name that would lead elsewhere (Tree.add refuses the rest)."""
    if "/" in name:
        raise Damaged(f"is damaged: it has a file named {name!r}")
    return f"{parent}/{name}"


_TYPES = {"-": stat.S_IFREG, "d": stat.S_IFDIR, "l": stat.S_IFLNK}
_KINDS = {stat.S_IFREG: "file", stat.S_IFDIR: "directory", stat.S_IFLNK: "symlink"}


def make_node(path: str, mode: int, uid: int, gid: int, size: int, symlink: str = "") -> Node:
    """A Node from what stat(2) gives; only regular files keep their size."""
    what = _KINDS.get(stat.S_IFMT(mode), "other")
    return Node(path, what, stat.S_IMODE(mode), uid, gid, size if what == "file" else 0, symlink=symlink)


class Squashfs(Tree):
    """Through unsquashfs: the listing in numbers, and `-cat` for content."""

    _SUPERBLOCK = struct.Struct("<4sIIIIHHHHHHQQ")
    _LINE = re.compile(
        rb"(?P<mode>[-dlcbps][-rwxsStT]{9}) (?P<uid>\d+)/(?P<gid>\d+) +(?:(?P<size>\d+)|\d+, *\d+) "
        rb"\S+ \d\d:\d\d squashfs-root(?P<path>/.*)?"
    )

    def __init__(self, path: Path, offset: int, size: int) -> None:
        super().__init__()
        self._image, self._offset = path, offset
        self._small: dict[str, bytes] = {}
        self.compression = self._check_superblock(size)
        """The number of the compression: 1 gzip, 3 lzo, 4 xz, 5 lz4, 6 zstd (squashfs_fs.h of Linux)."""
        for line in self._listing():
            match = self._LINE.fullmatch(line)
            if match is None:
                raise Damaged(f"has a file name with a line break, or is damaged: {line[:120]!r}")
            if match["path"] is not None:
                self.add(self._parse(match))

    def _check_superblock(self, size: int) -> int:
        with self._image.open("rb") as file:
            raw = os.pread(file.fileno(), self._SUPERBLOCK.size, self._offset)
        if len(raw) < self._SUPERBLOCK.size:
            raise Damaged("is cut short")
        _, inodes, _, _, _, compression, *_, major, _minor, _root, used = self._SUPERBLOCK.unpack(raw)
        if major != 4:
            raise Damaged(f"has a damaged squashfs superblock, or one of the unknown version {major}")
        if used > size:
            raise Damaged(f"is cut short: {size} of {used} bytes are there")
        if inodes > MAX_ENTRIES:
            raise Damaged(f"has more than {MAX_ENTRIES} files, which no sysext needs")
        return int(compression)

    def _command(self, *words: str) -> list[str]:
        return ["unsquashfs", "-processors", "1", "-offset", str(self._offset), *words]

    def _listing(self) -> Iterator[bytes]:
        # Streamed, because a small image can hold a listing that does not fit into memory.
        with tempfile.TemporaryFile() as errors:
            argv = [*self._command("-UTC", "-lln"), os.fspath(self._image)]
            with spawn(argv, stderr=errors, bounds=Bounds()) as process:
                assert process.stdout is not None
                for line in process.stdout:
                    yield line.rstrip(b"\n")
                process.wait()
            check_killed(argv[0], process.returncode)
            if process.returncode:
                errors.seek(0)
                raise Damaged(f"is damaged: unsquashfs says {_last_line(errors.read(4096))!r}")

    def _parse(self, match: re.Match[bytes]) -> Node:
        letters = match["mode"].decode()
        path, symlink = os.fsdecode(match["path"]), ""
        if letters[0] == "l":
            path, _, symlink = path.partition(" -> ")
        mode = _TYPES.get(letters[0], stat.S_IFCHR) | _permissions(letters[1:])
        return make_node(path, mode, int(match["uid"]), int(match["gid"]), int(match["size"] or 0), symlink)

    def read(self, path: str, limit: int) -> bytes:
        if path in self._small:
            return self._small[path][:limit]
        words = self._command("-no-wildcards", "-cat")
        data = _first_bytes([*words, os.fspath(self._image), path.lstrip("/")], self.nodes[path], limit)
        if len(data) == self.nodes[path].size <= _SMALL:
            self._small[path] = data
        return data


def _permissions(letters: str) -> int:
    """`rwsr-xr-t` as a number."""
    mode = 0
    for position, letter in enumerate(letters):
        bit = 0o400 >> position
        if letter in "rwxst":
            mode |= bit
        if letter in "sStT":
            mode |= {2: stat.S_ISUID, 5: stat.S_ISGID, 8: stat.S_ISVTX}[position]
    return mode


class Ext(Tree):
    """Through debugfs, one level of folders at a time. `folder` must be an empty folder of its own."""

    def __init__(self, image: Path, offset: int, size: int, folder: Path) -> None:
        super().__init__()
        self._debugfs = Debugfs(image, Partition("the image", 0, "", "", 0, offset, size, "ext4"), folder, 0)
        self._inodes: dict[str, InodeOfExt] = {}
        level, seen = {_EXT_ROOT: ""}, {_EXT_ROOT}
        while level:
            found = self._list(level)
            level = {number: path for number, path in found.items() if number not in seen}
            seen |= level.keys()

    def _list(self, folders: dict[int, str]) -> dict[int, str]:
        """List folders (inode -> path) into `nodes`; returns the folders they contain."""
        entries = {
            _below(parent, os.fsdecode(entry.name)): entry.inode
            for parent, found in zip(folders.values(), self._debugfs.listing(list(folders)), strict=True)
            for entry in found
        }
        entries.pop("/lost+found", None)
        numbers = sorted(set(entries.values()))
        inodes = dict(zip(numbers, self._debugfs.inodes(numbers), strict=True))
        for path, number in entries.items():
            inode = self._inodes[path] = inodes[number]
            self.add(make_node(path, inode.mode, inode.uid, inode.gid, inode.size))
        return {number: path for path, number in entries.items() if stat.S_ISDIR(inodes[number].mode)}

    def inode_number(self, path: str) -> int:
        """The number of a path's inode."""
        return self._inodes[path].number

    def read(self, path: str, limit: int) -> bytes:
        data = self._debugfs.content(self._inodes[path].number, limit)
        if len(data) < min(limit, self.nodes[path].size):
            raise Damaged(f"is damaged: {path!r} cannot be read")
        return data

    def link(self, path: str) -> str:
        inode = self._inodes[path]
        target = inode.short_target
        return os.fsdecode(self._debugfs.content(inode.number, _PATH_MAX) if target is None else target)


class Erofs(Tree):
    """Through our own reader; where a file is compressed, fsck.erofs unpacks the image into `folder`, an empty one."""

    def __init__(self, image: Path, fd: int, offset: int, size: int, folder: Path) -> None:
        super().__init__()
        self._image, self._offset, self._folder = image, offset, folder
        self._reader = ErofsReader(fd, offset, size)
        self._inodes: dict[str, Inode] = {}
        todo, seen = [("", self._reader.root)], {self._reader.root.nid}
        while todo:
            parent, directory = todo.pop()
            for name, nid in self._reader.entries(directory):
                path, inode = _below(parent, os.fsdecode(name)), self._reader.inode(nid)
                self._enter(path, inode)
                if inode.is_directory and nid not in seen:
                    seen.add(nid)
                    todo.append((path, inode))

    def _enter(self, path: str, inode: Inode) -> None:
        symlink = ""
        if stat.S_ISLNK(inode.mode):
            symlink = os.fsdecode(self._reader.read(inode, 0, min(inode.size, _PATH_MAX)))
        self.add(make_node(path, inode.mode, inode.uid, inode.gid, inode.size, symlink))
        self._inodes[path] = inode

    def read(self, path: str, limit: int) -> bytes:
        inode = self._inodes[path]
        return self._unpacked(path, limit) if inode.is_compressed else self._reader.read(inode, 0, limit)

    def _unpacked(self, path: str, limit: int) -> bytes:
        """A compressed file's first bytes. fsck.erofs only unpacks all, so only small images get it, once."""
        target = self._folder / "tree"
        total = sum(node.size for node in self.nodes.values())
        if self._offset or total > _MAX_EXTRACTED or any(node.kind == "other" for node in self.nodes.values()):
            raise Unsupported("its content is compressed")
        if not target.exists():
            try:
                argv = ["fsck.erofs", f"--extract={target}", "--no-preserve", os.fspath(self._image)]
                run(argv, bounds=Bounds(writable=(self._folder,)))
            except CommandFailed as error:
                raise Unsupported(f"fsck.erofs cannot unpack it: {_last_line(error.stderr.encode())}") from error
        try:
            with open(f"{target}{path}", "rb") as file:
                return file.read(limit)
        except OSError as error:
            raise Unsupported("fsck.erofs did not unpack it") from error


class Btrfs(Tree):
    """Through btrfs-progs, which print the tree and take its contents out, all of them at once into `folder`."""

    def __init__(self, image: Path, offset: int, size: int, folder: Path) -> None:
        super().__init__()
        if offset:
            raise Unsupported("a btrfs within a disk image cannot be read without mounting it")
        if (claimed := read_super(image).total_bytes) > size:
            raise Damaged(f"is cut short: {size} of {claimed} bytes are there")
        self._image, self._folder = image, folder
        try:
            self._entries = scan(image)
        except HasSubvolumes as error:
            raise Unsupported(error.message.rstrip(".")) from error
        except ImageError as error:
            raise Damaged(f"is damaged: {error.message.rstrip('.')}") from error
        for path, entry in self._entries.items():
            if path != "/":
                self.add(make_node(path, entry.mode, entry.uid, entry.gid, entry.size))

    def read(self, path: str, limit: int) -> bytes:
        with open(self._restored(path), "rb") as file:
            return file.read(limit)

    def link(self, path: str) -> str:
        return os.readlink(self._restored(path))

    def _restored(self, path: str) -> str:
        target = self._folder / "tree"
        if sum(node.size for node in self.nodes.values()) > _MAX_EXTRACTED:
            raise Unsupported("it is too large to be unpacked for a look")
        if not target.exists():
            try:
                restore(self._image, target, self._entries)
            except (CommandFailed, ImageError) as error:
                raise Damaged("is damaged: btrfs cannot take its files out") from error
        return f"{target}{path}"


def _first_bytes(argv: list[str], node: Node, limit: int) -> bytes:
    """What a program prints, up to `limit` bytes; then it is stopped. Damaged if that is less than the file has."""
    expected = min(limit, node.size)
    with tempfile.TemporaryFile() as errors:
        with spawn(argv, stderr=errors, bounds=Bounds()) as process:
            assert process.stdout is not None
            data = process.stdout.read(expected)
            if len(data) < expected:
                check_killed(argv[0], process.wait())
        if len(data) < expected:
            errors.seek(0)
            raise Damaged(f"is damaged: {node.path!r} cannot be read: {_last_line(errors.read(4096))!r}")
    return data


def _last_line(text: bytes) -> str:
    lines = text.decode("utf-8", "backslashreplace").strip().splitlines()
    return lines[-1] if lines else "nothing"
