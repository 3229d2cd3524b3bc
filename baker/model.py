"""The vocabulary of a bake: small frozen values that every module shares.

Sizes and offsets are bytes unless a name says sectors. Names follow Flatcar's and systemd's own terms.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

SECTOR = 512


class Arch(StrEnum):
    """A CPU architecture in systemd's and sysupdate's spelling (the `%a` of a transfer config)."""

    X86_64 = "x86-64"
    ARM64 = "arm64"

    @property
    def board(self) -> str:
        """Flatcar's board name, the folder on the release server."""
        return {"x86-64": "amd64-usr", "arm64": "arm64-usr"}[self.value]

    @property
    def feed_name(self) -> str:
        """The name used in `architectures` of Flatcar's release feed."""
        return {"x86-64": "amd64", "arm64": "arm64"}[self.value]


class Channel(StrEnum):
    ALPHA = "alpha"
    BETA = "beta"
    STABLE = "stable"
    LTS = "lts"
    EDGE = "edge"


@dataclass(frozen=True)
class Release:
    """One Flatcar release for one board."""

    version: str
    channel: Channel
    arch: Arch
    build_date: int = 0
    """Seconds since the epoch, from the feed; 0 where it is not known."""

    @property
    def board(self) -> str:
        return self.arch.board


@dataclass(frozen=True)
class Partition:
    """One entry of a GPT. `fs` is what a probe of its content says (`ext4`, `btrfs`, `vfat`, "")."""

    label: str
    number: int
    type_guid: str
    guid: str
    attributes: int
    offset: int
    size: int
    fs: str = ""


class InstallTarget(StrEnum):
    """The partitions a sysext can be baked into."""

    ROOT = "root"
    OEM = "oem"

    @property
    def label(self) -> str:
        """The GPT partition label."""
        return {"root": "ROOT", "oem": "OEM"}[self.value]


@dataclass(frozen=True)
class Injection:
    """One entry to put into a partition.

    `path` is absolute within the partition and plain: no `.`/`..`, no control characters.
    Exactly one of these says what it is: `source` (a host file to copy), `content` (bytes), `symlink`
    (the link's text), or none of them for a directory. Missing parent directories are made root:root 0755;
    an existing directory is kept as it is. `replace` allows an existing file or link to be replaced.
    """

    path: str
    mode: int = 0o644
    uid: int = 0
    gid: int = 0
    source: Path | None = None
    content: bytes | None = None
    symlink: str | None = None
    replace: bool = False

    @property
    def is_directory(self) -> bool:
        return self.source is None and self.content is None and self.symlink is None

    @property
    def size(self) -> int:
        """Bytes of content; 0 for links and directories."""
        if self.source is not None:
            return self.source.stat().st_size
        return len(self.content) if self.content is not None else 0


@dataclass(frozen=True)
class Node:
    """What is at a path inside a partition; used to compare the two backends and by `inspect`."""

    path: str
    kind: str
    """`file`, `directory`, `symlink` or `other`."""
    mode: int
    uid: int
    gid: int
    size: int
    sha256: str = ""
    symlink: str = ""


@dataclass(frozen=True)
class Sysext:
    """What a sysext image says about itself in its extension-release file."""

    name: str
    path: Path
    size: int
    sha256: str
    fs: str
    """`squashfs`, `erofs`, `ext4`, `btrfs` or `ddi` (a GPT disk image)."""
    os_id: str
    version_id: str = ""
    sysext_level: str = ""
    architecture: str = ""
    reload_manager: bool = False


@dataclass(frozen=True)
class Artifact:
    """A file of the output folder."""

    path: Path
    format: str
    size: int
    sha256: str
    vendor: str
