"""Vendors: who an image is for, as data. Read from `vendors/*.toml` by `vendor_files.py`."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from baker.errors import UsageError
from baker.model import Arch
from baker.schema import suggest

DISK_FORMATS = ("raw", "qcow2", "vpc", "vhdx", "vmdk", "vdi", "parallels")
BUNDLE_FORMATS = ("ova", "box", "tgz", "gce", "zip")
DISKLESS_FORMATS = ("pxe", "iso")
COMPRESSIONS = ("bz2", "gz", "zip", "zst")
"""The compressions around a finished image; each is also its suffix."""
MEASURES = ("disk", "file", "compression")


@dataclass(frozen=True)
class DiskFormat:
    """How the disk is encoded: qemu-img's format name, its `-o` options, and whether to compress inside the format."""

    format: str
    options: tuple[tuple[str, str], ...] = ()
    compress: bool = False


@dataclass(frozen=True)
class Console:
    """Where the machines of one architecture show what they do.

    `linux` replaces the release's choice of consoles (the kernel's `console=` and `earlycon=` arguments). With
    `serial_menu` GRUB's menu goes to the first serial port alone. `bios_only` leaves machines started by UEFI alone.
    """

    arch: Arch
    linux: str = ""
    serial_menu: bool = False
    bios_only: bool = False


@dataclass(frozen=True)
class ExtraFile:
    """A file beside the image or in a bundle: rendered from a template, or UEFI firmware (`code` or `vars`).

    `secure` asks for firmware that enforces Secure Boot. The name of a bundle's member may contain folders.
    """

    name: str
    template: str = ""
    firmware: str = ""
    mode: int = 0o644
    secure: bool = False


@dataclass(frozen=True)
class OemFile:
    """A further text in the OEM partition; `path` is relative to its root."""

    path: str
    content: str


@dataclass(frozen=True)
class Oem:
    """What goes into the OEM partition of a vendor.

    `id` is the value of the kernel argument flatcar.oem.id and `linux_append` the kernel arguments that the OEM's
    grub.cfg adds; `grub` has further lines of it in GRUB's own language.
    `sysext` is the X of oem-X.raw on the release server; "" where no release has one. `since` is the first release
    with it. `bare_before` says that older releases need none; without it, their vendor images hold files that exist
    nowhere else.
    """

    id: str
    sysext: str = ""
    linux_append: str = ""
    grub: str = ""
    consoles: tuple[Console, ...] = ()
    files: tuple[OemFile, ...] = ()
    since: str = ""
    bare_before: bool = False

    def console(self, arch: Arch) -> Console:
        """The console of an architecture; an empty one leaves it to the release."""
        return next((item for item in self.consoles if item.arch == arch), Console(arch))


@dataclass(frozen=True)
class Bundle:
    """The file `name` that the image is packed into, together with texts rendered from templates."""

    format: str
    name: str
    members: tuple[ExtraFile, ...] = ()


@dataclass(frozen=True)
class Diskless:
    """How machines start that need no disk: by `format` `pxe` or `iso`, from the release's files `kernel` and `cpio`.

    `oem` is the name of the second cpio that `split` keeps apart. `kernel_args` come before those that are asked for;
    `consoles` are kernel arguments, by architecture.
    """

    format: str
    kernel: str
    cpio: str
    oem: str
    kernel_args: tuple[str, ...] = ()
    consoles: tuple[tuple[Arch, tuple[str, ...]], ...] = ()
    split: bool = False

    @property
    def outputs(self) -> tuple[str, ...]:
        """The names of the files beside the image."""
        if self.format != "pxe":
            return ()
        return (self.kernel, self.oem) if self.split else (self.kernel,)


@dataclass(frozen=True)
class Rule:
    """What the platform demands of an image, checked by `platform.py`.

    `measure` is `disk` (virtual size), `file` (the file that is handed over) or `compression` (around it). Of sizes
    `at_least`, `at_most` and `multiple` are bytes, 0 for no such demand; of compressions `one_of` are those that the
    platform takes, "" for none. `says` is the rule as a sentence, `source` the document it is from. `severity` is
    `error` where the platform refuses other images, `warning` where it may.
    """

    name: str
    measure: str
    says: str
    source: str
    severity: str = "error"
    at_least: int = 0
    at_most: int = 0
    multiple: int = 0
    one_of: tuple[str, ...] = ()


@dataclass(frozen=True)
class Vendor:
    """One vendor of the catalogue. File names are those of the release's own build."""

    name: str
    summary: str
    arches: tuple[Arch, ...]
    layout: str
    """"" for machines without a disk."""
    image: str
    """The name of the disk's file; where there is a bundle, the name in it."""
    disk: DiskFormat
    """For machines without a disk the format's name is that of `diskless`."""
    oem: Oem | None = None
    published: tuple[str, ...] = ()
    """Names of the vendor's own images on the release server, the preferred one first."""
    published_only: bool = False
    """The OEM partition holds files that exist in published images alone."""
    files: tuple[ExtraFile, ...] = ()
    disk_size: int = 0
    """Bytes: the disk has exactly this virtual size; 0 where the layout decides."""
    disk_align: int = 0
    """Bytes: the virtual size is rounded up to a multiple of this."""
    compress: str = ""
    """Compression of the finished image, one of COMPRESSIONS or "": what the platform takes, else none."""
    bundle: Bundle | None = None
    diskless: Diskless | None = None
    """For machines that start without a disk: how."""
    rules: tuple[Rule, ...] = ()
    retired: str = ""
    """For a name that Flatcar has given up: what to use instead."""
    folder: Path = Path()
    """Where the TOML file was found; its templates are in `templates/` beside it."""

    @property
    def result(self) -> str:
        """The name of the file that is handed to the platform: the bundle, or the image with its compression."""
        if self.bundle:
            return self.bundle.name
        return f"{self.image}.{self.compress}" if self.compress else self.image

    @property
    def outputs(self) -> tuple[str, ...]:
        """The names of all files a bake for this vendor writes."""
        beside = self.diskless.outputs if self.diskless else ()
        return (self.result, *beside, *(extra.name for extra in self.files))

    def at(self, version: str) -> Vendor:
        """This vendor as the release `version` knows it: without the OEM sysext where that came later."""
        oem = self.oem
        if oem is None or not (oem.since and oem.bare_before) or numbers(version) >= numbers(oem.since):
            return self
        return dataclasses.replace(self, oem=dataclasses.replace(oem, sysext=""))


def numbers(version: str) -> tuple[int, ...]:
    """A release's version as numbers, to compare; what follows a `+` or `-` does not count."""
    return tuple(int(part) for part in re.findall(r"[0-9]+", re.split(r"[+-]", version)[0]))


def find_vendors(names: Iterable[str], arch: Arch, known: dict[str, Vendor]) -> tuple[Vendor, ...]:
    """The vendors asked for, in order and each once; UsageError for an unknown one or a wrong architecture."""
    found: dict[str, Vendor] = {}
    for name in names:
        vendor = find_vendor(name, known)
        if arch not in vendor.arches:
            has = ", ".join(vendor.arches)
            raise UsageError(f"The vendor {name} does not exist for {arch}.", f"It exists for: {has}.")
        found[name] = vendor
    return tuple(found.values())


def find_vendor(name: str, known: dict[str, Vendor]) -> Vendor:
    """The vendor of exactly this name; UsageError with the nearest names otherwise."""
    if name not in known:
        raise UsageError(f"There is no vendor {name!r}.", suggest(name, known) or "`flatcar-bake vendors` lists them.")
    return known[name]
