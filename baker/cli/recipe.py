"""The recipe commands: what there is, which versions, a new one, checks. `recipe_build.py` has the build."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from baker.cli import options
from baker.cli.recipe_build import build
from baker.cli.recipe_options import MirrorUrlOption, RecipesOption, recipe_names

recipe_app = typer.Typer(
    help="Build sysexts from recipes, such as docker and wasmtime.",
    no_args_is_help=True, rich_markup_mode=None,
)  # fmt: skip
recipe_app.command("build")(build)

NameArgument = Annotated[
    str, typer.Argument(metavar="NAME", autocompletion=recipe_names, help="A recipe, by name or alias.")
]


@recipe_app.command("list")
def list_recipes(recipes: RecipesOption = None, json: options.JsonOption = False) -> None:
    """List the recipes."""
    from json import dumps

    from baker.recipe.load import load_recipes
    from baker.recipe.text import recipe_row, recipe_table

    known = load_recipes(recipes or ()).values()
    typer.echo(dumps([recipe_row(recipe) for recipe in known], indent=2) if json else recipe_table(known))


@recipe_app.command("show")
def show(name: NameArgument, recipes: RecipesOption = None, json: options.JsonOption = False) -> None:
    """Show what a recipe makes, of what, and what can be chosen."""
    from json import dumps

    from baker.recipe.load import find_recipe, load_recipes
    from baker.recipe.text import recipe_details, recipe_row

    recipe = find_recipe(name, load_recipes(recipes or ()))
    typer.echo(dumps(recipe_row(recipe), indent=2) if json else recipe_details(recipe))


@recipe_app.command("versions")
def versions(
    name: NameArgument,
    latest: Annotated[
        bool, typer.Option("--latest", help="Only the newest; of some, such as kubernetes, the newest of each minor.")
    ] = False,
    recipes: RecipesOption = None,
    mirror_url: MirrorUrlOption = None,
    cache_dir: options.CacheDirOption = None,
    json: options.JsonOption = False,
    progress: options.ProgressOption = options.ProgressMode.AUTO,
    quiet: options.QuietOption = False,
    debug: options.DebugOption = False,
) -> None:
    """List the versions that upstream has, newest first.

    GitHub allows 60 requests an hour; with a token in GH_TOKEN it allows more.
    """
    from json import dumps

    from baker.console import make_console
    from baker.recipe.load import find_recipe
    from baker.recipe.versions import Catalogue

    console = make_console(progress, quiet)
    try:
        with options.open_services(console, recipes=recipes, mirror_urls=mirror_url, cache_dir=cache_dir) as services:
            catalogue = Catalogue(services, services.rewrites, services.recipes)
            recipe = find_recipe(name, services.recipes)
            found = catalogue.latest(recipe) if latest else catalogue.versions(recipe)
    finally:
        console.close()
    typer.echo(dumps(found) if json else "\n".join(found))


@recipe_app.command("new")
def new(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the recipe, and of its folder.")],
    folder: Annotated[
        Path, typer.Option("--recipes", envvar="FLATCAR_BAKE_RECIPES", metavar="DIR", help="Your folder of recipes.")
    ] = Path("recipes"),
    debug: options.DebugOption = False,
) -> None:
    """Begin a recipe: a commented recipe.toml and a unit to change."""
    from baker.recipe.skeleton import write_skeleton

    for path in write_skeleton(folder, name):
        typer.echo(path)


@recipe_app.command("lint")
def lint(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="[NAME…]", autocompletion=recipe_names, help="Recipes to check.  [default: all]"),
    ] = None,
    recipes: RecipesOption = None,
    debug: options.DebugOption = False,
) -> None:
    """Check recipes without building them. Ends with status 2 when one is wrong."""
    from baker.errors import UsageError
    from baker.recipe.lint import lint_recipe
    from baker.recipe.load import recipe_folders
    from baker.schema import suggest

    folders = recipe_folders(recipes or ())
    for name in names or ():
        if name not in folders:
            raise UsageError(f"There is no recipe {name!r}.", suggest(name, folders))
    checked = names or sorted(folders)
    problems = [problem for name in checked for problem in lint_recipe(folders[name])]
    for problem in problems:
        typer.echo(problem)
    if problems:
        raise UsageError(f"{len(problems)} {'thing is' if len(problems) == 1 else 'things are'} wrong.")
    typer.echo(f"{len(checked)} {'recipe is' if len(checked) == 1 else 'recipes are'} fine.")
