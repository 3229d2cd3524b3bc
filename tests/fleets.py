"""A fleet on this machine: a real Dask cluster and a real S3 server, each process in a network namespace of its own.

Every machine is a namespace with one address, behind a bridge that only they and we are on. Scheduler and workers are
Dask's own programs; the S3 server is SeaweedFS. All names are random, so that test runs do not meet.
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
import sysconfig
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import s3fs

SCHEDULER_PORT, S3_PORT = 8786, 8333
PATIENCE = 120.0
KEYS = {"AWS_ACCESS_KEY_ID": "fleet", "AWS_SECRET_ACCESS_KEY": "only-for-tests", "AWS_REGION": "us-east-1"}
BUCKET = "images"


def ip(*words: str) -> None:
    """Run ip(8)."""
    done = subprocess.run(["ip", *words], capture_output=True, text=True)
    assert done.returncode == 0, (words, done.stderr)


@dataclass
class Network:
    """A bridge, and namespaces behind it. `address` is ours on it."""

    name: str
    prefix: str
    count: int = 1

    @property
    def address(self) -> str:
        return f"{self.prefix}.1"

    def machine(self, stack: ExitStack) -> tuple[str, str]:
        """A new namespace with an address: (name, address)."""
        self.count += 1
        number, address = self.count, f"{self.prefix}.{self.count}"
        namespace = f"{self.name}-{number}"
        outer, inner = f"{self.name}o{number}", f"{self.name}i{number}"
        ip("netns", "add", namespace)
        stack.callback(ip, "netns", "delete", namespace)
        ip("link", "add", outer, "type", "veth", "peer", "name", inner, "netns", namespace)
        ip("link", "set", outer, "master", self.name, "up")
        ip("-n", namespace, "address", "add", f"{address}/24", "dev", inner)
        ip("-n", namespace, "link", "set", inner, "up")
        ip("-n", namespace, "link", "set", "lo", "up")
        return namespace, address


@contextmanager
def network() -> Iterator[Network]:
    """A network of an unused address range."""
    name = f"fb{secrets.token_hex(3)}"
    ip("link", "add", name, "type", "bridge")
    try:
        while True:
            prefix = f"10.{secrets.randbelow(200) + 20}.{secrets.randbelow(250)}"
            if f" {prefix}." not in subprocess.run(["ip", "address"], capture_output=True, text=True).stdout:
                break
        ip("address", "add", f"{prefix}.1/24", "dev", name)
        ip("link", "set", name, "up")
        yield Network(name, prefix)
    finally:
        ip("link", "delete", name)


@dataclass
class Worker:
    """A worker on a machine of its own. `folder` holds all that it writes: scratch, cache, temporary files."""

    name: str
    address: str
    folder: Path
    process: subprocess.Popen[bytes]

    def kill(self) -> None:
        """As the kernel does when memory runs out."""
        self.process.send_signal(signal.SIGKILL)

    def leftovers(self) -> list[Path]:
        """Work folders, and what tools left among the temporary files."""
        return [*self.folder.glob("scratch/**/.flatcar-bake-*"), *(self.folder / "tmp").iterdir()]


@dataclass
class Fleet:
    """A running cluster with its storage. `env` is what a client needs in its environment."""

    network: Network
    executor: str
    storage: str
    env: dict[str, str]
    workers: list[Worker]
    folder: Path
    _stack: ExitStack = field(repr=False)

    def add_worker(self, ready: bool = True) -> Worker:
        """Start another machine."""
        namespace, address = self.network.machine(self._stack)
        name = f"w{len(self.workers) + 1}"
        home = self.folder / name
        for part in ("scratch", "tmp"):
            (home / part).mkdir(parents=True)
        env = {**self.env, "XDG_CACHE_HOME": str(home / "cache"), "TMPDIR": str(home / "tmp")}
        process = self._stack.enter_context(
            running(
                [*inside(namespace), "-m", "distributed.cli.dask_worker", self.executor.replace("dask:", "tcp:"),
                 "--name", name, "--host", address, "--nthreads", "1", "--no-nanny", "--no-dashboard",
                 "--memory-limit", "0", "--local-directory", str(home / "scratch"), "--death-timeout", "120"],
                home / "log", env,
            )
        )  # fmt: skip
        self.workers.append(Worker(name, address, home, process))
        if ready:
            self.wait_for_workers()
        return self.workers[-1]

    def wait_for_workers(self) -> None:
        """Wait until the scheduler knows all workers that we have not killed."""
        deadline = time.monotonic() + PATIENCE
        for worker in self.workers:
            while worker.process.poll() is None and b"Registered to" not in (worker.folder / "log").read_bytes():
                assert time.monotonic() < deadline, (worker.folder / "log").read_text()
                time.sleep(0.1)

    def stored(self) -> list[str]:
        """The names of all objects in the bucket, asked for without our own code."""
        files = _files(self.env["AWS_ENDPOINT_URL"])
        found = files.call_s3("list_objects_v2", Bucket=BUCKET)
        assert not files.list_multipart_uploads(BUCKET), "half an upload is left"
        return [item["Key"] for item in found.get("Contents", [])]


def inside(namespace: str) -> list[str]:
    """The beginning of a command that runs Python on a machine."""
    return ["ip", "netns", "exec", namespace, sys.executable]


@contextmanager
def running(argv: list[str], log: Path, env: Mapping[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """A program that runs during the block; its output goes to `log`."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("FLATCAR_BAKE_", "AWS_"))}
    with log.open("wb") as output, subprocess.Popen(
        argv, env=clean | dict(env), stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd=log.parent
    ) as process:  # fmt: skip
        try:
            yield process
        finally:
            process.kill()  # nothing of it is needed any more


