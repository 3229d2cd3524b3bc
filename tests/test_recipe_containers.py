"""Builds in containers: a real compiler, no network for the steps, pinned images, and nothing left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from mirrors import Recorder
from servers import MirrorServer
from standin import cache

from baker.errors import EnvironmentFault, ImageError, VerificationError
from baker.recipe.containers import pinned_image, run_build
from baker.recipe.model import ContainerBuild
from baker.services import Services, Settings

PACKAGES = "busybox-static,tcc,libc6-dev"
APPLETS = "cat cp ls mkdir sleep wget"
PROGRAM = """
#include <stdio.h>
int main(void) { puts("built at " EPOCH); return 0; }
"""


@pytest.fixture(scope="session")
def image() -> Iterator[str]:
    """A small image with a C compiler, as a registry would have it."""

    def make(folder: Path) -> None:
        links = f'ln -sf busybox "$1/bin/sh"; for name in {APPLETS}; do ln -sf busybox "$1/bin/$name"; done'
        subprocess.run(
            ["mmdebstrap", "--quiet", "--variant=extract", f"--include={PACKAGES}", f"--extract-hook={links}",
             "bookworm", folder / "image.tar"], check=True,
        )  # fmt: skip

    tar = cache.item("container-image", (PACKAGES, APPLETS), make) / "image.tar"
    name = f"localhost/flatcar-test-{os.getpid()}:1"
    subprocess.run(["podman", "import", "--quiet", tar, name], check=True, capture_output=True)
    yield name
    subprocess.run(["podman", "rmi", "--force", name], check=True, capture_output=True)


@pytest.fixture
def services(tmp_path: Path) -> Iterator[Services]:
    settings = Settings(cache_dir=tmp_path / "cache", recipes_lock=tmp_path / "recipes.lock")
    with Services(settings, Recorder()) as services:
        yield services


@pytest.fixture
def out(tmp_path: Path) -> Path:
    (tmp_path / "out").mkdir()
    return tmp_path / "out"


def left(process: int) -> list[str]:
    """The containers and images of builds that a process ran."""
    listings = (["ps", "--all", "--format", "{{.Names}}"], ["images", "--format", "{{.Repository}}"])
    return [
        word
        for listing in listings
        for word in subprocess.run(["podman", *listing], check=True, capture_output=True, text=True).stdout.split()
        if f"flatcar-bake-{process}-" in word
    ]


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    yield
    assert not left(os.getpid())


def test_a_program_is_built_without_a_network(image: str, services: Services, out: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "main.c").write_text(PROGRAM)
    with MirrorServer(source) as server:
        build = ContainerBuild(
            {"": image}, platform="linux/amd64", mount={"src": "/src"}, env={"SOURCE_DATE_EPOCH": "1700000000"},
            fetch=(f"wget -q -O /tmp/header.h {server.url}/main.c",),
            steps=(
                "mkdir -p /out/usr/bin /tmp/build && cd /tmp/build && cp /src/main.c /tmp/header.h .",
                "if echo x >/src/new 2>/dev/null; then echo sources can be written; exit 7; fi",
                f"if wget -q -T 3 -O /dev/null {server.url}/main.c; then echo there is a network; exit 8; fi",
                """tcc -DEPOCH=\\"$SOURCE_DATE_EPOCH\\" -o /out/usr/bin/app main.c""",
            ),
        )  # fmt: skip
        run_build(build, {"src": source}, out, tmp_path, services)
    assert subprocess.run([out / "usr/bin/app"], check=True, capture_output=True).stdout == b"built at 1700000000\n"
    assert [str(path.relative_to(out)) for path in sorted(out.rglob("*"))] == ["usr", "usr/bin", "usr/bin/app"]
    assert sorted(path.name for path in source.iterdir()) == ["main.c"]
    pinned = pinned_image(build, services.pins)
    listed = ["podman", "image", "inspect", "--format", "{{.Digest}}", image]
    assert f"sha256:{pinned}" == subprocess.run(listed, check=True, capture_output=True, text=True).stdout.strip()
    assert f'"docker://{image} linux/amd64" = "{pinned}"\n' in (tmp_path / "recipes.lock").read_text()
    assert isinstance(services.console, Recorder)
    assert "used for the first time" in services.console.warnings[0]


def test_a_failed_step_says_its_last_words(image: str, services: Services, out: Path, tmp_path: Path) -> None:
    build = ContainerBuild({"": image}, steps=("echo configure: no libnl", "false", "echo never"))
    with pytest.raises(EnvironmentFault, match=r"failed with status 1: configure: no libnl$"):
        run_build(build, {}, out, tmp_path, services)


def test_a_step_that_hangs_is_ended(image: str, services: Services, out: Path, tmp_path: Path) -> None:
    build = ContainerBuild({"": image}, steps=("echo waiting; sleep 600",), timeout=2)
    with pytest.raises(ImageError, match=r"took more than 2 s") as caught:
        run_build(build, {}, out, tmp_path, services)
    assert "waiting" in (caught.value.hint or "")


def test_an_image_is_what_its_pin_says(image: str, services: Services, out: Path, tmp_path: Path) -> None:
    build = ContainerBuild({"": image}, steps=("true",))
    run_build(build, {}, out, tmp_path, services)
    pinned = pinned_image(build, services.pins)
    assert len(pinned) == 64
    run_build(build, {}, out, tmp_path, services)
    lock = tmp_path / "recipes.lock"
    lock.write_text(lock.read_text().replace(pinned, "0" * 64))
    with (
        Services(services.settings, Recorder()) as later,
        pytest.raises(EnvironmentFault, match=f"No container of {image} can be started"),
    ):
        run_build(build, {}, out, tmp_path, later)


def test_no_new_image_when_sources_are_locked(image: str, services: Services, out: Path, tmp_path: Path) -> None:
    services.settings.locked_sources = True
    with pytest.raises(VerificationError, match=f"Nothing vouches for docker://{image}"):
        run_build(ContainerBuild({"": image}, steps=("true",)), {}, out, tmp_path, services)


def test_a_machine_without_an_engine(
    image: str, services: Services, out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("baker.recipe.containers.find", lambda program: None)
    with pytest.raises(EnvironmentFault, match="neither podman nor docker") as caught:
        run_build(ContainerBuild({"": image}, steps=("true",)), {}, out, tmp_path, services)
    assert "apt-get install podman" in (caught.value.hint or "")


STOPPED = """
import signal, sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from baker import stopping
from baker.console import Console
from baker.recipe.containers import run_build
from baker.recipe.model import ContainerBuild
from baker.services import Services, Settings

