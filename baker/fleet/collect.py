"""Results of a run, from the storage to this machine: a folder for each task, there whole or not at all; and pins."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from baker.console import Console
from baker.errors import UsageError
from baker.fleet.batch import Batch
from baker.publish import tidy
from baker.recipe.pins import PinFile
from baker.stopping import unbroken
from baker.work import WorkFolder


def keep_pins(batch: Batch, pins: PinFile) -> None:
    """Pin here what builds elsewhere used for the first time; VerificationError where that contradicts a pin."""
    for answer in batch.answers:
        for url, sha256 in answer.pins.items():
            pins.put(url, sha256)
    pins.save()


def check_target(folder: Path, labels: Sequence[str], force: bool) -> None:
    """Before anything is begun: UsageError when a result is there already, unless `force`."""
    for label in labels:
        if (folder / label).exists() and not force:
            raise UsageError(
                f"{folder / label} exists already.", "Name another --output-dir, or overwrite it with --force."
            )


def collect(batch: Batch, folder: Path, force: bool, console: Console) -> list[Path]:
    """Fetch all results into `folder`/TASK/FILE and check them; returns the files.

    Raises VerificationError for a file that is not what its worker stored, UsageError when a name is taken.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tidy(folder)
    files = []
    with WorkFolder(folder) as work, console.step(f"Fetch the results into {folder}"):
        for answer in batch.answers:
            (work / answer.label).mkdir()
            for item in answer.outputs:
                batch.storage.get(item.name, work / answer.label / item.file, item.sha256)
        with unbroken():
            check_target(folder, [answer.label for answer in batch.answers], force)
            for answer in batch.answers:
                target = folder / answer.label
                if target.exists():
                    target.rename(work / f"{answer.label}.old")
                (work / answer.label).rename(target)
                files += [target / item.file for item in answer.outputs]
    return files
