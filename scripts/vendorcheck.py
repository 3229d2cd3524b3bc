"""Compare vendors/*.toml with a `vm_image_util.sh` of a flatcar/scripts checkout, so that what Flatcar has added,
changed or given up is seen at once.

The file is read, never executed: its settings are plain assignments `IMG_<vendor>_<OPTION>=<value>` and the list
VALID_IMG_TYPES=( … ). Where it lies in its checkout, `oem/<sysext>/grub.cfg` beside it is compared as well.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from baker.errors import BakeError, UsageError
from baker.vendor import Vendor
from baker.vendor_files import load_vendors

# Flatcar's name of a format: ours, the options that matter, the suffix of the image.
_FORMATS = {
    "raw": ("raw", {}, "bin"),
    "qcow2": ("qcow2", {"compat": "0.10"}, "img"),
    "exoscale": ("qcow2", {"compat": "0.10"}, "qcow2"),
    "vhd": ("vpc", {"subformat": "dynamic", "force_size": "on"}, "vhd"),
    "vhd_fixed": ("vpc", {"subformat": "fixed", "force_size": "on"}, "vhd"),
    "vhdx": ("vhdx", {"subformat": "dynamic"}, "vhdx"),
    "vmdk_ide": ("vmdk", {"adapter_type": "ide"}, "vmdk"),
    "vmdk_scsi": ("vmdk", {"adapter_type": "lsilogic"}, "vmdk"),
    "vmdk_stream": ("vmdk", {"adapter_type": "lsilogic", "subformat": "streamOptimized"}, "vmdk"),
    "hdd": ("parallels", {}, "hds"),
}
# What a CONF_FORMAT writes: the suffix of a file of ours, beside the image or in its bundle.
_CONFIGS = {
    "qemu": ".sh", "qemu_uefi": ".sh", "qemu_uefi_secure": ".sh", "xl": ".cfg", "ovf_virtualbox": ".ovf",
    "ovf_vmware": ".ovf", "vmx": ".vmx", "vmware_zip": ".vmx", "vagrant": "metadata.json",
    "vagrant_parallels": "metadata.json", "vagrant_vmware_fusion": "metadata.json", "pvs": ".pvs",
}  # fmt: skip
_BUNDLES = {"box": "box", "ova": "ova", "pvm_tgz": "tgz"}
_CONFIG_BUNDLES = {"gce": "gce", "vmware_zip": "zip"}
_LAYOUTS = {"vm-new": "vm", "onmetal": "base"}
# Of ours alone, and not given up by Flatcar: the source of all others, and launchers over the image of qemu_uefi.
_OURS = ("generic", "qemu", "qemu_uefi_secure")
_NO_DISKS = ("pxe", "iso")


@dataclass(frozen=True)
class Theirs:
    """Flatcar's settings of one vendor."""

    name: str
    options: dict[str, str]

    def get(self, option: str) -> str:
        return self.options.get(option, "")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="check-vendors", description=__doc__.split("\n\n")[0])
    parser.add_argument("file", type=Path, help="build_library/vm_image_util.sh of a flatcar/scripts checkout")
    parser.add_argument("--vendors", type=Path, action="append", default=[], help="further folder of vendor files")
    words = parser.parse_args(argv)
    try:
        differences = list(compare(read_table(words.file), load_vendors(words.vendors), words.file.parent / "oem"))
    except BakeError as error:
        print(f"error: {error.message}", file=sys.stderr)
        return error.exit_code
    for line in differences:
        print(line)
    print(f"{len(differences) or 'No'} difference{'' if len(differences) == 1 else 's'}.", file=sys.stderr)
    return 1 if differences else 0


