"""Images really boot in QEMU, and what is right or wrong with them is found out, quickly and without touching them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from io import StringIO
from pathlib import Path

import pytest
from cli import flatcar_bake
from disks import make_disk
from processes import mentions

from baker.boot import BootRequest, boot_image
from baker.console import Console, PlainConsole
from baker.decompress import LARGEST_IMAGE, open_decoder
from baker.disk import read_table
from baker.errors import UsageError
from baker.model import Injection
from baker.offline import OfflineEditor
from baker.qemu import unpack
from baker.run import run
from baker.sparse import content_digest, file_sha256, punch

BUILT_IN = {"containerd-flatcar", "docker-flatcar"}
FAILING_UNIT = b"[Service]\nExecStart=/usr/bin/bash -c 'echo it broke >&2; exit 4'\n"


def published(release: Path) -> Path:
    return release / "stable/amd64-usr/current/flatcar_production_qemu_uefi_image.img"


@pytest.mark.boot
def test_a_published_image_under_uefi_and_bios(stand_in: Path, tmp_path: Path) -> None:
    """Through the command line, with expectations that hold and some that do not."""
    image = published(stand_in)
    before = file_sha256(image)
    done = flatcar_bake(
        "boot", image, "--firmware", "both", "--json", "--junit", tmp_path / "boot.xml", "--console", tmp_path / "log",
        "--expect-sysext", "docker-flatcar", "--expect-sysext", "absent",
        "--run", "grep -c flatcar.oem.id=qemu /proc/cmdline", "--run", "echo no >&2; exit 3",
    )  # fmt: skip
    assert done.returncode == 7, done.stderr
    assert "error: uefi: The sysext absent is not merged (systemd does not see an image of that name)" in done.stderr
    boots = json.loads(done.stdout)["boots"]
    assert [(boot["firmware"], boot["booted"]) for boot in boots] == [("uefi", True), ("bios", True)]
    for boot in boots:
        assert boot["way"] == "ignition" and boot["changes"] == [] and boot["failed_units"] == []
        assert set(boot["sysexts"]) == BUILT_IN | {"oem-qemu"}
        assert [command["status"] for command in boot["commands"]] == [0, 3]
        assert [check["name"] for check in boot["checks"] if check["failure"]] == [
            "sysext absent is merged", "command: echo no >&2; exit 3",
        ]  # fmt: skip
    assert (tmp_path / "boot.xml").read_text().count("<failure") == 4
    assert b"Linux version" in (tmp_path / "log").read_bytes()
    assert file_sha256(image) == before


@pytest.mark.boot
def test_a_generic_image_boots_as_an_edited_copy(stand_in: Path, tmp_path: Path) -> None:
    """Ignition would ask no platform for a config there; the image is read-only and stays as it is."""
    image = tmp_path / "generic.bin"
    compressed = published(stand_in).with_name("flatcar_production_image.bin.bz2")
    with image.open("wb") as file, open_decoder(compressed.name, file.fileno(), compressed, LARGEST_IMAGE) as decoder:
        decoder.write(compressed.read_bytes())
        decoder.finish()
    before = content_digest(image)
    image.chmod(0o444)
    (report,) = boot_image(BootRequest(image, expect_sysexts=("docker-flatcar",)), Console())
    assert report.problems == ()
    assert report.changes == ("flatcar-bake-check.service added to ROOT", "platform none set to qemu")
    assert set(report.sysexts) == BUILT_IN
    assert content_digest(image) == before


@pytest.mark.boot
def test_an_image_that_has_booted_before_with_a_failing_unit_and_a_foreign_sysext(
    stand_in: Path, tmp_path: Path
) -> None:
    """No first boot, so no Ignition: the check is in the copy. What is wrong inside is named."""
    image = tmp_path / "used.raw"
    unpack(published(stand_in), "qcow2", image)
    esp = f"{image}@@{read_table(image).get('EFI-SYSTEM').offset}"
    run(["mdel", "-i", esp, "::/flatcar/first_boot"])
    hello = next((stand_in / "extensions").glob("hello-*-x86-64.raw"))
    wants = "/etc/systemd/system/multi-user.target.wants/broken.service"
    with OfflineEditor(image, tmp_path, 0) as editor:
        editor.apply("ROOT", [
            Injection("/etc/systemd/system/broken.service", content=FAILING_UNIT),
            Injection(wants, symlink="/etc/systemd/system/broken.service"),
            Injection("/etc/extensions/hello.raw", source=hello),
            Injection("/etc/extensions/foreign.raw", source=_foreign_sysext(tmp_path)),
        ])  # fmt: skip
    request = BootRequest(image, expect_sysexts=("hello", "foreign"), commands=("systemctl is-active hello",))
    (report,) = boot_image(request, Console())
    assert report.booted and report.way == "edited copy"
    assert report.changes == ("flatcar-bake-check.service added to ROOT",)
    assert {*BUILT_IN, "hello"} <= set(report.sysexts)
    assert report.failed_units == ("broken.service",)
    assert [check.name for check in report.checks if check.failure] == ["sysext foreign is merged", "no unit failed"]
    assert "did not take it" in report.problems[0] and "it broke" in report.problems[1]


def _foreign_sysext(folder: Path) -> Path:
    """A sysext for another architecture, which systemd skips without a word."""
    release = folder / "foreign/usr/lib/extension-release.d/extension-release.foreign"
    release.parent.mkdir(parents=True)
    release.write_text("ID=_any\nARCHITECTURE=arm64\n")
    run(["mksquashfs", folder / "foreign", folder / "foreign.raw", "-quiet", "-no-progress"])
    return folder / "foreign.raw"


@pytest.mark.boot
def test_a_broken_boot_partition_fails_at_once(tmp_path: Path) -> None:
    """Long before the timeout, and with what the firmware complained of.

    ROOT does not take the check either, which is a warning: systemd may still get it as a credential.
    """
    image = make_disk(tmp_path / "broken.raw", root_files={"/etc/systemd/system": "/nowhere"})
    partition = read_table(image).get("EFI-SYSTEM")
    with image.open("r+b") as file:
        punch(file.fileno(), partition.offset, partition.size)
    said = StringIO()
    (report,) = boot_image(BootRequest(image, timeout=240), PlainConsole(said))
    assert "warning: /etc/systemd/system, the parent of" in said.getvalue() and report.changes == ()
    assert not report.booted and report.seconds < 60
    assert report.problems[0].startswith("The firmware found nothing to boot: BdsDxe: failed to load Boot0001")
    assert report.last_lines


@pytest.mark.boot
def test_an_interrupted_boot_leaves_nothing_behind(tmp_path: Path) -> None:
    image, folder = make_disk(tmp_path / "disk.raw"), tmp_path / "tmp"
    folder.mkdir()
    command = [sys.executable, "-m", "baker", "boot", image, "--accel", "tcg", "--progress", "plain"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, env=os.environ | {"TMPDIR": str(folder)}) as process:
        assert process.stderr is not None
        while b"firmware after" not in (line := process.stderr.readline()):
            assert line
        assert any("qemu-system" in words for words in mentions(str(folder)))
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130
    assert mentions(str(folder)) == []
    assert list(folder.iterdir()) == []


def test_impossible_requests_are_refused_before_booting(tmp_path: Path) -> None:
    image = tmp_path / "no-disk.img"
    image.write_bytes(bytes(1 << 20))
    refused = flatcar_bake("boot", image)
    assert refused.returncode == 6 and "no-disk.img" in refused.stderr
    refused = flatcar_bake("boot", image, "--junit", tmp_path / "none/boot.xml")
    assert refused.returncode == 2 and "Cannot write" in refused.stderr
    with pytest.raises(UsageError, match="8 KiB"):
        boot_image(BootRequest(image, commands=("x" * 10_000,)), Console())
    assert os.listdir(tmp_path) == ["no-disk.img"]
