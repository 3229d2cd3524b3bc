"""From words to a build: version, variant and parameters of a recipe, settled before anything is downloaded."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from baker.errors import UsageError
from baker.extension_release import validate_name
from baker.model import Arch
from baker.recipe.model import Parameter, Recipe, Variant
from baker.recipe.order import version_key
from baker.recipe.versions import Catalogue
from baker.recipe.words import Scope
from baker.schema import suggest

LATEST = "latest"


@dataclass(frozen=True)
class RecipeBuild:
    """All that decides what is built, but for the bytes of the downloads."""

    recipe: Recipe
    version: str
    arch: Arch
    variant: Variant | None = None
    parameters: Mapping[str, str] = field(default_factory=dict)
    name: str = ""
    """The extension's name; "" for the recipe's."""
    format: str = "squashfs"
    compression: str = ""
    epoch: int = 0

    @property
    def scope(self) -> Scope:
        """What the recipe's templates and conditions mean."""
        return Scope(self.recipe, self.version, self.arch, self.parameters, self.component)

    @property
    def component(self) -> str:
        """The name by which the extension is linked and updated."""
        return self.name or self.recipe.name

    @property
    def file_name(self) -> str:
        """NAME-VERSION-ARCH.raw."""
        return f"{self.component}-{self.version}-{self.arch}.raw"

    @property
    def choices(self) -> dict[str, str]:
        """Variant and parameters in a form for records, without those that are not set."""
        chosen = {"variant": self.variant.name} if self.variant else {}
        return chosen | {f"p.{name}": value for name, value in sorted(self.parameters.items()) if value}

    def as_dict(self) -> dict[str, Any]:
        """What decides the bytes, for keys and plan ids."""
        return {
            "recipe": self.recipe.name, "digest": self.recipe.digest, "version": self.version,
            "arch": self.arch.value, "choices": self.choices, "name": self.component, "format": self.format,
            "compression": self.compression, "epoch": self.epoch,
        }  # fmt: skip


def settle(
    recipe: Recipe,
    version: str,
    arch: Arch,
    catalogue: Catalogue,
    *,
    variant: str = "",
    parameters: Mapping[str, str] | None = None,
    environment: Mapping[str, str] | None = None,
    name: str = "",
) -> RecipeBuild:
    """Decide a build. `version` may be `latest`; `environment` holds what old scripts took from variables.

    Raises UsageError for what does not exist or does not go together, and what `catalogue` raises.
    """
    if arch not in recipe.arches:
        raise UsageError(f"{recipe.name} does not exist for {arch}.", f"It exists for: {', '.join(recipe.arches)}.")
    version = catalogue.latest(recipe)[0] if version == LATEST else recipe.canonical(version)
    if recipe.version.min and version_key(version) < version_key(recipe.version.min):
        raise UsageError(f"The recipe {recipe.name} begins with {recipe.version.min}, and {version} is older.")
    build = RecipeBuild(
        recipe, version, arch, _variant(recipe, variant, environment or {}), name=validate_name(name) if name else ""
    )
    chosen = _given(recipe, parameters or {}, environment or {})
    # One after the other: a parameter's default may look at those before it.
    for parameter in recipe.parameters:
        build = dataclasses.replace(
            build, parameters={**build.parameters, parameter.name: _value(parameter, chosen, build.scope, catalogue)}
        )
    return build


def _variant(recipe: Recipe, wanted: str, environment: Mapping[str, str]) -> Variant | None:
    """The variant asked for by name, else by environment variables."""
    variants = {variant.name: variant for variant in recipe.variants}
    if wanted:
        if wanted not in variants:
            hint = suggest(wanted, variants) or (f"It has: {', '.join(variants)}." if variants else "It has none.")
            raise UsageError(f"{recipe.name} has no variant {wanted!r}.", hint)
        return variants[wanted]
    found = [
        variant for variant in recipe.variants
        if variant.env and all(environment.get(key) == value for key, value in variant.env.items())
    ]  # fmt: skip
    if len(found) > 1:
        words = " and ".join(f"{key}={value}" for variant in found for key, value in variant.env.items())
        raise UsageError(f"{words} exclude each other.", "Set one of them, or none for the whole extension.")
    return found[0] if found else None


def _given(recipe: Recipe, parameters: Mapping[str, str], environment: Mapping[str, str]) -> dict[str, str]:
    """The values of parameters that the user gave, by their true names."""
    names = {alias: parameter.name for parameter in recipe.parameters for alias in parameter.aliases}
    names |= {parameter.name: parameter.name for parameter in recipe.parameters}
    chosen = {
        parameter.name: environment[parameter.env] for parameter in recipe.parameters
        if parameter.env and environment.get(parameter.env)
    }  # fmt: skip
    for word, value in parameters.items():
        if word not in names:
            known = ", ".join(sorted(parameter.name for parameter in recipe.parameters))
            hint = suggest(word, names) or (f"It has: {known}." if known else "It has none.")
            raise UsageError(f"{recipe.name} has no parameter {word!r}.", hint)
        chosen[names[word]] = value
    return chosen


def _value(parameter: Parameter, chosen: Mapping[str, str], scope: Scope, catalogue: Catalogue) -> str:
    """What a parameter is set to; "" where it is not."""
    counts = parameter.when.holds(scope.facts)
    if parameter.name in chosen and not counts:
        raise UsageError(
            f"The parameter {parameter.name} means nothing for {scope.recipe.name} {scope.version}.",
            f"It counts when {parameter.when.text}.",
        )
    value = chosen.get(parameter.name, parameter.default) if counts else ""
    if value == LATEST and parameter.source is not None:
        value = catalogue.newest(parameter.source, scope)
    if not value and parameter.required and counts:
        raise UsageError(
            f"{scope.recipe.name} needs the parameter {parameter.name}: {parameter.description or 'see its recipe'}.",
            f"Add --param {parameter.name}=VALUE.",
        )
    if value and parameter.choices and value not in parameter.choices:
        raise UsageError(
            f"The parameter {parameter.name} of {scope.recipe.name} cannot be {value!r}.",
            suggest(value, parameter.choices) or f"It can be {', '.join(parameter.choices)}.",
        )
    if parameter.normalise == "v" and value[:1].isdigit():
        return f"v{value}"
    return value[1:] if parameter.normalise == "bare" and value[:1] == "v" and value[1:2].isdigit() else value
