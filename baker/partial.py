"""The beginning of a download that an earlier try left, and whether the rest may be put behind it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from enum import Enum, auto
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from requests import Response

_CHUNK = 1 << 20


class Answer(Enum):
    """What a server's answer means for the bytes there are."""

    REST = auto()
    """They hold; the answer brings what is missing (nothing, where its status is 416)."""
    WHOLE = auto()
    """They are void; the answer brings the file from its first byte."""
    UNFIT = auto()
    """They are void, and the answer is of no use either."""


@dataclass
class _Origin:
    """What a partial file is a part of: kept beside it, so that a later run knows whether it may go on."""

    url: str
    etag: str = ""
    modified: str = ""
    total: int | None = None


class Partial:
    """The first bytes of a download on disk, with their origin in PATH.json."""

    def __init__(self, path: Path, url: str) -> None:
        self._path = path
        self._origin_path = origin_path(path)
        self._url = url
        self._origin = self._load()

    @property
    def size(self) -> int:
        return self._path.stat().st_size if self._path.exists() else 0

    @property
    def total(self) -> int | None:
        return self._origin.total

    def resume_headers(self) -> dict[str, str]:
        """The headers that ask for the rest, or for everything if the file has changed; none to begin anew."""
        validator = self._origin.etag or self._origin.modified
        return {"Range": f"bytes={self.size}-", "If-Range": validator} if self.size and validator else {}

    def accept(self, response: Response) -> Answer:
        """Take the headers of an answer (status 200, 206 or 416) in; void bytes are gone when this returns."""
        if response.status_code == 200:
            etag = response.headers.get("ETag", "")
            self._restart(_Origin(
                self._url,
                # RFC 9110 §13.1.5: a weak tag does not say that the bytes are the same, so If-Range forbids it.
                "" if etag.startswith("W/") else etag,
                response.headers.get("Last-Modified", ""),
                total_size(response),
            ))  # fmt: skip
            return Answer.WHOLE
        begin, total = _content_range(response)
        etag = response.headers.get("ETag", self._origin.etag)
        fits = self.total in (None, total) and etag == (self._origin.etag or etag)
        complete = response.status_code == 416 and total == self.size
        if fits and (complete or begin == self.size):
            self._origin.total = total
            return Answer.REST
        self._restart(_Origin(self._url))
        return Answer.UNFIT

    def append(self, chunk: bytes) -> None:
        with self._path.open("ab", buffering=0) as file:
            view = memoryview(chunk)
            while view:
                view = view[file.write(view) :]

    def read(self) -> Iterator[bytes]:
        """The bytes there are."""
        if self.size:
            with self._path.open("rb") as file:
                while chunk := file.read(_CHUNK):
                    yield chunk

    def _restart(self, origin: _Origin) -> None:
        self._origin = origin
        # Emptied before its new origin is written: killed in between, the two must not belong to different files.
        self._path.write_bytes(b"")
        self._origin_path.write_text(json.dumps(asdict(origin)))

    def _load(self) -> _Origin:
        try:
            origin = _Origin(**json.loads(self._origin_path.read_text()))
        except (OSError, ValueError, TypeError):
            return _Origin(self._url)
        return origin if origin.url == self._url else _Origin(self._url)


def origin_path(partial: Path) -> Path:
    """Where the origin of a partial file is remembered."""
    return partial.with_name(partial.name + ".json")


def total_size(response: Response) -> int | None:
    """The size of the whole file, from Content-Range or Content-Length."""
    if "Content-Range" in response.headers:
        return _content_range(response)[1]
    return _number(response.headers.get("Content-Length", ""))


def _content_range(response: Response) -> tuple[int, int | None]:
    """(first byte, size of the whole file) of a Content-Range; (-1, None) when there is none that can be read."""
    unit, _, rest = response.headers.get("Content-Range", "").partition(" ")
    span, _, total = rest.partition("/")
    begin = _number(span.partition("-")[0])
    if unit != "bytes":
        return -1, None
    return -1 if begin is None else begin, _number(total)


def _number(text: str) -> int | None:
    """A count of bytes; None where it is none, or none that a file can have."""
    return int(text) if re.fullmatch("[0-9]{1,18}", text) else None
