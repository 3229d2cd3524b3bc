"""Getting bytes from a mirror: HTTP with resume and retries, and plain folders that work as mirrors.

Nothing here is trusted; `verify` and the digests decide about that. `requests` is imported on first use because most
commands need no network and it costs a tenth of a second.
"""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BufferedReader
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import unquote, urljoin, urlsplit

from baker import __version__, stopping
from baker.console import Console
from baker.errors import NetworkError
from baker.http_faults import host_of, reason_of, retry_after, root_cause, unconnected
from baker.partial import Answer, Partial, total_size

if TYPE_CHECKING:
    from requests import Response, Session

T = TypeVar("T")

CHUNK = 256 << 10
"""Bytes at a time. A connection that dies loses what has come of the current chunk, so it is not larger."""

_MIRROR_HINT = "Check the network, or name another mirror with --mirror URL or --mirror FOLDER."
_LONGEST_WAIT = 120.0  # seconds; a server may ask for more in Retry-After, but nobody waits that long at a prompt
_PROGRESS = 1 << 20  # an attempt that brings this many bytes was no failure to connect: the count starts again
_TRANSIENT_STATUS = {408, 425, 429, 500, 502, 503, 504, 520, 521, 522, 523, 524}


class FileMissing(NetworkError):
    """The server (or folder) is there, the file is not."""


class StreamRestarted(Exception):
    """The file has to be read from its first byte again: it changed, or the server cannot resume. Ask for it anew."""


class _Transient(Exception):
    """A failure that may pass: `final` is what to raise once patience ends, `wait` the seconds the server asks for.

    `unreachable` is the host (with its port) that could not be connected to, "" where that was not the failure.
    """

    def __init__(self, final: NetworkError, wait: float = 0.0, unreachable: str = "") -> None:
        super().__init__(final.message)
        self.final = final
        self.wait = wait
        self.unreachable = unreachable


@dataclass(frozen=True)
class Reply:
    """What a server said to one request. Header names are in lower case; `next` is the next page's address or ""."""

    status: int
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)
    next: str = ""


def local_path(url: str) -> Path | None:
    """The path behind a `file://` URL or a plain path; None for everything that needs a network."""
    if "://" not in url:
        return Path(url)
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise NetworkError(f"{url} is no address: {error}.") from None
    if parts.scheme != "file":
        return None
    if parts.netloc not in ("", "localhost"):
        raise NetworkError(f"{url} names a file on another host.", "Use file:///PATH or a plain path.")
    return Path(unquote(parts.path))


def file_name(url: str) -> str:
    """The last segment of a URL or path, decoded."""
    path = local_path(url)
    return path.name if path is not None else unquote(urlsplit(url).path.rsplit("/", 1)[-1])


