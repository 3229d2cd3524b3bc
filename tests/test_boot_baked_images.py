"""What a user gets from a bake boots, with the extension merged and running: both backends, partitions and layouts."""

import json
import os
import selectors
import subprocess
import time
from pathlib import Path

import pytest
from cli import flatcar_bake, release_environment

pytestmark = pytest.mark.boot
IMAGE = "flatcar_production_qemu_uefi_image.img"


def bake(release: Path, out: Path, *words: str) -> Path:
    """Bake wasmtime for QEMU; returns the image."""
    sysext = next((release / "extensions").glob("wasmtime-*-x86-64.raw")).name
    env = release_environment(release) | {"FLATCAR_BAKE_CACHE_DIR": str(out / "cache")}
    done = flatcar_bake("--fetch", "-v", "qemu_uefi", "-o", out, *words, f"wasmtime:{sysext}", env=env)
    assert done.returncode == 0, done.stderr
    return out / IMAGE


def boots(image: Path, firmware: str) -> None:
    done = flatcar_bake(
        "boot", image, "--firmware", firmware, "--expect-sysext", "wasmtime", "--run", "wasmtime --version",
        "--json", "--timeout", "400",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "wasmtime 49.0" in done.stdout
    assert json.loads(done.stdout)


def test_a_sysext_put_into_root_offline_runs(stand_in: Path, tmp_path: Path) -> None:
    boots(bake(stand_in, tmp_path, "--base", "generic", "--backend", "offline"), "uefi")


def test_a_sysext_put_into_root_by_loop_mounts_runs(stand_in_new: Path, tmp_path: Path) -> None:
    boots(bake(stand_in_new, tmp_path, "--base", "generic", "--backend", "loop"), "bios")


def test_a_sysext_on_the_oem_partition_runs(stand_in_new: Path, tmp_path: Path) -> None:
    boots(bake(stand_in_new, tmp_path, "--install-to", "oem:/sysext"), "uefi")


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
