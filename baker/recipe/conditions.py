"""The `when` of a recipe's entries: small conditions on the version, the architecture and parameters.

condition = term { "and" term }
term      = [ "not" ] "p." NAME                          the parameter is set
          | ( "version" | "p." NAME ) OPERATOR VERSION   compared as versions
          | ( "arch" | "p." NAME ) ( "==" | "!=" ) TEXT  compared as texts, in single or double quotes
OPERATOR  = "<" | "<=" | ">" | ">=" | "==" | "!="
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from baker.recipe.order import version_key

_TOKEN = re.compile(r"""\s*(?:(?P<operator>[<>]=?|[=!]=)|(?P<text>'[^']*'|"[^"]*")|(?P<word>[^\s<>=!'"]+))""")
_COMPARE: Mapping[str, Callable[[Any, Any], bool]] = {
    "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge, "==": operator.eq, "!=": operator.ne,
}  # fmt: skip


class ConditionError(ValueError):
    """A condition that cannot be read; its text is a fragment to put behind the condition."""


@dataclass(frozen=True)
class Facts:
    """What conditions are about."""

    version: str
    arch: str
    parameters: Mapping[str, str]


@dataclass(frozen=True)
class Term:
    """`subject` is `version`, `arch` or `p.NAME`; without an operator it asks whether it is set."""

    subject: str
    operator: str = ""
    value: str = ""
    as_version: bool = False
    negated: bool = False

    def holds(self, facts: Facts) -> bool:
        """Whether it is true."""
        found = {"version": facts.version, "arch": facts.arch}.get(self.subject)
        if found is None:
            found = facts.parameters.get(self.subject.removeprefix("p."), "")
        if not self.operator:
            return bool(found) != self.negated
        if self.as_version:
            return _COMPARE[self.operator](version_key(found), version_key(self.value))
        return _COMPARE[self.operator](found, self.value)


@dataclass(frozen=True)
class Condition:
    """True when all terms are; without terms, always."""

    terms: tuple[Term, ...] = ()
    text: str = ""

    def holds(self, facts: Facts) -> bool:
        """Whether it is true."""
        return all(term.holds(facts) for term in self.terms)


ALWAYS = Condition()


def parse_condition(text: str, parameters: Iterable[str]) -> Condition:
    """Read a condition; ConditionError says what is wrong with it."""
    tokens = _tokens(text)
    known = {"version", "arch", *(f"p.{name}" for name in parameters)}
    terms = []
    while True:
        terms.append(_term(tokens, known))
        if not tokens:
            return Condition(tuple(terms), text)
        kind, word = tokens.pop(0)
        if (kind, word) != ("word", "and"):
            raise ConditionError(f"has {word!r} where `and` or the end is expected")


def _tokens(text: str) -> list[tuple[str, str]]:
    tokens, at = [], 0
    while text[at:].strip():
        found = _TOKEN.match(text, at)
        if not found:
            raise ConditionError(f"cannot be read at {text[at:].strip()!r}")
        assert found.lastgroup
        tokens.append((found.lastgroup, found[found.lastgroup]))
        at = found.end()
    return tokens


def _term(tokens: list[tuple[str, str]], known: set[str]) -> Term:
    negated = tokens[:1] == [("word", "not")]
    if negated:
        tokens.pop(0)
    if not tokens:
        raise ConditionError("ends where something is missing")
    subject = tokens.pop(0)[1]
    if subject not in known:
        raise ConditionError(f"asks for {subject!r}, which is not one of {', '.join(sorted(known))}")
    if not tokens or tokens[0][0] != "operator":
        if not subject.startswith("p."):
            raise ConditionError(f"does not say what {subject} is compared with")
        return Term(subject, negated=negated)
    if negated:
        raise ConditionError("has `not` before a comparison; turn the operator round instead")
    sign = tokens.pop(0)[1]
    if not tokens:
        raise ConditionError(f"ends after {sign}")
    kind, value = tokens.pop(0)
    if kind == "text":
        if subject == "version" or sign not in ("==", "!="):
            raise ConditionError(f"compares {subject} {sign} with a text in quotes; versions have none")
        return Term(subject, sign, value[1:-1])
    if kind != "word" or subject == "arch" or not re.match(r"v?\d", value):
        raise ConditionError(f"compares {subject} with {value!r}; texts need quotes, versions begin with a digit")
    return Term(subject, sign, value, as_version=True)
