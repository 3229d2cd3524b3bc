"""The plan of what is baked besides sysexts: every file read, digested and judged before anything is downloaded."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from baker.additions import Additions, FileRequest
from baker.console import Console
from baker.errors import UsageError
from baker.ignition import BASE_PATH, CONFIG_PATH, IgnitionConfig, check_release, collisions, newest_spec, wipes
from baker.ignition_tools import read_config
from baker.model import InstallTarget, Release
from baker.official import OfficialSysext, plan_official
from baker.placing import oem_mount
from baker.sparse import file_sha256
from baker.treelint import has_builtins

if TYPE_CHECKING:
    from baker.origins import PlannedSysext
    from baker.request import InstallTo
    from baker.services import Services


@dataclass(frozen=True)
class PlannedFile:
    """A file that will be put into a partition. `request.mode` is settled."""

    request: FileRequest
    mode: int
    sha256: str
    size: int


@dataclass(frozen=True)
class PlannedAdditions:
    """What is baked besides sysexts. The default is nothing.

    `ignition` is the user's config as it will lie on the OEM partition, `ignition_base` the one merged below it.
    """

    files: tuple[PlannedFile, ...] = ()
    ignition: IgnitionConfig | None = None
    ignition_base: IgnitionConfig | None = None
    disabled_builtins: tuple[str, ...] = ()
    official: tuple[OfficialSysext, ...] = ()
    survive_reset: bool = False

    def facts(self) -> dict[str, str]:
        """What decides the bytes of the result, in words: for the plan's id and bake.lock. Empty for nothing."""
        facts = {f"file {item.request.installed}": f"{item.mode:04o} {item.sha256}" for item in self.files}
        for name, config in (("ignition", self.ignition), ("ignition base", self.ignition_base)):
            facts |= {name: hashlib.sha256(config.data).hexdigest()} if config else {}
        facts |= {f"official sysext {item.name}": item.file for item in self.official}
        facts |= {f"built-in sysext {name}": "off" for name in self.disabled_builtins}
        return facts | ({"survive reset": "yes"} if self.survive_reset else {})

    def as_dict(self) -> dict[str, Any]:
        """For the manifest and the JSON form of the plan; what there is nothing of is left out."""
        configs = ((self.ignition, CONFIG_PATH), (self.ignition_base, BASE_PATH))
        found: dict[str, Any] = {
            "files": [
                {"installed": item.request.installed, "mode": f"{item.mode:04o}", "sha256": item.sha256,
                 "size": item.size}
                for item in self.files
            ],
            "ignition": [
                {"installed": f"OEM:{path}", "spec": config.spec, "sha256": hashlib.sha256(config.data).hexdigest()}
                for config, path in configs if config
            ],
            "official_sysexts": [item.as_dict() for item in self.official],
            "disabled_builtins": list(self.disabled_builtins),
            "survive_reset": self.survive_reset,
        }  # fmt: skip
        return {key: value for key, value in found.items() if value}

    def describe(self) -> Iterator[str]:
        """The plan's lines about this."""
        for item in self.files:
            yield f"  file       {item.request.source} → {item.request.installed} (mode {item.mode:04o})"
        if self.ignition:
            yield f"  ignition   {self.ignition.name} (spec {self.ignition.spec}) → OEM:{CONFIG_PATH}"
            yield "             used on the first boot in place of the platform's user data"
        if self.ignition_base:
            yield f"  ignition   {self.ignition_base.name} (spec {self.ignition_base.spec}) → OEM:{BASE_PATH}"
            yield "             merged below every user's config"
        for official in self.official:
            yield f"  official   {official.file} → ROOT:{official.installed}"
        for name in self.disabled_builtins:
            yield f"  off        {name}-flatcar, which is built into Flatcar"
        if self.survive_reset:
            yield f"  reset      all of it survives flatcar-reset: OEM:{BASE_PATH} makes what ROOT needs"


