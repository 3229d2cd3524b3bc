"""A torcx archive unpacked, and what its manifest says of it.

Formats, from torcx' documentation (images.md, image-manifest-v0.md): a gzipped tar or a squashfs with a part of a
root filesystem, and `.torcx/manifest.json`, which lists by kind the absolute paths that become part of the system.
"""

from __future__ import annotations

import json
import posixpath
import stat
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from baker.contents import open_contents
from baker.errors import ImageError, UsageError
from baker.oci.layers import RootFolder
from baker.recipe.archives import naming_damage, tar_entries
from baker.recipe.landing import Limits

MANIFEST = ".torcx/manifest.json"
KINDS = {
    "bin": "/usr/bin", "units": "/usr/lib/systemd/system", "network": "/usr/lib/systemd/network",
    "sysusers": "/usr/lib/sysusers.d", "tmpfiles": "/usr/lib/tmpfiles.d", "udev_rules": "/usr/lib/udev/rules.d",
}  # fmt: skip
"""Where each kind of path in the manifest takes effect in a sysext."""

_LIMITS = Limits()
_LARGEST = 4 << 20
_HINT = "Is it a torcx archive? They are called NAME:VERSION.torcx.tgz or .torcx.squashfs."


def unpack_archive(archive: Path, folder: Path) -> RootFolder:
    """Unpack a torcx archive, of either kind, into the new folder `folder`, which nothing in it can lead out of.

    Raises UsageError when there is no such file, ImageError when it is damaged or no archive.
    """
    if not archive.is_file():
        raise UsageError(f"There is no file {archive}.", _HINT)
    root = RootFolder(folder, archive.name, _LIMITS.for_archive(archive.stat().st_size), _LIMITS.entries)
    root.begin(archive.name)
    with archive.open("rb") as file:
        is_squashfs = file.read(4) == b"hsqs"
        file.seek(0)
        if is_squashfs:
            _take_squashfs(archive, root)
        else:
            with naming_damage(archive.name, "tar"):
                for entry, chunks in tar_entries(file, archive.name):
                    root.take(entry, chunks)
    root.finish()
    return root


def _take_squashfs(archive: Path, root: RootFolder) -> None:
    with open_contents(archive) as opened:
        if opened.contents is None:
            raise ImageError(f"{archive.name} cannot be read: {opened.why_not}.")
        for path, node in sorted(opened.contents.nodes.items()):
            entry = tarfile.TarInfo(path.lstrip("/"))
            entry.mode, entry.uid, entry.gid = stat.S_IMODE(node.mode), node.uid, node.gid
            if node.kind == "directory":
                entry.type = tarfile.DIRTYPE
            elif node.kind == "symlink":
                entry.type, entry.linkname = tarfile.SYMTYPE, opened.contents.link(path)
            elif node.kind != "file":
                raise ImageError(f"{archive.name}: {path} is a device, pipe or socket, which no sysext can hold.")
            entry.size = node.size if node.kind == "file" else 0
            root.take(entry, [opened.contents.read(path, node.size)] if node.kind == "file" else [])


def read_assets(folder: Path, name: str) -> Mapping[str, tuple[str, ...]] | None:
    """The paths that the manifest of an unpacked archive lists, normal and absolute, by kind; None for no manifest.

    Raises ImageError for a manifest that is damaged, of another version, or lists what is no path.
    """
    path = folder / MANIFEST
    if path.parent.is_symlink() or path.is_symlink() or not path.is_file():
        return None
    if path.stat().st_size > _LARGEST:
        raise ImageError(f"{name}: {MANIFEST} is far too large.", _HINT)
    try:
        document = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        raise ImageError(f"{name}: {MANIFEST} is no valid JSON.", _HINT) from None
    kind = document.get("kind") if isinstance(document, dict) else None
    if kind != "image-manifest-v0":
        raise ImageError(f"{name}: {MANIFEST} is of the kind {str(kind)[:60]!r}, not image-manifest-v0.", _HINT)
    lists = document.get("value")
    if not isinstance(lists, dict):
        raise ImageError(f"{name}: {MANIFEST} lists nothing.", _HINT)
    return {str(key): tuple(_paths(listed, name)) for key, listed in lists.items()}


def _paths(listed: Any, name: str) -> Iterator[str]:
    for path in listed if isinstance(listed, list) else [] if listed is None else [listed]:
        if not isinstance(path, str) or not path.startswith("/") or ".." in path.split("/") or "\0" in path:
            raise ImageError(f"{name}: {MANIFEST} lists {str(path)[:80]!r}, which is no absolute path.", _HINT)
        yield posixpath.normpath("/" + path.lstrip("/"))
