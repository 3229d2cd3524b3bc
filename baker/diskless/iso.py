"""An ISO that boots by BIOS and by UEFI, as a CD and as a disk: GRUB for each, put together by xorriso.

As grub-mkrescue arranges it: GRUB's core for El Torito, its boot_hybrid.img in the first sector for BIOS machines
that take the ISO for a disk, and a FAT filesystem with GRUB for UEFI, which is an El Torito image and a partition.
All in Debian's packages xorriso, grub-common, grub-pc-bin, grub-efi-amd64-bin, dosfstools and mtools; no mounts.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping
from pathlib import Path

from baker.errors import EnvironmentFault, ImageError
from baker.run import need, run
from baker.sparse import file_sha256

_GRUB = Path("/usr/lib/grub")
_HYBRID = _GRUB / "i386-pc/boot_hybrid.img"
_TOOLS = ("xorriso", "grub-mkimage", "mkfs.vfat", "mmd", "mcopy")
_MODULES = (
    "iso9660", "fat", "part_gpt", "part_msdos", "search", "search_fs_file", "configfile", "normal", "linux", "echo",
    "test", "serial", "terminal", "ls", "cat", "reboot", "halt", "gzio",
)  # fmt: skip
_BIOS_MODULES, _EFI_MODULES = ("biosdisk", "vga_text"), ("efi_gop", "efi_uga", "all_video")
_EFI_SLACK = 256 << 10  # bytes for the FAT filesystem itself


def check_tools() -> None:
    """EnvironmentFault naming the package when something is missing that writing an ISO needs."""
    for tool in _TOOLS:
        need(tool)
    for file, package in ((_HYBRID, "grub-pc-bin"), (_GRUB / "x86_64-efi/normal.mod", "grub-efi-amd64-bin")):
        if not file.is_file():
            raise EnvironmentFault(
                f"GRUB's {file.parent.name} files are not installed, which an ISO boots with.",
                f"Install them, on Debian: apt-get install {package}.",
            )


def volume_label(version: str) -> str:
    """The label of the filesystem; ISO 9660 takes capitals, digits and `_`, and Joliet 16 of them."""
    return re.sub(r"[^A-Z0-9_]", "_", f"FLATCAR_{version}".upper())[:16]


def write_iso(
    target: Path, files: Mapping[str, Path], menu: bytes, label: str, mark: str, epoch: int, work: Path
) -> None:
    """Write an ISO with `files` by their path and GRUB's `menu`. Equal arguments give equal bytes.

    `mark` tells this ISO from others that a machine may see. `work` is a folder for intermediate files.
    """
    tree, marker = work / "iso", f"boot/{mark[:32]}"
    (tree / "boot/grub").mkdir(parents=True)
    (tree / "boot/grub/grub.cfg").write_bytes(menu)
    (tree / marker).touch()
    early = work / "early.cfg"
    early.write_text(f"search --no-floppy --set=root --file /{marker}\nset prefix=($root)/boot/grub\n")
    _mkimage("i386-pc-eltorito", tree / "boot/grub/bios.img", early, _BIOS_MODULES)
    efi = _efi_partition(early, epoch, work)
    for path in (*tree.rglob("*"), tree, efi):
        os.utime(path, (epoch, epoch))
    grafts = [f"/{name}={path}" for name, path in (("", tree), *files.items())]
    # xorriso derives what would be random from the modification date.
    date = time.strftime("%Y%m%d%H%M%S00", time.gmtime(epoch))
    run([
        "xorriso", "-no_rc", "-as", "mkisofs", "-quiet", "-o", target, "-graft-points", "-iso-level", "3", "-r", "-J",
        "-V", label, f"--modification-date={date}", "--gpt_disk_guid", "modification-date",
        "--set_all_file_dates", date,
        "-b", "boot/grub/bios.img", "-c", "boot/boot.cat", "-no-emul-boot", "-boot-load-size", "4",
        "-boot-info-table", "--grub2-boot-info", "--grub2-mbr", _HYBRID,
        "-append_partition", "2", "0xef", efi, "-appended_part_as_gpt",
        "-eltorito-alt-boot", "-e", "--interval:appended_partition_2:all::", "-no-emul-boot",
        *grafts,
    ], env={"SOURCE_DATE_EPOCH": str(epoch)})  # fmt: skip
    _check(target, files, work)


def _check(image: Path, files: Mapping[str, Path], work: Path) -> None:
    """Read the files back; ImageError when one is not what was put in."""
    copy = work / "read-back"
    for name, source in files.items():
        run(["xorriso", "-no_rc", "-osirrox", "on", "-indev", image, "-extract_single", f"/{name}", copy])
        if file_sha256(copy) != file_sha256(source):
            raise ImageError(f"{name} in {image.name} does not have the content that was written.")
        copy.chmod(0o600)
        copy.unlink()


def _mkimage(format: str, target: Path, early: Path, modules: tuple[str, ...]) -> None:
    run(["grub-mkimage", "-O", format, "-o", target, "-p", "/boot/grub", "-c", early, *_MODULES, *modules])


def _efi_partition(early: Path, epoch: int, work: Path) -> Path:
    """A FAT filesystem with GRUB where UEFI looks for it on removable media."""
    program, image = work / "bootx64.efi", work / "efi.img"
    _mkimage("x86_64-efi", program, early, _EFI_MODULES)
    os.utime(program, (epoch, epoch))
    size = program.stat().st_size + _EFI_SLACK
    with image.open("wb") as file:
        file.truncate(-(-size // (1 << 20)) << 20)
    env = {"SOURCE_DATE_EPOCH": str(epoch), "MTOOLS_SKIP_CHECK": "1"}
    run(["mkfs.vfat", "--invariant", "-n", "EFIBOOT", image], env=env)
    run(["mmd", "-i", image, "::/EFI", "::/EFI/BOOT"], env=env)
    run(["mcopy", "-m", "-i", image, program, "::/EFI/BOOT/BOOTX64.EFI"], env=env)
    return image
