"""The versions file: which extensions a release holds, one a line.

wasmtime v24.0.0        # NAME VERSION, and behind it parameters of the recipe as NAME=VALUE
kubernetes latest       # the newest version, for some the newest of each minor version that upstream supports
docker_compose-2.24.5   # NAME-VERSION, as older files have it
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from baker.errors import UsageError
from baker.schema import suggest

LATEST = "latest"
DEFAULT_FILE = "release_build_versions.txt"


@dataclass(frozen=True)
class Wanted:
    """One line. `name` is as it was written, a recipe's name or alias; `where` tells the line in messages."""

    name: str
    version: str
    parameters: tuple[tuple[str, str], ...] = ()
    where: str = ""


def read_versions(path: Path, names: Iterable[str]) -> list[Wanted]:
    """The lines of a versions file; `names` are all recipes and aliases. UsageError with the line for a bad one."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(
            f"Cannot read the versions file {path}: {error.strerror}.", "Name one, or say what to build with --add."
        ) from error
    except UnicodeDecodeError:
        raise UsageError(f"The versions file {path} is not UTF-8 text.") from None
    return parse_versions(text, str(path), names)


def parse_versions(text: str, source: str, names: Iterable[str]) -> list[Wanted]:
    """As `read_versions`, for a text; `source` names it in messages."""
    known = sorted(names, key=len, reverse=True)  # the longest first: docker-buildx before docker
    found = []
    for number, line in enumerate(text.splitlines(), 1):
        words = line.split("#", 1)[0].split()
        if words:
            found.append(_line(words, f"{source}, line {number}", known))
    return found


def parse_added(word: str, names: Iterable[str]) -> Wanted:
    """What `--add` takes: NAME@VERSION, and behind it parameters as NAME=VALUE."""
    first, *rest = word.split() or [""]
    name, at, version = first.partition("@")
    if not at or not name or not version:
        raise UsageError(f"--add wants NAME@VERSION, not {word!r}.", "For example wasmtime@latest.")
    return _line([name, version, *rest], f"--add {first}", sorted(names))


def _line(words: list[str], where: str, known: list[str]) -> Wanted:
    name, version, parameters = words[0], "", words[2:]
    if len(words) > 1:
        version = words[1]
    else:
        name = next((each for each in known if words[0].startswith(f"{each}-")), words[0])
        version = words[0].removeprefix(name).removeprefix("-")
    if name not in known:
        raise UsageError(f"{where}: there is no recipe {name!r}.", suggest(name.split("-")[0], known) or _FORM)
    if not version:
        raise UsageError(f"{where}: {name} has no version.", _FORM)
    return Wanted(name, version, tuple(_parameter(word, where) for word in parameters), where)


_FORM = "A line is NAME VERSION, NAME latest, or NAME-VERSION."


def _parameter(word: str, where: str) -> tuple[str, str]:
    key, sign, value = word.partition("=")
    if not sign or not key or not value:
        raise UsageError(f"{where}: {word!r} is no parameter.", "Behind the version there may be NAME=VALUE.")
    return key, value
