"""What is baked besides sysexts, as asked for: files, Ignition configs, official sysexts, built-in ones turned off."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Self

from baker.errors import UsageError
from baker.model import InstallTarget
from baker.schema import suggest

BUILTINS = ("docker", "containerd")
"""The sysexts inside Flatcar's /usr, without the suffix `-flatcar` of their names."""

_FILE = re.compile(r"(?P<source>.+?):(?P<partition>[A-Za-z0-9-]+):(?P<path>/[^:]*)(?::(?P<mode>[0-7]{3,4}))?")
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]*")
_HIDDEN = ("usr", "oem", "proc", "sys", "dev", "run", "tmp", "boot")
"""Folders of ROOT over which the running system has something else."""
_OWN = {
    "/grub.cfg": "Add kernel arguments with --kernel-arg.", "/oem-release": "It is the vendor's.",
    "/config.ign": "Use --ignition, which checks the config.",
    "/base/base.ign": "Use --ignition-base, which checks the config and merges it.",
}  # fmt: skip


@dataclass(frozen=True)
class FileRequest:
    """A file of this machine to put into a partition. `mode` None: 0755 for a program, 0644 for anything else."""

    source: Path
    partition: InstallTarget
    path: str
    mode: int | None = None

    @property
    def installed(self) -> str:
        """Partition and path, as messages and records name it."""
        return f"{self.partition.label}:{self.path}"


@dataclass(frozen=True)
class Additions:
    """What a bake adds to an image besides sysexts. The default adds nothing."""

    files: tuple[FileRequest, ...] = ()
    ignition: Path | None = None
    """The user's config, for OEM:/config.ign."""
    ignition_base: Path | None = None
    """A config that is merged below whatever config the user gives, for OEM:/base/base.ign."""
    disabled_builtins: tuple[str, ...] = ()
    official: tuple[str, ...] = ()
    """Names of Flatcar's own extra sysexts, without the prefix `flatcar-`."""
    survive_reset: bool = False
    """Keep everything on the OEM partition, and let a base Ignition config make what ROOT needs."""

    @classmethod
    def parse(
        cls,
        *,
        files: Iterable[str] = (),
        ignition: Path | None = None,
        ignition_base: Path | None = None,
        disable_builtins: Iterable[str] = (),
        official: Iterable[str] = (),
        survive_reset: bool = False,
    ) -> Self:
        """From words as on the command line; UsageError for those that make no sense, alone or together."""
        names = parse_official(official)
        if survive_reset and names:
            raise UsageError(
                "--survive-reset does not go with --official-sysext: Flatcar looks for its own on ROOT only.",
                "Without --survive-reset, keep them in a reset: flatcar-reset --keep-paths '/etc/flatcar'",
            )
        return cls(parse_files(files), ignition, ignition_base, parse_builtins(disable_builtins), names, survive_reset)


def parse_file(word: str) -> FileRequest:
    """Understand `SRC:PARTITION:PATH[:MODE]`; UsageError for anything else, and for what no image can take."""
    found = _FILE.fullmatch(word)
    if found is None:
        raise UsageError(
            f"--file {word!r} does not say what to put where.",
            "Write SRC:PARTITION:PATH[:MODE], for example motd.txt:root:/etc/motd:0644.",
        )
    path, partition = found["path"], _partition(word, found["partition"])
    parts = PurePosixPath(path).parts
    if path.endswith("/") or ".." in parts or "//" in path or "/./" in f"{path}/":
        raise UsageError(f"--file {word!r}: {path} is not the plain path of a file.", "For example /etc/motd.")
    if partition is InstallTarget.ROOT and parts[1] in _HIDDEN:
        hint = "Pack it as a sysext: `flatcar-bake sysext pack`." if parts[1] == "usr" else None
        if parts[1] == "oem":
            hint = f"Write {found['source']}:oem:{path.removeprefix('/oem')} for the OEM partition."
        raise UsageError(f"--file {word!r}: {path} on ROOT is hidden by another mount in the running system.", hint)
    if partition is InstallTarget.OEM and path in _OWN:
        raise UsageError(f"--file {word!r}: {path} of the OEM partition is made by the bake.", _OWN[path])
    mode = int(found["mode"], 8) if found["mode"] else None
    if mode is not None and mode & 0o6000:
        raise UsageError(f"--file {word!r}: nothing baked may be setuid or setgid.", f"Write {mode & 0o1777:o}.")
    return FileRequest(Path(found["source"]), partition, path, mode)


def _partition(word: str, name: str) -> InstallTarget:
    label = name.lower()
    if label in tuple(InstallTarget):
        return InstallTarget(label)
    if label.startswith("usr"):
        raise UsageError(
            f"--file {word!r}: /usr is read-only and verified at every boot, so nothing can be put into it.",
            "Pack the file as a sysext, which appears below /usr: `flatcar-bake sysext pack`.",
        )
    raise UsageError(f"--file {word!r} names no partition that files can be put into.", "Use root or oem.")


def parse_files(words: Iterable[str]) -> tuple[FileRequest, ...]:
    """All files of a bake; UsageError when two go to one place."""
    files = tuple(parse_file(word) for word in words)
    places = [item.installed for item in files]
    for place in places:
        if places.count(place) > 1:
            raise UsageError(f"Two files are to be put at {place}.", "Give each --file a path of its own.")
    return files


def parse_builtins(words: Iterable[str]) -> tuple[str, ...]:
    """Built-in sysexts to turn off, each word one or several with commas between; UsageError for unknown names."""
    names = _names(words, "--disable-builtin")
    for name in names:
        if name not in BUILTINS:
            raise UsageError(
                f"Flatcar has no built-in sysext {name!r}.",
                suggest(name, BUILTINS) or f"There are {' and '.join(BUILTINS)}.",
            )
    return names


def parse_official(words: Iterable[str]) -> tuple[str, ...]:
    """Names of official sysexts, each word one or several with commas between; a prefix `flatcar-` may be there."""
    names = tuple(name.removeprefix("flatcar-") for name in _names(words, "--official-sysext"))
    for name in names:
        if not _NAME.fullmatch(name):
            raise UsageError(f"{name!r} cannot be the name of an official sysext.", "For example podman or zfs.")
    return tuple(dict.fromkeys(names))


def _names(words: Iterable[str], option: str) -> tuple[str, ...]:
    names = [name.strip() for word in words for name in word.split(",")]
    if "" in names:
        raise UsageError(f"A name is missing in {option}.", "Write the names with commas between, or repeat it.")
    return tuple(dict.fromkeys(names))
