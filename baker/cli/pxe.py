"""The pxe commands."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from baker.cli import options

pxe_app = typer.Typer(help="Boot machines from the network with what was baked for them.", no_args_is_help=True)

_EPILOG = """Beside a DHCP server that gives machines their addresses, it only adds what to boot (proxy DHCP). In a
network without one, --dhcp FIRST,LAST gives addresses as well. It answers on one interface alone, and
needs root for that.

Examples:

\b
  flatcar-bake pxe serve out --interface eth0 --dry-run
  sudo flatcar-bake pxe serve out --interface eth0
  sudo flatcar-bake pxe serve out --interface eth1 --dhcp 192.0.2.100,192.0.2.150
"""


@pxe_app.callback()
def _pxe() -> None:
    """Boot machines from the network with what was baked for them."""


def serve(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The output folder of a bake with --vendor pxe.")],
    interface: Annotated[
        str,
        typer.Option(
            "--interface",
            "-i",
            envvar="FLATCAR_BAKE_INTERFACE",
            metavar="NAME",
            help="The network interface to serve.",
        ),
    ],
    port: Annotated[
        int, typer.Option("--port", envvar="FLATCAR_BAKE_PORT", min=1, max=65535, help="The port for HTTP.")
    ] = 8080,
    dhcp: Annotated[
        str | None,
        typer.Option(
            "--dhcp",
            envvar="FLATCAR_BAKE_DHCP",
            metavar="FIRST,LAST",
            help="Give machines these addresses: for a network without a DHCP server.",
        ),
    ] = None,
    ipxe: Annotated[
        Path, typer.Option("--ipxe", envvar="FLATCAR_BAKE_IPXE", metavar="DIR", help="Where iPXE's programs are.")
    ] = Path("/usr/lib/ipxe"),
    dry_run: Annotated[
        bool, typer.Option("--dry-run", "-n", help="Print the configuration of dnsmasq, and stop.")
    ] = False,
    progress: options.ProgressOption = options.ProgressMode.AUTO,
    quiet: options.QuietOption = False,
    debug: options.DebugOption = False,
) -> None:
    """Serve a bake to machines that boot from the network, until interrupted."""
    from baker.console import make_console
    from baker.diskless.dnsmasq import configuration
    from baker.diskless.serve import ServeRequest, plan_netboot
    from baker.diskless.serve import serve as execute

    request = ServeRequest(folder, interface, port, dhcp, ipxe)
    console = make_console(progress, quiet)
    try:
        if dry_run:
            netboot, files = plan_netboot(request, console)
            console.close()
            typer.echo(configuration(netboot, Path("TFTP_FOLDER")), nl=False)
            for name in files:
                typer.echo(f"# HTTP: http://{netboot.address.ip}:{port}/{name}")
            return
        execute(request, console, typer.echo)
    finally:
        console.close()


serve.__doc__ = f"{serve.__doc__}\n\n{_EPILOG}"
pxe_app.command("serve")(serve)
