"""The flix command: programs out of a root filesystem, with the libraries they need."""

from __future__ import annotations

from typing import Annotated

import typer

from baker.cli import chroot_options as chroot
from baker.cli import options
from baker.cli.pack_options import CompressionOption, EpochOption, FormatOption, OverwriteOption

_EPILOG = """Examples:

\b
  flatcar-bake flix debian htop /usr/bin/htop /usr/share/terminfo
  flatcar-bake flix debian nginx /usr/sbin/nginx /lib/systemd/system/nginx.service \\
      /etc/nginx:/usr/share/nginx/etc --unit-enable nginx.service
  flatcar-bake flix debian my-python /usr/bin/python3 /usr/lib/python3.11 --extra-lib libgcc_s.so.1
  flatcar-bake flix alpine jq /usr/bin/jq --dir-only

Programs, libraries and folders keep their place below /usr; libraries that they need and the dynamic linker go to
/usr/local/NAME, and nothing of the system is used instead. The variables of the old flix.sh work too: EXTRALIBS, ARCH,
OS, RELOAD, FORMAT, SOURCE_DATE_EPOCH; options win over them. `flatwrap` takes programs that cannot be moved.
"""


def flix(
    folder: chroot.FolderArgument,
    name: chroot.NameArgument,
    paths: chroot.PathsArgument,
    extra_lib: Annotated[
        list[str] | None,
        typer.Option(
            "--extra-lib",
            envvar=["FLATCAR_BAKE_EXTRA_LIB", "EXTRALIBS"],
            metavar="LIB",
            help="A library that programs load by themselves: a path, or a name to find; may be repeated.",
        ),
    ] = None,
    ignore_missing: Annotated[
        list[str] | None,
        typer.Option(
            "--ignore-missing",
            envvar="FLATCAR_BAKE_IGNORE_MISSING",
            metavar="NAME",
            help="A library (or glob) that may be missing; may be repeated.",
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
    """Make a sysext of programs, with all their libraries."""
    from baker.chroot.ending import finish
    from baker.chroot.flix import FlixRequest
    from baker.chroot.flix import flix as make
    from baker.console import make_console

    end = chroot.ending(
        name, arch, format, os_id, reload, compression, epoch, unit_enable, dir_only, output, force
    )  # fmt: skip
    request = FlixRequest(
        folder, name, tuple(paths), end.options.arch, tuple(extra_lib or ()), tuple(ignore_missing or ())
    )
    console = make_console(progress, quiet)
    try:
        with console.step(f"Taking {len(paths)} paths out of {folder}"):
            made = finish(end, lambda tree: make(request, tree))
        chroot.tell(made, console)
        chroot.remark(end, made, console)
    finally:
        console.close()
    chroot.show(made, name, end.target, json)


flix.__doc__ = f"{flix.__doc__}\n\n{_EPILOG}"
