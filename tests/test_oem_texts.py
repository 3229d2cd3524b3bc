"""What goes into the OEM partition: texts as they are written, and arguments that GRUB hands on unchanged."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from baker.errors import UsageError
from baker.model import Arch
from baker.oem import oem_grub_cfg, oem_injections, oem_release, with_kernel_args
from baker.vendor import Oem
from baker.vendor_files import load_vendors

X, A = Arch.X86_64, Arch.ARM64
FIRST_LINE = "# Written by flatcar-bake; read by GRUB at every boot.\n"
SERIAL = "serial --unit=0 --speed=115200 --word=8 --parity=no\nterminal_input serial\nterminal_output serial\n"

# Everything but the first line, of all vendors that say more than their id.
GRUB = {
    ("ami", X): """\
set oem_id="ec2"
set linux_append="modprobe.blacklist=xen_fbfront net.ifnames=0 nvme_core.io_timeout=4294967295"
if [ "$grub_platform" = pc ]; then
    set linux_console="console=ttyS0,115200n8"
    serial --unit=0 --speed=115200 --word=8 --parity=no
    terminal_input serial
    terminal_output serial
fi
""",
    ("ami", A): """\
set oem_id="ec2"
set linux_append="modprobe.blacklist=xen_fbfront net.ifnames=0 nvme_core.io_timeout=4294967295"
set linux_console="console=tty1 console=ttyS0,115200n8 earlycon"
""",
    ("azure", X): """\
set oem_id="azure"
set linux_append="flatcar.autologin"
set linux_console="console=tty1 console=ttyS0,115200n8 earlyprintk=ttyS0,115200"
""" + SERIAL,
    ("azure", A): """\
set oem_id="azure"
set linux_append="flatcar.autologin"
set linux_console="console=tty1 console=ttyAMA0,115200n8 earlycon=pl011,0xeffec000"
""" + SERIAL,
    ("gce", X): """\
set oem_id="gce"
set linux_console="console=ttyS0,115200n8"
""" + SERIAL,
    ("openstack", X): 'set oem_id="openstack"\nset linux_append="flatcar.autologin"\n',
    ("packet", X): """\
set oem_id="packet"
set linux_append="flatcar.autologin"
set linux_console="console=tty0 console=ttyS1,115200n8"
if [ "$grub_cpu" = i386 -o "$grub_cpu" = x86_64 ]; then
    set gfxpayload="1024x768x8,1024x768"
fi
""",
    ("packet", A): """\
set oem_id="packet"
set linux_append="flatcar.autologin"
if [ "$grub_cpu" = i386 -o "$grub_cpu" = x86_64 ]; then
    set gfxpayload="1024x768x8,1024x768"
fi
""",
    ("proxmoxve", X): 'set oem_id="proxmoxve"\nset linux_append="flatcar.autologin"\n',
    ("qemu", X): 'set oem_id="qemu"\nset linux_append="flatcar.autologin"\n',
    ("scaleway", X): """\
set oem_id="scaleway"
set linux_console="console=ttyS0,115200n8 earlycon=ttyS0,115200"
""",
    ("vmware", X): 'set oem_id="vmware"\nset linux_append="flatcar.autologin"\n',
}  # fmt: skip
GRUB |= {(name, A): GRUB[name, X] for name in ("openstack", "proxmoxve", "scaleway")}
GRUB |= {("ami_vmdk", arch): GRUB["ami", arch] for arch in (X, A)}
GRUB |= {("openstack_mini", arch): GRUB["openstack", X] for arch in (X, A)}
GRUB |= {(name, arch): GRUB["qemu", X] for name, arch in (("qemu_uefi", X), ("qemu_uefi", A), ("qemu_uefi_secure", X))}
GRUB |= {(name, X): GRUB["vmware", X] for name in ("vmware_ova", "vmware_raw")}


def with_oem() -> Iterator[tuple[str, Oem, Arch]]:
    """Every vendor's name and OEM content, for each of its architectures."""
    for vendor in load_vendors().values():
        if vendor.oem:
            yield from ((vendor.name, vendor.oem, arch) for arch in vendor.arches)


