"""A running bake: what its steps share."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from baker.console import Console
from baker.inject import Editor
from baker.manifest import input_record
from baker.plan import BakePlan
from baker.publish import FINISHED
from baker.services import Services
from baker.store import StoredDisk, StoredFile

OpenEditor = Callable[[Path, Path, int], AbstractContextManager[Editor]]
"""Opens a backend on (raw image, work folder, epoch of new files)."""


@dataclass
class Job:
    """A bake's plan, its means, its work folder, and the inputs it has verified so far."""

    plan: BakePlan
    services: Services
    open_editor: OpenEditor
    work: Path
    inputs: list[dict[str, Any]] = field(default_factory=list)

    def use(self, stored: StoredFile | StoredDisk, kind: str) -> None:
        """Record a verified file as an input. Under a lock it must be the very one; VerificationError otherwise."""
        self.record(input_record(stored, kind))

    def record(self, record: dict[str, Any]) -> None:
        """As `use`, for an input that was not downloaded."""
        if self.plan.lock is not None:
            self.plan.lock.check_file(record["kind"], record["name"], record["sha256"])
        self.inputs.append(record)

    @property
    def console(self) -> Console:
        return self.services.console

    @property
    def out(self) -> Path:
        """Where finished files wait to be published."""
        return self.work / FINISHED
