"""The compression around a finished image: bz2, gz, zip or zst.

gz, bz2 and zip are written by code of ours on all cores, and by no other, so that a machine's tools do not decide the
bytes; zst by zstd(1), whose bytes depend on its version but not on the number of threads.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from subprocess import DEVNULL

from baker.bundles import bzip2
from baker.bundles.deflate import prove_gzip, write_gzip
from baker.bundles.pieces import Member, counted, file_pieces
from baker.bundles.proof import prove_content, proving, read_pieces
from baker.bundles.zips import make_zip
from baker.console import Bar
from baker.errors import ImageError
from baker.run import run, spawn

_ZSTD_LEVEL = 9


def compress(source: Path, kind: str, jobs: int, epoch: int, bar: Bar | None = None) -> Path:
    """Pack a file into a new one beside it, prove that it unpacks to the same, and remove the source.

    `kind` is one of vendor.COMPRESSIONS, which is also the suffix that is added; "" or "none" returns the source as it
    is. `epoch` is the time of a zip's member. The bytes do not depend on `jobs`. `bar` counts bytes of the source.
    Raises ImageError when the result does not unpack, EnvironmentFault without zstd.
    """
    if kind in ("", "none"):
        return source
    target, bar = source.with_name(f"{source.name}.{kind}"), bar or Bar()
    if kind == "zip":
        make_zip(target, [Member(source.name, source)], jobs, epoch, bar)
    else:
        _PACKERS[kind](source, target, jobs, bar)
    source.unlink()
    return target


def _gz(source: Path, target: Path, jobs: int, bar: Bar) -> None:
    with target.open("xb") as file:
        done = write_gzip(file, counted(file_pieces(source), bar), jobs)
    with proving(target), target.open("rb") as file:
        prove_gzip(file, done, file_pieces(source), jobs)


def _bz2(source: Path, target: Path, jobs: int, bar: Bar) -> None:
    with target.open("xb") as file:
        lengths = bzip2.write_bzip2(file, counted(file_pieces(source, bzip2.PIECE), bar), jobs)
    with proving(target), target.open("rb") as file:
        bzip2.prove_bzip2(file, lengths, file_pieces(source, bzip2.PIECE), jobs)


def _zst(source: Path, target: Path, jobs: int, bar: Bar) -> None:
    run(["zstd", "--quiet", f"-T{jobs}", f"-{_ZSTD_LEVEL}", source, "-o", target])
    bar.advance(source.stat().st_size)
    with spawn(["zstd", "-dcq", target], stderr=DEVNULL) as process:
        assert process.stdout is not None
        prove_content(target.name, Member(source.name, source), read_pieces(process.stdout))
        if process.wait():
            raise ImageError(f"{target.name} cannot be read back: zstd does not accept it.")


_PACKERS: dict[str, Callable[[Path, Path, int, Bar], None]] = {"gz": _gz, "bz2": _bz2, "zst": _zst}
