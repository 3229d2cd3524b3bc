"""QEMU is started with exactly the intended arguments, and image formats and firmware are told rightly."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from baker.errors import EnvironmentFault, ImageError, UsageError
from baker.model import Arch
from baker.qemu import FirmwareFiles, Machine, choose_accelerator, firmware_files, image_format, qemu_argv, unpack
from baker.run import run

UEFI = FirmwareFiles(Path("/f/CODE.fd"), "raw", Path("/w/VARS.fd"), "raw")


def test_uefi_x86_64_by_emulation() -> None:
    machine = Machine(Arch.X86_64, "tcg", 2048, UEFI)
    assert qemu_argv(machine, Path("/images/disk.raw"), {"opt/org.flatcar-linux/config": Path("/w/c")}, []) == [
        "qemu-system-x86_64", "-machine", "q35,graphics=off", "-accel", "tcg,thread=multi", "-cpu", "max",
        "-smp", "2", "-m", "2048",
        "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-nic", "none",
        "-chardev", "stdio,id=console,signal=off", "-serial", "chardev:console",
        "-device", "virtio-rng-pci",
        "-drive", "if=pflash,unit=0,file=/f/CODE.fd,format=raw,readonly=on",
        "-drive", "if=pflash,unit=1,file=/w/VARS.fd,format=raw",
        "-drive", "if=none,id=disk,file=/images/disk.raw,format=raw,snapshot=on",
        "-device", "virtio-blk-pci,drive=disk,bootindex=1",
        "-fw_cfg", "name=opt/org.flatcar-linux/config,file=/w/c",
    ]  # fmt: skip


def test_bios_with_kvm_has_no_flash() -> None:
    argv = qemu_argv(Machine(Arch.X86_64, "kvm", 1024, None), Path("/disk.raw"), {}, [Path("/w/s0")])
    assert argv[3:7] == ["-accel", "kvm", "-cpu", "host"]
    assert not any("pflash" in word for word in argv)
    assert argv[-2:] == ["-smbios", "type=11,path=/w/s0"]


def test_arm64_machine() -> None:
    argv = qemu_argv(Machine(Arch.ARM64, "tcg", 2048, UEFI), Path("/disk.raw"), {}, [])
    assert argv[:7] == [
        "qemu-system-aarch64", "-machine", "virt", "-accel", "tcg,thread=multi", "-cpu", "max,pauth-impdef=on",
    ]  # fmt: skip


def test_network_only_when_asked_for() -> None:
    argv = qemu_argv(Machine(Arch.X86_64, "tcg", 2048, None, network=True), Path("/disk.raw"), {}, [])
    assert argv[argv.index("-nic") + 1] == "user,model=virtio-net-pci"


def test_commas_in_file_names_do_not_end_an_option() -> None:
    argv = qemu_argv(Machine(Arch.X86_64, "tcg", 2048, None), Path("/a,readonly=off/disk.raw"), {}, [])
    assert "if=none,id=disk,file=/a,,readonly=off/disk.raw,format=raw,snapshot=on" in argv


def test_accelerator_is_one_that_works() -> None:
    assert choose_accelerator(Arch.X86_64, "tcg") == "tcg"
    assert choose_accelerator(Arch.X86_64, "auto") in ("kvm", "tcg")


def test_kvm_of_another_architecture_is_refused() -> None:
    other = Arch.ARM64 if os.uname().machine == "x86_64" else Arch.X86_64
    assert choose_accelerator(other, "auto") == "tcg"
    with pytest.raises(EnvironmentFault, match="KVM cannot be used here: this machine is"):
        choose_accelerator(other, "kvm")


def _descriptor(folder: Path, name: str, code: Path, features: list[str], architecture: str = "x86_64") -> None:
    folder.mkdir(exist_ok=True)
    variables = code.with_name("VARS.fd")
    code.touch()
    variables.touch()
    data = {
        "interface-types": ["uefi"],
        "mapping": {
            "device": "flash",
            "executable": {"filename": str(code), "format": "raw"},
            "nvram-template": {"filename": str(variables), "format": "raw"},
        },
        "targets": [{"architecture": architecture, "machines": ["pc-q35-*"]}],
        "features": features,
    }
    (folder / name).write_text(json.dumps(data))


def test_firmware_comes_from_descriptors(tmp_path: Path) -> None:
    """The first by name that fits: no Secure Boot, this architecture, readable, existing; the earlier folder wins."""
    etc, usr = tmp_path / "etc", tmp_path / "usr"
    _descriptor(usr, "10-secure.json", tmp_path / "secure.fd", ["secure-boot", "requires-smm"])
    _descriptor(usr, "20-arm.json", tmp_path / "arm.fd", [], architecture="aarch64")
    (usr / "30-garbage.json").write_text('{"mapping": []')
    _descriptor(usr, "40-missing.json", tmp_path / "missing.fd", [])
    (tmp_path / "missing.fd").unlink()
    _descriptor(usr, "60-plain.json", tmp_path / "plain.fd", ["acpi-s3"])
    assert firmware_files(Arch.X86_64, [etc, usr]).code == tmp_path / "plain.fd"
    _descriptor(etc, "60-plain.json", tmp_path / "own.fd", [])
    assert firmware_files(Arch.X86_64, [etc, usr]).code == tmp_path / "own.fd"


def test_firmware_with_secure_boot_has_keys_in_it(tmp_path: Path) -> None:
    _descriptor(tmp_path, "10-plain.json", tmp_path / "plain.fd", [])
    _descriptor(tmp_path, "20-keyless.json", tmp_path / "keyless.fd", ["secure-boot", "requires-smm"])
    with pytest.raises(EnvironmentFault, match="no UEFI firmware with Secure Boot"):
        firmware_files(Arch.X86_64, [tmp_path], secure=True)
    _descriptor(tmp_path, "30-keys.json", tmp_path / "keys.fd", ["secure-boot", "requires-smm", "enrolled-keys"])
    assert firmware_files(Arch.X86_64, [tmp_path], secure=True).code == tmp_path / "keys.fd"


def test_missing_firmware_names_the_package(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentFault) as caught:
        firmware_files(Arch.ARM64, [tmp_path])
    assert caught.value.hint is not None and "qemu-efi-aarch64" in caught.value.hint


@pytest.mark.parametrize(
    ("format", "options"),
    [("raw", ""), ("qcow2", ""), ("vmdk", ""), ("vhdx", ""), ("vpc", "subformat=fixed"), ("vpc", "subformat=dynamic")],
)
def test_formats_are_told_and_unpacked(tmp_path: Path, format: str, options: str) -> None:
    """A fixed VHD is known by its footer alone."""
    raw, image, back = tmp_path / "disk.raw", tmp_path / "disk.img", tmp_path / "back.raw"
    raw.write_bytes(os.urandom(4096) + bytes((4 << 20) - 4096))
    run(["qemu-img", "convert", "-f", "raw", "-O", format, *(["-o", options] if options else []), raw, image])
    assert image_format(image) == format
    unpack(image, format, back)
    assert back.read_bytes()[: 4 << 20] == raw.read_bytes()


def test_unusable_image_files(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"Cannot read the image .*none: No such file"):
        image_format(tmp_path / "none")
    (tmp_path / "x.img.bz2").write_bytes(b"BZh91AY")
    with pytest.raises(UsageError, match=r"x\.img\.bz2 is compressed with bzip2"):
        image_format(tmp_path / "x.img.bz2")


@pytest.mark.parametrize("format", ["qcow2", "vmdk"])
def test_damaged_images_are_refused(tmp_path: Path, format: str) -> None:
    raw, image = tmp_path / "disk.raw", tmp_path / "disk.img"
    raw.write_bytes(os.urandom(1 << 20))
    run(["qemu-img", "convert", "-f", "raw", "-O", format, raw, image])
    os.truncate(image, 300_000)
    with pytest.raises(ImageError, match=r"disk\.img"):
        unpack(image, format, tmp_path / "back.raw")
