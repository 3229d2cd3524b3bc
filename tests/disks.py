"""Small but exact Flatcar disks for tests: the real partition table and filesystems, hardly any content.

Made by the ordinary tools on plain files, without root and without loop devices, in about a second.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

from baker.sparse import clone, content_digest, copy_extents, punch

MIB = 1 << 20
SECTOR = 512
DISK_GUID = "00000000-0000-0000-0000-000000000001"
USR_A_GUID = "7130c94a-213a-4e5a-8e26-6cce9662f132"
USR_B_GUID = "e03dd35c-7c2d-4a47-b3fe-27f15780a57c"

ESP_FILES: dict[str, bytes] = {"/flatcar/first_boot": b"", "/flatcar/vmlinuz-a": b"a kernel " * 1000}
USR_DATA = b"the read-only /usr of the release\n" * 4096

Files = Mapping[str, bytes | str | None]
"""Path -> bytes of a file, text of a symlink, or None for a directory."""

# label: (number, type GUID, attribute bits); sizes and starts in 512-byte sectors, per layout generation
_TYPES = {
    "EFI-SYSTEM": (1, "c12a7328-f81f-11d2-ba4b-00a0c93ec93b"),
    "BIOS-BOOT": (2, "21686148-6449-6e6f-744e-656564454649"),
    "USR-A": (3, "5dfbf5f4-2848-4bac-aa5e-0d9a20b745a6"),
    "USR-B": (4, "5dfbf5f4-2848-4bac-aa5e-0d9a20b745a6"),
    "OEM": (6, "0fc63daf-8483-4772-8e79-3d69d8477de4"),
    "OEM-CONFIG": (7, "c95dc21a-df0e-4340-8d7b-26cbfa9a03e0"),
    "ROOT": (9, "3884dd41-8582-4404-b9a8-e9b84f2df50e"),
}
LAYOUTS: dict[str, dict[str, tuple[int, int]]] = {
    "old": {
        "EFI-SYSTEM": (4096, 262144), "BIOS-BOOT": (266240, 4096), "USR-A": (270336, 2097152),
        "USR-B": (2367488, 2097152), "OEM": (4464640, 262144), "OEM-CONFIG": (4726784, 131072),
        "ROOT": (4857856, 4427776),
    },
    "new": {
        "EFI-SYSTEM": (4096, 2097152), "BIOS-BOOT": (2101248, 4096), "USR-A": (2105344, 4194304),
        "USR-B": (6299648, 4194304), "OEM": (10493952, 2097152), "OEM-CONFIG": (12591104, 131072),
        "ROOT": (12722176, 3653632),
    },
    # No release has this one: it is for tests that bake hundreds of times.
    "tiny": {
        "EFI-SYSTEM": (4096, 16384), "BIOS-BOOT": (20480, 4096), "USR-A": (24576, 32768), "USR-B": (57344, 4096),
        "OEM": (61440, 131072), "OEM-CONFIG": (192512, 4096), "ROOT": (196608, 131072),
    },
}  # fmt: skip
DISK_BYTES = {"old": 4756340736, "new": 8455716864, "tiny": 168 * MIB}
VM_DISK_BYTES = {"old": 9116319744, "new": 13212057600}
VM_ROOT_BYTES = 12943360 * SECTOR
_GUIDS = {"USR-A": USR_A_GUID, "USR-B": USR_B_GUID}


def make_disk(
    path: Path, layout: str = "old", root_files: Files | None = None, oem_files: Files | None = None
) -> Path:
    """Create a sparse raw disk at `path` with the base layout of a generation ("old", "new"), or "tiny".

    ROOT gets boot/, usr/, oem/, lost+found and `root_files`; OEM a grub.cfg and `oem_files`; the ESP `ESP_FILES`;
    USR-A starts with `USR_DATA`.
    """
    with path.open("xb") as disk:
        disk.truncate(DISK_BYTES[layout])
    tool("sfdisk", "--quiet", path, input=_table(layout))
    with TemporaryDirectory(dir=path.parent) as folder:
        work = Path(folder)
        put(path, layout, "EFI-SYSTEM", _esp(work / "esp", _size(layout, "EFI-SYSTEM")))
        put(path, layout, "OEM", make_oem(work / "oem", _size(layout, "OEM"), oem_files or {}))
        put(path, layout, "ROOT", make_root(work / "root", _size(layout, "ROOT"), root_files or {}))
    with path.open("r+b") as disk:
        disk.seek(offset(layout, "USR-A"))
        disk.write(USR_DATA)
    return path


def offset(layout: str, label: str) -> int:
    """Where a partition starts, in bytes."""
    return LAYOUTS[layout][label][0] * SECTOR


def _size(layout: str, label: str) -> int:
    return LAYOUTS[layout][label][1] * SECTOR


def _table(layout: str) -> bytes:
    # Flatcar's USR-A is marked priority=1, tries=0, successful=1: bits 48 and 56.
    lines = ["label: gpt", f"label-id: {DISK_GUID}", "first-lba: 34"]
    for label, (start, size) in LAYOUTS[layout].items():
        number, kind = _TYPES[label]
        guid = f", uuid={_GUIDS[label]}" if label in _GUIDS else ""
        marks = ', attrs="GUID:48,56"' if label == "USR-A" else ""
        lines.append(f'{number}: start={start}, size={size}, type={kind}, name="{label}"{guid}{marks}')
    return "\n".join(lines).encode() + b"\n"


def put(disk: Path, layout: str, label: str, filesystem: Path) -> None:
    """Replace the content of a partition by a filesystem file that is not larger."""
    with filesystem.open("rb") as source, disk.open("r+b") as target:
        punch(target.fileno(), offset(layout, label), _size(layout, label))
        copy_extents(source.fileno(), target.fileno(), 0, offset(layout, label), filesystem.stat().st_size)


def outside(disk: Path, label: str) -> str:
    """A digest of everything on a disk of the old layout but one partition's content."""
    copy, nothing = disk.with_suffix(".rest"), disk.with_suffix(".nothing")
    clone(disk, copy)
    nothing.touch()
    put(copy, "old", label, nothing)
    digest = content_digest(copy)
    copy.unlink()
    return digest


