"""QEMU: which accelerator and firmware this machine has, image formats, and argument vectors."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from baker.convert import to_raw
from baker.errors import EnvironmentFault, ImageError, UsageError
from baker.formats.probe import image_info
from baker.model import Arch
from baker.run import Bounds, CommandFailed, need, run

_FIRMWARE_FOLDERS = (Path("/etc/qemu/firmware"), Path("/usr/share/qemu/firmware"))
_FIRMWARE_PACKAGE = {Arch.X86_64: "ovmf", Arch.ARM64: "qemu-efi-aarch64"}
_COMPRESSED = {
    b"BZh": "bzip2",
    b"\x1f\x8b": "gzip",
    b"PK\x03\x04": "zip",
    b"\xfd7zXZ": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
}


class Firmware(StrEnum):
    """How a virtual machine starts its disk."""

    UEFI = "uefi"
    BIOS = "bios"


@dataclass(frozen=True)
class FirmwareFiles:
    """A UEFI build: the code, mapped read-only, and a template of its variable store."""

    code: Path
    code_format: str
    vars: Path
    vars_format: str


@dataclass(frozen=True)
class _Target:
    """What differs between the two architectures. QEMU's names."""

    program: str
    architecture: str
    machine: str
    machine_pattern: str
    tcg_cpu: str


_TARGETS = {
    # graphics=off makes SeaBIOS and GRUB's BIOS console speak on the serial port.
    Arch.X86_64: _Target("qemu-system-x86_64", "x86_64", "q35,graphics=off", "pc-q35-", "max"),
    # The architected pointer authentication is very slow to emulate; the implementation-defined one is not.
    Arch.ARM64: _Target("qemu-system-aarch64", "aarch64", "virt", "virt-", "max,pauth-impdef=on"),
}


def choose_accelerator(arch: Arch, wanted: str) -> str:
    """`kvm` or `tcg` for `wanted` = `auto`, `kvm` or `tcg`.

    KVM is taken when QEMU really starts a virtual machine with it: a /dev/kvm that opens may still be crippled,
    as in some nested virtualisation. Raises EnvironmentFault when `kvm` is wanted and does not work.
    """
    if wanted == "tcg":
        return "tcg"
    reason = _kvm_fault(arch)
    if reason is None:
        return "kvm"
    if wanted == "kvm":
        raise EnvironmentFault(f"KVM cannot be used here: {reason}.", "Let QEMU emulate with --accel tcg.")
    return "tcg"


