"""The typer application. Commands are loaded one by one: a user calls one at a time, and help must answer at once."""

from __future__ import annotations

from importlib import import_module
from typing import Annotated

import typer

from baker import __version__

# Name: (module, attribute, first line of its help). The line is repeated here so that the overview needs no import.
COMMANDS = {
    "bake": ("baker.cli.bake", "bake", "Bake sysexts into a Flatcar image for a vendor."),
    "convert": ("baker.cli.convert", "convert", "Convert an image baked earlier into the formats of vendors."),
    "inspect": ("baker.cli.inspect", "inspect", "Show the partitions, release and sysexts of an image."),
    "boot": ("baker.cli.boot", "boot", "Boot a baked image in QEMU and check that extensions merge."),
    "verify": ("baker.cli.verify", "verify", "Check that the files of a bake are what its manifest says."),
    "recipe": ("baker.cli.recipe", "recipe_app", "Build sysexts from recipes, such as docker and wasmtime."),
    "flix": ("baker.cli.flix", "flix", "Make a sysext of programs, with all their libraries."),
    "flatwrap": (
        "baker.cli.flatwrap",
        "flatwrap",
        "Make a sysext of a whole root filesystem.",
    ),
    "vendors": ("baker.cli.vendors", "vendors", "List who images can be made for."),
    "sysext": ("baker.cli.sysext", "sysext_app", "Pack a folder as a sysext; look into sysexts and check them."),
    "oci-rootfs": ("baker.cli.oci_rootfs", "oci_rootfs", "Unpack a container image into a folder."),
    "torcx": ("baker.cli.torcx", "torcx", "Make a sysext of a torcx archive."),
    "fetch": ("baker.cli.fetch", "fetch", "Download a release into the cache and verify it; no baking."),
    "cache": ("baker.cli.cache", "cache_app", "See and empty the cache of verified downloads."),
    "doctor": ("baker.cli.doctor", "doctor", "Check that this machine has what a bake needs, or clean up."),
}


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"flatcar-bake {__version__}")
        raise typer.Exit


def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Put system extensions into Flatcar Container Linux images: verified, rootless, without the SDK.

    `bake` is the default command:

    \b
      flatcar-bake --fetch --vendor qemu_uefi wasmtime:wasmtime-24.0.0-x86-64.raw
      flatcar-bake bake --help
    """


def build(*names: str) -> typer.Typer:
    """The application with the commands `names` in full, and the others as entries of the overview; none: all in full.

    Shell completion needs all of them.
    """
    app = typer.Typer(
        name="flatcar-bake", pretty_exceptions_enable=False, rich_markup_mode=None,
        context_settings={"help_option_names": ["-h", "--help"]},
    )  # fmt: skip
    app.callback()(_root)
    for name, (module, attribute, summary) in COMMANDS.items():
        if names and name not in names:
            app.command(name, help=summary)(_entry)
            continue
        command = getattr(import_module(module), attribute)
        if isinstance(command, typer.Typer):
            app.add_typer(command, name=name)
        else:
            app.command(name)(command)
    return app


def _entry() -> None:
    """Stands for a command that was not asked for."""
