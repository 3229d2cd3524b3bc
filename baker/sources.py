"""Finding sysexts in a bakery: which file a version means, and which sysupdate config belongs to it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from baker.errors import UsageError
from baker.model import Arch
from baker.schema import suggest

if TYPE_CHECKING:
    from baker.services import Services

_MINOR = re.compile(r"(v?)(\d+\.\d+)(?:\.|-|\+|$)")


def bakery_versions(name: str, arch: Arch, files: Iterable[str]) -> list[str]:
    """The versions of one sysext in a bakery, by the names of its files (NAME-VERSION-ARCH.raw)."""
    prefix, suffix = f"{name}-", f"-{arch}.raw"
    return sorted(
        file[len(prefix) : -len(suffix)] for file in files if file.startswith(prefix) and file.endswith(suffix)
    )


def version_files(name: str, version: str, arch: Arch) -> list[str]:
    """The names that the bakery file of NAME@VERSION may have: with or without a leading `v`."""
    return [f"{name}-{candidate}-{arch}.raw" for candidate in (version, f"v{version}", version.removeprefix("v"))]


def pick_bakery_version(name: str, version: str, arch: Arch, files: Mapping[str, str]) -> str:
    """The bakery file of NAME@VERSION. UsageError lists what there is."""
    for file in version_files(name, version, arch):
        if file in files:
            return file
    versions = bakery_versions(name, arch, files)
    hint = (
        f"It has: {', '.join(versions[-8:])}." if versions else "It has no sysext of that name for this architecture."
    )
    raise UsageError(f"The bakery has no {name} {version} for {arch}.", hint)


def bakery_digest(file: str, files: Mapping[str, str]) -> str:
    """The sha256 that the bakery's SHA256SUMS gives for a file; UsageError with the nearest names otherwise."""
    if file not in files:
        raise UsageError(f"The bakery does not list {file} in its SHA256SUMS.", suggest(file, files))
    return files[file]


def config_candidates(name: str, file: str) -> list[str]:
    """The names a sysext's sysupdate config may have in a bakery, best first.

    Most have NAME.conf. Some (kubernetes, k3s, rke2) publish one per minor version: NAME-v1.30.conf. Where both are
    there, a machine stays with the minor version that it was given.
    """
    candidates = []
    minor = _MINOR.match(file.removeprefix(f"{name}-"))
    if minor:
        version = minor.group(2)
        candidates = [f"{name}-{minor.group(1)}{version}.conf", f"{name}-v{version}.conf", f"{name}-{version}.conf"]
    return list(dict.fromkeys((*candidates, f"{name}.conf")))


def find_config(name: str, file: str, services: Services) -> str:
    """The name of the config a bakery holds for this sysext; "" where it has none."""
    for candidate in config_candidates(name, file):
        if services.in_bakery(candidate):
            return candidate
    return ""
