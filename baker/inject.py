"""Putting entries into a partition: the `Editor` protocol and the rules that both backends share.

A backend answers two questions (what is at a path, how much space is free) and carries out a `Worklist`.
Everything that decides is here, so that offline and loop edits accept, refuse and verify alike.
"""

from __future__ import annotations

import hashlib
import stat
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Protocol, Self

from baker.errors import EnvironmentFault, ImageError, UsageError
from baker.model import Injection, Node
from baker.sparse import file_sha256

BLOCK = 4096
"""The allocation unit that space is counted in: the block size of Flatcar's filesystems."""

_NAME_MAX, _PATH_MAX = 255, 4095
_DEPTH_MAX = 256
_MODE_MAX, _ID_MAX = 0o7777, 0xFFFF_FFFE
_PRIVILEGED = 0o6000  # setuid and setgid


class Editor(Protocol):
    """Edits the partitions of one raw disk image; a context manager.

    Labels are GPT partition labels, paths are absolute within the partition. All methods raise ImageError for a
    missing partition, an unsupported filesystem or a damaged one.
    """

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def apply(self, label: str, injections: Sequence[Injection]) -> None:
        """Write all `injections` and read them back; nothing is written when one of them cannot be.

        Raises UsageError for a path that is not plain or already exists, EnvironmentFault for too little space,
        ImageError when the image is unfit or did not keep what was written.
        """

    def tree(self, label: str, under: str = "/") -> dict[str, Node]:
        """Every entry at and below `under`, by path, sorted; empty when `under` does not exist.

        Links are not followed. The size of a directory is given as 0, the mode of a link as 777, so that nodes of
        different backends compare.
        """

    def read(self, label: str, path: str, limit: int = 1 << 20) -> bytes | None:
        """The first `limit` bytes of a regular file; None when there is no regular file at `path`."""

    def free_bytes(self, label: str) -> int:
        """Bytes that new files may take, after the reserve of `usable_bytes`."""


@dataclass(frozen=True)
class Worklist:
    """What `plan_work` found must be done, in this order: remove, make directories, write files and links."""

    removals: tuple[str, ...]
    """Existing files and links that are replaced."""
    directories: tuple[Injection, ...]
    """Missing directories, asked for or implied, parents first."""
    entries: tuple[Injection, ...]
    """Files and links, sorted by path."""

    @property
    def created(self) -> tuple[Injection, ...]:
        return self.directories + self.entries


def parents(path: str) -> list[str]:
    """The directories above an absolute path, outermost first, without the root: /a/b/c gives [/a, /a/b]."""
    names = path.split("/")[1:-1]
    return ["/" + "/".join(names[: count + 1]) for count in range(len(names))]


def is_too_deep(path: str) -> bool:
    """Whether a path in an image is longer than any system can open, or has more than 256 names.

    A tree of such paths is made to do harm: every path repeats all names above it, and tools descend by recursion.
    """
    return len(path.encode("utf-8", "surrogateescape")) > _PATH_MAX or path.count("/") > _DEPTH_MAX


def kind_of(mode: int) -> str:
    """The `Node.kind` of a file mode with type bits."""
    kinds = {stat.S_IFREG: "file", stat.S_IFDIR: "directory", stat.S_IFLNK: "symlink"}
    return kinds.get(stat.S_IFMT(mode), "other")


def check_paths(injections: Iterable[Injection]) -> None:
    """Refuse, with UsageError, what no backend should ever be handed.

    Paths must be absolute, normal and printable without double quotes (debugfs knows no escape for them), modes and
    owners in range, and no path may be given twice or lie below a file of the same set.
    """
    seen: dict[str, Injection] = {}
    for injection in injections:
        _check_path(injection.path)
        _check_values(injection)
        if injection.path in seen:
            raise UsageError(f"{injection.path} is to be written twice.", "Give each entry a path of its own.")
        seen[injection.path] = injection
    for path in seen:
        for parent in parents(path):
            if parent in seen and not seen[parent].is_directory:
                raise UsageError(f"{path} would lie below {parent}, which is to be a file or link.")


def _check_path(path: str) -> None:
    names = path.split("/")
    plain = (
        path.startswith("/")
        and path.isprintable()
        and len(path.encode()) <= _PATH_MAX
        and '"' not in path
        and all(name not in ("", ".", "..") and len(name.encode()) <= _NAME_MAX for name in names[1:])
        and not any(name.startswith(("-", "<")) for name in names)
    )
    if not plain:
        raise UsageError(
            f"{path!r} is not a plain absolute path.",
            "Use printable names of at most 255 bytes, no quotes, no . or .., none starting with - or <.",
        )


def _check_values(injection: Injection) -> None:
    if sum(value is not None for value in (injection.source, injection.content, injection.symlink)) > 1:
        raise UsageError(f"{injection.path} cannot be a file and a link, or have two contents.")
    if not 0 <= injection.mode <= _MODE_MAX:
        raise UsageError(f"{injection.path} has the impossible mode {injection.mode:o}.")
    if injection.mode & _PRIVILEGED:
        raise UsageError(f"{injection.path} is to be setuid or setgid, which nothing baked may be.")
    if not (0 <= injection.uid <= _ID_MAX and 0 <= injection.gid <= _ID_MAX):
        raise UsageError(f"{injection.path} has an impossible owner: {injection.uid}:{injection.gid}.")
    if injection.source is not None and not injection.source.is_file():
        raise UsageError(f"{injection.source}, to be written to {injection.path}, is not a file.")
    link = injection.symlink
    if link is not None and (not link or not link.isprintable() or '"' in link or len(link.encode()) >= BLOCK):
        raise UsageError(f"The link {injection.path} has an unusable target: {link!r}.")


