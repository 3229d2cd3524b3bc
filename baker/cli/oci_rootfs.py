"""The command oci-rootfs: a container image becomes a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from baker.cli import chroot_options as chroot
from baker.cli import options
from baker.cli.pack_options import CompressionOption, EpochOption, FormatOption

_EPILOG = """IMAGE is a name in a registry (alpine:3.20, ghcr.io/owner/name:tag, name@sha256:…), an OCI layout (a
folder, oci:FOLDER:TAG), or an archive of `podman save`, `docker save` or skopeo. Layouts and archives need no other
program and no root; for registries podman, docker or skopeo is used, in this order.

Examples:

\b
  flatcar-bake oci-rootfs debian:bookworm-slim root
  flatcar-bake oci-rootfs debian:bookworm-slim root --run 'apt-get update && apt-get -y install htop'
  flatcar-bake oci-rootfs ./image.tar root --arch arm64
  flatcar-bake oci-rootfs localhost/mine:1 root --no-pull --engine podman
  flatcar-bake oci-rootfs ghcr.io/owner/my-sysext:1 tree --sysext my-sysext   # an image of nothing but a usr/

Then take programs out of it: `flatcar-bake flix root NAME PATH…`, or all of it: `flatcar-bake flatwrap`. The variables
of the old oci-rootfs.sh work too: REGISTRY, ARCH, CMD, FETCH=0, and with --sysext OS, RELOAD, FORMAT; options win.
"""


def _engines() -> list[str]:
    from baker.oci.pull import PROGRAMS

    return list(PROGRAMS)


def oci_rootfs(
    image: Annotated[str, typer.Argument(metavar="IMAGE", help="A container image: a name, a layout or an archive.")],
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="The folder to make of it.")],
    arch: Annotated[
        str,
        typer.Option(
            "--arch",
            "-a",
            envvar=["FLATCAR_BAKE_ARCH", "ARCH"],
            metavar="ARCH",
            help="x86-64 or arm64 (amd64, x86_64, aarch64, arm64v8 will do).  [default: x86-64]",
        ),
    ] = "",
    registry: Annotated[
        str,
        typer.Option(
            "--registry",
            envvar=["FLATCAR_BAKE_REGISTRY", "REGISTRY"],
            metavar="HOST",
            help="Registry of an IMAGE that names none.  [default: docker.io]",
        ),
    ] = "",
    run: Annotated[
        str,
        typer.Option(
            "--run",
            envvar=["FLATCAR_BAKE_RUN", "CMD"],
            metavar="CMD",
            help="Run this by a shell in the image first, as root of a container; stops at the first failure.",
        ),
    ] = "",
    network: Annotated[
        str,
        typer.Option(
            "--network",
            envvar="FLATCAR_BAKE_NETWORK",
            metavar="NET",
            help="Network for --run: none, host, or another one of the engine's.  [default: the engine's default]",
        ),
    ] = "",
    pull: Annotated[
        bool,
        typer.Option(
            "--pull/--no-pull",
            envvar=["FLATCAR_BAKE_PULL", "FETCH"],
            help="Ask the registry, or take what the engine has.",
        ),
    ] = True,
    engine: Annotated[
        str,
        typer.Option(
            "--engine",
            envvar="FLATCAR_BAKE_ENGINE",
            metavar="NAME",
            autocompletion=_engines,
            help="podman, docker or skopeo.  [default: the first that works]",
        ),
    ] = "",
    devices: Annotated[
        bool,
        typer.Option(
            "--devices",
            envvar="FLATCAR_BAKE_DEVICES",
            help="Make the image's device nodes, which are left out otherwise. Only root can.",
        ),
    ] = False,
    sysext: Annotated[
        str,
        typer.Option(
            "--sysext",
            envvar="FLATCAR_BAKE_SYSEXT",
            metavar="NAME",
            help="Pack FOLDER as this sysext too; the image must hold nothing but /usr and /opt.",
        ),
    ] = "",
    unit_enable: chroot.UnitEnableOption = None,
    os_id: chroot.OsOption = "",
    reload: chroot.ReloadOption = None,
    format: FormatOption = "",
    compression: CompressionOption = "",
    output: chroot.OutputOption = None,
    epoch: EpochOption = 0,
    force: Annotated[
        bool, typer.Option("--force", "-f", envvar="FLATCAR_BAKE_FORCE", help="Replace a folder that is there.")
    ] = False,
    json: options.JsonOption = False,
    progress: options.ProgressOption = options.ProgressMode.AUTO,
    quiet: options.QuietOption = False,
    debug: options.DebugOption = False,
) -> None:
    """Unpack a container image into a folder."""
    from json import dumps

    from baker.chroot.ending import check_target, finish
    from baker.console import make_console
    from baker.errors import UsageError
    from baker.oci.pull import PROGRAMS, Wanted
    from baker.oci.reference import image_arch, parse_image
    from baker.oci.rootfs import make_rootfs
    from baker.oci.sysext import sysext_tree
    from baker.schema import suggest

    if engine and engine not in PROGRAMS:
        raise UsageError(
            f"There is no engine {engine!r}.", suggest(engine, PROGRAMS) or f"There are {', '.join(PROGRAMS)}."
        )
    wanted = Wanted(parse_image(image, registry), image_arch(arch), engine, pull, run, network)
    end = chroot.ending(
        sysext, wanted.arch.value, format, os_id, reload, compression, epoch, unit_enable, False, output, force
    ) if sysext else None  # fmt: skip
    console = make_console(progress, quiet)
    try:
        if end:
            check_target(end)
        made = make_rootfs(wanted, folder, console, devices=devices, force=force)
        if end:
            with console.step(f"Packing {folder} as {end.options.format}"):
                packed = finish(end, lambda tree: sysext_tree(made.folder, tree))
            chroot.remark(end, packed, console)
    finally:
        console.close()
    result = end.target if end else made.folder
    typer.echo(dumps(made.as_dict() | ({"sysext": str(result)} if end else {}), indent=2) if json else result)


oci_rootfs.__doc__ = f"{oci_rootfs.__doc__}\n\n{_EPILOG}"
