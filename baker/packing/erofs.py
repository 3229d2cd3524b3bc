"""Writing EROFS by mkfs.erofs."""

from __future__ import annotations

from pathlib import Path
from uuid import UUID

from baker.run import run

COMPRESSIONS = ("lz4hc", "lz4", "none")
_LEVELS = {"lz4hc": "lz4hc,12", "lz4": "lz4"}
# Clusters of 64 KiB give most of what larger ones give; fragments and packed tails need newer kernels than Flatcar's.
_CLUSTER = 64 << 10


def write_erofs(folder: Path, target: Path, compression: str, epoch: int, uuid: UUID) -> None:
    """Make `target` an EROFS of a staged folder. CommandFailed when it cannot."""
    packing = [] if compression == "none" else [f"-z{_LEVELS[compression]}", f"-C{_CLUSTER}"]
    run(["mkfs.erofs", "--quiet", *packing, f"-T{epoch}", f"-U{uuid}", "-x-1", "--all-root", target, folder])
