"""Writing EROFS by mkfs.erofs."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from uuid import UUID

from baker.errors import UsageError
from baker.packing.tree import Entry
from baker.run import CommandFailed, run

_LEVELS = {"lz4hc": "lz4hc,12", "lz4": "lz4"}
# Clusters of 64 KiB give most of what larger ones give; fragments and packed tails need newer kernels than Flatcar's.
_CLUSTER = 64 << 10
_NAME_MAX = 255


def write_erofs(
    entries: Iterable[Entry], folder: Path, target: Path, compression: str, epoch: int, uuid: UUID
) -> None:
    """Make `target` an EROFS of `entries`, which are staged in `folder`. CommandFailed when it cannot."""
    # Without a value of our own, the user's would change how it stores times.
    env = {"SOURCE_DATE_EPOCH": str(epoch)}
    packing = [] if compression == "none" else [f"-z{_LEVELS[compression]}", f"-C{_CLUSTER}"]
    try:
        run(
            ["mkfs.erofs", "--quiet", *packing, f"-T{epoch}", f"-U{uuid}", "-x-1", "--all-root", target, folder],
            env=env,
        )
    except CommandFailed as error:
        longest = max((os.fsencode(entry.path.rpartition("/")[2]) for entry in entries), key=len)
        if len(longest) < _NAME_MAX:
            raise
        # Version 1.5 leaves no room for the end of such a name.
        raise UsageError(
            f"mkfs.erofs failed over a name of {_NAME_MAX} bytes, which some versions cannot take: {longest[:40]!r}…",
            "Shorten the name, or use another --format.",
        ) from error
