"""Debian packages for the guest: which ones, downloaded with the host's apt, unpacked without being installed."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path

from baker.errors import EnvironmentFault
from baker.run import find, run

PROGRAMS = {
    "apt-get": "apt", "dpkg-deb": "dpkg", "sgdisk": "gdisk", "depmod": "kmod", "modprobe": "kmod",
    "mkfs.btrfs": "btrfs-progs", "mkfs.vfat": "dosfstools", "mcopy": "mtools", "mke2fs": "e2fsprogs",
    "resize2fs": "e2fsprogs", "mksquashfs": "squashfs-tools", "cpio": "cpio",
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


def network_environment() -> dict[str, str]:
    """What apt and pip must know of the caller's environment to reach their servers; `run` hides it otherwise."""
    names = ("http_proxy", "https_proxy", "no_proxy", "ssl_cert_file", "requests_ca_bundle")
    return {name: value for name, value in os.environ.items() if name.lower() in names or name.startswith("PIP_")}


class Apt:
    """The host's apt and package sources, asked as if nothing were installed here, so that it names everything.

    `lists` is a folder with package lists of its own; None takes the host's.
    """

    def __init__(self, lists: Path | None = None) -> None:
        # apt must not switch to its user _apt, who may not write to our folders.
        self._command = ["apt-get", "-q", "-o", "Dir::State::status=/dev/null", "-o", "APT::Sandbox::User=root"]
        if lists is not None:
            self._command += [
                "-o",
                f"Dir::State::Lists={lists}",
                "-o",
                "Dir::Cache::pkgcache=",
                "-o",
                "Dir::Cache::srcpkgcache=",
            ]

    @classmethod
    def updated(cls, lists: Path) -> Apt:
        """With package lists fetched now into the folder `lists`; needs no privileges."""
        (lists / "partial").mkdir(parents=True, exist_ok=True)
        apt = cls(lists)
        run([*apt._command, "update"], env=network_environment())
        return apt

    def closure(self, names: Iterable[str]) -> list[str]:
        """The packages and all they depend on, without recommendations, each as `name=version`."""
        plan = run([*self._command, "install", "--simulate", "--no-install-recommends", *names]).text
        # A line reads: Inst NAME (VERSION ARCHIVE [ARCH])
        return sorted("=".join(found) for found in re.findall(r"^Inst (\S+) \((\S+) ", plan, re.MULTILINE))

    def newest(self, name: str) -> str:
        """One package as `name=version`, without what it depends on."""
        return next(package for package in self.closure([name]) if package.startswith(f"{name}="))

    def kernel(self) -> str:
        """The package of Debian's newest cloud kernel; its name carries an ABI number that moves."""
        plan = self.closure(["linux-image-cloud-amd64"])
        return next(package for package in plan if re.match(r"linux-image-\d", package))

    def download(self, packages: Iterable[str], folder: Path) -> None:
        """Fetch the archives of `name=version` packages into an empty folder."""
        run([*self._command, "download", *packages], cwd=folder, env=network_environment())


def unpack(archive: Path, tree: Path) -> None:
    """Unpack a package's files into `tree`, whose /bin, /sbin and /lib may be links into /usr.

    All files become ours, that is root's: the few of other owners mean nothing in an image, and an ordinary user could
    not make them.
    """
    content = run(["dpkg-deb", "--fsys-tarfile", archive]).stdout
    run(["tar", "-x", "-p", "--no-same-owner", "--keep-directory-symlink", "-C", tree], input=content)
