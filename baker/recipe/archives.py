"""Unpacking what upstream sends: tar with any compression, zip, Debian packages, and files that are no archive.

Python reads the tables of contents and `landing.Landing` judges every single entry before it is written. GNU tar and
bsdtar would leave the judging until after the fact, each has rules of its own, and the decompressor sets the pace
anyway (700 MB of tar.zst: 0.8 s, GNU tar 0.9 s). Decompressors other than gzip's run as programs within `run.Bounds`:
on another core, without write access, and with a limit on memory.
"""

from __future__ import annotations

import calendar
import fcntl
import gzip
import io
import lzma
import os
import stat
import struct
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, BinaryIO, Protocol, cast

from baker import stopping
from baker.errors import BakeError, ImageError
from baker.recipe.landing import Landing, Limits
from baker.run import Bounds, CommandFailed, find, spawn

_CHUNK = 64 << 10  # at 1 MiB each chunk costs new pages, and unpacking takes twice as long
_LARGEST_HEADER = 64 << 10
"""Bytes: tarfile reads extended headers into memory, and their size is the archive's word."""
_LONGEST_LINK = 4096
_BOUNDS = Bounds(memory=16 << 30, cpu_seconds=3600)
_MAGIC = (
    (b"\xfd7zXZ\0", ("xz", "--decompress", "--stdout", "--threads=0")),
    # Windows of up to 2 GiB are unpacked only when asked for, and `zstd --ultra --long=31` is in use upstream.
    (b"\x28\xb5\x2f\xfd", ("zstd", "--decompress", "--stdout", "--quiet", "--long=31")),
    (b"BZh", ("lbzip2", "--decompress", "--stdout")),
)
_FAULTS = (
    tarfile.TarError, zipfile.BadZipFile, EOFError, OSError, ValueError, OverflowError, RuntimeError,
    struct.error, zlib.error, lzma.LZMAError,
)  # fmt: skip
"""What the standard library raises over damaged archives."""

DEFAULT_LIMITS = Limits()


class Digest(Protocol):
    """What hashlib makes."""

    def update(self, data: bytes, /) -> None: ...


def extract(
    archive: Path, kind: str, target: Path, *, strip: int = 0, name: str = "", limits: Limits = DEFAULT_LIMITS
) -> None:
    """Unpack `archive` into the folder `target`, which must be empty or not exist.

    `kind`: `tar` (compressed or not), `zip`, `deb` (its files, not its scripts), or `file`, which is copied as `name`.
    `strip`: leading folders to drop from every name. `name` stands for the archive in messages; the cache knows files
    by digest only. Files are 0755 or 0644 afterwards and keep their times, folders are 0755, links stay inside.

    Raises ImageError naming the archive and the entry for whatever is damaged, does not fit or tries to get out;
    then `target` holds a part of the archive and is the caller's to remove.
    """
    shown = name or archive.name
    unpack = {"tar": _tar, "zip": _zip, "deb": _deb, "file": _file}[kind]
    landing = Landing(target, shown, strip, limits.for_archive(archive.stat().st_size), limits.entries)
    with naming_damage(shown, kind), archive.open("rb") as file:
        unpack(file, landing, shown)
        landing.finish()


@contextmanager
def naming_damage(name: str, kind: str) -> Iterator[None]:
    """Turn what Python raises over a damaged archive into an ImageError that names it."""
    try:
        yield
    except BakeError:
        raise
    except _FAULTS as error:
        raise ImageError(
            f"{name} is no intact {kind} archive: {error}.", "Is it the right file, and of the kind it should be?"
        ) from error


def _file(file: BinaryIO, landing: Landing, name: str) -> None:
    status = os.fstat(file.fileno())
    landing.file(name, status.st_mode & 0o777, status.st_mtime, _chunks(file, status.st_size))


def _tar(file: BinaryIO, landing: Landing, name: str) -> None:
    for entry, chunks in tar_entries(file, name):
        _tar_entry(entry, chunks, landing)


def tar_entries(
    file: BinaryIO, name: str, digest: Digest | None = None
) -> Iterator[tuple[tarfile.TarInfo, Iterator[bytes]]]:
    """The entries of a tar archive, compressed or not, each with what a regular file holds.

    That is read as it is asked for, before the next entry. `digest` is fed all bytes without their compression.
    Raises ImageError, naming the archive by `name`, and what `naming_damage` is for.
    """
    with _unpacked(file, name) as plain:
        forward = _Forward(plain, digest)
        with tarfile.TarFile(fileobj=cast(IO[bytes], forward), mode="r") as tar:
            while (entry := tar.next()) is not None:
                stopping.check()
                yield entry, _content(tar, entry, forward)
                tar.members = []  # type: ignore[attr-defined] # it would keep every header
        # tarfile takes a damaged header for the end, which in truth is a block of zeros.
        if forward.header.strip(b"\0"):
            raise ImageError(f"{name} is a damaged tar archive.")
        # The checksum of the compression stands behind the archive's end.
        while forward.read(_LARGEST_HEADER):
            pass


def _content(tar: tarfile.TarFile, entry: tarfile.TarInfo, forward: _Forward) -> Iterator[bytes]:
    if entry.issparse():
        holey = tar.extractfile(entry)
        assert holey is not None
        yield from _chunks(holey, entry.size, _LARGEST_HEADER)
    elif entry.isreg():
        forward.seek(entry.offset_data)
        yield from forward.chunks(entry.size)


