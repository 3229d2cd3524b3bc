"""Reading vendors from their TOML files, strictly: `docs/vendors.md` lists the keys."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from baker.errors import UsageError
from baker.layout import LAYOUTS
from baker.model import Arch
from baker.oem import check_kernel_arg
from baker.resources import catalogue
from baker.schema import Table, load_toml, suggest
from baker.vendor import (
    BUNDLE_FORMATS,
    COMPRESSIONS,
    DISK_FORMATS,
    DISKLESS_FORMATS,
    MEASURES,
    Bundle,
    Console,
    DiskFormat,
    Diskless,
    ExtraFile,
    Oem,
    OemFile,
    Rule,
    Vendor,
)

_PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
# Inside a bundle or partition: plain names with folders; Parallels' disks have a GUID in braces in their names.
_INNER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._{}-]*(/[A-Za-z0-9][A-Za-z0-9._{}-]*)*")
# What goes into a double-quoted string of GRUB: nothing that it expands or that ends the string.
_GRUB_TEXT = re.compile(r"[^\n\r\"'\\$`\0]*")
_SIZE = re.compile(r"([0-9]{1,6}) (MiB|GiB|MB|GB)")
_UNITS = {"MiB": 1 << 20, "GiB": 1 << 30, "MB": 1_000_000, "GB": 1_000_000_000}


def load_vendors(folders: Iterable[Path] = ()) -> dict[str, Vendor]:
    """The whole catalogue by name: the shipped vendors, then those of the user's own folders, which win."""
    vendors: dict[str, Vendor] = {}
    for folder in (catalogue("vendors"), *folders):
        if not folder.is_dir():
            raise UsageError(f"There is no folder {folder} to read vendors from.")
        vendors |= {path.stem: load_vendor(path) for path in sorted(folder.glob("*.toml"))}
    return vendors


def load_vendor(path: Path) -> Vendor:
    """Read one vendor file; UsageError names the file and the key that is wrong."""
    return _Reader(path).vendor()


