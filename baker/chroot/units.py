"""Units of another distribution: what they run may have another place in the sysext."""

from __future__ import annotations

import re
from collections.abc import Mapping

from baker.survey.units import FOLDERS, SUFFIXES


def is_unit(path: str) -> bool:
    """Whether systemd takes a path of a sysext for a unit or a drop-in."""
    folder, _, name = path.rpartition("/")
    if folder.endswith(".d") and name.endswith(".conf"):
        folder = folder.rpartition("/")[0]
        return folder in FOLDERS
    return folder in FOLDERS and name.endswith(SUFFIXES)


def with_new_places(text: str, places: Mapping[str, str]) -> str:
    """A unit's text with paths of programs replaced: those of the root filesystem by those in the sysext."""
    changed = {old: new for old, new in places.items() if old != new}
    if not changed:
        return text
    # As whole words only: /usr/sbin/x must not be found in /usr/sbin/x-y or /opt/usr/sbin/x.
    found = re.compile(r"(?<![\w/.+-])(" + "|".join(map(re.escape, sorted(changed, reverse=True))) + r")(?![\w/.+-])")
    return found.sub(lambda match: changed[match[1]], text)


def places_of(source: str, dst: str) -> dict[str, str]:
    """The ways in which units may name a program: with and without /usr, which is the same in most systems."""
    if source.startswith(("/usr/bin/", "/usr/sbin/")):
        return {source: dst, source.removeprefix("/usr"): dst}
    return {source: dst}
