"""Turning a compressed stream into a sparse file while it arrives: bz2, gzip, or nothing to undo.

For bz2 the fastest decoder of the machine is used: lbzip2 (all cores, as the data comes), the Python module
indexed_bzip2 (all cores, but only once the whole file is there), else the standard library (one core).
Like bzip2 and gzip, all of them accept several streams in a row and ignore what follows a complete one.
"""

from __future__ import annotations

import bz2
import importlib.util
import os
import tempfile
import threading
import zlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from subprocess import PIPE, Popen
from typing import IO, Protocol

from baker.errors import BakeError, ImageError
from baker.run import Bounds, CommandFailed, find, spawn
from baker.sparse import SparseWriter

LARGEST_IMAGE = 64 << 30
"""The most bytes a file may unpack to; Flatcar's largest layout has 30 GiB."""

_CHUNK = 1 << 20
# It decodes while the signature is still being checked. It has a thread for every core, all of which count.
_BOUNDS = Bounds(memory=256 << 30, cpu_seconds=3600)


class Decoder(Protocol):
    """Takes compressed bytes, writes what they stand for to a file."""

    def write(self, data: bytes) -> None:
        """More of the compressed stream. ImageError when it is corrupt or unpacks to too much; OSError of the disk."""

    def finish(self) -> int:
        """The stream is complete: returns the size of the result in bytes. ImageError when it is cut short."""


def open_decoder(name: str, target: int, source: Path, limit: int) -> AbstractContextManager[Decoder]:
    """The decoder for a file called `name` (`.bz2`, `.gz`, anything else is stored as it is).

    `target` is the descriptor of an empty file. `source` is where all compressed bytes are when `finish` is called,
    for decoders that cannot work on a stream. No thread or process is left when the block ends.
    """
    writer = _LimitedWriter(target, name, limit)
    if name.endswith(".gz"):
        return nullcontext(_Streamed(writer, name, b"\x1f\x8b", _Gzip))
    if not name.endswith(".bz2"):
        return nullcontext(_Plain(writer))
    if find("lbzip2"):
        return _lbzip2(writer, name)
    if _has_indexed_bzip2():
        return nullcontext(_IndexedBzip2(writer, name, source))
    return nullcontext(_Streamed(writer, name, b"BZh", bz2.BZ2Decompressor))


class _LimitedWriter(SparseWriter):
    """A sparse writer that refuses to write more than `limit` bytes."""

    def __init__(self, fd: int, name: str, limit: int) -> None:
        super().__init__(fd)
        self._name, self._limit = name, limit

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if self.written + len(data) > self._limit:
            raise ImageError(f"{self._name} unpacks to more than {self._limit} bytes, too much for a disk image.")
        super().write(data)


class _Plain:
    """Nothing to undo."""

    def __init__(self, writer: SparseWriter) -> None:
        self._writer = writer

    def write(self, data: bytes) -> None:
        self._writer.write(data)

    def finish(self) -> int:
        return self._writer.finish()


class _Engine(Protocol):
    """What bz2.BZ2Decompressor offers for one stream."""

    @property
    def eof(self) -> bool: ...
    @property
    def needs_input(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int = -1, /) -> bytes: ...


class _Gzip:
    """zlib with the interface of bz2.BZ2Decompressor."""

    def __init__(self) -> None:
        self._engine = zlib.decompressobj(wbits=31)
        self._more = False

    @property
    def eof(self) -> bool:
        return self._engine.eof

    @property
    def needs_input(self) -> bool:
        return not self._more and not self._engine.unconsumed_tail

    @property
    def unused_data(self) -> bytes:
        return self._engine.unused_data

    def decompress(self, data: bytes, max_length: int = -1, /) -> bytes:
        try:
            unpacked = self._engine.decompress(self._engine.unconsumed_tail + data, max(max_length, 0))
        except zlib.error as error:
            raise OSError(str(error)) from None
        self._more = len(unpacked) == max_length  # zlib may hold back output although it took all input
        return unpacked


