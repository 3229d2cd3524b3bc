"""Where a release's files are: in a folder for each extension, or all in one folder as assets of a GitHub release are.

    folders                                flat
    SHA256SUMS          of everything      SHA256SUMS
    NAME.conf, noop.conf                   NAME.conf, noop.conf
    NAME/SHA256SUMS     of the extension
    NAME/NAME-VERSION-ARCH.raw             NAME-VERSION-ARCH.raw
    NAME/NAME-VERSION-ARCH.json            NAME-VERSION-ARCH.json   what it was built from

Both serve as `--bakery`. Configs are beside the common SHA256SUMS, where a bake looks for them.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from baker.releasing.items import ImageName, parse_image_name

SUMS = "SHA256SUMS"
NOTES = "Release.md"


@dataclass(frozen=True)
class Layout:
    """A release in the folder `root`. `names` are known extensions, by which file names are understood."""

    root: Path
    flat: bool
    names: frozenset[str]

    def folder(self, component: str) -> Path:
        """Where the images of an extension are."""
        return self.root if self.flat else self.root / component

    def parse(self, file: str) -> ImageName | None:
        """What an image's file name says; None for other files."""
        return parse_image_name(file, self.names)

    def of_images(self, files: Mapping[str, str]) -> dict[str, str]:
        """Of a list of file names with digests, what is about images and their records."""
        return {
            file: digest for file, digest in files.items()
            if self.parse(file) or (file.endswith(".json") and self.parse(file.removesuffix(".json") + ".raw"))
        }  # fmt: skip

    def images(self) -> dict[Path, ImageName]:
        """The finished images that are there, sorted by path."""
        found: dict[Path, ImageName] = {}
        folders = [self.root] if self.flat else _visible(self.root)
        for path in (path for folder in folders for path in _visible(folder)):
            name = self.parse(path.name)
            if name is not None and path.is_file() and path.parent == self.folder(name.component):
                found[path] = name
        return found

    def url(self, base: str, component: str) -> str:
        """The address of an extension's folder, for a release served at `base`."""
        return f"{base.rstrip('/')}/" if self.flat else f"{base.rstrip('/')}/{component}/"

    def link(self, image: ImageName, file: str) -> str:
        """The path of an image from the root."""
        return file if self.flat else f"{image.component}/{file}"


def record_name(image: str) -> str:
    """The name of the file that tells what an image was built from."""
    return image.removesuffix(".raw") + ".json"


def write_file(path: Path, data: bytes) -> bool:
    """Write a file at once, for a web server that may be reading it; False when it says the same already."""
    if path.is_file() and path.read_bytes() == data:
        return False
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with partial.open("wb") as file:
            file.write(data)
            os.fchmod(file.fileno(), 0o644)
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    return True


def _visible(folder: Path) -> Iterable[Path]:
    """Entries that a web server shows: no work folders, no links that lead elsewhere."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if not path.name.startswith(".") and not path.is_symlink())
