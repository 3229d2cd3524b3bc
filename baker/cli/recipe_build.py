"""The command `recipe build`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from baker.cli import options
from baker.cli.pack_options import CompressionOption, EpochOption, FormatOption, OverwriteOption
from baker.cli.recipe_options import (
    LockedSourcesOption,
    MirrorUrlOption,
    RecipesLockOption,
    RecipesOption,
    recipe_names,
)  # fmt: skip

if TYPE_CHECKING:
    from baker.recipe.model import Recipe

_EPILOG = """Examples:

\b
  flatcar-bake recipe build wasmtime latest
  flatcar-bake recipe build docker 28.0.4 --arch arm64 --variant docker-only --name mydocker
  flatcar-bake recipe build kubernetes v1.33.2 --param cni=v1.7.1 --sysupdate --output-dir out

The same inputs give the same bytes, and a second build comes out of the cache. The variables of the old scripts work
too: ARCH, FORMAT, SOURCE_DATE_EPOCH, and those of the recipe, such as ONLY_DOCKER=1 or CNI_VERSION=v1.7.1.
"""


def build(
    name: Annotated[str, typer.Argument(metavar="NAME", autocompletion=recipe_names, help="A recipe or its alias.")],
    version: Annotated[str, typer.Argument(metavar="VERSION", help="A version, with or without its v, or `latest`.")],
    values: Annotated[
        list[str] | None,
        typer.Argument(metavar="[VALUE…]", help="Parameters that old scripts took by position."),
    ] = None,
    arch: Annotated[
        str,
        typer.Option(
            "--arch",
            "-a",
            envvar=["FLATCAR_BAKE_ARCH", "ARCH"],
            metavar="ARCH",
            help="x86-64 or arm64 (amd64, x86_64, aarch64 will do).",
        ),
    ] = "x86-64",
    variant: Annotated[
        str, typer.Option("--variant", envvar="FLATCAR_BAKE_VARIANT", metavar="NAME", help="Build a part of it only.")
    ] = "",
    param: Annotated[
        list[str] | None,
        typer.Option(
            "--param",
            "-p",
            envvar="FLATCAR_BAKE_PARAM",
            metavar="NAME=VALUE",
            help="Set a parameter of the recipe; may be repeated.",
        ),
    ] = None,
    component: Annotated[
        str,
        typer.Option(
            "--name",
            envvar="FLATCAR_BAKE_NAME",
            metavar="NAME",
            help="Another name for the sysext and its file.  [default: that of the recipe, or the alias]",
        ),
    ] = "",
    format: FormatOption = "",
    compression: CompressionOption = "",
    epoch: EpochOption = 0,
    sysupdate: Annotated[
        bool,
        typer.Option(
            "--sysupdate",
            envvar="FLATCAR_BAKE_SYSUPDATE",
            help="Write the configs for systemd-sysupdate too: one for each stream, and noop.conf.",
        ),
    ] = False,
    sysupdate_url: Annotated[
        str | None,
        typer.Option(
            "--sysupdate-url",
            envvar="FLATCAR_BAKE_SYSUPDATE_URL",
            metavar="URL",
            help="Where new versions will be published, each sysext in its folder.  [default: the bakery]",
        ),
    ] = None,
    output_dir: options.OutputDirOption = None,
    output_file: Annotated[
        Path | None,
        typer.Option(
            "--output-file",
            envvar="FLATCAR_BAKE_OUTPUT_FILE",
            metavar="FILE",
            help="The image to write.  [default: NAME-VERSION-ARCH.raw in the output folder]",
        ),
    ] = None,
    recipes: RecipesOption = None,
    mirror_url: MirrorUrlOption = None,
    recipes_lock: RecipesLockOption = None,
    locked_sources: LockedSourcesOption = False,
    cache_dir: options.CacheDirOption = None,
    executor: options.ExecutorOption = None,
    storage: options.StorageOption = None,
    force: OverwriteOption = False,
    json: options.JsonOption = False,
    progress: options.ProgressOption = options.ProgressMode.AUTO,
    quiet: options.QuietOption = False,
    debug: options.DebugOption = False,
) -> None:
    """Build a sysext from a recipe."""
    import os
    from json import dumps

    from baker.cli.fleet import build_in_fleet, check_options
    from baker.console import make_console
    from baker.packing.options import PackOptions, arch_from_word
    from baker.recipe.asked import RecipeWords, settle_words, variables
    from baker.recipe.load import find_recipe
    from baker.recipe.output import write_sysext
    from baker.services import DEFAULT_BAKERY

    fleet = check_options(executor, storage, {"--output-file": output_file is not None})
    machine = arch_from_word(arch)
    assert machine is not None
    format = format or "squashfs"
    PackOptions(component or name, machine, format, compression=compression, epoch=epoch)  # checks the words
    console = make_console(progress, quiet)
    try:
        with options.open_services(
            console, recipes=recipes, mirror_urls=mirror_url, recipes_lock=recipes_lock, locked_sources=locked_sources,
            cache_dir=cache_dir,
        ) as services:  # fmt: skip
            recipe = find_recipe(name, services.recipes)
            words = RecipeWords(
                name, version, machine, variant, _parameters(recipe, values or [], param or []),
                variables(recipe, os.environ), component, format, compression, epoch,
                (sysupdate_url or DEFAULT_BAKERY) if sysupdate or sysupdate_url else "",
            )  # fmt: skip
            if fleet and executor and storage:
                build_in_fleet(words, services, executor, storage, output_dir, force, json)
                return
            request = settle_words(words, services)
            target = output_file or (output_dir or Path()) / request.file_name
            built, files = write_sysext(request, services, target, words.bakery, force)
            for finding in built.findings:
                (console.warn if finding.fatal else console.note)(finding.message)
    finally:
        console.close()
    if json:
        typer.echo(dumps({**built.record, "files": [str(path) for path in files]}, indent=2))
    else:
        for path in files:
            typer.echo(path)


build.__doc__ = f"{build.__doc__}\n\n{_EPILOG}"


def _parameters(recipe: Recipe, values: list[str], words: list[str]) -> Mapping[str, str]:
    """What --param and the arguments behind the version say."""
    from baker.errors import UsageError

    positional = sorted((each for each in recipe.parameters if each.positional), key=lambda each: each.positional)
    if len(values) > len(positional):
        raise UsageError(f"{recipe.name} takes no argument {values[len(positional)]!r}.", "Use --param NAME=VALUE.")
    found = {parameter.name: value for parameter, value in zip(positional, values, strict=False)}
    for word in words:
        key, sign, value = word.partition("=")
        if not sign or not key:
            raise UsageError(f"--param wants NAME=VALUE, not {word!r}.")
        found[key] = value
    return found
