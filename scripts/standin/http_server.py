"""A small HTTP server for a folder that can do what release servers can: ranges, validators, HEAD.

Python's own http.server ignores Range, so a resumed download could not be shown with it.
"""

from __future__ import annotations

import email.utils
import os
import re
import shutil
import threading
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import BinaryIO
from urllib.parse import unquote, urlsplit


class FolderServer(ThreadingHTTPServer):
    """Serves `folder` on 127.0.0.1; `port` 0 takes a free one. As a context manager it runs in a thread."""

    daemon_threads = True

    def __init__(self, folder: Path, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.folder = folder.resolve()
        self.requests: list[tuple[str, str, str | None]] = []
        """What was asked, in order: method, path, and the Range header or None."""

    @property
    def url(self) -> str:
        """The base address, without a slash at its end."""
        return f"http://127.0.0.1:{self.server_address[1]}"

    def __enter__(self) -> FolderServer:
        self._thread = threading.Thread(target=self.serve_forever, daemon=True)
        self._thread.start()
        return self

    def wait(self) -> None:
        """Wait until another thread ends the server, or for KeyboardInterrupt."""
        self._thread.join()

    def __exit__(self, *args: object) -> None:
        self.shutdown()
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    server: FolderServer
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def log_message(self, format: str, *args: object) -> None:
        """Silent: `FolderServer.requests` remembers."""

    def _find(self) -> Path | None:
        """The file that is asked for, None if there is none; nothing hidden, nothing outside the folder."""
        names = [name for name in unquote(urlsplit(self.path).path).split("/") if name]
        if any(name.startswith(".") or "\0" in name for name in names):
            return None
        path = self.server.folder.joinpath(*names).resolve()
        return path if path.is_file() and path.is_relative_to(self.server.folder) else None

    def _answer(self, with_body: bool) -> None:
        self.server.requests.append((self.command, self.path, self.headers.get("Range")))
        path = self._find()
        if path is None:
            self.send_error(HTTPStatus.NOT_FOUND)
            return
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            etag = f'"{status.st_mtime_ns:x}-{status.st_size:x}"'
            modified = email.utils.formatdate(status.st_mtime, usegmt=True)
            if etag in (self.headers.get("If-None-Match") or ""):
                self._head(HTTPStatus.NOT_MODIFIED, etag, modified, 0)
                return
            try:
                part = self._range(status.st_size, etag, modified)
            except ValueError:
                self.send_response(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE)
                self.send_header("Content-Range", f"bytes */{status.st_size}")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            start, end = part or (0, status.st_size)
            self._head(HTTPStatus.PARTIAL_CONTENT if part else HTTPStatus.OK, etag, modified, end - start,
                       f"bytes {start}-{end - 1}/{status.st_size}" if part else None)  # fmt: skip
            if with_body:
                self._send(file, start, end)

    def _head(
        self, status: HTTPStatus, etag: str, modified: str, length: int, content_range: str | None = None
    ) -> None:
        self.send_response(status)
        self.send_header("ETag", etag)
        self.send_header("Last-Modified", modified)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Type", "application/octet-stream")
        if status is not HTTPStatus.NOT_MODIFIED:
            self.send_header("Content-Length", str(length))
        if content_range:
            self.send_header("Content-Range", content_range)
        self.end_headers()

    def _range(self, size: int, etag: str, modified: str) -> tuple[int, int] | None:
        """The bytes [start, end) that are asked for, None for all; ValueError if the file has none of them.

        Several ranges at once, or a header that makes no sense, are answered with the whole file (RFC 9110, 14.2).
        """
        condition = self.headers.get("If-Range")
        if condition is not None and condition not in (etag, modified):
            return None
        found = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range") or "")
        if found is None or not any(found.groups()):
            return None
        first, last = found.groups()
        if not first:
            if int(last) == 0:
                raise ValueError("an empty suffix")
            return max(0, size - int(last)), size
        if int(first) >= size:
            raise ValueError("beyond the end")
        end = min(int(last) + 1, size) if last else size
        return (int(first), end) if end > int(first) else None

    def _send(self, file: BinaryIO, start: int, end: int) -> None:
        file.seek(start)
        try:
            if end == os.fstat(file.fileno()).st_size:
                shutil.copyfileobj(file, self.wfile, 1 << 20)
                return
            while start < end and (chunk := file.read(min(1 << 20, end - start))):
                self.wfile.write(chunk)
                start += len(chunk)
        except ConnectionError:
            self.close_connection = True
