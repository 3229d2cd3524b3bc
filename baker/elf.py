"""ELF files: for which machine a program is, and whether it needs a dynamic linker. Layout: elf(5)."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import BinaryIO

from baker.model import Arch

_MACHINES = {62: Arch.X86_64, 183: Arch.ARM64}
_BPF = 247  # programs for the kernel's virtual machine, the same everywhere
_EXECUTABLE, _SHARED = 2, 3
_PT_INTERP = 3
_MOST_SEGMENTS = 512


@dataclass(frozen=True)
class Elf:
    """What the headers of an ELF file say."""

    machine: int
    """e_machine."""
    kind: int
    """e_type."""
    interpreter: bool
    """Whether it asks for a dynamic linker."""

    @property
    def arch(self) -> Arch | None:
        """The architecture; None for one that Flatcar does not exist for."""
        return _MACHINES.get(self.machine)

    @property
    def runs(self) -> bool:
        """Whether it is a program or library of some machine, and no object file and nothing for the kernel."""
        return self.kind in (_EXECUTABLE, _SHARED) and self.machine != _BPF


def read_elf(file: BinaryIO) -> Elf | None:
    """The headers of an open file; None for what is no ELF file, or is cut short."""
    head = file.read(64)
    if len(head) < 52 or head[:4] != b"\x7fELF" or head[4] not in (1, 2) or head[5] not in (1, 2):
        return None
    order, wide = "<" if head[5] == 1 else ">", head[4] == 2
    kind, machine = struct.unpack_from(f"{order}HH", head, 16)
    if wide and len(head) < 64:
        return None
    offset = struct.unpack_from(f"{order}{'Q' if wide else 'I'}", head, 32 if wide else 28)[0]
    size, count = struct.unpack_from(f"{order}HH", head, 54 if wide else 42)
    interpreter = False
    if offset and size >= 4:
        try:
            file.seek(offset)
            table = file.read(size * min(count, _MOST_SEGMENTS))
        except (OSError, OverflowError, ValueError):  # an offset no file can have
            return None
        kinds = (struct.unpack_from(f"{order}I", table, at)[0] for at in range(0, len(table) - 3, size))
        interpreter = _PT_INTERP in kinds
    return Elf(machine, kind, interpreter)
