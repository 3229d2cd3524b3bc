"""Packing: a folder becomes a sysext image, with the same bytes whoever packs it, anywhere and at any time.

    options + folder ─► read_tree() ─► entries ─► squashfs | erofs | ext4 | ext2 | btrfs ─► read back ─► its name

What decides the bytes: the names, contents and x bits in the folder, the options, and the version of the tool.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from baker.contents import open_contents
from baker.errors import ImageError, UsageError
from baker.model import Arch
from baker.packing import erofs, squashfs
from baker.packing.btrfs import write_btrfs_image
from baker.packing.erofs import write_erofs
from baker.packing.ext import write_ext
from baker.packing.squashfs import write_squashfs
from baker.packing.staging import staged
from baker.packing.tree import Entry, directory, identity, read_tree, text_file
from baker.packing.verity import protect
from baker.publish import give_name, tidy
from baker.schema import suggest
from baker.stopping import unbroken
from baker.sysext import FLATCAR_LEVEL, RELEASE_FOLDER, RELEASE_PREFIX, validate_name
from baker.treelint import check_tree
from baker.work import WorkFolder

FORMATS = ("squashfs", "erofs", "ext4", "ext2", "btrfs")
COMPRESSIONS = {
    "squashfs": squashfs.COMPRESSIONS, "erofs": erofs.COMPRESSIONS, "ext4": ("none",), "ext2": ("none",),
    "btrfs": ("none",),
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


def pack(tree: Path, target: Path, options: PackOptions, *, own: bool = False, force: bool = False) -> None:
    """Make the sysext image `target` of the folder `tree`, which is not changed unless it is our `own`.

    The image gets its name when it is finished and has been read back; one that exists is kept unless `force`.
    Raises UsageError for a folder that cannot be a sysext's, ImageError when systemd or Flatcar would stumble over
    the result, EnvironmentFault when a tool is missing or fails.
    """
    check_target(tree, target, force)
    entries = with_release(read_tree(
        tree, keep_modes=options.keep_modes, drop_capabilities=options.drop_capabilities
    ), options)  # fmt: skip
    _check(entries, options.name)
    tidy(target.absolute().parent)
    with WorkFolder(target.absolute().parent) as work:
        image = work / "image.raw"
        _write(entries, image, options, own)
        if options.has_verity:
            assert options.arch is not None
            image = protect(image, options.arch, options.signing, identity(entries, options.epoch))
        check_listing(image, entries)
        publish_image(image, target, force)


def check_target(tree: Path, target: Path, force: bool) -> None:
    """UsageError when the folder `tree` cannot be packed into `target`: for a start, before any work."""
    if not tree.is_dir():
        what = "is not a folder" if tree.exists() else "does not exist"
        raise UsageError(f"{tree} {what}.", "Give the folder that holds the sysext's usr/.")
    if not target.parent.is_dir():
        raise UsageError(f"There is no folder {target.parent} for the image.", "Make it, or choose another --output.")
    if target.absolute().parent.resolve().is_relative_to(tree.resolve()):
        raise UsageError(f"{target} is inside the folder to pack.", "Choose another --output.")
    if target.is_dir() or (target.exists() and not force):
        raise UsageError(f"{target} exists.", "Choose another --output, or use --force to overwrite it.")


def with_release(entries: Mapping[str, Entry], options: PackOptions) -> dict[str, Entry]:
    """The entries with the extension-release file of `options` among them, in order."""
    added = {path: directory(path) for path in ("/usr", "/usr/lib", RELEASE_FOLDER)}
    path = f"{RELEASE_FOLDER}/{RELEASE_PREFIX}{options.name}"
    for folder in added:
        if folder in entries and entries[folder].kind != "directory":
            raise UsageError(f"{folder} is no folder, so there is no place for {path}.", "Make it a folder.")
    merged = added | dict(entries) | {path: text_file(path, options.release_text.encode())}
    return dict(sorted(merged.items(), key=lambda item: item[0].encode("utf-8", "surrogateescape").split(b"/")))


def _check(entries: Mapping[str, Entry], name: str) -> None:
    """Refuse what the lint would refuse once it is an image."""
    for finding in check_tree({path: entry.node for path, entry in entries.items()}, name, None):
        if finding.fatal:
            raise ImageError(finding.message, finding.hint)


def _write(entries: Mapping[str, Entry], image: Path, options: PackOptions, own: bool) -> None:
    uuid = identity(entries, options.epoch)
    if options.format == "btrfs":
        write_btrfs_image(entries, image, options.epoch, uuid, options.name)
        return
    compression = options.compression or COMPRESSIONS[options.format][0]
    with staged(entries.values(), image.with_name("tree"), options.epoch, own) as folder:
        if options.format == "squashfs":
            write_squashfs(folder, image, compression, options.epoch)
        elif options.format == "erofs":
            write_erofs(entries.values(), folder, image, compression, options.epoch, uuid)
        else:
            write_ext(options.format, entries.values(), folder, image, options.epoch, uuid)


def check_listing(image: Path, entries: Mapping[str, Entry]) -> None:
    """Read an image back; ImageError when it does not hold just these entries, owned by root."""
    with open_contents(image) as opened:
        if opened.contents is None:
            raise ImageError(f"The image cannot be read back: {opened.why_not}.")
        links = {path: opened.contents.link(path) for path, node in opened.contents.nodes.items()
                 if node.kind == "symlink"}  # fmt: skip
        found = {
            path: (node.kind, node.mode if node.kind != "symlink" else 0, node.uid, node.gid, node.size,
                   links.get(path, "")) for path, node in opened.contents.nodes.items()
        }  # fmt: skip
    wanted = {
        path: (entry.kind, entry.mode if entry.kind != "symlink" else 0, 0, 0, entry.size, entry.symlink)
        for path, entry in entries.items()
    }
    wrong = sorted(path for path in found.keys() | wanted.keys() if found.get(path) != wanted.get(path))
    if wrong:
        raise ImageError(
            f"The image does not hold what went in: {len(wrong)} paths differ, the first is {wrong[0]!r}.",
            "Pack the folder when nobody writes to it; if that is so, report it.",
        )


def publish_image(image: Path, target: Path, force: bool) -> None:
    """Give a finished image in a work folder its name; UsageError when it was taken meanwhile."""
    with image.open("rb") as file:
        os.fsync(file.fileno())
    with unbroken():
        try:
            give_name(image, target, force)
        except FileExistsError:
            raise UsageError(f"{target} appeared meanwhile.", "Use --force to overwrite it.") from None