def accepted_by_grub(text: bytes, folder: Path) -> bool:
    """Whether GRUB's own parser takes it."""
    (folder / "grub.cfg").write_bytes(text)
    return subprocess.run(["grub-script-check", folder / "grub.cfg"], capture_output=True).returncode == 0


def test_every_grub_cfg_is_what_is_written_down_here() -> None:
    made = {(name, arch): oem_grub_cfg(oem, arch).decode() for name, oem, arch in with_oem()}
    plain = {(name, arch): f'set oem_id="{oem.id}"\n' for name, oem, arch in with_oem()}
    assert made == {key: FIRST_LINE + text for key, text in (plain | GRUB).items()}


def test_grub_accepts_every_grub_cfg(tmp_path: Path) -> None:
    texts = {oem_grub_cfg(oem, arch) for _, oem, arch in with_oem()}
    assert len(texts) > 20
    for text in texts:
        assert accepted_by_grub(text, tmp_path), text.decode()
        assert accepted_by_grub(with_kernel_args(text, ["quiet", "a=b,c"]), tmp_path)


def test_oem_release_names_what_the_initrd_looks_for() -> None:
    vendors = load_vendors()
    texts = {
        "stackit": "ID=stackit\nVERSION_ID=4593.2.5\nNAME=oem-stackit\n",
        "ami": "ID=ami\nVERSION_ID=4593.2.5\nNAME=oem-ami\n",
        "vmware_insecure": "ID=vagrant\nVERSION_ID=4593.2.5\nNAME=oem-vagrant\n",
    }
    for name, text in texts.items():
        oem = vendors[name].oem
        assert oem is not None
        assert oem_release(oem, "4593.2.5") == text.encode()


def test_a_sysext_comes_with_its_flag_and_under_its_full_version(tmp_path: Path) -> None:
    oem = load_vendors()["ami"].oem
    assert oem is not None
    paths = [item.path for item in oem_injections(oem, tmp_path / "oem-ami.raw", "4593.2.5", X)]
    assert paths == ["/sysext/oem-ami-4593.2.5.raw", "/sysext/active-oem-ami", "/oem-release", "/grub.cfg"]


def test_without_a_sysext_there_is_no_flag_that_would_ask_for_one() -> None:
    oem = load_vendors()["vmware_insecure"].oem
    assert oem is not None
    items = {item.path: item.content for item in oem_injections(oem, None, "4593.2.5", X)}
    assert items.keys() == {"/oem-release", "/grub.cfg", "/base/base.ign"}
    config = json.loads(items["/base/base.ign"] or b"")
    (key,) = config["passwd"]["users"][0]["sshAuthorizedKeys"]
    assert key.startswith("ssh-rsa ") and key.endswith(" vagrant insecure public key")
    assert subprocess.run(["ignition-validate", "-"], input=items["/base/base.ign"]).returncode == 0


def test_kernel_arguments_are_appended_once() -> None:
    grub_cfg = b'set oem_id="qemu"\nset linux_append="flatcar.autologin"'
    first = with_kernel_args(grub_cfg, ["console=ttyS1,115200n8", "quiet"])
    assert first == grub_cfg + b'\nset linux_append="$linux_append console=ttyS1,115200n8 quiet"\n'
    assert with_kernel_args(first, ["quiet"]) == first
    assert with_kernel_args(first, ["debug", "quiet"]) == first + b'set linux_append="$linux_append debug"\n'
    assert with_kernel_args(grub_cfg, []) == grub_cfg
    assert with_kernel_args(b"", ["quiet"]) == b'set linux_append="$linux_append quiet"\n'


@pytest.mark.parametrize(
    "word", ["", "a b", "a\nb", 'a="b"', "it's", "$root", "a\\b", "`reboot`", "é", "a\0", "a\tb", "a\x7f", "a\u2028b"]
)
def test_an_argument_that_grub_would_change_is_refused(word: str) -> None:
    with pytest.raises(UsageError, match="cannot be a kernel argument"):
        with_kernel_args(b"", [word])


def test_every_other_printable_character_can_be_in_an_argument(tmp_path: Path) -> None:
    word = "".join(chr(code) for code in range(0x21, 0x7F) if chr(code) not in "\"'$\\`")
    assert word.encode() in (text := with_kernel_args(b"", [word]))
    assert accepted_by_grub(text, tmp_path)