class Fetcher:
    """Reads files of http, https and file URLs and of plain paths. Safe to share between threads.

    `retries`: how often a failure that may pass is tried again. `timeout`: seconds to connect, seconds without a byte.
    `backoff`: seconds before the first retry; they double each time, with jitter. A host that could not be connected
    to although that was retried is not asked again.
    """

    def __init__(
        self, console: Console, retries: int = 5, timeout: tuple[float, float] = (10, 60), backoff: float = 0.5
    ) -> None:
        self._console = console
        self.retries = retries
        self._timeout = timeout
        self._backoff = backoff
        self._unreachable: dict[str, NetworkError] = {}
        self._local = threading.local()

    def read(self, url: str, limit: int) -> bytes:
        """A whole small file. Raises NetworkError when it has more than `limit` bytes, FileMissing for a 404."""
        path = local_path(url)
        if path is not None:
            with _open_local(path) as file:
                return bytes(_refuse_more(limit, url, file.read(limit + 1)))

        def attempt() -> bytes:
            with self.open(url) as response:
                data = bytearray()
                for chunk in body(response, 1 << 16):
                    data += chunk
                    _refuse_more(limit, url, data)
                _refuse_web_page(url, data)
                return bytes(data)

        return self._retrying(attempt)

    def ask(self, url: str, limit: int, headers: dict[str, str] | None = None) -> Reply:
        """A server's answer to one request, of up to `limit` bytes: for pages and APIs, whose caller judges it.

        What may pass (status 5xx, a broken connection) is tried again; NetworkError when it does not.
        requests takes an Authorization header off when it is redirected to another host.
        """
        if local_path(url) is not None:
            return Reply(200, self.read(url, limit))

        def attempt() -> Reply:
            with self.open(url, headers, ok=None) as response:
                if response.status_code >= 500:
                    _check_status(url, response, ())
                data = bytearray()
                for chunk in body(response, 1 << 16):
                    data += chunk
                    _refuse_more(limit, url, data)
                fields = {name.lower(): value for name, value in response.headers.items()}
                return Reply(response.status_code, bytes(data), fields, response.links.get("next", {}).get("url", ""))

        return self._retrying(attempt)

    def size(self, url: str) -> int | None:
        """The size of a file in bytes, 0 where the server does not tell; None when there is no such file.

        Object stores say 403 for a missing file that one may not list, so that counts as missing here.
        """
        path = local_path(url)

        def attempt() -> int:
            if path is not None:
                with _open_local(path) as file:
                    return os.fstat(file.fileno()).st_size
            with self.open(url, method="HEAD", ok=(200, 405, 501)) as response:
                if response.status_code == 200:
                    return total_size(response) or 0
            with self.open(url, {"Range": "bytes=0-0"}, ok=(200, 206)) as response:
                return total_size(response) or 0

        try:
            return self._retrying(attempt)
        except (FileMissing, _Forbidden):
            return None

    def stream(self, url: str, partial: Path | None) -> Download:
        """All bytes of a file, from the first one on; see Download. Connects at once: raises as `read` does."""
        return Download(self, url, partial)

    @contextmanager
    def open(
        self, url: str, headers: dict[str, str] | None = None, method: str = "GET", ok: tuple[int, ...] | None = (200,)
    ) -> Iterator[Response]:
        """One request. Every failure becomes a NetworkError, or _Transient where another try may help.

        `ok`: the statuses that are no failure; None for all of them.
        """
        import ssl

        import requests
        import urllib3

        if urlsplit(url).netloc in self._unreachable:
            raise self._unreachable[urlsplit(url).netloc]
        try:
            with self._session().request(
                method, url, headers=headers, stream=True, timeout=self._timeout, allow_redirects=True
            ) as response:
                if ok is not None:
                    _check_status(url, response, ok)
                yield response
        except (requests.ConnectionError, requests.Timeout, urllib3.exceptions.HTTPError) as error:
            cause = root_cause(error)
            if isinstance(cause, ssl.SSLCertVerificationError):
                raise NetworkError(
                    f"{host_of(url)} has no certificate that can be trusted: {cause.verify_message}.",
                    "Check the clock of this machine and its CA certificates.",
                ) from error
            failure = NetworkError(f"{host_of(url)} failed: {reason_of(cause)}.", _MIRROR_HINT)
            raise _Transient(failure, unreachable=unconnected(error, url)) from error
        except requests.RequestException as error:
            raise NetworkError(f"{url} cannot be fetched: {error}.", _MIRROR_HINT) from error

    def pause(self, failures: int, cause: _Transient) -> None:
        """Wait before the next try; raises the final error of `cause` when there were enough tries."""
        if failures > self.retries:
            if cause.unreachable:
                self._unreachable[cause.unreachable] = cause.final
            raise cause.final from cause
        delay = self._backoff * 2 ** (failures - 1) * random.uniform(0.75, 1.25)  # noqa: S311 (jitter, no secret)
        delay = min(max(delay, cause.wait), _LONGEST_WAIT)
        stopping.check()  # a thread that is to end need not be patient
        self._console.note(f"{cause.final.message} Trying again in {delay:.0f} s.")
        time.sleep(delay)

    def _retrying(self, attempt: Callable[[], T]) -> T:
        failures = 0
        while True:
            try:
                return attempt()
            except _Transient as error:
                failures += 1
                self.pause(failures, error)

    def _session(self) -> Session:
        """This thread's session: requests does not promise that one may be shared."""
        if not hasattr(self._local, "session"):
            self._local.session = _new_session()
        session: Session = self._local.session
        return session


def _new_session() -> Session:
    import requests

    session = requests.Session()
    session.headers["User-Agent"] = f"flatcar-bake/{__version__}"
    # Files are stored compressed already, and digests count the bytes as they are stored.
    session.headers["Accept-Encoding"] = "identity"
    session.hooks["response"].append(_refuse_downgrade)
    return session


class _Forbidden(NetworkError):
    """403: refused, or (with object stores) missing."""


