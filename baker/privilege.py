"""The loop backend: edits partitions through one privileged process, helper.py, and its loop mounts.

The rules are those of inject.py, as for the offline backend; the helper only looks, writes and refuses.
docs/security.md says what it is trusted with.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from baker.disk import check_filesystems, read_table
from baker.errors import BakeError, EnvironmentFault, ImageError, UsageError
from baker.helper import FILESYSTEMS
from baker.helper_client import OFFLINE_HINT, Helper, Refused, identity
from baker.inject import (
    Worklist,
    check_inodes,
    check_space,
    check_written,
    expected_nodes,
    plan_work,
    unfit_filesystem,
    usable_bytes,
)
from baker.model import Injection, Node, Partition
from baker.work import scratch

__all__ = ["Helper", "LoopEditor", "loop_available"]

_CHUNK = 1 << 20

# What each code of the helper means to the user. {place} is the partition and image, {path} is inside the partition.
_FAULTS: dict[str, tuple[type[BakeError], str, str | None]] = {
    "argument": (UsageError, "The privileged helper refuses {path} in {place}: {detail}.", None),
    "order": (EnvironmentFault, "The privileged helper was asked out of order: {detail}.", None),
    "image-denied": (EnvironmentFault, "You may not edit {place}: {detail}.", "Work on a copy of the image."),
    "image-changed": (ImageError, "{place} was replaced while it was edited: {detail}.", "Run the bake again."),
    "image-busy": (EnvironmentFault, "Another flatcar-bake is editing {place}.", "Wait for it, or work on a copy."),
    "no-loop": (EnvironmentFault, "No loop device can be had: {detail}.", OFFLINE_HINT),
    "no-mount": (EnvironmentFault, "Mounting is not permitted here: {detail}.", OFFLINE_HINT),
    "no-driver": (EnvironmentFault, "The kernel cannot mount the filesystem of {place}: {detail}.", OFFLINE_HINT),
    "bad-filesystem": (ImageError, "{place} cannot be mounted: {detail}.", "The image is damaged; get it anew."),
    "not-directory": (ImageError, "{path} in {place} is not a real directory.", None),
    "exists": (ImageError, "{path} in {place} exists already.", None),
    "absent": (ImageError, "{path} in {place} is not there.", None),
    "too-large": (ImageError, "{path} in {place} is too large to list: {detail}.", None),
    "no-space": (EnvironmentFault, "{path} does not fit into {place}: {detail}.", "Bake fewer or smaller sysexts."),
    "io": (ImageError, "{path} in {place} cannot be read or written: {detail}.", "The image is damaged; get it anew."),
}


class _Mount:
    """A mounted partition, as the helper shows it."""

    def __init__(self, helper: Helper) -> None:
        self._helper = helper

    def nodes(self, path: str, deep: bool = False) -> list[Node]:
        """The node at `path` and, when `deep`, all below it; empty when there is nothing without following links."""
        return [_node(fields) for fields in self._look("list", path=path, deep=deep).get("nodes", [])]

    def kind_at(self, path: str) -> str:
        """The kind of the node at `path`, "" where there is none."""
        found = self.nodes(path)
        return found[0].kind if found else ""

    def read(self, path: str, limit: int) -> bytes | None:
        """The first bytes of a regular file, None where there is none."""
        return self._look("read", path=path, limit=limit).get("data")

    def usable(self) -> int:
        """Bytes that new files may take."""
        space = self._helper.request("space")
        return usable_bytes(space["free"], space["total"])

    def check_room(self, label: str, work: Worklist) -> None:
        """Raise EnvironmentFault when `work` needs more blocks or inodes than there are."""
        removed = [node for path in work.removals for node in self._look("list", path=path, deep=False)["nodes"]]
        check_space(label, work, self.usable() + sum(node["allocated"] for node in removed if node["links"] == 1))
        inodes = self._helper.request("space")["inodes"]
        if inodes is not None:  # btrfs makes them as they are needed
            check_inodes(label, work, inodes)

    def _look(self, operation: str, **fields: Any) -> dict[str, Any]:
        """A request whose answer is empty where nothing is at the path, or only behind a link."""
        try:
            return self._helper.request(operation, **fields)
        except Refused as refused:
            if refused.code in ("absent", "not-directory"):
                return {}
            raise

    def create(self, entry: Injection, epoch: int, replace: bool) -> None:
        """Write one entry whose parent directory exists."""
        fields: dict[str, Any] = {"path": entry.path, "uid": entry.uid, "gid": entry.gid, "mtime": epoch}
        if entry.symlink is not None:
            self._helper.request("symlink", **fields, text=entry.symlink, replace=replace)
        elif entry.is_directory:
            self._helper.request("mkdir", **fields, mode=entry.mode)
        else:
            with _content(entry) as (size, content):
                self._helper.request("write", content, **fields, mode=entry.mode, replace=replace, payload=size)


@contextmanager
def _content(entry: Injection) -> Iterator[tuple[int, Iterable[bytes]]]:
    """Yield (size, pieces) of a file's content. We open sources, not the helper: it must not read for the user."""
    if entry.source is None:
        content = entry.content or b""
        yield len(content), [content]
        return
    with entry.source.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        yield size, _pieces(file, size)


