"""What a user can choose for machines without a disk."""

from __future__ import annotations

import re
from dataclasses import dataclass

from baker.errors import UsageError

_RAM = re.compile(r"([0-9]{1,9}) ?(MiB|M|GiB|G)?", re.IGNORECASE)
_SERIAL = re.compile(r"tty[A-Za-z]{1,8}[0-9]{1,3}(,[0-9]{3,7}[noe]?[78]?)?")


@dataclass(frozen=True)
class DisklessOptions:
    """`ram` is the memory in bytes that machines have, 0 for not known. `serial` is the console that replaces the
    vendor's serial one: the value of the kernel's `console=`, `none`, or "" for the vendor's.
    """

    route: str = "auto"
    split: bool = False
    ram: int = 0
    serial: str = ""


def parse_ram(word: str | None) -> int:
    """An amount of memory such as 2G, 2048M or 2 GiB in bytes; a bare number is MiB. None is 0; UsageError else."""
    if word is None:
        return 0
    match = _RAM.fullmatch(word.strip())
    if not match or not int(match[1]):
        raise UsageError(f"--ram {word} is no amount of memory.", "Write for example --ram 4G or --ram 3072M.")
    return int(match[1]) << (30 if (match[2] or "M").upper().startswith("G") else 20)


def parse_serial(word: str | None) -> str:
    """A serial console such as ttyS1,115200n8, or none."""
    if word and word != "none" and not _SERIAL.fullmatch(word):
        raise UsageError(
            f"--serial {word} is no serial console.", "Write for example --serial ttyS1,115200n8, or --serial none."
        )
    return word or ""
