"""Editing an ext4 partition inside a raw image without root, through debugfs.

Large files are not written by debugfs, whose `write` slows down with size: it only allocates their blocks, the data is
copied straight into the image, and the blocks are then marked as written.
"""

from __future__ import annotations

import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

from baker import e2fs
from baker.debugfs import Debugfs, DebugfsRefused, Entry, Extent, Inode
from baker.errors import ImageError
from baker.inject import (
    Worklist,
    check_inodes,
    check_space,
    check_written,
    expected_nodes,
    is_too_deep,
    kind_of,
    plan_work,
    usable_bytes,
)
from baker.model import Injection, Node, Partition
from baker.sparse import copy_range, data_extents, file_sha256, punch

ROOT_INODE = 2
_FAST_FROM = 16 << 20  # bytes; below this debugfs's own `write` is as fast
_LARGE_FILE = 1 << 31
_DUMP_FILES, _DUMP_BYTES = 500, 256 << 20
_EMPTY = "empty"


class Ext4:
    """One ext4 partition. `folder` must be an empty folder of its own; new entries get the time `epoch`.

    The filesystem is checked first: everything after relies on its structure being sound.
    """

    def __init__(self, image: Path, partition: Partition, folder: Path, epoch: int) -> None:
        e2fs.check(image, partition, folder)
        self._image, self._partition, self._folder, self._epoch = image, partition, folder, epoch
        self._debugfs = Debugfs(image, partition, folder, epoch)
        self._directories: dict[int, dict[bytes, Entry]] = {}

    def free_bytes(self) -> int:
        """Bytes that new files may take."""
        block = self._superblock()
        return usable_bytes(block.free_blocks * block.block_size, block.blocks * block.block_size)

    def apply(self, injections: Sequence[Injection]) -> None:
        """See `Editor.apply`."""
        label = self._partition.label
        self._read_directories([injection.path for injection in injections])
        work = plan_work(label, injections, self._kind_at)
        if not work.created:
            return
        check_space(label, work, self.free_bytes() + sum(self._freed(path) for path in work.removals))
        check_inodes(label, work, self._superblock().free_inodes)
        expected = expected_nodes(work)
        self._write(work)
        check_written(label, expected, self._nodes({path: self._at(path) for path in expected}))
        self._check_times(work)
        e2fs.check(self._image, self._partition, self._folder)

    def tree(self, under: str = "/") -> dict[str, Node]:
        """See `Editor.tree`."""
        top = self._lookup(under)
        if top is None:
            return {}
        found = {"/" + under.strip("/"): top}
        level = dict(found)
        while level := {path: entry for path, entry in level.items() if entry.kind == "directory"}:
            if any(map(is_too_deep, level)):
                raise ImageError(f"{self._partition.label} has folders nested deeper than any system needs.")
            listings = self._debugfs.listing([entry.inode for entry in level.values()])
            level = {
                f"{path.rstrip('/')}/{entry.name.decode('utf-8', 'surrogateescape')}": entry
                for path, entries in zip(level, listings, strict=True)
                for entry in entries
            }
            found |= level
        return self._nodes({path: found[path] for path in sorted(found)})

    def read(self, path: str, limit: int) -> bytes | None:
        """See `Editor.read`."""
        entry = self._lookup(path)
        return self._debugfs.content(entry.inode, limit) if entry is not None and entry.kind == "file" else None

    # Finding entries

    def _superblock(self) -> e2fs.Superblock:
        return e2fs.read_superblock(self._image, self._partition)

    def _lookup(self, path: str) -> Entry | None:
        """The entry at a path; None also when something above it is no real directory."""
        self._read_directories([path])
        entry = self._walk(path)
        assert not isinstance(entry, int)
        return entry

    def _read_directories(self, paths: Sequence[str]) -> None:
        """Read all directories on the way to these paths, with one debugfs run per level."""
        while unread := sorted({step for path in paths if isinstance(step := self._walk(path), int)}):
            for inode, entries in zip(unread, self._debugfs.listing(unread), strict=True):
                self._directories[inode] = {entry.name: entry for entry in entries}

    def _walk(self, path: str) -> Entry | int | None:
        """As `_lookup`, or the inode number of the first directory on the way that is not read yet."""
        entry = Entry(b"/", ROOT_INODE, stat.S_IFDIR, 0)
        for name in filter(None, path.encode("utf-8", "surrogateescape").split(b"/")):
            if entry.kind != "directory":
                return None
            if entry.inode not in self._directories:
                return entry.inode
            if (below := self._directories[entry.inode].get(name)) is None:
                return None
            entry = below
        return entry

    def _kind_at(self, path: str) -> str:
        entry = self._lookup(path)
        return entry.kind if entry is not None else ""

    def _at(self, path: str) -> Entry:
        entry = self._lookup(path)
        if entry is None:
            raise ImageError(f"{path} is not in {self._partition.label}, where it was just written.")
        return entry

    def _freed(self, path: str) -> int:
        """Bytes that removing a file gives back: none while it has another name."""
        inode = self._debugfs.inodes([self._at(path).inode])[0]
        return inode.allocated if inode.links == 1 else 0

    # Reading entries

    def _nodes(self, entries: dict[str, Entry]) -> dict[str, Node]:
        inodes = self._debugfs.inodes([entry.inode for entry in entries.values()])
        digests = self._digests({inode.number: inode.size for inode in inodes if stat.S_ISREG(inode.mode)})
        return {
            path: self._node(path, inode, digests.get(inode.number, ""))
            for path, inode in zip(entries, inodes, strict=True)
        }

    def _node(self, path: str, inode: Inode, digest: str) -> Node:
        kind = kind_of(inode.mode)
        link = b""
        if kind == "symlink":
            link = inode.short_target or self._debugfs.content(inode.number, inode.size)
        return Node(
            path=path,
            kind=kind,
            mode=0o777 if link else stat.S_IMODE(inode.mode),
            uid=inode.uid,
            gid=inode.gid,
            size=inode.size if kind in ("file", "symlink") else 0,
            sha256=digest,
            symlink=link.decode("utf-8", "surrogateescape"),
        )

    def _digests(self, sizes: dict[int, int]) -> dict[int, str]:
        """The sha256 of each file's content; files are given and returned by inode number."""
        digests = {}
        for batch in self._batches(sizes):
            for inode, dump in zip(batch, self._debugfs.dump(batch), strict=True):
                digests[inode] = file_sha256(dump)
                dump.unlink()
        return digests

    def _batches(self, sizes: dict[int, int]) -> Iterator[list[int]]:
        """Inode numbers in groups small enough to dump at once."""
        batch: list[int] = []
        total = 0
        for inode, size in sizes.items():
            # Only a sparse file can be larger than its filesystem; dumping it could fill our disk with zeros.
            if size > self._partition.size:
                raise ImageError(
                    f"A file in {self._partition.label} claims {size} bytes, more than the partition has."
                )
            if batch and (total + size > _DUMP_BYTES or len(batch) == _DUMP_FILES):
                yield batch
                batch, total = [], 0
            batch, total = [*batch, inode], total + size
        if batch:
            yield batch

    # Writing entries

    def _write(self, work: Worklist) -> None:
        sources = {entry.path: self._stage(number, entry) for number, entry in enumerate(work.entries)}
        large = [entry for entry in work.entries if self._is_large(entry)]
        self._remove(work.removals)
        commands = []
        for entry in work.directories:
            commands += _at_parent(entry.path, "mkdir")
        for entry in work.entries:
            if entry.symlink is not None:
                commands += _at_parent(entry.path, "symlink", f'"{entry.symlink}"')
            else:
                source = _EMPTY if entry in large else sources[entry.path]
                commands += _at_parent(entry.path, f"write {source}")
        (self._folder / _EMPTY).touch()
        self._debugfs.write(commands)
        self._directories.clear()
        self._read_directories([entry.path for entry in work.created])
        for entry in large:
            self._write_large(entry.path, self._folder / sources[entry.path])
        self._set_attributes(work)

    def _remove(self, paths: Sequence[str]) -> None:
        if paths:
            self._debugfs.write([command for path in paths for command in _at_parent(path, "rm")])
            # debugfs forgets the block with the extended attributes of what it removes.
            e2fs.repair(self._image, self._partition, self._folder, self._epoch)

    def _stage(self, number: int, entry: Injection) -> str:
        """Give an entry's content a plain name in our folder, because debugfs takes no arbitrary path."""
        staged = self._folder / f"new{number}"
        staged.unlink(missing_ok=True)
        if entry.source is not None:
            staged.symlink_to(entry.source.absolute())
        elif entry.content is not None:
            staged.write_bytes(entry.content)
        return staged.name

    def _is_large(self, entry: Injection) -> bool:
        block = self._superblock()
        return entry.size >= _FAST_FROM and block.has_extents and (entry.size < _LARGE_FILE or block.has_large_files)

    def _write_large(self, path: str, source: Path) -> None:
        """Fill the empty file at `path`, by debugfs's own means if the fast ones do not work out."""
        try:
            self._fill(self._at(path).inode, source)
        except DebugfsRefused:
            self._debugfs.write([*_at_parent(path, "rm"), *_at_parent(path, f"write {source.name}")])
            self._directories.clear()

    def _fill(self, inode: int, source: Path) -> None:
        superblock = self._superblock()
        size = source.stat().st_size
        blocks = -(-size // superblock.block_size)
        self._debugfs.write([f"fallocate <{inode}> 0 {blocks - 1}", f"sif <{inode}> size {size}"])
        extents = self._debugfs.extents(inode)
        if sum(extent.length for extent in extents) != blocks or any(
            extent.physical + extent.length > superblock.blocks for extent in extents
        ):
            raise DebugfsRefused(f"debugfs allocated something else than {blocks} blocks in {self._partition.label}.")
        self._copy(source, size, extents, superblock.block_size)
        commands = [f"extent_open <{inode}>"]
        for extent in extents:
            # `fallocate` marks extents as unwritten, which read as zeros: replace each by itself without that mark.
            commands += [
                f"goto_block {extent.logical}",
                f"replace_node {extent.logical} {extent.length} {extent.physical}",
            ]
        self._debugfs.write([*commands, "extent_close"])

    def _copy(self, source: Path, size: int, extents: Sequence[Extent], block: int) -> None:
        with source.open("rb") as file, self._image.open("r+b") as disk:
            for extent in extents:
                start, end = extent.logical * block, (extent.logical + extent.length) * block
                shift = self._partition.offset + extent.physical * block - start
                done = start
                for begin, length in [*data_extents(file.fileno(), start, min(size, end)), (end, 0)]:
                    if begin > done:
                        # Old data of the free blocks must not show in holes of the source or behind its end.
                        punch(disk.fileno(), done + shift, begin - done)
                    copy_range(file.fileno(), disk.fileno(), begin, begin + shift, length)
                    done = begin + length

    def _set_attributes(self, work: Worklist) -> None:
        commands = []
        for entry in work.created:
            there = self._at(entry.path)
            mode = stat.S_IFMT(there.mode) | (0o777 if entry.symlink is not None else entry.mode)
            fields = {"mode": f"0{mode:o}", "uid": f"{entry.uid}", "gid": f"{entry.gid}"}
            fields |= dict.fromkeys(("atime", "ctime", "mtime", "crtime"), f"@{self._epoch}")
            commands += [f"sif <{there.inode}> {field} {value}" for field, value in fields.items()]
        self._debugfs.write(commands)

    def _check_times(self, work: Worklist) -> None:
        inodes = self._debugfs.inodes([self._at(entry.path).inode for entry in work.created])
        for entry, inode in zip(work.created, inodes, strict=True):
            if set(inode.times) != {(self._epoch, 0)}:
                raise ImageError(f"{entry.path} in {self._partition.label} did not get the time {self._epoch}.")


def _at_parent(path: str, before: str, after: str = "") -> list[str]:
    """A command on a quoted name, run in its folder: debugfs's `write` takes no path."""
    folder, _, name = path.rpartition("/")
    return [f'cd "{folder or "/"}"', f'{before} "{name}" {after}']
