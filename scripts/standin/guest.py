"""The guest system of an x86-64 stand-in release: the /usr tree, the kernel and the initrd, out of Debian packages.

Nothing is installed and no maintainer script runs: packages are unpacked, what a server does not need at boot is
removed, and the static files beside this module are laid over it.
"""

from __future__ import annotations

import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from baker.run import CommandFailed, run
from standin import cache, packages

FILES = cache.SCRIPTS / "files"

PACKAGES = (
    "bash", "coreutils", "findutils", "grep", "ignition", "kmod", "libc-bin", "libgcc-s1", "mount", "passwd", "sed",
    "systemd", "systemd-sysv", "tar", "udev", "util-linux",
)  # fmt: skip
# In the closure, but only for maintainer scripts.
_NOT_UNPACKED = {"adduser", "debconf", "dpkg", "debianutils"}

# Large, and of no use without a package manager or a reader; and two settings of Debian's that are replaced.
_TRIM = (
    "usr/share/doc", "usr/share/man", "usr/share/locale", "usr/share/info", "usr/share/lintian", "usr/share/bug",
    "usr/share/bash-completion", "usr/share/zsh", "usr/share/polkit-1", "usr/share/doc-base", "usr/lib/locale",
    "usr/lib/udev/hwdb.d", "usr/lib/systemd/catalog", "usr/lib/dracut", "usr/bin/ignition-validate",
    "usr/lib/x86_64-linux-gnu/gconv", "usr/share/initramfs-tools",
    "usr/lib/systemd/system/default.target", "usr/lib/systemd/system-preset",
)  # fmt: skip
# These rewrite databases, need D-Bus, ask questions on the console or wait for hardware.
_UNITS_OFF = (
    "systemd-firstboot.service", "systemd-hwdb-update.service", "systemd-journal-catalog-update.service",
    "systemd-sysusers.service", "systemd-binfmt.service", "systemd-pcrphase.service",
    "systemd-pcrphase-sysinit.service", "systemd-boot-system-token.service", "systemd-random-seed.service",
    "systemd-repart.service", "systemd-logind.service", "getty-static.service", "systemd-initctl.socket",
    "sys-kernel-debug.mount", "sys-kernel-tracing.mount", "dev-hugepages.mount", "dev-mqueue.mount",
    "proc-sys-fs-binfmt_misc.automount", "cryptsetup.target", "veritysetup.target", "integritysetup.target",
)  # fmt: skip

# Disks first: the initrd must find its partitions under every controller that the vendors' images meet.
_INITRD_MODULES = (
    "virtio_blk", "virtio_pci", "virtio_scsi", "sd_mod", "ata_piix", "ata_generic", "vmw_pvscsi", "hv_storvsc",
    "btrfs", "squashfs", "overlay", "loop",
)  # fmt: skip
_GUEST_MODULES = (
    *_INITRD_MODULES, "sr_mod", "isofs", "vfat", "nls_cp437", "nls_ascii", "nls_iso8859-1", "erofs", "dm_verity",
    "autofs4", "qemu_fw_cfg", "virtio_net", "virtio_rng", "virtio_console", "e1000",
)  # fmt: skip


@dataclass(frozen=True)
class Guest:
    """Files shared by all releases: a /usr tree (not to be changed), a kernel, and an initrd as gzip'ed cpio."""

    usr: Path
    vmlinuz: Path
    initrd: Path


def build() -> Guest:
    """The guest, from the cache or made now; then the package archive must be reachable."""
    path = cache.item("guest", cache.scripts_digest("guest.py", "packages.py", "files"), _make)
    return Guest(path / "tree" / "usr", path / "vmlinuz", path / "initrd.cpio.gz")


@dataclass(frozen=True)
class _Archives:
    """Downloaded packages: the guest's, and those of which only some files are used."""

    system: list[Path]
    kernel: Path
    busybox: Path


def _archives() -> _Archives:
    try:
        return _download(packages.Apt())
    except CommandFailed:
        # A container image often comes without package lists, and old lists name archives that are gone.
        return _download(packages.Apt.updated(cache.folder() / "apt-lists"))


def _download(apt: packages.Apt) -> _Archives:
    wanted = [name for name in apt.closure(PACKAGES) if name.partition("=")[0] not in _NOT_UNPACKED]
    kernel, busybox = apt.kernel(), apt.newest("busybox-static")

    def fetch(folder: Path) -> None:
        apt.download([*wanted, kernel, busybox], folder)

    folder = cache.item("debs", (wanted, kernel, busybox), fetch)
    extra = [next(folder.glob(f"{package.partition('=')[0]}_*.deb")) for package in (kernel, busybox)]
    return _Archives(sorted(set(folder.glob("*.deb")) - set(extra)), *extra)


