"""The inspect command."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from baker.cli import options


def inspect(
    image: Annotated[Path, typer.Argument(metavar="IMAGE", help="A raw or qcow2 disk image.")],
    json: options.JsonOption = False,
    debug: options.DebugOption = False,
) -> None:
    """Show the partitions, release and sysexts of an image."""
    from json import dumps

    from baker.errors import UsageError
    from baker.inspection import inspect_image, render
    from baker.work import scratch

    if not image.is_file():
        raise UsageError(f"There is no image file {image}.")
    with scratch() as work:
        found = inspect_image(image, work)
    typer.echo(dumps(found.as_dict(), indent=2) if json else render(found))
