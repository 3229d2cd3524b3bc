"""Packing: a folder becomes a sysext image, with the same bytes whoever packs it, anywhere and at any time.

    options + folder ─► read_tree() ─► entries ─► squashfs | erofs | ext4 | ext2 | btrfs ─► read back ─► its name

What decides the bytes: the names, contents and x bits in the folder, the options, and the version of the tool.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from baker.contents import open_contents
from baker.errors import ImageError, UsageError
from baker.extension_release import RELEASE_FOLDER, RELEASE_PREFIX
from baker.packing.options import COMPRESSIONS, PackOptions
from baker.packing.squashfs import write_squashfs
from baker.packing.staging import staged
from baker.packing.tree import Entry, directory, identity, read_tree, text_file
from baker.publish import give_name, tidy
from baker.stopping import unbroken
from baker.treelint import check_tree
from baker.work import WorkFolder


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
            from baker.packing.verity import protect

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
        from baker.packing.btrfs import write_btrfs_image

        write_btrfs_image(entries, image, options.epoch, uuid, options.name)
        return
    compression = options.compression or COMPRESSIONS[options.format][0]
    with staged(entries.values(), image.with_name("tree"), options.epoch, own) as folder:
        if options.format == "squashfs":
            write_squashfs(folder, image, compression, options.epoch)
        elif options.format == "erofs":
            from baker.packing.erofs import write_erofs

            write_erofs(entries.values(), folder, image, compression, options.epoch, uuid)
        else:
            from baker.packing.ext import write_ext

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
