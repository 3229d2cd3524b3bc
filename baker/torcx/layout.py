"""Where each path of a torcx archive goes in a sysext."""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Mapping
from pathlib import Path

from baker.errors import ImageError
from baker.torcx.manifest import KINDS, MANIFEST

_BELOW_USR = ("bin", "lib", "lib32", "lib64", "libexec", "share", "include")
_NOWHERE = ("var", "run", "home", "root", "tmp", "boot", "dev", "proc", "sys", "mnt", "media", "srv")
_OWN = ".torcx"
_SAME_IN_LIB = re.compile(
    r"/etc(/systemd/(?:system|network)|/(?:tmpfiles|sysusers|sysctl|modules-load|modprobe)\.d|/udev/rules\.d)(?=/|$)"
)
"""Folders of /etc whose files mean the same below /usr/lib."""


class Layout:
    """The paths of an unpacked archive and their places. ImageError for a manifest that lists what is not there."""

    def __init__(self, folder: Path, name: str, archive: str, assets: Mapping[str, tuple[str, ...]]) -> None:
        self._folder, self._name = folder, name
        self.paths = _paths_below(folder)
        """What is at each absolute path of the archive: `folder`, `file` or `link`; parents come before children."""
        self.has_usr = "/usr" in self.paths
        self.programs = assets.get("bin", ())
        self.listed = {path for paths in assets.values() for path in paths}
        self._moved: dict[str, str] = {}
        for kind, paths in assets.items():
            for path in paths:
                if path not in self.paths:
                    raise ImageError(
                        f"{archive}: {MANIFEST} lists {path}, which is not in the archive.", "The archive is damaged."
                    )
                usual = self._usual(path)
                wanted = KINDS.get(kind, "") if kind != "bin" else ""  # programs stay, and get a link
                if wanted and wanted not in (usual, posixpath.dirname(usual)):
                    self._moved[path] = f"{wanted}/{posixpath.basename(path)}"
        self.left_out = sorted(f"/{top}" for top in {path.split("/")[1] for path in self.paths} if top in _NOWHERE)

    def where(self, path: str) -> str:
        """The place of a path of the archive in the sysext, "" for none. Paths that are not there have one as well."""
        path = posixpath.normpath(path) if path != "/" else path
        for part in _with_parents(path):
            if part in self._moved:
                return self._moved[part] + path[len(part) :]
        return self._usual(path)

    def link(self, path: str) -> str:
        """The text of a link, so that it leads to the new place of what it led to."""
        text = os.readlink(self._folder / path.lstrip("/"))
        target = posixpath.normpath(posixpath.join(posixpath.dirname(path), text))
        new = self.where(target) if target in self.paths else ""
        if not new:
            return text
        if text.startswith("/"):
            return new
        return text if self._unmoved(path, target) else posixpath.relpath(new, posixpath.dirname(self.where(path)))

    def _unmoved(self, path: str, target: str) -> bool:
        """Whether two paths keep their places to each other."""
        return all(self.where(each) in (each, f"/usr{each}") for each in (path, target)) and (
            path.startswith("/usr/") == target.startswith("/usr/")
        )

    def _usual(self, path: str) -> str:
        """By where it is in the archive alone."""
        parts = path.strip("/").split("/") if path != "/" else []
        if not parts:
            return "/usr"
        top, rest = parts[0], parts[1:]
        if top == _OWN or top in _NOWHERE:
            return ""
        if _SAME_IN_LIB.match(path):
            return f"/usr/lib{path.removeprefix('/etc')}"
        if top == "usr" and rest[:1] == ["sbin"]:
            return "/".join(["/usr/bin", *rest[1:]])
        if top in ("usr", "opt"):
            return path
        if top == "sbin":  # on Flatcar /usr/sbin is a link to bin, which a folder would hide
            return "/".join(["/usr/bin", *rest])
        if top in _BELOW_USR:
            return f"/usr{path}"
        return f"/usr/share/{self._name}{path}"


def _with_parents(path: str) -> list[str]:
    """A path and the folders it is in, the longest first."""
    found = []
    while path not in ("", "/"):
        found.append(path)
        path = posixpath.dirname(path)
    return found


def _paths_below(folder: Path) -> dict[str, str]:
    found: dict[str, str] = {}

    def walk(place: Path, above: str) -> None:
        with os.scandir(place) as items:
            for item in sorted(items, key=lambda item: item.name):
                path = f"{above}/{item.name}"
                if not item.name.isprintable():  # it would get into units and tmpfiles.d
                    raise ImageError(f"{path!r} of the archive has a name that is no plain text.")
                if item.is_symlink():
                    found[path] = "link"
                elif item.is_dir(follow_symlinks=False):
                    found[path] = "folder"
                    walk(place / item.name, path)
                elif item.is_file(follow_symlinks=False):
                    found[path] = "file"
                else:
                    raise ImageError(f"{path} of the archive is a pipe or socket, which no sysext can hold.")

    walk(folder, "")
    return found
