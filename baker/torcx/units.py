"""Units of a torcx archive without torcx: what it set up at boot is where a sysext has it.

From torcx' documentation (paths.md, images.md): /run/metadata/torcx assigns TORCX_BINDIR, where all programs are
linked, and TORCX_UNPACKDIR, below which each archive is unpacked by its name. Units read that file, wait for
torcx.target, and by custom say the archive's folder as TORCX_IMAGEDIR.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

from baker.torcx.unitfile import Line, UnitText, unquoted, words_of

BIN = "/usr/bin"
_VARIABLES = ("TORCX_BINDIR", "TORCX_UNPACKDIR", "TORCX_IMAGEDIR")
_OF_TORCX = re.compile(r"torcx[^/\s]*")
_METADATA = re.compile(r"(?:/var)?/run/metadata/torcx")
_RUNTIME = re.compile(r"(?:/var)?/run/(?:metadata/)?torcx(?=/|$)")
_LISTS = (
    "After", "Before", "Requires", "Requisite", "Wants", "BindsTo", "PartOf", "Upholds", "Conflicts", "WantedBy",
    "RequiredBy", "UpheldBy",
)  # fmt: skip
_END = r"""(?=[\s"':;,)]|$)"""
_TAIL = r"""(/[^\s"':;,$)]*)?"""


@dataclass(frozen=True)
class Places:
    """Where things of the archive are in the sysext."""

    where: Callable[[str], str]
    """The new path of a path in the archive."""
    names: Collection[str]
    """What the archive may be called below TORCX_UNPACKDIR."""
    unpack_dir: str
    """What TORCX_UNPACKDIR is to be, for programs that read it."""


@dataclass
class Rewritten:
    """A unit's new text, and what of torcx is still in it."""

    text: str
    left: list[str] = field(default_factory=list)


def image_names(text: str) -> list[str]:
    """The names that a unit says its archive has, by TORCX_IMAGEDIR."""
    found = []
    for line in UnitText(text).assignments:
        if line.key == "Environment":
            for word in map(unquoted, words_of(line.value)):
                name, _, value = word.partition("=")
                if name == "TORCX_IMAGEDIR" and value.strip("/"):
                    found.append(value.strip("/"))
    return found


def without_torcx(text: str, places: Places) -> Rewritten:
    """A unit or drop-in as it is to be in a sysext. What is not about torcx stays as it is."""
    unit = UnitText(text)
    first: dict[str, Line] = {}
    for line in unit.assignments:
        if line.key in _LISTS:
            _keep(unit, line, [word for word in line.value.split() if not _OF_TORCX.fullmatch(unquoted(word))])
        elif line.key == "EnvironmentFile" and _METADATA.fullmatch(unquoted(line.value.lstrip("-"))):
            if first.setdefault(line.section, line) is not line:
                unit.remove(line)
        elif line.key == "Environment":
            words = words_of(line.value)
            kept = [word for word in words if unquoted(word).partition("=")[0] not in _VARIABLES]
            if len(kept) < len(words):
                first.setdefault(line.section, line)
                if kept:
                    unit.insert(line, "Environment", _substitute(" ".join(kept), places))
                if first[line.section] is not line:
                    unit.remove(line)
        elif line.key.startswith(("Condition", "Assert", "RequiresMountsFor")) and _RUNTIME.match(
            line.value.lstrip("|!")
        ):
            unit.remove(line)
        else:
            line.set(_substitute(line.value, places))
    for line in first.values():
        # Programs that read the variables themselves find them still, where torcx' own would have been read.
        unit.insert(line, "Environment", f"TORCX_BINDIR={BIN} TORCX_UNPACKDIR={places.unpack_dir} TORCX_IMAGEDIR=")
        unit.remove(line)
    left = [f"{line.key}={line.value}" for line in unit.assignments if _relies(line, line.section in first)]
    return Rewritten(str(unit), left)


def _relies(line: Line, has_variables: bool) -> bool:
    """Whether a setting is still about torcx; the variables may be there."""
    text = re.sub("|".join(_VARIABLES), "", line.value) if has_variables else line.value
    return "torcx" in text.lower() and line.key not in ("Description", "Documentation")


def _keep(unit: UnitText, line: Line, words: list[str]) -> None:
    """Leave these words of a list; without any, the line would mean to forget what came before it."""
    if len(words) == len(line.value.split()):
        return
    if words:
        line.set(" ".join(words))
    else:
        unit.remove(line)


def _variable(name: str) -> str:
    """A variable as units write it; `$$` is for a shell, which gets it from the environment."""
    return rf"(?<!\$)\$(?:\{{{name}\}}|{name}(?![A-Za-z0-9_]))"


def _substitute(value: str, places: Places) -> str:
    """Name the places in a sysext instead of torcx' own."""
    names = "|".join(map(re.escape, sorted(places.names, key=len, reverse=True)))
    unpacked = rf"(?:{_variable('TORCX_UNPACKDIR')}|(?:/var)?/run/torcx/unpack)/*"
    image = rf"(?:{_variable('TORCX_IMAGEDIR')}|(?:{names})(?=/|{_END}))" if names else _variable("TORCX_IMAGEDIR")
    value = re.sub(rf"{unpacked}{image}{_TAIL}", lambda match: places.where(match[1] or "/"), value)
    return re.sub(rf"{_variable('TORCX_BINDIR')}|(?:/var)?/run/torcx/bin(?=/|{_END})", BIN, value)
