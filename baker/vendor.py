"""Vendors: who an image is for, as data. One TOML file each in `vendors/`, checked strictly when read."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from baker.errors import UsageError
from baker.layout import LAYOUTS
from baker.model import Arch
from baker.resources import catalogue
from baker.schema import Table, load_toml, suggest

DISK_FORMATS = ("raw", "qcow2")
_PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True)
class DiskFormat:
    """How the disk is encoded: qemu-img's format name, its `-o` options, and whether to compress."""

    format: str
    options: tuple[tuple[str, str], ...] = ()
    compress: bool = False


@dataclass(frozen=True)
class Oem:
    """What goes into the OEM partition of a vendor.

    `id` is the value of the kernel argument flatcar.oem.id, `sysext` the X of oem-X.raw on the release server,
    `linux_append` the kernel arguments and `grub` further lines of the OEM's grub.cfg.
    """

    id: str
    sysext: str
    linux_append: str = ""
    grub: str = ""


@dataclass(frozen=True)
class ExtraFile:
    """A file beside the image: rendered from a template, or UEFI firmware (`code` or `vars`)."""

    name: str
    template: str = ""
    firmware: str = ""
    mode: int = 0o644


@dataclass(frozen=True)
class Vendor:
    """One vendor of the catalogue. File names are those of the release's own build."""

    name: str
    summary: str
    arches: tuple[Arch, ...]
    layout: str
    image: str
    disk: DiskFormat
    oem: Oem | None = None
    published: tuple[str, ...] = ()
    """Names of the vendor's own images on the release server, the preferred one first."""
    files: tuple[ExtraFile, ...] = field(default=())
    folder: Path = Path()
    """Where the TOML file was found; its templates are in `templates/` beside it."""

    @property
    def outputs(self) -> tuple[str, ...]:
        """The names of all files a bake for this vendor writes."""
        return (self.image, *(extra.name for extra in self.files))


def _plain(value: str, what: str, where: Path) -> str:
    if not _PLAIN_NAME.fullmatch(value):
        raise UsageError(f"{where}: {what} must be a plain file name, not {value!r}.")
    return value


def _one_of(value: str, known: Iterable[str], what: str, where: Path) -> str:
    if value not in known:
        raise UsageError(f"{where}: there is no {what} {value!r}.", suggest(value, known))
    return value


def _disk(table: Table | None, where: Path) -> DiskFormat:
    if table is None:
        raise UsageError(f"{where} lacks the table [disk].")
    options = table.take("options", dict, {})
    if not all(isinstance(value, str) for value in options.values()):
        raise UsageError(f"{where}: [disk] options must be strings.")
    disk = DiskFormat(
        _one_of(table.take("format", str), DISK_FORMATS, "disk format", where),
        tuple(sorted(options.items())),
        table.take("compress", bool, False),
    )
    table.done()
    return disk


def _oem(table: Table | None) -> Oem | None:
    if table is None:
        return None
    oem = Oem(
        table.take("id", str), table.take("sysext", str), table.take("linux_append", str, ""),
        table.take("grub", str, ""),
    )  # fmt: skip
    table.done()
    return oem


def _file(table: Table, where: Path) -> ExtraFile:
    mode = table.take("mode", str, "0644")
    if not re.fullmatch(r"0[0-7]{3}", mode):
        raise UsageError(f"{where}: mode must be four octal digits such as 0755, not {mode!r}.")
    extra = ExtraFile(
        _plain(table.take("name", str), "name", where), table.take("template", str, ""),
        table.take("firmware", str, ""), int(mode, 8),
    )  # fmt: skip
    table.done()
    if bool(extra.template) == bool(extra.firmware):
        raise UsageError(f"{where}: the file {extra.name} needs either a template or a firmware.")
    if extra.template:
        _plain(extra.template, "template", where)
        if not (where.parent / "templates" / extra.template).is_file():
            raise UsageError(f"{where}: there is no template {extra.template!r}.")
    if extra.firmware:
        _one_of(extra.firmware, ("code", "vars"), "firmware", where)
    return extra


def load_vendor(path: Path) -> Vendor:
    """Read one vendor file; UsageError names the file and the key that is wrong."""
    table = Table(load_toml(path), os_path := str(path))
    published = table.table("published")
    arches = table.strings("arches")
    vendor = Vendor(
        name=path.stem,
        summary=table.take("summary", str),
        arches=tuple(Arch(_one_of(arch, list(Arch), "architecture", path)) for arch in arches),
        layout=_one_of(table.take("layout", str), LAYOUTS, "disk layout", path),
        image=_plain(table.take("image", str), "image", path),
        disk=_disk(table.table("disk"), path),
        oem=_oem(table.table("oem")),
        published=published.strings("files") if published else (),
        files=tuple(_file(extra, path) for extra in table.tables("file")),
        folder=path.parent,
    )
    if published:
        published.done()
    table.done()
    if not vendor.arches:
        raise UsageError(f"{os_path}: arches is empty.")
    return vendor


def load_vendors(folders: Iterable[Path] = ()) -> dict[str, Vendor]:
    """The whole catalogue by name: the shipped vendors, then those of the user's own folders, which win."""
    vendors: dict[str, Vendor] = {}
    for folder in (catalogue("vendors"), *folders):
        if not folder.is_dir():
            raise UsageError(f"There is no folder {folder} to read vendors from.")
        vendors |= {path.stem: load_vendor(path) for path in sorted(folder.glob("*.toml"))}
    return vendors


def find_vendors(names: Iterable[str], arch: Arch, known: dict[str, Vendor]) -> tuple[Vendor, ...]:
    """The vendors asked for, in order and each once; UsageError for an unknown one or a wrong architecture."""
    found: dict[str, Vendor] = {}
    for name in names:
        if name not in known:
            hint = suggest(name, known) or "`flatcar-bake vendors` lists them."
            raise UsageError(f"There is no vendor {name!r}.", hint)
        if arch not in known[name].arches:
            has = ", ".join(known[name].arches)
            raise UsageError(f"The vendor {name} does not exist for {arch}.", f"It exists for: {has}.")
        found[name] = known[name]
    return tuple(found.values())
