"""The flatwrap command: a whole root filesystem in a sysext, with wrappers for its programs."""

from __future__ import annotations

from typing import Annotated

import typer

from baker.cli import chroot_options as chroot
from baker.cli import options
from baker.cli.pack_options import CompressionOption, EpochOption, FormatOption, OverwriteOption

_EPILOG = """Examples:

\b
  flatcar-bake flatwrap debian htop /usr/bin/htop
  flatcar-bake flatwrap alpine btop /usr/bin/btop --etc chroot
  flatcar-bake flatwrap debian my-tools /usr/bin/python3 /opt/x/run:/usr/bin/x --var chroot --host /srv

A program runs in its own root filesystem, /usr/local/NAME/rootfs: its /usr is that of the distribution it comes from,
and files, processes and devices are the system's. Users need bwrap or user namespaces for it; NOBWRAP=1 in the
environment takes the latter. The variables of the old flatwrap.sh work too: ETCMAP, VARMAP, HOMEMAP, CHROOT, HOST,
ARCH, OS, RELOAD, FORMAT, SOURCE_DATE_EPOCH; options win over them. `flix` makes smaller sysexts, without wrappers.
"""

_SEEN = "What programs see"


def _map_option(option: str, variable: str, what: str) -> typer.models.OptionInfo:
    info: typer.models.OptionInfo = typer.Option(
        f"--{option}", envvar=[f"FLATCAR_BAKE_{variable}", variable], metavar="host|chroot", rich_help_panel=_SEEN,
        autocompletion=lambda: ["host", "chroot"], help=f"Whose {what} they see.  [default: host]",
    )  # fmt: skip
    return info


def flatwrap(
    folder: chroot.FolderArgument,
    name: chroot.NameArgument,
    paths: chroot.PathsArgument,
    etc: Annotated[str, _map_option("etc", "ETCMAP", "/etc")] = "",
    var: Annotated[str, _map_option("var", "VARMAP", "/var")] = "",
    home: Annotated[str, _map_option("home", "HOMEMAP", "/home and /root")] = "",
    from_chroot: Annotated[
        list[str] | None,
        typer.Option(
            "--chroot",
            envvar=["FLATCAR_BAKE_CHROOT", "CHROOT"],
            metavar="PATH",
            rich_help_panel=_SEEN,
            help="A folder of FOLDER that they see; may be repeated.  [default: all but the system's]",
        ),
    ] = None,
    from_host: Annotated[
        list[str] | None,
        typer.Option(
            "--host",
            envvar=["FLATCAR_BAKE_HOST", "HOST"],
            metavar="PATH",
            rich_help_panel=_SEEN,
            help="A path of the system that they see; may be repeated.  "
            "[default: /dev /media /mnt /proc /run /srv /sys /tmp]",
        ),
    ] = None,
    unit_enable: chroot.UnitEnableOption = None,
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
    """Make a sysext of a whole root filesystem."""
    from baker.chroot.ending import finish
    from baker.chroot.flatwrap import FlatwrapRequest
    from baker.chroot.flatwrap import flatwrap as make
    from baker.chroot.view import Mapping
    from baker.console import make_console

    end = chroot.ending(name, arch, format, os_id, reload, compression, epoch, unit_enable, dir_only, output, force)
    mapping = Mapping(
        etc or "host", var or "host", home or "host", tuple(from_chroot or ()), tuple(from_host or ())
    )  # fmt: skip
    request = FlatwrapRequest(folder, name, tuple(paths), end.options.arch, mapping)
    console = make_console(progress, quiet)
    try:
        with console.step(f"Wrapping {folder}"):
            made = finish(end, lambda tree: make(request, tree))
        chroot.tell(made, console)
        chroot.remark(end, made, console)
    finally:
        console.close()
    chroot.show(made, name, end.target, json)


flatwrap.__doc__ = f"{flatwrap.__doc__}\n\n{_EPILOG}"
