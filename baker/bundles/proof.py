"""Proof that what was packed comes out again: every byte of a finished file is unpacked and compared."""

from __future__ import annotations

import gzip
import tarfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from baker import stopping
from baker.bundles.pieces import PIECE, Member
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
