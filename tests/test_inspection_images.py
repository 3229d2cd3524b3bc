"""`inspect` finds in an image what was baked into it, says what is wrong with it, and changes nothing."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
from disks import DISK_GUID, make_disk, offset
from sysexts import make_sysext

from baker.disk import read_table
from baker.errors import ImageError
from baker.inspection import BakedSysext, Inspection, inspect_image, read_os_release, render
from baker.sparse import content_digest, copy_extents

VERSION = "4593.2.0"
OS_RELEASE = f'NAME="Flatcar Container Linux"\nID=flatcar\nVERSION_ID={VERSION}\nFLATCAR_BOARD="amd64-usr"\n'
CONFIG = (
    "[Source]\nType=url-file\nPath=https://example.org/{0}\nMatchPattern={0}-@v-%a.raw\n"
    "[Target]\nPath=/opt/extensions/{0}\nCurrentSymlink=/etc/extensions/{0}.raw\n"
)
TIMER = "/etc/systemd/system/timers.target.wants/systemd-sysupdate.timer"


def put_usr(disk: Path, layout: str = "old", fs: str = "btrfs", os_release: str | None = OS_RELEASE) -> None:
    """Give the disk's USR-A a filesystem with an os-release and some company."""
    folder, image = disk.with_name("usr.tree"), disk.with_name("usr.img")
    (folder / "lib/systemd").mkdir(parents=True)
    (folder / "lib/systemd/systemd").write_bytes(os.urandom(200_000))
    if os_release is not None:
        (folder / "lib/os-release").write_text(os_release)
    with image.open("xb") as file:
        file.truncate(256 << 20)
    command = ["mkfs.btrfs", "-q", "--rootdir"] if fs == "btrfs" else ["mke2fs", "-q", "-t", fs, "-d"]
    subprocess.run([*command, folder, image], check=True, capture_output=True)
    with image.open("rb") as source, disk.open("r+b") as target:
        copy_extents(source.fileno(), target.fileno(), 0, offset(layout, "USR-A"), 256 << 20)


def sysexts_of(found: Inspection) -> dict[str, BakedSysext]:
    return {entry.name: entry for entry in found.sysexts}


