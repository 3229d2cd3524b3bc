"""The systemd units in a tree: what they run, and what starts them once the sysext is merged.

By the rules of systemd.unit(5): units lie in fixed folders, drop-ins in UNIT.d/*.conf, and links in UNIT.wants/,
UNIT.requires/ and UNIT.upholds/ count like the settings. [Install] does nothing by itself, as nobody runs
`systemctl enable` for a sysext.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from baker.contents import Contents, resolve
from baker.erofs import Unsupported

FOLDERS = ("/usr/lib/systemd/system", "/usr/local/lib/systemd/system")
SUFFIXES = (
    ".service", ".socket", ".device", ".mount", ".automount", ".swap", ".target", ".path", ".timer", ".slice",
    ".scope",
)  # fmt: skip
_RELATIONS = {"Upholds": "upheld by", "Wants": "wanted by", "Requires": "required by", "BindsTo": "required by"}
_LINK_FOLDERS = {".wants": "wanted by", ".requires": "required by", ".upholds": "upheld by"}
_ACTIVATORS = {".socket": "Service", ".timer": "Unit", ".path": "Unit"}
_MAX_SIZE = 64 << 10
_MAX_FILES = 500


@dataclass
class UnitFile:
    """A unit, or a drop-in for one: its settings by section and key, each with all its values in order."""

    path: str
    unit: str
    """The unit's name, also for a drop-in."""
    settings: dict[tuple[str, str], list[str]] = field(default_factory=dict)

    def values(self, section: str, key: str) -> list[str]:
        """The values of a setting that may be repeated; an empty one forgets those before it."""
        kept: list[str] = []
        for value in self.settings.get((section, key), []):
            kept = [*kept, value] if value else []
        return kept


@dataclass(frozen=True)
class Units:
    """All that a tree tells systemd."""

    units: dict[str, UnitFile]
    """Unit files by name; masked ones (links to /dev/null) are left out."""
    drop_ins: list[UnitFile]
    ignored: list[str]
    """Paths in the unit folders that systemd does not look at, for their names."""
    starters: dict[str, list[str]]
    """What starts a unit: its name → "upheld by multi-user.target" and the like."""


def read_units(contents: Contents) -> Units:
    """Find and read the units of a tree. Files that cannot be read count as empty."""
    units: dict[str, UnitFile] = {}
    drop_ins: list[UnitFile] = []
    ignored: list[str] = []
    links: list[tuple[str, str, str]] = []
    for path in list(_candidates(contents))[:_MAX_FILES]:
        folder, _, name = path.rpartition("/")
        parent = folder.rpartition("/")[2]
        linking = next((suffix for suffix in _LINK_FOLDERS if folder not in FOLDERS and parent.endswith(suffix)), "")
        if folder in FOLDERS:
            if not name.endswith(SUFFIXES):
                ignored.append(path)
            elif not _is_masked(contents, path):
                units[name] = _read(contents, path, name)
        elif linking:
            links.append((name, _LINK_FOLDERS[linking], parent.removesuffix(linking)))
        elif parent.endswith(".d"):
            if name.endswith(".conf"):
                drop_ins.append(_read(contents, path, parent.removesuffix(".d")))
            else:
                ignored.append(path)
    return Units(units, drop_ins, ignored, _starters(units, drop_ins, links))


def _candidates(contents: Contents) -> Iterator[str]:
    """The files and links that lie in a unit folder or one folder deeper."""
    for path, node in sorted(contents.nodes.items()):
        for folder in FOLDERS:
            depth = path.count("/") - folder.count("/")
            if path.startswith(f"{folder}/") and depth <= 2 and node.kind != "directory":
                yield path


def _is_masked(contents: Contents, path: str) -> bool:
    return contents.nodes[path].kind == "symlink" and contents.link(path) == "/dev/null"


def _read(contents: Contents, path: str, unit: str) -> UnitFile:
    file = resolve(contents, path)
    if file is None or contents.nodes[file].kind != "file":
        return UnitFile(path, unit)
    try:
        text = contents.read(file, _MAX_SIZE).decode("utf-8", "replace")
    except Unsupported:
        return UnitFile(path, unit)
    return UnitFile(path, unit, parse_unit(text))


def parse_unit(text: str) -> dict[tuple[str, str], list[str]]:
    """The settings of a unit file by (section, key). What breaks the syntax is passed over, as systemd does."""
    settings: dict[tuple[str, str], list[str]] = {}
    section = ""
    # A comment within a continued line does not end it.
    text = re.sub(r"\\\n(?:[ \t]*[#;][^\n]*\n)*", " ", text)
    for line in map(str.strip, text.splitlines()):
        if not line or line[0] in "#;":
            continue
        if heading := re.fullmatch(r"\[(.*)\]", line):
            section = heading[1]
            continue
        key, equals, value = (part.strip() for part in line.partition("="))
        if equals and section:
            settings.setdefault((section, key), []).append(value)
    return settings


def _starters(
    units: dict[str, UnitFile], drop_ins: list[UnitFile], links: list[tuple[str, str, str]]
) -> dict[str, list[str]]:
    starters: dict[str, list[str]] = {}

    def add(unit: str, how: str) -> None:
        found = starters.setdefault(unit, [])
        if how not in found:
            found.append(how)

    for file in [*units.values(), *drop_ins]:
        for key, relation in _RELATIONS.items():
            for value in file.values("Unit", key):
                for unit in value.split():
                    add(unit, f"{relation} {file.unit}")
    for unit, relation, by in links:
        add(unit, f"{relation} {by}")
    for name, file in units.items():
        stem, _, suffix = name.rpartition(".")
        if f".{suffix}" in _ACTIVATORS:
            key = _ACTIVATORS[f".{suffix}"]
            section = suffix.capitalize()
            add((file.values(section, key) or [f"{stem}.service"])[-1], f"activated by {name}")
    return starters
