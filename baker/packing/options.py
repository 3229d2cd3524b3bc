"""What is said about a sysext that is packed: its formats and compressions, whom it is for."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from baker.errors import UsageError
from baker.extension_release import FLATCAR_LEVEL, validate_name
from baker.model import Arch
from baker.schema import suggest

FORMATS = ("squashfs", "erofs", "ext4", "ext2", "btrfs")
COMPRESSIONS = {
    "squashfs": ("gzip", "zstd", "xz", "lz4", "lzo"), "erofs": ("lz4hc", "lz4", "none"), "ext4": ("none",),
    "ext2": ("none",), "btrfs": ("none",),
}  # fmt: skip
"""The compressions of each format, the default first."""

ANY_OS = "_any"
MAX_EPOCH = 2**31 - 1  # the last second that every format here can hold

_ARCH_WORDS = {
    "x86-64": Arch.X86_64, "amd64": Arch.X86_64, "x86_64": Arch.X86_64, "arm64": Arch.ARM64, "aarch64": Arch.ARM64,
}  # fmt: skip
_OS_ID = re.compile(r"_any|[a-z0-9][a-z0-9._-]*")  # os-release(5)


@dataclass(frozen=True)
class PackOptions:
    """What is said about a sysext; everything else is in its folder. Checked when it is made: UsageError."""

    name: str
    arch: Arch | None
    """None: for every architecture."""
    format: str = "squashfs"
    os_id: str = ANY_OS
    """Which system it is for. `_any`, or an ID as in os-release, such as `flatcar`."""
    reload: bool = False
    """Whether systemd is to load its configuration again, so that units in the sysext take effect at once."""
    compression: str = ""
    """One of COMPRESSIONS[format]; "" is the first."""
    epoch: int = 0
    """The time of everything in the image: seconds since 1970."""
    keep_modes: bool = False
    """Keep all permissions of files and folders, not only whether a file can be executed."""
    drop_capabilities: bool = False
    """Leave file capabilities out instead of refusing them."""
    verity: bool = False
    """Make a disk image whose content the kernel checks by dm-verity; needs systemd-repart. Its salt is random."""
    signing: tuple[Path, Path] | None = None
    """Private key and certificate (PEM) that sign the verity hash."""

    def __post_init__(self) -> None:
        validate_name(self.name)
        if self.format not in FORMATS:
            raise UsageError(
                f"There is no format {self.format!r} for sysexts.",
                suggest(self.format, FORMATS) or f"There are {', '.join(FORMATS)}.",
            )
        if self.compression and self.compression not in COMPRESSIONS[self.format]:
            raise UsageError(
                f"The format {self.format} has no compression {self.compression!r}.",
                f"It has {', '.join(COMPRESSIONS[self.format])}.",
            )
        if not _OS_ID.fullmatch(self.os_id):
            raise UsageError(f"{self.os_id!r} is no ID of an operating system.", "Use _any or flatcar.")
        if not 0 <= self.epoch <= MAX_EPOCH:
            raise UsageError(f"The epoch {self.epoch} is out of range.", f"Give seconds from 0 to {MAX_EPOCH}.")
        if self.has_verity and self.arch is None:
            raise UsageError("An image with verity is made for one architecture.", "Say which: --arch x86-64")
        if self.has_verity and self.format == "btrfs":
            raise UsageError("A btrfs in an image with verity could not be checked.", "Use another --format.")
        for file in self.signing or ():
            if not file.is_file():
                raise UsageError(f"There is no file {file} to sign with.", "Give a key and a certificate: KEY,CERT")

    @property
    def has_verity(self) -> bool:
        return self.verity or self.signing is not None

    @property
    def release_text(self) -> str:
        """The content of extension-release.NAME."""
        lines = [f"ID={self.os_id}"]
        lines += [f"SYSEXT_LEVEL={FLATCAR_LEVEL}"] if self.os_id != ANY_OS else []
        lines += [f"ARCHITECTURE={self.arch}"] if self.arch else []
        lines += ["EXTENSION_RELOAD_MANAGER=1"] if self.reload else []
        return "".join(f"{line}\n" for line in lines)


def arch_from_word(word: str) -> Arch | None:
    """An architecture by the names that people use for it; None for "". UsageError for other words."""
    if word and word not in _ARCH_WORDS:
        raise UsageError(
            f"There is no architecture {word!r}.", suggest(word, _ARCH_WORDS) or f"There are {', '.join(Arch)}."
        )
    return _ARCH_WORDS[word] if word else None
