"""GRUB for UEFI and BIOS, and the EFI system partition."""

from __future__ import annotations

import struct
from pathlib import Path

from baker.run import run
from standin.guest import FILES
from standin.layout import SECTOR, USR_A_GUID, Layout

_COMMON = (
    "part_gpt", "fat", "btrfs", "search", "search_label", "configfile", "normal", "linux", "echo", "test", "ls", "cat",
    "regexp", "serial", "terminal", "reboot", "halt",
)  # fmt: skip
_PREFIX = "/flatcar/grub"


def efi_image(target: Path) -> None:
    """Write GRUB as one UEFI program that finds the ESP by its label and reads its grub.cfg."""
    _mkimage("x86_64-efi", target, "efi_gop", "efi_uga")


def install_bios(image: Path, layout: Layout, work: Path) -> None:
    """Put GRUB's boot.img into sector 0 and its core into the partition BIOS-BOOT of a disk image.

    What grub-install does on a real disk: boot.img holds the sector of the core, the core's first sector holds
    where its rest begins. Offsets: GRUB_BOOT_MACHINE_* in include/grub/i386/pc/boot.h of GRUB.
    """
    core_file = work / "core.img"
    _mkimage("i386-pc", core_file, "biosdisk")
    core = bytearray(core_file.read_bytes())
    start = layout.get("BIOS-BOOT").start
    struct.pack_into("<Q", core, 0x1F4, start + 1)
    boot = bytearray(Path("/usr/lib/grub/i386-pc/boot.img").read_bytes()[:440])
    struct.pack_into("<Q", boot, 0x5C, start)
    # The jump that boot.img takes only on floppies.
    boot[0x66:0x68] = b"\x90\x90"
    with image.open("r+b") as disk:
        disk.write(boot)
        disk.seek(start * SECTOR)
        disk.write(core)


def _mkimage(platform: str, target: Path, *modules: str) -> None:
    run(["grub-mkimage", "-O", platform, "-o", target, "-p", _PREFIX, "-c", FILES / "early.cfg", *_COMMON, *modules])


def esp(target: Path, size: int, files: dict[str, Path | bytes], work: Path) -> None:
    """Make the FAT filesystem of an EFI system partition: `size` bytes, holding `files` by their path."""
    tree = work / "esp"
    for name, content in files.items():
        path = tree / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.read_bytes())
    with target.open("wb") as file:
        file.truncate(size)
    run(["mkfs.vfat", "-F", "32", "-n", "EFI-SYSTEM", target])
    run(["mcopy", "-s", "-i", target, *sorted(tree.iterdir()), "::/"])


def menu() -> bytes:
    """The grub.cfg of the ESP."""
    return (FILES / "grub.cfg").read_bytes().replace(b"@USR_A@", USR_A_GUID.lower().encode())
