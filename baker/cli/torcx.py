"""The torcx command: a torcx archive becomes a sysext."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from baker.cli import chroot_options as chroot
from baker.cli import options
from baker.cli.pack_options import CompressionOption, EpochOption, FormatOption, OverwriteOption

_EPILOG = """Examples:

\b
  flatcar-bake torcx docker:20.10.torcx.tgz docker
  flatcar-bake torcx addon:1.torcx.squashfs addon --unit-enable addon.service --format erofs
  flatcar-bake torcx addon:1.torcx.tgz addon --dir-only      # the folder addon, to look at and pack later

What torcx started by links in .wants is upheld by the same targets. The variables of the old convert_torcx_image.sh
work too: ARCH, OS, RELOAD, FORMAT, SOURCE_DATE_EPOCH; options win over them.
"""


def torcx(
    archive: Annotated[Path, typer.Argument(metavar="TARBALL", help="A .torcx.tgz or .torcx.squashfs.")],
    name: chroot.NameArgument,
    unit_enable: chroot.UnitEnableOption = None,
    drop_capabilities: Annotated[
        bool,
        typer.Option(
            "--drop-capabilities",
            envvar="FLATCAR_BAKE_DROP_CAPABILITIES",
            help="Leave out file capabilities, which are refused otherwise.",
        ),
    ] = False,
    arch: chroot.ArchOption = "",
    os_id: chroot.OsOption = "",
    reload: chroot.ReloadOption = None,
    format: FormatOption = "",
    compression: CompressionOption = "",
    dir_only: chroot.DirOnlyOption = False,
    output: chroot.OutputOption = None,
    epoch: EpochOption = 0,
    force: OverwriteOption = False,
    json: options.JsonOption = False,
    progress: options.ProgressOption = options.ProgressMode.AUTO,
    quiet: options.QuietOption = False,
    debug: options.DebugOption = False,
) -> None:
    """Make a sysext of a torcx archive."""
    from baker.chroot.ending import finish
    from baker.console import make_console
    from baker.torcx.convert import TorcxRequest, convert

    end = chroot.ending(
        name, arch, format, os_id, reload, compression, epoch, unit_enable, dir_only, output, force
    )  # fmt: skip
    request = TorcxRequest(archive, name, end.options.arch, drop_capabilities)
    console = make_console(progress, quiet)
    try:
        with console.step(f"Converting {archive.name}"):
            made = finish(end, lambda tree: convert(request, tree))
        chroot.tell(made, console)
        chroot.remark(end, made, console)
    finally:
        console.close()
    chroot.show(made, name, end.target, json)


torcx.__doc__ = f"{torcx.__doc__}\n\n{_EPILOG}"