image, folder, where, phase = sys.argv[1:]
for number in stopping.SIGNALS:
    signal.signal(number, stopping.handle)
lines = ("touch() { echo >$1; }; touch /out/begun; sleep 600",)
build = ContainerBuild({"": image}, **({"fetch": lines, "steps": ("true",)} if phase == "fetch" else {"steps": lines}))
services = Services(Settings(cache_dir=Path(folder) / "cache", recipes_lock=Path(folder) / "lock"), Console())
work = lambda: run_build(build, {}, Path(folder) / "out", Path(folder), services)
try:
    if where == "main":
        work()
    else:
        with ThreadPoolExecutor(1) as pool:
            pool.submit(work).result()
except stopping.Stopped:
    sys.exit(130)
"""


@pytest.mark.parametrize(("where", "phase"), [("main", "steps"), ("thread", "fetch")])
def test_a_stopped_build_leaves_no_container(image: str, out: Path, tmp_path: Path, where: str, phase: str) -> None:
    root = Path(__file__).resolve().parents[1]
    argv = [sys.executable, "-c", STOPPED, image, str(tmp_path), where, phase]
    with subprocess.Popen(argv, cwd=root) as process:
        deadline = time.monotonic() + 60
        while process.poll() is None and not (out / "begun").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130
    assert not left(process.pid)
