"""What a release is to hold, image by image: the lines of a versions file with `latest` looked up."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from baker.errors import BakeError, UsageError
from baker.model import Arch
from baker.recipe.load import Recipes, find_recipe
from baker.recipe.model import Recipe
from baker.recipe.versions import Catalogue
from baker.releasing.versions import LATEST, Wanted
from baker.services import Services


@dataclass(frozen=True)
class Item:
    """An image to build. `version` is in the recipe's form, or `latest` where upstream could not be asked."""

    name: str
    version: str
    arch: Arch
    parameters: tuple[tuple[str, str], ...] = ()

    @property
    def file_name(self) -> str:
        """NAME-VERSION-ARCH.raw."""
        return f"{self.name}-{self.version}-{self.arch}.raw"

    @property
    def word(self) -> str:
        """As `--add` takes it."""
        return " ".join((f"{self.name}@{self.version}", *(f"{key}={value}" for key, value in self.parameters)))


@dataclass(frozen=True)
class Failure:
    """Something that did not become part of the release, and why."""

    what: str
    error: BakeError
    line: Wanted | None = None
    """The line whose version could not be looked up; None for a build that failed."""


class SomeFailed(BakeError):
    """Parts of a release failed, and the others are done. It ends the program as the first failure would."""

    def __init__(self, failures: Sequence[Failure], done: int) -> None:
        told = "; ".join(f"{item.what}: {item.error.message.rstrip('.')}" for item in failures)
        first = failures[0].error
        super().__init__(
            f"{len(failures)} of {len(failures) + done} failed: {told}.",
            f"The others are complete; the same command tries again what failed. {first.hint or ''}".rstrip(),
        )
        self.exit_code, self.kind = first.exit_code, first.kind


def recipe_names(recipes: Recipes) -> set[str]:
    """Every name that a recipe goes by."""
    return {*recipes, *recipes.aliases}


def resolve_items(
    wanted: Iterable[Wanted], arches: Sequence[Arch], services: Services
) -> tuple[list[Item], list[Failure]]:
    """The images of a release, in the order of the lines, each once; and the lines whose versions cannot be had.

    A recipe that does not exist for an architecture is left out there. Raises UsageError for a version that the
    recipe cannot have, and for one image that is wanted with different parameters.
    """
    catalogue = Catalogue(services, services.rewrites, services.recipes)
    items: dict[str, Item] = {}
    failures: list[Failure] = []
    for line in wanted:
        recipe = find_recipe(line.name, services.recipes)
        try:
            versions = catalogue.latest(recipe) if line.version == LATEST else [_canonical(recipe, line)]
        except UsageError:
            raise
        except BakeError as error:
            services.console.warn(f"{line.name} {line.version}: {error.message}")
            failures.append(Failure(f"{line.name} {line.version}", error, line))
            continue
        for version in versions:
            for arch in (arch for arch in arches if arch in recipe.arches):
                item = Item(line.name, version, arch, line.parameters)
                if items.setdefault(item.file_name, item) != item:
                    raise UsageError(f"{line.where}: {item.file_name} is wanted with other parameters already.")
    return list(items.values()), failures


def _canonical(recipe: Recipe, line: Wanted) -> str:
    try:
        return recipe.canonical(line.version)
    except UsageError as error:
        raise UsageError(f"{line.where}: {error.message}", error.hint) from error


@dataclass(frozen=True)
class ImageName:
    """What the name of an image's file says."""

    component: str
    version: str
    arch: Arch


def parse_image_name(file: str, names: Iterable[str] = ()) -> ImageName | None:
    """NAME-VERSION-ARCH.raw taken apart; None for other names.

    NAME is the longest of `names` that fits, else what stands before the first hyphen with a version behind it.
    """
    found = re.fullmatch(rf"(.+)-({'|'.join(Arch)})\.raw", file)
    if not found or not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._+~=-]*", file):
        return None
    stem, arch = found[1], Arch(found[2])
    known = max((name for name in names if stem.startswith(f"{name}-")), key=len, default="")
    if known:
        return ImageName(known, stem.removeprefix(f"{known}-"), arch)
    split = re.fullmatch(r"(.+?)-(v?\d.*)", stem)
    return ImageName(split[1], split[2], arch) if split else None
