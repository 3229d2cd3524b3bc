"""The mirror command: copies releases and extensions into a folder that serves as --mirror and --bakery."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

from baker.cli import options
from baker.cli.release_options import SignOption, SignPassphraseOption
from baker.model import Arch

_WHAT, _POLICY = "What is mirrored", "What is kept"
_EPILOG = """Examples:

\b
  flatcar-bake mirror /srv/flatcar --release stable --release lts --vendor vmware_ova,qemu_uefi
  flatcar-bake mirror /srv/flatcar kubernetes docker@latest --url https://mirror.example/ --sign mirror-key.asc
  flatcar-bake mirror /srv/flatcar --release stable --keep-releases 3 --keep-sysexts 5
  flatcar-bake --mirror /srv/flatcar --bakery /srv/flatcar/extensions docker@28.0.4

Only what is new is fetched; what is there is verified again. Bakes from the folder need no network.
"""


def mirror(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The mirror's folder.")],
    sysexts: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[NAME[@VERSION]…]", help="Extensions of the bakery: all versions, NAME@latest, or NAME@VERSION."
        ),
    ] = None,
    release: Annotated[
        list[str] | None,
        typer.Option(
            "--release",
            envvar="FLATCAR_BAKE_MIRROR_RELEASES",
            metavar="RELEASE",
            rich_help_panel=_WHAT,
            help="Channel, LTS year (lts-2024) or version to mirror; may be repeated.",
        ),
    ] = None,
    arch: Annotated[
        list[Arch] | None,
        typer.Option(
            "--arch",
            "-a",
            envvar="FLATCAR_BAKE_ARCHES",
            rich_help_panel=_WHAT,
            help="Architecture to mirror; may be repeated.  [default: x86-64]",
        ),
    ] = None,
    vendor: options.VendorOption = None,
    base: options.BaseOption = None,
    file: Annotated[
        list[str] | None,
        typer.Option(
            "--file",
            envvar="FLATCAR_BAKE_MIRROR_FILES",
            metavar="NAME",
            rich_help_panel=_WHAT,
            help="A further file of each release, such as flatcar-zfs.raw; may be repeated.",
        ),
    ] = None,
    url: Annotated[
        str,
        typer.Option(
            "--url",
            envvar="FLATCAR_BAKE_MIRROR_ADDRESS",
            metavar="URL",
            help="Where the folder will be served: machines then update from there instead of upstream.",
        ),
    ] = "",
    keep_releases: Annotated[
        int,
        typer.Option(
            "--keep-releases",
            min=0,
            envvar="FLATCAR_BAKE_KEEP_RELEASES",
            metavar="N",
            rich_help_panel=_POLICY,
            help="Remove all but the newest N of each channel.  [default: keep all]",
            show_default=False,
        ),
    ] = 0,
    keep_sysexts: Annotated[
        int,
        typer.Option(
            "--keep-sysexts",
            min=0,
            envvar="FLATCAR_BAKE_KEEP_SYSEXTS",
            metavar="N",
            rich_help_panel=_POLICY,
            help="Remove all but the newest N of each extension.  [default: keep all]",
            show_default=False,
        ),
    ] = 0,
    sign: SignOption = "",
    sign_passphrase_file: SignPassphraseOption = None,
    mirror: options.MirrorOption = None,
    bakery: options.BakeryOption = None,
    bakery_key: options.BakeryKeyOption = None,
    signing_key: options.SigningKeyOption = None,
    fingerprint: options.FingerprintOption = None,
    vendors: options.VendorsOption = None,
    json: options.JsonOption = False,
    progress: options.ProgressOption = options.ProgressMode.AUTO,
    quiet: options.QuietOption = False,
    debug: options.DebugOption = False,
) -> None:
    """Copy releases and sysexts into a folder, for air gaps."""
    from json import dumps

    from baker.console import make_console
    from baker.errors import UsageError
    from baker.mirroring.extensions import Choice
    from baker.mirroring.folder import MirrorFolder
    from baker.mirroring.mirror import MirrorRequest
    from baker.mirroring.mirror import mirror as run_mirror
    from baker.releasing.index import check_url
    from baker.request import parse_vendors
    from baker.sign import Signer

    if not release and not sysexts and not keep_releases and not keep_sysexts:
        raise UsageError("Nothing to mirror.", "Name extensions, or releases by --release stable.")
    request = MirrorRequest(
        releases=tuple(dict.fromkeys(release or ())), arches=tuple(dict.fromkeys(arch or (Arch.X86_64,))),
        vendors=parse_vendors(vendor or ("generic",)), base=str(base or "auto"), files=tuple(file or ()),
        extensions=tuple(map(Choice.parse, sysexts or ())), url=url, keep_releases=keep_releases,
        keep_sysexts=keep_sysexts,
    )  # fmt: skip
    check_url(url, bool(sign))
    console = make_console(progress, quiet)
    with ExitStack() as stack:
        stack.callback(console.close)
        signer = stack.enter_context(Signer(sign, sign_passphrase_file)) if sign else None
        target = MirrorFolder(folder)
        stack.enter_context(target.locked())
        services = stack.enter_context(
            options.open_services(
                console, mirror=mirror, bakery=bakery, bakery_key=bakery_key, signing_key=signing_key,
                fingerprint=fingerprint, cache_dir=target.incoming, vendors=vendors,
            )
        )  # fmt: skip
        result = run_mirror(request, target, services, signer)
    if json:
        typer.echo(dumps({"added": result.added, "removed": result.removed}, indent=2))
        return
    for name in result.added:
        typer.echo(folder / name)
    for name in result.removed:
        console.note(f"removed {folder / name}")


mirror.__doc__ = f"{mirror.__doc__}\n\n{_EPILOG}"
