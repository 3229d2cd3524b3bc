"""A running bake: what its steps share."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from baker.console import Console
from baker.inject import Editor
from baker.plan import BakePlan
from baker.publish import FINISHED
from baker.services import Services

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

    @property
    def console(self) -> Console:
        return self.services.console

    @property
    def out(self) -> Path:
        """Where finished files wait to be published."""
        return self.work / FINISHED
