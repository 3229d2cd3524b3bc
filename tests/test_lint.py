"""Format, lint, types and shell syntax are part of what has to hold."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("baker", "tests", "scripts", "recipes", ".ci")


def shell_scripts() -> list[Path]:
    """Every file whose first line names a shell, and the parts they source."""
    found = []
    for path in sorted(file for folder in FOLDERS for file in (ROOT / folder).rglob("*") if file.is_file()):
        with path.open("rb") as file:
            first = file.readline(100)
        if path.suffix == ".sh" or (first.startswith(b"#!") and first.rstrip().endswith(b"sh")):
            found.append(path)
    return found


def check(*argv: str | Path) -> None:
    """Run a checker; what it complains of is the message of the failure."""
    done = subprocess.run(argv, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr


def test_ruff_finds_nothing() -> None:
    check(sys.executable, "-m", "ruff", "check", ".")


def test_all_is_formatted() -> None:
    check(sys.executable, "-m", "ruff", "format", "--check", ".")


def test_types_hold(tmp_path: Path) -> None:
    # A cache of its own: mypy remembers that a module was missing when it no longer is.
    check(sys.executable, "-m", "mypy", f"--cache-dir={tmp_path}")


def test_shell_scripts_are_found() -> None:
    assert {"demo", "test", "setup.sh"} <= {path.name for path in shell_scripts()}


@pytest.mark.parametrize("script", shell_scripts(), ids=lambda path: str(path.relative_to(ROOT)))
def test_shell_scripts_parse(script: Path) -> None:
    with script.open("rb") as file:
        shell = "sh" if file.readline().rstrip().endswith(b"/sh") else "bash"
    check(shell, "-n", script)
