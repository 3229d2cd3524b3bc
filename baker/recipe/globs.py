"""Globs of recipes: `*` and `?` stay within a name, `**` crosses folders, `[ab]` is one of some characters."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cache

_PART = re.compile(r"\*\*/|\*\*|\*|\?|\[!?[^\]/]+\]|[^*?\[]+|\[")


@cache
def _compile(pattern: str) -> re.Pattern[str]:
    """A group `kept` begins at the first `**`, or else at the last name."""
    begin = pattern.find("**")
    begin = pattern.rfind("/") + 1 if begin < 0 else begin
    return re.compile(f"{_translate(pattern[:begin])}(?P<kept>{_translate(pattern[begin:])})", re.DOTALL)


def _translate(pattern: str) -> str:
    def part(word: str) -> str:
        simple = {"**/": "(?:[^/]+/)*", "**": ".*", "*": "[^/]*", "?": "[^/]"}
        if word in simple:
            return simple[word]
        if word.startswith("[") and len(word) > 1:
            inner = word[1:-1].replace("\\", "\\\\")
            return f"[^{inner[1:]}/]" if inner.startswith("!") else f"[{inner}]"
        return re.escape(word)

    return "".join(part(word) for word in _PART.findall(pattern))


def kept(pattern: str, path: str) -> str | None:
    """What of a matching path stays when it is installed; None for one that does not match.

    That is its last name, or with `**` all from there on: `usr/**` keeps `bin/x` of `usr/bin/x`.
    """
    found = _compile(pattern).fullmatch(path)
    return found["kept"] if found else None


def matches(pattern: str, path: str) -> bool:
    """Whether the whole path matches."""
    return _compile(pattern).fullmatch(path) is not None


def covers(patterns: Iterable[str], path: str) -> bool:
    """Whether a path or a folder above it matches one of the patterns. Without a slash, a pattern is about names."""
    names = path.strip("/").split("/")
    lead = "/" if path.startswith("/") else ""
    prefixes = [lead + "/".join(names[:count]) for count in range(1, len(names) + 1)]
    return any(
        matches(pattern, prefix if "/" in pattern else name)
        for pattern in patterns
        for prefix, name in zip(prefixes, names, strict=True)
    )
