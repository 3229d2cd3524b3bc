"""Files on their way through an object store, without their holes: disk images are nine parts zeros.

Eight bytes, big-endian, say how long the header is; the header is JSON with the size and the data extents as (offset,
length); then come the extents' bytes one after the other.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import IO

from baker.errors import VerificationError
from baker.sparse import data_extents

_CHUNK = 8 << 20
_PREFIX = 8
_MOST_HEADER = 64 << 20


def write_packed(path: Path, stream: IO[bytes]) -> None:
    """Write the file `path` to a stream."""
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        extents = list(data_extents(file.fileno()))
        header = json.dumps({"size": size, "extents": extents}).encode()
        stream.write(len(header).to_bytes(_PREFIX, "big") + header)
        for offset, length in extents:
            for position in range(offset, offset + length, _CHUNK):
                stream.write(os.pread(file.fileno(), min(_CHUNK, offset + length - position), position))


def read_packed(stream: IO[bytes], path: Path, size: int) -> None:
    """Make the new file `path`, of `size` bytes, from a stream; VerificationError when that is no such thing."""
    try:
        header = json.loads(stream.read(min(int.from_bytes(stream.read(_PREFIX), "big"), _MOST_HEADER)))
        extents = [(int(offset), int(length)) for offset, length in header["extents"]]
        ends = [0, *(offset + length for offset, length in extents)]
        ordered = all(offset >= end and length > 0 for (offset, length), end in zip(extents, ends, strict=False))
        if header["size"] != size or not ordered or ends[-1] > size:
            raise ValueError
    except (ValueError, KeyError, TypeError, RecursionError):
        raise VerificationError(f"What was stored as {path.name} is something else.") from None
    with path.open("xb") as file:
        os.ftruncate(file.fileno(), size)
        for offset, length in extents:
            while length and (chunk := stream.read(min(_CHUNK, length))):
                os.pwrite(file.fileno(), chunk, offset)
                offset, length = offset + len(chunk), length - len(chunk)
