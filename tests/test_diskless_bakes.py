"""Bakes for machines without a disk: what is in them, that it is the signed files, and what is refused."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import jsonschema
import pytest
from cli import flatcar_bake, release_environment
from diskless import CPIO, CURRENT, ISO, KERNEL, OEM, Baked, bake, sysexts
from disks import tool
from keys import TestKey
from mirrors import SignedMirror
from servers import MirrorServer
from sysexts import make_sysext

from baker.diskless import cpio
from baker.model import Arch, Channel, Injection, Release

NOBODY = 65534
SCHEMA = json.loads((Path(__file__).parent.parent / "docs/bake-manifest.schema.json").read_text())


@pytest.fixture(scope="module")
def by_oem(stand_in: Path, tmp_path_factory: pytest.TempPathFactory) -> Baked:
    """A bake by the route oem, with a file and an Ignition config beside the sysexts."""
    work = tmp_path_factory.mktemp("oem")
    (work / "motd").write_text("baked\n")
    (work / "user.ign").write_text('{"ignition": {"version": "3.3.0"}}')
    return bake(stand_in, work, *more(work))


def more(work: Path) -> list[str]:
    """The options for what is baked besides sysexts."""
    return [
        "--file", f"{work}/motd:root:/etc/motd", "--file", f"{work}/motd:oem:/note",
        "--ignition", f"{work}/user.ign", "--disable-builtin", "docker",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def by_usr(stand_in_new: Path, tmp_path_factory: pytest.TempPathFactory) -> Baked:
    """A bake by the route usr."""
    return bake(stand_in_new, tmp_path_factory.mktemp("usr"), "--pxe-route", "usr", "--disable-builtin", "docker")


def unpack(archive: bytes, folder: Path) -> Path:
    folder.mkdir()
    subprocess.run(["cpio", "-idm", "--quiet"], input=gzip.decompress(archive), cwd=folder, check=True)
    return folder


def test_not_a_byte_of_the_official_files_changes(by_oem: Baked, tmp_path: Path) -> None:
    official = (by_oem.release / CURRENT / CPIO).read_bytes()
    made = (by_oem.folder / CPIO).read_bytes()
    assert made[: len(official)] == official
    assert (by_oem.folder / KERNEL).read_bytes() == (by_oem.release / CURRENT / KERNEL).read_bytes()
    tool("gunzip", "-t", by_oem.folder / CPIO)

    oem = unpack(made[len(official) :], tmp_path / "oem") / "usr/share/oem"
    names = [word.partition(":")[2] for word in sysexts(by_oem.release)]
    for name in names:
        assert (oem / "sysext" / name).read_bytes() == (by_oem.release / "extensions" / name).read_bytes()
    assert (oem / "note").read_text() == "baked\n"
    assert json.loads((oem / "config.ign").read_text()) == {"ignition": {"version": "3.3.0"}}
    base = json.loads((oem / "base/base.ign").read_text())
    links = {link["path"]: link["target"] for link in base["storage"]["links"]}
    assert links == {
        "/etc/extensions/hello.raw": f"/oem/sysext/{names[1]}",
        "/etc/extensions/wasmtime.raw": f"/oem/sysext/{names[0]}",
        "/etc/extensions/docker-flatcar.raw": "/dev/null",
    }
    assert [file["path"] for file in base["storage"]["files"]] == ["/etc/motd"], "a sysupdate config has no use"


def test_the_iso_holds_the_official_files(by_oem: Baked, tmp_path: Path) -> None:
    image = by_oem.folder / ISO
    for name, source in (("cpio.gz", CPIO), ("vmlinuz", KERNEL)):
        tool("xorriso", "-osirrox", "on", "-indev", image, "-extract", f"/flatcar/{name}", tmp_path / name)
        assert (tmp_path / name).read_bytes() == (by_oem.release / CURRENT / source).read_bytes()
    said = tool("xorriso", "-indev", image, "-report_el_torito", "plain", "-report_system_area", "plain").decode()
    assert "BIOS  y" in said
    assert "UEFI  y" in said
    assert "grub2-mbr" in said
    assert "GPT type GUID      :   2  28732ac11ff8d211ba4b00a0c93ec93b" in said, "no EFI system partition"
    assert tool("blkid", "-p", "-s", "LABEL", "-o", "value", image).decode().strip() == "FLATCAR_4459_2_4"


def test_a_squashfs_with_more_in_it_takes_the_place_of_the_official_one(by_usr: Baked, tmp_path: Path) -> None:
    before = unpack((by_usr.release / CURRENT / CPIO).read_bytes(), tmp_path / "before")
    after = unpack((by_usr.folder / CPIO).read_bytes(), tmp_path / "after")
    for folder in (before, after):
        tool("unsquashfs", "-quiet", "-no-progress", "-d", folder / "usr", folder / "usr.squashfs")
    changed = {
        path
        for path in {item.relative_to(folder / "usr") for folder in (before, after)
                     for item in (folder / "usr").rglob("*") if item.is_symlink() or item.is_file()}
        if content(before / "usr" / path) != content(after / "usr" / path)
    }  # fmt: skip
    assert sorted(map(str, changed)) == [
        "share/flatcar/etc/extensions/docker-flatcar.raw",
        "share/flatcar/etc/extensions/hello.raw",
        "share/flatcar/etc/extensions/wasmtime.raw",
        "share/flatcar/sysext/hello.raw",
        "share/flatcar/sysext/wasmtime.raw",
    ]
    usr = after / "usr/share/flatcar"
    assert (usr / "etc/extensions/wasmtime.raw").readlink() == Path("/usr/share/flatcar/sysext/wasmtime.raw")
    assert (usr / "etc/extensions/docker-flatcar.raw").readlink() == Path("/dev/null")
    source = by_usr.release / "extensions" / sysexts(by_usr.release)[0].partition(":")[2]
    assert (usr / "sysext/wasmtime.raw").read_bytes() == source.read_bytes()


def content(path: Path) -> tuple[str, int] | None:
    """What a link says or a file holds, and its mode; None where there is neither."""
    if path.is_symlink():
        return os.readlink(path), 0
    return (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mode) if path.exists() else None


def test_the_record_says_where_the_sysexts_are(by_oem: Baked, by_usr: Baked) -> None:
    for baked, place in ((by_oem, "OEM:/sysext/wasmtime-"), (by_usr, "USR:/share/flatcar/sysext/wasmtime.raw")):
        manifest = json.loads((baked.folder / "bake-manifest.json").read_text())
        wasmtime = next(item for item in manifest["sysexts"] if item["name"] == "wasmtime")
        assert wasmtime["installed"].startswith(place)
        assert wasmtime["in_memory"].startswith(("/oem/sysext/wasmtime-", "/usr/share/flatcar/sysext/wasmtime.raw"))
        assert wasmtime["sysupdate_config"] == ""
        assert {item["kind"] for item in manifest["inputs"]} == {"kernel", "cpio", "sysext"}
        assert all(item["signer"] for item in manifest["inputs"] if item["kind"] != "sysext")
        jsonschema.validate(manifest, SCHEMA)
        checked = flatcar_bake("verify", baked.folder)
        assert checked.returncode == 0, checked.stderr
    assert "pxe: machines need about 640 MiB of memory" in by_oem.said


def test_the_plan_says_the_route_why_and_the_memory(stand_in: Path, stand_in_new: Path, tmp_path: Path) -> None:
    for release, words, said in (
        (stand_in, (), ("oem: the release's own cpio stays as it was signed", "copied to /oem/sysext and linked")),
        (stand_in_new, ("--pxe-route", "usr"), ("usr: asked for", "USR:/share/flatcar/sysext/wasmtime.raw")),
    ):
        plan = flatcar_bake(
            "-v", "pxe", "--fetch", "--plan", *words, *sysexts(release),
            env=release_environment(release) | {"FLATCAR_BAKE_CACHE_DIR": str(tmp_path)},
        )  # fmt: skip
        assert plan.returncode == 0, plan.stderr
        for text in (*said, "MiB at least", "3072 MiB for pxe", "no sysupdate"):
            assert text in plan.stdout
        assert "updates described" not in plan.stdout


def test_equal_bakes_give_equal_bytes_without_any_rights(by_oem: Baked) -> None:
    """The same once more, later, by somebody who may nothing."""
    with tempfile.TemporaryDirectory(prefix="flatcar-bake-nobody-") as folder, MirrorServer(by_oem.release) as server:
        home = Path(folder)
        for name in ("motd", "user.ign"):
            shutil.copy(by_oem.folder.parent / name, home)
        os.chown(home, NOBODY, NOBODY)
        done = flatcar_bake(
            "--fetch", "-v", "pxe,iso", "-o", home / "out", *more(home), *sysexts(by_oem.release),
            "--mirror", server.url, "--bakery", f"{server.url}/extensions",
            env={
                "HOME": folder, "TMPDIR": folder, "FLATCAR_BAKE_FINGERPRINT": by_oem.env["FLATCAR_BAKE_FINGERPRINT"],
            },
            prefix=(
                "setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "--no-new-privs",
                "--inh-caps=-all", "--bounding-set=-all",
            ),
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        for name in (CPIO, KERNEL, ISO):
            assert (home / "out" / name).read_bytes() == (by_oem.folder / name).read_bytes()


def test_the_extensions_can_stay_in_a_file_of_their_own(by_oem: Baked, tmp_path: Path) -> None:
    done = flatcar_bake(
        "--fetch", "-v", "pxe", "--pxe-split", "--serial", "ttyS1,57600n8", "--kernel-arg", "ignition.config.url=http://x/y",
        "-o", tmp_path / "out", *sysexts(by_oem.release), env=by_oem.env,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    out = tmp_path / "out"
    assert (out / CPIO).read_bytes() == (by_oem.release / CURRENT / CPIO).read_bytes()
    sbom = json.loads((out / "bake-sbom.spdx.json").read_text())
    names = {package["SPDXID"]: package["name"] for package in sbom["packages"]}
    holders = {
        names[item["spdxElementId"]] for item in sbom["relationships"] if item["relationshipType"] == "CONTAINS"
    }
    assert holders == {OEM}
    script = (out / "flatcar_production_pxe.ipxe").read_text()
    args = "console=tty0 console=ttyS1,57600n8 flatcar.first_boot=1 ignition.config.url=http://x/y"
    assert f"kernel {KERNEL} initrd={CPIO} initrd={OEM} {args}\n" in script
    assert f"initrd {CPIO}\ninitrd {OEM}\n" in script
    assert f"INITRD {CPIO},{OEM}\n" in (out / "flatcar_production_pxe_pxelinux.cfg").read_text()


def test_a_locked_bake_keeps_the_route(by_oem: Baked, tmp_path: Path) -> None:
    words = ("--fetch", "-v", "pxe", "-o", tmp_path / "out", *sysexts(by_oem.release))
    first = flatcar_bake(*words, "--lock", env=by_oem.env, cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    assert 'base = "oem"' in (tmp_path / "bake.lock").read_text()
    again = flatcar_bake(*words, "--locked", "--force", env=by_oem.env, cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    other = flatcar_bake(*words, "--locked", "--force", "--pxe-route", "usr", env=by_oem.env, cwd=tmp_path)
    assert other.returncode == 3
    assert "the route of pxe: oem is locked, not usr" in other.stderr


ASKED = Release("4593.2.5", Channel.STABLE, Arch.X86_64)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[dict[str, str], Path]]:
    """A server with releases that lose OEM content, and one whose cpio is of another; and a local sysext."""
    folder = tmp_path_factory.mktemp("tiny")
    (folder / "usr/lib").mkdir(parents=True)
    (folder / "usr/lib/os-release").write_text("ID=flatcar\nVERSION=4459.2.4\nFLATCAR_BOARD=amd64-usr\n")
    tool("mksquashfs", folder / "usr", folder / "usr.squashfs", "-quiet", "-no-progress")
    with (folder / "cpio.gz").open("wb") as file:
        cpio.pack(file, [Injection("/usr.squashfs", source=folder / "usr.squashfs")], 0)
    sysext = make_sysext(folder, "tools", "ID=_any\n")
    with TestKey() as key, MirrorServer(folder / "www") as server:
        key.add_subkey()
        (folder / "key").write_bytes(key.export())
        mirror = SignedMirror(folder / "www", key)
        alpha, beta = (
            Release(version, channel, Arch.X86_64)
            for version, channel in (("4628.0.0", Channel.ALPHA), ("4593.1.0", Channel.BETA))
        )
        for release in (alpha, beta, ASKED):
            mirror.put_version(release)
            mirror.put(KERNEL, b"kernel", release)
            mirror.put(CPIO, (folder / "cpio.gz").read_bytes(), release)
        mirror.put_feed(*((item.version, str(item.channel), ["amd64"]) for item in (alpha, beta, ASKED)))
        yield {
            "FLATCAR_BAKE_MIRROR": server.url, "FLATCAR_BAKE_SIGNING_KEY": str(folder / "key"),
            "FLATCAR_BAKE_FINGERPRINT": key.fingerprint, "FLATCAR_BAKE_CACHE_DIR": str(folder / "cache"),
        }, sysext  # fmt: skip


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--release", "4628.0.0"], "OEM content works in alpha 4669.0.0 and later"),
        (["--release", "4593.1.0", "--pxe-route", "oem"], "Or use --pxe-route usr"),
        (["--release", "4593.1.0", "--pxe-split"], "--pxe-split keeps the extensions in a cpio of their own"),
        (["--release", "4593.1.0", "--ignition", "IGN"], "only sysexts can go into /usr"),
        (["--install-to", "root:/opt/extensions"], "ROOT is on a disk"),
        (["--image", "IGN"], "not from a disk image"),
        (["--ram", "512M"], "more than the 512 MiB of --ram"),
        (["--ram", "lots"], "no amount of memory"),
        (["--serial", "com1"], "no serial console"),
        (["--file", "IGN:usr:/share/x"], "usr"),
    ],
)
def test_what_cannot_work_is_refused(
    words: list[str], said: str, tiny: tuple[dict[str, str], Path], tmp_path: Path
) -> None:
    env, sysext = tiny
    (tmp_path / "x.ign").write_text('{"ignition": {"version": "3.3.0"}}')
    words = [word.replace("IGN", str(tmp_path / "x.ign")) for word in words]
    done = flatcar_bake("-v", "pxe", "-o", tmp_path / "out", *words, f"tools:{sysext}", env=env)
    assert done.returncode == 2, done.stderr
    assert said in done.stderr
    assert not (tmp_path / "out").exists()


def test_sysexts_that_do_not_fit_into_memory_are_refused(by_oem: Baked, tmp_path: Path) -> None:
    done = flatcar_bake(
        "--fetch", "-v", "pxe", "--ram", "600M", "-o", tmp_path / "out", *sysexts(by_oem.release), env=by_oem.env
    )
    assert done.returncode == 2
    assert "MiB of memory to start, more than the 600 MiB of --ram" in done.stderr
    assert not list(tmp_path.glob("out/*"))


def test_a_fetch_brings_in_what_a_bake_needs(tiny: tuple[dict[str, str], Path], tmp_path: Path) -> None:
    env = tiny[0] | {"FLATCAR_BAKE_CACHE_DIR": str(tmp_path)}
    done = flatcar_bake("fetch", "--release", "4628.0.0", "--vendor", "pxe,iso", "--json", env=env)
    assert done.returncode == 0, done.stderr
    for name in (KERNEL, CPIO):
        assert name in done.stdout


def test_a_cpio_of_another_release_is_refused(tiny: tuple[dict[str, str], Path], tmp_path: Path) -> None:
    """A mirror that serves an old file, properly signed, in place of the one asked for."""
    env, sysext = tiny
    done = flatcar_bake("-v", "pxe", "--release", ASKED.version, "-o", tmp_path / "out", f"tools:{sysext}", env=env)
    assert done.returncode == 3, done.stderr
    assert f"{CPIO} holds Flatcar 4459.2.4, not {ASKED.version}" in done.stderr
    assert list((tmp_path / "out").iterdir()) == []
