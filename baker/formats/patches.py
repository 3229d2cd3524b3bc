"""The random numbers in VDI and sparse VMDK files of qemu-img, replaced by those of a seed."""

from __future__ import annotations

import os
import re
from pathlib import Path

from baker.errors import ImageError
from baker.formats.seeds import identifier, number

# VDI header 1.1 (VirtualBox, VDICore.h): the UUIDs of the image and of its last modification.
_VDI_SIGNATURE, _VDI_SIGNATURE_AT = 0xBEDA107F, 64
_VDI_UUIDS = {392: "vdi image", 408: "vdi modification"}

_VMDK_DESCRIPTOR, _VMDK_DESCRIPTOR_BYTES = 512, 20 * 512  # as qemu-img writes it: at sector 1, 20 sectors
_CID = re.compile(rb"^CID=[0-9a-f]{1,8}$", re.MULTILINE)


def settle_vdi(path: Path, seed: str) -> None:
    """Give a VDI the UUIDs of the seed; they stand in no checksum."""
    with path.open("r+b") as file:
        if int.from_bytes(os.pread(file.fileno(), 4, _VDI_SIGNATURE_AT), "little") != _VDI_SIGNATURE:
            raise ImageError(f"{path.name} is no VDI.")
        for at, name in _VDI_UUIDS.items():
            os.pwrite(file.fileno(), identifier(seed, name).bytes_le, at)


def settle_vmdk(path: Path, seed: str) -> None:
    """Give a monolithicSparse VMDK the content ID of the seed."""
    with path.open("r+b") as file:
        text = os.pread(file.fileno(), _VMDK_DESCRIPTOR_BYTES, _VMDK_DESCRIPTOR)
        text, found = _CID.subn(b"CID=%08x" % number(seed, "vmdk"), text.rstrip(b"\0"))
        if found != 1 or len(text) > _VMDK_DESCRIPTOR_BYTES:
            raise ImageError(f"{path.name} has no VMDK descriptor.")
        os.pwrite(file.fileno(), text.ljust(_VMDK_DESCRIPTOR_BYTES, b"\0"), _VMDK_DESCRIPTOR)
