"""`flatcar-bake recipe …` as a user types it, against the mirror of the upstreams."""

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from cli import flatcar_bake
from recipe_checks import listing
from servers import setting
from upstream import Upstream

from baker.model import Arch
from recipes import write_recipe


@pytest.fixture(scope="module")
def env(upstream: Upstream, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """wasmtime and docker are mirrored; all tests share a cache."""
    upstream.add("wasmtime", Arch.X86_64)
    upstream.add("docker", Arch.X86_64)
    return {
        "FLATCAR_BAKE_CACHE_DIR": str(tmp_path_factory.mktemp("cache")),
        "FLATCAR_BAKE_MIRROR_URL": " ".join("=".join(rule) for rule in upstream.rewrites),
        "FLATCAR_BAKE_COMPRESSION": "lz4", "FLATCAR_BAKE_PROGRESS": "plain",
    }  # fmt: skip


def ok(*words: str | Path, env: dict[str, str] | None = None, cwd: Path | None = None) -> str:
    done = flatcar_bake("recipe", *words, env=env, cwd=cwd)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_list_and_show():
    assert "wasmtime" in ok("list")
    rows = {row["name"]: row for row in json.loads(ok("list", "--json"))}
    assert len(rows) >= 35 and "docker_compose" in rows["docker-compose"]["aliases"]
    shown = ok("show", "docker")
    for text in ("docker-only", "docker.socket", "recipes.lock", "sockets.target"):
        assert text in shown


@pytest.mark.parametrize("words", [("show", "dokcer"), ("build", "dokcer", "1"), ("versions", "dokcer")])
def test_a_recipe_that_does_not_exist(words):
    done = flatcar_bake("recipe", *words)
    assert done.returncode == 2 and "Did you mean docker" in done.stderr


def test_versions(env, upstream):
    assert ok("versions", "wasmtime", env=env).splitlines()[0] == "v49.0.4"
    assert json.loads(ok("versions", "wasmtime", "--latest", "--json", env=env)) == ["v49.0.4"]


def test_build_the_latest(env, tmp_path):
    done = flatcar_bake("recipe", "build", "wasmtime", "latest", "--json", env=env, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    assert record["files"] == ["wasmtime-v49.0.4-x86-64.raw"]
    assert record["inputs"][0]["trust"] == "github digest"
    assert "/usr/bin/wasmtime" in listing(tmp_path / "wasmtime-v49.0.4-x86-64.raw")
    assert [path.name for path in tmp_path.iterdir()] == record["files"], "no work folder is left"


def test_variables_of_the_old_scripts_and_another_name(env, tmp_path):
    old = env | {"ONLY_CONTAINERD": "1", "ARCH": "x86_64", "FORMAT": "erofs", "FLATCAR_BAKE_COMPRESSION": "none"}
    words = ("build", "docker", "20.10.24", "--name", "mydocker", "--sysupdate", "--output-dir", tmp_path / "new")
    printed = ok(*words, env=old).split()
    assert [Path(word).name for word in printed] == ["mydocker-20.10.24-x86-64.raw", "noop.conf", "mydocker.conf"]
    image = tmp_path / "new/mydocker-20.10.24-x86-64.raw"
    assert image.read_bytes()[1024:1028] == b"\xe2\xe1\xf5\xe0", "the magic number of erofs"
    found = listing(image)
    assert "/usr/bin/containerd" in found and "/usr/bin/dockerd" not in found
    again = flatcar_bake("recipe", *words, env=old)
    assert again.returncode == 2 and "exists" in again.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("wasmtime", "49.0"), "is no version of wasmtime"),
        (("wasmtime", "49.0.4", "--arch", "riscv"), "no architecture"),
        (("wasmtime", "49.0.4", "--format", "squasfs"), "Did you mean squashfs"),
        (("wasmtime", "49.0.4", "--param", "x"), "NAME=VALUE"),
        (("wasmtime", "49.0.4", "--param", "x=1"), "has no parameter 'x'"),
        (("wasmtime", "49.0.4", "extra"), "takes no argument 'extra'"),
        (("wasmtime", "49.0.4", "--variant", "x"), "has no variant 'x'"),
        (("wasmtime", "49.0.4", "--name", "a/b"), "cannot be the name"),
        (("wasmtime", "49.0.4", "--mirror-url", "x"), "PREFIX=PREFIX"),
        (("wasmtime", "49.0.4", "--recipes", "/none"), "no folder /none"),
    ],
    ids=lambda value: value[-1] if isinstance(value, tuple) else "",
)
def test_words_that_make_no_sense(words, message, env, tmp_path):
    done = flatcar_bake("recipe", "build", *words, env=env, cwd=tmp_path)
    assert done.returncode == 2 and message in done.stderr
    assert not list(tmp_path.iterdir())


