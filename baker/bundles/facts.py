"""What is known of a finished disk when the texts about it are written, and what templates may use of it."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from baker.errors import ImageError
from baker.model import Arch
from baker.templates import render
from baker.vendor import DiskFormat, ExtraFile, Vendor

MEMORY_MIB, CPUS = 2048, 2
"""What the machines described by our configs have."""

_NAMESPACE = uuid.UUID("7c1d0a3e-6f5e-5b0c-9a40-2f6f0c7a5e11")
_VMDK = "http://www.vmware.com/specifications/vmdk.html#sparse"
_VMDK_STREAM = "http://www.vmware.com/interfaces/specifications/vmdk.html#streamOptimized"


@dataclass(frozen=True)
class BundleFacts:
    """A vendor's finished disk: the encoded file `disk`, its `virtual_size` in bytes, and what it was made of.

    `seed` is the plan's id: every UUID and MAC address derives from it, so equal plans give equal bytes. `epoch` is
    the time of all that is packed.
    """

    vendor: Vendor
    disk: Path
    virtual_size: int
    arch: Arch
    version: str
    sysexts: tuple[str, ...]
    seed: str
    epoch: int

    def text(self, extra: ExtraFile) -> str:
        """A file of the vendor, rendered. UsageError for a template that is wrong, ImageError from `refuse`."""
        return render(self.vendor.folder / "templates", extra.template, self._values())

    def _values(self) -> Mapping[str, object]:
        vendor = self.vendor
        image = PurePosixPath(vendor.image)
        by_firmware = {item.firmware: item.name for item in vendor.files if item.firmware}
        return {
            "image": image.name, "image_folder": image.parent.name, "image_uri": _uri(vendor.disk),
            "script": next((item.name for item in vendor.files if item.mode & 0o111), ""),
            "efi_code": by_firmware.get("code", ""), "efi_vars": by_firmware.get("vars", ""),
            "files": {item.template: item.name for item in vendor.files if item.template},
            "version": self.version or "unknown", "arch": self.arch.value, "sysexts": ", ".join(self.sysexts),
            "vendor": vendor.name, "disk_bytes": self.virtual_size, "disk_file_bytes": self.disk.stat().st_size,
            "memory_mib": MEMORY_MIB, "cpus": CPUS, "uuid": self._uuid, "mac": self._mac, "refuse": _refuse,
        }  # fmt: skip

    def _uuid(self, name: str) -> str:
        """A UUID for the thing `name` of this vendor and plan, in lower case."""
        return str(uuid.uuid5(_NAMESPACE, f"{self.seed}/{self.vendor.name}/{name}"))

    def _mac(self, name: str, maker: str) -> str:
        """A MAC address of 12 upper case digits; `maker` is the six that stand for the maker of the virtual card."""
        digest = hashlib.sha256(f"{self.seed}/{self.vendor.name}/{name}".encode()).hexdigest()
        return (maker + digest[:6]).upper()


def _uri(disk: DiskFormat) -> str:
    """How an OVF names the format of the disk that is there: as it is, not as somebody might like it.

    VMware's names, as VirtualBox knows them too; "" for a format that OVF has no name for.
    """
    if disk.format != "vmdk":
        return ""
    return _VMDK_STREAM if dict(disk.options).get("subformat") == "streamOptimized" else _VMDK


def _refuse(message: str) -> str:
    """For templates that cannot describe a disk: ends the vendor with this sentence."""
    raise ImageError(message)
