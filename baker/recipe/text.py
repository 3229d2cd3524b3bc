"""Recipes as text: the list of all, everything about one, and the same for programs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from baker.recipe.model import Checksum, Recipe

_TRUST = {
    "sha256sum-file": "checksum file", "bare-file": "checksum file", "bsd-file": "checksum file",
    "github-digest": "GitHub's digest", "pin": "pinned in the recipe",
}  # fmt: skip


def recipe_row(recipe: Recipe) -> dict[str, Any]:
    """One recipe for `--json`."""
    version, source = recipe.version, recipe.version.source
    return {
        "name": recipe.name, "title": recipe.title, "aliases": list(recipe.aliases), "homepage": recipe.homepage,
        "license": recipe.license, "arches": list(recipe.arches), "example": version.example, "form": version.form,
        "versions_from": source.type if source else "", "reload": recipe.reload, "requires": list(recipe.requires),
        "host_needs": list(recipe.host_needs), "starts": [uphold.unit for uphold in recipe.upholds],
        "parameters": {
            parameter.name: {"default": parameter.default, "required": parameter.required,
                             "description": parameter.description} for parameter in recipe.parameters
        },
        "variants": {variant.name: variant.description for variant in recipe.variants},
        "sources": [{"id": each.id, "url": each.url, "trust": trust(each.checksum)} for each in recipe.sources],
        "streams": [stream.name for stream in recipe.streams], "folder": str(recipe.folder),
        "replaces": list(recipe.replaces),
        "examples": {example.name: example.description for example in recipe.examples},
    }  # fmt: skip


def trust(checksum: Checksum) -> str:
    """What vouches for a download, in a few words."""
    words = [_TRUST.get(checksum.type, "")]
    words += ["recipes.lock"] if checksum.missing else []
    words += [f"nothing: {checksum.unverified}"] if checksum.unverified else []
    return ", else ".join(filter(None, words))


def recipe_table(recipes: Iterable[Recipe]) -> str:
    """A table of recipes."""
    rows = [("NAME", "TITLE", "EXAMPLE", "STARTS", "VARIANTS AND PARAMETERS")]
    for recipe in recipes:
        choices = [variant.name for variant in recipe.variants]
        choices += [f"{parameter.name}=" for parameter in recipe.parameters]
        starts = " ".join(uphold.unit for uphold in recipe.upholds)
        rows.append((recipe.name, recipe.title, recipe.version.example, starts or "-", " ".join(choices) or "-"))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def recipe_details(recipe: Recipe) -> str:
    """Everything about one recipe."""
    return "\n".join([f"{recipe.name}: {recipe.title}", *(f"  {name:<12}{text}" for name, text in _details(recipe))])


def _details(recipe: Recipe) -> Iterator[tuple[str, str]]:
    source = recipe.version.source
    if recipe.homepage:
        yield "homepage", recipe.homepage
    if recipe.license:
        yield "license", recipe.license
    if recipe.aliases:
        yield "aliases", ", ".join(recipe.aliases)
    yield "for", ", ".join(recipe.arches)
    yield "versions", f"such as {recipe.version.example}" if recipe.version.example else recipe.version.match
    if source:
        yield "", f"listed by {source.type} {source.repo or source.url or source.product or source.recipe}"
    for each in recipe.sources:
        yield "downloads", f"{each.url}"
        yield "", f"vouched for by: {trust(each.checksum)}"
    if recipe.build:
        yield "built in", f"a container of {', '.join(recipe.build.images.values())}"
    if recipe.rootfs:
        yield "taken from", f"{recipe.rootfs.image}, by {recipe.rootfs.tool}"
    for variant in recipe.variants:
        yield "variant", f"{variant.name}  {variant.description}".rstrip()
    for parameter in recipe.parameters:
        default = (
            "required" if parameter.required else f"default {parameter.default}" if parameter.default else "unset"
        )
        yield "parameter", f"{parameter.name} ({default})  {parameter.description}".rstrip()
    for uphold in recipe.upholds:
        yield "starts", f"{uphold.unit}, kept running by {uphold.target}"
    if recipe.requires:
        yield "requires", f"the sysexts {', '.join(recipe.requires)}"
    if recipe.host_needs:
        yield "needs", f"{', '.join(recipe.host_needs)} on the machine"
    if recipe.replaces:
        yield "replaces", f"Flatcar's own {', '.join(recipe.replaces)}"
    for example in recipe.examples:
        yield "example", f"flatcar-bake butane {recipe.name}@… --example {example.name}: {example.description}"
    if recipe.streams:
        yield "updates by", ", ".join(f"{stream.name}.conf" for stream in recipe.streams)
    yield "recipe", str(recipe.path)
