"""The release server's folder around its releases: feed, `current` links, bakery, and the file `env`."""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import tempfile
from pathlib import Path

from baker.model import Arch
from standin import signing, sysexts
from standin.release import Spec

_DATE = "2026-03-09 12:00:00 +0000"
_SOFTWARE = {"containerd": ["0"], "docker": ["0"], "ignition": ["2.14.0"], "kernel": ["6.1"], "systemd": ["252"]}
_LTS_YEARS = {3510: 2023, 4081: 2024}
FEED = "releases-json/releases.json"


def release_folder(root: Path, spec: Spec) -> Path:
    """Where the release server keeps a release."""
    return root / spec.channel / spec.arch.board / spec.version


def numbers(version: str) -> tuple[int, ...]:
    """A version as numbers, to compare; raises ValueError if it is none."""
    return tuple(int(part) for part in version.split("."))


def link_current(root: Path, spec: Spec) -> None:
    """Point `current` of the release's channel and board to the highest version there, and LTS's `current-YEAR`."""
    folder = release_folder(root, spec).parent
    versions = [path.name for path in folder.iterdir() if path.name[0].isdigit()]
    _replace_link(folder / "current", max(versions, key=numbers))
    for major, year in _LTS_YEARS.items():
        of_year = [version for version in versions if numbers(version)[0] == major]
        if spec.channel == "lts" and of_year:
            _replace_link(folder / f"current-{year}", max(of_year, key=numbers))


def _replace_link(path: Path, target: str) -> None:
    partial = path.with_name(f".{path.name}")
    partial.unlink(missing_ok=True)
    partial.symlink_to(target)
    partial.rename(path)


def write(path: Path, content: bytes) -> None:
    """Write a whole file at once: a reader sees the old one or the new one. A file that is right stays untouched."""
    if path.exists() and path.read_bytes() == content:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}")
    partial.write_bytes(content)
    partial.rename(path)


def add_to_feed(root: Path, spec: Spec) -> None:
    """Add a release to releases.json.

    As in Flatcar's feed, `current` is a copy of the highest stable entry and `current-YEAR` one of an LTS.
    """
    path = root / FEED
    feed = json.loads(path.read_bytes()) if path.exists() else {}
    known = feed.get(spec.version, {}).get("architectures", [])
    feed[spec.version] = {
        "channel": spec.channel,
        "architectures": sorted({*known, spec.arch.feed_name}),
        "release_date": _DATE,
        "major_software": _SOFTWARE,
        "release_notes": "A stand-in release for tests and demonstrations.\n",
    }
    versions = sorted((name for name in feed if name[0].isdigit()), key=numbers)
    ordered = {name: feed[name] for name in versions}
    for name in versions:
        if feed[name]["channel"] == "stable":
            ordered["current"] = feed[name]
        if feed[name]["channel"] == "lts" and numbers(name)[0] in _LTS_YEARS:
            ordered[f"current-{_LTS_YEARS[numbers(name)[0]]}"] = feed[name]
    write(path, json.dumps(ordered, indent=2).encode())


def fill_bakery(root: Path, arch: Arch) -> None:
    """Put the bakery's files for `arch` into extensions/; SHA256SUMS covers sysexts only, as the real one does."""
    folder = root / "extensions"
    with tempfile.TemporaryDirectory(prefix=".work-", dir=root) as made:
        sysexts.bakery(Path(made), arch.value)
        for path in sorted(Path(made).iterdir()):
            write(folder / path.name, path.read_bytes())
    lines = (
        f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in sorted(folder.glob("*.raw"))
    )
    write(folder / "SHA256SUMS", "".join(lines).encode())


def write_env(root: Path, fingerprint: str, address: str | None = None) -> None:
    """Write `env`, for a shell to read with `set -a; . DIR/env`: the variables that point flatcar-bake here.

    `address` is the URL that serves the folder; without it the folder itself is the release server.
    """
    values = {
        "FLATCAR_BAKE_MIRROR": address or os.fspath(root),
        "FLATCAR_BAKE_BAKERY": f"{address or root}/extensions",
        "FLATCAR_BAKE_SIGNING_KEY": os.fspath(root / signing.PUBLIC),
        "FLATCAR_BAKE_FINGERPRINT": fingerprint,
    }
    write(root / "env", "".join(f"{name}={shlex.quote(value)}\n" for name, value in values.items()).encode())
