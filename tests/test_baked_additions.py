"""What is baked besides sysexts is in the image, by either backend, and in every record."""

import hashlib
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import jsonschema
import pytest
from cli import flatcar_bake
from disks import make_disk, make_root, put
from spdx_tools.spdx.parser.parse_anything import parse_file
from spdx_tools.spdx.validation.document_validator import validate_full_spdx_document
from sysexts import make_sysext
from tiny import RELEASE, VENDOR_IMAGE, TinyRelease, tiny_disk, tiny_release, tiny_sysext

from baker.additions import Additions, FileRequest
from baker.disk import DiskTable, extract, read_table
from baker.errors import UsageError
from baker.model import InstallTarget
from baker.run import run

SCHEMA = json.loads((Path(__file__).parent.parent / "docs/bake-manifest.schema.json").read_text())
OFFICIAL = f"/etc/flatcar/sysext/flatcar-podman-{RELEASE.version}.raw"
USER = b'{"ignition": {"version": "3.3.0"},\n "storage": {"files": [{"path": "/etc/user"}]}}\n'
VENDORS_BASE = '{"ignition": {"version": "3.0.0"}, "storage": {"files": [{"path": "/etc/vendors"}]}}'
BASE = b'{"ignition": {"version": "3.1.0"}, "storage": {"files": [{"path": "/etc/base"}]}}'


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TinyRelease]:
    """A release with the official sysexts podman and, of an older version, zfs; and a vendor with a base config."""
    folder = tmp_path_factory.mktemp("additions")
    with tiny_release(tiny_disk(folder / "disk"), folder / "release") as running:
        for name, version in (("podman", RELEASE.version), ("zfs", "4593.2.0")):
            made = make_sysext(folder, f"flatcar-{name}", f"ID=flatcar\nVERSION_ID={version}\n")
            running.mirror.put(f"flatcar-{name}.raw", made.read_bytes())
        # A folder, because the judge of SPDX documents takes no address with a port for one.
        running.env["FLATCAR_BAKE_MIRROR"] = str(running.mirror.folder)
        vendors = Path(running.env["FLATCAR_BAKE_VENDORS"])
        based = (vendors / "tiny.toml").read_text().replace(VENDOR_IMAGE, "based.qcow2")
        (vendors / "based.toml").write_text(
            f"{based}[[oem.file]]\npath = 'base/base.ign'\ncontent = '{VENDORS_BASE}'\n"
        )
        running.env["FLATCAR_BAKE_CACHE_DIR"] = str(folder / "cache")
        yield running


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with what the bakes of this file put into images."""
    (tmp_path / "motd").write_text("hello\n")
    (tmp_path / "tool").write_text("#!/bin/sh\n")
    (tmp_path / "tool").chmod(0o755)
    (tmp_path / "user.ign").write_bytes(USER)
    (tmp_path / "base.ign").write_bytes(BASE)
    tiny_sysext(tmp_path)
    return tmp_path


ADDED = (
    "--file", "motd:root:/etc/motd", "--file", "tool:root:/opt/bin/tool", "--file", "motd:oem:/notes/motd:600",
    "--ignition", "user.ign", "--ignition-base", "base.ign", "--disable-builtin", "docker,containerd",
    "--official-sysext", "podman", "--kernel-arg", "quiet", "--kernel-arg", "a=b",
)  # fmt: skip


def bake(release: TinyRelease, folder: Path, *words: str | Path) -> subprocess.CompletedProcess[str]:
    return flatcar_bake("-v", "tiny", "-o", "out", *words, "tools:tools.raw", env=release.env, cwd=folder)


def baked(release: TinyRelease, folder: Path, *words: str | Path) -> "Disk":
    done = bake(release, folder, *words)
    assert done.returncode == 0, done.stderr
    return Disk(folder / "out" / VENDOR_IMAGE, folder)


class Disk:
    """The partitions of an image, read by debugfs and `btrfs restore`."""

    def __init__(self, image: Path, folder: Path, name: str = "oem") -> None:
        self._raw, self._oem = folder / f"{name}.raw", folder / name
        run(["qemu-img", "convert", "-O", "raw", image, self._raw])
        table: DiskTable = read_table(self._raw)
        self._root = f"{self._raw}?offset={table.get('ROOT').offset}"
        part = folder / "oem.part"
        extract(self._raw, table.get("OEM"), part)
        self._oem.mkdir()
        run(["btrfs", "restore", "--metadata", "--symlinks", part, self._oem])
        part.unlink()

    def root(self, path: str) -> bytes:
        """A file of ROOT; b"" where there is none."""
        return run(["debugfs", "-R", f"cat {path}", self._root]).stdout

    def stat(self, path: str) -> str:
        return run(["debugfs", "-R", f"stat {path}", self._root]).text

    def oem(self, path: str) -> Path:
        return self._oem / path


def links_to(disk: Disk, path: str, target: str) -> bool:
    return f'Fast link dest: "{target}"' in disk.stat(path)


@pytest.mark.parametrize("backend", ["offline", "loop"])
def test_everything_is_in_the_image_and_in_the_records(release, folder, backend):
    disk = baked(release, folder, "--backend", backend, *ADDED)
    assert disk.root("/etc/motd") == b"hello\n" and "Mode:  0644" in disk.stat("/etc/motd")
    assert "Mode:  0755" in disk.stat("/opt/bin/tool"), "a program stays one"
    assert disk.oem("notes/motd").read_text() == "hello\n"
    assert disk.oem("notes/motd").stat().st_mode & 0o777 == 0o600
    assert disk.oem("config.ign").read_bytes() == USER and disk.oem("base/base.ign").read_bytes() == BASE
    assert disk.oem("config.ign").stat().st_mode & 0o777 == 0o600, "it may hold secrets"
    for name in ("docker", "containerd"):
        assert links_to(disk, f"/etc/extensions/{name}-flatcar.raw", "/dev/null")
    assert disk.root(OFFICIAL) == (release.mirror.folder / release.mirror.path("flatcar-podman.raw")[1:]).read_bytes()
    assert disk.root("/etc/flatcar/enabled-sysext.conf") == b"podman\n"
    assert disk.oem("grub.cfg").read_text().endswith('set linux_append="$linux_append quiet a=b"\n')

    manifest = json.loads((folder / "out/bake-manifest.json").read_text())
    jsonschema.validate(manifest, SCHEMA)
    added = manifest["additions"]
    assert [(item["installed"], item["mode"]) for item in added["files"]] == [
        ("ROOT:/etc/motd", "0644"), ("ROOT:/opt/bin/tool", "0755"), ("OEM:/notes/motd", "0600"),
    ]  # fmt: skip
    assert [(item["installed"], item["spec"]) for item in added["ignition"]] == [
        ("OEM:/config.ign", "3.3.0"), ("OEM:/base/base.ign", "3.1.0"),
    ]  # fmt: skip
    assert added["official_sysexts"][0]["installed"] == f"ROOT:{OFFICIAL}"
    assert added["disabled_builtins"] == ["docker", "containerd"] and added["kernel_args"] == ["quiet", "a=b"]
    (official,) = [item for item in manifest["inputs"] if item["kind"] == "official sysext"]
    assert official["name"] == "flatcar-podman.raw" and official["signer"]
    document = parse_file(str(folder / "out/bake-sbom.spdx.json"))
    assert not validate_full_spdx_document(document)
    assert {"flatcar-podman.raw", "ROOT:/etc/motd", "OEM:/config.ign"} <= {item.name for item in document.packages}


def test_what_survives_a_reset_is_on_oem_and_linked_by_the_base_config(release, folder):
    (folder / "tools.conf").write_text(
        "[Source]\nType=url-file\nPath=https://x.example/\nMatchPattern=tools-@v.raw\n"
        "[Target]\nType=regular-file\nPath=/opt/extensions/tools\nCurrentSymlink=/etc/extensions/tools.raw\n"
    )
    words = (
        "-v",
        "based",
        "--survive-reset",
        "--enable-updates",
        "--disable-builtin",
        "docker",
        "--ignition-base",
        "base.ign",
    )
    done = bake(release, folder, *words, "--file", "motd:root:/etc/motd:0640")
    assert done.returncode == 0, done.stderr
    assert "survives flatcar-reset" in done.stderr and "--keep-paths" not in done.stderr
    disk = Disk(folder / "out" / VENDOR_IMAGE, folder)
    for path in ("/etc", "/opt"):
        assert "File not found" in run(["debugfs", "-R", f"stat {path}", disk._root]).stderr, "ROOT is as it was"
    assert disk.oem("sysext/tools.raw").read_bytes() == (folder / "tools.raw").read_bytes()
    config = json.loads(disk.oem("base/base.ign").read_text())
    assert {node["path"]: node["target"] for node in config["storage"]["links"]} == {
        "/etc/extensions/tools.raw": "/oem/sysext/tools.raw",
        "/etc/extensions/docker-flatcar.raw": "/dev/null",
        "/etc/systemd/system/timers.target.wants/systemd-sysupdate.timer":
            "/usr/lib/systemd/system/systemd-sysupdate.timer",
    }  # fmt: skip
    assert {node["path"]: node.get("mode") for node in config["storage"]["files"]} == {
        "/etc/base": None, "/etc/motd": 0o640, "/etc/sysupdate.tools.d/tools.conf": 0o644,
        "/etc/sysupdate.d/noop.conf": 0o644,
        "/etc/systemd/system/systemd-sysupdate.service.d/10-flatcar-bake.conf": 0o644,
    }  # fmt: skip
    assert config["ignition"]["version"] == "3.1.0"
    assert not subprocess.run(["ignition-validate", disk.oem("base/base.ign")]).returncode
    manifest = json.loads((folder / "out/bake-manifest.json").read_text())
    jsonschema.validate(manifest, SCHEMA)
    assert manifest["additions"]["survive_reset"] and manifest["additions"]["updates"]
    seen = json.loads(flatcar_bake("inspect", folder / "out" / VENDOR_IMAGE, "--json").stdout)
    assert {item["name"]: item["state"] for item in seen["sysexts"]} == {"docker-flatcar": "off", "tools": "baked"}
    assert seen["updates"] and not seen["problems"]
    based = json.loads(Disk(folder / "out/based.qcow2", folder, "based").oem("base/base.ign").read_text())
    assert {node["path"] for node in based["storage"]["files"]} > {"/etc/vendors", "/etc/base", "/etc/motd"}
    assert based["storage"]["links"] == config["storage"]["links"]


def test_the_images_own_base_config_and_enabled_sysexts_stay(release, folder):
    """As the images of lts-3510 have one; it is of spec 2.1.0 there."""
    theirs = {"ignition": {"version": "2.1.0"}, "systemd": {"units": [{"name": "agent.service", "enabled": True}]}}
    conf = b"# ours\nzfs\n-podman\n"
    image = make_disk(
        folder / "own.raw", "tiny", oem_files={"/base/base.ign": json.dumps(theirs).encode()},
        root_files={"/etc/flatcar/enabled-sysext.conf": conf},
    )  # fmt: skip
    put(
        image,
        "tiny",
        "USR-A",
        make_root(folder / "usr", 8 << 20, {"/lib/os-release": f"VERSION={RELEASE.version}\n".encode()}),
    )
    words = ("--image", image, "--base", "generic", "--release", RELEASE.version)
    disk = baked(release, folder, *words, "--official-sysext", "flatcar-podman")
    assert disk.root("/etc/flatcar/enabled-sysext.conf") == b"# ours\nzfs\npodman\n"
    assert json.loads(disk.oem("base/base.ign").read_text()) == theirs
    for name in ("oem", "oem.raw"):
        run(["rm", "-r", folder / name])
    disk = baked(release, folder, *words[:2], "--survive-reset", "--force")
    config = json.loads(disk.oem("base/base.ign").read_text())
    assert config["ignition"]["version"] == "2.3.0" and config["systemd"] == theirs["systemd"]
    assert config["storage"]["links"][0]["filesystem"] == "root"
    refused = bake(release, folder, *words[:2], "--force", "--official-sysext", "podman")
    assert refused.returncode == 2 and "not known for an image of your own" in refused.stderr


REFUSED = [
    (("--file", "motd:usr:/usr/share/motd"), 2, "Pack the file as a sysext"),
    (("--file", "none:root:/etc/motd"), 2, "none, to be put at ROOT:/etc/motd, is not there"),
    (("--file", ".:root:/etc/motd"), 2, "is a folder"),
    (("--file", "motd:root:/etc/extensions/tools.raw"), 2, "where the bake puts something else"),
    (("--ignition", "none.ign"), 2, "Cannot read the Ignition config none.ign"),
    (("--ignition", "new.ign"), 2, "spec '3.6.0', which is not supported"),
    (("--ignition", "bad.ign"), 2, "link target is required"),
    (("--ignition-base", "old.ign"), 2, "a base config must be of spec 3"),
    (("--ignition-base", "link.ign", "--survive-reset"), 2, "which the base config of this bake makes"),
    (("--ignition", "node.bu"), 4, "butane, which translates it, is not installed"),
    (("--official-sysext", "incus"), 2, "the mirror is not complete"),
    (("--official-sysext", "pyhton"), 2, "Did you mean python"),
    (("--official-sysext", "zfs"), 3, "is for Flatcar 4593.2.0, not 4593.2.5"),
    (("--survive-reset", "--install-to", "root:/opt/extensions"), 2, "Drop one of the two"),
    (("--survive-reset", "--file", "large:root:/opt/large"), 2, "Put it on the OEM partition"),
]


@pytest.mark.parametrize(("words", "status", "complaint"), REFUSED)
def test_what_cannot_be_is_refused_in_one_sentence(release, folder, words, status, complaint):
    for name, content in {
        "new.ign": {"ignition": {"version": "3.6.0"}}, "old.ign": {"ignition": {"version": "2.2.0"}},
        "bad.ign": {"ignition": {"version": "3.3.0"}, "storage": {"links": [{"path": "/a"}]}},
        "link.ign": {"ignition": {"version": "3.3.0"},
                     "storage": {"links": [{"path": "/etc/extensions/tools.raw", "target": "/x"}]}},
    }.items():  # fmt: skip
        (folder / name).write_text(json.dumps(content))
    (folder / "node.bu").write_text("variant: flatcar\nversion: 1.0.0\n")
    (folder / "large").write_bytes(bytes(100_000))
    done = bake(release, folder, *words)
    said = " ".join(done.stderr.split())
    assert (done.returncode, complaint in said) == (status, True), done.stderr
    assert not list((folder / "out").glob("*")), "nothing may appear"


@pytest.mark.parametrize(
    ("asked", "complaint"),
    [
        ({"files": ["motd:USR-A:/share/motd"]}, "/usr is read-only and verified"),
        ({"files": ["motd:root:/usr/share/motd"]}, "hidden by another mount"),
        ({"files": ["motd:root:/oem/motd"]}, "hidden by another mount"),
        ({"files": ["motd:esp:/motd"]}, "names no partition"),
        ({"files": ["motd:root:etc/motd"]}, "does not say what to put where"),
        ({"files": ["motd:root:/etc/../usr/motd"]}, "not the plain path"),
        ({"files": ["motd:root://usr/motd"]}, "not the plain path"),
        ({"files": ["motd:root:/"]}, "not the plain path"),
        ({"files": ["motd:root:/etc/motd:4755"]}, "setuid"),
        ({"files": ["motd:root:/etc/motd:0999"]}, "does not say what to put where"),
        ({"files": ["motd:oem:/grub.cfg"]}, "made by the bake"),
        ({"files": ["motd:oem:/config.ign"]}, "made by the bake"),
        ({"files": ["motd:root:/etc/motd", "tool:ROOT:/etc/motd"]}, "Two files are to be put at ROOT:/etc/motd"),
        ({"disable_builtins": ["dokcer"]}, "no built-in sysext 'dokcer'"),
        ({"disable_builtins": ["docker,"]}, "A name is missing"),
        ({"official": ["../x"]}, "cannot be the name"),
        ({"official": ["podman"], "survive_reset": True}, "does not go with --official-sysext"),
    ],
)
def test_words_that_make_no_sense_are_refused(asked, complaint):
    with pytest.raises(UsageError, match=complaint):
        Additions.parse(**asked)


def test_words_are_understood():
    made = Additions.parse(
        files=["C:/a b:c.txt:root:/etc/a:0600", "x:OEM:/d/x"], disable_builtins=["docker,containerd", "docker"],
        official=["flatcar-zfs", "zfs,python"],
    )  # fmt: skip
    assert made.files == (
        FileRequest(Path("C:/a b:c.txt"), InstallTarget.ROOT, "/etc/a", 0o600),
        FileRequest(Path("x"), InstallTarget.OEM, "/d/x"),
    )
    assert made.disabled_builtins == ("docker", "containerd") and made.official == ("zfs", "python")


BUTANE = """#!/usr/bin/env python3
import argparse, json, pathlib, sys
options = argparse.ArgumentParser()
options.add_argument("--strict", action="store_true", required=True)
options.add_argument("--files-dir", type=pathlib.Path, required=True)
folder = options.parse_args().files_dir
lines = dict(line.split(": ", 1) for line in sys.stdin.read().splitlines())
if lines["variant"] != "flatcar":
    print("Error translating config: No translator exists for variant", lines["variant"], file=sys.stderr)
    sys.exit(1)
