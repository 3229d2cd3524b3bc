"""What a user gets from a bake boots, with the extension merged and running: both backends, partitions and layouts.

What is baked besides sysexts goes into the same images: files, Ignition configs, an official sysext, a built-in one
turned off, and a bake that survives a reset.
"""

import json
import os
import selectors
import shutil
import subprocess
import time
from pathlib import Path

import pytest
from cli import flatcar_bake, release_environment
from standin import signing
from sysexts import make_sysext

from baker.ignition import ConfigFile, base_config

pytestmark = pytest.mark.boot
IMAGE = "flatcar_production_qemu_uefi_image.img"


def bake(release: Path, out: Path, *words: str | Path, mirror: Path | None = None) -> Path:
    """Bake wasmtime for QEMU; returns the image."""
    sysext = next((release / "extensions").glob("wasmtime-*-x86-64.raw")).name
    env = release_environment(release) | {"FLATCAR_BAKE_CACHE_DIR": str(out / "cache")}
    env |= {"FLATCAR_BAKE_MIRROR": str(mirror)} if mirror else {}
    done = flatcar_bake("--fetch", "-v", "qemu_uefi", "-o", out, *words, f"wasmtime:{sysext}", env=env)
    assert done.returncode == 0, done.stderr
    return out / IMAGE


def boots(image: Path, firmware: str, *commands: str) -> set[str]:
    """Boot an image, in which all commands must succeed; returns the sysexts that are merged."""
    runs = [word for command in ("wasmtime --version", *commands) for word in ("--run", command)]
    done = flatcar_bake(
        "boot", image, "--firmware", firmware, "--expect-sysext", "wasmtime", *runs, "--json", "--timeout", "400"
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "wasmtime 49.0" in done.stdout
    return set(json.loads(done.stdout)["boots"][0]["sysexts"])


@pytest.fixture
def with_podman(stand_in: Path, tmp_path: Path) -> Path:
    """The stand-in release server with an official sysext flatcar-podman.raw that says that it is there."""
    root = tmp_path / "mirror"
    (version,) = stand_in.glob("stable/amd64-usr/[0-9]*")
    folder = root / version.relative_to(stand_in)
    folder.mkdir(parents=True)
    for file in version.iterdir():
        (folder / file.name).symlink_to(file)
    (folder.parent / "current").symlink_to(version.name)
    (root / "releases-json").symlink_to(stand_in / "releases-json")
    made = make_sysext(
        tmp_path, "flatcar-podman", f"ID=flatcar\nVERSION_ID={version.name}\n",
        {"usr/bin/podman": "#!/bin/sh\necho official\n"},
    )  # fmt: skip
    shutil.copy(made, folder / "flatcar-podman.raw")
    shutil.copy(stand_in / signing.SECRET, root)
    with signing.signer(root) as signer:
        signer.sign(folder / "flatcar-podman.raw")
    return root


def test_a_sysext_put_into_root_offline_runs(stand_in: Path, with_podman: Path, tmp_path: Path) -> None:
    """And beside it a file, the user's config on top of a base config, and an official sysext in docker's place."""
    storage = {"files": [{"path": path, "contents": {"source": "data:,user"}} for path in ("/etc/user", "/etc/both")]}
    user, base, file = tmp_path / "user.ign", tmp_path / "base.ign", tmp_path / "motd"
    user.write_text(json.dumps({"ignition": {"version": "3.3.0"}, "storage": storage}))
    base.write_bytes(base_config({}, {"/etc/base": ConfigFile(b"base"), "/etc/both": ConfigFile(b"base")}))
    file.write_text("a file\n")
    image = bake(
        stand_in, tmp_path, "--base", "generic", "--backend", "offline", "--ignition", user, "--ignition-base", base,
        "--file", f"{file}:root:/etc/motd", "--file", f"{file}:oem:/notes/motd:0600", "--official-sysext", "podman",
        "--disable-builtin", "docker", "--kernel-arg", "bake.test=1", mirror=with_podman,
    )  # fmt: skip
    merged = boots(
        image, "uefi", "grep -x user /etc/user", "grep -x user /etc/both", "grep -x base /etc/base",
        'test "$(cat /etc/motd)" = "$(cat /oem/notes/motd)"', "podman | grep -x official",
        "grep -w bake.test=1 /proc/cmdline",
    )  # fmt: skip
    assert "flatcar-podman" in merged and "docker-flatcar" not in merged


def test_a_sysext_put_into_root_by_loop_mounts_runs(stand_in_new: Path, tmp_path: Path) -> None:
    boots(bake(stand_in_new, tmp_path, "--base", "generic", "--backend", "loop"), "bios")


def test_a_sysext_that_survives_a_reset_is_linked_by_the_base_config(stand_in_new: Path, tmp_path: Path) -> None:
    """Nothing is on ROOT; the config that QEMU offers, with the check in it, is merged over ours."""
    file = tmp_path / "motd"
    file.write_text("a file\n")
    image = bake(stand_in_new, tmp_path, "--survive-reset", "--file", f"{file}:root:/etc/motd", "--enable-updates")
    boots(
        image, "uefi", "readlink /etc/extensions/wasmtime.raw | grep ^/oem/sysext/", "grep -x 'a file' /etc/motd",
        "test -e /etc/sysupdate.wasmtime.d/wasmtime.conf",
        "readlink /etc/systemd/system/timers.target.wants/systemd-sysupdate.timer",
    )  # fmt: skip


def test_the_launcher_script_starts_the_image(stand_in: Path, tmp_path: Path) -> None:
    image = bake(stand_in, tmp_path, "--base", "published")
    before = image.stat().st_mtime_ns
    script = tmp_path / "flatcar_production_qemu_uefi.sh"
    subprocess.run(["sh", "-n", script], check=True)
    assert "-i FILE" in subprocess.run([script, "-h"], capture_output=True, text=True, check=True).stdout
    with subprocess.Popen(
        [script, "-t", "-m", "1024", "-p", "0"],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        env=os.environ | {"VM_CPUS": "2"},
    ) as machine:  # fmt: skip
        try:
            output = _read_until(machine, b"login: ", 200)
        finally:
            machine.kill()
    assert b"login: " in output, output[-3000:].decode(errors="replace")
    assert image.stat().st_mtime_ns == before


def _read_until(machine: subprocess.Popen[bytes], words: bytes, seconds: float) -> bytes:
    """What a program has printed by the time that `words` appear, it ends, or the time is over."""
    assert machine.stdout is not None
    output, deadline = b"", time.monotonic() + seconds
    with selectors.DefaultSelector() as ready:
        ready.register(machine.stdout, selectors.EVENT_READ)
        while words not in output and time.monotonic() < deadline:
            if ready.select(1):
                chunk = os.read(machine.stdout.fileno(), 1 << 16)
                if not chunk:
                    break
                output += chunk
    return output
