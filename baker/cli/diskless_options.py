"""The options for vendors whose machines have no disk, and what they make together."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from baker.diskless.options import DisklessOptions

_PANEL = "Machines without a disk (--vendor pxe, iso)"


class Route(StrEnum):
    AUTO = "auto"
    OEM = "oem"
    USR = "usr"


RouteOption = Annotated[
    Route | None, typer.Option("--pxe-route", envvar="FLATCAR_BAKE_PXE_ROUTE", rich_help_panel=_PANEL, help=(
        "How extensions come in: in a second cpio (oem), or into /usr beside the built-in ones (usr).  "
        "[default: what the release can do, oem first]")),
]  # fmt: skip
SplitOption = Annotated[
    bool | None, typer.Option("--pxe-split/--no-pxe-split", envvar="FLATCAR_BAKE_PXE_SPLIT", rich_help_panel=_PANEL,
    help="Keep the extensions in a file of their own beside the release's cpio.  [default: no-pxe-split]"),
]  # fmt: skip
RamOption = Annotated[
    str | None, typer.Option("--ram", envvar="FLATCAR_BAKE_RAM", metavar="SIZE", rich_help_panel=_PANEL,
    help="The memory that machines have, such as 4G; refuse what does not fit."),
]  # fmt: skip
SerialOption = Annotated[
    str | None, typer.Option("--serial", envvar="FLATCAR_BAKE_SERIAL", metavar="PORT", rich_help_panel=_PANEL,
    help="The serial console, such as ttyS1,115200n8, or none.  [default: the first port, 115200n8]"),
]  # fmt: skip


def diskless_options(route: str | None, split: bool | None, ram: str | None, serial: str | None) -> DisklessOptions:
    """The options as a request has them; UsageError for a word that makes no sense."""
    from baker.diskless.options import DisklessOptions, parse_ram, parse_serial

    return DisklessOptions(str(route or "auto"), bool(split), parse_ram(ram), parse_serial(serial))