def _pieces(file: IO[bytes], size: int) -> Iterator[bytes]:
    while size:
        chunk = file.read(min(size, _CHUNK))
        if not chunk:
            raise ImageError(f"{file.name} became shorter while it was read.", "Run the bake again.")
        size -= len(chunk)
        yield chunk


def _node(fields: dict[str, Any]) -> Node:
    kind = fields["kind"]
    return Node(
        fields["path"], kind, fields["mode"], fields["uid"], fields["gid"],
        fields["size"] if kind in ("file", "symlink") else 0,
        fields.get("sha256", ""), fields.get("symlink", ""),
    )  # fmt: skip


class LoopEditor:
    """The `Editor` that mounts partitions through `helper`; see inject.Editor for its methods.

    Every method mounts, works and unmounts, so between calls the image is an ordinary file again. A partition is
    checked before it is first mounted: the kernel's drivers should not meet a damaged one. Looking is done on
    read-only mounts of read-only devices. `work` is for temporary files, `epoch` becomes the mtime of what is written;
    the kernel notes times of its own in the filesystem, so equal edits do not give equal bytes.
    """

    def __init__(self, image: Path, work: Path, epoch: int, helper: Helper) -> None:
        self._image, self._work, self._epoch, self._helper = image.resolve(), work, epoch, helper
        self._checked: set[str] = set()

    def __enter__(self) -> Self:
        # Kept open, so that no other file can get its inode number and pass for it.
        self._file = self._image.open("rb")
        self._seen = identity(os.fstat(self._file.fileno()))
        self._table = read_table(self._image)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def apply(self, label: str, injections: Sequence[Injection]) -> None:
        with self._mounted(label) as mount:
            work = plan_work(label, injections, mount.kind_at)
            mount.check_room(label, work)
        expected = expected_nodes(work)
        with self._mounted(label, readonly=False) as mount:
            for entry in work.created:
                mount.create(entry, self._epoch, entry.path in work.removals)
        # A new mount reads what reached the image, not what the kernel remembers of the writing.
        with self._mounted(label) as mount:
            check_written(label, expected, {node.path: node for path in expected for node in mount.nodes(path)})

    def tree(self, label: str, under: str = "/") -> dict[str, Node]:
        with self._mounted(label) as mount:
            nodes = mount.nodes("/" + under.strip("/"), deep=True)
        return {node.path: node for node in sorted(nodes, key=lambda node: node.path)}

    def read(self, label: str, path: str, limit: int = 1 << 20) -> bytes | None:
        with self._mounted(label) as mount:
            return mount.read(path, limit)

    def free_bytes(self, label: str) -> int:
        with self._mounted(label) as mount:
            return mount.usable()

    @contextmanager
    def _mounted(self, label: str, readonly: bool = True) -> Iterator[_Mount]:
        partition = self._table.get(label)
        if partition.fs not in FILESYSTEMS:
            raise unfit_filesystem(label, partition.fs)
        if label not in self._checked:
            check_filesystems(self._image, self._table, [label], self._work)
            self._checked.add(label)
        try:
            with self._helper.mounted(self._image, self._seen, partition, readonly):
                yield _Mount(self._helper)
        except Refused as refused:
            raise _fault(refused, f"{label} of {self._image}") from refused


def _fault(refused: Refused, place: str) -> BakeError:
    error, sentence, hint = _FAULTS[refused.code]
    return error(sentence.format(place=place, path=refused.path, detail=refused.detail), hint)


def loop_available(ask: bool = False) -> str | None:
    """Try the loop backend for real: privileges, a loop device, both filesystems. None when all is there.

    Otherwise the reason, as a sentence. `ask` lets sudo ask for a password on the terminal.
    """
    try:
        with Helper(ask) as helper, scratch() as folder:
            blank = folder / "blank"
            blank.touch()
            os.truncate(blank, _CHUNK)
            for fs in FILESYSTEMS:
                _try_driver(helper, blank, fs)
    except EnvironmentFault as fault:
        return fault.message
    return None


def _try_driver(helper: Helper, blank: Path, fs: str) -> None:
    """Mount a file of zeros: that no such filesystem is found shows that everything before it works."""
    partition = Partition("", 0, "", "", 0, 0, blank.stat().st_size, fs)
    try:
        with helper.mounted(blank, identity(blank.stat()), partition, readonly=True):
            pass
    except Refused as refused:
        if refused.code != "bad-filesystem":
            raise _fault(refused, f"an image with {fs}") from refused
