"""The compression around a finished image: bz2, gz, zip or zst.

gz, bz2 and zip are written by code of ours on all cores, and by no other, so that a machine's tools do not decide the
bytes; zst by zstd(1), whose bytes depend on its version but not on the number of threads.
"""

from __future__ import annotations

import bz2
import gzip
import zipfile
from collections.abc import Generator
from contextlib import closing
from pathlib import Path
from subprocess import DEVNULL

from baker.bundles import bzip2
from baker.bundles.deflate import write_gzip
from baker.bundles.pieces import PIECE, Member, counted, file_pieces
from baker.bundles.proof import prove_content, proving, read_pieces
from baker.bundles.zips import write_zip
from baker.console import Bar
from baker.errors import ImageError
from baker.run import find, run, spawn

_ZSTD_LEVEL = 9


def compress(source: Path, kind: str, jobs: int, epoch: int, bar: Bar | None = None) -> Path:
    """Pack a file into a new one beside it, prove that it unpacks to the same, and remove the source.

    `kind` is one of vendor.COMPRESSIONS, which is also the suffix that is added; "" or "none" returns the source as it
    is. `epoch` is the time of a zip's member. The bytes do not depend on `jobs`. `bar` counts bytes of the source.
    Raises ImageError when the result does not unpack, EnvironmentFault without zstd.
    """
    if kind in ("", "none"):
        return source
    bar = bar or Bar()
    target = source.with_name(f"{source.name}.{kind}")
    if kind == "zip":
        write_zip(target, [Member(source.name, source)], jobs, epoch, bar)
    elif kind == "zst":
        run(["zstd", "--quiet", f"-T{jobs}", f"-{_ZSTD_LEVEL}", source, "-o", target])
        bar.advance(source.stat().st_size)
    else:
        write, size = _WRITERS[kind]
        with target.open("xb") as file:
            write(file, counted(file_pieces(source, size), bar), jobs)
    with proving(target), closing(_unpacked(target, kind, source.name)) as pieces:
        prove_content(target.name, Member(source.name, source), pieces)
    source.unlink()
    return target


_WRITERS = {"gz": (write_gzip, PIECE), "bz2": (bzip2.write_bzip2, bzip2.PIECE)}


def _unpacked(target: Path, kind: str, member: str) -> Generator[bytes, None, None]:
    """What a finished file unpacks to, in pieces."""
    if kind == "zst" or (kind == "bz2" and find("lbzip2")):
        yield from _filtered(["zstd" if kind == "zst" else "lbzip2", "-dcq", str(target)], target)
        return
    if kind == "zip":
        with zipfile.ZipFile(target) as archive, archive.open(member) as content:
            yield from read_pieces(content)
    else:
        with (gzip.open if kind == "gz" else bz2.open)(target) as content:
            yield from read_pieces(content)


def _filtered(argv: list[str], target: Path) -> Generator[bytes, None, None]:
    with spawn(argv, stderr=DEVNULL) as process:
        assert process.stdout is not None
        yield from read_pieces(process.stdout)
        if process.wait():
            raise ImageError(f"{target.name} cannot be read back: {argv[0]} does not accept it.")
