"""Extensions built by the recipes from the local mirror."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from mirrors import Recorder
from upstream import Upstream

from baker.model import Arch
from baker.recipe.build import Built, build
from baker.recipe.request import settle
from baker.recipe.versions import Catalogue
from baker.services import Services, Settings


@contextmanager
def services(upstream: Upstream, folder: Path, **settings: object) -> Iterator[Services]:
    """What a build works with: downloads come from the mirror, cache and recipes.lock are in `folder`."""
    rules = tuple("=".join(rule) for rule in upstream.rewrites)
    chosen = Settings(cache_dir=folder / "cache", recipes_lock=folder / "recipes.lock", mirror_urls=rules)
    for name, value in settings.items():
        setattr(chosen, name, value)
    with Services(chosen, Recorder()) as opened:
        yield opened


def build_recipe(
    upstream: Upstream,
    folder: Path,
    name: str,
    arch: Arch,
    version: str = "",
    *,
    variant: str = "",
    parameters: Mapping[str, str] = {},
    image: str = "",
) -> Built:
    """Build a recipe from the mirror, with fast compression.

    Without a version it is the one that the mirror knows best. `image` takes the place of a container's base image.
    """
    version = upstream.add(name, arch, version)
    work = folder / f"{name}-{version}-{arch}-{variant}"
    work.mkdir(parents=True)
    with services(upstream, folder) as opened:
        recipe = opened.recipes[name]
        if image:
            if recipe.rootfs:
                recipe = replace(recipe, rootfs=replace(recipe.rootfs, image=image))
            else:
                assert recipe.build
                recipe = replace(recipe, build=replace(recipe.build, images={"": image}))
        catalogue = Catalogue(opened, opened.rewrites, opened.recipes)
        request = settle(recipe, version, arch, catalogue, variant=variant, parameters=parameters)
        return build(replace(request, compression="lz4"), opened, work)
