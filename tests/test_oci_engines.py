"""Every engine gives the same tree: podman, a docker daemon, skopeo from a real registry, and no engine at all."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from cli import flatcar_bake
from engines import docker_daemon, registry
from oci_images import (
    Entry,
    add_image,
    add_index,
    by_umoci,
    entry,
    folder,
    layer,
    link,
    make_rich_image,
    rootfs,
    write_index,
    zstd,
)
from packs import AS_NOBODY, NOBODY
from programs import debian

ROOT = Path(__file__).resolve().parents[1]


def podman(*words: str | Path) -> str:
    return subprocess.run(["podman", *words], check=True, capture_output=True, text=True).stdout


def left(process: int) -> list[str]:
    """The containers and images of commands that a process ran in podman."""
    listings = (["ps", "--all", "--format", "{{.Names}}"], ["images", "--format", "{{.Repository}}"])
    found: list[str] = []
    for listing in listings:
        for _ in range(10):
            done = subprocess.run(["podman", *listing], capture_output=True, text=True)
            if not done.returncode:  # it fails when somebody removes an image meanwhile
                break
            time.sleep(0.2)
        assert not done.returncode, done.stderr
        found += [word for word in done.stdout.split() if f"flatcar-bake-{process}-" in word]
    return found


def unique() -> Entry:
    """A file that no other image has, so that nobody removes one that others use."""
    return entry("unique", uuid.uuid4().bytes)


def oci_rootfs(
    *words: str | Path, env: dict[str, str] | None = None, cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Run the command to its end, which leaves nothing in podman."""
    argv = [sys.executable, "-m", "baker", "oci-rootfs", *words]
    with subprocess.Popen(
        argv, env=os.environ | {"PYTHONPATH": str(ROOT)} | (env or {}), cwd=cwd, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        stdout, stderr = process.communicate()
    assert not left(process.pid)
    return subprocess.CompletedProcess(argv, process.returncode, stdout, stderr)


def shell_layer() -> bytes:
    """A layer with a shell and a few tools, and no more: not even the folders that every container has."""
    busybox = (debian("busybox-static") / "bin/busybox").read_bytes()
    links = [link(f"bin/{name}", "busybox") for name in ("sh", "rm", "mkdir", "ln", "chmod", "sleep", "cat")]
    folders = [folder("bin"), folder("data")]
    return layer(
        *folders, entry("bin/busybox", busybox, mode=0o755), entry("data/kept", b"kept"), entry("data/old"), *links
    )


def push(layout: Path, name: str, *options: str) -> None:
    subprocess.run(
        ["skopeo", "copy", "--quiet", "--dest-tls-verify=false", *options, f"oci:{layout}", f"docker://{name}"],
        check=True,
    )


CHANGE = (
    "rm /data/old; mkdir -m 750 /made; cat /data/kept >/made/copy; ln -s ../data /made/link; chmod 4711 /made/copy"
)


def test_every_engine_gives_the_same_tree(tmp_path: Path) -> None:
    rich = make_rich_image(tmp_path)
    with docker_daemon(tmp_path / "daemon") as docker:
        with registry(tmp_path / "registry") as (host, trust):
            env = docker | trust
            push(Path(f"{rich}:upper"), f"{host}/mine/rich:1")
            arches = tmp_path / "arches"
            rows = [
                add_image(arches, [shell_layer(), layer(entry("arch", arch.encode()))], arch=arch)
                | {"platform": {"os": "linux", "architecture": arch}}
                for arch in ("amd64", "arm64")
            ]
            both = add_index(arches, *rows)
            write_index(arches, both)
            push(arches, f"{host}/mine/arches:1", "--all")
            _same_tree(tmp_path, f"{host}/mine/rich:1", by_umoci(rich, "upper", tmp_path / "judge"), env)
            _by_digest_and_arch(tmp_path, host, str(both["digest"]), env)
            _as_an_ordinary_user(f"{host}/mine/arches:1", env)
            _same_after_a_command(tmp_path, f"{host}/mine/arches:1", env)
        _without_the_registry(tmp_path, f"{host}/mine/rich:1", env)
    names = f"{host}/mine/rich:1", f"{host}/mine/arches:1", f"{host}/mine/arches@{both['digest']}"
    podman("rmi", "--force", *names)


def bake_rootfs(*words: str | Path, env: dict[str, str]) -> dict[str, object]:
    done = oci_rootfs("--json", *words, env=env)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


def _same_tree(place: Path, name: str, wanted: object, env: dict[str, str]) -> None:
    said = set()
    for engine in ("podman", "docker", "skopeo"):
        made = bake_rootfs(name, place / engine, "--engine", engine, "--devices", env=env)
        assert rootfs(place / engine) == wanted, engine
        assert made["engine"] == engine
        said.add((made["digest"], made["config"], made["layers"], made["paths"]))
    assert len(said) == 1, "all tell the same digests"


def _by_digest_and_arch(target: Path, host: str, digest: str, env: dict[str, str]) -> None:
    words = (f"mine/arches@{digest}", "--registry", host, "-a", "arm64")
    for engine in ("podman", "docker", "skopeo"):
        made = bake_rootfs(*words, target / f"{engine}-arm", "--engine", engine, env=env)
        assert made["digest"] == digest and (target / f"{engine}-arm/arch").read_text() == "arm64"


def _as_an_ordinary_user(name: str, env: dict[str, str]) -> None:
    with tempfile.TemporaryDirectory(prefix="flatcar-bake-nobody-") as home:
        trust = Path(home) / "registries.conf"
        trust.write_bytes(Path(env["CONTAINERS_REGISTRIES_CONF"]).read_bytes())
        os.chown(home, NOBODY, NOBODY)
        own = {"HOME": home, "TMPDIR": home, "XDG_RUNTIME_DIR": home, "CONTAINERS_REGISTRIES_CONF": str(trust)}
        words = ("oci-rootfs", name, "root", "--engine", "skopeo")
        done = flatcar_bake(*words, env=own | {"PYTHONPATH": str(ROOT)}, cwd=Path(home), prefix=AS_NOBODY)
        assert done.returncode == 0, done.stderr
        found = rootfs(Path(home) / "root")
        assert found["data/kept"][1:3] == (NOBODY, NOBODY) and "arch" in found


def _same_after_a_command(place: Path, name: str, env: dict[str, str]) -> None:
    found = {}
    for engine in ("podman", "docker"):
        target = place / f"{engine}-run"
        bake_rootfs(name, target, "--engine", engine, "--network", "none", "--run", CHANGE, env=env)
        found[engine] = {path: facts[:3] + facts[4:] for path, facts in rootfs(target).items()}
        failed = oci_rootfs(
            name, place / "none", "--engine", engine, "--network", "none",
            "--run", "echo no luck; false; echo never", env=env,
        )  # fmt: skip
        assert failed.returncode == 4 and "status 1: no luck" in failed.stderr, failed.stderr
        assert not (place / "none").exists()
    assert found["podman"] == found["docker"]
    paths = set(found["podman"])
    assert {"made", "made/copy", "made/link", "data/kept"} <= paths and "data/old" not in paths
    assert not {path for path in paths if path.startswith(("dev", "proc", "sys", "run", "etc", "."))}
    listed = subprocess.run(["docker", "ps", "-aq"], env=os.environ | env, check=True, capture_output=True)
    assert not listed.stdout


def _without_the_registry(place: Path, name: str, env: dict[str, str]) -> None:
    for engine in ("podman", "docker"):
        target = place / f"{engine}-kept"
        bake_rootfs(name, target, "--engine", engine, "--devices", env=env | {"FETCH": "0"})
        assert rootfs(target) == rootfs(place / engine)
        missing = oci_rootfs("--no-pull", f"{name}23", place / "no", "--engine", engine, env=env)
        assert missing.returncode == 4 and f"{engine} has no image" in missing.stderr
    refused = oci_rootfs("--no-pull", name, place / "no", "--engine", "skopeo", env=env)
    assert refused.returncode == 2 and "skopeo only copies from registries" in refused.stderr
    gone = oci_rootfs(name, place / "no", env=env)
    assert gone.returncode == 4 and all(f"{each}: " in gone.stderr for each in ("podman", "docker", "skopeo"))


@pytest.fixture
def image(tmp_path: Path) -> Iterator[str]:
    """A small image that podman has under the name of a registry that nobody can reach."""
    name = f"registry.invalid/flatcar/test-{os.getpid()}:1"
    layout = write_index(tmp_path / "layout", add_image(tmp_path / "layout", [shell_layer()]))
    identity = podman("pull", "--quiet", f"oci:{layout}").split()[-1]
    podman("tag", identity, name)
    yield name
    podman("rmi", "--force", identity)


def test_the_old_script_s_variables(image: str, tmp_path: Path) -> None:
    host, _, name = image.partition("/")
    env = {"REGISTRY": host, "ARCH": "amd64", "CMD": "mkdir /by-variable", "FETCH": "0",
           "FLATCAR_BAKE_NETWORK": "none", "FLATCAR_BAKE_ENGINE": "podman"}  # fmt: skip
    done = oci_rootfs(name, "root/", env=env, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "root/by-variable").is_dir()
    other = oci_rootfs(name, "other", env=env | {"ARCH": "arm64v8"}, cwd=tmp_path)
    assert other.returncode == 2 and "for amd64, not for arm64" in other.stderr
    odd = oci_rootfs(name, "other", env=env | {"ARCH": "riscv64"}, cwd=tmp_path)
    assert odd.returncode == 2 and "no architecture 'riscv64'" in odd.stderr
    option = oci_rootfs(name, "option", "--run", "mkdir /by-option", env=env, cwd=tmp_path)
    assert option.returncode == 0 and (tmp_path / "option/by-option").is_dir()
    assert not (tmp_path / "option/by-variable").exists()


@pytest.mark.parametrize("kind", ["oci", "docker-archive"])
def test_a_command_in_a_layout_or_archive(tmp_path: Path, kind: str) -> None:
    layout = write_index(tmp_path / "layout", add_image(tmp_path / "layout", [shell_layer()]))
    source = f"oci:{layout}"
    if kind == "docker-archive":
        source = str(tmp_path / "image.tar")
        subprocess.run(["skopeo", "copy", "--quiet", f"oci:{layout}", f"docker-archive:{source}:a:1"], check=True)
    done = oci_rootfs(source, tmp_path / "root", "--run", CHANGE, "--network", "none", "--json")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "root/made/copy").read_text() == "kept"
    plain = oci_rootfs(source, tmp_path / "plain", "--json")
    base = str(json.loads(plain.stdout)["config"]).removeprefix("sha256:")
    assert subprocess.run(["podman", "image", "exists", base]).returncode == 1, "it was loaded for the command only"


