"""Building the images of a release side by side; one that fails does not take the others with it.

An image gets its name when it is complete, and one that has its name is never built again: so a release that was
interrupted goes on where it was.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from baker.errors import BakeError, EnvironmentFault
from baker.publish import give_name, tidy
from baker.recipe.build import build
from baker.recipe.load import find_recipe
from baker.recipe.request import RecipeBuild, settle
from baker.recipe.versions import Catalogue
from baker.releasing.items import Failure, Item
from baker.releasing.layout import Layout, record_name, write_file
from baker.run import CommandKilled
from baker.services import Services
from baker.sparse import clone
from baker.work import WorkFolder


@dataclass(frozen=True)
class PackedAs:
    """How images are packed; what `PackOptions` says of the same names."""

    format: str = "squashfs"
    compression: str = ""
    epoch: int = 0


@dataclass
class Outcome:
    """What became of the items: records of what was built by file name, in the order of the items."""

    built: dict[str, dict[str, Any]] = field(default_factory=dict)
    skipped: list[str] = field(default_factory=list)
    failed: list[Failure] = field(default_factory=list)


def plan_builds(items: Sequence[Item], layout: Layout, previous: dict[str, str]) -> tuple[list[Item], list[str]]:
    """The items that must be built, and the file names of those that are there or in a previous release."""
    there = {path.name for path in layout.images()} | set(previous)
    return [item for item in items if item.file_name not in there], [
        item.file_name for item in items if item.file_name in there
    ]


def build_all(items: Sequence[Item], layout: Layout, packed: PackedAs, services: Services, jobs: int) -> Outcome:
    """Build all items into the layout, `jobs` at once. Failures are part of the outcome.

    Raises CommandKilled, when somebody ends our programs, and EnvironmentFault where the folder cannot be written.
    """
    outcome = Outcome()
    open_release(layout, services)
    with ThreadPoolExecutor(max(1, min(jobs, len(items)))) as pool:
        at_work: dict[Future[tuple[Path, dict[str, Any]]], Item] = {}
        try:
            for item in items:
                at_work[pool.submit(_guarded(build_one), item, layout, packed, services)] = item
            for future in as_completed(at_work):
                _note(at_work[future], future, outcome, services, len(items))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)  # the end of the block waits for those that have begun
            raise
    order = {item.file_name: number for number, item in enumerate(items)}
    outcome.built = dict(sorted(outcome.built.items(), key=lambda entry: order.get(entry[0], 0)))
    outcome.failed.sort(key=lambda failure: order.get(failure.what, 0))
    return outcome


def _note(
    item: Item, future: Future[tuple[Path, dict[str, Any]]], outcome: Outcome, services: Services, count: int
) -> None:
    try:
        path, record = future.result()
    except CommandKilled:
        raise
    except BakeError as error:
        services.console.warn(f"{item.file_name} failed: {error.message}")
        outcome.failed.append(Failure(item.file_name, error))
        return
    outcome.built[path.name] = record
    services.console.note(f"{path.name} is done, {len(outcome.built)} of {count}")


def build_one(item: Item, layout: Layout, packed: PackedAs, services: Services) -> tuple[Path, dict[str, Any]]:
    """Build one image and the record of what it is made of. Raises what `settle` and `build` raise."""
    recipe = find_recipe(item.name, services.recipes)
    catalogue = Catalogue(services, services.rewrites, services.recipes)
    request: RecipeBuild = dataclasses.replace(
        settle(recipe, item.version, item.arch, catalogue, parameters=dict(item.parameters), name=item.name),
        format=packed.format, compression=packed.compression, epoch=packed.epoch,
    )  # fmt: skip
    with WorkFolder(layout.root) as work:
        kitchen = work / "build"
        kitchen.mkdir()
        built = build(request, services, kitchen)
        for finding in built.findings:
            if finding.fatal:
                services.console.warn(f"{request.file_name}: {finding.message}")
        image = work / request.file_name
        clone(built.path, image)
        return place(image, request.component, built.record, layout), built.record


def place(image: Path, component: str, record: Mapping[str, Any], layout: Layout) -> Path:
    """Give a finished image in a work folder of the release its name there, the record of what it is made of first:
    an image that has its name is complete. Returns where it is."""
    folder = layout.folder(component)
    image.chmod(0o644)
    folder.mkdir(exist_ok=True)
    write_file(folder / record_name(image.name), json.dumps(record, indent=2).encode() + b"\n")
    give_name(image, folder / image.name, True)
    return folder / image.name


def open_release(layout: Layout, services: Services) -> None:
    """Make the folder of a release, and tidy up what killed runs left in it."""
    layout.root.mkdir(parents=True, exist_ok=True)
    for left in tidy(layout.root)[0]:
        services.console.note(f"removed {left}, left by a run that was killed")


def _guarded(action: Callable[..., tuple[Path, dict[str, Any]]]) -> Callable[..., tuple[Path, dict[str, Any]]]:
    """`action`, with the system's errors turned into ours."""

    def guarded(*arguments: Any) -> tuple[Path, dict[str, Any]]:
        try:
            return action(*arguments)
        except OSError as error:
            where = f"{error.filename}: " if error.filename else ""
            raise EnvironmentFault(f"{where}{error.strerror or error}.") from error

    return guarded
