"""Vendors as text: the list of all, everything about one, and the same for programs."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from baker.layout import expected_disk_size
from baker.oem import oem_grub_cfg
from baker.platform import final_size
from baker.vendor import Diskless, Vendor

_GENERATIONS = (("before 4487", 0), ("since 4487", 4487))
_DOCS, _DISKLESS_DOCS = "docs/vendors.md", "docs/bare-metal.md"


def vendor_row(vendor: Vendor) -> dict[str, Any]:
    """One vendor for `--json`."""
    return {
        "name": vendor.name, "summary": vendor.summary, "arches": list(vendor.arches), "layout": vendor.layout,
        "format": vendor.disk.format, "options": dict(vendor.disk.options), "compress": vendor.compress,
        "bundle": vendor.bundle.format if vendor.bundle else "", "oem": vendor.oem.id if vendor.oem else "",
        "oem_sysext": vendor.oem.sysext if vendor.oem else "", "retired": vendor.retired,
        "outputs": list(vendor.outputs),
    }  # fmt: skip


def format_words(vendor: Vendor) -> str:
    """The disk's format and what is around it, such as `vmdk streamOptimized in ova`."""
    options = dict(vendor.disk.options)
    words = [vendor.disk.format, options.get("subformat") or options.get("adapter_type") or ""]
    if vendor.bundle:
        words += ["in", vendor.bundle.format]
    elif vendor.compress:
        words += ["in", vendor.compress]
    return " ".join(filter(None, words))


def vendor_table(vendors: Iterable[Vendor]) -> str:
    """A table of vendors; further output files are below the first one."""
    rows = [("NAME", "FORMAT", "LAYOUT", "OEM", "ARCHITECTURES", "FILES")]
    for vendor in vendors:
        first, *others = vendor.outputs
        oem = vendor.oem.id if vendor.oem else "-"
        rows.append((vendor.name, format_words(vendor), vendor.layout or "-", oem, " ".join(vendor.arches), first))
        rows += [("", "", "", "", "", name) for name in others]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def vendor_details(vendor: Vendor) -> str:
    """Everything about one vendor."""
    rows = [("for", vendor.summary)]
    if vendor.retired:
        rows.append(("retired", vendor.retired))
    rows += [
        ("architectures", ", ".join(vendor.arches)),
        *(_diskless_rows(vendor.diskless) if vendor.diskless else _disk_rows(vendor)),
        *(("writes", name) for name in vendor.outputs),
    ]
    if vendor.bundle:
        rows += [("contains", name) for name in (vendor.image, *(item.name for item in vendor.bundle.members))]
    rows += [] if vendor.diskless else _oem_rows(vendor)
    rows += [("published as", name) for name in vendor.published]
    rows += [("platform", f"{rule.says} ({rule.severity}; {rule.source})") for rule in vendor.rules]
    docs = _DISKLESS_DOCS if vendor.diskless else f"{_DOCS}, section {vendor.name}"
    rows.append(("upload, boot", docs))
    return "\n".join([vendor.name, *(f"  {name:14} {value}" for name, value in _once(rows))])


def _disk_rows(vendor: Vendor) -> list[tuple[str, str]]:
    sizes = (
        f"{final_size(vendor, expected_disk_size(vendor.layout, major)) / (1 << 30):.1f} GiB in releases {era}"
        for era, major in _GENERATIONS
    )
    return [
        ("disk", f"{format_words(vendor)}{_options(vendor)}"),
        ("layout", f"{vendor.layout}: {', '.join(sizes)}"),
    ]


def _diskless_rows(diskless: Diskless) -> list[tuple[str, str]]:
    rows = [("disk", "none: all is in memory"), ("made of", f"{diskless.kernel}, {diskless.cpio}")]
    rows += [(f"{arch} args", " ".join((*args, *diskless.kernel_args))) for arch, args in diskless.consoles]
    return rows


def _options(vendor: Vendor) -> str:
    options = ", ".join(f"{name}={value}" for name, value in vendor.disk.options)
    return f" ({options})" if options else ""


def _oem_rows(vendor: Vendor) -> list[tuple[str, str]]:
    oem = vendor.oem
    if oem is None:
        return [("OEM partition", "nothing of the vendor's own")]
    sysext = "none"
    if oem.sysext:
        sysext = f"oem-{oem.sysext}.raw" + (f", in releases since {oem.since}" if oem.since else "")
    if vendor.published_only:
        sysext = "files that are in published images alone"
    rows = [("OEM id", oem.id), ("OEM sysext", sysext), *(("OEM file", file.path) for file in oem.files)]
    texts = {arch: oem_grub_cfg(oem, arch).decode().splitlines() for arch in vendor.arches}
    same = len({tuple(lines) for lines in texts.values()}) == 1
    for arch, lines in texts.items():
        if not same or arch == vendor.arches[0]:
            rows += [("OEM grub.cfg" if same else f"on {arch}", line) for line in lines]
    return rows


def _once(rows: Iterable[tuple[str, str]]) -> Iterable[tuple[str, str]]:
    """The rows with a name only where it changes."""
    last = ""
    for name, value in rows:
        yield "" if name == last else name, value
        last = name