def _tar_entry(entry: tarfile.TarInfo, chunks: Iterator[bytes], landing: Landing) -> None:
    if entry.isdir():
        landing.folder(entry.name)
    elif entry.issym():
        landing.symlink(entry.name, entry.linkname)
    elif entry.islnk():
        landing.hard_link(entry.name, entry.linkname)
    elif entry.isreg():
        landing.file(entry.name, entry.mode, entry.mtime, chunks)
    else:
        landing.special(entry.name)


def _deb(file: BinaryIO, landing: Landing, name: str) -> None:
    """A Debian package is an ar archive (deb(5)); its member data.tar.* holds the files."""
    if file.read(8) != b"!<arch>\n":
        raise ImageError(f"{name} is no Debian package.")
    while header := file.read(60):
        # ar(5): name 16, time 12, owner 6, group 6, mode 8, size 10, two bytes of magic; even offsets.
        if len(header) < 60 or header[58:] != b"`\n":
            raise ImageError(f"{name} is a damaged Debian package.")
        size = int(header[48:58])
        if header.startswith(b"data.tar"):
            with tempfile.TemporaryFile() as member:
                for chunk in _chunks(file, size):
                    member.write(chunk)
                member.seek(0)
                _tar(cast(BinaryIO, member), landing, name)
            return
        file.seek(size + size % 2, os.SEEK_CUR)
    raise ImageError(f"{name} is a Debian package without files.")


def _zip(file: BinaryIO, landing: Landing, name: str) -> None:
    with zipfile.ZipFile(file) as archive:
        for entry in archive.infolist():
            stopping.check()
            mode = entry.external_attr >> 16  # of Unix, where it was packed on one
            kind = stat.S_IFMT(mode)
            if entry.is_dir():
                landing.folder(entry.filename)
            elif kind == stat.S_IFLNK:
                with archive.open(entry) as content:
                    target = content.read(_LONGEST_LINK)
                landing.symlink(entry.filename, target.decode("utf-8", "surrogateescape"))
            elif kind in (0, stat.S_IFREG):
                with archive.open(entry) as content:
                    chunks = _chunks(content, entry.file_size)
                    landing.file(entry.filename, stat.S_IMODE(mode), _zip_time(entry), chunks)
            else:
                landing.special(entry.filename)


def _zip_time(entry: zipfile.ZipInfo) -> float:
    """A zip's times have no zone; read as UTC they are the same on every machine."""
    try:
        return calendar.timegm((*entry.date_time, 0, 0, 0))
    except ValueError:
        return 0.0


def _chunks(file: IO[bytes], size: int, most: int = _CHUNK) -> Iterator[bytes]:
    """Exactly `size` bytes of a file; EOFError when it has fewer."""
    while size:
        chunk = file.read(min(most, size))
        if not chunk:
            raise EOFError("it ends too early")
        size -= len(chunk)
        yield chunk


class _Forward(io.RawIOBase):
    """A stream for tarfile: it only goes forward, and it reads headers of a sane size only."""

    def __init__(self, stream: IO[bytes], digest: Digest | None = None) -> None:
        self._stream, self._digest = stream, digest
        self._position = 0
        self.header = b""
        """What was read last."""

    def tell(self) -> int:
        return self._position

    def seek(self, position: int, whence: int = os.SEEK_SET) -> int:
        if position < self._position or whence != os.SEEK_SET:
            raise tarfile.ReadError("it leads backwards")
        while self._position < position:
            if not self._take(min(_CHUNK, position - self._position)):
                raise tarfile.ReadError("it ends too early")
        return self._position

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= _LARGEST_HEADER:
            raise tarfile.ReadError("a header in it is too large")
        data = bytearray()
        while len(data) < size and (chunk := self._take(size - len(data))):
            data += chunk
        self.header = bytes(data)
        return self.header

    def chunks(self, size: int) -> Iterator[bytes]:
        """Exactly the next `size` bytes."""
        while size:
            chunk = self._take(min(_CHUNK, size))
            if not chunk:
                raise tarfile.ReadError("it ends too early")
            size -= len(chunk)
            yield chunk

    def _take(self, size: int) -> bytes:
        chunk = self._stream.read(size)
        self._position += len(chunk)
        if self._digest is not None:
            self._digest.update(chunk)
        return chunk


@contextmanager
def _unpacked(file: BinaryIO, name: str) -> Iterator[IO[bytes]]:
    """The bytes of a file without its compression, which its first bytes tell. Read it to its end."""
    start = file.read(6)
    file.seek(0)
    if start.startswith(b"\x1f\x8b"):
        with gzip.GzipFile(fileobj=file) as plain:  # zlib is twice as fast as the program gzip
            yield cast(IO[bytes], plain)
        return
    argv = next((argv for magic, argv in _MAGIC if start.startswith(magic)), None)
    if argv is None:
        yield file
        return
    if argv[0] == "lbzip2" and not find("lbzip2"):
        argv = ("bzip2", *argv[1:])
    os.lseek(file.fileno(), 0, os.SEEK_SET)  # Python has read ahead
    with (
        tempfile.TemporaryFile() as prose,
        spawn(argv, stdin=file, stderr=prose, bounds=_BOUNDS) as process,
    ):
        assert process.stdout is not None
        fcntl.fcntl(process.stdout, fcntl.F_SETPIPE_SZ, 1 << 20)
        try:
            yield process.stdout
        except tarfile.ReadError:
            # A broken compression looks like an early end; the program knows better.
            if process.stdout.read(1) or not process.wait():
                raise
        status = process.wait()
        if status:
            prose.seek(0)
            said = prose.read(2000).decode("utf-8", "backslashreplace").strip()
            if status < 0:
                raise CommandFailed(argv, status, said)
            raise ImageError(f"{name} is not an intact compressed file: {said}.")