@contextmanager
def fleet(folder: Path, workers: int) -> Iterator[Fleet]:
    """A cluster with that many workers, and an empty bucket."""
    with ExitStack() as stack:
        net = stack.enter_context(network())
        schedulers, scheduler = net.machine(stack)
        stores, store = net.machine(stack)
        endpoint = f"http://{store}:{S3_PORT}"
        env = {**KEYS, "AWS_ENDPOINT_URL": endpoint}
        folder.mkdir(parents=True, exist_ok=True)
        stack.enter_context(seaweedfs(stores, store, folder))
        command = ["-m", "distributed.cli.dask_scheduler", "--host", scheduler, "--port", str(SCHEDULER_PORT),
                   "--no-dashboard", "--no-show"]  # fmt: skip
        stack.enter_context(running([*inside(schedulers), *command], folder / "scheduler.log", {}))
        made = Fleet(net, f"dask://{scheduler}:{SCHEDULER_PORT}", f"s3://{BUCKET}/golden", env, [], folder, stack)
        for _ in range(workers):
            made.add_worker(ready=False)
        _make_bucket(endpoint, folder / "s3.log")
        made.wait_for_workers()
        yield made


@contextmanager
def seaweedfs(namespace: str, address: str, folder: Path) -> Iterator[None]:
    """SeaweedFS with its S3 gateway on a machine.

    It has a /tmp of its own, in memory, which `ip netns exec` lets nobody else see: two of them with the same ports
    would take each other's sockets there.
    """
    credentials = {"accessKey": KEYS["AWS_ACCESS_KEY_ID"], "secretKey": KEYS["AWS_SECRET_ACCESS_KEY"]}
    actions = ["Admin", "Read", "Write", "List", "Tagging"]
    identity = {"name": "fleet", "credentials": [credentials], "actions": actions}
    weed = os.path.join(sysconfig.get_path("scripts"), "weed")
    command = [
        "ip", "netns", "exec", namespace, "sh", "-ec",
        'mount -t tmpfs objects /tmp; mkdir /tmp/objects; printf %s "$0" >/tmp/s3.json; exec "$@"',
        json.dumps({"identities": [identity]}), weed, "server", f"-ip={address}", f"-ip.bind={address}",
        "-dir=/tmp/objects", "-s3.config=/tmp/s3.json", "-s3.port.iceberg=0", f"-s3.port={S3_PORT}",
        "-master.telemetry=false", "-master.volumeSizeLimitMB=256", "-volume.max=40", "-filer", "-s3",
    ]  # fmt: skip
    with running(command, folder / "s3.log", {}):
        yield


def _files(endpoint: str) -> s3fs.S3FileSystem:
    """The S3 server, with nothing remembered."""
    return s3fs.S3FileSystem(
        key=KEYS["AWS_ACCESS_KEY_ID"], secret=KEYS["AWS_SECRET_ACCESS_KEY"],
        client_kwargs={"endpoint_url": endpoint}, skip_instance_cache=True, use_listings_cache=False,
    )  # fmt: skip


def _make_bucket(endpoint: str, log: Path) -> None:
    """Wait for the S3 server, and make the bucket."""
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            urllib.request.urlopen(endpoint, timeout=5)
        except urllib.error.HTTPError:
            break  # it answers, and refuses strangers
        except OSError:
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)
        else:
            break
    files = _files(endpoint)
    while True:
        try:
            files.mkdir(BUCKET)
            return
        except OSError:
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.2)
