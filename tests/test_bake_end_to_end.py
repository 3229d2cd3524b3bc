"""Whole bakes of the stand-in release, through the command line, with every claim checked on the result."""

import hashlib
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from cli import flatcar_bake, release_environment
from standin.http_server import FolderServer

from baker.disk import DiskTable, extract, read_table
from baker.model import Partition
from baker.offline import OfflineEditor
from baker.run import run
from baker.sparse import content_digest

QEMU_IMAGE = "flatcar_production_qemu_uefi_image.img"
GENERIC_IMAGE = "flatcar_production_image.bin"
NOBODY = 65534


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One cache for all bakes of a test run, open to every user: the second bake must not download again."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def env(stand_in: Path, cache: Path) -> dict[str, str]:
    return release_environment(stand_in) | {"FLATCAR_BAKE_CACHE_DIR": str(cache), "FLATCAR_BAKE_PROGRESS": "plain"}


@pytest.fixture(scope="session")
def wasmtime(stand_in: Path) -> str:
    """The file name of the bakery's wasmtime sysext."""
    return next((stand_in / "extensions").glob("wasmtime-*-x86-64.raw")).name


def raw_of(image: Path, folder: Path) -> Path:
    """A raw copy of an image in any format."""
    target = folder / f"{image.name}.raw"
    run(["qemu-img", "convert", "-O", "raw", image, target])
    return target


def content_of(image: Path, partition: Partition, folder: Path) -> str:
    """A digest of all bytes of a partition."""
    part = folder / "partition"
    extract(image, partition, part)
    digest = content_digest(part)
    part.unlink()
    return digest


def check_disk(image: Path, folder: Path) -> DiskTable:
    """What independent tools say of a raw image: partition table, ext4, btrfs, FAT, and GRUB's own reader."""
    assert "No problems found" in run(["sgdisk", "-v", image]).text
    table = read_table(image)
    run(["e2fsck", "-fn", f"{image}?offset={table.get('ROOT').offset}"])
    for label, check in (("OEM", ["btrfs", "check"]), ("EFI-SYSTEM", ["fsck.vfat", "-n"])):
        partition = table.get(label)
        part = folder / f"{label}.part"
        extract(image, partition, part)
        run([*check, part])
        part.unlink()
    return table


def unpacked_release_image(stand_in: Path, folder: Path) -> Path:
    """The release's generic image, unpacked by the tools people use today."""
    packed = next(stand_in.glob("stable/amd64-usr/[0-9]*/flatcar_production_image.bin.bz2"))
    target = folder / "original.raw"
    with subprocess.Popen(["lbzip2", "-dc", packed], stdout=subprocess.PIPE) as unpack:
        subprocess.run(
            ["dd", f"of={target}", "bs=1M", "iflag=fullblock", "conv=sparse"], stdin=unpack.stdout, check=True
        )
    return target


@pytest.fixture
def home() -> Iterator[Path]:
    """A folder that belongs to nobody. Not below pytest's own, which is closed to all but its owner."""
    with tempfile.TemporaryDirectory(prefix="flatcar-bake-nobody-") as folder:
        os.chown(folder, NOBODY, NOBODY)
        yield Path(folder)


