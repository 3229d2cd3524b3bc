"""The lint command: a bake.toml checked before anybody bakes it."""

from __future__ import annotations

from enum import StrEnum
from inspect import cleandoc
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from baker.cli import options
from baker.cli.recipe_options import MirrorUrlOption, RecipesOption

if TYPE_CHECKING:
    from baker.config import BakeFile
    from baker.console import Console
    from baker.filelint import FileFinding
    from baker.request import BakeRequest
    from baker.services import Services

_EPILOG = """Examples:

\b
  flatcar-bake lint                                    # ./bake.toml
  flatcar-bake lint images/*.toml --format github      # annotations in a pull request
  flatcar-bake lint --offline --strict                 # asks no server; warnings count, too
"""


class Format(StrEnum):
    TEXT = "text"
    JSON = "json"
    GITHUB = "github"
    GITLAB = "gitlab"


def lint(
    files: Annotated[
        list[Path] | None, typer.Argument(metavar="[FILE…]", help="Files to check.  [default: ./bake.toml]")
    ] = None,
    format: Annotated[
        Format,
        typer.Option(
            "--format",
            envvar="FLATCAR_BAKE_LINT_FORMAT",
            help="For people, programs, GitHub Actions (annotations), or GitLab (a Code Quality report).",
        ),
    ] = Format.TEXT,
    offline: Annotated[
        bool, typer.Option("--offline", envvar="FLATCAR_BAKE_OFFLINE", help="Ask no server for anything.")
    ] = False,
    strict: Annotated[
        bool, typer.Option("--strict", envvar="FLATCAR_BAKE_STRICT", help="Let warnings fail the lint.")
    ] = False,
    mirror: options.MirrorOption = None,
    bakery: options.BakeryOption = None,
    bakery_key: options.BakeryKeyOption = None,
    signing_key: options.SigningKeyOption = None,
    fingerprint: options.FingerprintOption = None,
    cache_dir: options.CacheDirOption = None,
    vendors: options.VendorsOption = None,
    recipes: RecipesOption = None,
    mirror_url: MirrorUrlOption = None,
    json: options.JsonOption = False,
    progress: options.ProgressOption = options.ProgressMode.AUTO,
    quiet: options.QuietOption = False,
    debug: options.DebugOption = False,
) -> None:
    """Check a bake.toml without baking or downloading images.

    Reads the file, looks for every sysext (local ones are linted), and plans the bake. The exit code is that of the
    bake that the first error would stop: 2, 3, 4, 5 or 6; 0 where a bake could begin.
    """
    from baker.console import make_console
    from baker.filelint import FileLint, exit_code

    def open_for(file: BakeFile, console: Console) -> Services:
        return options.open_services(
            console, mirror=mirror or file.mirror, bakery=bakery or file.bakery,
            bakery_key=bakery_key or file.bakery_key,
            signing_key=signing_key or file.signing_key, fingerprint=fingerprint or file.fingerprint,
            cache_dir=cache_dir, vendors=vendors, recipes=recipes or file.recipes,
            mirror_urls=mirror_url or file.mirror_urls, recipes_lock=file.recipes_lock,
        )  # fmt: skip

    console = make_console(progress, quiet)
    findings: list[FileFinding] = []
    paths = files or [Path("bake.toml")]
    try:
        for path in paths:
            one = FileLint(path, _request, console)
            file = one.read()
            if file is not None:
                one.check(file, lambda listening, file=file: open_for(file, listening), offline)  # type: ignore[misc]
            findings += sorted(one.findings, key=lambda each: each.line)
    finally:
        console.close()
    _show(findings, paths, Format.JSON if json else format)
    code = exit_code(findings, strict)
    if code:
        raise typer.Exit(code)


lint.__doc__ = f"{cleandoc(lint.__doc__ or '')}\n\n{_EPILOG}"


def _request(file: BakeFile) -> BakeRequest:
    """The request that a bake makes of the file, without any option."""
    from dataclasses import fields

    from baker.cli.bake import make_request

    chosen = {field.name: getattr(file, field.name) for field in fields(file)}
    return make_request(chosen, force=True, keep_work=False, folders=(), lock=None)


def _show(findings: list[FileFinding], paths: list[Path], format: Format) -> None:
    from baker.lint_formats import as_github, as_gitlab, as_json, as_text

    form = {Format.TEXT: as_text, Format.JSON: as_json, Format.GITHUB: as_github, Format.GITLAB: as_gitlab}[format]
    text = form(findings)
    if text:
        typer.echo(text)
    if format is Format.TEXT:
        errors = sum(each.level == "error" for each in findings)
        warnings = sum(each.level == "warning" for each in findings)
        names = ", ".join(map(str, paths))
        counts = (
            f"{errors} {'error' if errors == 1 else 'errors'}, {warnings} {'warning' if warnings == 1 else 'warnings'}"
        )
        typer.echo(f"{names}: {counts}" if findings else f"{names}: fine")
