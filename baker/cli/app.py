"""The typer application: every command, registered by name."""

from __future__ import annotations

from typing import Annotated

import typer

from baker import __version__
from baker.cli.bake import bake
from baker.cli.boot import boot
from baker.cli.cache import cache_app
from baker.cli.doctor import doctor
from baker.cli.fetch import fetch
from baker.cli.inspect import inspect
from baker.cli.vendors import vendors

app = typer.Typer(
    name="flatcar-bake", add_completion=True, pretty_exceptions_enable=False, rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)  # fmt: skip


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"flatcar-bake {__version__}")
        raise typer.Exit


@app.callback(
    epilog="`bake` is the default: flatcar-bake --vendor qemu_uefi wasmtime:wasmtime-24.0.0-x86-64.raw",
)
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Put system extensions into Flatcar Container Linux images: verified, rootless, without the SDK."""


app.command("bake")(bake)
app.command("inspect")(inspect)
app.command("boot")(boot)
app.command("vendors")(vendors)
app.command("fetch")(fetch)
app.add_typer(cache_app, name="cache")
app.command("doctor")(doctor)
