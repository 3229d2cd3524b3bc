"""A recipe's entries, carried out: from unpacked sources to the finished tree of the extension."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TypeVar

from baker.errors import ImageError, UsageError
from baker.recipe.globs import covers, kept
from baker.recipe.model import Edit, Generate, Install, Recipe, Remove, Symlink, Uphold, Variant
from baker.recipe.tree import Tree
from baker.recipe.words import Scope
from baker.schema import suggest

Entry = TypeVar("Entry", Install, Symlink, Generate, Edit, Remove, Uphold)

_UNIT_FOLDERS = ("/usr/lib/systemd/system", "/usr/local/lib/systemd/system")


@dataclass(frozen=True)
class Unpacked:
    """One download, ready to be taken from: a folder, or a single file that upstream calls `name`."""

    path: Path
    name: str
    item: str = ""

    @cached_property
    def files(self) -> list[str]:
        """The files and links of a folder, as paths within it, sorted."""
        return sorted(
            os.path.relpath(os.path.join(folder, name), self.path)
            for folder, folders, names in os.walk(self.path)
            for name in [*names, *(each for each in folders if os.path.islink(os.path.join(folder, each)))]
        )


@dataclass(frozen=True)
class Build:
    """What decides which entries count and what their words mean."""

    scope: Scope
    variant: Variant | None = None

    @property
    def recipe(self) -> Recipe:
        return self.scope.recipe

    def chosen(self, entries: Sequence[Entry]) -> list[Entry]:
        """The entries that count for this version, architecture, variant and parameters, in order."""
        name = self.variant.name if self.variant else ""
        return [
            entry
            for entry in entries
            if (not entry.variants or name in entry.variants) and entry.when.holds(self.scope.facts)
        ]

    def drops(self, path: str) -> bool:
        """Whether the variant leaves this path out."""
        return self.variant is not None and covers(self.variant.drop, path)


def fill(tree: Tree, build: Build, sources: Mapping[str, Sequence[Unpacked]]) -> None:
    """Make the tree. `sources` has the unpacked files of each source that is installed from.

    Raises ImageError where upstream's files are not what the recipe expects, UsageError where the recipe itself
    cannot be followed; both name the entry's file and line.
    """
    recipe, scope = build.recipe, build.scope
    overlay(tree, recipe.files)
    for install in build.chosen(recipe.installs):
        _install(tree, install, sources[install.source], scope)
    for made in build.chosen(recipe.generates):
        path, content = (scope.expand(text, made.where) for text in (made.path, made.content))
        tree.write(path, content, made.mode, made.where)
    for link in build.chosen(recipe.symlinks):
        tree.link(scope.expand(link.path, link.where), scope.expand(link.target, link.where), link.where)
    for edit in build.chosen(recipe.edits):
        pairs = tuple((scope.expand(old, edit.where), scope.expand(new, edit.where)) for old, new in edit.replace)
        tree.edit(scope.expand(edit.path, edit.where), pairs, edit.count, edit.where)
    for removal in build.chosen(recipe.removes):
        for pattern in removal.paths:
            tree.remove(scope.expand(pattern, removal.where), removal.where, removal.optional)
    if build.variant:
        for pattern in build.variant.drop:
            tree.remove(pattern, build.variant.where)
    for uphold in build.chosen(recipe.upholds):
        if build.variant is None or uphold.unit not in build.variant.drop_uphold:
            _uphold(tree, uphold)


def overlay(tree: Tree, folder: Path) -> None:
    """Lay the recipe's own files over the tree; modes are 0755 for what is executable, else 0644."""
    if folder.is_dir():
        own = Unpacked(folder, "files")
        for name in own.files:
            tree.copy(f"/{name}", folder / name, str(folder / name))


def _install(tree: Tree, install: Install, sources: Sequence[Unpacked], scope: Scope) -> None:
    for source in sources:
        words = {"item": source.item} if source.item else {}
        destination = scope.expand(install.dst, install.where, **words)
        if not source.path.is_dir():
            into = destination + (source.name if destination.endswith("/") else "")
            tree.put(into, source.path, install.mode, install.where)
            continue
        found = _select(install, source, scope, words)
        if not destination.endswith("/"):
            found = _renamed(found, install, destination)
        for name, inside in found:
            tree.put(destination + inside, source.path / name, install.mode, install.where)


def _select(install: Install, source: Unpacked, scope: Scope, words: Mapping[str, str]) -> list[tuple[str, str]]:
    """The files to take, each with its path below the destination."""
    excluded = [scope.expand(pattern, install.where, **words) for pattern in install.exclude]
    names = [name for name in source.files if not covers(excluded, name)]
    if install.find:
        wanted = scope.expand(install.find, install.where, **words)
        found = [(name, wanted) for name in names if name.rpartition("/")[2] == wanted]
        if len(found) > 1:
            raise ImageError(f"{install.where}: {source.name} has {wanted} {len(found)} times: {_some(found)}.")
    else:
        wanted = scope.expand(install.src, install.where, **words) or "**"
        found = [(name, inside) for name in names if (inside := _inside(wanted, name)) is not None]
    if not found and not install.optional:
        raise ImageError(
            f"{install.where}: {source.name} has nothing that matches {wanted!r}.",
            suggest(wanted, source.files) or f"It has {_some([(name, '') for name in source.files])}.",
        )
    return found


def _inside(pattern: str, name: str) -> str | None:
    """The path below the destination of a file that matches, itself or by a folder above it; None for others."""
    parts = name.split("/")
    for count in range(1, len(parts) + 1):
        stays = kept(pattern, "/".join(parts[:count]))
        if stays is not None:
            return "/".join([stays, *parts[count:]])
    return None


def _renamed(found: list[tuple[str, str]], install: Install, destination: str) -> list[tuple[str, str]]:
    """A file that gets a new name, or the files of one folder that does. Anything else is an error."""
    tops = {inside.partition("/")[0] for _, inside in found}
    if len(tops) > 1 or (len(found) > 1 and any("/" not in inside for _, inside in found)):
        raise ImageError(
            f"{install.where}: {len(found)} files would all become {destination}: {_some(found)}.",
            f'Write dst = "{destination}/" to put them into a folder.',
        )
    return [(name, inside.removeprefix(inside.partition("/")[0])) for name, inside in found]


def _some(found: Sequence[tuple[str, str]]) -> str:
    more = f" and {len(found) - 8} more" if len(found) > 8 else ""
    return ", ".join(name for name, _ in found[:8]) + more


def unit_paths(unit: str) -> list[str]:
    """Where systemd looks for a unit in an extension; for an instance, for its template too."""
    names = [unit]
    if "@" in unit:
        names.append(f"{unit.partition('@')[0]}@.{unit.rpartition('.')[2]}")
    return [f"{folder}/{name}" for folder in _UNIT_FOLDERS for name in names]


def _uphold(tree: Tree, uphold: Uphold) -> None:
    if not any(map(tree.has, unit_paths(uphold.unit))):
        shipped = [path.rpartition("/")[2] for path in tree.paths() if path.startswith(_UNIT_FOLDERS)]
        raise UsageError(
            f"{uphold.where}: {uphold.target} is to uphold {uphold.unit}, which is not in the extension.",
            suggest(uphold.unit, shipped),
        )
    tree.write(uphold.path, f"[Unit]\nUpholds={uphold.unit}\n", 0o644, uphold.where)