def unfit_filesystem(label: str, fs: str) -> ImageError:
    """The error for a partition that neither backend can edit; `fs` as `Partition.fs`."""
    return ImageError(
        f"{label} holds {fs or 'no known filesystem'}; only ext4 and btrfs can be edited.",
        "Use an unmodified Flatcar image.",
    )


def check_inodes(label: str, work: Worklist, free: int) -> None:
    """Raise EnvironmentFault when the filesystem has fewer free inodes than new entries."""
    if free < len(work.created):
        raise EnvironmentFault(f"{label} has too few free inodes for {len(work.created)} new entries.")


def plan_work(label: str, injections: Sequence[Injection], kind_at: Callable[[str], str]) -> Worklist:
    """Check `injections` against what is in the partition and say what must be done.

    `kind_at(path)` tells what is there without following links: a `Node.kind`, or "" for nothing; it is only asked
    about paths whose parent is a real directory. Raises UsageError for an existing entry that may not be replaced,
    ImageError for a parent that is no real directory. An identical entry is a conflict like any other.
    """
    check_paths(injections)
    asked = {injection.path: injection for injection in injections}
    missing: dict[str, Injection] = {}
    removals, entries = [], []
    for injection in sorted(injections, key=lambda injection: injection.path.split("/")):
        for parent in parents(injection.path):
            if parent in missing:
                continue
            kind = "" if parent.rpartition("/")[0] in missing else kind_at(parent)
            if not kind:
                missing[parent] = asked.get(parent, Injection(parent, mode=0o755))
            elif kind != "directory":
                raise ImageError(
                    f"{parent}, the parent of {injection.path}, is {_named(kind)} in the image's {label} partition.",
                    "Only real directories are written into. Use another image or another install target.",
                )
        kind = "" if injection.path.rpartition("/")[0] in missing else kind_at(injection.path)
        if injection.is_directory:
            if kind not in ("", "directory"):
                raise UsageError(f"{injection.path} is {_named(kind)} in {label}, not a directory.")
            if not kind:
                missing[injection.path] = injection
            continue
        if kind:
            _check_replace(label, injection, kind)
            removals.append(injection.path)
        entries.append(injection)
    return Worklist(tuple(removals), tuple(missing.values()), tuple(entries))


def _named(kind: str) -> str:
    return {"file": "a file", "directory": "a directory", "symlink": "a symlink"}.get(kind, "a special file")


def _check_replace(label: str, injection: Injection, kind: str) -> None:
    if kind not in ("file", "symlink"):
        raise UsageError(f"{injection.path} is {_named(kind)} in {label} and is never replaced.")
    if not injection.replace:
        raise UsageError(f"{injection.path} exists already in {label}.", "Use --force to replace it.")


def usable_bytes(free: int, total: int) -> int:
    """Of `free` bytes in a filesystem of `total` bytes, those that new files may take.

    2 % of the filesystem, at most 16 MiB, stay free for metadata: the reserve the Linux kernel keeps on ext4 from
    everybody (fs/ext4/super.c, ext4_calculate_resv_clusters). Blocks reserved for root count as free.
    """
    return max(0, free - min(total // 50, 16 << 20))


def space_needed(work: Worklist) -> int:
    """Bytes that a worklist takes in a filesystem of 4 KiB blocks, with a block of metadata for every entry."""
    contents = sum(-(-entry.size // BLOCK) * BLOCK for entry in work.entries)
    return contents + BLOCK * len(work.created)


def check_space(label: str, work: Worklist, free: int) -> None:
    """Raise EnvironmentFault when `work` needs more than `free` bytes."""
    needed = space_needed(work)
    if needed > free:
        raise EnvironmentFault(
            f"{label} has too little space: {needed} bytes are needed, {free} are free.",
            "Bake fewer or smaller sysexts, use the other partition, or bake for a vendor with a larger layout.",
        )


def expected_nodes(work: Worklist) -> dict[str, Node]:
    """What must be found at each created path afterwards, with digests of the sources as they are now."""
    return {injection.path: _expected(injection) for injection in work.created}


def _expected(injection: Injection) -> Node:
    node = Node(injection.path, "directory", injection.mode, injection.uid, injection.gid, 0)
    if injection.symlink is not None:
        return replace(
            node, kind="symlink", mode=0o777, size=len(injection.symlink.encode()), symlink=injection.symlink
        )
    if injection.source is not None:
        return replace(node, kind="file", size=injection.size, sha256=file_sha256(injection.source))
    if injection.content is not None:
        return replace(node, kind="file", size=injection.size, sha256=hashlib.sha256(injection.content).hexdigest())
    return node


def check_written(label: str, expected: Mapping[str, Node], found: Mapping[str, Node]) -> None:
    """Compare what was read back with `expected_nodes`; raises ImageError naming the first difference."""
    for path, node in expected.items():
        there = found.get(path)
        if there is None:
            raise ImageError(f"{path} was written to {label} but is not there.")
        if there != node:
            raise ImageError(f"{path} in {label} is not what was written: {there} instead of {node}.")
