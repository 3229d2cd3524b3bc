"""Real sysext images for tests, made by the real mkfs tools."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

RELEASE = "ID=flatcar\nSYSEXT_LEVEL=1.0\nARCHITECTURE=x86-64\n"


def write_tree(folder: Path, name: str, release: str | None = RELEASE, files: Mapping[str, str | bytes] = {}) -> Path:
    """A sysext's folder: extension-release.NAME (None: without one) and `files`; those in a bin/ are executable."""
    content: dict[str, str | bytes] = {f"usr/share/{name}/hello.txt": f"hello from {name}\n", **files}
    if release is not None:
        content[f"usr/lib/extension-release.d/extension-release.{name}"] = release
    for path, data in content.items():
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data.encode() if isinstance(data, str) else data)
        target.chmod(0o755 if target.parent.name == "bin" else 0o644)
    for path in [folder, *folder.rglob("*")]:
        if path.is_dir():
            path.chmod(0o755)
    return folder


def pack(folder: Path, image: Path, fs: str = "squashfs", root_owned: bool = True) -> Path:
    """Make an image of a folder.

    `squashfs`, `ext4`, `btrfs`, `erofs` (plain), `erofs-lz4` (compressed, with short inodes), `erofs-chunks`, `ddi`
    (squashfs in the root partition of a GPT), or `ddi-usr` (the folder's usr/ as the usr partition).
    """
    if fs == "ddi":
        return _pack_ddi(folder, image, "4f68bce3-e8cd-4db1-96e7-fbcaf984b709")
    if fs == "ddi-usr":
        return _pack_ddi(folder / "usr", image, "8484680c-9521-48c6-9c11-b0720656f69e")
    owner = ["-all-root" if fs == "squashfs" else "--all-root"] if root_owned else []
    commands: dict[str, list[str | Path]] = {
        "squashfs": ["mksquashfs", folder, image, "-quiet", "-no-progress", "-noappend", *owner],
        "erofs": ["mkfs.erofs", "--quiet", *owner, image, folder],
        "erofs-lz4": ["mkfs.erofs", "--quiet", "-zlz4hc", "-Eforce-inode-compact", "-T0", *owner, image, folder],
        "erofs-chunks": ["mkfs.erofs", "--quiet", "--chunksize=8192", *owner, image, folder],
        "ext4": ["mke2fs", "-q", "-t", "ext4", "-d", folder, image, "8M"],
        "btrfs": ["mkfs.btrfs", "-q", "--mixed", "--rootdir", folder, image],
    }
    image.touch()  # mkfs.btrfs wants the file to be there
    subprocess.run(commands[fs], check=True, stdout=subprocess.DEVNULL)
    return image


def _pack_ddi(folder: Path, image: Path, type_guid: str) -> Path:
    inner = pack(folder, image.with_suffix(".inner"))
    with image.open("wb") as file:
        file.truncate(8 << 20)
        file.seek(1 << 20)
        file.write(inner.read_bytes())
    inner.unlink()
    table = f"label: gpt\nstart=2048, type={type_guid}\n".encode()
    subprocess.run(["sfdisk", "--quiet", image], input=table, check=True)
    return image


def make_sysext(
    folder: Path,
    name: str,
    release: str | None = RELEASE,
    files: Mapping[str, str | bytes] = {},
    fs: str = "squashfs",
    file_name: str | None = None,
) -> Path:
    """A complete sysext image in `folder`, NAME.raw unless `file_name` is given."""
    tree = write_tree(folder / f"{name}-tree", name, release, files)
    image = pack(tree, folder / (file_name or f"{name}.raw"), fs)
    shutil.rmtree(tree)
    return image