def test_a_version_that_does_not_exist(env, tmp_path):
    done = flatcar_bake("recipe", "build", "wasmtime", "1.0.0", env=env, cwd=tmp_path)
    assert done.returncode == 5, done.stderr
    assert "wasmtime-v1.0.0-x86_64-linux.tar.xz" in done.stderr and "recipe versions wasmtime" in done.stderr
    assert not list(tmp_path.iterdir())


def test_sources_can_be_locked(env, tmp_path):
    lock = tmp_path / "recipes.lock"
    words = ("recipe", "build", "docker", "20.10.24", "--locked-sources", "--recipes-lock", lock)
    env = env | {"FLATCAR_BAKE_CACHE_DIR": str(tmp_path / "cache")}
    done = flatcar_bake(*words, env=env, cwd=tmp_path)
    assert done.returncode == 3 and "docker-20.10.24.tgz" in done.stderr
    done = flatcar_bake(*words[:4], "--recipes-lock", lock, env=env, cwd=tmp_path)
    assert done.returncode == 0 and "first time" in done.stderr
    assert lock.read_text().count("docker-20.10.24.tgz") == 1
    done = flatcar_bake(*words, "--force", env=env, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_a_new_recipe_is_fine_and_is_begun_once(tmp_path):
    ok("new", "my-tool", "--recipes", tmp_path / "recipes")
    assert "1 recipe is fine" in ok("lint", "my-tool", "--recipes", tmp_path / "recipes")
    done = flatcar_bake("recipe", "new", "my-tool", "--recipes", tmp_path / "recipes")
    assert done.returncode == 2 and "exists" in done.stderr


def test_lint_names_everything_that_is_wrong(tmp_path):
    write_recipe(tmp_path, files={"etc/x": ""})
    done = flatcar_bake("recipe", "lint", "tool", "--recipes", tmp_path)
    assert done.returncode == 2 and "2 things are wrong" in done.stderr
    assert "below /usr or /opt" in done.stdout and "recipe.toml:26: nothing brings tool.service" in done.stdout


def test_names_are_completed():
    done = flatcar_bake(
        env={
            "_FLATCAR_BAKE_COMPLETE": "complete_bash",
            "COMP_WORDS": "flatcar-bake recipe build was",
            "COMP_CWORD": "3",
        }
    )
    assert {"wasmtime", "wasmcloud", "wasmedge"} <= set(done.stdout.split())


@pytest.fixture
def slow(upstream: Upstream) -> Iterator[str]:
    """A download that stops half-way; its path."""
    path = next(path for path in upstream.folder.rglob("wasmtime-*.tar.xz"))
    name = f"/{path.relative_to(upstream.folder)}"
    upstream.server.on(name, setting(stall=1000))
    yield name
    upstream.server.faults.pop(name)


def test_an_interrupted_build_leaves_nothing(env, slow, upstream, tmp_path):
    words = [sys.executable, "-m", "baker", "recipe", "build", "wasmtime", "49.0.4"]
    clean = env | {"FLATCAR_BAKE_CACHE_DIR": str(tmp_path / "cache"), "PATH": "/usr/bin:/bin"}
    out = tmp_path / "out"
    out.mkdir()
    with subprocess.Popen(words, env=clean, cwd=out, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr
        for line in process.stderr:
            if "tar.xz" in line:
                break
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130
    assert not list(out.iterdir())
