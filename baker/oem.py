"""The content of the OEM partition, as a release's own vendor build leaves it.

flatcar/scripts build_library/vm_image_util.sh (install_oem_sysext) writes `sysext/oem-X-VERSION.raw`, the empty
flag `sysext/active-oem-X`, `oem-release` and `grub.cfg`, and nothing else. The initrd activates the sysext only if
the flag is there and the name carries the exact release version.
"""

from __future__ import annotations

from pathlib import Path

from baker.model import Injection
from baker.vendor import Oem


def oem_release(oem: Oem, version: str) -> bytes:
    """The text of oem-release; boot looks at `ID` alone, the rest is for people."""
    return f"ID={oem.sysext}\nVERSION_ID={version}\nNAME=oem-{oem.sysext}\n".encode()


def oem_grub_cfg(oem: Oem) -> bytes:
    """The grub.cfg that Flatcar's GRUB sources from the OEM partition before it composes the kernel command line."""
    lines = ["# Written by flatcar-bake; read by GRUB at every boot.", f'set oem_id="{oem.id}"']
    if oem.linux_append:
        lines.append(f'set linux_append="{oem.linux_append}"')
    if oem.grub:
        lines.append(oem.grub.strip())
    return ("\n".join(lines) + "\n").encode()


def oem_injections(oem: Oem, sysext: Path, version: str) -> list[Injection]:
    """What turns a generic image's OEM partition into this vendor's. `sysext` is the verified oem-X.raw."""
    return [
        Injection(f"/sysext/oem-{oem.sysext}-{version}.raw", source=sysext, replace=True),
        Injection(f"/sysext/active-oem-{oem.sysext}", content=b"", replace=True),
        Injection("/oem-release", content=oem_release(oem, version), replace=True),
        Injection("/grub.cfg", content=oem_grub_cfg(oem), replace=True),
    ]
