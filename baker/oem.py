"""The content of the OEM partition, as a release's own vendor build leaves it.

flatcar/scripts build_library/vm_image_util.sh (install_oem_sysext) writes `sysext/oem-X-VERSION.raw`, the empty
flag `sysext/active-oem-X`, `oem-release` and `grub.cfg`, and nothing else. The initrd activates the sysext only if
the flag is there and the name carries the exact release version.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from baker.errors import UsageError
from baker.model import Arch, Injection
from baker.vendor import Console, Oem

_ADDED = b'set linux_append="$linux_append '
# Printable ASCII without what GRUB expands or ends a double-quoted string at; a blank would make two arguments of it.
_KERNEL_ARG = re.compile(r"[!#%&(-\[\]-_a-~]+")


def oem_release(oem: Oem, version: str) -> bytes:
    """The text of oem-release; boot looks at `ID` alone, the rest is for people."""
    name = oem.sysext or oem.id
    return f"ID={name}\nVERSION_ID={version}\nNAME=oem-{name}\n".encode()


def oem_grub_cfg(oem: Oem, arch: Arch) -> bytes:
    """The grub.cfg that Flatcar's GRUB sources from the OEM partition before it composes the kernel command line.

    GRUB's variables are those of build_library/grub.cfg in flatcar/scripts: a set `linux_console` keeps it from
    choosing consoles itself. It reads none of this when Secure Boot is on.
    """
    lines = ["# Written by flatcar-bake; read by GRUB at every boot.", f'set oem_id="{oem.id}"']
    if oem.linux_append:
        lines.append(f'set linux_append="{oem.linux_append}"')
    lines += _console_lines(oem.console(arch))
    if oem.grub:
        lines.append(oem.grub.strip())
    return ("\n".join(lines) + "\n").encode()


def _console_lines(console: Console) -> list[str]:
    lines = [f'set linux_console="{console.linux}"'] if console.linux else []
    if console.serial_menu:
        lines += [
            "serial --unit=0 --speed=115200 --word=8 --parity=no",
            "terminal_input serial",
            "terminal_output serial",
        ]
    if lines and console.bios_only:
        return ['if [ "$grub_platform" = pc ]; then', *(f"    {line}" for line in lines), "fi"]
    return lines


def with_kernel_args(grub_cfg: bytes, args: Iterable[str]) -> bytes:
    """A grub.cfg of the OEM partition (b"" for none) with kernel arguments appended to its `linux_append`.

    What an earlier call has added is not added again. UsageError for an argument that GRUB would not hand on as it
    is: quotes, blanks, line breaks, `$`, backslashes, backquotes and everything outside ASCII.
    """
    there = {word for line in grub_cfg.splitlines() if line.startswith(_ADDED) for word in _added_words(line)}
    new = [arg for arg in args if check_kernel_arg(arg).encode() not in there]
    if not new:
        return grub_cfg
    separator = b"" if not grub_cfg or grub_cfg.endswith(b"\n") else b"\n"
    return grub_cfg + separator + _ADDED + " ".join(new).encode() + b'"\n'


def _added_words(line: bytes) -> list[bytes]:
    return line.removeprefix(_ADDED).rstrip().removesuffix(b'"').split()


def check_kernel_arg(arg: str) -> str:
    """The argument itself, if GRUB would hand it to the kernel unchanged; else UsageError."""
    if not _KERNEL_ARG.fullmatch(arg):
        raise UsageError(
            f"{arg!r} cannot be a kernel argument in a grub.cfg.",
            "One argument without blanks, quotes, $, backslashes or backquotes; repeat the option for more.",
        )
    return arg


def oem_injections(oem: Oem, sysext: Path | None, version: str, arch: Arch) -> list[Injection]:
    """What turns a generic image's OEM partition into this vendor's.

    `sysext` is the verified oem-X.raw, None for a vendor or release without one.
    """
    injections = []
    if sysext is not None:
        injections += [
            Injection(f"/sysext/oem-{oem.sysext}-{version}.raw", source=sysext, replace=True),
            Injection(f"/sysext/active-oem-{oem.sysext}", content=b"", replace=True),
        ]
    return [
        *injections,
        Injection("/oem-release", content=oem_release(oem, version), replace=True),
        Injection("/grub.cfg", content=oem_grub_cfg(oem, arch), replace=True),
        *(Injection(f"/{file.path}", content=file.content.encode(), replace=True) for file in oem.files),
    ]