class _Reader:
    """Reads one file; every mistake is reported with its path."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def vendor(self) -> Vendor:
        path = self._path
        table = Table(load_toml(path), str(path))
        diskless = self._diskless(table.table("diskless"))
        disk, disk_size, disk_align = self._disk(table.table("disk"), diskless)
        bundle = self._bundle(table.table("bundle"))
        image = table.take("image", str)
        published = table.table("published")
        vendor = Vendor(
            name=path.stem,
            summary=table.take("summary", str),
            arches=tuple(Arch(self._one_of(arch, list(Arch), "architecture")) for arch in table.strings("arches")),
            layout=self._layout(table, diskless),
            image=self._inner(image, "image") if bundle else self._plain(image, "image"),
            disk=disk,
            oem=self._oem(table.table("oem")),
            published=published.strings("files") if published else (),
            published_only=published.take("only", bool, False) if published else False,
            files=tuple(self._file(extra, inner=False) for extra in table.tables("file")),
            disk_size=disk_size,
            disk_align=disk_align,
            compress=self._optional(table.take("compress", str, ""), COMPRESSIONS, "compression"),
            bundle=bundle,
            diskless=diskless,
            rules=tuple(self._rule(rule) for rule in table.tables("rule")),
            retired=table.take("retired", str, ""),
            folder=path.parent,
        )
        if published:
            published.done()
        table.done()
        self._check(vendor)
        return vendor

    def _check(self, vendor: Vendor) -> None:
        """What must hold between the keys."""
        if not vendor.arches:
            raise UsageError(f"{self._path}: arches is empty.")
        if vendor.bundle and vendor.compress:
            raise UsageError(f"{self._path}: a bundle has its own compression; remove the key 'compress'.")
        members = [vendor.image, *(item.name for item in vendor.bundle.members)] if vendor.bundle else []
        for names in (vendor.outputs, members):
            twice = sorted({name for name in names if names.count(name) > 1})
            if twice:
                raise UsageError(f"{self._path}: two files have the name {twice[0]}.")

    def _layout(self, table: Table, diskless: Diskless | None) -> str:
        layout = table.take("layout", str, "" if diskless else None)
        if diskless and layout:
            raise UsageError(f"{self._path}: without a disk there is no layout.")
        return "" if diskless else self._one_of(layout, LAYOUTS, "disk layout")

    def _disk(self, table: Table | None, diskless: Diskless | None) -> tuple[DiskFormat, int, int]:
        """The format, and the exact virtual size and alignment in bytes (0: none)."""
        if (table is None) != (diskless is not None):
            lack = "lacks the table [disk]" if table is None else "has both [disk] and [diskless]"
            raise UsageError(f"{self._path} {lack}.")
        if diskless is not None or table is None:
            return DiskFormat(diskless.format if diskless else ""), 0, 0
        options = table.take("options", dict, {})
        if not all(isinstance(value, str) for value in options.values()):
            raise UsageError(f"{self._path}: [disk] options must be strings.")
        disk = DiskFormat(
            self._one_of(table.take("format", str), DISK_FORMATS, "disk format"),
            tuple(sorted(options.items())),
            table.take("compress", bool, False),
        )
        size, align = self._size(table, "size"), self._size(table, "align")
        table.done()
        return disk, size, align

    def _diskless(self, table: Table | None) -> Diskless | None:
        if table is None:
            return None
        consoles = ((arch, table.strings(arch, ())) for arch in Arch)
        diskless = Diskless(
            format=self._one_of(table.take("format", str), DISKLESS_FORMATS, "format without a disk"),
            kernel=self._plain(table.take("kernel", str), "kernel"),
            cpio=self._plain(table.take("cpio", str), "cpio"),
            oem=self._plain(table.take("oem", str), "oem"),
            kernel_args=table.strings("kernel_args", ()),
            consoles=tuple((arch, args) for arch, args in consoles if args),
        )
        table.done()
        for arg in (*diskless.kernel_args, *(arg for _, args in diskless.consoles for arg in args)):
            check_kernel_arg(arg)
        return diskless

    def _bundle(self, table: Table | None) -> Bundle | None:
        if table is None:
            return None
        bundle = Bundle(
            self._one_of(table.take("format", str), BUNDLE_FORMATS, "bundle format"),
            self._plain(table.take("name", str), "name"),
            tuple(self._file(member, inner=True) for member in table.tables("member")),
        )
        table.done()
        return bundle

    def _oem(self, table: Table | None) -> Oem | None:
        if table is None:
            return None
        oem = Oem(
            id=self._grub_text(table.take("id", str), "id"),
            sysext=self._optional_plain(table.take("sysext", str, ""), "sysext"),
            linux_append=self._grub_text(table.take("linux_append", str, ""), "linux_append"),
            grub=table.take("grub", str, ""),
            consoles=tuple(console for arch in Arch if (console := self._console(table.table(arch), arch))),
            files=tuple(self._oem_file(file) for file in table.tables("file")),
            since=table.take("since", str, ""),
            bare_before=table.take("bare_before", bool, False),
        )
        table.done()
        if oem.since and not re.fullmatch(r"[0-9]+\.[0-9]+\.[0-9]+", oem.since):
            raise UsageError(f"{self._path}: since must be a release such as 4722.0.0, not {oem.since!r}.")
        return oem

    def _console(self, table: Table | None, arch: Arch) -> Console | None:
        if table is None:
            return None
        console = Console(
            arch,
            self._grub_text(table.take("linux_console", str, ""), "linux_console"),
            table.take("serial_menu", bool, False),
            table.take("bios_only", bool, False),
        )
        table.done()
        return console

    def _oem_file(self, table: Table) -> OemFile:
        file = OemFile(self._inner(table.take("path", str), "path"), table.take("content", str))
        table.done()
        return file

    def _file(self, table: Table, *, inner: bool) -> ExtraFile:
        """A file entry; `inner` for one in a bundle or partition, which may have folders in its name."""
        mode = table.take("mode", str, "0644")
        if not re.fullmatch(r"0[0-7]{3}", mode):
            raise UsageError(f"{self._path}: mode must be four octal digits such as 0755, not {mode!r}.")
        name = table.take("name", str)
        extra = ExtraFile(
            self._inner(name, "name") if inner else self._plain(name, "name"),
            table.take("template", str, ""),
            "" if inner else table.take("firmware", str, ""),
            int(mode, 8),
            False if inner else table.take("secure", bool, False),
        )
        table.done()
        if bool(extra.template) == bool(extra.firmware):
            raise UsageError(f"{self._path}: the file {extra.name} needs either a template or a firmware.")
        if extra.template:
            self._plain(extra.template, "template")
            if not (self._path.parent / "templates" / extra.template).is_file():
                raise UsageError(f"{self._path}: there is no template {extra.template!r}.")
        self._optional(extra.firmware, ("code", "vars"), "firmware")
        return extra

    def _rule(self, table: Table) -> Rule:
        rule = Rule(
            name=self._plain(table.take("name", str), "name"),
            measure=self._one_of(table.take("measure", str), MEASURES, "measure"),
            says=table.take("says", str),
            source=table.take("source", str),
            severity=self._one_of(table.take("severity", str, "error"), ("error", "warning"), "severity"),
            at_least=self._size(table, "at_least"),
            at_most=self._size(table, "at_most"),
            multiple=self._size(table, "multiple"),
            one_of=tuple(
                self._optional(word.removeprefix("none"), COMPRESSIONS, "compression")
                for word in table.strings("one_of", ())
            ),
        )
        table.done()
        sizes = rule.at_least or rule.at_most or rule.multiple
        if bool(sizes) == bool(rule.one_of) or bool(rule.one_of) != (rule.measure == "compression"):
            raise UsageError(
                f"{self._path}: the rule {rule.name} needs at_least, at_most or multiple, "
                "or one_of if it measures compression."
            )
        return rule

    def _size(self, table: Table, key: str) -> int:
        """A size such as "10 GiB" in bytes; 0 where the key is absent."""
        word = table.take(key, str, "")
        if not word:
            return 0
        match = _SIZE.fullmatch(word)
        if not match or not int(match[1]):
            raise UsageError(f'{self._path}: {key} must be a size such as "10 GiB", not {word!r}.')
        return int(match[1]) * _UNITS[match[2]]

    def _plain(self, value: str, what: str) -> str:
        if not _PLAIN_NAME.fullmatch(value):
            raise UsageError(f"{self._path}: {what} must be a plain file name, not {value!r}.")
        return value

    def _optional_plain(self, value: str, what: str) -> str:
        return self._plain(value, what) if value else ""

    def _inner(self, value: str, what: str) -> str:
        if not _INNER_NAME.fullmatch(value):
            raise UsageError(f"{self._path}: {what} must be plain names separated by slashes, not {value!r}.")
        return value

    def _grub_text(self, value: str, what: str) -> str:
        if not _GRUB_TEXT.fullmatch(value):
            raise UsageError(f"{self._path}: {what} may have no quotes, $, \\ or line breaks: {value!r}.")
        return value

    def _one_of(self, value: str, known: Iterable[str], what: str) -> str:
        if value not in known:
            raise UsageError(f"{self._path}: there is no {what} {value!r}.", suggest(value, known))
        return value

    def _optional(self, value: str, known: Iterable[str], what: str) -> str:
        return self._one_of(value, known, what) if value else ""
