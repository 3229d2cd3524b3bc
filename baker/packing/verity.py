"""Wrapping a filesystem into a disk image (DDI) whose content the kernel checks by dm-verity, through systemd-repart.

systemd-repart knows verity since version 252; before 254 it works through loop devices, which takes root. It draws a
random salt, so these images are never the same twice.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from uuid import UUID

from baker.errors import EnvironmentFault
from baker.model import Arch
from baker.run import CommandFailed, run

_FIRST, _FIRST_WITHOUT_ROOT = 252, 254
_GRAIN = 4096  # partitions are multiples of it
# The smallest block of dm-verity, which systemd-repart takes by itself for an image; others need less room.
_BLOCK = 512
_HASHES = _BLOCK // 32  # of sha256 in a block


def protect(image: Path, arch: Arch, signing: tuple[Path, Path] | None, seed: UUID) -> Path:
    """Make a disk image of a filesystem image, beside it; returns its path.

    `signing` is a private key and a certificate; the disk's id derives from `seed`, as it would
    tell of this machine else. EnvironmentFault when systemd-repart is missing, too old, or fails.
    """
    version = _version()
    if version < _FIRST:
        raise EnvironmentFault(
            f"systemd-repart {version} does not know verity.", f"Version {_FIRST} or later is needed; pack without it."
        )
    definitions, target = image.with_name("repart.d"), image.with_name("ddi.raw")
    definitions.mkdir()
    for number, (kind, text) in enumerate(_partitions(image, arch, signing is not None)):
        (definitions / f"{number}0-{kind}.conf").write_text(f"[Partition]\n{text}", "utf-8")
    keys = [f"--private-key={signing[0].absolute()}", f"--certificate={signing[1].absolute()}"] if signing else []
    try:
        run([
            "systemd-repart", "--empty=create", "--size=auto", "--dry-run=no", "--pretty=no", "--no-legend",
            f"--definitions={definitions}", f"--seed={seed}", *keys, target,
        ])  # fmt: skip
    except CommandFailed as error:
        hint = error.hint
        if version < _FIRST_WITHOUT_ROOT and os.geteuid():
            hint = f"Before version {_FIRST_WITHOUT_ROOT} only root can do that; this is {version}."
        raise EnvironmentFault(f"The image cannot be protected by verity: {error.message}", hint) from error
    return target


def _version() -> int:
    match = re.search(r"systemd (\d+)", run(["systemd-repart", "--version"]).text)
    return int(match[1]) if match else 0


def _partitions(image: Path, arch: Arch, signed: bool) -> list[tuple[str, str]]:
    """The partitions as systemd-repart wants them, see repart.d(5): a name and the lines for each."""
    size = -(-image.stat().st_size // _GRAIN) * _GRAIN
    root = f"root-{arch}"
    found = [
        ("data", f"Type={root}\nVerity=data\nCopyBlocks={_plain(image)}\n" + _size(size)),
        ("hash", f"Type={root}-verity\nVerity=hash\n" + _size(_hash_size(size))),
    ]
    if signed:
        found.append(("signature", f"Type={root}-verity-sig\nVerity=signature\n"))
    return [(kind, f"{text}VerityMatchKey=sysext\n") for kind, text in found]


def _plain(path: Path) -> str:
    """A path for a setting in which `%` begins a specifier."""
    return str(path).replace("%", "%%")


def _size(size: int) -> str:
    return f"SizeMinBytes={size}\nSizeMaxBytes={size}\n"


def _hash_size(size: int) -> int:
    """Bytes of a verity partition: its superblock, and the hashes of data blocks, of those blocks, and so on."""
    blocks, total = size // _BLOCK, 1
    while blocks > 1:
        blocks = -(-blocks // _HASHES)
        total += blocks
    return -(-total * _BLOCK // _GRAIN) * _GRAIN
