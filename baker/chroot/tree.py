"""The tree that a tool makes of a root filesystem, and its account of what is in there and why."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from baker.errors import ImageError
from baker.model import Arch


@dataclass(frozen=True)
class Told:
    """Why a path is in the sysext."""

    path: str
    source: str
    why: str
    asked: bool


@dataclass
class Made:
    """A finished tree."""

    tree: Path
    arch: Arch | None = None
    """What its programs are for; None where there are none."""
    told: list[Told] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """What its user should know."""

    def say(self, path: str, source: str, why: str, asked: bool) -> None:
        self.told.append(Told(path, source, why, asked))

    def as_dict(self) -> dict[str, Any]:
        """The account as JSON."""
        return {
            "arch": self.arch.value if self.arch else None, "notes": self.notes,
            "taken": [{"path": told.path, "source": told.source, "why": told.why} for told in self.told],
        }  # fmt: skip


def new_tree(target: Path) -> None:
    """Make the folder of a tree."""
    target.mkdir()
    target.chmod(0o755)


def make_folder(tree: Path, folder: Path) -> None:
    """Make a folder of the tree with those above it, open to all whatever the umask; those that are there stay.

    ImageError where a link or file is in its way.
    """
    for part in [*reversed(folder.relative_to(tree).parents), folder.relative_to(tree)]:
        place = tree / part
        if place.is_symlink() or (place.exists() and not place.is_dir()):
            raise ImageError(f"/{folder.relative_to(tree)} would be below /{part}, which is no folder.")
        if not place.exists():
            place.mkdir()
            place.chmod(0o755)


def settle_folders(tree: Path) -> None:
    """Give all folders of a tree the mode that they have in a system, whatever the umask."""
    for folder, _, _ in os.walk(tree):
        Path(folder).chmod(0o755)
