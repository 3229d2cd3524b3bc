"""What qemu-img finds in a disk image that somebody hands us."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from baker.errors import ImageError
from baker.run import Bounds, CommandFailed, run


@dataclass(frozen=True)
class ImageInfo:
    """What qemu-img says of a disk image; `virtual_size` in bytes."""

    format: str
    virtual_size: int


def image_info(path: Path, assume: str | None = None) -> ImageInfo:
    """Probe an image file. `assume` names the format where it cannot be probed safely (raw, fixed VHD).

    Raises ImageError for a file qemu-img cannot read, and for one that names other files (a backing file, an external
    data file or extents): an image is untrusted, and following its references would read any file we can read.
    """
    argv = ["qemu-img", "info", "--output=json", *(["-f", assume] if assume else []), os.fspath(path)]
    try:
        found: dict[str, Any] = json.loads(run(argv, bounds=Bounds()).text)
    except CommandFailed as error:
        raise ImageError(f"{path.name} is not a readable disk image.", error.message) from error
    specific = found.get("format-specific", {}).get("data", {})
    extents = {extent.get("filename") for extent in specific.get("extents", [])}
    if "backing-filename" in found or "data-file" in specific or extents - {os.fspath(path)}:
        raise ImageError(
            f"{path.name} refers to another file, which a disk image from outside must not.",
            "Flatten it first: qemu-img convert -O qcow2 IMAGE FLAT.",
        )
    return ImageInfo(str(found["format"]), int(found["virtual-size"]))