def _kvm_fault(arch: Arch) -> str | None:
    target = _TARGETS[arch]
    if platform.machine() != target.architecture:
        return f"this machine is {platform.machine()}, the image {target.architecture}"
    try:
        os.close(os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        return f"/dev/kvm: {error.strerror}"
    argv = [target.program, "-machine", target.machine, *_accelerator_options(target, "kvm")]
    try:
        run([*argv, "-nodefaults", "-display", "none", "-S", "-monitor", "stdio"], input=b"quit\n")
    except CommandFailed as failure:
        return (failure.stderr.strip().splitlines() or ["QEMU does not start"])[0]
    return None


def _accelerator_options(target: _Target, accelerator: str) -> list[str]:
    if accelerator == "kvm":
        return ["-accel", "kvm", "-cpu", "host"]
    return ["-accel", "tcg,thread=multi", "-cpu", target.tcg_cpu]


def firmware_files(arch: Arch, folders: Sequence[Path] = _FIRMWARE_FOLDERS, *, secure: bool = False) -> FirmwareFiles:
    """A UEFI build, from the descriptors that distributions install for QEMU; `secure` asks for one that enforces
    Secure Boot with Microsoft's keys, which have signed Flatcar's shim.

    The format of a descriptor is docs/interop/firmware.json in QEMU's source. A file in an earlier folder hides
    files of the same name in later ones. Raises EnvironmentFault when there is none.
    """
    descriptors: dict[str, Path] = {}
    for folder in reversed(folders):
        descriptors |= {path.name: path for path in folder.glob("*.json")}
    for _, path in sorted(descriptors.items()):
        files = _read_descriptor(path, _TARGETS[arch], secure)
        if files is not None and files.code.exists() and files.vars.exists():
            return files
    raise EnvironmentFault(
        f"There is no UEFI firmware {'with Secure Boot ' if secure else ''}for {arch} virtual machines "
        "on this machine.",
        f"Install it, on Debian: apt-get install {_FIRMWARE_PACKAGE[arch]}.",
    )


def _read_descriptor(path: Path, target: _Target, secure: bool) -> FirmwareFiles | None:
    try:
        data: dict[str, Any] = json.loads(path.read_bytes())
        mapping = data["mapping"]
        fits = any(
            item["architecture"] == target.architecture
            and any(machine.startswith(target.machine_pattern) for machine in item["machines"])
            for item in data["targets"]
        )
        # Secure Boot builds need SMM, and without keys in them they enforce nothing.
        features = set(data["features"])
        fits &= (
            features >= {"secure-boot", "enrolled-keys"} if secure else not features & {"secure-boot", "requires-smm"}
        )
        if not fits or "uefi" not in data["interface-types"] or mapping["device"] != "flash":
            return None
        code, variables = mapping["executable"], mapping["nvram-template"]
        return FirmwareFiles(Path(code["filename"]), code["format"], Path(variables["filename"]), variables["format"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


@dataclass(frozen=True)
class Machine:
    """A virtual machine to start once. `memory` is in MiB; `uefi` is None for BIOS.

    `uefi.vars` must be a copy of one's own: the firmware writes to it.
    """

    arch: Arch
    accelerator: str
    memory: int
    uefi: FirmwareFiles | None
    network: bool = False


def qemu_argv(machine: Machine, disk: Path, fw_cfg: Mapping[str, Path], smbios: Sequence[Path]) -> list[str]:
    """The command that boots the raw image `disk` with its serial console on stdout.

    The disk is only read: writes go to a file of QEMU's own that vanishes with it. A guest that restarts or powers
    off ends QEMU. Without `network` nothing in the guest can reach the outside.
    """
    target = _TARGETS[machine.arch]
    argv = [
        target.program, "-machine", target.machine, *_accelerator_options(target, machine.accelerator),
        "-smp", "2", "-m", str(machine.memory),
        "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
        "-nic", "user,model=virtio-net-pci" if machine.network else "none",
        "-chardev", "stdio,id=console,signal=off", "-serial", "chardev:console",
        "-device", "virtio-rng-pci",
    ]  # fmt: skip
    if machine.uefi is not None:
        flash = (
            ("0", machine.uefi.code, f"{machine.uefi.code_format},readonly=on"),
            ("1", machine.uefi.vars, machine.uefi.vars_format),
        )
        for number, file, options in flash:
            argv += ["-drive", f"if=pflash,unit={number},file={_value(file)},format={options}"]
    argv += ["-drive", f"if=none,id=disk,file={_value(disk)},format=raw,snapshot=on"]
    argv += ["-device", "virtio-blk-pci,drive=disk,bootindex=1"]
    for key, file in fw_cfg.items():
        argv += ["-fw_cfg", f"name={key},file={_value(file)}"]
    for file in smbios:
        argv += ["-smbios", f"type=11,path={_value(file)}"]
    return argv


def _value(path: Path) -> str:
    """A file name within a QEMU option: a comma would end it, so commas are doubled."""
    return os.fspath(path.absolute()).replace(",", ",,")


def need_emulator(arch: Arch) -> None:
    """EnvironmentFault when QEMU for this architecture is not installed."""
    need(_TARGETS[arch].program)


def image_format(image: Path) -> str:
    """The format of a disk image in qemu-img's word: raw, qcow2, vmdk, vhdx, vpc …

    UsageError for a file that is not there or is compressed, ImageError for one that qemu-img cannot read.
    """
    try:
        with image.open("rb") as file:
            head = file.read(8)
            file.seek(-min(512, os.fstat(file.fileno()).st_size), os.SEEK_END)
            tail = file.read(8)
    except OSError as error:
        raise UsageError(f"Cannot read the image {image}: {error.strerror}.") from None
    for magic, name in _COMPRESSED.items():
        if head.startswith(magic):
            raise UsageError(f"{image.name} is compressed with {name}.", "Unpack it and boot the result.")
    found = image_info(image).format
    # A fixed VHD has nothing but its footer to be known by, and qemu-img looks at the start of a file only.
    return "vpc" if found == "raw" and tail == b"conectix" else found


def unpack(image: Path, format: str, target: Path) -> None:
    """Convert an image of any of QEMU's formats to a new sparse raw file; ImageError for a damaged one."""
    if format == "qcow2":
        to_raw(image, target)
        return
    try:
        # What a truncated image lacks reads as zeros, so check it first (3: only leaks, 63: not for this format).
        run(["qemu-img", "check", "-q", "-f", format, image], ok=(0, 3, 63), bounds=Bounds())
        bounds = Bounds(writable=(target.parent,))
        run(["qemu-img", "convert", "-f", format, "-O", "raw", image, target], bounds=bounds)
    except CommandFailed as failure:
        raise ImageError(f"{image.name} is not a whole {format} image.", failure.message) from failure
