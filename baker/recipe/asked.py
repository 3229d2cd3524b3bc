"""A recipe build in the words of the one who asks, before anything is looked up."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field

from baker.model import Arch
from baker.recipe.load import find_recipe
from baker.recipe.model import Recipe
from baker.recipe.request import RecipeBuild, settle
from baker.recipe.versions import Catalogue
from baker.services import Services


@dataclass(frozen=True)
class RecipeWords:
    """What to build; `version` may be `latest`. `environment` holds what old scripts took from variables.

    With the address of a `bakery` the configs for systemd-sysupdate are wanted too.
    """

    name: str
    version: str
    arch: Arch
    variant: str = ""
    parameters: Mapping[str, str] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    component: str = ""
    format: str = "squashfs"
    compression: str = ""
    epoch: int = 0
    bakery: str = ""


def settle_words(words: RecipeWords, services: Services) -> RecipeBuild:
    """Look up what the words mean. Raises what `settle` raises, and UsageError for a recipe that does not exist."""
    name = words.component or words.name
    request = settle(
        find_recipe(words.name, services.recipes), words.version, words.arch,
        Catalogue(services, services.rewrites, services.recipes), variant=words.variant,
        parameters=words.parameters, environment=words.environment, name=name,
    )  # fmt: skip
    return dataclasses.replace(request, format=words.format, compression=words.compression, epoch=words.epoch)


def variables(recipe: Recipe, environment: Mapping[str, str]) -> dict[str, str]:
    """Those variables of an environment that mean something to a recipe."""
    known = {name for variant in recipe.variants for name in variant.env}
    known |= {parameter.env for parameter in recipe.parameters if parameter.env}
    return {name: value for name, value in environment.items() if name in known}
