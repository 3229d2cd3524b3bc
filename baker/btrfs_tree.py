"""What a btrfs in a file holds, without mounting it: names, owners, modes and times, as btrfs-progs print them.

The filesystem may be crafted. `btrfs restore` creates whatever path its directory entries spell, so this reader is
also the guard in front of it: a name with a slash, `..`, a line break or a twin is refused. It understands only
output it knows to the letter; on-disk structures: btrfs documentation, "On-disk Format".
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from uuid import UUID

from baker import run
from baker.errors import ImageError
from baker.inject import is_too_deep, kind_of
from baker.printable import printable

_SUPERBLOCK_AT, _SECTOR, _MAGIC = 64 << 10, 4096, b"_BHRfS_M"
_TOP = 256  # the inode of a subvolume's root directory
_ITEM = re.compile(rb"^\titem \d+ key \(([^)\n]*)\) itemoff \d+ itemsize \d+\n", re.MULTILINE)
_END = rb"(?:\n|\Z)(?:leaf |node |\Z)"  # what may follow the last line of an item: nothing, or the next tree block
_NAMED = re.compile(
    rb"\t\tlocation key \((\d+) (\w+) -?\d+\) type (\w+)\n"
    rb"\t\ttransid \d+ data_len 0 name_len (\d+)\n"
    rb"\t\tname: ([^\n]*)" + _END
)
_INODE = re.compile(
    rb"\t\tgeneration \d+ transid \d+ size (\d+) nbytes \d+\n"
    rb"\t\tblock group \d+ mode ([0-7]+) links \d+ uid (\d+) gid (\d+) rdev \d+\n"
    rb"(?:\t\t[^\n]*\n)*?"
    rb"\t\tmtime (\d+)\.\d+ [^\n]*"
)
_XATTR_NAME = re.compile(rb"^\t\tname: ([^\n]*)$", re.MULTILINE)


class HasSubvolumes(ImageError):
    """A btrfs has subvolumes or snapshots."""


@dataclass(frozen=True)
class BtrfsSuper:
    """The identity of a btrfs and its size in bytes."""

    uuid: UUID
    label: str
    total_bytes: int
    devices: int


@dataclass(frozen=True)
class BtrfsEntry:
    """One path of a btrfs; `mode` has the type bits, `size` is 0 for directories, `mtime` is in whole seconds."""

    mode: int
    uid: int
    gid: int
    size: int
    mtime: int
    xattrs: frozenset[bytes] = frozenset()
    """Names of its extended attributes; btrfs's own properties, which set nothing but storage, are left out."""

    @property
    def kind(self) -> str:
        """As `Node.kind`."""
        return kind_of(self.mode)


def read_super(file: Path) -> BtrfsSuper:
    """Read the first superblock of a btrfs in a file; raises ImageError when it is none."""
    with file.open("rb") as image:
        image.seek(_SUPERBLOCK_AT)
        raw = image.read(_SECTOR)
    if raw[0x40:0x48] != _MAGIC:
        raise ImageError(f"{file.name} has no btrfs filesystem.")
    return BtrfsSuper(
        uuid=UUID(bytes=raw[0x20:0x30]),
        label=raw[0x12B:0x22B].partition(b"\0")[0].decode("utf-8", "surrogateescape"),
        total_bytes=int.from_bytes(raw[0x70:0x78], "little"),
        devices=int.from_bytes(raw[0x88:0x90], "little"),
    )


def scan(file: Path, label: str = "") -> dict[str, BtrfsEntry]:
    """Every path of a btrfs in a file, parents first; "/" is its root directory. Messages call it `label`.

    Raises HasSubvolumes, and ImageError for anything that is not a plain tree with plain names.
    """
    roots = _dump(file, "-r")
    if re.search(rb"key \(\d+ ROOT_ITEM", roots):
        raise HasSubvolumes(
            f"The btrfs of {label or file.name} has subvolumes or snapshots, which would be lost.",
            "Use --backend loop, which keeps them.",
        )
    # 5 is the number of the top-level file tree.
    dump = _dump(file, "-t", "5")
    try:
        return dict(_Tree(dump).walk())
    except ValueError as error:
        raise ImageError(f"The btrfs of {label or file.name} holds something that cannot be kept: {error}.") from error