def read_table(path: Path) -> dict[str, Theirs]:
    """Flatcar's vendors by name; UsageError for a file that does not hold them."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"Cannot read {path}: {error}.") from error
    listed = re.search(r"^VALID_IMG_TYPES=\(([^()]*)\)", text, re.MULTILINE)
    if listed is None:
        raise UsageError(f"{path} has no list VALID_IMG_TYPES, so it is not Flatcar's vm_image_util.sh.")
    names = re.sub(r"#.*", "", listed[1]).split()
    defaults: dict[str, str] = {}
    own: dict[str, dict[str, str]] = {name: {} for name in names}
    for name, option, value in re.findall(r"^IMG_(\w+?)_([A-Z][A-Z_]*)=(.*)$", text, re.MULTILINE):
        target = defaults if name == "DEFAULT" else own.get(name)
        if target is not None:
            target[option] = value.split("#")[0].strip().strip("\"'")
    return {name: Theirs(name, {**defaults, **options}) for name, options in own.items()}


def compare(theirs: dict[str, Theirs], ours: dict[str, Vendor], oem: Path) -> Iterator[str]:
    """Each difference as a line; `oem` is the folder of Flatcar's grub.cfg files, which need not exist."""
    for name in sorted(theirs.keys() - ours.keys() - set(_NO_DISKS)):
        settings = ", ".join(f"{key}={value}" for key, value in sorted(theirs[name].options.items()) if value)
        yield f"{name}: Flatcar has it, we do not ({settings})"
    for name in sorted(ours.keys() - theirs.keys() - set(_OURS)):
        if not ours[name].retired:
            yield f"{name}: we have it, Flatcar does not"
    for name in sorted(theirs.keys() & ours.keys() - set(_NO_DISKS)):
        for what, flatcar, mine in _settings(theirs[name], ours[name], oem):
            if flatcar != mine:
                yield f"{name}: {what} is {flatcar or 'none'} with Flatcar, {mine or 'none'} here"


def _settings(theirs: Theirs, vendor: Vendor, oem: Path) -> Iterator[tuple[str, str, str]]:
    """What is compared: its name, Flatcar's value, ours."""
    kind = theirs.get("DISK_FORMAT")
    if kind not in _FORMATS:
        yield (
            "the disk format",
            f"{kind} (unknown to check-vendors)",
            _words(vendor.disk.format, dict(vendor.disk.options)),
        )
        return
    name, options, suffix = _FORMATS[kind]
    known = {key: value for key, value in vendor.disk.options if key in options}
    yield "the disk format", _words(name, options), _words(vendor.disk.format, known)
    layout = theirs.get("DISK_LAYOUT")
    yield "the layout", _LAYOUTS.get(layout, layout), _LAYOUTS.get(vendor.layout, vendor.layout)
    config = theirs.get("CONF_FORMAT")
    bundle = theirs.get("BUNDLE_FORMAT")
    mine = vendor.bundle.format if vendor.bundle else ""
    yield "the bundle", _BUNDLES.get(bundle, bundle) or _CONFIG_BUNDLES.get(config, ""), mine
    if not mine:
        found = PurePosixPath(vendor.image).suffix.removeprefix(".")
        yield "the image's suffix", theirs.get("DISK_EXTENSION") or suffix, found
    if config and config not in _CONFIG_BUNDLES:
        wanted = _CONFIGS.get(config, f"{config} (unknown to check-vendors)")
        texts = [item.name for item in (*vendor.files, *(vendor.bundle.members if vendor.bundle else ()))]
        yield "the configuration", wanted, wanted if any(text.endswith(wanted) for text in texts) else ""
    sysext = vendor.oem.sysext if vendor.oem else ""
    # ami_vmdk has its sysext under another name in older files.
    yield "the OEM sysext", (theirs.get("OEM_SYSEXT") or theirs.get("SYSEXT")).removeprefix("oem-"), sysext
    if vendor.oem and sysext and (oem / sysext / "grub.cfg").is_file():
        text = (oem / sysext / "grub.cfg").read_text(encoding="utf-8")
        yield "the OEM id", _grub_value(text, "oem_id"), vendor.oem.id
        yield "linux_append", _grub_value(text, "linux_append"), vendor.oem.linux_append


def _words(name: str, options: dict[str, str]) -> str:
    return " ".join([name, *(f"{key}={value}" for key, value in sorted(options.items()))])


def _grub_value(text: str, name: str) -> str:
    found = re.search(rf'^set {name}="([^"]*)"', text, re.MULTILINE)
    return found[1] if found else ""
