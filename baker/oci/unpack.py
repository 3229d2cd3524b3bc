"""An image on disk becomes a root filesystem in a folder."""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from pathlib import Path

from baker.console import Console
from baker.errors import VerificationError
from baker.oci.images import Image, open_layer
from baker.oci.layers import RootFolder
from baker.recipe.archives import naming_damage, tar_entries
from baker.recipe.landing import Limits

LIMITS = Limits(entries=2_000_000, size=256 << 30)
"""An image is a whole system, with all that was deleted again in later layers."""


def unpack(
    image: Image,
    name: str,
    folder: Path,
    console: Console,
    *,
    devices: bool = False,
    unless_new: Collection[str] = (),
    limits: Limits = LIMITS,
) -> RootFolder:
    """Lay the layers of `image` over each other in `folder`, which must be empty or not exist.

    `name` stands for the image in messages. `unless_new`: paths that do not count in the last layer where they are
    empty and no layer below has them. Raises ImageError for whatever is damaged or tries to get out, and
    VerificationError when a layer is not what the image says of it; then `folder` is the caller's to remove.
    """
    root = RootFolder(folder, name, limits.for_archive(image.size), limits.entries, devices)
    for number, layer in enumerate(image.layers, 1):
        shown = f"layer {number} of {name}"
        algorithm, _, wanted = layer.diff_id.partition(":")
        digest = hashlib.new(algorithm)
        root.begin(shown)
        skipped = unless_new if number == len(image.layers) else ()
        with (
            console.step(f"Unpack layer {number} of {len(image.layers)}"),
            open_layer(image.root, layer, shown) as file,
            naming_damage(shown, "tar"),
        ):
            for entry, chunks in tar_entries(file, shown, digest):
                if skipped and not entry.size and root.lacks(entry.name, skipped):
                    continue
                root.take(entry, chunks)
        if digest.hexdigest() != wanted:
            raise VerificationError(
                f"{shown[0].upper()}{shown[1:]} is not what the image's config says.",
                "The image is damaged; nothing of it is used.",
            )
    with naming_damage(name, "tar"):
        root.finish()
    return root
