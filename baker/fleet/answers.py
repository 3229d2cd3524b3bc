"""What comes back from a task: its files and its record, or its failure; and the manifest of a whole run."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from baker import __version__
from baker.errors import (
    BakeError,
    BootError,
    EnvironmentFault,
    ImageError,
    NetworkError,
    UsageError,
    VerificationError,
)

MANIFEST = "fleet-manifest.json"
_KINDS = {
    kind.kind: kind
    for kind in (BakeError, UsageError, VerificationError, EnvironmentFault, NetworkError, ImageError, BootError)
}
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+@~=-]*")
_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Output:
    """A finished file in the storage."""

    file: str
    size: int
    sha256: str

    @property
    def name(self) -> str:
        """Where it is in the folder of its run."""
        return f"outputs/{self.sha256}/{self.file}"


@dataclass(frozen=True)
class Answer:
    """A task that is done. `record` is what the bake or the build says of itself."""

    label: str
    kind: str
    outputs: tuple[Output, ...]
    record: Mapping[str, Any]
    pins: Mapping[str, str] = field(default_factory=dict)
    """What a recipe's downloads turned out to be that nothing had pinned: address → sha256."""
    seconds: float = 0
    worker: str = ""

    def as_dict(self, address: str) -> dict[str, Any]:
        """The JSON form; `address` is the URL of the run's folder."""
        return {
            "task": self.label, "kind": self.kind, "worker": self.worker, "seconds": self.seconds,
            "outputs": [
                {"file": item.file, "size": item.size, "sha256": item.sha256, "url": f"{address}/{item.name}"}
                for item in self.outputs
            ],
            "record": self.record,
        }  # fmt: skip


def error_words(error: BakeError) -> dict[str, Any]:
    """A failure for the way back."""
    return {"error": {"kind": error.kind, "message": error.message, "hint": error.hint}}


def read_answer(label: str, kind: str, text: str) -> Answer:
    """Understand what a worker sent. Raises the BakeError that it tells of, or EnvironmentFault for nonsense."""
    try:
        values = json.loads(text)
        if "error" in values:
            error = values["error"]
            failure = _KINDS.get(error["kind"], BakeError)(str(error["message"]), error["hint"] and str(error["hint"]))
        else:
            outputs = tuple(
                Output(str(item["file"]), int(item["size"]), str(item["sha256"])) for item in values["outputs"]
            )
            if not all(_NAME.fullmatch(item.file) and _DIGEST.fullmatch(item.sha256) for item in outputs):
                raise ValueError("a name or digest that is none")
            return Answer(
                label, kind, outputs, dict(values["record"]), dict(values["pins"]), float(values["seconds"]),
                str(values["worker"]),
            )  # fmt: skip
    except (ValueError, KeyError, TypeError) as nonsense:
        raise EnvironmentFault(
            f"The worker of {label} answered what no worker of this flatcar-bake would: {nonsense}.",
            "Install the same version on all machines of the fleet.",
        ) from nonsense
    raise failure


@dataclass(frozen=True)
class Failure:
    """A task that has no result, and why."""

    label: str
    error: BakeError


def manifest_text(address: str, answers: tuple[Answer, ...], failures: tuple[Failure, ...]) -> dict[str, Any]:
    """The manifest of a run: what is there, where, and what is missing."""
    return {
        "schema": 1,
        "flatcar_bake": __version__,
        "run": address,
        "tasks": [item.as_dict(address) for item in answers],
        "failed": [
            {"task": item.label, "kind": item.error.kind, "message": item.error.message} for item in failures
        ],
    }  # fmt: skip
