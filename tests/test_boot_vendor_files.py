"""The files that are handed to a platform boot as they are: QEMU reads the disk in its final format."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from cli import flatcar_bake, release_environment
from sysexts import make_sysext

from baker.model import Arch
from baker.qemu import firmware_files
from baker.run import run
from baker.sparse import file_sha256
from baker.vendor_files import load_vendors

pytestmark = pytest.mark.boot
VENDORS = load_vendors()
# What the extension does once it is merged: say so on the serial port, and end the machine.
PROGRAM = """#!/usr/bin/bash
{ echo "BAKED: $(cat /proc/cmdline)"; systemd-sysext status --no-pager; echo "END"; } > /dev/ttyS0
sync
exec systemctl poweroff --force --force
"""
UNIT = "[Service]\nType=oneshot\nExecStart=/usr/bin/probe\n"
UPHOLDS = "[Unit]\nUpholds=probe.service\n"


@dataclass(frozen=True)
class Machine:
    """What a platform's machines are like, as far as QEMU has it."""

    devices: tuple[str, ...]
    uefi: bool = False


PVSCSI = Machine(("-device", "pvscsi", "-device", "scsi-hd,drive=disk"))
IDE = Machine(("-device", "ide-hd,drive=disk"))
SECOND_GENERATION = Machine(("-device", "virtio-scsi", "-device", "scsi-hd,drive=disk"), uefi=True)
MACHINES = {"vmware": PVSCSI, "vmware_ova": PVSCSI, "hyperv": IDE, "hyperv_vhdx": SECOND_GENERATION}


@pytest.fixture(scope="session")
def results(stand_in: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder with the final files of a vendor."""
    baked: dict[str, Path] = {}

    def once(name: str) -> Path:
        if name not in baked:
            folder = baked[name] = tmp_path_factory.mktemp(name)
            files = {
                "usr/bin/probe": PROGRAM,
                "usr/lib/systemd/system/probe.service": UNIT,
                "usr/lib/systemd/system/multi-user.target.d/10-probe.conf": UPHOLDS,
            }
            sysext = make_sysext(folder, "probe", "ID=_any\nEXTENSION_RELOAD_MANAGER=1\n", files=files)
            env = release_environment(stand_in) | {"FLATCAR_BAKE_CACHE_DIR": str(folder / "cache")}
            done = flatcar_bake("-v", name, "-o", folder, f"probe:{sysext}", env=env)
            assert done.returncode == 0, done.stderr
        return baked[name]

    return once


@pytest.mark.parametrize("name", MACHINES)
def test_the_final_file_boots_with_its_extensions(name: str, results: Callable[[str], Path], tmp_path: Path) -> None:
    vendor, machine = VENDORS[name], MACHINES[name]
    assert vendor.oem
    file = results(name) / vendor.result
    if file.suffix in (".ova", ".zip"):
        run(["tar", "-xf", file, "-C", tmp_path] if file.suffix == ".ova" else ["unzip", "-q", file, "-d", tmp_path])
        file = tmp_path / vendor.image
    before = file_sha256(file)
    shown = started(file, vendor.disk.format, machine, tmp_path)
    assert f"flatcar.oem.id={vendor.oem.id}" in shown
    merged = shown.partition("BAKED:")[2]
    assert "probe" in merged and f"oem-{vendor.oem.sysext}" in merged
    assert file_sha256(file) == before


def started(file: Path, disk_format: str, machine: Machine, folder: Path) -> str:
    """What a machine with this disk says on its serial port until it powers itself off."""
    console = folder / "console"
    firmware = []
    if machine.uefi:
        code = firmware_files(Arch.X86_64)
        firmware = ["-drive", f"if=pflash,format={code.code_format},readonly=on,file={code.code}"]
        firmware += ["-drive", f"if=pflash,format={code.vars_format},snapshot=on,file={code.vars}"]
    kind = "q35" if machine.uefi else "pc"
    argv = [
        "qemu-system-x86_64", "-machine", f"{kind},graphics=off", "-accel", "tcg,thread=multi", "-cpu", "max",
        "-smp", "2", "-m", "1024", "-nodefaults", "-display", "none", "-no-reboot", "-serial", f"file:{console}",
        *firmware, "-drive", f"if=none,id=disk,snapshot=on,format={disk_format},file={file}", *machine.devices,
    ]  # fmt: skip
    try:
        subprocess.run(argv, check=True, timeout=400, stdin=subprocess.DEVNULL)
    finally:
        said = console.read_text(errors="replace") if console.exists() else ""
        print(said[-3000:])
    return said
