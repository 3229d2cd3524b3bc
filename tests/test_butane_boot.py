"""A machine that was provisioned by our config boots, with the extension merged and a service of it started.

The stand-in's initrd has no network, so Ignition carries out the config beforehand: on a folder, from a real server.
What it wrote there goes into the ROOT of the published image.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from cli import flatcar_bake, release_environment
from provisioning import apply
from servers import MirrorServer

from baker.model import Injection
from baker.offline import OfflineEditor
from baker.run import run

OWN = """\
variant: flatcar
version: 1.0.0
storage:
  links:
    - path: /etc/systemd/system/multi-user.target.wants/hello.service
      target: /etc/systemd/system/hello.service
      hard: false
systemd:
  units:
    - name: hello.service
      contents: |
        [Service]
        Type=oneshot
        RemainAfterExit=yes
        ExecStart=/usr/bin/wasmtime --version
        Restart=on-failure
        RestartSec=1
"""


def written(root: Path) -> list[Injection]:
    """What Ignition wrote into a folder, as entries for an image."""
    made = []
    for path in sorted(root.rglob("*")):
        inside = f"/{path.relative_to(root)}"
        if path.is_symlink():
            made.append(Injection(inside, mode=0o777, symlink=os.readlink(path), replace=True))
        elif path.is_file() and not inside.startswith("/etc/selinux/"):
            made.append(Injection(inside, source=path, mode=path.stat().st_mode & 0o7777, replace=True))
    return made


@pytest.mark.boot
def test_what_ignition_made_of_the_config_boots_and_runs(stand_in: Path, tmp_path: Path) -> None:
    own = tmp_path / "own.bu"
    own.write_text(OWN)
    words = ("wasmtime@49.0.4", "--update", "--disable-builtin", "docker", "--format", "ignition", "--merge", own)
    with MirrorServer(stand_in / "extensions") as server:
        done = flatcar_bake("butane", *words, "--bakery", server.url, "--cache-dir", tmp_path / "cache")
        assert done.returncode == 0, done.stderr
        root = apply(done.stdout, tmp_path / "root", tmp_path)
    published = stand_in / "stable/amd64-usr/current/flatcar_production_qemu_uefi_image.img"
    disk = tmp_path / "disk.raw"
    run(["qemu-img", "convert", "-O", "raw", published, disk])
    with OfflineEditor(disk, tmp_path, epoch=1) as editor:
        editor.apply("ROOT", written(root))
    done = flatcar_bake(
        "boot", disk, "--firmware", "bios", "--expect-sysext", "wasmtime", "--run", "wasmtime --version", "--run",
        "systemctl is-active hello.service", "--run", "test -e /etc/sysupdate.wasmtime.d/wasmtime.conf", "--json",
        "--timeout", "400", env=release_environment(stand_in),
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "docker-flatcar" not in json.loads(done.stdout)["boots"][0]["sysexts"]
