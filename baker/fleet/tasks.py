"""What a fleet does: bakes (conversions are bakes of an image) and recipe builds, as data for any machine.

Files of the client's machine that a request names become inputs, known by their digest: a task says what they are,
and the storage brings their bytes.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from baker import __version__
from baker.errors import EnvironmentFault, UsageError
from baker.fleet.codec import decode, encode
from baker.fleet.inputs import Input, Luggage
from baker.recipe.asked import RecipeWords
from baker.request import BakeRequest
from baker.services import Services, Settings

BAKE, RECIPE = "bake", "recipe"
_LABEL = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+@~-]*")


@dataclass(frozen=True)
class Task:
    """One piece of work. `label` names it to people and names the folder of its results.

    `files` says where on this machine the inputs are, by digest; it stays here.
    """

    label: str
    kind: str
    request: Mapping[str, Any]
    settings: Mapping[str, Any]
    inputs: tuple[Input, ...] = ()
    files: Mapping[str, Path] = field(default_factory=dict)

    def text(self, storage: str) -> str:
        """The document that a worker gets; `storage` is the address of the run's folder."""
        values = {name: getattr(self, name) for name in ("label", "kind", "request", "settings")}
        inputs = [dataclasses.asdict(item) for item in self.inputs]
        return json.dumps({"flatcar_bake": __version__, "storage": storage, **values, "inputs": inputs})


def settings_of(services: Services) -> Settings:
    """The settings that tasks get: those of this machine, with the recipes.lock that counts here."""
    return dataclasses.replace(services.settings, recipes_lock=services.pins.path)


def bake_task(label: str, request: BakeRequest, settings: Settings) -> Task:
    """A bake or a conversion. Its output folder, and whether to overwrite there, are the worker's own affair.

    Raises UsageError for files that are not there.
    """
    luggage = Luggage()
    # A config beside a local sysext belongs to it.
    for item in request.sysexts:
        if item.path is not None:
            luggage.add(item.path, item.path.parent / f"{item.name}.conf")
    return _task(label, BAKE, request, settings, luggage, ("output_dir", "keep_work", "force"))


def recipe_task(label: str, words: RecipeWords, settings: Settings) -> Task:
    """A recipe build."""
    return _task(label, RECIPE, words, settings, Luggage(), ())


def _task(
    label: str,
    kind: str,
    request: BakeRequest | RecipeWords,
    settings: Settings,
    luggage: Luggage,
    own: tuple[str, ...],
) -> Task:
    if not _LABEL.fullmatch(label):
        raise UsageError(f"{label!r} cannot be the name of a task.", "Letters, digits and . _ + @ ~ - are fine.")
    settings = dataclasses.replace(
        settings, mirror=settings.mirror and _absolute(settings.mirror), bakery=_absolute(settings.bakery)
    )
    encoded, values = _fields(request, own, luggage), _fields(settings, ("cache_dir", "cache_limit"), luggage)
    return Task(label, kind, encoded, values, luggage.inputs, luggage.files)


def _absolute(address: str) -> str:
    """A URL as it is, a folder by its whole path: workers are elsewhere."""
    return address if "://" in address else os.path.abspath(address)


def _fields(record: Any, own: tuple[str, ...], luggage: Luggage) -> dict[str, Any]:
    """A record in terms of JSON, without the fields that are each machine's `own`."""
    names = [item.name for item in dataclasses.fields(record) if item.name not in own]
    return {name: encode(getattr(record, name), luggage.word_for) for name in names}


@dataclass(frozen=True)
class Order:
    """A task as its worker sees it, with paths into the worker's folder."""

    label: str
    storage: str
    request: BakeRequest | RecipeWords
    settings: Settings
    inputs: tuple[Input, ...]


def read_order(text: str, folder: Path) -> Order:
    """Understand a document; inputs will be in `folder`. UsageError, or EnvironmentFault for another flatcar-bake."""
    values = json.loads(text)
    if values["flatcar_bake"] != __version__:
        raise EnvironmentFault(
            f"A worker has flatcar-bake {__version__}, but the task comes from {values['flatcar_bake']}.",
            "Install the same version on all machines of the fleet.",
        )

    def path(word: Any) -> Path:
        return folder / str(int(word["place"])) / Path(word["main"]).name

    kind = {BAKE: BakeRequest, RECIPE: RecipeWords}[values["kind"]]
    return Order(
        values["label"], values["storage"], decode(kind, values["request"], path),
        decode(Settings, values["settings"], path), tuple(Input(**item) for item in values["inputs"]),
    )  # fmt: skip
