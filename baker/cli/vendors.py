"""The vendors command."""

from __future__ import annotations

import typer

from baker.cli import options


def vendors(folders: options.VendorsOption = None, json: options.JsonOption = False) -> None:
    """List who images can be made for."""
    from json import dumps

    from baker.vendor_files import load_vendors

    found = load_vendors(folders or ())
    if json:
        rows = [
            {"name": item.name, "summary": item.summary, "arches": list(item.arches), "layout": item.layout,
             "format": item.disk.format, "outputs": list(item.outputs)}
            for item in found.values()
        ]  # fmt: skip
        typer.echo(dumps(rows, indent=2))
        return
    width = max(len(name) for name in found)
    for item in found.values():
        typer.echo(f"{item.name:{width}}  {item.disk.format:6}  {', '.join(item.arches):14}  {item.summary}")
