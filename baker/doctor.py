"""Checking a machine for what a bake needs, by trying it; and removing what an earlier crash left."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import stat
import sys
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

from baker import landlock
from baker.btrfs_writer import BtrfsNode, write_btrfs
from baker.cache import Cache
from baker.disk import read_table, write_back
from baker.errors import BakeError, EnvironmentFault
from baker.model import Arch, Injection
from baker.offline import OfflineEditor, offline_available
from baker.privilege import loop_available
from baker.publish import tidy
from baker.qemu import choose_accelerator, firmware_files
from baker.run import ESSENTIAL, PACKAGES, find, run
from baker.work import PREFIX, scratch, stale

_MIB = 1 << 20
_SPACE = 8 << 30  # one release downloaded and unpacked, and a few results

# What each program is for.
_JOBS = {
    "gpg": "verifies signatures of releases", "lbzip2": "unpacks images on all cores",
    "qemu-img": "checks disk formats", "qemu-system-x86_64": "boots x86-64 images",
    "qemu-system-aarch64": "boots arm64 images", "debugfs": "edits ROOT without root",
    "e2fsck": "checks ROOT", "resize2fs": "enlarges ROOT for most vendors",
    "btrfs": "reads and checks OEM and USR", "mdir": "reads the ESP", "fsck.vfat": "checks the ESP",
    "blkid": "recognises filesystems", "unsquashfs": "reads squashfs sysexts",
    "fsck.erofs": "reads compressed files of EROFS sysexts", "sudo": "runs the loop backend",
    "xz": "unpacks recipes' sources", "zstd": "unpacks recipes' sources, packs images as .zst",
    "git": "lists versions of some recipes", "podman": "builds some recipes from source",
    "mksquashfs": "packs sysexts", "mkfs.erofs": "packs EROFS sysexts", "mke2fs": "packs ext4 and ext2 sysexts",
    "systemd-repart": "protects sysexts by verity", "ignition-validate": "checks Ignition configs",
    "xorriso": "writes ISOs", "grub-mkimage": "makes ISOs boot", "mkfs.vfat": "makes ISOs boot by UEFI",
    "mmd": "makes ISOs boot by UEFI", "mcopy": "makes ISOs boot by UEFI",
    "dnsmasq": "answers machines that boot from the network", "ip": "tells the addresses of network interfaces",
    "skopeo": "fetches container images where podman does not",
}  # fmt: skip
_VERSION_OPTIONS = {
    "debugfs": "-V", "e2fsck": "-V", "unsquashfs": "-version", "mksquashfs": "-version", "mke2fs": "-V",
    "fsck.erofs": "-V", "mkfs.erofs": "-V", "ip": "-V",
}  # fmt: skip


@dataclass(frozen=True)
class Check:
    """One thing that was checked. `essential`: without it no bake works here. `hint` is "" where all is well."""

    name: str
    ok: bool
    detail: str
    hint: str = ""
    essential: bool = False

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def check(cache: Path) -> list[Check]:
    """Check programs, backends, virtualisation, firmware and the space for the cache folder.

    Programs are started for their version, the offline backend edits a small disk, the loop backend mounts one.
    Takes about two seconds.
    """
    with ThreadPoolExecutor() as pool:
        programs = pool.map(_check_program, PACKAGES)
        others = [pool.submit(work) for work in (_check_kvm, _check_firmware)]
        space = _check_space(cache)
        return [*programs, *_check_backends(), _check_containment(), *(item.result() for item in others), space]


def render(checks: Iterable[Check]) -> str:
    """The checks as plain text, one line each, with the hint below what is not well."""
    lines = []
    for item in checks:
        mark = "ok" if item.ok else "MISSING" if item.essential else "no"
        lines.append(f"{mark:<8} {item.name:<20} {item.detail}")
        if item.hint:
            lines.append(f"{'':<29} {item.hint}")
    return "\n".join(lines)


def _check_program(program: str) -> Check:
    job, package, essential = _JOBS[program], PACKAGES[program], program in ESSENTIAL
    if find(program) is None:
        return Check(program, False, job, f"On Debian: apt-get install {package}", essential)
    # resize2fs has no option for its version: it says it whatever happens.
    said = run([program, _VERSION_OPTIONS.get(program, "--version")], ok=range(-64, 256))
    version = re.search(r"\d+(\.\d+)+", said.text + said.stderr)
    return Check(program, True, f"{version[0] if version else '?'} from {package}: {job}", "", essential)


def _check_backends() -> Iterator[Check]:
    offline, loop = offline_available() or _try_offline(), loop_available()
    # One of the two is enough.
    hint = "One backend must work; see the programs above."
    yield Check(
        "offline backend", offline is None, offline or "edits images without root and loop devices",
        hint if offline and loop else "", essential=loop is not None,
    )  # fmt: skip
    yield Check("loop backend", loop is None, loop or "mounts images through one privileged helper")


def _check_containment() -> Check:
    if landlock.version():
        return Check("Landlock", True, "tools that read images can write nowhere else")
    return Check("Landlock", False, "tools that read images could write where you can; see docs/security.md")


def _try_offline() -> str | None:
    """Edit a small disk of both filesystems; None when what was written is there, else the reason."""
    wanted = Injection("/etc/flatcar-bake/doctor", content=b"well\n", mode=0o640)
    with scratch() as folder:
        try:
            disk = _small_disk(folder)
            with OfflineEditor(disk, folder, 0) as editor:
                for label in ("ROOT", "OEM"):
                    editor.apply(label, [wanted])
                    if editor.read(label, wanted.path) != wanted.content:
                        return f"What was written to {label} did not come back."
        except BakeError as error:
            return error.message
    return None


def _small_disk(folder: Path) -> Path:
    """A disk with an ext4 called ROOT and a btrfs called OEM."""
    import parted

    disk = folder / "disk"
    with disk.open("xb") as file:
        file.truncate(100 * _MIB)
    device = parted.getDevice(os.fspath(disk))
    table = parted.freshDisk(device, "gpt")
    sectors = _MIB // device.sectorSize
    for label, start, size in (("ROOT", 1, 16), ("OEM", 32, 64)):
        geometry = parted.Geometry(device, start=start * sectors, length=size * sectors)
        partition = parted.Partition(table, parted.PARTITION_NORMAL, geometry=geometry)
        table.addPartition(partition, parted.Constraint(exactGeom=geometry))
        partition.getPedPartition().set_name(label)
    table.commitToDevice()
    device.removeFromCache()
    root, oem = folder / "ROOT", folder / "OEM"
    with root.open("xb") as file:
        file.truncate(16 * _MIB)
    run(["mkfs.ext4", "-q", root])
    write_btrfs(oem, 64 * _MIB, UUID(int=1), "OEM", {"/": BtrfsNode(stat.S_IFDIR | 0o755, 0, 0, 0)})
    for content in (root, oem):
        write_back(disk, read_table(disk).get(content.name), content)
    return disk


def _check_kvm() -> Check:
    arch = Arch.ARM64 if platform.machine() == "aarch64" else Arch.X86_64
    try:
        choose_accelerator(arch, "kvm")
    except EnvironmentFault as fault:
        return Check("kvm", False, fault.message, "Booting works without it, slowly.")
    return Check("kvm", True, f"boots {arch} images at full speed")


def _check_firmware() -> Check:
    found, hints = [], []
    for arch in Arch:
        try:
            firmware_files(arch)
            found.append(arch.value)
        except EnvironmentFault as fault:
            hints.append(f"{arch}: {fault.hint}")
    return Check("uefi firmware", bool(found), f"for booting {' and '.join(found) or 'nothing'}", " ".join(hints))


def _check_space(cache: Path) -> Check:
    existing = next(folder for folder in (cache.absolute(), *cache.absolute().parents) if folder.exists())
    free = shutil.disk_usage(existing).free
    hint = "" if free >= _SPACE else f"A bake may need {_SPACE >> 30} GiB; --cache-dir puts the cache elsewhere."
    return Check("space for the cache", free >= _SPACE, f"{free / (1 << 30):.1f} GiB free for {cache}", hint)


def cleanup(folders: Iterable[Path], cache: Path) -> list[str]:
    """Remove what crashed bakes left: work folders in `folders`, mounts and loop devices on them, broken downloads.

    Work of a bake that is alive is left alone, and so are downloads of the last week, which a bake resumes. Returns
    what was removed, a line each. Raises EnvironmentFault for a work folder that resists.
    """
    removed = []
    for folder in folders:
        removed += _release_devices(folder.resolve())
        gone, resisting = tidy(folder)
        if resisting:
            raise EnvironmentFault(
                f"The work folder {resisting[0]} cannot be removed.", "It holds files of another user."
            )
        for path in gone:
            kind = "work folder" if path.name.startswith(PREFIX) else "output of an unfinished bake"
            removed.append(f"{kind} {path}")
    return removed + _drop_downloads(cache)


def _release_devices(folder: Path) -> list[str]:
    """Unmount and detach loop devices whose file is, or was, in an abandoned work folder inside `folder`."""
    if find("losetup") is None:
        return []
    released = []
    abandoned = {work.resolve() for work in stale(folder)}
    for loop, file in _loop_devices():
        work = next((parent for parent in file.parents if parent.parent == folder), None)
        if work is None or not work.name.startswith(PREFIX) or (work.exists() and work not in abandoned):
            continue
        mounts = run(["findmnt", "--noheadings", "--list", "--output", "TARGET", "--source", loop], ok=(0, 1))
        for target in mounts.text.splitlines():
            run(["umount", target])
            released.append(f"mount {target}")
        if (loop, file) in _loop_devices():  # some clear themselves with their last mount
            run(["losetup", "--detach", loop])
        released.append(f"loop device {loop} on {file}")
    return released


def _loop_devices() -> list[tuple[str, Path]]:
    """Each loop device and the file it stands for."""
    listed = run(["losetup", "--json", "--list", "--output", "NAME,BACK-FILE"]).text
    devices: list[dict[str, str | None]] = json.loads(listed)["loopdevices"] if listed.strip() else []
    return [
        (str(item["name"]), Path(str(item["back-file"]).removesuffix(" (deleted)")))
        for item in devices if item["back-file"]
    ]  # fmt: skip


def _drop_downloads(cache: Path) -> list[str]:
    """Let the cache drop its broken downloads, and nothing else."""
    before = set(cache.glob("v*/partial/*"))
    if before:
        Cache(cache, sys.maxsize).prune()
    return [f"broken download {path}" for path in sorted(before - set(cache.glob("v*/partial/*")))]
