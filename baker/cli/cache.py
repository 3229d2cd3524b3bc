"""The cache commands."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from baker.cli import options
from baker.printable import printable

if TYPE_CHECKING:
    from baker.cache import Item

cache_app = typer.Typer(help="See and empty the cache of verified downloads.", no_args_is_help=True)


@cache_app.command("list")
def list_entries(cache_dir: options.CacheDirOption = None, json: options.JsonOption = False) -> None:
    """List what the cache holds: size on disk, time of the last use, name."""
    from json import dumps
    from time import gmtime, strftime

    from baker.console import Console

    with options.open_services(Console(), cache_dir=cache_dir) as services:
        entries = services.cache.items()
    if json:
        typer.echo(dumps([_row(entry) for entry in entries], indent=2))
        return
    for entry in entries:
        used = strftime("%Y-%m-%d %H:%M", gmtime(entry.used))
        typer.echo(f"{entry.size / 1e6:9.1f} MB  {used}  {printable(entry.name)}")


@cache_app.command("prune")
def prune(
    everything: Annotated[
        bool, typer.Option("--all", help="Remove all entries, not only what is over the limit.")
    ] = False,
    limit: Annotated[
        int | None,
        typer.Option(
            "--limit",
            envvar="FLATCAR_BAKE_CACHE_LIMIT",
            metavar="MB",
            help=("Megabytes to keep at most, oldest use first out."),
        ),
    ] = None,
    cache_dir: options.CacheDirOption = None,
    json: options.JsonOption = False,
) -> None:
    """Remove the entries that were not used for longest."""
    from json import dumps

    from baker.console import Console

    with options.open_services(Console(), cache_dir=cache_dir) as services:
        removed = services.cache.prune(0 if everything else None if limit is None else limit * 1_000_000)
    if json:
        typer.echo(dumps([_row(entry) for entry in removed], indent=2))
        return
    for entry in removed:
        typer.echo(f"removed {printable(entry.name)} ({entry.size / 1e6:.1f} MB)")


def _row(item: Item) -> dict[str, object]:
    return {"name": item.name, "size": item.size, "last_use": int(item.used), "path": str(item.path)}
