"""A release and an image so small that hundreds of bakes fit into a test run, and nothing of a bake is left out."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from disks import MIB, make_disk, make_root, put, tool
from keys import TestKey
from mirrors import RELEASE, SignedMirror
from servers import MirrorServer
from sysexts import make_sysext

GENERIC = "flatcar_production_image.bin"
PACKED = f"{GENERIC}.bz2"
VENDOR_IMAGE = "tiny.qcow2"
BOTH_VENDORS = ("-v", "generic", "-v", "tiny")

_VENDOR = f"""
summary = "A vendor whose images need an OEM partition and a conversion, but no large disk"
arches = ["x86-64"]
layout = "base"
image = "{VENDOR_IMAGE}"
[disk]
format = "qcow2"
options = {{ compat = "0.10" }}
compress = true
[oem]
id = "tiny"
sysext = "tiny"
"""


def tiny_disk(folder: Path) -> Path:
    """A disk of the release, with 6 MiB of data on ROOT that cannot be compressed."""
    folder.mkdir()
    disk = make_disk(folder / "disk.raw", "tiny", root_files={"/data": random.Random(1).randbytes(6 * MIB)})
    os_release = f"ID=flatcar\nVERSION={RELEASE.version}\nFLATCAR_BOARD={RELEASE.board}\n".encode()
    put(disk, "tiny", "USR-A", make_root(folder / "usr", 8 * MIB, {"/lib/os-release": os_release}))
    return disk


def tiny_sysext(folder: Path, name: str = "tools") -> Path:
    """A sysext of 2 MiB."""
    return make_sysext(folder, name, files={f"usr/share/{name}/data": random.Random(name).randbytes(2 * MIB)})


@dataclass(frozen=True)
class TinyRelease:
    """A signed release on a running server. `env` makes flatcar-bake use it, and know the vendor `tiny`."""

    mirror: SignedMirror
    server: MirrorServer
    env: dict[str, str]


@contextmanager
def tiny_release(disk: Path, folder: Path, host: str = "127.0.0.1") -> Iterator[TinyRelease]:
    """Publish `disk` as the release's generic image, in a new folder."""
    vendors = folder / "vendors"
    vendors.mkdir(parents=True)
    (vendors / "tiny.toml").write_text(_VENDOR)
    with TestKey() as key, MirrorServer(folder / "www", host=host) as server:
        key.add_subkey()
        (folder / "key").write_bytes(key.export())
        mirror = SignedMirror(folder / "www", key)
        mirror.put(PACKED, tool("lbzip2", "-c", disk))
        oem = make_sysext(folder, "oem-tiny", f"ID=flatcar\nVERSION_ID={RELEASE.version}\n")
        mirror.put("oem-tiny.raw", oem.read_bytes())
        mirror.put_version()
        mirror.put_feed((RELEASE.version, "stable", ["amd64"]))
        env = {
            "FLATCAR_BAKE_MIRROR": server.url, "FLATCAR_BAKE_SIGNING_KEY": str(folder / "key"),
            "FLATCAR_BAKE_FINGERPRINT": key.fingerprint, "FLATCAR_BAKE_VENDORS": str(vendors),
        }  # fmt: skip
        yield TinyRelease(mirror, server, env)
