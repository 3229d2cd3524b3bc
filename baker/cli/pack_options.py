"""The options that say how a sysext is packed, for `sysext pack` and `recipe build`."""

from __future__ import annotations

from typing import Annotated

import typer


def _formats() -> list[str]:
    from baker.packing.options import FORMATS

    return list(FORMATS)


def _compressions(context: typer.Context) -> list[str]:
    from baker.packing.options import COMPRESSIONS

    return list(COMPRESSIONS.get(context.params.get("format") or "squashfs", ()))


FormatOption = Annotated[
    str, typer.Option("--format", envvar=["FLATCAR_BAKE_FORMAT", "FORMAT"], autocompletion=_formats,
    help="squashfs, erofs, ext4, ext2 or btrfs.  [default: squashfs]"),
]  # fmt: skip
CompressionOption = Annotated[
    str, typer.Option("--compression", envvar="FLATCAR_BAKE_COMPRESSION", autocompletion=_compressions,
    help="gzip, zstd, xz, lz4, lzo (squashfs); lz4hc, lz4, none (erofs).  [default: the first]"),
]  # fmt: skip
EpochOption = Annotated[
    int, typer.Option("--epoch", envvar=["FLATCAR_BAKE_EPOCH", "SOURCE_DATE_EPOCH"], metavar="SECONDS",
    help="Time of everything in the image.  [default: 0]"),
]  # fmt: skip
OverwriteOption = Annotated[
    bool, typer.Option("--force", "-f", envvar="FLATCAR_BAKE_FORCE", help="Overwrite existing files.")
]  # fmt: skip
