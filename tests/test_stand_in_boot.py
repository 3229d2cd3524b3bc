"""The stand-in release boots as Flatcar does: UEFI and BIOS, GRUB and the OEM's settings, Ignition, sysexts."""

from __future__ import annotations

import base64
import json
import re
import subprocess
from pathlib import Path

import pytest

from baker.model import Injection
from baker.offline import OfflineEditor
from baker.run import need, run

pytestmark = pytest.mark.boot

CURRENT = "stable/amd64-usr/current"
SECONDS = 240
# Through the kernel's log, for a getty that starts meanwhile hangs up whoever else writes to the serial port.
REPORT = """
systemctl is-system-running --wait
{
    echo "argument $(grep -o 'flatcar.first_boot=[^ ]*' /proc/cmdline)"
    echo "argument $(grep -o 'flatcar.oem.id=[^ ]*' /proc/cmdline)"
    echo "multi-user $(systemctl is-active multi-user.target)"
    echo "hello $(systemctl is-active hello.service)"
    echo "failed units: $(systemctl --failed --no-legend --plain)"
    echo "written $(cat /etc/written)"
    systemd-sysext status --no-legend
} | while IFS= read -r line; do echo "report: $line." >/dev/kmsg; done
# A getty waits up to five seconds for the jobs of the boot.
sleep 6
systemctl poweroff --force
"""
UNIT = """
[Unit]
After=multi-user.target ensure-sysext.service
[Service]
Type=exec
Environment=SYSTEMD_COLORS=0
ExecStart=/usr/bin/bash /etc/report
[Install]
WantedBy=multi-user.target
"""


def ignition(links: dict[str, str] | None = None) -> bytes:
    """A config whose unit reports on the serial port once the system is up, and turns the machine off."""

    def file(path: str, content: str) -> dict[str, object]:
        encoded = base64.b64encode(content.encode()).decode()
        return {"path": path, "contents": {"source": f"data:;base64,{encoded}"}}

    config = {
        "ignition": {"version": "3.3.0"},
        "storage": {
            "files": [file("/etc/report", REPORT), file("/etc/written", "by Ignition")],
            "links": [{"path": path, "target": target} for path, target in (links or {}).items()],
        },
        "systemd": {"units": [{"name": "report.service", "enabled": True, "contents": UNIT}]},
    }
    return json.dumps(config).encode()


def boot(work: Path, *arguments: str | Path) -> str:
    """Run a machine until it turns itself off; returns what it said on the serial port."""
    serial = work / "serial.txt"
    serial.unlink(missing_ok=True)
    words = [
        need("qemu-system-x86_64"), "-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2", "-m", "1536",
        "-display", "none", "-net", "none", "-no-reboot", "-serial", f"file:{serial}", *arguments,
    ]  # fmt: skip
    try:
        subprocess.run(words, check=True, timeout=SECONDS, stdin=subprocess.DEVNULL)
    except subprocess.TimeoutExpired:
        pytest.fail(f"the guest was still running after {SECONDS} s:\n{serial.read_text(errors='replace')[-3000:]}")
    return serial.read_text(errors="replace").replace("\r", "")


def test_published_image_boots_twice_under_uefi(stand_in: Path, tmp_path: Path) -> None:
    folder = stand_in / CURRENT
    disk, variables = tmp_path / "disk.qcow2", tmp_path / "vars.qcow2"
    for published, own in (("image.img", disk), ("efi_vars.qcow2", variables)):
        backing = folder.resolve() / f"flatcar_production_qemu_uefi_{published}"
        run(["qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", backing, own])
    code = folder / "flatcar_production_qemu_uefi_efi_code.qcow2"
    config = tmp_path / "config.ign"
    config.write_bytes(ignition())
    machine = [
        "-machine", "q35", "-drive", f"if=virtio,format=qcow2,file={disk}",
        "-drive", f"if=pflash,format=qcow2,readonly=on,file={code}",
        "-drive", f"if=pflash,format=qcow2,file={variables}",
        "-fw_cfg", f"name=opt/org.flatcar-linux/config,file={config}",
    ]  # fmt: skip

    first = boot(tmp_path, *machine)
    assert "argument flatcar.first_boot=detected." in first
    assert "argument flatcar.oem.id=qemu." in first, "GRUB did not read the OEM's grub.cfg"
    assert "multi-user active." in first
    assert "failed units: ." in first
    assert "written by Ignition." in first
    for name in ("containerd-flatcar", "docker-flatcar", "oem-qemu"):
        assert re.search(rf"report: .*{name}", first), f"{name} is not merged"
    assert "root (automatic login)" in first, "flatcar.autologin did not open a shell"

    second = boot(tmp_path, *machine)
    assert "argument ." in second, "the first boot's flag file is still on the ESP"
    assert "multi-user active." in second


def test_generic_image_boots_with_bios_from_an_ide_disk(stand_in_new: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk.bin"
    packed = stand_in_new / CURRENT / "flatcar_production_image.bin.bz2"
    with subprocess.Popen(["lbzip2", "-dc", packed], stdout=subprocess.PIPE) as lbzip2:
        subprocess.run(["cp", "--sparse=always", "/dev/stdin", disk], stdin=lbzip2.stdout, check=True)
    assert lbzip2.returncode == 0
    with OfflineEditor(disk, tmp_path, epoch=0) as editor:
        editor.apply("OEM", [Injection("/config.ign", content=ignition())])

    said = boot(tmp_path, "-machine", "pc", "-drive", f"if=ide,format=raw,file={disk}")
    assert "written by Ignition." in said, "OEM:/config.ign was not used"
    assert "multi-user active." in said
    assert "failed units: ." in said
    assert "argument ." in said, "a generic image has no OEM"
    assert "root (automatic login)" not in said
