"""The texts about a machine without a disk: scripts that boot it, a README, and the menu of an ISO."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from baker.diskless.routes import DOCUMENTED
from baker.model import Arch
from baker.templates import render
from baker.vendor import Diskless, ExtraFile, Vendor

MENU = "iso.grub.j2"
_HOW = {
    "oem": "The release's cpio is as it was signed; the extensions are in a second one behind it, copied to /oem.",
    "usr": "The extensions are in /usr itself, where the release's own are; the cpio is not the signed one any more.",
}


@dataclass(frozen=True)
class LiveFacts:
    """What texts may say. `initrds` are names or paths as the text's reader sees them, `memory` is in bytes."""

    vendor: Vendor
    diskless: Diskless
    arch: Arch
    version: str
    sysexts: tuple[str, ...]
    initrds: tuple[str, ...]
    args: tuple[str, ...]
    memory: int
    route: str

    def text(self, extra: ExtraFile) -> str:
        """A file of the vendor, rendered; UsageError for a template that is wrong."""
        return self.render(extra.template)

    def render(self, template: str) -> str:
        """A template of the vendor's folder, filled in."""
        return render(self.vendor.folder / "templates", template, self._values())

    def _values(self) -> Mapping[str, object]:
        serial = next((arg for arg in self.args if arg.startswith("console=ttyS")), "")
        return {
            "image": self.vendor.image, "kernel": self.diskless.kernel, "initrds": list(self.initrds),
            "args": list(self.args), "version": self.version, "arch": self.arch.value,
            "sysexts": ", ".join(self.sysexts), "memory_mib": self.memory >> 20,
            "documented_mib": DOCUMENTED[self.diskless.format] >> 20, "how": _HOW[self.route],
            "files": {item.template: item.name for item in self.vendor.files},
            "serial": _serial_port(serial.partition("=")[2]),
        }  # fmt: skip


def kernel_arguments(diskless: Diskless, arch: Arch, serial: str, more: Sequence[str]) -> tuple[str, ...]:
    """The kernel's arguments: consoles, the vendor's, the user's. The last console is the system's own.

    `serial` replaces the vendor's serial console: a value of `console=`, `none`, or "" to leave it.
    """
    consoles = list(dict(diskless.consoles).get(arch, ()))
    if serial:
        consoles = [arg for arg in consoles if not re.fullmatch("console=tty[A-Za-z].*", arg)]
        consoles += [] if serial == "none" else [f"console={serial}"]
    return (*consoles, *diskless.kernel_args, *more)


def _serial_port(console: str) -> Mapping[str, str]:
    """GRUB's number and speed of a serial port of a PC, as ttyS1,115200n8 names it; empty for another one."""
    port, _, mode = console.partition(",")
    number = port.removeprefix("ttyS")
    if not number.isdecimal() or int(number) > 3:
        return {}
    speed = re.match("[0-9]+", mode)
    return {"unit": number, "speed": speed[0] if speed else "9600"}
