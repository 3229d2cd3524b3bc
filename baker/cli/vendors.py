"""The vendors command."""

from __future__ import annotations

from typing import Annotated

import typer

from baker.cli import options


def vendors(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="Show everything about one vendor.")] = None,
    folders: options.VendorsOption = None,
    json: options.JsonOption = False,
) -> None:
    """List who images can be made for."""
    from json import dumps

    from baker.vendor import find_vendor
    from baker.vendor_files import load_vendors
    from baker.vendor_text import vendor_details, vendor_row, vendor_table

    known = load_vendors(folders or ())
    if name is not None:
        found = find_vendor(name, known)
        typer.echo(dumps(vendor_row(found), indent=2) if json else vendor_details(found))
        return
    shown = list(known.values())
    typer.echo(dumps([vendor_row(item) for item in shown], indent=2) if json else vendor_table(shown))
