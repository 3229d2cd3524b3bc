"""An SPDX 2.3 document beside every bake: which release and which sysexts are in the images, with their digests.

https://spdx.github.io/spdx-spec/v2.3/. Everything is a package, because SPDX demands a SHA-1 of what it calls a file.
Equal bakes give equal documents: the namespace comes from the plan's id, the time is the bake's epoch.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from baker import __version__
from baker.model import Artifact
from baker.plan import BakePlan
from baker.sparse import file_sha256

_DOCUMENT, _RELEASE = "SPDXRef-DOCUMENT", "SPDXRef-release"


def write_sbom(
    path: Path,
    plan: BakePlan,
    version: str,
    inputs: Iterable[Mapping[str, Any]],
    sysexts: Iterable[Mapping[str, Any]],
    outputs: Sequence[Artifact],
) -> Artifact:
    """Write the document of a bake and return it as one of the bake's outputs.

    `version` is the release inside the images, "" where unknown; `inputs` and `sysexts` are the manifest's records.
    """
    document = {
        "spdxVersion": "SPDX-2.3",
        "dataLicense": "CC0-1.0",
        "SPDXID": _DOCUMENT,
        "name": f"flatcar-bake {plan.id[:16]}",
        "documentNamespace": f"https://spdx.org/spdxdocs/flatcar-bake-{plan.id}",
        "creationInfo": {
            "created": datetime.fromtimestamp(plan.epoch, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "creators": [f"Tool: flatcar-bake-{__version__}"],
        },
        **_contents(plan, version, list(inputs), list(sysexts), outputs),
    }
    path.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    return Artifact(path, "spdx", path.stat().st_size, file_sha256(path), "")


def _contents(
    plan: BakePlan,
    version: str,
    inputs: list[Mapping[str, Any]],
    sysexts: list[Mapping[str, Any]],
    outputs: Sequence[Artifact],
) -> dict[str, list[dict[str, Any]]]:
    """The packages and how they relate."""
    urls = {item["name"]: item["url"] for item in inputs}
    packages = [_package(_RELEASE, "flatcar", version, "OPERATING-SYSTEM")]
    relations: list[dict[str, str]] = []
    if plan.image is not None:
        sha256 = str(plan.substance()["image"])
        packages.append(_package("SPDXRef-image", plan.image.name, "", "FILE", sha256=sha256))
        relations.append(_relation("SPDXRef-image", "CONTAINS", _RELEASE))
    for item in inputs:
        if item["kind"] == "recipe source":
            part = _id("source", item["name"])
            packages.append(_package(part, item["name"], "", "FILE", item["url"], item["sha256"]))
            relations.append(_relation(_id("sysext", item["name"].partition(":")[0]), "GENERATED_FROM", part))
        elif item["kind"] not in ("sysext", "sysupdate config"):
            part = _id("input", item["name"])
            packages.append(_package(part, item["name"], version, "FILE", item["url"], item["sha256"]))
            relations.append(_relation(part, "PACKAGE_OF", _RELEASE))
    added = [(item["installed"], item["sha256"]) for kind in ("files", "ignition")
             for item in plan.additions.as_dict().get(kind, ())]  # fmt: skip
    packages += [_package(_id("added", name), name, "", "FILE", sha256=sha256) for name, sha256 in added]
    for record in sysexts:
        config = record["sysupdate_config"]
        if config:
            part = _id("config", f"{record['name']}-{config}")
            packages.append(
                _package(part, config, "", "FILE", urls.get(config, ""), record["sysupdate_config_sha256"])
            )
            relations.append(_relation(part, "DATA_FILE_OF", _id("sysext", record["name"])))
        packages.append(
            _package(
                _id("sysext", record["name"]), record["name"], _sysext_version(record), "APPLICATION",
                urls.get(record["file"], ""), record["sha256"], record["file"],
            )
        )  # fmt: skip
    disks = {item.vendor.image for item in plan.vendors}
    holders = {
        item.vendor.diskless.oem if item.vendor.diskless and item.vendor.diskless.split else item.vendor.image
        for item in plan.vendors
    }
    for output in outputs:
        part, is_disk = _id("output", output.path.name), output.path.name in disks
        purpose = "OPERATING-SYSTEM" if is_disk else "FILE"
        packages.append(_package(part, output.path.name, version, purpose, sha256=output.sha256))
        relations.append(_relation(_DOCUMENT, "DESCRIBES", part))
        if is_disk:
            relations.append(_relation(part, "GENERATED_FROM", _RELEASE))
        if output.path.name in holders:
            relations += [_relation(part, "CONTAINS", _id("sysext", record["name"])) for record in sysexts]
            relations += [_relation(part, "CONTAINS", _id("added", name)) for name, _ in added]
    return {"packages": packages, "relationships": relations}


def _package(
    part: str, name: str, version: str, purpose: str, url: str = "", sha256: str = "", file: str = ""
) -> dict[str, Any]:
    package: dict[str, Any] = {"SPDXID": part, "name": name}
    if version:
        package["versionInfo"] = version
    if file:
        package["packageFileName"] = file
    # A folder can serve as a mirror, but SPDX knows URLs only.
    remote = urlsplit(url).scheme in ("http", "https")
    package |= {"downloadLocation": url if remote else "NOASSERTION", "filesAnalyzed": False}
    if sha256:
        package["checksums"] = [{"algorithm": "SHA256", "checksumValue": sha256}]
    package |= dict.fromkeys(("licenseConcluded", "licenseDeclared", "copyrightText"), "NOASSERTION")
    return package | {"primaryPackagePurpose": purpose}


def _relation(one: str, kind: str, other: str) -> dict[str, str]:
    return {"spdxElementId": one, "relationshipType": kind, "relatedSpdxElement": other}


def _id(kind: str, name: str) -> str:
    """An identifier may have letters, digits, dots and hyphens only."""
    clean = re.sub(r"[^A-Za-z0-9.-]", lambda match: f"-{ord(match[0]):x}-", name)
    return f"SPDXRef-{kind}-{clean}"


def _sysext_version(record: Mapping[str, Any]) -> str:
    """What NAME-VERSION-ARCH.raw says; "" for another kind of name."""
    name, arch = re.escape(record["name"]), r"(?:x86-64|arm64)"
    match = re.fullmatch(rf"{name}[-_](.+?)(?:[-_]{arch})?\.raw", record["file"])
    return match[1] if match else ""
