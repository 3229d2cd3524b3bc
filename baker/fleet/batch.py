"""A run of a fleet from the client: inputs up, tasks out, answers in, and the manifest last.

Everything of a run is in a folder of its own in the storage. Results are there under their digests, wherever and how
often a task was done; they are published by the manifest, which is written when all that it names is there. A run
that ends in any way leaves nothing else.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from baker.console import Console
from baker.errors import BakeError, EnvironmentFault, UsageError
from baker.fleet.answers import MANIFEST, Answer, Failure, manifest_text, read_answer
from baker.fleet.engine import connect, scheduler_address
from baker.fleet.storage import Storage
from baker.fleet.tasks import Task
from baker.stopping import cleaning


@dataclass(frozen=True)
class Batch:
    """What became of all tasks, in their order. `storage` is the folder of the run."""

    storage: Storage
    answers: tuple[Answer, ...]
    failures: tuple[Failure, ...]

    def as_dict(self) -> dict[str, Any]:
        """The JSON form, which is the manifest's."""
        return manifest_text(self.storage.url, self.answers, self.failures)


class AllFailed(BakeError):
    """Every task failed. It ends the program as the first failure would."""

    def __init__(self, failures: tuple[Failure, ...]) -> None:
        first = failures[0].error
        super().__init__(first.message, first.hint)
        self.exit_code, self.kind = first.exit_code, first.kind
        self.failures = failures


def run_tasks(
    tasks: Sequence[Task], executor: str, storage: str, console: Console,
    take: Callable[[Answer, Storage], None] | None = None,
) -> Batch:  # fmt: skip
    """Carry out tasks on a cluster (`dask://HOST:PORT`), with files in `storage`; the failure of some is no failure.

    `take` is called with each task that is done, and the folder of its results, while others are still at work.
    Raises UsageError for what cannot be, EnvironmentFault without the extra `fleet`, NetworkError when cluster or
    storage do not answer, AllFailed when all tasks failed.
    """
    if len({task.label for task in tasks}) < len(tasks):
        raise UsageError("Two tasks of a fleet have the same name.")
    scheduler_address(executor)
    run = time.strftime("%Y%m%dT%H%M%SZ-", time.gmtime()) + secrets.token_hex(4)
    folder = Storage(storage).folder(f"runs/{run}")
    for task in tasks:
        _check_addresses(task, folder)
    with connect(executor, f"flatcar-bake-{run}", console) as engine:
        try:
            _upload(tasks, folder, console)
            found: dict[str, Answer | Failure] = {}
            kinds = {task.label: task.kind for task in tasks}
            documents = {task.label: task.text(folder.url) for task in tasks}
            # Closing the generator is what cancels tasks.
            outcomes = engine.run(documents)
            try:
                for label, outcome in outcomes:
                    found[label] = _settle(label, kinds[label], outcome, folder)
                    _tell(found[label], len(found), len(tasks), console)
                    if take is not None and isinstance(answer := found[label], Answer):
                        take(answer, folder)
            finally:
                with cleaning():
                    outcomes.close()
            answers, failures = _sorted(tasks, found)
            if not answers:
                raise AllFailed(failures)
            batch = Batch(folder, answers, failures)
            _remove_rest(folder, {item.name for answer in answers for item in answer.outputs}, console)
            folder.put_text(json.dumps(batch.as_dict(), indent=2) + "\n", MANIFEST)
            return batch
        except BaseException:
            with cleaning():
                _remove_rest(folder, set(), console)
            raise


def _check_addresses(task: Task, folder: Storage) -> None:
    """A mirror that is a folder of the client's machine is of use to workers only where file systems are shared."""
    settings = task.settings
    rules = [rule.partition("=")[2] for rule in settings["mirror_urls"]]
    for address in (settings["mirror"], settings["bakery"], *rules):
        if address and not address.startswith(("http://", "https://")) and not folder.is_folder:
            raise UsageError(
                f"Workers cannot see the folder {address} of this machine.",
                "Serve it by HTTP, or put it and --storage on a file system that all machines mount in one place.",
            )


def _upload(tasks: Sequence[Task], folder: Storage, console: Console) -> None:
    files = {digest: path for task in tasks for digest, path in task.files.items()}
    if not files:
        return
    with console.step(f"Store {len(files)} files for the workers"):
        for digest, path in files.items():
            folder.put_input(path, digest)


def _settle(label: str, kind: str, outcome: str | BakeError, folder: Storage) -> Answer | Failure:
    """What a task came to; its files must be in the storage, whole."""
    if isinstance(outcome, BakeError):
        return Failure(label, outcome)
    try:
        answer = read_answer(label, kind, outcome)
    except BakeError as error:
        return Failure(label, error)
    for item in answer.outputs:
        if folder.size(item.name) != item.size:
            return Failure(label, EnvironmentFault(f"{folder.address(item.name)} is not there, or not whole."))
    return answer


def _tell(result: Answer | Failure, done: int, count: int, console: Console) -> None:
    if isinstance(result, Failure):
        console.warn(f"{result.label} failed ({done} of {count}): {result.error.message}")
    else:
        console.note(f"{result.label} is done ({done} of {count}), {result.seconds:.1f} s on {result.worker}")


def _sorted(
    tasks: Sequence[Task], found: dict[str, Answer | Failure]
) -> tuple[tuple[Answer, ...], tuple[Failure, ...]]:
    results = [found[task.label] for task in tasks]
    return (
        tuple(item for item in results if isinstance(item, Answer)),
        tuple(item for item in results if isinstance(item, Failure)),
    )


def _remove_rest(folder: Storage, kept: set[str], console: Console) -> None:
    """Remove all but `kept`. A storage that does not let us must neither undo what is done nor hide what failed."""
    try:
        folder.remove_except(kept)
    except BakeError as error:
        console.warn(f"{folder.url} may hold leftovers: {error.message}")
