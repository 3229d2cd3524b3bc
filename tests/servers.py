"""A real HTTP server for a folder, with Range, ETag and Last-Modified, that misbehaves when told to.

Faults are functions `fault(request) -> bool` by path: they may answer in the handler's place (True), or change how
it answers and leave the rest to it (False). Every request is recorded.
"""

from __future__ import annotations

import email.utils
import hashlib
import re
import socket
import ssl
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit


@dataclass
class Seen:
    """One request that arrived."""

    method: str
    path: str
    headers: dict[str, str]


class Handler(BaseHTTPRequestHandler):
    """Serves GET and HEAD of the server's folder."""

    protocol_version = "HTTP/1.1"
    server: _Server

    ranges = True
    """Off: the server ignores Range."""
    validators = True
    """Off: neither ETag nor Last-Modified."""
    weak = False
    """On: the ETag is weak, and there is no Last-Modified."""
    cut: int | None = None
    """Send only this many bytes of the body, then break the connection."""
    stall: int | None = None
    """Send only this many bytes of the body, then say nothing more until the client gives up."""
    content_type = "application/octet-stream"

    def do_GET(self) -> None:
        self._serve(True)

    def do_HEAD(self) -> None:
        self._serve(False)

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""

    def answer(self, status: int, body: bytes = b"", **headers: str) -> bool:
        """Send a whole answer; header names have underscores for dashes. Returns True, for faults."""
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
        return True

    def _serve(self, with_body: bool) -> None:
        path = unquote(urlsplit(self.path).path)
        self.server.mirror.seen.append(Seen(self.command, path, dict(self.headers.items())))
        for fault in self.server.mirror.faults.get(path, [])[:1]:
            if fault(self):
                return
        file = self.server.mirror.folder / path.lstrip("/")
        if file.is_dir():
            file /= "index.html"
        if not file.is_file():
            self.answer(404, b"<html>not here</html>", Content_Type="text/html")
            return
        data = file.read_bytes()
        etag = f'"{hashlib.sha256(data).hexdigest()[:16]}"'
        modified = email.utils.formatdate(file.stat().st_mtime, usegmt=True)
        begin = self._begin(len(data), etag, modified)
        if begin >= len(data) and begin:
            self.answer(416, Content_Range=f"bytes */{len(data)}")
            return
        self.send_response(206 if begin else 200)
        self.send_header("Content-Type", self.content_type)
        self.send_header("Content-Length", str(len(data) - begin))
        if begin:
            self.send_header("Content-Range", f"bytes {begin}-{len(data) - 1}/{len(data)}")
        if self.validators:
            self.send_header("ETag", f"W/{etag}" if self.weak else etag)
            if not self.weak:
                self.send_header("Last-Modified", modified)
        self.end_headers()
        if with_body:
            self._send(data[begin:])

    def _begin(self, size: int, etag: str, modified: str) -> int:
        match = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        condition = self.headers.get("If-Range")
        if not match or not self.ranges or condition not in (None, etag, modified):
            return 0
        return int(match[1])

    def _send(self, data: bytes) -> None:
        if self.stall is not None:
            self.wfile.write(data[: self.stall])
            self.server.mirror.released.wait(20)
            self.close_connection = True
            return
        self.wfile.write(data if self.cut is None else data[: self.cut])
        if self.cut is not None and self.cut < len(data):
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True


Fault = Callable[[Handler], bool]


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    mirror: MirrorServer

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that go away are part of the tests."""


@dataclass
class MirrorServer:
    """A running server; a context manager. `faults`: path → what goes wrong (the first of the list applies)."""

    folder: Path
    faults: dict[str, list[Fault]] = field(default_factory=dict)
    seen: list[Seen] = field(default_factory=list)
    released: threading.Event = field(default_factory=threading.Event)
    """Set it to end every stall."""
    tls: ssl.SSLContext | None = None
    host: str = "127.0.0.1"

    def __enter__(self) -> MirrorServer:
        self._server = _Server((self.host, 0), Handler)
        self._server.mirror = self
        if self.tls is not None:
            self._server.socket = self.tls.wrap_socket(self._server.socket, server_side=True)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.released.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def url(self) -> str:
        return f"{'https' if self.tls else 'http'}://{self.host}:{self._server.server_address[1]}"

    def on(self, path: str, fault: Fault) -> None:
        """Let `fault` apply to every request for a path."""
        self.faults[path] = [fault]

    def times(self, count: int, fault: Fault) -> Fault:
        """A fault that passes after `count` requests."""
        left = [count]

        def limited(handler: Handler) -> bool:
            left[0] -= 1
            return left[0] >= 0 and fault(handler)

        return limited

    def requests(self, path: str, method: str = "GET") -> list[Seen]:
        """The requests for a path so far."""
        return [seen for seen in self.seen if (seen.method, seen.path) == (method, path)]


def setting(**values: object) -> Fault:
    """A fault that changes attributes of the handler for one request, e.g. setting(cut=1000, ranges=False)."""

    def fault(handler: Handler) -> bool:
        for name, value in values.items():
            setattr(handler, name, value)
        return False

    return fault


def status(code: int, **headers: str) -> Fault:
    """A fault that answers with a status and nothing else."""
    return lambda handler: handler.answer(code, **headers)
