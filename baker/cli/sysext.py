"""The sysext commands: pack a folder, look into an image, check images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from baker.cli import options
from baker.cli.pack_options import CompressionOption, EpochOption, FormatOption, OverwriteOption
from baker.model import Arch

if TYPE_CHECKING:
    from baker.console import Console
    from baker.packing.options import PackOptions

sysext_app = typer.Typer(
    help="Pack a folder as a sysext; look into sysexts and check them.", no_args_is_help=True, rich_markup_mode=None
)

_PACK_EPILOG = """Examples:

\b
  flatcar-bake sysext pack my-tools                      # my-tools/usr/... becomes my-tools.raw
  flatcar-bake sysext pack tree --name my-tools --arch arm64 --reload -o my-tools-1.2-arm64.raw
  flatcar-bake sysext pack my-tools --format erofs --sysupdate --sysupdate-url https://example.org/sysexts/

The same folder gives the same bytes, whoever packs it and when. Nothing in the folder is changed. The variables of
the old bake.sh work too: OS, ARCH, RELOAD, FORMAT, SOURCE_DATE_EPOCH; options win over them.
"""

FilesArgument = Annotated[list[str], typer.Argument(metavar="[NAME:]FILE…", help="Sysext images.")]


@sysext_app.command("pack", epilog=_PACK_EPILOG)
def pack(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A folder with usr/ (and opt/) in it.")],
    name: Annotated[
        str | None,
        typer.Option("--name", envvar="FLATCAR_BAKE_NAME", help="Name of the sysext.  [default: that of the folder]"),
    ] = None,
    format: FormatOption = "",
    arch: Annotated[
        str,
        typer.Option(
            "--arch",
            "-a",
            envvar=["FLATCAR_BAKE_ARCH", "ARCH"],
            metavar="ARCH",
            autocompletion=lambda: [arch.value for arch in Arch],
            help="x86-64 or arm64 (amd64, x86_64, aarch64 will do).  [default: any]",
        ),
    ] = "",
    os_id: Annotated[
        str,
        typer.Option(
            "--os",
            envvar=["FLATCAR_BAKE_OS", "OS"],
            metavar="ID",
            help="System it is for; anything but _any also says SYSEXT_LEVEL=1.0.  [default: _any]",
        ),
    ] = "",
    reload: Annotated[
        bool,
        typer.Option(
            "--reload/--no-reload",
            envvar=["FLATCAR_BAKE_RELOAD", "RELOAD"],
            help="Let systemd load the sysext's units as soon as it is merged.  [default: no-reload]",
        ),
    ] = False,
    compression: CompressionOption = "",
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            envvar="FLATCAR_BAKE_OUTPUT",
            metavar="FILE",
            help="The image to write.  [default: NAME.raw here]",
        ),
    ] = None,
    sysupdate: Annotated[
        bool,
        typer.Option(
            "--sysupdate",
            envvar="FLATCAR_BAKE_SYSUPDATE",
            help="Write NAME.conf for systemd-sysupdate beside the image, for files NAME-VERSION-ARCH.raw.",
        ),
    ] = False,
    sysupdate_url: Annotated[
        str | None,
        typer.Option(
            "--sysupdate-url",
            envvar="FLATCAR_BAKE_SYSUPDATE_URL",
            metavar="URL",
            help="Where new versions will be published.  [default: the bakery]",
        ),
    ] = None,
    epoch: EpochOption = 0,
    keep_modes: Annotated[
        bool,
        typer.Option(
            "--keep-modes",
            envvar="FLATCAR_BAKE_KEEP_MODES",
            help="Keep all permissions. Else folders and programs get 0755, other files 0644.",
        ),
    ] = False,
    drop_capabilities: Annotated[
        bool,
        typer.Option(
            "--drop-capabilities",
            envvar="FLATCAR_BAKE_DROP_CAPABILITIES",
            help="Leave out file capabilities, which are refused otherwise.",
        ),
    ] = False,
    verity: Annotated[
        bool,
        typer.Option(
            "--verity",
            envvar="FLATCAR_BAKE_VERITY",
            help="Protect the content by dm-verity, through systemd-repart; not reproducible.",
        ),
    ] = False,
    sign: Annotated[
        str | None,
        typer.Option(
            "--sign",
            envvar="FLATCAR_BAKE_SIGN",
            metavar="KEY,CERT",
            help="Like --verity, and sign it with this private key and certificate (PEM).",
        ),
    ] = None,
    force: OverwriteOption = False,
    json: options.JsonOption = False,
    progress: options.ProgressOption = options.ProgressMode.AUTO,
    quiet: options.QuietOption = False,
    debug: options.DebugOption = False,
) -> None:
    """Make a sysext image of a folder."""
    from json import dumps

    from baker.console import make_console
    from baker.pack import pack as pack_folder
    from baker.packing.options import PackOptions, arch_from_word
    from baker.sparse import file_sha256

    wanted = PackOptions(
        name or folder.resolve().name, arch_from_word(arch), format or "squashfs", os_id or "_any", reload,
        compression, epoch, keep_modes, drop_capabilities, verity, _signing(sign),
    )  # fmt: skip
    target = output or Path(f"{wanted.name}.raw")
    config = target.with_name(f"{wanted.name}.conf") if sysupdate or sysupdate_url else None
    text = _config_text(wanted, sysupdate_url, config, force)
    console = make_console(progress, quiet)
    try:
        with console.step(f"Packing {folder} as {wanted.format}"):
            pack_folder(folder, target, wanted, force=force)
        if config is not None:
            config.write_text(text, "utf-8")
        _remark(target, wanted, console)
    finally:
        console.close()
    written = [path for path in (target, config) if path is not None]
    if json:
        files = [{"path": str(path), "size": path.stat().st_size, "sha256": file_sha256(path)} for path in written]
        typer.echo(dumps({"name": wanted.name, "files": files}, indent=2))
    else:
        for path in written:
            typer.echo(path)


def _signing(words: str | None) -> tuple[Path, Path] | None:
    from baker.errors import UsageError

    if words is None:
        return None
    key, comma, certificate = words.partition(",")
    if not comma:
        raise UsageError(f"--sign wants a key and a certificate, not {words!r}.", "Write --sign KEY,CERT")
    return Path(key), Path(certificate)


def _config_text(wanted: PackOptions, url: str | None, config: Path | None, force: bool) -> str:
    """The update config to write; "" where none is wanted. Checked before any work."""
    from baker.errors import UsageError
    from baker.services import DEFAULT_BAKERY
    from baker.sysupdate import transfer_config

    if config is None:
        return ""
    if config.exists() and not force:
        raise UsageError(f"{config} exists.", "Use --force to overwrite it.")
    return transfer_config(wanted.name, f"{wanted.name}-@v-%a.raw", url or f"{DEFAULT_BAKERY}/{wanted.name}")


def _remark(target: Path, wanted: PackOptions, console: Console) -> None:
    """Say what the lint has to say about a new image."""
    from baker.survey.report import lint_image

    for finding in lint_image(target, wanted.name, wanted.arch, None):
        say = console.warn if finding.fatal else console.note
        say(finding.message)
    if wanted.has_verity:
        console.warn("Another run gives another image: systemd-repart draws a random salt.")


@sysext_app.command("inspect")
def inspect(
    file: Annotated[str, typer.Argument(metavar="[NAME:]FILE", help="A sysext image.")],
    json: options.JsonOption = False,
    debug: options.DebugOption = False,
) -> None:
    """Show what a sysext says about itself, its units and what starts them, its programs and what they need.

    Nothing of it is mounted or executed.
    """
    from json import dumps

    from baker.survey.report import render, report

    name, path = _named(file)
    found = report(path, name)
    typer.echo(dumps(found.as_dict(), indent=2) if json else render(found))


@sysext_app.command("lint")
def lint(
    files: FilesArgument,
    arch: Annotated[
        str,
        typer.Option(
            "--arch",
            "-a",
            envvar="FLATCAR_BAKE_ARCH",
            metavar="ARCH",
            help="Architecture of the image it is for.  [default: what the sysext says]",
        ),
    ] = "",
    release: Annotated[
        str | None,
        typer.Option(
            "--release",
            envvar="FLATCAR_BAKE_RELEASE",
            metavar="VERSION",
            help="Version of the release it is for, such as 4593.2.5.  [default: a recent one]",
        ),
    ] = None,
    json: options.JsonOption = False,
    debug: options.DebugOption = False,
) -> None:
    """Check sysexts by the rules of a bake, and their units and programs.

    Ends with status 6 when Flatcar would ignore one of them or break on it.
    """
    from dataclasses import asdict
    from json import dumps

    from baker.errors import ImageError
    from baker.packing.options import arch_from_word
    from baker.survey.report import lint_image, render_findings

    wanted = arch_from_word(arch)
    results = []
    for word in files:
        name, path = _named(word)
        results.append((name, path, lint_image(path, name, wanted, _version(release))))
    if json:
        typer.echo(dumps([
            {"file": str(path), "name": name, "ok": not any(finding.fatal for finding in findings),
             "findings": [asdict(finding) for finding in findings]} for name, path, findings in results
        ], indent=2))  # fmt: skip
    else:
        for _, path, findings in results:
            typer.echo(render_findings(path, findings))
    bad = [name for name, _, findings in results if any(finding.fatal for finding in findings)]
    if bad:
        raise ImageError(f"{len(bad)} of {len(results)} sysexts would not work: {', '.join(bad)}.")


def _named(word: str) -> tuple[str, Path]:
    """NAME and FILE of `NAME:FILE`, or of a file that says its name itself."""
    from baker.extension_release import validate_name
    from baker.survey.report import own_name

    name, colon, rest = word.partition(":")
    if colon and not Path(word).exists():
        return validate_name(name), Path(rest)
    return own_name(Path(word)), Path(word)


def _version(word: str | None) -> str | None:
    from baker.errors import UsageError

    if word and not word[:1].isdigit():
        raise UsageError(f"{word!r} is no version of a release.", "Give one like 4593.2.5.")
    return word
