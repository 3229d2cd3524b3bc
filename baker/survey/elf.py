"""What an ELF file says about itself: its machine, its interpreter, and the libraries it needs.

Read from the program headers alone, as the kernel and the dynamic linker do, so that stripped files tell as much.
Layout: elf(5). The file is not trusted: a table that lies outside of it, or makes no sense, is left out.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from baker.erofs import Unsupported
from baker.model import Arch

_MAGIC = b"\x7fELF"
_HEADER_SIZE = 64
_LOAD, _DYNAMIC, _INTERP = 1, 2, 3
_NEEDED, _STRTAB = 1, 5
_MAX_HEADERS, _MAX_TABLE, _MAX_NAME = 128, 1 << 20, 4096
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

    @property
    def is_static(self) -> bool:
        return not self.interpreter and not self.needed


@dataclass(frozen=True)
class _Segment:
    kind: int
    offset: int
    address: int
    size: int


def read_elf(read: Callable[[int], bytes]) -> Elf | None:
    """Read a file of which `read(limit)` gives the first `limit` bytes; None when it is no ELF file of 64 bits
    (nothing else runs on Flatcar).

    Raises Unsupported when what is wanted lies further behind than we read.
    """
    head = read(_HEADER_SIZE)
    if len(head) < _HEADER_SIZE or head[:4] != _MAGIC or head[4] != 2 or head[5] != 1:
        return None
    machine = struct.unpack_from("<H", head, 18)[0]
    arch = str(_MACHINES.get(machine, f"machine {machine}"))
    segments = list(_segments(head, read))
    wanted = [segment for segment in segments if segment.kind in (_DYNAMIC, _INTERP)]
    if not wanted:
        return Elf(arch, "", ())
    data = read(_reachable(max(segment.offset + min(segment.size, _MAX_TABLE) for segment in wanted)))
    interpreter = ""
    needed: tuple[str, ...] = ()
    for segment in wanted:
        part = data[segment.offset : segment.offset + min(segment.size, _MAX_TABLE)]
        if segment.kind == _INTERP:
            interpreter = _text(part, 0)
        else:
            needed = tuple(_libraries(part, segments, data, read))
    return Elf(arch, interpreter, needed)


def _reachable(end: int) -> int:
    if end > _MAX_READ:
        raise Unsupported("the file is too large to be looked into")
    return end


def _segments(head: bytes, read: Callable[[int], bytes]) -> Iterator[_Segment]:
    start = struct.unpack_from("<Q", head, 32)[0]
    step, count = struct.unpack_from("<HH", head, 54)
    count = min(count, _MAX_HEADERS)
    if step < 56 or start > _MAX_TABLE:
        return
    table = read(start + step * count)
    for at in range(start, len(table) - 55, step):
        kind, _, offset, address, _, size = struct.unpack_from("<IIQQQQ", table, at)
        yield _Segment(kind, offset, address, size)


def _libraries(dynamic: bytes, segments: list[_Segment], data: bytes, read: Callable[[int], bytes]) -> Iterator[str]:
    entries = [struct.unpack_from("<QQ", dynamic, at) for at in range(0, len(dynamic) - 15, 16)]
    end = next((number for number, (tag, _) in enumerate(entries) if not tag), len(entries))
    names = [value for tag, value in entries[:end] if tag == _NEEDED]
    table = next((value for tag, value in entries[:end] if tag == _STRTAB), None)
    if table is None or not names:
        return
    start = _file_offset(table, segments)
    if start is None or max(names) > _MAX_TABLE:
        return
    if start + max(names) + _MAX_NAME > len(data):
        data = read(_reachable(start + max(names) + _MAX_NAME))
    for name in names:
        if text := _text(data, start + name):
            yield text


def _file_offset(address: int, segments: list[_Segment]) -> int | None:
    for segment in segments:
        if segment.kind == _LOAD and segment.address <= address < segment.address + segment.size:
            return address - segment.address + segment.offset
    return None


def _text(data: bytes, at: int) -> str:
    return data[at : at + _MAX_NAME].partition(b"\0")[0].decode("utf-8", "backslashreplace")
