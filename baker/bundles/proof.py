"""Proof that what was packed comes out again: every byte of a finished file is unpacked and compared."""

from __future__ import annotations

import gzip
import tarfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from baker import stopping
from baker.bundles.pieces import PIECE, Member
from baker.bundles.tars import data_runs
from baker.errors import ImageError

_UNREADABLE = (OSError, EOFError, ValueError, zlib.error, tarfile.TarError, zipfile.BadZipFile)


class Readable(Protocol):
    """What is opened to be read: a file, or a member of an archive."""

    def read(self, size: int, /) -> bytes: ...


def read_pieces(content: Readable) -> Iterator[bytes]:
    """A stream to its end, in pieces."""
    while piece := content.read(PIECE):
        yield piece


@contextmanager
def proving(target: Path) -> Iterator[None]:
    """ImageError for whatever goes wrong while a finished file is read back."""
    try:
        yield
    except _UNREADABLE as error:
        raise ImageError(f"{target.name} cannot be read back: {error}.", "Is the disk full or failing?") from error


def prove_tar(target: Path, members: Sequence[Member]) -> None:
    """Read a tar, compressed or not, back; ImageError unless it has these regular files in this order."""
    with proving(target), target.open("rb") if target.suffix == ".ova" else gzip.open(target) as stream:
        with tarfile.open(fileobj=stream, mode="r|", bufsize=PIECE) as archive:
            _prove_members(target, members, _tar_members(target, archive))
        for _ in read_pieces(stream):
            pass  # the check sum of a gzip comes behind everything


def _tar_members(target: Path, archive: tarfile.TarFile) -> Iterator[tuple[str, Readable]]:
    for info in archive:
        content = archive.extractfile(info)
        if content is None:
            raise ImageError(f"{target.name} holds {info.name}, which is no file.")
        yield info.name, content


def prove_sparse_tar(target: Path, name: str, source: Path) -> None:
    """Like `prove_tar`, for a gzipped tar of one sparse file; what it leaves out must be zeros of the source."""
    with proving(target), gzip.open(target) as stream, source.open("rb") as original:
        # Not as a stream: there, tarfile would read every hole as zeros. All seeking goes forward.
        with tarfile.open(fileobj=stream, mode="r:") as archive:
            info = archive.next()
            content = archive.extractfile(info) if info else None
            if info is None or content is None or (info.name, info.size) != (name, source.stat().st_size):
                raise ImageError(f"{target.name} came out without {name} as its first file.")
            runs = data_runs(source)
            found: Any = info.sparse  # a list of offsets and lengths
            if [tuple(item) for item in found or () if item[1]] != [(run.offset, run.length) for run in runs]:
                raise ImageError(f"{name} in {target.name} came out with other holes than it went in with.")
            for run in runs:
                content.seek(run.offset)
                original.seek(run.offset)
                for begin in range(0, run.length, PIECE):
                    size = min(PIECE, run.length - begin)
                    if content.read(size) != original.read(size):
                        raise ImageError(f"{name} in {target.name} does not unpack to what was packed.")
            if archive.next() is not None:
                raise ImageError(f"{target.name} came out with more than {name}.")
        for _ in read_pieces(stream):
            pass


def _prove_members(target: Path, members: Sequence[Member], found: Iterable[tuple[str, Readable]]) -> None:
    names = []
    for (name, content), member in zip(found, [*members, None], strict=False):
        names.append(name)
        if member is None or name != member.name:
            break
        prove_content(f"{name} in {target.name}", member, read_pieces(content))
    if names != [member.name for member in members]:
        wanted = ", ".join(member.name for member in members)
        raise ImageError(f"{target.name} came out with the members {', '.join(names)} instead of {wanted}.")


def prove_content(what: str, member: Member, found: Iterable[bytes]) -> None:
    """ImageError unless the pieces `found`, of any length, are the member's content and no more."""
    with member.open() as source:
        for piece in found:
            stopping.check()
            if source.read(len(piece)) != piece:
                raise ImageError(f"{what} does not unpack to what was packed.")
        if source.read(1):
            raise ImageError(f"{what} unpacks to less than was packed.")