class _Streamed:
    """A decompressor of the standard library, with a new engine for each stream of the file."""

    def __init__(self, writer: SparseWriter, name: str, magic: bytes, new_engine: Callable[[], _Engine]) -> None:
        self._writer, self._name, self._magic, self._new_engine = writer, name, magic, new_engine
        self._engine: _Engine | None = None
        self._begun = b""  # the first bytes behind a stream, while too few to tell what they are
        self._streams = 0
        self._over = False

    def write(self, data: bytes) -> None:
        while data and not self._over:
            if self._engine is None:
                self._begun, data = b"", self._begun + data
                if len(data) < len(self._magic):
                    self._begun = data
                    return
                if not data.startswith(self._magic):
                    if not self._streams:
                        raise _corrupt(self._name, "it does not begin like one")
                    self._over = True
                    return
                self._engine = self._new_engine()
            data = self._unpack(self._engine, data)

    def finish(self) -> int:
        if self._engine is not None or not self._streams:
            raise _corrupt(self._name, "it ends too early")
        return self._writer.finish()

    def _unpack(self, engine: _Engine, data: bytes) -> bytes:
        """Feed one stream; returns the bytes behind its end."""
        while True:
            try:
                unpacked = engine.decompress(data, _CHUNK)
            except (OSError, EOFError, ValueError) as error:
                raise _corrupt(self._name, str(error)) from None
            self._writer.write(unpacked)
            if engine.eof:
                self._engine = None
                self._streams += 1
                return engine.unused_data
            if engine.needs_input:
                return b""
            data = b""


class _IndexedBzip2:
    """The module indexed_bzip2: it decodes on all cores, but jumps about in the file, so it starts at the end."""

    def __init__(self, writer: SparseWriter, name: str, source: Path) -> None:
        self._writer, self._name, self._source = writer, name, source

    def write(self, data: bytes) -> None:
        """The data is in the source file too."""

    def finish(self) -> int:
        import indexed_bzip2

        with indexed_bzip2.open(str(self._source), parallelization=len(os.sched_getaffinity(0))) as file:
            while chunk := self._read(file):
                self._writer.write(chunk)
        if not self._writer.written:
            raise _corrupt(self._name, "it is empty")
        return self._writer.finish()

    def _read(self, file: IO[bytes]) -> bytes:
        try:
            return file.read(_CHUNK)
        except (RuntimeError, ValueError, OSError) as error:  # its C++ exceptions arrive as these
            raise _corrupt(self._name, str(error)) from None


class _Lbzip2:
    """lbzip2 as a filter: we write its stdin, a thread of ours takes its stdout to the disk."""

    def __init__(self, process: Popen[bytes], writer: SparseWriter, name: str, prose: IO[bytes]) -> None:
        self._process, self._writer, self._name, self._prose = process, writer, name, prose
        self._failure: BakeError | OSError | None = None
        self._over = False
        self._thread = threading.Thread(target=self._drain, name="lbzip2 output", daemon=True)
        self._thread.start()

    def write(self, data: bytes) -> None:
        assert self._process.stdin is not None
        if self._over:
            return
        try:
            self._process.stdin.write(data)
        except BrokenPipeError:
            self.finish()  # raises what made it stop, unless it found garbage behind a complete stream
            self._over = True

    def finish(self) -> int:
        assert self._process.stdin is not None
        try:
            self._process.stdin.close()
        except BrokenPipeError:
            pass
        self._thread.join()
        status = self._process.wait()
        if self._failure is not None:
            raise self._failure
        if status:
            self._prose.seek(0)
            said = self._prose.read(2000).decode("utf-8", "backslashreplace").strip()
            if status < 0:
                raise CommandFailed(["lbzip2", "-d", "-c"], status, said)
            raise _corrupt(self._name, said)
        return self._writer.finish()

    def abandon(self) -> None:
        """Stop at once."""
        self._process.kill()
        self._thread.join()

    def _drain(self) -> None:
        assert self._process.stdout is not None
        buffer = memoryview(bytearray(_CHUNK))
        try:
            while count := self._process.stdout.readinto(buffer):  # type: ignore[attr-defined]
                self._writer.write(buffer[:count])
        except (BakeError, OSError) as failure:
            self._failure = failure
            self._process.kill()


@contextmanager
def _lbzip2(writer: SparseWriter, name: str) -> Iterator[_Lbzip2]:
    with (
        tempfile.TemporaryFile() as prose,
        spawn(["lbzip2", "-d", "-c"], stdin=PIPE, stdout=PIPE, stderr=prose, bounds=_BOUNDS) as process,
    ):
        decoder = _Lbzip2(process, writer, name, prose)
        try:
            yield decoder
        finally:
            decoder.abandon()


def _has_indexed_bzip2() -> bool:
    return importlib.util.find_spec("indexed_bzip2") is not None


def _corrupt(name: str, reason: str) -> ImageError:
    return ImageError(f"{name} is not an intact compressed file: {reason}.")
