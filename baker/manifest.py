"""The record of a bake: what went in, what was decided, what came out. Equal bakes give equal records."""

from __future__ import annotations

import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from baker import __version__
from baker.errors import BakeError
from baker.model import Artifact
from baker.placing import ReadySysext
from baker.publish import MANIFEST_NAME
from baker.request import InstallTo
from baker.run import program_version
from baker.sparse import file_sha256
from baker.store import StoredDisk, StoredFile
from baker.verify import Signer

SBOM_NAME = "bake-sbom.spdx.json"
SUMS_NAME = "SHA256SUMS"
RECORDS = (SBOM_NAME, MANIFEST_NAME, SUMS_NAME)
"""The files that every bake writes beside its images."""

# The programs whose version can change the bytes of a result, and the argument that makes them tell it.
_TOOLS = {
    "qemu-img": "--version",
    "debugfs": "-V",
    "lbzip2": "--version",
    "gpg": "--version",
}


@dataclass(frozen=True)
class VendorFailure:
    """A vendor of several that has no image, and why."""

    vendor: str
    error: BakeError


@dataclass(frozen=True)
class BakeManifest:
    """Everything `bake-manifest.json` says. Output paths are names within the output folder."""

    plan_id: str
    version: str
    channel: str
    arch: str
    install_to: str
    backend: str
    epoch: int
    inputs: tuple[dict[str, Any], ...]
    sysexts: tuple[dict[str, Any], ...]
    decisions: tuple[str, ...]
    outputs: tuple[Artifact, ...]
    tools: dict[str, str] = field(default_factory=dict)
    failures: tuple[VendorFailure, ...] = ()
    additions: Mapping[str, Any] = field(default_factory=dict)
    """What was baked besides sysexts."""

    def as_dict(self) -> dict[str, Any]:
        """The JSON form."""
        return {
            "schema": 1,
            "flatcar_bake": __version__,
            "plan_id": self.plan_id,
            "release": {"version": self.version, "channel": self.channel, "arch": self.arch},
            "install_to": self.install_to,
            "backend": self.backend,
            "source_date_epoch": self.epoch,
            "inputs": list(self.inputs),
            "sysexts": list(self.sysexts),
            "decisions": list(self.decisions),
            "tools": self.tools,
            "outputs": [
                {
                    "file": item.path.name,
                    "vendor": item.vendor,
                    "format": item.format,
                    "size": item.size,
                    "sha256": item.sha256,
                }
                for item in self.outputs
            ],
            **({"additions": dict(self.additions)} if self.additions else {}),
            **({"failed": self._failed()} if self.failures else {}),
        }

    def _failed(self) -> list[dict[str, str]]:
        return [
            {"vendor": item.vendor, "kind": item.error.kind, "message": item.error.message} for item in self.failures
        ]

    def text(self) -> str:
        return json.dumps(self.as_dict(), indent=2, sort_keys=False) + "\n"


def signer_record(signer: Signer | None) -> dict[str, Any] | None:
    """Who signed an input; `expired` says that the key expired after it had signed."""
    if signer is None:
        return None
    return {
        "primary": signer.primary, "key": signer.key, "created": signer.created, "key_expired_since": signer.expired,
    }  # fmt: skip


def input_record(stored: StoredFile | StoredDisk, kind: str) -> dict[str, Any]:
    """One downloaded input: where from, its digest, who signed it. `from_cache` is left out: it may differ."""
    return {
        "kind": kind, "name": stored.name, "url": stored.url, "sha256": stored.sha256,
        "signer": signer_record(stored.signer),
    }  # fmt: skip


def sysext_record(
    item: ReadySysext, install_to: InstallTo, in_memory: str = "", on_disk: bool = True
) -> dict[str, Any]:
    """One baked sysext: its metadata, where it came from, where it is in the image, and what was overlooked.

    `in_memory` is its path in machines without a disk; where there are no others, nothing updates it.
    """
    sysext = item.sysext
    place = f"{install_to.target.label}:{install_to.path(sysext.name, item.file_name)}"
    if not on_disk and in_memory.startswith("/usr/share/flatcar/"):
        place = f"USR:{in_memory.removeprefix('/usr')}"
    return {
        "name": sysext.name, "file": item.file_name, "origin": item.origin, "sha256": sysext.sha256,
        "size": sysext.size, "id": sysext.os_id, "version_id": sysext.version_id,
        "sysext_level": sysext.sysext_level, "architecture": sysext.architecture,
        "installed": place,
        "sysupdate_config": item.config_name,
        "sysupdate_config_sha256": file_sha256(item.config) if item.config else "",
        "findings": list(item.findings), "turns_off": list(item.builtins),
        **({"in_memory": in_memory} if in_memory else {}),
        **({"built": dict(item.built)} if item.built else {}),
    }  # fmt: skip


def tool_versions() -> dict[str, str]:
    """The versions of the programs that took part, by name; those not installed are left out."""
    with ThreadPoolExecutor(len(_TOOLS)) as pool:
        said = pool.map(program_version, _TOOLS.items())
        return {program: version for program, version in zip(_TOOLS, said, strict=True) if version}


def write_records(folder: Path, manifest: BakeManifest) -> list[Path]:
    """Write bake-manifest.json and SHA256SUMS (which covers the outputs and the manifest); returns both."""
    record = folder / MANIFEST_NAME
    record.write_text(manifest.text(), encoding="utf-8")
    sums = folder / SUMS_NAME
    lines = [f"{item.sha256}  {item.path.name}" for item in manifest.outputs]
    lines.append(f"{file_sha256(record)}  {MANIFEST_NAME}")
    sums.write_text("".join(f"{line}\n" for line in sorted(lines, key=lambda line: line[66:])), encoding="utf-8")
    return [record, sums]
