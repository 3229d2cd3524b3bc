"""A real registry and a real docker daemon, each for the length of a block, on this machine only."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from programs import debian

_PATIENCE = 90  # seconds


@contextmanager
def registry(folder: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """A registry that keeps its blobs in `folder`; yields HOST:PORT, and what makes podman and skopeo trust it."""
    folder.mkdir()
    host = f"127.0.0.1:{_free_port()}"
    config = folder / "config.yml"
    config.write_text(
        f"version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {folder}/blobs}}}}\n"
        f"http: {{addr: '{host}'}}\n"
    )
    trust = folder / "registries.conf"
    trust.write_text(f'[[registry]]\nlocation = "{host}"\ninsecure = true\n')
    with _running(["docker-registry", "serve", config], folder / "log", lambda: _answers(host)):
        yield host, {"CONTAINERS_REGISTRIES_CONF": str(trust)}


@contextmanager
def docker_daemon(folder: Path) -> Iterator[dict[str, str]]:
    """Debian's dockerd without networks, its state in `folder`; yields what tells flatcar-bake to use it."""
    root = debian("docker.io", "containerd", "runc", "tini")
    state = folder / "docker"
    state.mkdir(parents=True)
    path = f"{root}/usr/sbin:{root}/usr/bin:{os.environ['PATH']}"
    # A socket's path has at most 107 bytes, which pytest's folders nearly use up.
    place = Path(f"/tmp/flatcar-bake-test-docker-{os.getpid()}")
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(0o700)
    sock = place / "sock"
    argv = [
        "dockerd", "--data-root", state / "data", "--exec-root", place / "exec", "--pidfile", place / "pid", "--host",
        f"unix://{sock}", "--bridge=none", "--iptables=false", "--ip-masq=false", "--storage-driver=vfs",
    ]  # fmt: skip
    # The daemon answers to clients of its time; the newest ones want more.
    client = folder / "client"
    client.mkdir()
    (client / "docker").symlink_to(root / "usr/bin/docker")
    ours = {"DOCKER_HOST": f"unix://{sock}", "PATH": f"{client}:{os.environ['PATH']}"}

    def ready() -> bool:
        return not subprocess.run(
            [client / "docker", "version"], env=os.environ | ours, capture_output=True
        ).returncode

    try:
        with _running(argv, state / "log", ready, {"PATH": path}):
            yield ours
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _answers(host: str) -> bool:
    name, _, port = host.partition(":")
    try:
        socket.create_connection((name, int(port)), timeout=5).close()
    except OSError:
        return False
    return True


@contextmanager
def _running(
    argv: Sequence[str | Path], log: Path, ready: Callable[[], bool], env: dict[str, str] | None = None
) -> Iterator[None]:
    """Run a server, from when it is ready until the block ends."""
    words = [shutil.which(str(argv[0]), path=(env or {}).get("PATH")) or argv[0], *argv[1:]]
    with (
        log.open("wb") as output,
        subprocess.Popen(words, stdout=output, stderr=output, env=os.environ | (env or {})) as server,
    ):
        try:
            deadline = time.monotonic() + _PATIENCE
            while not ready():
                assert server.poll() is None and time.monotonic() < deadline, log.read_text()
                time.sleep(0.1)
            yield
        finally:
            server.terminate()
            try:
                server.wait(30)
            except subprocess.TimeoutExpired:
                server.kill()
