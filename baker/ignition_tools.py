"""Ignition configs from files, with the help of other programs where they are installed: butane, ignition-validate."""

from __future__ import annotations

import os
from pathlib import Path

from baker.console import Console
from baker.errors import EnvironmentFault, UsageError
from baker.ignition import MAX_SIZE, IgnitionConfig, canonical, parse_config
from baker.run import CommandFailed, find, run

_YAML = (".bu", ".yaml", ".yml", ".butane")
_UNKNOWN_SPEC = "unsupported config version"


def read_config(path: Path, console: Console) -> IgnitionConfig:
    """The Ignition config in a file: JSON, or by the name's suffix Butane YAML, which is translated.

    Its problems are told in the words of ignition-validate where that is installed and knows the config's spec.
    Raises UsageError for a file that is none or holds no valid config, EnvironmentFault where the program butane is
    needed and missing.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_SIZE + 1)
    except OSError as error:
        raise UsageError(f"Cannot read the Ignition config {path}: {error.strerror}.") from error
    if path.suffix.lower() in _YAML:
        data = _translated(path, data)
    config = parse_config(data, os.fspath(path))
    _validate(config, console)
    return config


def _translated(path: Path, data: bytes) -> bytes:
    """By butane where it is installed; else by our own reader, which knows all but a little of Flatcar's variant."""
    if find("butane") is None:
        from baker.butane_reader import NotRead, from_butane  # with a reader of YAML, which few bakes need

        try:
            return canonical(from_butane(data.decode("utf-8"), os.fspath(path), path.absolute().parent))
        except UnicodeDecodeError as error:
            raise UsageError(f"{path} is not UTF-8 text.") from error
        except NotRead as error:
            raise EnvironmentFault(
                f"{error.message.rstrip('.')}, and the program butane, which reads that, is not installed.",
                "Get it from https://github.com/coreos/butane/releases, or translate the file elsewhere.",
            ) from error
    try:
        # Files that the YAML names under `local` are looked for beside it, as with butane's own command line.
        return run(["butane", "--strict", "--files-dir", path.absolute().parent], input=data).stdout
    except CommandFailed as error:
        raise UsageError(f"{path} is no valid Butane config: {_one_line(error.stderr)}.") from error


def _validate(config: IgnitionConfig, console: Console) -> None:
    if find("ignition-validate") is None:
        console.note(f"{config.name} was checked in outline only: ignition-validate is not installed")
        return
    result = run(["ignition-validate", "-"], input=config.data, ok=range(256))
    said = _one_line(result.stderr + result.text)
    if _UNKNOWN_SPEC in said:
        console.note(f"{config.name} was checked in outline only: ignition-validate does not know spec {config.spec}")
    elif result.status != 0:
        raise UsageError(f"{config.name} is no valid Ignition config: {said}.", "ignition-validate tells the place.")
    elif said:
        console.warn(f"{config.name}: {said}")


def _one_line(said: str) -> str:
    return "; ".join(line.strip() for line in said.strip().splitlines() if line.strip()).rstrip(".")
