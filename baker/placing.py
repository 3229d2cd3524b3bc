"""Where the parts of a sysext go in an image: the file, the link that activates it, and what keeps it up to date."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from baker.model import Injection, InstallTarget, Sysext
from baker.request import InstallTo
from baker.sysupdate import update_injections


@dataclass(frozen=True)
class ReadySysext:
    """A sysext that was fetched and admitted, with its sysupdate config if it has one.

    `builtins` names Flatcar's own sysexts that it takes the place of; `findings` are codes of the lint.
    """

    sysext: Sysext
    origin: str
    file_name: str
    config: Path | None = None
    config_name: str = ""
    builtins: tuple[str, ...] = ()
    findings: tuple[str, ...] = ()
    built: Mapping[str, Any] = field(default_factory=dict)
    """What a recipe built it with; empty for others."""


def place(
    ready: Iterable[ReadySysext], install_to: InstallTo, version: str, updates: bool, replace: bool
) -> dict[str, list[Injection]]:
    """What to put where, by partition label, sorted by path.

    `version` is the release ("" where unknown), `updates` enables systemd-sysupdate's timer for the sysexts that have
    a config, `replace` lets existing entries of the image be replaced.
    """
    files = install_to.target.label
    placed: dict[str, list[Injection]] = {"ROOT": [], "OEM": []}
    configured = []
    for item in ready:
        path = install_to.path(item.sysext.name, item.file_name)
        placed[files].append(Injection(path, source=item.sysext.path, replace=replace))
        visible = path if install_to.target is InstallTarget.ROOT else oem_mount(version) + path
        placed["ROOT"].append(_link(f"/etc/extensions/{item.sysext.name}.raw", visible, replace))
        if item.config:
            configured.append(item.sysext.name)
            config = f"/etc/sysupdate.{item.sysext.name}.d/{item.config_name}"
            placed["ROOT"].append(Injection(config, source=item.config, replace=replace))
        # A link to /dev/null in ROOT's /etc hides the link of the same name that the /usr image brings.
        placed["ROOT"] += [_link(f"/etc/extensions/{name}.raw", "/dev/null", True) for name in item.builtins]
    if updates and configured:
        placed["ROOT"] += update_injections(configured)
    return {label: sorted(_unique(items), key=lambda item: item.path) for label, items in placed.items() if items}


def oem_mount(version: str) -> str:
    """Where the OEM partition is mounted: /oem since alpha 3619 to 3637 (May 2023), /usr/share/oem before."""
    major = version.split(".")[0]
    return "/usr/share/oem" if major.isdecimal() and int(major) < 3619 else "/oem"


def _link(path: str, target: str, replace: bool) -> Injection:
    return Injection(path, mode=0o777, symlink=target, replace=replace)


def _unique(items: Iterable[Injection]) -> list[Injection]:
    """Two sysexts may turn off the same built-in one; equal entries count once."""
    return list({item.path: item for item in items}.values())
