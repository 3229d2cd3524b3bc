"""The stand-in release server has the files, signatures, feed and bakery of Flatcar's; several releases add up."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from baker.run import run

MAKE_RELEASE = Path(__file__).resolve().parent.parent / "scripts/make-release"
VARIABLES = (
    "FLATCAR_BAKE_MIRROR", "FLATCAR_BAKE_BAKERY", "FLATCAR_BAKE_SIGNING_KEY", "FLATCAR_BAKE_FINGERPRINT",
)  # fmt: skip


def make_release(folder: Path, *options: str) -> None:
    """Run the script as a user does."""
    subprocess.run([sys.executable, MAKE_RELEASE, folder, *options], check=True, capture_output=True, text=True)


def read_env(root: Path) -> dict[str, str]:
    """The variables that a POSIX shell gets from DIR/env."""
    script = 'set -a; . "$1"/env; env -0'
    output = subprocess.run(
        ["sh", "-c", script, "sh", root], check=True, capture_output=True, env={"PATH": os.defpath}
    )
    variables = dict(line.split("=", 1) for line in output.stdout.decode().split("\0") if line)
    return {name: value for name, value in variables.items() if name.startswith("FLATCAR_BAKE_")}


def gpg(home: Path, *arguments: str | Path) -> str:
    """Run gpg on an own key ring; returns its status lines."""
    words = ["gpg", "--homedir", home, "--batch", "--quiet", "--status-fd", "1", *arguments]
    return run(words).text


@pytest.fixture
def copied(stand_in_arm64: Path, tmp_path: Path) -> Path:
    """A copy of the (small) arm64 server to change, at a path that shells stumble over."""
    root = tmp_path / "it's a $HOME & more"
    shutil.copytree(stand_in_arm64, root, symlinks=True)
    return root


@pytest.mark.parametrize("fixture", ["stand_in", "stand_in_new", "stand_in_arm64"])
def test_every_file_is_signed_by_a_subkey_of_the_published_key(
    fixture: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    root: Path = request.getfixturevalue(fixture)
    env = read_env(root)
    home = tmp_path / "gpg"
    home.mkdir(mode=0o700)
    gpg(home, "--import", Path(env["FLATCAR_BAKE_SIGNING_KEY"]))
    folder = next(root.glob("stable/*/current"))
    published = [path for path in folder.iterdir() if not path.name.startswith(".") and path.suffix != ".sig"]
    assert len(published) > 15
    for path in published:
        status = gpg(home, "--verify", Path(f"{path}.sig"), path)
        valid = next(line for line in status.splitlines() if "VALIDSIG" in line).split()
        assert valid[2] != valid[-1] == env["FLATCAR_BAKE_FINGERPRINT"], path.name


def test_digests_name_three_hashes(stand_in: Path) -> None:
    path = stand_in / "stable/amd64-usr/current/flatcar_production_image.bin.bz2"
    content = path.read_bytes()
    expected = ""
    for name in ("md5", "sha1", "sha512"):
        expected += f"# {name.upper()} HASH\n{hashlib.new(name, content).hexdigest()}  {path.name}\n"
    assert Path(f"{path}.DIGESTS").read_text() == expected


def test_release_has_the_files_that_a_bake_reads(stand_in: Path) -> None:
    folder = stand_in / "stable/amd64-usr/4459.2.4"
    assert folder == (folder.parent / "current").resolve()
    names = {path.name for path in folder.iterdir()}
    assert names >= {
        "version.txt", "flatcar_production_image.bin.bz2", "flatcar_production_qemu_uefi_image.img",
        "flatcar_production_qemu_uefi_image.img.bz2", "flatcar_production_qemu_uefi_efi_code.qcow2",
        "flatcar_production_qemu_uefi_efi_vars.qcow2", "oem-qemu.raw", "oem-azure.raw",
        "flatcar_production_pxe.vmlinuz", "flatcar_production_pxe_image.cpio.gz", "flatcar_production_image.vmlinuz",
    }  # fmt: skip
    assert (folder / "version.txt").read_text().splitlines() == [
        "FLATCAR_BUILD=4459", "FLATCAR_BRANCH=2", "FLATCAR_PATCH=4", "FLATCAR_VERSION=4459.2.4",
        "FLATCAR_VERSION_ID=4459.2.4", 'FLATCAR_BUILD_ID=""', "FLATCAR_SDK_VERSION=4459.0.0",
    ]  # fmt: skip
    image = json.loads(
        run(["qemu-img", "info", "--output=json", folder / "flatcar_production_qemu_uefi_image.img"]).stdout
    )
    assert (image["format"], image["format-specific"]["data"]["compat"]) == ("qcow2", "0.10")


def test_oem_sysext_is_tied_to_the_release(stand_in: Path) -> None:
    sysext = stand_in / "stable/amd64-usr/current/oem-qemu.raw"
    release = run(["unsquashfs", "-cat", sysext, "usr/lib/extension-release.d/extension-release.oem-qemu"]).text
    assert release.splitlines() == ["ID=flatcar", "VERSION_ID=4459.2.4"]


def test_pxe_cpio_begins_as_flatcars(stand_in: Path) -> None:
    packed = stand_in / "stable/amd64-usr/current/flatcar_production_pxe_image.cpio.gz"
    names = run(["cpio", "--list", "--quiet"], input=run(["gzip", "-dc", packed]).stdout).text
    assert names.splitlines() == ["etc", "usr.squashfs"]


def test_bakery_lists_its_sysexts_only(stand_in: Path) -> None:
    bakery = stand_in / "extensions"
    names = {path.name for path in bakery.iterdir()}
    assert names == {
        "SHA256SUMS", "wasmtime-49.0.4-x86-64.raw", "wasmtime.conf", "hello-1.0.0+b1-x86-64.raw", "hello-v1.0.conf"
    }  # fmt: skip
    run(["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=bakery)
    listed = {line.split()[1] for line in (bakery / "SHA256SUMS").read_text().splitlines()}
    assert listed == {name for name in names if name.endswith(".raw")}


def test_env_survives_a_shell(copied: Path) -> None:
    make_release(copied, "--arch", "arm64")
    env = read_env(copied)
    assert set(env) == set(VARIABLES)
    assert env["FLATCAR_BAKE_MIRROR"] == str(copied)
    assert env["FLATCAR_BAKE_BAKERY"] == f"{copied}/extensions"
    assert Path(env["FLATCAR_BAKE_SIGNING_KEY"]).is_file()


def test_second_run_leaves_a_finished_release_alone(copied: Path) -> None:
    version = next(copied.glob("stable/*/current/version.txt.sig"))
    before = version.stat()
    make_release(copied, "--arch", "arm64")
    assert version.stat() == before


def test_releases_add_up(copied: Path, stand_in_arm64: Path) -> None:
    make_release(copied, "--arch", "arm64", "--version", "4081.3.10", "--channel", "lts")
    feed = json.loads((copied / "releases-json/releases.json").read_bytes())
    assert list(feed) == ["4081.3.10", "4459.2.4", "current-2024", "current"]
    assert feed["current"] == feed["4459.2.4"]
    assert feed["current-2024"] == feed["4081.3.10"]
    assert feed["4081.3.10"].keys() == {
        "channel", "architectures", "release_date", "major_software", "release_notes"
    }  # fmt: skip
    assert (feed["4081.3.10"]["channel"], feed["4081.3.10"]["architectures"]) == ("lts", ["arm64"])
    for link in ("current", "current-2024"):
        assert os.readlink(copied / "lts/arm64-usr" / link) == "4081.3.10"
    assert os.readlink(copied / "stable/arm64-usr/current") == "4459.2.4"
    fingerprint = read_env(copied)["FLATCAR_BAKE_FINGERPRINT"]
    assert fingerprint == read_env(stand_in_arm64)["FLATCAR_BAKE_FINGERPRINT"], "the key has changed"


def test_killed_build_can_be_repeated(stand_in_arm64: Path, tmp_path: Path) -> None:
    root = tmp_path / "killed"
    with subprocess.Popen([sys.executable, MAKE_RELEASE, root, "--arch", "arm64"], stderr=subprocess.PIPE) as build:
        assert build.stderr is not None
        for line in build.stderr:
            if line.startswith(b"Disk images"):
                break
        build.kill()
    assert not list(root.glob("stable/*/*"))
    make_release(root, "--arch", "arm64")
    assert not list(root.glob(".work-*"))
    assert {path.name for path in (root / "stable/arm64-usr/current/").iterdir()} == {
        path.name for path in (stand_in_arm64 / "stable/arm64-usr/current/").iterdir()
    }


@contextmanager
def serving(root: Path, *options: str) -> Iterator[str]:
    """`make-release --serve` on a free port, interrupted at the end; yields its address."""
    words = [sys.executable, MAKE_RELEASE, root, *options, "--serve", "0"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
        assert server.stdout is not None
        yield server.stdout.readline().strip()
        server.send_signal(signal.SIGINT)
        assert server.wait(10) == 130


def test_serve_speaks_http_and_env_follows(copied: Path) -> None:
    with serving(copied, "--arch", "arm64") as address:
        env = read_env(copied)
        assert env["FLATCAR_BAKE_MIRROR"] == address
        assert env["FLATCAR_BAKE_BAKERY"] == f"{address}/extensions"
        with urllib.request.urlopen(f"{address}/stable/arm64-usr/current/version.txt") as answer:
            assert answer.read() == (copied / "stable/arm64-usr/4459.2.4/version.txt").read_bytes()
    assert read_env(copied)["FLATCAR_BAKE_MIRROR"] == str(copied)


def test_wrong_version_is_refused(tmp_path: Path) -> None:
    failed = subprocess.run([sys.executable, MAKE_RELEASE, tmp_path, "--version", "stable"], capture_output=True)
    assert failed.returncode == 2
    assert b"stable is not a version" in failed.stderr