def restore(file: Path, tree: Path, entries: Mapping[str, BtrfsEntry]) -> None:
    """Copy the content of a btrfs into the new folder `tree`, and see that just `entries` came out.

    Without -m: owners, modes and times are in `entries`, and setting them is not for an ordinary user.
    """
    tree.mkdir()
    # Older versions ask whether to go on with a file of many extents: always yes.
    # It creates what the directory entries spell: `scan` refused names that lead out, the bounds keep it in as well.
    bounds = run.Bounds(writable=(tree,))
    run.run(["btrfs", "restore", "-S", "-x", file, tree], input=b"a" * (1 << 16), bounds=bounds)
    expected = {path: (entry.kind, entry.size) for path, entry in entries.items() if entry.kind != "other"}
    if dict(_found(tree)) != expected:
        raise ImageError("btrfs restore did not give what the filesystem lists.", "Fetch the image again.")


def _found(tree: Path) -> Iterator[tuple[str, tuple[str, int]]]:
    """Kind and size of everything in a folder of ours, by its path in the image."""
    yield "/", ("directory", 0)
    for folder, directories, files in os.walk(tree):
        for name in directories + files:
            host = Path(folder) / name
            status = host.lstat()
            kind = kind_of(status.st_mode)
            yield f"/{host.relative_to(tree)}", (kind, 0 if kind == "directory" else status.st_size)


def _dump(file: Path, *what: str) -> bytes:
    argv = ["btrfs", "inspect-internal", "dump-tree", *what, file.name]
    return run.run(argv, cwd=file.parent, bounds=run.Bounds()).stdout


class _Tree:
    """The items of a dumped file tree, by inode number. ValueError says what is odd about it."""

    def __init__(self, dump: bytes) -> None:
        self._inodes: dict[int, BtrfsEntry] = {}
        self._names: dict[int, dict[str, int]] = {}
        self._xattrs: dict[int, set[bytes]] = {}
        pieces = _ITEM.split(dump)[1:]
        for key, body in zip(pieces[::2], pieces[1::2], strict=True):
            fields = key.split(b" ")
            if len(fields) != 3 or not fields[0].isdigit():
                continue  # items of the tree itself, such as orphans
            number = int(fields[0])
            if fields[1] == b"INODE_ITEM":
                self._add_inode(number, body)
            elif fields[1] == b"DIR_INDEX":
                self._add_name(number, body)
            elif fields[1] == b"XATTR_ITEM":
                names = {name for name in _XATTR_NAME.findall(body) if not name.startswith(b"btrfs.")}
                self._xattrs.setdefault(number, set()).update(names)

    def _add_inode(self, number: int, body: bytes) -> None:
        match = _INODE.match(body)
        if match is None or number in self._inodes:
            raise ValueError("a malformed inode")
        size, mode, uid, gid, mtime = int(match[1]), int(match[2], 8), int(match[3]), int(match[4]), int(match[5])
        self._inodes[number] = BtrfsEntry(mode, uid, gid, 0 if kind_of(mode) == "directory" else size, mtime)

    def _add_name(self, parent: int, body: bytes) -> None:
        match = _NAMED.match(body)
        if match is None:
            raise ValueError("a malformed directory entry")
        raw = match[5]
        if len(raw) != int(match[4]) or raw in (b"", b".", b"..") or b"/" in raw:
            raise ValueError(f"a malformed file name ({printable(raw.decode('utf-8', 'replace'))!r})")
        name = raw.decode("utf-8", "surrogateescape")
        names = self._names.setdefault(parent, {})
        if match[2] != b"INODE_ITEM" or name in names:
            raise ValueError(f"a subvolume or a duplicate name ({printable(name)!r})")
        names[name] = int(match[1])

    def walk(self) -> Iterator[tuple[str, BtrfsEntry]]:
        """All paths, parents first and names in order."""
        level = [("/", _TOP)]
        seen: set[int] = set()
        while level:
            below = []
            for path, number in level:
                entry = self._inodes.get(number)
                if entry is None:
                    raise ValueError(f"an entry without an inode ({printable(path)!r})")
                if is_too_deep(path):
                    raise ValueError("folders nested deeper than any system needs")
                xattrs = frozenset(self._xattrs.get(number, ()))
                yield path, replace(entry, xattrs=xattrs)
                if entry.kind != "directory":
                    continue
                if number in seen:
                    raise ValueError(f"a directory with two names ({printable(path)!r})")
                seen.add(number)
                names = sorted(self._names.get(number, {}).items())
                below += [(f"{path.rstrip('/')}/{name}", child) for name, child in names]
            level = below
