"""Where in a TOML file a key stands. tomllib does not say, so the text is scanned once more, for headers and keys."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Self

from baker.errors import UsageError
from baker.schema import Table

_TOKEN = re.compile(
    r"""\"{3}(?:\\.|[^\\])*?\"{3,5} | '{3}.*?'{3,5} | "(?:\\.|[^"\\\n])*" | '[^'\n]*' | \#[^\n]* | [\[\]{}=\n]""",
    re.VERBOSE | re.DOTALL,
)
_HEADER = re.compile(r"^[ \t]*(\[{1,2})([^\[\]\n]+)\]{1,2}[ \t]*(?:\#[^\n]*)?$", re.MULTILINE)
_KEY_PART = re.compile(r"""\s*(?:"((?:\\.|[^"\\])*)"|'([^']*)'|([A-Za-z0-9_-]+))\s*(?:\.|$)""")

KeyPath = tuple[str | int, ...]
"""Names of keys, and numbers (from 1) of elements in arrays of tables."""


class LineIndex:
    """The line of every key and table header of a TOML text that tomllib has accepted."""

    def __init__(self, text: str) -> None:
        self._lines: dict[KeyPath, int] = {}
        self._counts: dict[tuple[str, ...], int] = {}
        table: KeyPath = ()
        for number, statement in _statements(text):
            header = _HEADER.match(statement)
            if header:
                table = self._enter(_parts(header[2]), header[1] == "[[")
                self._lines.setdefault(table, number)
            else:
                path = table
                for part in _parts(statement.partition("=")[0] if statement[0] not in "\"'" else _quoted(statement)):
                    path = (*path, part)
                    self._lines.setdefault(path, number)

    def find(self, path: KeyPath) -> int:
        """The line of a key, or of the nearest thing around it; 1 where nothing is known."""
        while path and path not in self._lines:
            path = path[:-1]
        return self._lines.get(path, 1)

    def _enter(self, names: list[str], array: bool) -> KeyPath:
        """The path of a table, with the numbers of the arrays it is in."""
        path: KeyPath = ()
        for depth in range(1, len(names) + 1):
            prefix = tuple(names[:depth])
            if depth == len(names) and array:
                self._counts[prefix] = self._counts.get(prefix, 0) + 1
            path = (*path, names[depth - 1])
            if prefix in self._counts:
                path = (*path, self._counts[prefix])
        return path


def _statements(text: str) -> Iterator[tuple[int, str]]:
    """Line number and text of every statement that begins a line: what is inside strings and brackets does not."""
    depth, begin, assigned = 0, 0, False
    for token in _TOKEN.finditer(text + "\n"):
        word = token[0]
        if word == "=":
            assigned = True
        elif word in "[{" and assigned:
            depth += 1
        elif word in "]}" and assigned:
            depth -= 1
        elif word == "\n" and depth == 0:
            statement = text[begin : token.start()].strip()
            if statement and not statement.startswith("#"):
                skipped = len(text[begin:]) - len(text[begin:].lstrip())
                yield text.count("\n", 0, begin + skipped) + 1, statement
            begin, assigned = token.end(), False


def _quoted(statement: str) -> str:
    """The key of a statement that begins with a quoted one."""
    closing = statement.index(statement[0], 1)
    return statement[: closing + 1] + statement[closing + 1 :].partition("=")[0]


def _parts(key: str) -> list[str]:
    return [next(part for part in found.groups() if part is not None) for found in _KEY_PART.finditer(key)]


class LineTable(Table):
    """A table whose messages begin with `FILE:LINE`."""

    def __init__(self, values: Mapping[str, Any], path: Path, index: LineIndex, keys: KeyPath = ()) -> None:
        label = next((key for key in reversed(keys) if isinstance(key, str)), "")
        super().__init__(values, f"[[{label}]]" if keys and isinstance(keys[-1], int) else f"[{label}]")
        self._path, self._index, self._keys = path, index, keys

    def place(self, key: str = "") -> str:
        """`FILE:LINE` of this table or of one of its keys."""
        return f"{self._path}:{self._index.find((*self._keys, key) if key else self._keys)}"

    def at(self, key: str = "") -> str:
        return f"{self.place(key)}: {self._where}" if self._keys else self.place(key)

    def child(self, values: Mapping[str, Any], key: str, number: int = 0) -> Self:
        keys = (*self._keys, key, number) if number else (*self._keys, key)
        return type(self)(values, self._path, self._index, keys)

    def named(self, key: str) -> dict[str, Self]:
        """The tables in the table `key` by their names; empty where it is absent."""
        group = self.table(key)
        return {} if group is None else {name: group.sub(name) for name in group.left()}

    def left(self) -> list[str]:
        """The keys that nobody has taken yet."""
        return list(self._values)

    def take_any(self, key: str, default: Any = None) -> Any:
        """A value whose type the caller checks; `default` where it is absent."""
        self._known.append(key)
        return self._values.pop(key, default)

    def sub(self, key: str) -> Self:
        """The table under a key that must be there."""
        return self.child(self.take(key, dict), key)


def load_lines(path: Path) -> LineTable:
    """The top table of a TOML file. UsageError names file and line of bad syntax."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(f"Cannot read {path}: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not UTF-8 text.") from error
    try:
        values = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        found = re.fullmatch(r"(.*) \(at (?:line (\d+), column \d+|end of document)\)", str(error))
        line = (found[2] or str(text.count("\n") + 1)) if found else "1"
        raise UsageError(f"{path}:{line}: {found[1] if found else error}.") from error
    return LineTable(values, path, LineIndex(text.replace("\r\n", "\n")))
