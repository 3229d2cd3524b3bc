"""Sparse files: write without zeros, copy only data extents, hash only data extents.

A disk image is nine parts zeros, so every whole-file operation here asks the filesystem where the data is
(SEEK_DATA, SEEK_HOLE of lseek(2)) and leaves holes alone.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path

from baker import stopping

BLOCK = 64 * 1024
_ZERO = bytes(BLOCK)
_FICLONE = 0x40049409  # linux/fs.h: _IOW(0x94, 9, int)
_PUNCH_HOLE_KEEP_SIZE = 0x02 | 0x01  # linux/falloc.h


class SparseWriter:
    """Writes a stream of bytes to a file and leaves a hole for every aligned 64 KiB block of zeros.

    The file must be new or empty. `written` counts the bytes seen; call `finish()` to give it its full size.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self.written = 0

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Append `data`; any length, though multiples of 64 KiB are fastest."""
        view = memoryview(data)
        position = 0
        # Runs of data are written with one call; the zero test compares whole bytes slices, which is a memcmp.
        run_start: int | None = None
        while position < len(view):
            step = min(BLOCK - (self.written + position) % BLOCK, len(view) - position)
            zero = (
                view[position : position + step] == _ZERO[:step]
                if step < BLOCK
                else bytes(view[position : position + step]) == _ZERO
            )
            if zero and run_start is not None:
                self._put(view[run_start:position], self.written + run_start)
                run_start = None
            elif not zero and run_start is None:
                run_start = position
            position += step
        if run_start is not None:
            self._put(view[run_start:], self.written + run_start)
        self.written += len(view)

    def _put(self, view: memoryview, offset: int) -> None:
        while view:
            count = os.pwrite(self._fd, view, offset)
            view, offset = view[count:], offset + count

    def finish(self) -> int:
        """Set the file's length to all that was written; returns it."""
        os.ftruncate(self._fd, self.written)
        return self.written


