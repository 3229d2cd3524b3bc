"""Real data of Flatcar's that tests read: it lies beside the checkout, for it is not part of the project."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

_FOLDER = Path(__file__).resolve().parents[2] / "shared" / "data"


def flatcar_data(name: str) -> bytes:
    """The content of a file. Where it is missing the test fails in CI, and is skipped elsewhere."""
    path = _FOLDER / name
    if not path.is_file():
        assert not os.environ.get("CI"), f"{path} is missing: this test needs Flatcar's real data"
        pytest.skip(f"Flatcar's {name}, which is not part of the project, is not at {path}")
    return path.read_bytes()
