"""The rootless backend: edits the partitions of a raw image without privileges, loop devices or mounts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Protocol, Self

from baker import run
from baker.btrfs import Btrfs
from baker.disk import DiskTable, read_table
from baker.ext4 import Ext4
from baker.inject import unfit_filesystem
from baker.model import Injection, Node

_TOOLS = ("debugfs", "e2fsck", "btrfs", "blkid")


def offline_available() -> str | None:
    """None when this machine can edit images offline, else the reason in a sentence."""
    missing = [tool for tool in _TOOLS if run.find(tool) is None]
    if missing:
        packages = sorted({run.PACKAGES[tool] for tool in missing})
        return f"{', '.join(missing)} missing; install {' '.join(packages)}."
    return None


class _Filesystem(Protocol):
    """What each filesystem offers; the methods of `Editor` without the label."""

    def apply(self, injections: Sequence[Injection]) -> None: ...

    def tree(self, under: str) -> dict[str, Node]: ...

    def read(self, path: str, limit: int) -> bytes | None: ...

    def free_bytes(self) -> int: ...


class OfflineEditor:
    """An `Editor` for ext4 and btrfs partitions of the raw image `image`.

    Temporary files go to a folder inside `work` that the end of the context removes; they may become as large as the
    OEM partition or the largest file. What is written gets the time `epoch` (seconds). A partition is checked when it
    is first used; one that is damaged, or has another filesystem, raises ImageError.
    """

    def __init__(self, image: Path, work: Path, epoch: int) -> None:
        self._image, self._work, self._epoch = image, work, epoch
        self._folder: TemporaryDirectory[str] | None = None
        self._table: DiskTable | None = None
        self._open: dict[str, _Filesystem] = {}

    def __enter__(self) -> Self:
        self._table = read_table(self._image)
        self._folder = TemporaryDirectory(dir=self._work, prefix="edit-")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.clear()
        if self._folder is not None:
            self._folder.cleanup()

    def apply(self, label: str, injections: Sequence[Injection]) -> None:
        """See `Editor.apply`."""
        self._filesystem(label).apply(injections)

    def tree(self, label: str, under: str = "/") -> dict[str, Node]:
        """See `Editor.tree`."""
        return self._filesystem(label).tree(under)

    def read(self, label: str, path: str, limit: int = 1 << 20) -> bytes | None:
        """See `Editor.read`."""
        return self._filesystem(label).read(path, limit)

    def free_bytes(self, label: str) -> int:
        """See `Editor.free_bytes`."""
        return self._filesystem(label).free_bytes()

    def _filesystem(self, label: str) -> _Filesystem:
        assert self._table is not None and self._folder is not None, "an editor is used as a context manager"
        if label not in self._open:
            partition = self._table.get(label)
            folder = Path(self._folder.name) / f"p{partition.number}"
            folder.mkdir(exist_ok=True)
            if partition.fs == "ext4":
                self._open[label] = Ext4(self._image, partition, folder, self._epoch)
            elif partition.fs == "btrfs":
                self._open[label] = Btrfs(self._image, partition, folder, self._epoch)
            else:
                raise unfit_filesystem(label, partition.fs)
        return self._open[label]
