"""Checks of a recipe without building it: the schema, and what its own files give away."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from baker.errors import BakeError
from baker.recipe.entries import tree_path
from baker.recipe.load import load_recipe
from baker.recipe.model import Recipe, Uphold
from baker.recipe.steps import Unpacked, unit_paths
from baker.recipe.verdict import check_drop_in


def lint_recipe(folder: Path) -> list[str]:
    """All that is wrong with a recipe, each with its file; empty when it is fine."""
    try:
        recipe = load_recipe(folder)
        return list(_problems(recipe))
    except BakeError as error:
        return [f"{error.message} {error.hint or ''}".rstrip()]


def _problems(recipe: Recipe) -> Iterator[str]:
    own = Unpacked(recipe.files, "files").files if recipe.files.is_dir() else []
    paths = [f"/{name}" for name in own]
    for path in paths:
        try:
            tree_path(path, "the path", str(recipe.files / path.lstrip("/")))
            check_drop_in(path, recipe)
        except BakeError as error:
            yield f"{error.message} {error.hint or ''}".rstrip()
    units = {path for path in paths if path.endswith((".service", ".socket", ".timer", ".path", ".mount"))}
    if units and not recipe.reload:
        yield f"{recipe.path}: files/ has units, so it needs reload = true, or systemd will not see them at once."
    for uphold in recipe.upholds:
        if not _may_have(recipe, uphold, paths):
            yield f"{uphold.where}: nothing brings {uphold.unit}, which {uphold.target} is to uphold."
    if not recipe.installs and not paths and recipe.rootfs is None:
        yield f"{recipe.path}: the extension would be empty."


def _may_have(recipe: Recipe, uphold: Uphold, paths: list[str]) -> bool:
    """Whether the unit is among the recipe's own files, or could be in something that it installs."""
    wanted = unit_paths(uphold.unit)
    made = {*paths, *(each.path for each in recipe.generates), *(each.path for each in recipe.symlinks)}
    folders = tuple(install.dst for install in recipe.installs)
    return any(path in made or path.startswith(folders) for path in wanted)
