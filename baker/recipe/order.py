"""The order of upstream versions: numerically, pre-releases before their release."""

from __future__ import annotations

import re

_NUMBERS = re.compile(r"v?(\d+(?:\.\d+)*)")
_PARTS = re.compile(r"\d+|[A-Za-z]+")

VersionKey = tuple[tuple[int, ...], int, tuple[tuple[int, int, str], ...]]


def version_key(version: str) -> VersionKey:
    """A key to sort versions by: `v1.31.0-rc.1` < `v1.31.0` < `v1.31.0+k3s1` < `v1.31.0+k3s2` < `v1.31.1`.

    A leading `v` does not count, nor do trailing zeros (`1.2` = `1.2.0`). Behind the numbers, what a plus begins is
    later than nothing, and anything else earlier. What does not begin with a number sorts before all that do.
    """
    found = _NUMBERS.match(version)
    if not found:
        return ((), 0, _rest(version))
    numbers = [int(part) for part in found[1].split(".")]
    while numbers and numbers[-1] == 0:
        numbers.pop()
    rest = version[found.end() :]
    stage = 0 if not rest else 1 if rest.startswith("+") else -1
    return ((0, *numbers), stage, _rest(rest))


def _rest(text: str) -> tuple[tuple[int, int, str], ...]:
    parts = _PARTS.findall(text)
    return tuple((1, int(part), "") if part.isdigit() else (0, 0, part) for part in parts)


def minor_of(version: str) -> str:
    """`1.29` of `v1.29.3+k3s1`; the version without its `v` where it has no second number."""
    bare = version.removeprefix("v")
    found = re.match(r"\d+\.\d+", bare)
    return found[0] if found else bare
