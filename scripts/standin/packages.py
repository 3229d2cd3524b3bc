"""Debian packages for the guest: which ones, downloaded with the host's apt, unpacked without being installed."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from baker.errors import EnvironmentFault
from baker.run import find, run

# apt thinks that nothing is installed, so that it names all dependencies; it must not switch to the user _apt, who
# may not write to our folders.
_APT = ("apt-get", "-q", "-o", "Dir::State::status=/dev/null", "-o", "APT::Sandbox::User=root")

PROGRAMS = {
    "apt-get": "apt", "dpkg-deb": "dpkg", "sgdisk": "gdisk", "depmod": "kmod", "modprobe": "kmod",
    "mkfs.btrfs": "btrfs-progs", "mkfs.vfat": "dosfstools", "mcopy": "mtools", "mke2fs": "e2fsprogs",
    "resize2fs": "e2fsprogs", "mksquashfs": "squashfs-tools", "cpio": "cpio", "busybox": "busybox-static",
    "grub-mkimage": "grub-common", "qemu-img": "qemu-utils", "lbzip2": "lbzip2", "gpg": "gnupg",
    "unshare": "util-linux",
}  # fmt: skip
"""What make-release runs, and the package that brings it."""

FILES = {
    "/usr/lib/grub/x86_64-efi/linux.mod": "grub-efi-amd64-bin",
    "/usr/lib/grub/i386-pc/boot.img": "grub-pc-bin",
    "/usr/share/OVMF/OVMF_CODE_4M.fd": "ovmf",
    "/usr/share/AAVMF/AAVMF_CODE.fd": "qemu-efi-aarch64",
}


def check_host() -> None:
    """Raise EnvironmentFault that names every missing package at once."""
    missing = {package for program, package in PROGRAMS.items() if find(program) is None}
    missing |= {package for path, package in FILES.items() if not Path(path).exists()}
    if missing:
        raise EnvironmentFault(
            "A stand-in release needs packages that are not installed.",
            f"Run: apt-get install {' '.join(sorted(missing))}",
        )


def closure(names: Iterable[str]) -> list[str]:
    """The packages and all they depend on, without recommendations, each as `name=version`."""
    plan = run([*_APT, "install", "--simulate", "--no-install-recommends", *names]).text
    # A line reads: Inst NAME (VERSION ARCHIVE [ARCH])
    found = re.findall(r"^Inst (\S+) \((\S+) ", plan, re.MULTILINE)
    if not found:
        raise EnvironmentFault("apt knows no packages for the guest system.", "Run: apt-get update")
    return sorted(f"{name}={version}" for name, version in found)


def kernel_package() -> str:
    """The package of Debian's newest cloud kernel; its name carries an ABI number that moves."""
    plan = closure(["linux-image-cloud-amd64"])
    return next(package for package in plan if re.match(r"linux-image-\d", package))


def download(packages: Iterable[str], folder: Path) -> list[Path]:
    """Fetch the archives of `name=version` packages into an empty folder; returns them."""
    run([*_APT, "download", *packages], cwd=folder)
    return sorted(folder.glob("*.deb"))


def unpack(archive: Path, tree: Path) -> None:
    """Unpack a package's files into `tree`, whose /bin, /sbin and /lib may be links into /usr.

    All files become ours, that is root's: the few of other owners mean nothing in an image, and an ordinary user could
    not make them.
    """
    content = run(["dpkg-deb", "--fsys-tarfile", archive]).stdout
    run(["tar", "-x", "-p", "--no-same-owner", "--keep-directory-symlink", "-C", tree], input=content)
