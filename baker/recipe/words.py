"""Words in braces: `{v}` and the like, in the URLs, paths and texts of recipes.

`{word}` is a word when it looks like one: letters, digits, `_`, `-` and dots. `${word}` (of a shell) and braces around
anything else stay as they are; `{{word}}` is a literal `{word}`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from baker.errors import UsageError
from baker.model import Arch
from baker.recipe.conditions import Facts
from baker.recipe.model import Recipe
from baker.recipe.order import minor_of
from baker.schema import suggest

_WORD = re.compile(r"\{\{([A-Za-z_][\w.-]*)\}\}|(?<!\$)\{([A-Za-z_][\w.-]*)\}")

ALWAYS_KNOWN = ("v", "bare", "tag", "major", "minor", "arch", "name")
"""Words of every template. Beside them there are the words of [arch] and `p.NAME` of each parameter."""


class UnknownWord(UsageError):
    """A template asks for a word that means nothing there."""


def expand(text: str, words: Mapping[str, str], where: str) -> str:
    """`text` with its words replaced; UnknownWord says where the text stands."""

    def replace(found: re.Match[str]) -> str:
        literal, word = found.groups()
        if literal:
            return f"{{{literal}}}"
        if word not in words:
            raise UnknownWord(f"{where}: {{{word}}} is not known here.", suggest(word, words))
        return words[word]

    return _WORD.sub(replace, text)


def check_words(text: str, known: Iterable[str], where: str) -> None:
    """Raise UnknownWord for a word that is not known."""
    expand(text, dict.fromkeys(known, ""), where)


@dataclass(frozen=True)
class Scope:
    """What templates and conditions of a recipe mean for one version, architecture and set of parameters."""

    recipe: Recipe
    version: str
    arch: Arch
    parameters: Mapping[str, str] = field(default_factory=dict)
    name: str = ""
    """The extension's name; "" for the recipe's."""

    @property
    def words(self) -> dict[str, str]:
        """All words but those that only one place knows ({item}, {url}, {epoch}, {jobs})."""
        bare = self.version.removeprefix("v")
        source = self.recipe.version.source
        return {
            **dict(self.recipe.words.get(self.arch, {})),
            **{f"p.{parameter.name}": self.parameters.get(parameter.name, "") for parameter in self.recipe.parameters},
            "v": self.version, "bare": bare, "tag": (source.strip_prefix if source else "") + self.version,
            "major": re.split(r"\D", bare, maxsplit=1)[0], "minor": minor_of(bare),
            "arch": self.arch.value, "name": self.name or self.recipe.name,
        }  # fmt: skip

    @property
    def facts(self) -> Facts:
        """What conditions look at."""
        return Facts(self.version, self.arch.value, self.parameters)

    def expand(self, text: str, where: str, **more: str) -> str:
        """A template's text; `more` are further words."""
        return expand(text, self.words | more, where)
