"""What an ELF file says about itself: its machine, its interpreter, the libraries it needs and where it looks.

Read from the program headers alone, as the kernel and the dynamic linker do, so that stripped files tell as much:
pyelftools is given a file whose section headers are hidden. Layout: elf(5). The file is not trusted: a table that lies
outside of it, or makes no sense, is left out.
"""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, TYPE_CHECKING, cast

from baker.erofs import Unsupported
from baker.model import Arch

if TYPE_CHECKING:
    from elftools.elf.dynamic import DynamicSegment
    from elftools.elf.elffile import ELFFile
    from elftools.elf.segments import Segment

_MAGIC = b"\x7fELF"
_HEADER_SIZE, _MACHINE_END = 64, 20
_MAX_HEADERS, _MAX_NAME = 128, 4096
_MAX_TAGS = 1 << 14
_STEP = 1 << 16  # bytes that are read ahead: each reading begins at the start of the file
_MAX_READ = 1 << 30
_MACHINES = {62: Arch.X86_64, 183: Arch.ARM64}


@dataclass(frozen=True)
class Elf:
    """An ELF file. `arch` is the name of its machine; one that Flatcar does not run on is `machine NUMBER`."""

    arch: str
    interpreter: str
    """The dynamic linker that a program asks for; "" for a static one and for a library."""
    needed: tuple[str, ...]
    """Names of the libraries that must be found when it starts."""
    soname: str = ""
    """The name under which a library satisfies others."""
    rpath: tuple[str, ...] = ()
    """Folders to look for libraries in (DT_RPATH), as they are written; they count for what it loads, too."""
    runpath: tuple[str, ...] = ()
    """The same for itself alone (DT_RUNPATH); then `rpath` does not count."""
    dynamic: bool = False
    """Whether there is something for a dynamic linker to do."""

    @property
    def is_static(self) -> bool:
        return not self.interpreter and not self.needed


def read_elf(read: Callable[[int], bytes]) -> Elf | None:
    """Read a file of which `read(limit)` gives the first `limit` bytes; None when it is no ELF file of 64 bits
    (nothing else runs on Flatcar).

    Raises Unsupported when what is wanted lies further behind than we read.
    """
    arch = read_machine(read)
    if arch is None:
        return None
    from elftools.common.exceptions import ELFError
    from elftools.elf.elffile import ELFFile

    stream = _Prefix(read)
    interpreter = ""
    dynamic: DynamicSegment | None = None
    found: dict[str, list[str]] = {}
    try:
        file = ELFFile(cast(IO[bytes], stream))
        for kind, segment in _segments(file):
            if kind == "PT_INTERP":
                stream.seek(segment["p_offset"])
                interpreter = _text(stream.read(_MAX_NAME))
            else:
                dynamic = cast("DynamicSegment", segment)
        if dynamic is not None:
            for name, value in _tags(dynamic, stream):
                found.setdefault(name, []).append(value)
    except Unsupported:
        raise
    except (ELFError, ValueError, OverflowError, LookupError, AttributeError, TypeError, AssertionError):
        # What the library says to nonsense. What was found before it counts, as for the kernel.
        pass
    paths = {
        name: tuple(part for text in found.get(name, ()) for part in text.split(":") if part)
        for name in ("DT_RPATH", "DT_RUNPATH")
    }
    return Elf(
        arch, interpreter, tuple(filter(None, found.get("DT_NEEDED", ()))), next(iter(found.get("DT_SONAME", ())), ""),
        paths["DT_RPATH"], paths["DT_RUNPATH"], dynamic is not None,
    )  # fmt: skip


def read_machine(read: Callable[[int], bytes]) -> str | None:
    """The machine alone, as in `Elf.arch`, of a file of which `read(limit)` gives the first `limit` bytes.

    It stands in the first bytes, while the rest of an Elf can lie at the end of a large file. None as for `read_elf`.
    """
    head = read(_HEADER_SIZE)
    if len(head) < _HEADER_SIZE or head[:4] != _MAGIC or head[4] != 2 or head[5] != 1:
        return None
    machine = _machine(head)
    return str(_MACHINES.get(machine, f"machine {machine}"))


def header_arch(header: bytes) -> Arch | None:
    """The architecture that the first 20 bytes of an ELF file name, of 32 bits or 64; None for others."""
    if len(header) < _MACHINE_END or header[:4] != _MAGIC:
        return None
    return _MACHINES.get(_machine(header))


def _machine(header: bytes) -> int:
    return int.from_bytes(header[_MACHINE_END - 2 : _MACHINE_END], "little")


class _Prefix(io.RawIOBase):
    """A file that can only be read from its start, as one that can be looked into; its section headers are hidden."""

    def __init__(self, read: Callable[[int], bytes]) -> None:
        self._read = read
        self._data = b""
        self._asked = self._at = 0

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        if whence == io.SEEK_END:
            offset += _MAX_READ  # nobody knows the size; the library wants it for sections only
        elif whence == io.SEEK_CUR:
            offset += self._at
        self._at = max(0, offset)
        return self._at

    def tell(self) -> int:
        return self._at

    def read(self, size: int = -1) -> bytes:
        end = self._at + (size if size >= 0 else _MAX_NAME)
        if end > _MAX_READ:
            raise Unsupported("the file is too large to be looked into")
        if end > self._asked:
            self._asked = end + _STEP
            data = bytearray(self._read(self._asked))
            data[40:48] = bytes(8)  # e_shoff
            data[60:64] = bytes(4)  # e_shnum, e_shstrndx
            self._data = bytes(data)
        part = self._data[self._at : end]
        self._at += len(part)
        return part


def reader(file: Path) -> Callable[[int], bytes]:
    """What reads the first bytes of a file of this machine, for `read_elf`; a link is not followed, and what is no
    regular file is empty."""

    def read(limit: int) -> bytes:
        fd = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
        with open(fd, "rb") as opened:
            if not stat.S_ISREG(os.fstat(opened.fileno()).st_mode):
                return b""
            return opened.read(limit)

    return read


def _segments(file: ELFFile) -> Iterator[tuple[str, Segment]]:
    for number in range(min(file.num_segments(), _MAX_HEADERS)):
        # Of some kinds the library would read more at once than their header.
        kind = file._get_segment_header(number)["p_type"]
        if kind in ("PT_INTERP", "PT_DYNAMIC"):
            yield kind, file.get_segment(number)


def _tags(dynamic: DynamicSegment, stream: _Prefix) -> Iterator[tuple[str, str]]:
    """The texts among the entries of the dynamic section, each with its name."""
    wanted = ("DT_NEEDED", "DT_SONAME", "DT_RPATH", "DT_RUNPATH")
    # `iter_tags` would read each text to its end, however far that is.
    tags = list(islice(dynamic._iter_tags(), _MAX_TAGS))
    _, table = dynamic.get_table_offset("DT_STRTAB")
    if table is None:
        return
    for tag in tags:
        if tag.d_tag in wanted:
            stream.seek(table + tag.d_val)
            yield tag.d_tag, _text(stream.read(_MAX_NAME))


def _text(data: bytes) -> str:
    return data.partition(b"\0")[0].decode("utf-8", "backslashreplace")