@pytest.fixture(scope="module")
def baked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A disk with sysexts in every state."""
    folder = tmp_path_factory.mktemp("baked")
    good = make_sysext(folder, "good").read_bytes()
    tied = make_sysext(folder, "tied", "ID=flatcar\nVERSION_ID=1.2.3\nARCHITECTURE=x86-64\n", fs="erofs").read_bytes()
    disk = make_disk(
        folder / "disk.bin",
        root_files={
            "/opt/extensions/good/good-1.2-x86-64.raw": good,
            "/etc/extensions/good.raw": "/opt/extensions/good/good-1.2-x86-64.raw",
            "/etc/extensions/plain.raw": good,
            "/etc/extensions/relative.raw": "../../opt/extensions/chain.raw",
            "/opt/extensions/chain.raw": "good/good-1.2-x86-64.raw",
            "/etc/extensions/tied.raw": "/oem/sysext/tied.raw",
            "/etc/extensions/old-oem.raw": "/usr/share/oem/sysext/tied.raw",
            "/etc/extensions/gone.raw": "/opt/extensions/gone.raw",
            "/etc/extensions/loop.raw": "loop.raw",
            "/etc/extensions/junk.raw": b"<html>404</html>",
            "/etc/extensions/folder": None,
            "/etc/extensions/docker-flatcar.raw": "/dev/null",
            "/etc/extensions/containerd-flatcar.raw": "/usr/share/flatcar/sysext/containerd-flatcar.raw",
            "/etc/sysupdate.good.d/good.conf": CONFIG.format("good").encode(),
            "/etc/sysupdate.other.d/other-1.30.conf": CONFIG.format("other").encode(),
            "/etc/sysupdate.bad.d/bad.conf": b"[Bad]\n",
            TIMER: "/usr/lib/systemd/system/systemd-sysupdate.timer",
        },
        oem_files={
            "/sysext/tied.raw": tied,
            "/oem-release": b"ID=qemu\nVERSION_ID=4593.2.0\n",
        },
    )
    put_usr(disk)
    return disk


@pytest.fixture(scope="module")
def found(baked: Path, tmp_path_factory: pytest.TempPathFactory) -> Inspection:
    before = content_digest(baked)
    work = tmp_path_factory.mktemp("work")
    inspection = inspect_image(baked, work)
    assert content_digest(baked) == before
    assert list(work.iterdir()) == []
    return inspection


def test_the_disk_is_described(found: Inspection) -> None:
    assert (found.format, found.size, found.disk_guid) == ("raw", 4756340736, DISK_GUID)
    assert (found.generation, found.layout) == ("old", "base")
    assert [part.label for part in found.partitions][-1] == "ROOT"
    assert found.release["VERSION_ID"] == VERSION
    assert found.first_boot is True
    assert found.oem == "qemu"
    assert set(found.oem_files) == {"/grub.cfg", "/oem-release", "/sysext/tied.raw"}
    assert found.free["ROOT"] > 1 << 30
    assert 0 < found.free["OEM"] < 128 << 20


def test_every_sysext_is_followed_to_where_it_is(found: Inspection) -> None:
    states = {name: (entry.state, entry.partition, entry.path) for name, entry in sysexts_of(found).items()}
    assert states == {
        "good": ("baked", "ROOT", "/opt/extensions/good/good-1.2-x86-64.raw"),
        "plain": ("baked", "ROOT", "/etc/extensions/plain.raw"),
        "relative": ("baked", "ROOT", "/opt/extensions/good/good-1.2-x86-64.raw"),
        "tied": ("baked", "OEM", "/sysext/tied.raw"),
        "old-oem": ("baked", "OEM", "/sysext/tied.raw"),
        "gone": ("missing", "ROOT", "/opt/extensions/gone.raw"),
        "loop": ("missing", "ROOT", "/etc/extensions/loop.raw"),
        "junk": ("baked", "ROOT", "/etc/extensions/junk.raw"),
        "folder": ("baked", "ROOT", "/etc/extensions/folder"),
        "docker-flatcar": ("off", "", "/dev/null"),
        "containerd-flatcar": ("built-in", "USR", "/usr/share/flatcar/sysext/containerd-flatcar.raw"),
    }


def test_what_a_sysext_says_is_shown_and_judged(found: Inspection) -> None:
    sysexts = sysexts_of(found)
    assert (sysexts["good"].fs, sysexts["good"].os_id, sysexts["good"].sysext_level) == ("squashfs", "flatcar", "1.0")
    assert sysexts["good"].findings == ()
    assert (sysexts["tied"].fs, sysexts["tied"].version_id) == ("erofs", "1.2.3")
    assert any("for release 1.2.3 only" in finding for finding in sysexts["tied"].findings)
    assert any("calls itself 'good'" in finding for finding in sysexts["plain"].findings)
    assert "is not a sysext: it is an HTML page" in sysexts["junk"].findings[0]
    assert "which is not there" in sysexts["gone"].findings[0]


def test_updates_are_found(found: Inspection) -> None:
    components = {item.name: item for item in found.components}
    assert components["good"].version == "1.2"
    assert components["good"].source == "https://example.org/good"
    assert components["good"].configs == ("/etc/sysupdate.good.d/good.conf",)
    assert components["other"].version == ""
    assert found.updates
    assert [problem for problem in found.problems if "bad.conf" in problem and "unknown section" in problem]


def test_it_is_plain_json(found: Inspection) -> None:
    again = json.loads(json.dumps(found.as_dict()))
    assert again["release"]["VERSION_ID"] == VERSION
    assert {entry["name"] for entry in again["sysexts"]} == set(sysexts_of(found))


def test_the_text_shows_it_all(found: Inspection) -> None:
    text = render(found)
    for part in (VERSION, "amd64-usr", "layout base, old generation", "Ignition will run", "qemu", "/sysext/tied.raw",
                 "docker-flatcar: switched off", "containerd-flatcar: built in", "good 1.2, from https://example.org",
                 "systemd-sysupdate.timer", "SYSEXT_LEVEL=1.0", "problem "):  # fmt: skip
        assert part in text, part


def test_a_qcow2_gives_the_same(baked: Path, found: Inspection, tmp_path: Path) -> None:
    image = tmp_path / "disk.img"
    subprocess.run(["qemu-img", "convert", "-O", "qcow2", baked, image], check=True)
    other = inspect_image(image, tmp_path)
    assert other.format == "qcow2"
    assert (other.partitions, other.sysexts, other.size) == (found.partitions, found.sysexts, found.size)


def test_a_bare_image_has_nothing_and_problems_are_named(tmp_path: Path) -> None:
    disk = make_disk(tmp_path / "disk.bin", "new")
    esp = f"{disk}@@{offset('new', 'EFI-SYSTEM')}"
    subprocess.run(
        ["mdel", "-i", esp, "::/flatcar/first_boot"], check=True, env={**os.environ, "MTOOLS_SKIP_CHECK": "1"}
    )
    found = inspect_image(disk, tmp_path)
    assert (found.generation, found.layout, found.first_boot) == ("new", "base", False)
    assert (found.sysexts, found.components, found.updates) == ((), (), False)
    assert found.problems == ("USR-A holds no known filesystem, not Flatcar's /usr.",)
    assert "sysexts     none" in render(found)


def test_a_damaged_root_leaves_the_rest_readable(tmp_path: Path) -> None:
    disk = make_disk(tmp_path / "disk.bin", oem_files={"/oem-release": b"ID=azure\n"})
    with disk.open("r+b") as file:
        file.seek(offset("old", "ROOT") + 1024)
        file.write(bytes(4096))
    found = inspect_image(disk, tmp_path)
    assert found.oem == "azure"
    assert any(problem.startswith("ROOT") for problem in found.problems)


def test_names_from_an_image_cannot_write_to_the_terminal(tmp_path: Path) -> None:
    disk = make_disk(tmp_path / "disk.bin", root_files={"/etc/extensions/\x1b[2Jx.raw": "/nowhere"})
    assert "\x1b" not in render(inspect_image(disk, tmp_path))


def test_what_is_no_disk_is_refused(tmp_path: Path) -> None:
    (tmp_path / "noise.bin").write_bytes(os.urandom(1 << 20))
    with pytest.raises(ImageError):
        inspect_image(tmp_path / "noise.bin", tmp_path)


@pytest.mark.parametrize("fs", ["btrfs", "ext2"])
def test_the_release_is_read_from_either_filesystem(tmp_path: Path, fs: str) -> None:
    disk = make_disk(tmp_path / "disk.bin")
    put_usr(disk, fs=fs)
    assert read_os_release(disk, read_table(disk).get("USR-A"), tmp_path)["VERSION_ID"] == VERSION


@pytest.mark.parametrize("fs", ["btrfs", "ext2"])
def test_a_usr_without_os_release_is_refused(tmp_path: Path, fs: str) -> None:
    disk = make_disk(tmp_path / "disk.bin")
    put_usr(disk, fs=fs, os_release=None)
    with pytest.raises(ImageError, match="no lib/os-release"):
        read_os_release(disk, read_table(disk).get("USR-A"), tmp_path)


def test_a_damaged_usr_is_refused(tmp_path: Path) -> None:
    disk = make_disk(tmp_path / "disk.bin")
    put_usr(disk)
    with disk.open("r+b") as file:
        file.seek(offset("old", "USR-A") + (64 << 10) + 4096)
        file.write(os.urandom(64 << 20))
    with pytest.raises(ImageError):
        read_os_release(disk, read_table(disk).get("USR-A"), tmp_path)
