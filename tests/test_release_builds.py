"""`release build` publishes what a versions file says: all that can be built, once, and indexed."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from release_sites import Workshop, images
from servers import MirrorServer, setting

from baker.errors import UsageError
from baker.releasing.items import parse_image_name
from baker.releasing.versions import Wanted, parse_added, parse_versions
from baker.sysupdate import parse_config
from baker.verify import parse_sha256sums

NAMES = {"docker", "docker-compose", "docker_compose", "wasmtime", "k3s"}
URL = "https://sysexts.example/x"


def test_both_forms_of_a_versions_file_are_understood() -> None:
    text = (
        "# a comment\n\nwasmtime-24.0.0 # used in the README\ndocker_compose-2.24.5\ndocker-compose-2.24.5-rc.1\n"
        "k3s v1.29.2+k3s1\n  docker   latest\nwasmtime v1.0.0 level=3 kind=min\n"
    )
    assert [(line.name, line.version, line.parameters) for line in parse_versions(text, "v.txt", NAMES)] == [
        ("wasmtime", "24.0.0", ()), ("docker_compose", "2.24.5", ()), ("docker-compose", "2.24.5-rc.1", ()),
        ("k3s", "v1.29.2+k3s1", ()), ("docker", "latest", ()),
        ("wasmtime", "v1.0.0", (("level", "3"), ("kind", "min"))),
    ]  # fmt: skip
    assert parse_added("k3s@latest a=b", NAMES) == Wanted("k3s", "latest", (("a", "b"),), "--add k3s@latest")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("wasmtine-1.0", "v.txt, line 2: there is no recipe 'wasmtine-1.0'"),
        ("wasmtime", "v.txt, line 2: wasmtime has no version"),
        ("wasmtime-", "v.txt, line 2: wasmtime has no version"),
        ("wasmtine latest", "v.txt, line 2: there is no recipe 'wasmtine'"),
        ("wasmtime 1.0 fast", "v.txt, line 2: 'fast' is no parameter"),
    ],
)
def test_a_line_that_makes_no_sense_is_named(line: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse_versions(f"# first\n{line}\n", "v.txt", NAMES)


@pytest.mark.parametrize(
    ("file", "found"),
    [
        ("docker-compose-2.24.5-x86-64.raw", ("docker-compose", "2.24.5")),
        ("k3s-v1.29.2+k3s1-x86-64.raw", ("k3s", "v1.29.2+k3s1")),
        ("my-own-tool-1.0-rc1-x86-64.raw", ("my-own-tool", "1.0-rc1")),
        ("tool.raw", None), ("tool-x86-64.raw", None), ("../tool-1-x86-64.raw", None), ("tool-1-x86-64.conf", None),
    ],
)  # fmt: skip
def test_names_of_images_are_taken_apart(file: str, found: tuple[str, str] | None) -> None:
    image = parse_image_name(file, NAMES)
    assert (image and (image.component, image.version)) == found


def test_a_release_has_images_lists_configs_and_notes(tmp_path: Path) -> None:
    shop = Workshop(tmp_path)
    report = shop.build("tool latest\nold_tool-1.2.3 # under its old name\n", "--url", URL, "-j", "2")
    assert [record["name"] for record in report["built"]] == ["tool", "tool", "old_tool", "old_tool"]
    assert not report["skipped"] and not report["failed"]
    sums = parse_sha256sums((tmp_path / "site/SHA256SUMS").read_bytes())
    built = images("v1.3.0") + images("v1.2.3", name="old_tool")
    configs = ["noop.conf", "old_tool-v1.2.conf", "old_tool.conf", "tool-v1.3.conf", "tool.conf"]
    assert sorted(sums) == sorted(built + [name[:-4] + ".json" for name in built] + configs)
    for name, digest in sums.items():
        folder = tmp_path / "site" / (name.split("-")[0] if "-x86" in name or "-arm" in name else "")
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest, name
    own = parse_sha256sums((tmp_path / "site/old_tool/SHA256SUMS").read_bytes())
    assert own == {name: digest for name, digest in sums.items() if name.startswith("old_tool-v1.2.3-")}
    config = parse_config((tmp_path / "site/tool-v1.3.conf").read_bytes())
    assert config.source_path == f"{URL}/tool/" and config.source_patterns == ("tool-v1.3.@v-%a.raw",)
    assert config.current_symlink == "/etc/extensions/tool.raw" and not config.verify
    notes = (tmp_path / "site/Release.md").read_text()
    assert f"[arm64]({URL}/old_tool/old_tool-v1.2.3-arm64.raw)" in notes and "previous" not in notes
    assert {name for name in shop.files() if "/." in name or name.startswith(".")} == set()


def test_one_failure_does_not_lose_the_rest_and_is_tried_again(tmp_path: Path) -> None:
    shop = Workshop(tmp_path)
    (tmp_path / "versions.txt").write_text("tool v1.2.3\ntool v6.6.6\ntool v1.3.0\n")
    done = shop.run("build", "versions.txt", "-o", "site", "--json")
    assert done.returncode == 5, done.stderr
    assert "2 of 6 failed: tool-v6.6.6-x86-64.raw: There is no file" in done.stderr
    report = json.loads(done.stdout)
    assert [entry["file"] for entry in report["failed"]] == images("v6.6.6")
    assert set(images("v1.2.3", "v1.3.0")) < set(parse_sha256sums((tmp_path / "site/SHA256SUMS").read_bytes()))
    shop.publish("v6.6.6")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "site").rglob("*.raw")}
    report = shop.build("tool v1.2.3\ntool v6.6.6\ntool v1.3.0\n")
    assert [record["version"] for record in report["built"]] == ["v6.6.6", "v6.6.6"]
    assert report["skipped"] == images("v1.2.3", "v1.3.0")
    assert all(path.stat().st_mtime_ns == then for path, then in before.items())


def test_a_line_whose_versions_cannot_be_looked_up_fails_alone(tmp_path: Path) -> None:
    shop = Workshop(tmp_path)
    (tmp_path / "up/versions").unlink()
    done = shop.run("build", "--add", "tool@latest", "--add", "tool@1.2.3", "-o", "site")
    assert done.returncode == 5 and "1 of 3 failed: tool latest: There is no file" in done.stderr
    assert [name for name in shop.files() if name.endswith(".raw")] == sorted(
        f"tool/{name}" for name in images("v1.2.3")
    )


@pytest.mark.parametrize(("number", "status"), [(signal.SIGKILL, -9), (signal.SIGINT, 130)])
def test_a_release_that_was_interrupted_goes_on_where_it_was(
    number: signal.Signals, status: int, tmp_path: Path
) -> None:
    shop = Workshop(tmp_path)
    with MirrorServer(shop.upstream) as server:
        server.on("/v1.3.0/tool-amd64.tar.gz", setting(stall=10))
        env = shop.environment(FLATCAR_BAKE_MIRROR_URL=f"https://up.example/={server.url}/")
        words = ("release", "build", "--add", "tool@1.2.3", "--add", "tool@1.3.0", "-a", "x86-64", "-j", "1")
        argv = [sys.executable, "-m", "baker", *words]
        with subprocess.Popen(argv, env=os.environ | env, cwd=tmp_path) as process:
            deadline = time.monotonic() + 60
            while time.monotonic() < deadline and not server.requests("/v1.3.0/tool-amd64.tar.gz"):
                time.sleep(0.1)
            process.send_signal(number)
            server.released.set()
            assert process.wait(60) == status
        assert "tool/tool-v1.2.3-x86-64.raw" in shop.files("release")
        left = [name for name in shop.files("release") if name.startswith(".")]
        assert bool(left) == (number == signal.SIGKILL)
        server.faults.clear()
        done = shop.run(*words[1:], "--json", env=env)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["skipped"] == ["tool-v1.2.3-x86-64.raw"] and len(report["built"]) == 1
    assert not [name for name in shop.files("release") if name.startswith(".")]


def test_flat_releases_keep_everything_in_one_folder(tmp_path: Path) -> None:
    shop = Workshop(tmp_path)
    shop.build("tool 1.3.0\n", "--flat", "--url", URL, "-a", "arm64")
    assert shop.files() == [
        "Release.md", "SHA256SUMS", "noop.conf", "tool-v1.3.0-arm64.json", "tool-v1.3.0-arm64.raw", "tool-v1.3.conf",
        "tool.conf",
    ]  # fmt: skip
    assert parse_config((tmp_path / "site/tool.conf").read_bytes()).source_path == f"{URL}/"


@pytest.mark.parametrize("only_new", [False, True])
def test_what_a_previous_release_has_is_not_built_again(only_new: bool, tmp_path: Path) -> None:
    shop = Workshop(tmp_path)
    shop.build("tool 1.2.3\n", out="old")
    with MirrorServer(tmp_path / "old") as server:
        words = ["--previous", server.url, "--url", URL] + (["--only-new"] if only_new else [])
        report = shop.build("tool 1.2.3\ntool 1.3.0\n", *words)
    assert report["skipped"] == images("v1.2.3")
    assert [record["version"] for record in report["built"]] == ["v1.3.0"] * 2
    there = [Path(name).name for name in shop.files() if name.endswith(".raw")]
    assert sorted(there) == sorted(images("v1.3.0") if only_new else images("v1.2.3", "v1.3.0"))
    sums = parse_sha256sums((tmp_path / "site/SHA256SUMS").read_bytes())
    assert set(images("v1.2.3", "v1.3.0")) < set(sums) and "tool-v1.2.conf" in sums
    new, earlier = (tmp_path / "site/Release.md").read_text().split("## From previous releases")
    assert "v1.3.0" in new and "v1.2.3" not in new and "v1.2.3" in earlier


def test_an_image_that_differs_from_the_previous_release_is_refused(tmp_path: Path) -> None:
    shop = Workshop(tmp_path)
    shop.build("tool 1.2.3\n", "-a", "arm64", out="old")
    shop.build("tool 1.2.3\n", "-a", "arm64", "--epoch", "7", out="site")
    done = shop.run("build", "versions.txt", "-a", "arm64", "-o", "site", "--previous", "old")
    assert done.returncode == 3 and "One version must always be the same bytes" in done.stderr


def test_a_plan_builds_nothing(tmp_path: Path) -> None:
    shop = Workshop(tmp_path)
    done = shop.run("build", "--add", "tool@latest", "--plan")
    assert done.stdout.splitlines() == images("v1.3.0") and not shop.files("release")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "Cannot read the versions file release_build_versions.txt"),
        (("--add", "tool"), "--add wants NAME@VERSION, not 'tool'"),
        (("--add", "tool@9"), "--add tool@9: '9' is no version of tool"),
        (("--add", "tool@1.2.3", "--url", "http://plain.example"), "no address that machines may update from"),
        (("--add", "tool@1.2.3", "--format", "zip"), "zip"),
    ],
)
def test_what_makes_no_sense_is_said_before_anything_is_built(
    words: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    shop = Workshop(tmp_path, ("v1.2.3",))
    done = shop.run("build", *words)
    assert done.returncode == 2 and message in done.stderr
    assert not shop.files("release")
