"""Which versions of a recipe there are, newest first, and which of them are the latest.

Pre-releases count only where the recipe says so. Lists are kept in the cache for a quarter of an hour, because APIs
allow few requests; without a network the one seen last is used, with a warning.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice

from baker.errors import NetworkError, UsageError
from baker.recipe.mirrors import Rewrites
from baker.recipe.model import Recipe, VersionSource
from baker.recipe.order import minor_of, version_key
from baker.recipe.version_sources import Asker, Tag, tags
from baker.recipe.words import Scope, expand
from baker.services import Services

_FRESH = 900  # seconds


@dataclass(frozen=True)
class Catalogue:
    """Lists versions. `recipes` are those that others may refer to (`follow`, `supported`).

    Every method raises NetworkError when a list cannot be had, UsageError where a recipe has none.
    """

    services: Services
    rewrites: Rewrites
    recipes: Mapping[str, Recipe]

    def versions(self, recipe: Recipe) -> list[str]:
        """All versions in the recipe's form, newest first."""
        source = _source(recipe)
        if source.type == "follow":
            listed = [Tag(version) for version in self.versions(self._other(source.recipe, source))]
        else:
            words = [
                dict(recipe.words.get(arch, {})) | {"arch": arch.value, "name": recipe.name} for arch in recipe.arches
            ]
            listed = self._tags(source, words)
        known = set()
        for tag in listed:
            version = _version(recipe, tag)
            if version and (recipe.version.prerelease or not (tag.prerelease or is_prerelease(version))):
                known.add(version)
        least = version_key(recipe.version.min) if recipe.version.min else None
        return sorted(
            (version for version in known if least is None or version_key(version) >= least),
            key=lambda version: (version_key(version), version), reverse=True,
        )  # fmt: skip

    def latest(self, recipe: Recipe) -> list[str]:
        """The newest version, or where the recipe says so the newest of each minor, newest first. Never empty."""
        source = _source(recipe)
        versions = self.versions(recipe)
        if not versions:
            raise NetworkError(
                f"Upstream lists no version of {recipe.name} that fits.",
                "Any version can be named, listed or not; does the recipe's `match` fit its source?",
            )
        if source.per != "minor" and not source.supported:
            return versions[:1]
        newest: dict[str, str] = {}
        for version in versions:
            newest.setdefault(minor_of(version), version)
        if source.supported and source.supported != recipe.name:
            supported = {minor_of(version) for version in self.versions(self._other(source.supported, source))}
            newest = {minor: version for minor, version in newest.items() if minor in supported} or newest
        return list(islice(newest.values(), source.count or None))

    def newest(self, source: VersionSource, scope: Scope) -> str:
        """The newest version that a source lists, as it is written there: for parameters whose default is `latest`."""
        found = [_stripped(source, tag) for tag in self._tags(source, [scope.words]) if not tag.prerelease]
        fitting = [version for version in found if re.match(r"v?\d", version) and not is_prerelease(version)]
        if not fitting:
            raise NetworkError(
                f"{source.where}: upstream lists no version.",
                "Name one with --param, or look at the source's pattern.",
            )
        return max(fitting, key=version_key)

    def _other(self, name: str, source: VersionSource) -> Recipe:
        if name not in self.recipes:
            raise UsageError(f"{source.where}: there is no recipe {name!r}.")
        return self.recipes[name]

    def _tags(self, source: VersionSource, words: Sequence[Mapping[str, str]]) -> list[Tag]:
        """What a source lists, for every set of words: what all have, or the first has (`all_arches`)."""
        urls = list(dict.fromkeys(expand(source.url, each, source.where) for each in words))
        lists = [self._kept(source, url) for url in (urls if source.all_arches else urls[:1])]
        common = set.intersection(*(set(found) for found in lists))
        return [tag for tag in lists[0] if tag in common]

    def _kept(self, source: VersionSource, url: str) -> list[Tag]:
        """A list as it is in the cache, or when that is old, as upstream has it now."""
        place = [self.rewrites.apply(url), self.rewrites.rules]
        key = f"versions {json.dumps([asdict(source) | {'where': ''}, url, place])}"
        then, old = _recalled(self.services.cache.recall(key))
        if old is not None and 0 <= time.time() - then < _FRESH:
            return old
        try:
            found = tags(Asker(source, url, self.services, self.rewrites))
        except NetworkError as error:
            if old is None:
                raise
            self.services.console.warn(f"{error.message} Using the list of versions that was seen last.")
            return old
        kept = [time.time(), [[tag.name, tag.prerelease] for tag in found]]
        self.services.cache.remember(key, json.dumps(kept).encode())
        return found


def is_prerelease(version: str) -> bool:
    """Whether a version says of itself that it is none yet: `v1.2.0-rc.1`, `1.2b3`; but not `v1.2.0+k3s1`."""
    return version_key(version)[1] < 0


def _source(recipe: Recipe) -> VersionSource:
    if recipe.version.source is None:
        raise UsageError(f"{recipe.name} has no list of versions.", "Name the version that you want.")
    return recipe.version.source


def _stripped(source: VersionSource, tag: Tag) -> str:
    """The version in a tag, "" for a tag of something else."""
    if source.reject and re.search(source.reject, tag.name):
        return ""
    if not tag.name.startswith(source.strip_prefix):
        return ""
    name = tag.name.removeprefix(source.strip_prefix)
    if source.pattern and source.type not in ("html-index", "text"):  # those two found it by the pattern
        found = re.fullmatch(source.pattern, name)
        return "" if not found else found[1] if found.re.groups else found[0]
    return name


def _version(recipe: Recipe, tag: Tag) -> str:
    """A tag as a version of the recipe, "" when it is none."""
    version = _stripped(_source(recipe), tag)
    try:
        return recipe.canonical(version) if version else ""
    except UsageError:
        return ""


def _recalled(data: bytes | None) -> tuple[float, list[Tag] | None]:
    """(when, what) was kept in the cache."""
    try:
        then, entries = json.loads(data or b"")
        return float(then), [Tag(str(name), bool(prerelease)) for name, prerelease in entries]
    except (ValueError, TypeError):
        return 0.0, None
