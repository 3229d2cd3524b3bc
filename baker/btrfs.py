"""Editing a btrfs partition inside a raw image without root: take its files out, edit them, make the filesystem anew.

The kernel alone can write into an existing btrfs. The new one has the same label, UUID and size, and the same bytes
whoever makes it, anywhere and at any time (see baker.btrfs_writer); data that was compressed is stored uncompressed,
hard links become files of their own.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import mkdtemp
from typing import BinaryIO

from baker.btrfs_tree import BtrfsEntry, BtrfsSuper, read_super, restore, scan
from baker.btrfs_writer import BtrfsFull, BtrfsNode, capacity, write_btrfs
from baker.disk import check_file, extract, write_back
from baker.errors import EnvironmentFault, ImageError
from baker.inject import BLOCK, Worklist, check_space, check_written, expected_nodes, plan_work
from baker.model import Injection, Node, Partition
from baker.sparse import copy_extents, file_sha256

# Room for what Flatcar and the kernel write later, and for the metadata of an inode.
_RESERVE, _INODE_RESERVE = 16 << 20, 4 << 10
_MAX_EXPANSION = 16  # content may be compressed, but no honest OEM partition this much
_FILE, _TREE = "fs", "tree"


@dataclass(frozen=True)
class _State:
    """A btrfs taken out of its image: `folder` holds the filesystem as a file and its content as a tree of files.

    What is in it, and with which owners and modes, is said by `entries`; the tree has just names and contents.
    """

    folder: Path
    entries: dict[str, BtrfsEntry]

    def host(self, path: str) -> Path:
        """Where the content of a path is."""
        return self.folder / _TREE / path.strip("/")

    def nodes(self, paths: Iterable[str]) -> dict[str, Node]:
        """The nodes of these paths; those that do not exist are left out."""
        return {path: self._node(path, self.entries[path]) for path in paths if path in self.entries}

    def _node(self, path: str, entry: BtrfsEntry) -> Node:
        link = entry.kind == "symlink"
        return Node(
            path=path,
            kind=entry.kind,
            mode=stat.S_IMODE(entry.mode),
            uid=entry.uid,
            gid=entry.gid,
            size=entry.size,
            sha256=file_sha256(self.host(path)) if entry.kind == "file" else "",
            symlink=os.readlink(self.host(path)) if link else "",
        )


class Btrfs:
    """One btrfs partition. `folder` must be an empty folder of its own; new entries get the time `epoch`."""

    def __init__(self, image: Path, partition: Partition, folder: Path, epoch: int) -> None:
        self._image, self._partition, self._folder, self._epoch = image, partition, folder, epoch
        first = self._subfolder("first")
        extract(image, partition, first / _FILE)
        self._super = _read_super(first / _FILE, partition)
        self._state = self._take_out(first)

    def free_bytes(self) -> int:
        """Bytes that new files may take in the filesystem made anew."""
        files = [entry.size for entry in self._state.entries.values() if entry.kind == "file"]
        used = sum(-(-size // BLOCK) * BLOCK for size in files) + _INODE_RESERVE * len(self._state.entries)
        # A block's checksum takes a thousandth of it.
        return max(0, capacity(self._partition.size) * 999 // 1000 - _RESERVE - used)

    def apply(self, injections: Sequence[Injection]) -> None:
        """See `Editor.apply`."""
        label = self._partition.label
        work = plan_work(label, injections, self._kind_at)
        if not work.created:
            return
        freed = sum(self._state.entries[path].size for path in work.removals)
        check_space(label, work, self.free_bytes() + freed)
        intended = self._intended(work)
        _check_faithful(label, intended)
        expected = expected_nodes(work)
        new = self._rebuild(work, intended)
        check_written(label, expected, new.nodes(expected))
        write_back(self._image, self._partition, new.folder / _FILE)
        self._state = new

    def tree(self, under: str) -> dict[str, Node]:
        """See `Editor.tree`."""
        top = "/" + under.strip("/")
        below = top.rstrip("/") + "/"
        return self._state.nodes(sorted(path for path in self._state.entries if path == top or path.startswith(below)))

    def read(self, path: str, limit: int) -> bytes | None:
        """See `Editor.read`."""
        if self._kind_at(path) != "file":
            return None
        with self._state.host(path).open("rb") as file:
            return file.read(limit)

    def _kind_at(self, path: str) -> str:
        entry = self._state.entries.get(path)
        return entry.kind if entry is not None else ""

    def _subfolder(self, name: str) -> Path:
        return Path(mkdtemp(dir=self._folder, prefix=name))

    def _take_out(self, folder: Path) -> _State:
        """Check and read the filesystem in `folder`, and copy all its content beside it."""
        file = folder / _FILE
        check_file(file, self._partition)
        entries = scan(file, self._partition.label)
        claimed = sum(entry.size for entry in entries.values())
        if claimed > _MAX_EXPANSION * self._partition.size:
            raise ImageError(f"The files of {self._partition.label} claim {claimed} bytes, which cannot be honest.")
        restore(file, folder / _TREE, entries)
        return _State(folder, entries)

    def _intended(self, work: Worklist) -> dict[str, BtrfsEntry]:
        """What the new filesystem must hold: what is there, and what is asked for."""
        entries = {path: entry for path, entry in self._state.entries.items() if path not in work.removals}
        for injection in work.created:
            kind, mode, size = stat.S_IFREG, injection.mode, injection.size
            if injection.symlink is not None:
                kind, mode, size = stat.S_IFLNK, 0o777, len(injection.symlink.encode())
            elif injection.is_directory:
                kind = stat.S_IFDIR
            entries[injection.path] = BtrfsEntry(kind | mode, injection.uid, injection.gid, size, self._epoch)
        return entries

    def _rebuild(self, work: Worklist, intended: dict[str, BtrfsEntry]) -> _State:
        """Make the new filesystem in a folder of its own, and prove that it holds what is intended."""
        edited = _State(self._subfolder("edit"), intended)
        restore(self._state.folder / _FILE, edited.folder / _TREE, self._state.entries)
        _edit(edited.folder / _TREE, work)
        wanted = edited.nodes(intended)
        folder = self._subfolder("new")
        self._make(edited, folder / _FILE)
        new = self._take_out(folder)
        self._compare(intended, new)
        if new.nodes(new.entries) != wanted:
            raise ImageError(f"The contents of {self._partition.label} changed while its filesystem was made anew.")
        return new

    def _make(self, content: _State, file: Path) -> None:
        nodes = {path: self._new_node(content, path, entry) for path, entry in content.entries.items()}
        try:
            write_btrfs(file, self._partition.size, self._super.uuid, self._super.label, nodes)
        except BtrfsFull:
            raise EnvironmentFault(
                f"{self._partition.label} has too little space for its files.",
                "Bake fewer or smaller sysexts, or bake into ROOT.",
            ) from None

    def _new_node(self, content: _State, path: str, entry: BtrfsEntry) -> BtrfsNode:
        host = content.host(path)
        try:
            xattrs = {name: os.getxattr(host, name, follow_symlinks=False) for name in entry.xattrs}
        except OSError as error:
            raise EnvironmentFault(
                f"The extended attributes of {path} in {self._partition.label} cannot be kept here.",
                "Use --backend loop.",
            ) from error
        return BtrfsNode(
            entry.mode, entry.uid, entry.gid, entry.mtime, host if entry.kind == "file" else None,
            os.readlink(os.fsencode(host)) if entry.kind == "symlink" else b"", xattrs,
        )  # fmt: skip

    def _compare(self, intended: Mapping[str, BtrfsEntry], new: _State) -> None:
        label = self._partition.label
        made_super = _read_super(new.folder / _FILE, self._partition)
        if (made_super.uuid, made_super.label) != (self._super.uuid, self._super.label):
            raise ImageError(f"The new filesystem of {label} has another label or UUID.")
        if intended.keys() != new.entries.keys():
            raise ImageError(f"The new filesystem of {label} has other entries than it should.")
        for path, entry in intended.items():
            if new.entries[path] != entry:
                raise ImageError(f"{path} of {label} was not kept: {new.entries[path]} instead of {entry}.")


def _read_super(file: Path, partition: Partition) -> BtrfsSuper:
    found = read_super(file)
    if found.total_bytes > partition.size or found.devices != 1:
        raise ImageError(f"The btrfs of {partition.label} claims more space or devices than its partition.")
    return found


def _check_faithful(label: str, entries: Mapping[str, BtrfsEntry]) -> None:
    """Refuse what this way of editing cannot keep as it is."""
    special = next((path for path, entry in entries.items() if entry.kind == "other"), None)
    if special is not None:
        raise ImageError(f"{special} in {label} is a device, pipe or socket, which cannot be kept.")


def _edit(tree: Path, work: Worklist) -> None:
    """Carry out a worklist in a folder. No symlink in it is ever followed."""
    for path in work.removals:
        with _parent(tree, path) as (parent, name):
            os.unlink(name, dir_fd=parent)
    for entry in work.created:
        with _parent(tree, entry.path) as (parent, name):
            if entry.is_directory:
                os.mkdir(name, dir_fd=parent)
            elif entry.symlink is not None:
                os.symlink(entry.symlink, name, dir_fd=parent)
            else:
                file = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600, dir_fd=parent)
                with os.fdopen(file, "wb") as target:
                    _fill(target, entry)


@contextmanager
def _parent(tree: Path, path: str) -> Iterator[tuple[int, str]]:
    """The opened parent folder of a path beneath `tree`, and the last name."""
    *folders, name = path.strip("/").split("/")
    parent = os.open(tree, os.O_RDONLY | os.O_DIRECTORY)
    try:
        for folder in folders:
            below = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=parent)
            os.close(parent)
            parent = below
        yield parent, name
    finally:
        os.close(parent)


def _fill(target: BinaryIO, entry: Injection) -> None:
    if entry.source is None:
        target.write(entry.content or b"")
        return
    with entry.source.open("rb") as source:
        target.truncate(entry.size)
        copy_extents(source.fileno(), target.fileno(), 0, 0, entry.size)
