"""What platforms demand of an image: checked when a bake is planned, and again on the finished file.

The demands of one platform are data, the [[rule]]s of its vendor file. Here are those that belong to a disk format.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from baker.console import Console
from baker.errors import ImageError
from baker.layout import expected_disk_size
from baker.vendor import Rule, Vendor, numbers

_GIB = 1 << 30
_VHD_FOOTER = 512
_VHD_FORMAT = "Virtual Hard Disk Image Format Specification 1.0"

_VHD = Rule(
    name="largest-vhd", measure="disk", at_most=2040 * _GIB, says="a VHD holds at most 2040 GiB",
    source=_VHD_FORMAT,
)  # fmt: skip


@dataclass(frozen=True)
class Breach:
    """A demand of the platform that an image does not meet."""

    rule: Rule
    vendor: str
    found: str
    """What the image has instead, with its unit."""

    @property
    def is_error(self) -> bool:
        return self.rule.severity == "error"

    def __str__(self) -> str:
        return f"{self.vendor}: {self.rule.says}, and this is {self.found} ({self.rule.name}; {self.rule.source})."


def expected_size(vendor: Vendor, version: str) -> int:
    """The virtual size in bytes that an image of this release will have, if its ROOT is not larger already."""
    return final_size(vendor, expected_disk_size(vendor.layout, numbers(version)[0]))


def final_size(vendor: Vendor, size: int) -> int:
    """The virtual size in bytes that a disk of `size` gets for this vendor; it never shrinks."""
    size = max(size, vendor.disk_size)
    return -(-size // vendor.disk_align) * vendor.disk_align if vendor.disk_align else size


def check_platform(vendor: Vendor, virtual_size: int, file: Path | None = None) -> list[Breach]:
    """The demands that an image does not meet.

    `virtual_size` is the disk's in bytes, `file` the finished file that is handed to the platform; None while there
    is none.
    """
    breaches = []
    for rule in (*vendor.rules, *_format_rules(vendor, virtual_size)):
        if rule.measure == "compression":
            found = None if vendor.bundle or vendor.compress in rule.one_of else vendor.compress or "not compressed"
        elif rule.measure == "disk":
            found = _size_breach(rule, virtual_size)
        else:
            found = _size_breach(rule, file.stat().st_size) if file else None
        if found:
            breaches.append(Breach(rule, vendor.name, found))
    return breaches


def enforce(breaches: Iterable[Breach], console: Console) -> None:
    """Say the warnings; ImageError for the first error."""
    for breach in breaches:
        if breach.is_error:
            raise ImageError(str(breach))
        console.warn(str(breach))


def _format_rules(vendor: Vendor, virtual_size: int) -> list[Rule]:
    """The rules of the disk's format."""
    if vendor.disk.format != "vpc":
        return []
    rules = [_VHD]
    if dict(vendor.disk.options).get("subformat") == "fixed" and vendor.result == vendor.image:
        size = virtual_size + _VHD_FOOTER
        says = f"a fixed VHD is the disk and a footer of {_VHD_FOOTER} bytes"
        rules.append(Rule("fixed-vhd", "file", says, _VHD_FORMAT, at_least=size, at_most=size))
    return rules


def _size_breach(rule: Rule, size: int) -> str | None:
    """What is wrong with a size, None if nothing is."""
    fits = size >= rule.at_least and (not rule.at_most or size <= rule.at_most)
    if fits and not (rule.multiple and size % rule.multiple):
        return None
    return f"{size / _GIB:.2f} GiB ({size} bytes)"