class Download(Iterator[bytes]):
    """One file as a stream of bytes that survives broken connections; also a context manager.

    `partial` receives every byte, is resumed when an earlier run left it, and stays when reading ends early;
    None keeps nothing (for local files). `total` is the file's size, None where the server does not say.
    Iterating raises NetworkError, or StreamRestarted when bytes already handed out are void.
    """

    def __init__(self, fetcher: Fetcher, url: str, partial: Path | None) -> None:
        self._fetcher = fetcher
        self._url = url
        self._given = 0
        self.total: int | None = None
        path = local_path(url)
        if path is not None:
            self._chunks = self._local(path, partial)
        else:
            assert partial is not None, "a download that cannot resume"
            self._chunks = self._remote(Partial(partial, url))
        next(self._chunks)  # connects: each generator yields b"" as soon as it knows `total`

    def __next__(self) -> bytes:
        return next(self._chunks)

    def __enter__(self) -> Download:
        return self

    def __exit__(self, *_: object) -> None:
        self._chunks.close()

    def _local(self, path: Path, partial: Path | None) -> Generator[bytes, None, None]:
        with _open_local(path) as file:
            self.total = os.fstat(file.fileno()).st_size
            yield b""
            copy = partial.open("wb") if partial is not None else None
            try:
                while chunk := file.read(CHUNK):
                    if copy is not None:
                        copy.write(chunk)
                    yield chunk
            finally:
                if copy is not None:
                    copy.close()

    def _remote(self, partial: Partial) -> Generator[bytes, None, None]:
        failures = 0
        connected = False
        while True:
            before = partial.size
            try:
                with self._fetcher.open(self._url, partial.resume_headers(), ok=(200, 206, 416)) as response:
                    answer = partial.accept(response)
                    if answer is Answer.UNFIT:
                        raise _Transient(NetworkError(f"{host_of(self._url)} sent another part than was asked for."))
                    if answer is Answer.WHOLE and self._given:
                        raise StreamRestarted(self._url)
                    self.total = partial.total
                    if not connected:
                        connected = True
                        yield b""
                    if not self._given:
                        yield from self._count(partial.read())
                    if response.status_code != 416:
                        yield from self._count(self._receive(response, partial))
                return
            except _Transient as error:
                failures = 1 if partial.size - before >= _PROGRESS else failures + 1
                self._fetcher.pause(failures, error)

    def _receive(self, response: Response, partial: Partial) -> Iterator[bytes]:
        for chunk in body(response, CHUNK):
            if partial.size == 0:
                _refuse_web_page(self._url, chunk)
            partial.append(chunk)
            yield chunk
        if partial.total is not None and partial.size < partial.total:
            raise _Transient(NetworkError(f"{host_of(self._url)} sent only {partial.size} of {partial.total} bytes."))

    def _count(self, chunks: Iterator[bytes]) -> Iterator[bytes]:
        for chunk in chunks:
            self._given += len(chunk)
            yield chunk


def body(response: Response, size: int) -> Iterator[bytes]:
    """The response's bytes as they are stored, whatever Content-Encoding says."""
    yield from response.raw.stream(size, decode_content=False)


def _open_local(path: Path) -> BufferedReader:
    try:
        if path.is_file():
            return path.open("rb")
    except OSError as error:
        raise NetworkError(f"{path} cannot be read: {error.strerror}.", _MIRROR_HINT) from error
    raise FileMissing(f"There is no file {path}.")


def _check_status(url: str, response: Response, ok: tuple[int, ...]) -> None:
    status = response.status_code
    if status in (404, 410):
        raise FileMissing(f"There is no file {url}.")
    if status == 403:
        raise _Forbidden(f"{host_of(url)} refuses {url} (status 403).", _MIRROR_HINT)
    if status in _TRANSIENT_STATUS and status not in ok:
        raise _Transient(
            NetworkError(f"{host_of(url)} answered with status {status}.", _MIRROR_HINT), retry_after(response)
        )
    if status not in ok:
        raise NetworkError(f"{host_of(url)} answered with status {status} for {url}.", _MIRROR_HINT)
    if response.headers.get("Content-Type", "").lower().startswith("text/html") and status in (200, 206):
        raise _web_page(url)


def _refuse_downgrade(response: Response, *_: object, **__: object) -> None:
    """A hook for every answer: a redirect must not lead from https to something readable and forgeable."""
    target = urljoin(response.url, response.headers.get("Location", ""))
    if response.is_redirect and response.url.startswith("https:") and not target.startswith("https:"):
        raise NetworkError(f"{host_of(response.url)} redirects to {target}, which is not https.", _MIRROR_HINT)


def _refuse_web_page(url: str, start: bytes | bytearray) -> None:
    if start[:512].lstrip(b"\xef\xbb\xbf \t\r\n").lower().startswith((b"<!doctype", b"<html")):
        raise _web_page(url)


def _web_page(url: str) -> NetworkError:
    return NetworkError(
        f"The mirror {host_of(url)} sent a web page instead of {file_name(url)}.",
        "A login page or proxy may stand between; open the address in a browser: " + url,
    )


def _refuse_more(limit: int, url: str, data: bytes | bytearray) -> bytes | bytearray:
    if len(data) > limit:
        raise NetworkError(f"{url} is larger than the {limit} bytes that such a file may have.")
    return data
