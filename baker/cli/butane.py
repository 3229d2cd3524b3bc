"""The butane command: a provisioning config instead of an image."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from enum import StrEnum
from functools import partial
from inspect import cleandoc
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from baker.cli import options
from baker.cli.recipe_options import RecipesOption

if TYPE_CHECKING:
    from baker.recipe.model import Recipe
    from baker.services import Services

_EPILOG = """Examples:

\b
  flatcar-bake butane wasmtime@24.0.0 --update > wasmtime.bu
  flatcar-bake butane docker@28.0.4 docker-compose@2.34.0 --format ignition -o config.ign
  flatcar-bake butane k3s@v1.33.1+k3s1 --example agent --set server=https://192.0.2.10:6443 --set token=abc
  flatcar-bake butane my-tools:./my-tools-1.2-x86-64.raw --server https://example.org/sysexts
  flatcar-bake butane --list-examples
"""


class Format(StrEnum):
    BUTANE = "butane"
    IGNITION = "ignition"


def butane(
    sysexts: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="SYSEXT…",
            help="NAME@VERSION or NAME:FILE of the bakery, NAME:URL#sha256=HEX, or NAME:./FILE with --server.",
        ),
    ] = None,
    update: Annotated[
        bool,
        typer.Option(
            "--update",
            "--updates",
            envvar="FLATCAR_BAKE_UPDATES",
            help="Let systemd-sysupdate keep the extensions up to date.",
        ),
    ] = False,
    update_key: Annotated[
        Path | None,
        typer.Option(
            "--update-key",
            envvar="FLATCAR_BAKE_UPDATE_KEY",
            metavar="FILE",
            help="OpenPGP public keys by which systemd-sysupdate will trust signed releases.",
        ),
    ] = None,
    server: Annotated[
        str | None,
        typer.Option(
            "--server",
            envvar="FLATCAR_BAKE_SERVER",
            metavar="URL",
            help="Where the machines fetch from, if it is not where --bakery is.",
        ),
    ] = None,
    format: Annotated[
        Format, typer.Option("--format", envvar="FLATCAR_BAKE_CONFIG_FORMAT", help="Butane (YAML) or Ignition (JSON).")
    ] = Format.BUTANE,
    example: Annotated[
        list[str] | None,
        typer.Option(
            "--example",
            envvar="FLATCAR_BAKE_EXAMPLE",
            metavar="[NAME/]EXAMPLE",
            help="Also configure the extension as in this example; may be repeated.",
        ),
    ] = None,
    values: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="A value that an example needs, or KEY=@FILE for what is in a file; may be repeated.",
        ),
    ] = None,
    merge: Annotated[
        Path | None,
        typer.Option(
            "--merge",
            envvar="FLATCAR_BAKE_MERGE",
            metavar="FILE",
            help="Also say what this config says: Ignition (JSON), or Butane (*.bu, *.yaml, *.yml).",
        ),
    ] = None,
    list_examples: Annotated[
        bool, typer.Option("--list-examples", help="List the examples, of all recipes or of those named.")
    ] = False,
    official_sysext: options.OfficialSysextOption = None,
    disable_builtin: options.DisableBuiltinOption = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", envvar="FLATCAR_BAKE_OUTPUT", metavar="FILE", help="Write to this file."),
    ] = None,
    force: options.ForceOption = False,
    arch: options.ArchOption = None,
    bakery: options.BakeryOption = None,
    bakery_key: options.BakeryKeyOption = None,
    allow: Annotated[
        list[str] | None,
        typer.Option(
            "--allow",
            envvar="FLATCAR_BAKE_ALLOW",
            metavar="FINDING",
            help="Accept this finding of the lint, or `unverified`: a URL without a digest; may be repeated.",
        ),
    ] = None,
    recipes: RecipesOption = None,
    cache_dir: options.CacheDirOption = None,
    json: options.JsonOption = False,
    progress: options.ProgressOption = options.ProgressMode.AUTO,
    quiet: options.QuietOption = False,
    debug: options.DebugOption = False,
) -> None:
    """Write a Butane or Ignition config that fetches extensions.

    The machine downloads them at its first boot, checks their digests and links them; it boots a plain image.
    """
    from baker.additions import parse_builtins, parse_official
    from baker.console import make_console
    from baker.errors import UsageError
    from baker.model import Arch
    from baker.provision import provisioning
    from baker.remote import RemoteRequest, find_remote
    from baker.sign import read_keyring

    if list_examples:
        _print_examples(sysexts or (), recipes or (), json)
        return
    if output is not None and output.exists() and not force:
        raise UsageError(f"{output} exists already.", "Write to another --output, or overwrite it with --force.")
    given = _values(values or ())
    official, disabled = parse_official(official_sysext or ()), parse_builtins(disable_builtin or ())
    keys = read_keyring(update_key) if update_key else b""
    request = RemoteRequest(arch or Arch.X86_64, server or "", update, tuple(allow or ()), bool(keys))
    console = make_console(progress, quiet)
    try:
        with options.open_services(
            console, bakery=bakery, bakery_key=bakery_key, cache_dir=cache_dir, recipes=recipes
        ) as services:
            found = find_remote(sysexts or (), request, services) if sysexts or not (official or disabled) else ()
            config = provisioning(found, update, [f"{name}-flatcar" for name in disabled], official, keys)
            config = _with_examples(config, [item.name for item in found], example or (), given, services)
            if merge is not None:
                config = _merged(config, merge, services)
    finally:
        console.close()
    text = _render(config, Format.IGNITION if json else format)
    if output is None:
        typer.echo(text, nl=False)
    else:
        # What examples are given may be secrets; and a file that is there keeps its mode.
        if given and output.is_file():
            output.unlink()
        with open(output, "w", encoding="utf-8", opener=partial(os.open, mode=0o600 if given else 0o666)) as file:
            file.write(text)
        typer.echo(output)


butane.__doc__ = f"{cleandoc(butane.__doc__ or '')}\n\n{_EPILOG}"


def _values(words: Iterable[str]) -> dict[str, str]:
    from baker.errors import UsageError

    pairs = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not key or not equals:
            raise UsageError(f"--set wants KEY=VALUE, not {word!r}.")
        pairs[key] = _content(Path(value[1:])) if value.startswith("@") else value
    return pairs


def _content(path: Path) -> str:
    """The one line that a file holds."""
    from baker.errors import UsageError

    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"Cannot read a value from {path}: {getattr(error, 'strerror', 'it is no text')}.") from error


def _recipes_of(names: Iterable[str], known: Mapping[str, Recipe]) -> dict[str, Recipe]:
    wanted = set(names)
    return {name: each for name, each in known.items() if wanted & {name, *each.aliases}}


def _with_examples(
    config: dict[str, Any], names: list[str], words: Iterable[str], given: dict[str, str], services: Services
) -> dict[str, Any]:
    """The config with the examples' added; a note where an extension starts nothing without one."""
    from baker.errors import UsageError
    from baker.provision import add, choose_example
    from baker.schema import suggest

    recipes = _recipes_of(names, services.recipes)
    chosen = [choose_example(word, recipes) for word in words]
    known = {key for each in chosen for key in each.values}
    for key in given:
        if key not in known:
            raise UsageError(f"No example here has a value {key!r}.", suggest(key, known))
    for each in chosen:
        config = add(config, each.config(given), f"the example {each.name}")
    for recipe in recipes.values():
        if recipe.examples and not any(each in chosen for each in recipe.examples):
            choices = ", ".join(each.name for each in recipe.examples)
            services.console.note(f"{recipe.name} has examples of how to set it up: --example {choices}")
    return config


