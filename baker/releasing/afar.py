"""Building the images of a release by a fleet: a task for each image, which comes into the release when it is done."""

from __future__ import annotations

from collections.abc import Sequence

from baker.errors import EnvironmentFault
from baker.fleet import RecipeWords, Task, keep_pins, recipe_task, run_tasks, settings_of
from baker.fleet.answers import Answer
from baker.fleet.batch import AllFailed
from baker.fleet.storage import Storage
from baker.releasing.items import Failure, Item
from baker.releasing.layout import Layout
from baker.releasing.produce import Outcome, PackedAs, open_release, place
from baker.services import Services
from baker.work import WorkFolder


def build_in_fleet(
    items: Sequence[Item], layout: Layout, packed: PackedAs, services: Services, executor: str, storage: str
) -> Outcome:
    """Build all items on the machines of a cluster. What was done before the run ended in whatever way is kept.

    Failures are part of the outcome. Raises what `run_tasks` raises where the cluster or its storage fail.
    """
    outcome = Outcome()
    if not items:
        return outcome
    open_release(layout, services)
    by_name = {item.file_name: item for item in items}

    def take(answer: Answer, folder: Storage) -> None:
        _take(answer, by_name[answer.label], folder, layout)

    settings = settings_of(services)
    tasks: list[Task] = [recipe_task(name, _words(item, packed), settings) for name, item in by_name.items()]
    try:
        batch = run_tasks(tasks, executor, storage, services.console, take)
    except AllFailed as error:
        failures = error.failures
    else:
        keep_pins(batch, services.pins)
        outcome.built = {answer.label: dict(answer.record) for answer in batch.answers}
        failures = batch.failures
    outcome.failed = [Failure(item.label, item.error) for item in failures]
    return outcome


def _words(item: Item, packed: PackedAs) -> RecipeWords:
    return RecipeWords(
        item.name, item.version, item.arch, parameters=dict(item.parameters), component=item.name,
        format=packed.format, compression=packed.compression, epoch=packed.epoch,
    )  # fmt: skip


def _take(answer: Answer, item: Item, storage: Storage, layout: Layout) -> None:
    """Fetch an image into the release."""
    output = next((output for output in answer.outputs if output.file == item.file_name), None)
    if output is None:
        raise EnvironmentFault(
            f"{answer.worker} built something else than {item.file_name}.",
            "Install the same version on all machines of the fleet.",
        )
    with WorkFolder(layout.root) as work:
        image = work / item.file_name
        storage.get(output.name, image, output.sha256)
        place(image, item.name, answer.record, layout)
