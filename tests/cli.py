"""Running the real command line in a process of its own, as a user would."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path


def release_environment(release: Path) -> dict[str, str]:
    """The FLATCAR_BAKE_… variables of a stand-in release, from its `env` file."""
    lines = (line.partition("=") for line in (release / "env").read_text().splitlines() if "=" in line)
    return {name.removeprefix("export ").strip(): shlex.split(value)[0] for name, _, value in lines}


def flatcar_bake(
    *words: str | os.PathLike[str],
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    prefix: tuple[str, ...] = (),
) -> subprocess.CompletedProcess[str]:
    """Run `flatcar-bake WORDS…` to its end; `prefix` goes before it (setpriv, timeout, …)."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("FLATCAR_BAKE_")}
    return subprocess.run(
        [*prefix, sys.executable, "-m", "baker", *map(os.fspath, words)],
        env=clean | dict(env or {}), cwd=cwd, capture_output=True, text=True, errors="replace",
        stdin=subprocess.DEVNULL,
    )  # fmt: skip
