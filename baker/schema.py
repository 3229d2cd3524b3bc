"""Reading TOML strictly: every key known, every value of its type, and an error that names file and key."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Self, TypeVar

from baker.errors import UsageError

T = TypeVar("T")


def suggest(word: str, known: Iterable[str]) -> str | None:
    """A "did you mean" hint, or None when nothing is close."""
    close = difflib.get_close_matches(word, list(known), n=3, cutoff=0.5)
    return f"Did you mean {' or '.join(close)}?" if close else None


def load_toml(path: Path) -> dict[str, Any]:
    """The top table of a TOML file; UsageError for a missing file or bad syntax."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"Cannot read {path}: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:  # also a number of thousands of digits, or as many brackets
        raise UsageError(f"{path} is not valid TOML: {error}.") from error


class Table:
    """One table of a TOML file. Take every key out of it, then call `done()`, which refuses what is left."""

    def __init__(self, values: Mapping[str, Any], where: str) -> None:
        self._values = dict(values)
        self._where = where
        self._known: list[str] = []

    def at(self, key: str = "") -> str:
        """Where this table, or one of its keys, stands: how messages begin."""
        return self._where

    def take(self, key: str, kind: type[T], default: T | None = None) -> T:
        """The value of `key`, which must be a `kind`; without `default` the key is required."""
        self._known.append(key)
        if key not in self._values:
            if default is None:
                raise UsageError(f"{self.at()} lacks the key {key!r}.")
            return default
        value = self._values.pop(key)
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise UsageError(f"{self.at(key)}: {key} must be a {kind.__name__}, not {value!r}.")
        if kind is str and "\0" in str(value):
            raise UsageError(f"{self.at(key)}: {key} has a NUL character in it.")
        return value

    def strings(self, key: str, default: tuple[str, ...] | None = None) -> tuple[str, ...]:
        """A list of strings."""
        items = self.take(key, list, None if default is None else list(default))
        if not all(isinstance(item, str) and "\0" not in item for item in items):
            raise UsageError(f"{self.at(key)}: {key} must be a list of strings.")
        return tuple(items)

    def table(self, key: str) -> Self | None:
        """A sub-table, or None where it is absent."""
        self._known.append(key)
        if key not in self._values:
            return None
        return self.child(self.take(key, dict), key)

    def tables(self, key: str) -> list[Self]:
        """An array of tables; empty where it is absent."""
        items = self.take(key, list, [])
        if not all(isinstance(item, dict) for item in items):
            raise UsageError(f"{self.at(key)}: {key} must be an array of tables ([[{key}]]).")
        return [self.child(item, key, number) for number, item in enumerate(items, 1)]

    def child(self, values: Mapping[str, Any], key: str, number: int = 0) -> Self:
        """The table under `key`; of an array of tables the one of that number, from 1."""
        return type(self)(values, f"{self._where}, [[{key}]] {number}" if number else f"{self._where}, [{key}]")

    def done(self) -> None:
        """Refuse keys that nobody took."""
        for key in self._values:
            raise UsageError(f"{self.at(key)} has an unknown key {key!r}.", suggest(key, self._known))