def _merged(config: dict[str, Any], path: Path, services: Services) -> dict[str, Any]:
    from baker.ignition_tools import read_config
    from baker.provision import add

    return add(config, read_config(path, services.console).content, str(path))


def _render(config: dict[str, Any], format: Format) -> str:
    from json import dumps

    from baker.butane import ordered, to_butane

    return to_butane(config) if format is Format.BUTANE else dumps(ordered(config), indent=2) + "\n"


def _print_examples(names: Iterable[str], folders: Iterable[Path], as_json: bool) -> None:
    from json import dumps

    from baker.recipe.load import find_recipe, load_recipes

    known = load_recipes(folders)
    wanted = [find_recipe(name.partition("@")[0].partition(":")[0], known) for name in names] or list(known.values())
    found = [(recipe, example) for recipe in wanted for example in recipe.examples]
    if as_json:
        rows = [
            {"recipe": recipe.name, "example": example.name, "description": example.description,
             "values": dict(example.values), "file": str(example.path)} for recipe, example in found
        ]  # fmt: skip
        typer.echo(dumps(rows, indent=2))
        return
    for recipe, example in found:
        typer.echo(f"{recipe.name}/{example.name}: {example.description}")
        for key, meaning in example.values.items():
            typer.echo(f"    --set {key}=…  {meaning}")
