"""Writing squashfs: a tar stream made here goes into mksquashfs.

Nothing of the host's folder but the bytes of its files reaches mksquashfs, so none of its own ways to copy owners,
times, holes or hard links matters, and no copy of the folder is needed. Measured with squashfs-tools 4.5.1: the same
stream gives the same bytes with every number of processors and every compressor.
"""

from __future__ import annotations

import os
import tarfile
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import IO

from baker import stopping
from baker.packing.tree import Entry, changed
from baker.run import CommandFailed, check_killed, spawn

COMPRESSIONS = ("gzip", "zstd", "xz", "lz4", "lzo")

_TYPES = {"directory": tarfile.DIRTYPE, "file": tarfile.REGTYPE, "symlink": tarfile.SYMTYPE}


def write_squashfs(entries: Iterable[Entry], target: Path, compression: str, epoch: int) -> None:
    """Make `target`, a new file, a squashfs of `entries` with all times `epoch`. CommandFailed when it cannot."""
    # SOURCE_DATE_EPOCH sets the time of the filesystem; the options for it cannot be used where it is set.
    argv: list[str] = [
        "mksquashfs", "-", os.fspath(target), "-tar", "-noappend", "-all-root", "-root-mode", "0755",
        "-root-time", str(epoch), "-no-xattrs", "-no-sparse", "-no-progress", "-quiet", "-exit-on-error",
        "-comp", compression,
    ]  # fmt: skip
    with tempfile.TemporaryFile() as output:
        env = {"SOURCE_DATE_EPOCH": str(epoch)}
        with spawn(argv, stdin=-1, stdout=output, stderr=output, env=env) as process:
            assert process.stdin is not None
            try:
                with process.stdin as pipe:
                    _stream(entries, pipe, epoch)
            except BrokenPipeError:
                pass  # it says why
            status = process.wait()
        check_killed("mksquashfs", status)
        output.seek(0)
        if status:
            raise CommandFailed(argv, status, output.read(1 << 16).decode("utf-8", "backslashreplace"))


def _stream(entries: Iterable[Entry], pipe: IO[bytes], epoch: int) -> None:
    """Write a tar archive. In the GNU format, since mksquashfs 4.5.1 takes leading slashes and `..` away from long
    link targets of the PAX format."""
    for entry in entries:
        info = tarfile.TarInfo(entry.path.lstrip("/"))
        info.type, info.mode, info.mtime = _TYPES[entry.kind], entry.mode, epoch
        info.size, info.linkname = entry.size, entry.symlink
        pipe.write(info.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape"))
        if entry.kind == "file":
            _send(entry, pipe)
            pipe.write(bytes(-entry.size % tarfile.BLOCKSIZE))
    pipe.write(bytes(2 * tarfile.BLOCKSIZE))


def _send(entry: Entry, pipe: IO[bytes]) -> None:
    if entry.source is None:
        pipe.write(entry.content)
        return
    pipe.flush()
    with entry.open() as file:
        done = 0
        while done < entry.size:
            stopping.check()
            count = os.sendfile(pipe.fileno(), file.fileno(), done, min(entry.size - done, 1 << 20))
            if not count:
                raise changed(entry.path)
            done += count
