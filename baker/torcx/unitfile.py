"""Unit files as text that can be changed: what is not touched stays as it is, byte for byte.

Syntax: systemd.syntax(7). A line that ends with a backslash goes on in the next one that is no comment; comments begin
with # or ; at the start of a line, and do not go on.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_WORD = re.compile(r"""(?:"(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*'|\\.|[^\s"'\\])+""")


@dataclass
class Line:
    """One line with those it goes on in, as it stands; of an assignment, what it means."""

    raw: str
    section: str
    key: str = ""
    """"" for what is no assignment."""
    value: str = ""

    @property
    def is_heading(self) -> bool:
        return not self.key and self.raw.strip().startswith("[")

    def set(self, value: str) -> None:
        """Assign something else."""
        if value != self.value:
            self.value = value
            self.raw = f"{self.key}={value}"


class UnitText:
    """A unit file or drop-in, line by line."""

    def __init__(self, text: str) -> None:
        self.lines: list[Line] = []
        self._ends = text.endswith("\n")
        pending = text.removesuffix("\n").split("\n")
        section = ""
        while pending:
            raw = pending.pop(0)
            bare = raw.strip()
            if not bare or bare[0] in "#;":
                self.lines.append(Line(raw, section))
                continue
            meant, pieces = bare, [raw]
            while meant.endswith("\\") and pending:
                following = pending.pop(0)
                pieces.append(following)
                if following.strip()[:1] not in ("#", ";"):
                    meant = f"{meant[:-1]} {following.strip()}"
            if heading := re.fullmatch(r"\[(.*)\]", meant):
                section = heading[1]
                self.lines.append(Line("\n".join(pieces), section))
                continue
            key, equals, value = (part.strip() for part in meant.partition("="))
            self.lines.append(Line("\n".join(pieces), section, key if equals else "", value if equals else ""))

    def __str__(self) -> str:
        return "\n".join(line.raw for line in self.lines) + ("\n" if self._ends else "")

    @property
    def assignments(self) -> list[Line]:
        return [line for line in self.lines if line.key and line.section]

    def remove(self, line: Line) -> None:
        """Take out one line."""
        self.lines = [each for each in self.lines if each is not line]

    def insert(self, place: Line, key: str, value: str) -> None:
        """Put an assignment in front of a line, in its section."""
        index = next(number for number, line in enumerate(self.lines) if line is place)
        self.lines.insert(index, Line(f"{key}={value}", place.section, key, value))


def words_of(value: str) -> list[str]:
    """The words of a value as they stand, with their quotes and escapes."""
    return _WORD.findall(value)


def unquoted(word: str) -> str:
    """A word without quotes and escapes."""
    return re.sub(r"""\\(.)|["']""", lambda match: match[1] or "", word)
