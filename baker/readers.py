"""Readers of the filesystems a sysext can have: squashfs through unsquashfs, ext4 through debugfs, and EROFS.

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

from baker.erofs import Damaged, ErofsReader, Inode, Unsupported
from baker.model import Node
from baker.run import CommandFailed, run, spawn

MAX_ENTRIES = 500_000
_PATH_MAX = 4096
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
        self._check_superblock(size)
        for line in self._listing():
            match = self._LINE.fullmatch(line)
            if match is None:
                raise Damaged(f"has a file name with a line break, or is damaged: {line[:120]!r}")
            if match["path"] is not None:
                self.add(self._parse(match))

    def _check_superblock(self, size: int) -> None:
        with self._image.open("rb") as file:
            raw = os.pread(file.fileno(), self._SUPERBLOCK.size, self._offset)
        if len(raw) < self._SUPERBLOCK.size:
            raise Damaged("is cut short")
        _, inodes, *_, major, _minor, _root, used = self._SUPERBLOCK.unpack(raw)
        if major != 4:
            raise Damaged(f"has a damaged squashfs superblock, or one of the unknown version {major}")
        if used > size:
            raise Damaged(f"is cut short: {size} of {used} bytes are there")
        if inodes > MAX_ENTRIES:
            raise Damaged(f"has more than {MAX_ENTRIES} files, which no sysext needs")

    def _command(self, *words: str) -> list[str]:
        return ["unsquashfs", "-processors", "1", "-offset", str(self._offset), *words]

    def _listing(self) -> Iterator[bytes]:
        # Streamed, because a small image can hold a listing that does not fit into memory.
        with tempfile.TemporaryFile() as errors:
            with spawn([*self._command("-UTC", "-lln"), os.fspath(self._image)], stderr=errors) as process:
                assert process.stdout is not None
                for line in process.stdout:
                    yield line.rstrip(b"\n")
                process.wait()
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
        words = self._command("-no-wildcards", "-cat")
        return _first_bytes([*words, os.fspath(self._image), path.lstrip("/")], self.nodes[path], limit)


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
    """Through debugfs: one call per level of folders, and `cat` by inode for content."""

    _LINE = re.compile(r"/(?P<inode>\d+)/(?P<mode>[0-7]{6})/(?P<uid>\d+)/(?P<gid>\d+)/(?P<name>.*)/(?P<size>\d*)/")
    _ECHO = re.compile(r"debugfs: ls -p <(\d+)>")
    _FAST_LINK = re.compile(r'Fast link dest: "(.*)"')

    def __init__(self, path: Path, offset: int) -> None:
        super().__init__()
        self._image = f"{path}?offset={offset}"
        self._inodes: dict[str, int] = {}
        level, seen = {2: ""}, {2}
        while level:
            level = {inode: where for inode, where in self._list(level).items() if inode not in seen}
            seen |= level.keys()

    def _list(self, folders: dict[int, str]) -> dict[int, str]:
        """List folders (inode -> path) into `nodes`; returns the folders they contain."""
        commands = "".join(f"ls -p <{inode}>\n" for inode in folders)
        output = run(["debugfs", "-c", "-f", "-", self._image], input=commands.encode(), ok=(0, 1))
        found: dict[int, str] = {}
        unlisted = set(folders)
        inode = 0
        for line in output.text.splitlines():
            echo, match = self._ECHO.fullmatch(line), self._LINE.fullmatch(line)
            if echo:
                inode = int(echo[1])
            elif match and match["name"] == ".":
                unlisted.discard(inode)
            elif match and inode in folders:
                self._enter(folders[inode], match, found)
            elif line:
                raise Damaged(f"is damaged, or has a file name with a line break: {line[:120]!r}")
        if unlisted:
            raise Damaged(f"is damaged: debugfs says {_last_line(output.stderr.encode())!r}")
        return found

    def _enter(self, parent: str, match: re.Match[str], found: dict[int, str]) -> None:
        if match["name"] == ".." or (parent == "" and match["name"] == "lost+found"):
            return
        path, mode = _below(parent, match["name"]), int(match["mode"], 8)
        self.add(make_node(path, mode, int(match["uid"]), int(match["gid"]), int(match["size"] or 0)))
        self._inodes[path] = int(match["inode"])
        if stat.S_ISDIR(mode):
            found[int(match["inode"])] = path

    def read(self, path: str, limit: int) -> bytes:
        return _first_bytes(self._debugfs("cat", path), self.nodes[path], limit)

    def link(self, path: str) -> str:
        fast = self._FAST_LINK.search(run(self._debugfs("stat", path)).text)
        return fast[1] if fast else run(self._debugfs("cat", path)).text

    def _debugfs(self, command: str, path: str) -> list[str]:
        return ["debugfs", "-c", "-R", f"{command} <{self._inodes[path]}>", self._image]


class Erofs(Tree):
    """Through our own reader; fsck.erofs unpacks the image where a file's content is compressed."""

    def __init__(self, image: Path, fd: int, offset: int, size: int) -> None:
        super().__init__()
        self._image, self._offset = image, offset
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
        """A compressed file's first bytes. fsck.erofs only unpacks all, so only small images get it."""
        total = sum(node.size for node in self.nodes.values())
        if self._offset or total > _MAX_EXTRACTED or any(node.kind == "other" for node in self.nodes.values()):
            raise Unsupported("its content is compressed")
        with tempfile.TemporaryDirectory() as folder:
            try:
                run(["fsck.erofs", f"--extract={folder}/tree", "--no-preserve", self._image])
            except CommandFailed as error:
                raise Unsupported(f"fsck.erofs cannot unpack it: {_last_line(error.stderr.encode())}") from error
            with open(f"{folder}/tree{path}", "rb") as file:
                return file.read(limit)


def _first_bytes(argv: list[str], node: Node, limit: int) -> bytes:
    """What a program prints, up to `limit` bytes; then it is stopped. Damaged if that is less than the file has."""
    expected = min(limit, node.size)
    with tempfile.TemporaryFile() as errors:
        with spawn(argv, stderr=errors) as process:
            assert process.stdout is not None
            data = process.stdout.read(expected)
        if len(data) < expected:
            errors.seek(0)
            raise Damaged(f"is damaged: {node.path!r} cannot be read: {_last_line(errors.read(4096))!r}")
    return data


def _last_line(text: bytes) -> str:
    lines = text.decode("utf-8", "backslashreplace").strip().splitlines()
    return lines[-1] if lines else "nothing"
