"""Writing squashfs by mksquashfs.

From a staged folder rather than from a tar stream, which would need no copy: mksquashfs 4.5.1 loses the race for
files that are there twice in one out of five runs over a stream, and fails.
"""

from __future__ import annotations

from pathlib import Path

from baker.run import run

COMPRESSIONS = ("gzip", "zstd", "xz", "lz4", "lzo")


def write_squashfs(folder: Path, target: Path, compression: str, epoch: int) -> None:
    """Make `target`, a new file, a squashfs of a staged folder. CommandFailed when it cannot.

    Measured with squashfs-tools 4.5.1: the number of processors does not matter, while holes do without -no-sparse.
    """
    # SOURCE_DATE_EPOCH sets the time of the filesystem; the options for it cannot be used where it is set.
    run([
        "mksquashfs", folder, target, "-noappend", "-all-root", "-no-xattrs", "-no-sparse", "-no-progress", "-quiet",
        "-exit-on-error", "-comp", compression,
    ], env={"SOURCE_DATE_EPOCH": str(epoch)})  # fmt: skip