def _blank(path: Path, size: int) -> Path:
    with path.open("xb") as file:
        file.truncate(size)
    return path


def _fill(folder: Path, files: Files) -> Path:
    folder.mkdir(parents=True)
    folder.chmod(0o755)
    for name, content in files.items():
        entry = folder / name.lstrip("/")
        entry.parent.mkdir(parents=True, exist_ok=True)
        if content is None:
            entry.mkdir(exist_ok=True)
        elif isinstance(content, str):
            entry.symlink_to(content)
        else:
            entry.write_bytes(content)
    return folder


def _esp(image: Path, size: int) -> Path:
    _blank(image, size)
    tool("mkfs.vfat", "-n", "EFI-SYSTEM", image)
    tool("mmd", "-i", image, "::/flatcar")
    for name, content in ESP_FILES.items():
        tool("mcopy", "-i", image, "-", f"::{name}", input=content)
    return image


def make_oem(image: Path, size: int, files: Files) -> Path:
    """Create a btrfs of `size` bytes as Flatcar's OEM partition is, with a grub.cfg and `files`."""
    folder = _fill(image.with_suffix(".tree"), {"/grub.cfg": b'set oem_id="qemu"\n', **files})
    _blank(image, size)
    tool(*_as_root(), "mkfs.btrfs", "--mixed", "-m", "single", "-d", "single", "-L", "OEM",
          "--rootdir", folder, image)  # fmt: skip
    return image


def make_root(image: Path, size: int, files: Files, *options: str) -> Path:
    """Create an ext4 of `size` bytes as Flatcar's ROOT is, with `files`; `options` go to mke2fs."""
    folder = _fill(image.with_suffix(".tree"), {"/boot": None, "/usr": None, "/oem": None, **files})
    _blank(image, size)
    tool(*_as_root(), "mke2fs", "-q", "-t", "ext4", "-b", "4096", "-L", "ROOT", "-E",
          "lazy_itable_init=1,lazy_journal_init=1", *options, "-d", folder, image)  # fmt: skip
    return image


def _as_root() -> list[str]:
    """What makes the tools see our own files as root's."""
    return [] if os.geteuid() == 0 else ["unshare", "--map-root-user"]


def tool(*argv: str | Path, input: bytes = b"") -> bytes:
    """Run a program that must succeed; returns what it prints."""
    env = {"PATH": os.environ["PATH"] + ":/usr/sbin:/sbin", "LANG": "C.UTF-8", "MTOOLS_SKIP_CHECK": "1"}
    return subprocess.run(argv, input=input, env=env, check=True, capture_output=True).stdout
