"""Machines without a disk really start: over a network that boots them, and from an ISO in every way there is."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from consoles import Terminal, machine
from diskless import Baked, bake
from networks import Lab, lab

from baker.run import need

pytestmark = pytest.mark.boot
MEMORY = "1024"


@pytest.fixture(scope="module")
def by_oem(stand_in: Path, tmp_path_factory: pytest.TempPathFactory) -> Baked:
    """The old generation, extensions in a second cpio, with a user's Ignition config beside them."""
    work = tmp_path_factory.mktemp("oem")
    file = {"path": "/etc/user", "contents": {"source": "data:,the%20user's"}}
    link = {"path": "/etc/extensions/docker-flatcar.raw", "target": "/dev/null", "overwrite": True}
    config = {"ignition": {"version": "3.3.0"}, "storage": {"files": [file], "links": [link]}}
    (work / "user.ign").write_text(json.dumps(config))
    return bake(stand_in, work, "--pxe-split", "--ignition", work / "user.ign", "--kernel-arg", "flatcar.autologin")


@pytest.fixture(scope="module")
def by_usr(stand_in_new: Path, tmp_path_factory: pytest.TempPathFactory) -> Baked:
    """The new generation, extensions in /usr."""
    words = ("--pxe-route", "usr", "--disable-builtin", "docker", "--kernel-arg", "flatcar.autologin")
    return bake(stand_in_new, tmp_path_factory.mktemp("usr"), *words)


def check(terminal: Terminal, route: str) -> None:
    """Log in on the serial console and see that every sysext is merged and runs."""
    terminal.wait(b"automatic login")
    terminal.wait(b"# ")
    assert "running" in terminal.run("systemctl is-system-running --wait").splitlines()
    assert "root-is-tmpfs" in terminal.run("echo root-is-$(findmnt -no FSTYPE /)")
    status = terminal.run("systemd-sysext status --no-pager --no-legend")
    for name in ("wasmtime", "hello", "containerd-flatcar"):
        assert name in status, f"{name} is not merged"
    assert "docker-flatcar" not in status, "the built-in docker is not off"
    assert "wasmtime 49.0" in terminal.run("wasmtime --version")
    assert "hello from a sysext" in terminal.run("hello")
    assert "active" in terminal.run("systemctl is-active hello.service").splitlines()
    link = terminal.run("readlink /etc/extensions/wasmtime.raw")
    if route == "oem":
        assert "/oem/sysext/wasmtime-" in link
        assert "the user's" in terminal.run("cat /etc/user"), "the user's Ignition config was lost"
    else:
        assert "/usr/share/flatcar/sysext/wasmtime.raw" in link


@pytest.mark.parametrize(
    ("firmware", "medium", "route"),
    [("bios", "cd", "oem"), ("uefi", "disk", "oem"), ("bios", "disk", "usr"), ("uefi", "cd", "usr")],
)
def test_the_iso_boots(firmware: str, medium: str, route: str, by_oem: Baked, by_usr: Baked) -> None:
    script = (by_oem if route == "oem" else by_usr).folder / "flatcar_production_iso.sh"
    options = {"uefi": ["-u"], "disk": ["-d"]}
    with machine(
        [script, "-t", "-m", MEMORY, "-p", "0", *options.get(firmware, ()), *options.get(medium, ())]
    ) as terminal:
        check(terminal, route)


@contextmanager
def served(net: Lab, baked: Baked, *words: str) -> Iterator[list[str]]:
    """`flatcar-bake pxe serve` in the lab, ready; yields what it says on stderr, complete at the end."""
    argv = net.inside(sys.executable, "-m", "baker", "pxe", "serve", baked.folder, "--interface", "br0", *words)
    said: list[str] = []
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            assert server.stdout.readline() == "http://192.0.2.1:8080/flatcar_production_pxe.ipxe\n"
            yield said
        finally:
            server.terminate()
            said += server.communicate()[1].splitlines()
    assert server.returncode == 143


def networked(net: Lab, *words: str) -> list[str | Path]:
    """A machine of the lab without any disk."""
    return net.inside(
        need("qemu-system-x86_64"), "-machine", "q35,graphics=off", "-accel", "tcg,thread=multi", "-cpu", "max",
        "-smp", "2", "-m", MEMORY, "-display", "none", "-nodefaults", "-no-reboot", "-serial", "stdio",
        "-netdev", "tap,id=net,ifname=tap0,script=no,downscript=no", *words,
    )  # fmt: skip


def test_a_bios_machine_boots_in_a_network_without_a_dhcp_server(by_usr: Baked, tmp_path: Path) -> None:
    """QEMU's network card has iPXE in its ROM. What comes after the initrd has begun, the ISOs show."""
    with lab(tmp_path, router=False) as net, served(net, by_usr, "--dhcp", "192.0.2.10,192.0.2.20") as said:
        words = networked(net, "-device", "virtio-net-pci,netdev=net,bootindex=1")
        with machine(words) as terminal:
            terminal.wait(b"Run /init as init process")
    assert any("fetches flatcar_production_pxe_image.cpio.gz" in line for line in said)


def test_a_uefi_machine_boots_beside_the_networks_own_dhcp_server(by_oem: Baked, tmp_path: Path) -> None:
    """OVMF gets an address from the router and iPXE by TFTP from us; iPXE loads kernel and both cpios by HTTP."""
    firmware = "if=pflash,unit=0,format=raw,readonly=on,file=/usr/share/OVMF/OVMF_CODE_4M.fd"
    with lab(tmp_path) as net, served(net, by_oem) as said:
        words = networked(net, "-drive", firmware, "-device", "virtio-net-pci,netdev=net,bootindex=1,romfile=")
        with machine(words) as terminal:
            check(terminal, "oem")
    assert any("fetches flatcar_production_pxe_oem.cpio.gz" in line for line in said)
    assert any("sent" in line and "snponly.efi" in line for line in said), "OVMF did not get iPXE from us"