def plan_additions(
    request: Additions,
    release: Release | None,
    version: str,
    sysexts: Iterable[PlannedSysext],
    install_to: InstallTo,
    services: Services,
) -> PlannedAdditions:
    """Read and judge everything; warns of what will not work as meant.

    `version` is the release inside the image as far as it is known, else "". Raises UsageError, EnvironmentFault for
    a missing program, NetworkError.
    """
    sysexts = tuple(sysexts)
    console = services.console
    planned = PlannedAdditions(
        files=tuple(_file(item) for item in request.files),
        ignition=_config(request.ignition, console),
        ignition_base=_config(request.ignition_base, console),
        disabled_builtins=request.disabled_builtins,
        official=plan_official(request.official, release, {item.name for item in sysexts}, services),
        survive_reset=request.survive_reset,
    )
    check_additions(planned, version)
    if planned.ignition_base is not None and planned.ignition_base.spec.startswith("2"):
        raise UsageError(
            f"{planned.ignition_base.name} is of Ignition's spec {planned.ignition_base.spec}; "
            "a base config must be of spec 3.",
            "Rewrite it, for example for 3.3.0. --ignition takes spec 2.x.",
        )
    mount = oem_mount(version)
    baked = _baked(planned, sysexts, install_to, mount)
    _check_places(planned, baked, mount)
    baked |= {(mount if item.request.partition is InstallTarget.OEM else "") + item.request.path: None
              for item in planned.files}  # fmt: skip
    if planned.survive_reset:
        # What the base config declares, a user's config may declare as well: Ignition merges the two.
        baked = {path: target for path, target in baked.items() if path.startswith(f"{mount}/")}
    _warn(planned, baked, console)
    return planned


def _file(item: FileRequest) -> PlannedFile:
    try:
        if not item.source.is_file():
            what = "is a folder" if item.source.is_dir() else "is not there"
            raise UsageError(f"{item.source}, to be put at {item.installed}, {what}.", "Name a file.")
        with item.source.open("rb") as file:
            stat = os.fstat(file.fileno())
    except OSError as error:
        raise UsageError(f"Cannot read {item.source}: {error.strerror}.") from error
    mode = item.mode if item.mode is not None else 0o755 if stat.st_mode & 0o100 else 0o644
    return PlannedFile(replace(item, mode=mode), mode, file_sha256(item.source), stat.st_size)


def _config(path: Path | None, console: Console) -> IgnitionConfig | None:
    if path is None:
        return None
    return read_config(path, console)


def check_additions(planned: PlannedAdditions, version: str) -> None:
    """Refuse, with UsageError, what a release cannot make use of; nothing for the version ""."""
    for config in (planned.ignition, planned.ignition_base):
        if config is not None:
            check_release(config, version)
    if planned.survive_reset and newest_spec(version).startswith("2"):
        raise UsageError(f"--survive-reset needs Ignition's spec 3, which Flatcar {version} does not read.")
    if planned.disabled_builtins and not has_builtins(version or None):
        raise UsageError(
            f"Flatcar {version} has no built-in sysext {planned.disabled_builtins[0]} that could be turned off.",
            "Docker and containerd are sysexts since release 3794.",
        )


def _check_places(planned: PlannedAdditions, baked: Mapping[str, str | None], mount: str) -> None:
    """Refuse a file at the place of something else that is baked."""
    for item in planned.files:
        path = (mount if item.request.partition is InstallTarget.OEM else "") + item.request.path
        if path in baked:
            raise UsageError(
                f"{item.request.source} is to be put at {item.request.installed}, where the bake puts something else.",
                "Give it another path.",
            )


def _warn(planned: PlannedAdditions, baked: Mapping[str, str | None], console: Console) -> None:
    """Say which paths of the user's configs are baked as well: Ignition fails on a first boot that finds them."""
    for config in filter(None, (planned.ignition, planned.ignition_base)):
        for path in collisions(config, baked):
            console.warn(
                f"{config.name} declares {path}, which is baked already: the first boot would fail. "
                "Drop it from the config, or add overwrite: true."
            )
        for label in wipes(config):
            console.warn(f"{config.name} wipes {label}, and with it what is baked there.")


def _baked(
    planned: PlannedAdditions, sysexts: Iterable[PlannedSysext], install_to: InstallTo, mount: str
) -> dict[str, str | None]:
    """What the bake puts into the image besides the user's files, as the running system sees it before Ignition runs.

    The targets of links by path, None for files.
    """
    found: dict[str, str | None] = {f"/etc/extensions/{name}-flatcar.raw": "/dev/null"
                                    for name in planned.disabled_builtins}  # fmt: skip
    found |= dict.fromkeys(item.installed for item in planned.official)
    for item in sysexts:
        path = item.installed if install_to.target is InstallTarget.ROOT else mount + item.installed
        found |= {path: None, f"/etc/extensions/{item.name}.raw": path}
        if item.config:
            found[f"/etc/sysupdate.{item.name}.d/{Path(item.config).name}"] = None
    return found
