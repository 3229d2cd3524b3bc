"""The options that say where recipes and their downloads come from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

_TRUST = "Where things come from"


def recipe_names() -> list[str]:
    """All recipes, for completion."""
    from baker.recipe.load import recipe_folders

    return sorted(recipe_folders())


RecipesOption = Annotated[
    list[Path] | None, typer.Option("--recipes", envvar="FLATCAR_BAKE_RECIPES", metavar="DIR", rich_help_panel=_TRUST,
    help="Further folder of recipes, which win over the shipped ones; may be repeated."),
]  # fmt: skip
MirrorUrlOption = Annotated[
    list[str] | None, typer.Option("--mirror-url", envvar="FLATCAR_BAKE_MIRROR_URL", metavar="PREFIX=PREFIX",
    rich_help_panel=_TRUST, help="Fetch what recipes download from elsewhere: "
    "https://github.com/=https://mirror.example/github.com/ or a folder; may be repeated."),
]  # fmt: skip
RecipesLockOption = Annotated[
    Path | None, typer.Option("--recipes-lock", envvar="FLATCAR_BAKE_RECIPES_LOCK", metavar="FILE",
    rich_help_panel=_TRUST, help="Digests of downloads that upstream does not vouch for; new ones are added.  "
    "[default: ./recipes.lock if there is one, else one in the cache]"),
]  # fmt: skip
LockedSourcesOption = Annotated[
    bool, typer.Option("--locked-sources", envvar="FLATCAR_BAKE_LOCKED_SOURCES", rich_help_panel=_TRUST,
    help="Refuse what neither upstream nor recipes.lock vouches for."),
]  # fmt: skip