def data_extents(fd: int, start: int = 0, end: int | None = None) -> Iterator[tuple[int, int]]:
    """Yield (offset, length) of every stretch of a file that holds data, within [start, end)."""
    stop = os.fstat(fd).st_size if end is None else end
    position = start
    while position < stop:
        try:
            begin = os.lseek(fd, position, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return
            raise
        if begin >= stop:
            return
        position = min(os.lseek(fd, begin, os.SEEK_HOLE), stop)
        yield begin, position - begin


def copy_range(source: int, target: int, source_offset: int, target_offset: int, length: int) -> None:
    """Copy bytes between two open files inside the kernel where it can; raises OSError on a short source."""
    while length:
        stopping.check()
        try:
            count = os.copy_file_range(source, target, min(length, 1 << 30), source_offset, target_offset)
        except OSError as error:
            if error.errno not in (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
                raise
            chunk = os.pread(source, min(length, 1 << 20), source_offset)
            count = os.pwrite(target, chunk, target_offset) if chunk else 0
        if count == 0:
            raise OSError(errno.EIO, "the source file ended early")
        length, source_offset, target_offset = length - count, source_offset + count, target_offset + count


def copy_extents(source: int, target: int, source_offset: int, target_offset: int, length: int) -> int:
    """Copy only the data within a range; the target range must already read as zeros. Returns bytes copied."""
    copied = 0
    for begin, size in data_extents(source, source_offset, source_offset + length):
        copy_range(source, target, begin, target_offset + begin - source_offset, size)
        copied += size
    return copied


def punch(fd: int, offset: int, length: int) -> None:
    """Make a range of a file read as zeros and take no space; the file keeps its size."""
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    result = libc.fallocate(
        ctypes.c_int(fd), ctypes.c_int(_PUNCH_HOLE_KEEP_SIZE), ctypes.c_int64(offset), ctypes.c_int64(length)
    )
    if result == 0:
        return
    if ctypes.get_errno() not in (errno.EOPNOTSUPP, errno.ENOSYS):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    for begin, size in list(data_extents(fd, offset, offset + length)):
        for position in range(begin, begin + size, BLOCK):
            os.pwrite(fd, _ZERO[: min(BLOCK, begin + size - position)], position)


def clone(source: Path, target: Path) -> None:
    """Copy a whole file to a new one: a reflink where the filesystem can, else only its data extents."""
    with source.open("rb") as old, target.open("xb") as new:
        try:
            fcntl.ioctl(new.fileno(), _FICLONE, old.fileno())
            return
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EXDEV, errno.EINVAL, errno.ENOTTY, errno.ENOSYS):
                raise
        size = os.fstat(old.fileno()).st_size
        os.ftruncate(new.fileno(), size)
        copy_extents(old.fileno(), new.fileno(), 0, 0, size)


def content_digest(path: Path) -> str:
    """A sha256 over a file's content that costs only its data: equal for equal bytes however sparse the file is.

    It hashes the size, then every non-zero aligned 64 KiB block with its offset.
    """
    digest = hashlib.sha256()
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        digest.update(b"size %d\n" % size)
        done = 0
        for begin, length in data_extents(file.fileno()):
            # Extents are not always multiples of our block, so round outwards; never hash a block twice.
            position = max(begin - begin % BLOCK, done)
            end = min(size, -(-(begin + length) // BLOCK) * BLOCK)
            while position < end:
                stopping.check()
                chunk = os.pread(file.fileno(), min(1 << 20, end - position), position)
                for at in range(0, len(chunk), BLOCK):
                    block = chunk[at : at + BLOCK]
                    if block != _ZERO[: len(block)]:
                        digest.update(b"@%d\n" % (position + at))
                        digest.update(block)
                position += len(chunk)
            done = max(done, end)
    return digest.hexdigest()


def file_sha256(path: Path) -> str:
    """The ordinary sha256 of a file; holes are hashed from memory, not read."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        _hash_range(digest, file.fileno(), 0, os.fstat(file.fileno()).st_size)
    return digest.hexdigest()


class LeadingDigest:
    """The sha256 of a file that is still to be made, of which the first `length` bytes are those of `source`.

    A thread hashes them at once; a digest of gigabytes of zeros takes seconds, and cannot be split.
    """

    def __init__(self, source: Path, length: int) -> None:
        self._source, self._length = source, length
        self._digest = hashlib.sha256()
        self._failure: OSError | None = None
        self._thread = threading.Thread(target=self._lead, name="leading digest", daemon=True)
        self._thread.start()

    def complete(self, file: Path) -> str:
        """The sha256 of `file`, now that it is finished. If it does not begin as it should, the digest is not its own,
        so a check of it fails. May be called for several files. Raises OSError."""
        self._thread.join()
        if self._failure is not None:
            raise self._failure
        digest = self._digest.copy()
        with file.open("rb") as rest:
            _hash_range(digest, rest.fileno(), self._length, os.fstat(rest.fileno()).st_size)
        return digest.hexdigest()

    def _lead(self) -> None:
        try:
            with self._source.open("rb") as file:
                _hash_range(self._digest, file.fileno(), 0, self._length)
        except OSError as failure:
            self._failure = failure


def _hash_range(digest: hashlib._Hash, fd: int, start: int, end: int) -> None:
    position = start
    for begin, length in data_extents(fd, start, end):
        _hash_zeros(digest, begin - position)
        position = begin
        while position < begin + length:
            stopping.check()
            chunk = os.pread(fd, min(1 << 20, begin + length - position), position)
            digest.update(chunk)
            position += len(chunk)
    _hash_zeros(digest, end - position)


def _hash_zeros(digest: hashlib._Hash, count: int) -> None:
    zeros = bytes(min(count, 1 << 20))
    while count > 0:
        stopping.check()
        digest.update(zeros[: min(count, len(zeros))])
        count -= len(zeros)
