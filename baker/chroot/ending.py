"""How the tools for root filesystems end: units that are to start, then a sysext image, or the folder for one."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from baker.chroot.tree import Made, make_folder
from baker.errors import UsageError
from baker.extension_release import RELEASE_FOLDER, RELEASE_PREFIX
from baker.pack import pack
from baker.packing.options import PackOptions
from baker.publish import tidy
from baker.schema import suggest
from baker.stopping import unbroken
from baker.survey.units import FOLDERS, SUFFIXES
from baker.work import WorkFolder

_TARGETS = {"socket": "sockets.target", "timer": "timers.target", "path": "paths.target"}


@dataclass(frozen=True)
class Ending:
    """What becomes of a tree. `options.arch` and `options.reload` are settled when it is there."""

    options: PackOptions
    target: Path
    """The image, or the folder where `folder_only`."""
    reload: bool | None = None
    """None: where there are units."""
    enable: Sequence[str] = ()
    """Units that start by themselves."""
    folder_only: bool = False
    force: bool = False


def finish(ending: Ending, make: Callable[[Path], Made]) -> Made:
    """Let `make` fill a new folder, and make a sysext of it. Nothing is at `ending.target` before it is complete.

    Raises what `make` and `pack` raise; UsageError for a unit to enable that is not there.
    """
    target = ending.target
    check_target(ending)
    tidy(target.absolute().parent)
    with WorkFolder(target.absolute().parent) as work:
        made = make(work / "tree")
        for unit in ending.enable:
            _enable(made, unit)
        units = unit_names(made.tree)
        options = replace(
            ending.options, arch=made.arch or ending.options.arch,
            reload=bool(units) if ending.reload is None else ending.reload,
        )  # fmt: skip
        if ending.folder_only:
            _publish_folder(made.tree, target, options, work)
        else:
            pack(made.tree, target, options, own=True, force=ending.force)
    return made


def unit_names(tree: Path) -> list[str]:
    """The units of a tree, sorted."""
    found = [path.name for folder in FOLDERS for path in (tree / folder.lstrip("/")).glob("*.*")]
    return sorted(name for name in found if name.endswith(SUFFIXES))


def check_target(ending: Ending) -> None:
    """UsageError when nothing can be put there: for a start, before any work."""
    target = ending.target
    if not target.absolute().parent.is_dir():
        raise UsageError(
            f"There is no folder {target.parent} for {target.name}.", "Make it, or choose another --output."
        )
    if not os.path.lexists(target):
        return
    if not ending.force:
        raise UsageError(f"{target} exists.", "Choose another --output, or use --force to overwrite it.")
    if target.is_symlink() or target.is_dir() != ending.folder_only:
        kind = "folder" if ending.folder_only else "file"
        raise UsageError(f"{target} is no {kind}, so it is not overwritten by one.", "Choose another --output.")
    if ending.folder_only and any(target.iterdir()) and not (target / RELEASE_FOLDER.lstrip("/")).is_dir():
        raise UsageError(
            f"The folder {target} is not that of a sysext, so it is not replaced.", "Choose another --output."
        )


def _enable(made: Made, unit: str) -> None:
    """Let a target keep a unit running, which is how sysexts start things."""
    names = unit_names(made.tree)
    template = f"{unit.partition('@')[0]}@.{unit.rpartition('.')[2]}" if "@" in unit else unit
    if unit not in names and template not in names:
        raise UsageError(
            f"There is no unit {unit!r} to enable in the sysext.",
            suggest(unit, names) or f"Take it along, too: /usr/lib/systemd/system/{unit}",
        )
    target = _TARGETS.get(unit.rpartition(".")[2], "multi-user.target")
    path = f"{FOLDERS[0]}/{target}.d/10-{unit.replace('.', '-')}.conf"
    file = made.tree / path.lstrip("/")
    make_folder(made.tree, file.parent)
    file.write_text(f"[Unit]\nUpholds={unit}\n")
    file.chmod(0o644)
    made.say(path, "", f"lets {target} start {unit}", True)


def _publish_folder(tree: Path, target: Path, options: PackOptions, work: Path) -> None:
    release = tree / RELEASE_FOLDER.lstrip("/") / f"{RELEASE_PREFIX}{options.name}"
    make_folder(tree, release.parent)
    release.write_text(options.release_text)
    release.chmod(0o644)
    with unbroken():
        if os.path.lexists(target):
            target.rename(work / "replaced")
        tree.rename(target)
