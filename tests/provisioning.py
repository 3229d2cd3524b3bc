"""Real Ignition at work on a folder, as in a machine's first boot, and a second reading of Butane.

Debian's Ignition is built for SELinux and insists on labelling files, which a folder without a policy cannot have:
`setfiles` does nothing here, as in the stand-in release.
"""

from __future__ import annotations

import copy
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any
from urllib.parse import quote
from urllib.request import urlopen

import yaml

IGNITION = "/usr/lib/dracut/modules.d/30ignition/ignition"
STAGES = ("fetch-offline", "fetch", "files")


class IgnitionFailed(Exception):
    """What Ignition said."""


def valid(config: str) -> str:
    """What ignition-validate has against a config; "" where it has nothing."""
    done = subprocess.run(["ignition-validate", "-"], input=config, capture_output=True, text=True)
    return done.stdout + done.stderr + (f"status {done.returncode}" if done.returncode else "")


def apply(config: str, root: Path, work: Path) -> Path:
    """Let Ignition carry out a user's config in the folder `root`; IgnitionFailed if it gives up."""
    system = work / "ignition"
    shutil.rmtree(system, ignore_errors=True)
    (system / "bin").mkdir(parents=True)
    (system / "bin/setfiles").symlink_to("/usr/bin/true")
    (system / "user.ign").write_text(config)
    selinux = root / "etc/selinux/config"
    selinux.parent.mkdir(parents=True, exist_ok=True)
    selinux.write_text("SELINUX=disabled\nSELINUXTYPE=targeted\n")
    env = {"PATH": f"{system / 'bin'}:{os.environ['PATH']}", "IGNITION_SYSTEM_CONFIG_DIR": str(system)}
    for stage in STAGES:
        done = subprocess.run(
            [IGNITION, "--platform=metal", f"--root={root}", f"--config-cache={system / 'cache.json'}",
             f"--neednet={system / 'neednet'}", f"--state-file={system / 'state'}", "--log-to-stdout",
             "--stage", stage],
            env=env, capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        if done.returncode:
            raise IgnitionFailed(done.stdout + done.stderr)
    return root


def butane(text: str) -> dict[str, Any]:
    """What Butane makes of a config of Flatcar's variant 1.0.0: files, links and units, key by key."""
    document = yaml.safe_load(text)
    assert document.pop("variant") == "flatcar" and document.pop("version") == "1.0.0"
    made: dict[str, Any] = {"ignition": {"version": "3.3.0"}}
    storage, systemd = document.pop("storage"), document.pop("systemd", None)
    assert not document and set(storage) <= {"files", "links"}
    made["storage"] = {"links": storage["links"]} | ({"files": []} if "files" in storage else {})
    for file in storage.get("files", []):
        contents = dict(file["contents"])
        if "inline" in contents:
            contents["source"] = "data:," + quote(contents.pop("inline"), safe="")
        made["storage"]["files"].append({**file, "contents": contents})
    return made | ({"systemd": systemd} if systemd else {})


def decoded(config: dict[str, Any]) -> dict[str, Any]:
    """An Ignition config with contents instead of data URLs, which can be written in many ways."""
    config = copy.deepcopy(config)
    for file in config.get("storage", {}).get("files", []):
        source = file["contents"]["source"]
        if source.startswith("data:"):
            with urlopen(source) as answer:
                file["contents"] = answer.read().decode()
    return config
