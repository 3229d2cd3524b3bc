"""The doctor command."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from baker.cli import options
from baker.printable import printable


def doctor(
    cleanup: Annotated[
        bool, typer.Option("--cleanup", help="Remove what an earlier crash of flatcar-bake left behind.")
    ] = False,
    output_dir: Annotated[
        list[Path] | None,
        typer.Option(
            "--output-dir",
            "-o",
            metavar="DIR",
            help=(
                "Folder to look for leftovers in, besides that for temporary files; may be repeated.  "
                "[default: the current folder]"
            ),
        ),
    ] = None,
    cache_dir: options.CacheDirOption = None,
    json: options.JsonOption = False,
    debug: options.DebugOption = False,
) -> None:
    """Check that this machine has what a bake needs, or clean up.

    Says which package brings what is missing, and tries both backends for real.
    """
    from json import dumps
    from tempfile import gettempdir

    from baker import doctor as doctoring
    from baker.errors import EnvironmentFault
    from baker.services import default_cache_folder

    cache = cache_dir or default_cache_folder()
    if cleanup:
        removed = doctoring.cleanup([*(output_dir or [Path()]), Path(gettempdir())], cache)
        typer.echo(
            dumps(removed, indent=2) if json else "\n".join(map(printable, removed)) or "Nothing was left behind."
        )
        return
    checks = doctoring.check(cache)
    typer.echo(dumps([item.as_dict() for item in checks], indent=2) if json else doctoring.render(checks))
    missing = [item.name for item in checks if item.essential and not item.ok]
    if missing:
        raise EnvironmentFault(
            f"A bake cannot work here without: {', '.join(missing)}.", "The list above says how to get it."
        )
