"""Other places for the addresses that recipes name: `--mirror-url PREFIX=PREFIX`, for caches and air gaps."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

from baker.errors import UsageError


@dataclass(frozen=True)
class Rewrites:
    """Rules (beginning of an address, what to put in its place). The longest beginning that fits wins."""

    rules: tuple[tuple[str, str], ...] = ()

    @classmethod
    def parse(cls, texts: Iterable[str]) -> Rewrites:
        """Rules as `--mirror-url` takes them, e.g. `https://github.com/=file:///srv/mirror/github.com/`."""
        rules = []
        for text in texts:
            prefix, sign, place = text.partition("=")
            if not sign or "://" not in prefix or not place:
                raise UsageError(
                    f"--mirror-url {text!r} does not say which addresses to find where.",
                    "Write PREFIX=PREFIX, such as https://github.com/=https://mirror.example/github.com/.",
                )
            if "@" in urlsplit(place).netloc:
                raise UsageError(
                    "The address of a mirror holds a user name or password.", "Put them into ~/.netrc instead."
                )
            rules.append((prefix, place))
        return cls(tuple(rules))

    def apply(self, url: str) -> str:
        """Where to look for `url`."""
        fitting = [rule for rule in self.rules if url.startswith(rule[0])]
        if not fitting:
            return url
        prefix, place = max(fitting, key=lambda rule: len(rule[0]))
        rest = url.removeprefix(prefix)
        if "://" in place and not place.startswith("file:"):
            return place + rest
        # A folder has no queries; its names are what the percent signs stand for.
        rest = rest.partition("?")[0]
        return place + (rest if place.startswith("file:") else unquote(rest))