def test_an_unprivileged_bake_gives_a_sound_image_with_the_extension_in_it(
    stand_in: Path, env: dict[str, str], wasmtime: str, home: Path, tmp_path: Path
) -> None:
    # No root, no sudo that could work, no capabilities.
    unprivileged = (
        "setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "--no-new-privs", "--inh-caps=-all",
        "--bounding-set=-all",
    )  # fmt: skip
    with FolderServer(stand_in) as server:
        done = flatcar_bake(
            "--fetch", "--vendor", "qemu_uefi", "--base", "generic", "-o", home / "out", f"wasmtime:{wasmtime}",
            "--mirror", server.url, "--bakery", f"{server.url}/extensions",
            env={"HOME": str(home), "TMPDIR": str(home), "FLATCAR_BAKE_FINGERPRINT": env["FLATCAR_BAKE_FINGERPRINT"]},
            prefix=unprivileged,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    image = home / "out" / QEMU_IMAGE
    assert str(image) in done.stdout.splitlines()
    run(["qemu-img", "check", image])
    raw = raw_of(image, tmp_path)
    table = check_disk(raw, tmp_path)
    shown = run(["grub-fstest", raw, "cat", "(loop0,gpt6)/grub.cfg"]).text
    assert 'set oem_id="qemu"' in shown
    with OfflineEditor(raw, tmp_path, 0) as editor:
        node = editor.tree("ROOT", "/opt/extensions")[f"/opt/extensions/wasmtime/{wasmtime}"]
        assert node.sha256 == hashlib.sha256((stand_in / "extensions" / wasmtime).read_bytes()).hexdigest()
        assert (node.mode & 0o7777, node.uid, node.gid) == (0o644, 0, 0)
        link = editor.tree("ROOT", "/etc/extensions")["/etc/extensions/wasmtime.raw"]
        assert link.symlink == f"/opt/extensions/wasmtime/{wasmtime}"
        conf = editor.read("ROOT", "/etc/sysupdate.wasmtime.d/wasmtime.conf")
        assert conf == (stand_in / "extensions" / "wasmtime.conf").read_bytes()
        oem = editor.tree("OEM")
        assert any(path.startswith("/sysext/oem-qemu-") for path in oem)
    assert table.size == 9116319744
    left = {path.name for path in (home / "out").iterdir()}
    assert left == {*QEMU_OUTPUTS, "bake-sbom.spdx.json", "bake-manifest.json", "SHA256SUMS"}
    run(["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=home / "out")


QEMU_OUTPUTS = {
    QEMU_IMAGE,
    "flatcar_production_qemu_uefi.sh",
    "flatcar_production_qemu_uefi.README",
    "flatcar_production_qemu_uefi_efi_code.qcow2",
    "flatcar_production_qemu_uefi_efi_vars.qcow2",
}


def test_a_bake_changes_nothing_but_root(stand_in: Path, env: dict[str, str], wasmtime: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = flatcar_bake("--fetch", "-o", out, f"wasmtime:{wasmtime}", env=env)
    assert done.returncode == 0, done.stderr
    before = read_table(original := unpacked_release_image(stand_in, tmp_path))
    after = check_disk(out / GENERIC_IMAGE, tmp_path)
    assert after == before
    for label in ("EFI-SYSTEM", "BIOS-BOOT", "USR-A", "USR-B", "OEM", "OEM-CONFIG"):
        baked = content_of(out / GENERIC_IMAGE, after.get(label), tmp_path)
        assert baked == content_of(original, before.get(label), tmp_path), label


def test_published_and_generic_bases_give_the_same_root_and_oem(
    env: dict[str, str], wasmtime: str, tmp_path: Path
) -> None:
    trees = []
    for base in ("generic", "published"):
        out = tmp_path / base
        done = flatcar_bake("--fetch", "-v", "qemu_uefi", "--base", base, "-o", out, f"wasmtime:{wasmtime}", env=env)
        assert done.returncode == 0, done.stderr
        raw = raw_of(out / QEMU_IMAGE, out)
        check_disk(raw, out)
        with OfflineEditor(raw, out, 0) as editor:
            oem = {path for path, node in editor.tree("OEM").items() if node.kind == "file"}
            trees.append((editor.tree("ROOT", "/opt"), editor.tree("ROOT", "/etc"), oem))
        shutil.rmtree(out)
    assert trees[0] == trees[1]


def test_several_sysexts_and_vendors_in_one_bake_with_a_plus_in_a_name(
    stand_in: Path, env: dict[str, str], wasmtime: str, tmp_path: Path
) -> None:
    hello = next((stand_in / "extensions").glob("hello-*+*-x86-64.raw")).name
    done = flatcar_bake(
        "--fetch", "-v", "generic", "-v", "qemu_uefi", "-o", tmp_path, "--json", f"wasmtime:{wasmtime}",
        f"hello:{hello}", env=env,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    manifest = json.loads(done.stdout)
    assert {item["file"] for item in manifest["outputs"]} == {GENERIC_IMAGE, *QEMU_OUTPUTS, "bake-sbom.spdx.json"}
    assert [item["sysupdate_config"] for item in manifest["sysexts"]] == ["wasmtime.conf", "hello-v1.0.conf"]
    for image in (tmp_path / GENERIC_IMAGE, raw_of(tmp_path / QEMU_IMAGE, tmp_path)):
        with OfflineEditor(image, tmp_path, 0) as editor:
            links = {path for path, node in editor.tree("ROOT", "/etc/extensions").items() if node.kind == "symlink"}
        assert links == {"/etc/extensions/wasmtime.raw", "/etc/extensions/hello.raw"}
    with OfflineEditor(tmp_path / GENERIC_IMAGE, tmp_path, 0) as editor:
        assert not any("oem-qemu" in path for path in editor.tree("OEM"))


def test_a_sysext_on_the_oem_partition_is_linked_from_root(env: dict[str, str], wasmtime: str, tmp_path: Path) -> None:
    done = flatcar_bake(
        "--fetch", "-v", "qemu_uefi", "--install-to", "oem:/sysext", "-o", tmp_path, f"wasmtime:{wasmtime}", env=env
    )
    assert done.returncode == 0, done.stderr
    assert "--keep-paths" in done.stderr
    with OfflineEditor(raw_of(tmp_path / QEMU_IMAGE, tmp_path), tmp_path, 0) as editor:
        assert f"/sysext/{wasmtime}" in editor.tree("OEM")
        link = editor.tree("ROOT", "/etc/extensions")["/etc/extensions/wasmtime.raw"]
        assert link.symlink == f"/oem/sysext/{wasmtime}"


def test_an_earlier_bake_can_be_baked_into_again(
    stand_in: Path, env: dict[str, str], wasmtime: str, tmp_path: Path
) -> None:
    hello = next((stand_in / "extensions").glob("hello-*+*-x86-64.raw"))
    first, second = tmp_path / "first", tmp_path / "second"
    assert flatcar_bake("--fetch", "-v", "qemu_uefi", "-o", first, f"wasmtime:{wasmtime}", env=env).returncode == 0
    again = ("--image", first / QEMU_IMAGE, "-v", "qemu_uefi", "-o", second)
    done = flatcar_bake(*again, f"wasmtime:{stand_in / 'extensions' / wasmtime}", env=env)
    assert done.returncode == 2
    assert "/etc/extensions/wasmtime.raw exists already" in done.stderr and "--force" in done.stderr
    assert not list(second.iterdir())
    done = flatcar_bake(*again, f"hello:{hello}", env=env)
    assert done.returncode == 0, done.stderr
    with OfflineEditor(raw_of(second / QEMU_IMAGE, tmp_path), tmp_path, 0) as editor:
        names = {path.rpartition("/")[2] for path in editor.tree("ROOT", "/etc/extensions")}
    assert {"wasmtime.raw", "hello.raw"} <= names


def test_a_second_bake_works_without_the_network(
    env: dict[str, str], wasmtime: str, stand_in: Path, tmp_path: Path
) -> None:
    version = next(stand_in.glob("stable/amd64-usr/[0-9]*")).name
    words = ("--release", version, "-v", "qemu_uefi", f"wasmtime:{stand_in / 'extensions' / wasmtime}")
    with FolderServer(stand_in) as server:
        there = env | {"FLATCAR_BAKE_MIRROR": server.url}
        first = flatcar_bake(*words, "-o", tmp_path / "one", env=there)
        assert first.returncode == 0, first.stderr
    second = flatcar_bake(*words, "-o", tmp_path / "two", env=there)
    assert second.returncode == 0, second.stderr
    assert (tmp_path / "one" / "SHA256SUMS").read_text() == (tmp_path / "two" / "SHA256SUMS").read_text()


def test_the_same_plan_gives_the_same_generic_image(env: dict[str, str], wasmtime: str, tmp_path: Path) -> None:
    sums = []
    for name in ("one", "two"):
        done = flatcar_bake("--fetch", "-o", tmp_path / name, f"wasmtime:{wasmtime}", env=env)
        assert done.returncode == 0, done.stderr
        sums.append((tmp_path / name / "SHA256SUMS").read_text())
    assert sums[0] == sums[1]


def test_the_plan_says_everything_and_writes_nothing(env: dict[str, str], wasmtime: str, tmp_path: Path) -> None:
    words = ("--fetch", "-v", "qemu_uefi", "-o", tmp_path / "out", "--plan", f"wasmtime:{wasmtime}")
    done = flatcar_bake(*words, env=env)
    assert done.returncode == 0, done.stderr
    assert "qemu_uefi from flatcar_production_qemu_uefi_image.img (published" in done.stdout
    assert f"ROOT:/opt/extensions/wasmtime/{wasmtime}" in done.stdout
    assert not (tmp_path / "out").exists()
    plan = json.loads(flatcar_bake(*words, "--json", env=env).stdout)
    assert len(plan["id"]) == 64 and plan["backend"] == "offline"


def test_a_kept_work_folder_has_a_log_of_every_command(env: dict[str, str], wasmtime: str, tmp_path: Path) -> None:
    done = flatcar_bake("--fetch", "--keep-work", "-o", tmp_path, f"wasmtime:{wasmtime}", env=env)
    assert done.returncode == 0, done.stderr
    (log,) = tmp_path.glob(".flatcar-bake-*/commands.log")
    assert "e2fsck" in log.read_text() and str(log.parent) in done.stderr
    assert "Nothing was left behind" in flatcar_bake("doctor", "--cleanup", "-o", tmp_path, env=env).stdout


def test_bake_toml_says_the_same_as_options(env: dict[str, str], wasmtime: str, tmp_path: Path) -> None:
    (tmp_path / "bake.toml").write_text(
        f'vendors = ["qemu_uefi"]\nfetch = true\nbase = "generic"\nsysexts = ["wasmtime:{wasmtime}"]\n'
    )
    by_file = json.loads(flatcar_bake("bake", "--plan", "--json", env=env, cwd=tmp_path).stdout)
    by_options = json.loads(
        flatcar_bake(
            "-v", "qemu_uefi", "--fetch", "--base", "generic", f"wasmtime:{wasmtime}", "--plan", "--json", env=env
        ).stdout
    )
    assert by_file["id"] == by_options["id"]
    overridden = json.loads(
        flatcar_bake("--base", "published", "--config", "bake.toml", "--plan", "--json", env=env, cwd=tmp_path).stdout
    )
    assert overridden["vendors"][0]["base"] == "published"
