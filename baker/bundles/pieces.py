"""The content of what is packed, in pieces that threads compress side by side. Holes are not read."""

from __future__ import annotations

import errno
import io
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import IO

from baker import stopping
from baker.console import Bar
from baker.sparse import data_extents

PIECE = 1 << 20


@cache
def zeros(size: int) -> bytes:
    """The one object for so many zeros, by which a piece without data is known without a look at it."""
    return bytes(size)


@dataclass(frozen=True)
class Member:
    """A file of an archive: its name in there, its mode, and its content or the file that has it."""

    name: str
    content: bytes | Path
    mode: int = 0o644

    @property
    def size(self) -> int:
        """Bytes of content."""
        return len(self.content) if isinstance(self.content, bytes) else self.content.stat().st_size

    def pieces(self) -> Iterator[bytes]:
        """The content, in order."""
        if isinstance(self.content, bytes):
            yield self.content
        else:
            yield from file_pieces(self.content)

    def open(self) -> IO[bytes]:
        """The content as a file to read."""
        return io.BytesIO(self.content) if isinstance(self.content, bytes) else self.content.open("rb")


def file_pieces(path: Path, size: int = PIECE) -> Iterator[bytes]:
    """A file in pieces of `size` bytes, the last one shorter. One that is a hole is the object `zeros(size)`.

    Raises OSError when the file shrinks meanwhile.
    """
    with path.open("rb") as file:
        fd = file.fileno()
        total = os.fstat(fd).st_size
        position = 0
        for begin, length in data_extents(fd):
            yield from _hole(begin - begin % size - position, size)
            position = max(position, begin - begin % size)
            while position < begin + length:
                stopping.check()
                piece = os.pread(fd, min(size, total - position), position)
                if len(piece) != min(size, total - position):
                    raise OSError(errno.EIO, "the file ended early", os.fspath(path))
                yield piece
                position += len(piece)
        yield from _hole(total - position, size)


def _hole(length: int, size: int) -> Iterator[bytes]:
    while length > 0:
        stopping.check()
        yield zeros(min(size, length))
        length -= size


def counted(pieces: Iterable[bytes], bar: Bar) -> Iterator[bytes]:
    """The same pieces; the bar advances as they are taken."""
    for piece in pieces:
        yield piece
        bar.advance(len(piece))