def test_a_stopped_command_leaves_nothing(image: str, tmp_path: Path) -> None:
    argv = [sys.executable, "-m", "baker", "oci-rootfs", image, "root", "--no-pull", "--engine", "podman"]
    argv += ["--network", "none", "--run", "mkdir /begun; sleep 600"]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(argv, cwd=tmp_path, env=env, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 90
        mine = f"flatcar-bake-{process.pid}-"
        while mine not in podman("ps", "--format", "{{.Names}}"):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=90)
    assert process.returncode == 130
    assert not left(process.pid)
    assert [path.name for path in tmp_path.iterdir()] == ["layout"]


def test_a_machine_without_an_engine(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/zstd").symlink_to("/usr/bin/zstd")
    program = "import baker.run, sys; baker.run._SBIN = '/none'; from baker.cli import main; main()"
    env = os.environ | {"PATH": str(tmp_path / "bin"), "PYTHONPATH": str(ROOT)}
    layout = write_index(tmp_path / "layout", add_image(tmp_path / "layout", [layer(entry("x"))], packing="tar+zstd"))

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        argv = [sys.executable, "-c", program, "oci-rootfs", *words]
        return subprocess.run(argv, env=env, cwd=tmp_path, capture_output=True, text=True)

    none = run("alpine", "root")
    assert none.returncode == 4 and "neither podman, docker nor skopeo is installed" in none.stderr
    command = run("alpine", "root", "--run", "true")
    assert command.returncode == 4 and "neither podman nor docker is installed" in command.stderr
    assert run(str(layout), "root").returncode == 0 and (tmp_path / "root/x").exists()
    assert zstd(b"") and sorted(path.name for path in (tmp_path / "root").iterdir()) == ["x"]
