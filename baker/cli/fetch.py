"""The fetch command: fills the cache ahead of a bake."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import typer

from baker.cli import options
from baker.model import Arch


def fetch(
    vendor: options.VendorOption = None,
    arch: options.ArchOption = None,
    release: options.ReleaseOption = None,
    base: options.BaseOption = None,
    mirror: options.MirrorOption = None,
    signing_key: options.SigningKeyOption = None,
    fingerprint: options.FingerprintOption = None,
    cache_dir: options.CacheDirOption = None,
    vendors: options.VendorsOption = None,
    json: options.JsonOption = False,
    progress: options.ProgressOption = options.ProgressMode.AUTO,
    quiet: options.QuietOption = False,
    debug: options.DebugOption = False,
) -> None:
    """Download a release into the cache and verify it; no baking."""
    from json import dumps

    from baker.console import make_console
    from baker.gather import fetch_release
    from baker.request import parse_vendors

    console = make_console(progress, quiet)
    with ExitStack() as stack:
        stack.callback(console.close)
        services = stack.enter_context(
            options.open_services(
                console, mirror=mirror, signing_key=signing_key, fingerprint=fingerprint, cache_dir=cache_dir,
                vendors=vendors,
            )
        )  # fmt: skip
        files = fetch_release(
            services,
            release or "stable",
            arch or Arch.X86_64,
            parse_vendors(vendor or ("generic",)),
            base or options.Base.AUTO,
        )
    if json:
        rows = [{"name": item.name, "sha256": item.sha256, "path": str(Path(item.path))} for item in files]
        typer.echo(dumps(rows, indent=2))
        return
    for item in files:
        typer.echo(item.path)