source = "data:," + (folder / lines["local"]).read_text()
files = [{"path": lines["path"], "contents": {"source": source}}]
json.dump({"ignition": {"version": "3.3.0"}, "storage": {"files": files}}, sys.stdout)
"""
"""Takes the place of butane, which neither Debian nor PyPI has: its command line, and a language of four words."""


def test_butane_translates_what_is_named_as_yaml(release, folder):
    (folder / "bin").mkdir()
    (folder / "bin/butane").write_text(BUTANE)
    (folder / "bin/butane").chmod(0o755)
    (folder / "configs").mkdir()
    (folder / "configs/node.bu").write_text("variant: flatcar\nlocal: name\npath: /etc/x\n")
    (folder / "configs/name").write_text("beside")
    env = release.env | {"PATH": f"{folder / 'bin'}:{os.environ['PATH']}"}
    words = ("-v", "tiny", "-o", "out", "--ignition", "configs/node.bu")
    done = flatcar_bake(*words, env=env, cwd=folder)
    assert done.returncode == 0, done.stderr
    config = json.loads(Disk(folder / "out" / VENDOR_IMAGE, folder).oem("config.ign").read_text())
    assert config["storage"]["files"] == [{"path": "/etc/x", "contents": {"source": "data:,beside"}}]
    (folder / "configs/node.bu").write_text("variant: other\n")
    refused = flatcar_bake(*words, "--force", env=env, cwd=folder)
    assert refused.returncode == 2
    said = " ".join(refused.stderr.split())
    assert "configs/node.bu is no valid Butane config: Error translating config: No translator exists" in said, said


def test_configs_that_would_fail_the_first_boot_are_warned_of(release, folder):
    (folder / "user.ign").write_text(json.dumps({
        "ignition": {"version": "3.3.0"},
        "storage": {
            "files": [{"path": "/opt/extensions/tools/tools.raw", "contents": {"source": "https://x.example/t.raw"}}],
            "links": [{"path": "/etc/extensions/tools.raw", "target": "/opt/extensions/tools/tools.raw"}],
            "filesystems": [{"device": "/dev/disk/by-label/ROOT", "format": "ext4", "wipeFilesystem": True}],
        },
    }))  # fmt: skip
    plan = bake(release, folder, "--ignition", "user.ign", "--updates", "--plan")
    assert "nothing that --updates could update" in plan.stderr
    said = " ".join(plan.stderr.split())
    assert "declares /opt/extensions/tools/tools.raw, which is baked already: the first boot would fail" in said
    assert "/etc/extensions/tools.raw" not in said and "user.ign wipes ROOT" in said
    assert "ignition user.ign (spec 3.3.0) → OEM:/config.ign" in " ".join(plan.stdout.split())


def test_options_bake_toml_and_environment_say_the_same(release, folder):
    def plan_of(*words: str, **env: str) -> dict[str, object]:
        done = flatcar_bake("-v", "tiny", "--plan", "--json", *words, env=release.env | env, cwd=folder)
        assert done.returncode == 0, done.stderr
        found: dict[str, object] = json.loads(done.stdout)
        return found

    words = ("--file", "motd:root:/etc/motd:0640", "--ignition", "user.ign", "--ignition-base", "base.ign",
             "--disable-builtin", "docker", "--enable-updates")  # fmt: skip
    by_options = plan_of(*words, "--official-sysext", "podman", "tools:tools.raw")
    (folder / "other.toml").write_text(
        'sysexts = ["tools:tools.raw"]\nfiles = ["motd:root:/etc/motd:0640"]\nignition = "user.ign"\n'
        'ignition_base = "base.ign"\ndisable_builtins = ["docker"]\nofficial_sysexts = ["podman"]\n'
        "enable_updates = true\n"
    )
    assert plan_of("--config", "other.toml")["id"] == by_options["id"]
    by_environment = plan_of(
        "tools:tools.raw", FLATCAR_BAKE_FILE="motd:root:/etc/motd:0640", FLATCAR_BAKE_IGNITION="user.ign",
        FLATCAR_BAKE_IGNITION_BASE="base.ign", FLATCAR_BAKE_DISABLE_BUILTIN="docker",
        FLATCAR_BAKE_OFFICIAL_SYSEXT="podman", FLATCAR_BAKE_ENABLE_UPDATES="1",
    )  # fmt: skip
    assert by_environment["id"] == by_options["id"] and by_options["updates"]
    assert by_options["additions"]["ignition"][0]["sha256"] == hashlib.sha256(USER).hexdigest()
    assert plan_of("--official-sysext", "podman")["sysexts"] == [], "a bake needs no sysext when it has something else"


def test_a_lock_holds_all_of_it(release, folder):
    def locked(*words: str) -> str:
        done = bake(release, folder, "--force", "--locked", *words)
        assert done.returncode == (3 if "does not allow" in done.stderr else 0), done.stderr
        return done.stderr

    assert bake(release, folder, *ADDED, "--lock").returncode == 0
    sums = (folder / "out/SHA256SUMS").read_text()
    assert "does not allow" not in locked(*ADDED)
    assert (folder / "out/SHA256SUMS").read_text() == sums
    assert "the official sysext zfs: none is locked" in locked(*ADDED, "--official-sysext", "zfs")
    assert "the ignition base: " in locked(*ADDED[:8], *ADDED[10:])
    (folder / "motd").write_text("changed\n")
    assert "the file OEM:/notes/motd: 0600 " in locked(*ADDED)
