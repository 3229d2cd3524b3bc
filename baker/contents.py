"""What is inside a filesystem image, read without root and without mounting it.

The images come from anywhere, so nothing here trusts them: the number of entries is limited, names are checked,
extracting is the last resort, and programs are stopped once they gave what was asked.
"""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from baker.debugfs import DebugfsRefused
from baker.erofs import MAGIC as EROFS_MAGIC
from baker.erofs import Damaged, Unsupported
from baker.errors import ImageError, UsageError
from baker.gpt import read_gpt
from baker.model import Node
from baker.readers import Btrfs, Erofs, Ext, Squashfs, make_node
from baker.work import scratch

_MAX_LINK_HOPS = 40  # as in the kernel

# Partition types of the Discoverable Partitions Specification that hold a sysext's tree:
# root and /usr of x86-64 and arm64, and Linux' generic type.
_ROOT_TYPES = (
    "4f68bce3-e8cd-4db1-96e7-fbcaf984b709", "b921b045-1df0-41c3-af44-4c6f280d3fae",
    "0fc63daf-8483-4772-8e79-3d69d8477de4",
)  # fmt: skip
_USR_TYPES = ("8484680c-9521-48c6-9c11-b0720656f69e", "b0e01050-ee5f-4390-949a-9101b17104e9")

# What people give by mistake, by how it begins.
_LOOKALIKES = {
    b"\x1f\x8b": "is compressed by gzip", b"BZh": "is compressed by bzip2", b"\xfd7zXZ": "is compressed by xz",
    b"\x28\xb5\x2f\xfd": "is compressed by zstd", b"PK\x03\x04": "is a zip archive", b"\x7fELF": "is a program",
    b"#!": "is a script", b"<": "is an HTML page or XML",
}  # fmt: skip


class Contents(Protocol):
    """A tree inside an image. `nodes` maps absolute paths to what is there; the root itself is left out."""

    nodes: dict[str, Node]

    def read(self, path: str, limit: int) -> bytes:
        """The first `limit` bytes of a regular file. Raises Unsupported when this image does not tell."""
        ...

    def link(self, path: str) -> str:
        """The text of a symlink."""
        ...


@dataclass(frozen=True)
class Opened:
    """An image's filesystem as in `Sysext.fs`, and its tree; without a tree, `why_not` is the reason."""

    fs: str
    contents: Contents | None
    why_not: str = ""


@contextmanager
def open_contents(path: Path) -> Iterator[Opened]:
    """Open an image and list its tree; a filesystem that we cannot read gives `contents=None`.

    Raises UsageError when there is no such file, and ImageError when it is no filesystem, is damaged (also where a
    read within the block finds that out), or has more entries than any sysext needs.
    """
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist" if not path.exists() else "is not a regular file"
        raise UsageError(f"The sysext {path} {what}.", "A folder becomes an image by `flatcar-bake sysext pack`.")
    with path.open("rb") as file:
        fs = _kind(file.fileno(), 0)
        if not fs:
            raise ImageError(f"{path.name} is not a sysext: it {_lookalike(file.read(512))}.")
        with scratch() as folder, _naming(path):
            source = _Source(path.absolute(), file.fileno(), folder)
            try:
                opened = Opened(fs, _open_at(source, fs, 0, path.stat().st_size))
            except Unsupported as reason:
                opened = Opened(fs, None, str(reason))
            yield opened


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Give errors about the image its name."""
    try:
        yield
    except Damaged as predicate:
        raise ImageError(f"{path.name} {predicate}.", "Fetch or build it again.") from predicate
    except DebugfsRefused as error:
        raise ImageError(f"{path.name} is damaged: {error.message}", "Fetch or build it again.") from error


def _kind(fd: int, offset: int) -> str:
    """`squashfs`, `erofs`, `ext4`, `btrfs`, `ddi`, or "" by the magic numbers at their fixed places."""

    def at(position: int, length: int) -> bytes:
        return os.pread(fd, length, offset + position)

    if at(0, 4) == b"hsqs":
        return "squashfs"
    if at(1024, 4) == struct.pack("<I", EROFS_MAGIC):
        return "erofs"
    if at(1024 + 56, 2) == b"\x53\xef":
        return "ext4"
    if at(64 * 1024 + 64, 8) == b"_BHRfS_M":
        return "btrfs"
    if at(512, 8) == b"EFI PART":
        return "ddi"
    return ""


def _lookalike(begin: bytes) -> str:
    if not begin:
        return "is empty"
    if begin[257:262] == b"ustar":
        return "is a tar archive"
    known = [what for magic, what in _LOOKALIKES.items() if begin.startswith(magic)]
    return known[0] if known else f"begins with {begin[:8].hex(' ')}, which is no filesystem we know"


@dataclass(frozen=True)
class _Source:
    """An image file, open, and an empty folder for the programs that read it."""

    path: Path
    fd: int
    folder: Path


def _open_at(source: _Source, fs: str, offset: int, size: int) -> Contents:
    if fs == "squashfs":
        return Squashfs(source.path, offset, size)
    if fs == "ext4":
        return Ext(source.path, offset, size, source.folder)
    if fs == "erofs":
        return Erofs(source.path, source.fd, offset, size, source.folder)
    if fs == "btrfs":
        return Btrfs(source.path, offset, size, source.folder)
    if fs == "ddi" and offset == 0:
        return _open_ddi(source)
    raise Unsupported(f"we cannot look inside {fs or 'an unknown filesystem'} without mounting it")


def _open_ddi(source: _Source) -> Contents:
    """The tree of a disk image's root or usr partition."""
    try:
        table = read_gpt(source.path)
    except ImageError as error:
        raise Damaged(f"has a damaged partition table: {error.message.rstrip('.')}") from error
    for partition in table.partitions:
        if partition.type_guid.lower() in _ROOT_TYPES + _USR_TYPES:
            inner = _kind(source.fd, partition.offset)
            contents = _open_at(source, inner, partition.offset, partition.size)
            return _BelowUsr(contents) if partition.type_guid.lower() in _USR_TYPES else contents
    raise Unsupported("the disk image has no partition of the type root or usr")


class _BelowUsr:
    """The tree of a partition that is mounted on /usr."""

    def __init__(self, inner: Contents) -> None:
        self._inner = inner
        usr = make_node("/usr", stat.S_IFDIR | 0o755, 0, 0, 0)
        moved = (replace(node, path=f"/usr{node.path}") for node in inner.nodes.values())
        self.nodes = {node.path: node for node in (usr, *moved)}

    def read(self, path: str, limit: int) -> bytes:
        return self._inner.read(path.removeprefix("/usr"), limit)

    def link(self, path: str) -> str:
        return self._inner.link(path.removeprefix("/usr"))


def resolve(contents: Contents, path: str) -> str | None:
    """Follow symlinks within the tree, never out of it, as a chroot would; None where nothing is."""
    todo = [part for part in path.split("/") if part]
    done: list[str] = []
    hops = 0
    while todo:
        part = todo.pop(0)
        if part in (".", ".."):
            done = done[:-1] if part == ".." else done
            continue
        node = contents.nodes.get("/" + "/".join([*done, part]))
        if node is None:
            return None
        if node.kind != "symlink":
            done.append(part)
            continue
        hops += 1
        if hops > _MAX_LINK_HOPS:
            return None
        target = contents.link(node.path)
        done = [] if target.startswith("/") else done
        todo = [piece for piece in target.split("/") if piece] + todo
    return "/" + "/".join(done)
