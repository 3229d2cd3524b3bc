"""What a build downloads: the sources that its entries use, fetched side by side and vouched for."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from baker.errors import UsageError
from baker.recipe.download import FIRST_USE, LOCK, Obtained, Wanted, download_all
from baker.recipe.model import Source
from baker.recipe.request import RecipeBuild
from baker.recipe.steps import Build
from baker.services import Services


@dataclass(frozen=True)
class Input:
    """One verified download of a build, and what it is for."""

    source: Source
    item: str
    file: Obtained

    @property
    def label(self) -> str:
        """Which part of the recipe it is."""
        return f"{self.source.id}:{self.item}" if self.item else self.source.id

    def record(self, component: str) -> dict[str, Any]:
        """It as an input in a manifest. Equal builds have equal records, so the first use is no matter."""
        trust = LOCK if self.file.trust == FIRST_USE else self.file.trust
        return {
            "kind": "recipe source", "name": f"{component}:{self.label}", "url": self.file.url,
            "sha256": self.file.sha256, "signer": None, "trust": trust,
        }  # fmt: skip


def used_sources(request: RecipeBuild) -> list[Source]:
    """The sources that the entries of this build take something from, each once; UsageError where one is undecided."""
    recipe, facts = request.recipe, request.scope.facts
    chosen = Build(request.scope, request.variant).chosen(recipe.installs)
    wanted = {install.source for install in chosen}
    if "build" in wanted and recipe.build is not None:
        wanted |= set(recipe.build.mount)
    found: dict[str, Source] = {}
    for source in recipe.sources:
        if source.id in wanted and source.when.holds(facts):
            if source.id in found:
                raise UsageError(
                    f"{source.where}: for {request.version} there are two sources {source.id!r}.",
                    "Their `when` must exclude each other.",
                )
            found[source.id] = source
    missing = [install for install in chosen if install.source not in {"build", *found}]
    if missing:
        raise UsageError(
            f"{missing[0].where}: for {request.version} there is no source {missing[0].source!r}.",
            "Give the entry the same `when` as its source.",
        )
    return list(found.values())


def obtain(request: RecipeBuild, services: Services) -> tuple[Input, ...]:
    """Download everything, in the order of the recipe. New pins are saved when all of it is there."""
    parts = [(source, item) for source in used_sources(request) for item in (source.foreach or ("",))]
    obtained = download_all(
        [_wanted(request, source, item) for source, item in parts], services, services.pins, services.rewrites
    )
    return tuple(Input(source, item, got) for (source, item), got in zip(parts, obtained, strict=True))


def _wanted(request: RecipeBuild, source: Source, item: str) -> Wanted:
    """What is to be downloaded for a source, with all words replaced."""
    words = {"item": item} if item else {}
    url, *mirrors = (request.scope.expand(text, source.where, **words) for text in (source.url, *source.mirrors))
    checksum = source.checksum
    sums, name = (
        request.scope.expand(text, checksum.where or source.where, **words, url=url)
        for text in (checksum.url, checksum.name)
    )
    pin = checksum.values.get(request.arch, checksum.values.get("", ""))
    if checksum.type == "pin" and not pin:
        raise UsageError(f"{checksum.where}: there is no value for {request.arch}.")
    expanded = replace(checksum, url=sums, name=name, values={"": pin} if pin else {})
    return Wanted(url, expanded, request.recipe.name, tuple(mirrors))