def _make(work: Path) -> None:
    tree, extra = work / "tree", work / "extra"
    archives = _archives()
    for name in ("bin", "sbin", "lib", "lib64"):
        (tree / "usr" / name).mkdir(parents=True)
        (tree / name).symlink_to(f"usr/{name}")
    for archive in archives.system:
        packages.unpack(archive, tree)
    (tree / "usr/bin/sh").symlink_to("bash")
    extra.mkdir()
    packages.unpack(archives.kernel, extra)
    packages.unpack(archives.busybox, extra)
    shutil.copy(next((extra / "boot").glob("vmlinuz-*")), work / "vmlinuz")
    shutil.copy(tree / "usr/lib/dracut/modules.d/30ignition/ignition", extra)

    _trim(tree)
    _lay_over(tree)
    shutil.copy(extra / "ignition", tree / "usr/lib/flatcar/ignition")
    _copy_modules(extra, tree / "usr", _GUEST_MODULES)
    _make_initrd(tree, extra, work)
    shutil.rmtree(extra)


def _trim(tree: Path) -> None:
    for name in _TRIM:
        path = tree / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    units = tree / "usr/lib/systemd/system"
    for name in _UNITS_OFF:
        for link in units.glob(f"*.wants/{name}"):
            link.unlink()


def _lay_over(tree: Path) -> None:
    """Debian's /etc becomes the lower layer of Flatcar's /etc; then our own files win."""
    shutil.copytree(tree / "etc", tree / "usr/share/flatcar/etc", symlinks=True)
    for name in ("os-release", "mtab", "issue", "issue.net", "debian_version", "motd"):
        (tree / "usr/share/flatcar/etc" / name).unlink(missing_ok=True)
    shutil.copytree(FILES / "usr", tree / "usr", symlinks=True, dirs_exist_ok=True)
    for path in (FILES / "usr").rglob("*"):
        # A checkout's files carry its user's umask; in the image everybody may read them.
        if path.is_file() and not path.is_symlink():
            (tree / "usr" / path.relative_to(FILES / "usr")).chmod(0o755 if os.access(path, os.X_OK) else 0o644)
    (tree / "usr/share/flatcar/etc/shadow").chmod(0o640)


def _copy_modules(kernel: Path, target: Path, names: tuple[str, ...]) -> None:
    """Copy modules and what they need from `kernel`/lib/modules to `target`/lib/modules, and index them there."""
    version = next((kernel / "lib/modules").iterdir()).name
    run(["depmod", "-b", kernel, version])
    copied = target / "lib/modules" / version
    copied.mkdir(parents=True)
    for name in names:
        # A module that this kernel does not have, or has built in, is no error.
        shown = run(["modprobe", "-d", kernel, "-S", version, "--show-depends", name], ok=(0, 1)).text
        for module in re.findall(r"^insmod (\S+)", shown, re.MULTILINE):
            inside = Path(module).relative_to(kernel / "lib/modules" / version)
            (copied / inside).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(module, copied / inside)
    for name in ("modules.builtin", "modules.builtin.modinfo", "modules.order"):
        shutil.copy(kernel / "lib/modules" / version / name, copied)
    run(["depmod", "-b", target, version])


def _make_initrd(tree: Path, extra: Path, work: Path) -> None:
    """A static busybox, util-linux's blkid with its libraries, modules and our /init."""
    root = work / "initrd"
    (root / "bin").mkdir(parents=True)
    shutil.copy(extra / "bin/busybox", root / "bin/busybox")
    shutil.copy(FILES / "init", root / "init")
    (root / "init").chmod(0o755)
    shutil.copy(tree / "usr/sbin/blkid", root / "bin/blkid")
    libraries = tree / "usr/lib/x86_64-linux-gnu"
    (root / "lib/x86_64-linux-gnu").mkdir(parents=True)
    for name in ("libblkid.so.1", "libc.so.6"):
        shutil.copy(libraries / name, root / "lib/x86_64-linux-gnu" / name)
    (root / "lib64").mkdir()
    shutil.copy(libraries / "ld-linux-x86-64.so.2", root / "lib64")
    _copy_modules(extra, root, _INITRD_MODULES)
    (root / "modules").write_text("\n".join(_INITRD_MODULES))
    pack_cpio(root, work / "initrd.cpio.gz")
    shutil.rmtree(root)


def pack_cpio(root: Path, target: Path) -> None:
    """Pack a folder as the gzip'ed newc cpio that the kernel unpacks into its initramfs; all files become root's."""
    names = sorted(os.fspath(path.relative_to(root)) for path in root.rglob("*"))
    archive = run(
        ["cpio", "--quiet", "--create", "--format=newc", "--null", "--owner=0:0", "--reproducible"],
        input=b"".join(os.fsencode(name) + b"\0" for name in names), cwd=root,
    ).stdout  # fmt: skip
    target.write_bytes(run(["gzip", "-n", "-6"], input=archive).stdout)
