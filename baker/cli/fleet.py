"""Giving the work of a command to a fleet: what --executor and --storage do."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from baker.fleet import Batch, Task
    from baker.recipe.asked import RecipeWords
    from baker.request import BakeRequest
    from baker.services import Services


def check_options(executor: str | None, storage: str | None, unfit: dict[str, bool]) -> bool:
    """Whether a fleet is wanted. UsageError for half of what it needs, or options that are of no use there."""
    from baker.errors import UsageError

    if not executor and not storage:
        return False
    if not executor or not storage:
        raise UsageError(
            "--executor and --storage go together.",
            "For example: --executor dask://10.0.0.1:8786 --storage s3://images/golden",
        )
    for option, given in unfit.items():
        if given:
            raise UsageError(f"{option} does not go with --executor.", "Leave one of them out.")
    return True


def bake_in_fleet(
    request: BakeRequest, services: Services, executor: str, storage: str, output_dir: Path | None, as_json: bool
) -> None:
    """A bake or a conversion: a task for each vendor. VendorsFailed at the end when some vendors have no image."""
    from baker.errors import VendorsFailed
    from baker.fleet import bake_task, settings_of
    from baker.vendor import find_vendors

    find_vendors(request.vendors, request.arch, services.vendors)  # a slip of the pen is told before anything begins
    settings = settings_of(services)
    tasks = [bake_task(name, _for_one(request, name), settings) for name in request.vendors]
    batch = _run(tasks, services, executor, storage, output_dir, request.force, as_json)
    if batch.failures:
        raise VendorsFailed(
            [(item.label, item.error) for item in batch.failures], [item.label for item in batch.answers]
        )


def build_in_fleet(
    words: RecipeWords, services: Services, executor: str, storage: str, output_dir: Path | None, force: bool,
    as_json: bool,
) -> None:  # fmt: skip
    """A recipe build: one task."""
    from baker.fleet import recipe_task, settings_of

    label = f"{words.component or words.name}-{words.version}-{words.arch}"
    _run([recipe_task(label, words, settings_of(services))], services, executor, storage, output_dir, force, as_json)


def _for_one(request: BakeRequest, vendor: str) -> BakeRequest:
    """The part of a bake that is one vendor's."""
    lock = request.lock
    if lock is not None:
        lock = dataclasses.replace(lock, vendors=tuple(item for item in lock.vendors if item.name == vendor))
    return dataclasses.replace(request, vendors=(vendor,), lock=lock)


def _run(
    tasks: list[Task], services: Services, executor: str, storage: str, output_dir: Path | None, force: bool,
    as_json: bool,
) -> Batch:  # fmt: skip
    """Run tasks, take new pins over, fetch the results if a folder is named for them, and print where they are."""
    from json import dumps

    from baker.fleet import run_tasks
    from baker.fleet.answers import MANIFEST
    from baker.fleet.collect import check_target, collect, keep_pins

    if output_dir is not None:
        check_target(output_dir, [task.label for task in tasks], force)
    batch = run_tasks(tasks, executor, storage, services.console)
    keep_pins(batch, services.pins)
    files = collect(batch, output_dir, force, services.console) if output_dir is not None else []
    services.console.close()
    if as_json:
        typer.echo(dumps(batch.as_dict() | ({"files": [str(path) for path in files]} if files else {}), indent=2))
        return batch
    names = [item.name for answer in batch.answers for item in answer.outputs]
    places = [str(path) for path in files] or [batch.storage.address(name) for name in (*names, MANIFEST)]
    for place in places:
        typer.echo(place)
    return batch
