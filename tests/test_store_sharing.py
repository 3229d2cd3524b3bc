"""Bakes at once share one download; a bake that is interrupted or killed leaves nothing running and nothing wrong."""

from __future__ import annotations

import bz2
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NoReturn

import pytest
from keys import TestKey
from mirrors import RELEASE, Recorder, SignedMirror, open_store
from processes import children, mentions
from servers import Handler, MirrorServer, setting

from baker.cache import Cache

RAW = os.urandom(600_000) + bytes(4_000_000)
IMAGE = "flatcar_production_image.bin.bz2"
ROOT = Path(__file__).resolve().parents[1]

BAKE = """
import sys
from pathlib import Path
from baker.cache import Cache
from baker.console import PlainConsole
from baker.fetch import Fetcher
from baker.model import Arch, Channel, Release
from baker.release import Mirror
from baker.store import Store
from baker.verify import Verifier

base, cache, key, fingerprint = sys.argv[1:]
console = PlainConsole()
with Store(Cache(Path(cache), 1 << 30, console), Fetcher(console, timeout=(5, 15), backoff=0.01), Mirror(base),
           lambda: Verifier(Path(key).read_bytes(), fingerprint), console, fingerprint) as store:
    disk = store.disk(Release("4593.2.5", Channel.STABLE, Arch.X86_64), "flatcar_production_image.bin.bz2")
    print(disk.content_digest, disk.from_cache, flush=True)
"""

Start = Callable[[], "subprocess.Popen[str]"]


@pytest.fixture(scope="module")
def key() -> Iterator[TestKey]:
    with TestKey() as key:
        key.add_subkey()
        yield key


@pytest.fixture
def mirror(tmp_path: Path, key: TestKey) -> SignedMirror:
    mirror = SignedMirror(tmp_path / "www", key)
    mirror.put(IMAGE, bz2.compress(RAW))
    return mirror


@pytest.fixture
def server(mirror: SignedMirror) -> Iterator[MirrorServer]:
    with MirrorServer(mirror.folder) as server:
        yield server


@pytest.fixture
def start(server: MirrorServer, tmp_path: Path, key: TestKey) -> Iterator[Start]:
    """Start a process that fetches the image, with a temporary folder of its own."""
    (tmp_path / "key").write_bytes(key.export())
    (tmp_path / "tmp").mkdir()
    started = []

    def start() -> subprocess.Popen[str]:
        argv = [sys.executable, "-c", BAKE, server.url, tmp_path / "cache", tmp_path / "key", key.fingerprint]
        environment = {**os.environ, "TMPDIR": str(tmp_path / "tmp")}
        started.append(subprocess.Popen(argv, cwd=ROOT, stdout=-1, stderr=-1, text=True, env=environment))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def wait_for(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + 15
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.02)


def partial_size(tmp_path: Path) -> int:
    parts = [path for path in (tmp_path / "cache").rglob("partial/*") if not path.suffix]
    return parts[0].stat().st_size if parts else 0


def gate(server: MirrorServer, mirror: SignedMirror) -> threading.Event:
    """Let the image come only after the event is set."""
    event = threading.Event()

    def wait(handler: Handler) -> bool:
        event.wait(15)
        return False

    server.on(mirror.path(IMAGE), wait)
    return event


def test_two_processes_share_one_download(start: Start, server: MirrorServer, mirror: SignedMirror) -> None:
    go = gate(server, mirror)
    first = start()
    wait_for(lambda: server.requests(mirror.path(IMAGE)), "the first download")
    second = start()
    assert second.stderr is not None
    assert second.stderr.readline() == f"  waiting for another bake that downloads {IMAGE}\n"
    go.set()
    (one, _), (two, _) = first.communicate(timeout=20), second.communicate(timeout=20)
    assert one.split()[1] == "False"
    assert two.split() == [one.split()[0], "True"]
    assert len(server.requests(mirror.path(IMAGE))) == 1


def test_many_threads_share_one_download(
    server: MirrorServer, mirror: SignedMirror, key: TestKey, tmp_path: Path
) -> None:
    with open_store(server.url, tmp_path / "cache", key) as store, ThreadPoolExecutor(4) as pool:
        disks = list(pool.map(lambda _: store.disk(RELEASE, IMAGE), range(4)))
    assert sorted(disk.from_cache for disk in disks) == [False, True, True, True]
    assert len(server.requests(mirror.path(IMAGE))) == 1


def test_when_the_first_fails_the_second_takes_over(start: Start, server: MirrorServer, mirror: SignedMirror) -> None:
    go = gate(server, mirror)
    first = start()
    wait_for(lambda: server.requests(mirror.path(IMAGE)), "the first download")
    second = start()
    assert second.stderr is not None
    second.stderr.readline()
    first.kill()
    go.set()
    stdout, _ = second.communicate(timeout=20)
    assert stdout.split()[1] == "False"


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_a_bake_that_is_stopped_leaves_no_process_and_the_next_resumes(
    start: Start, server: MirrorServer, mirror: SignedMirror, tmp_path: Path, how: signal.Signals
) -> None:
    server.on(mirror.path(IMAGE), setting(stall=400_000))
    process = start()
    wait_for(lambda: mentions(str(tmp_path / "tmp")) and partial_size(tmp_path) > 0, "the first bytes")
    process.send_signal(how)
    process.communicate(timeout=20)
    assert process.returncode != 0
    wait_for(lambda: not mentions(str(tmp_path / "tmp")), "gpg to end")
    if how is signal.SIGINT:
        assert not list((tmp_path / "tmp").iterdir()), "a keyring was left"
        assert not list((tmp_path / "cache").rglob("*.raw")), "a half-decoded image was left"
    size = partial_size(tmp_path)
    assert size > 0
    server.released.set()
    server.faults.clear()
    del server.seen[:]
    stdout, stderr = start().communicate(timeout=20)
    assert stdout.split()[1] == "False", stderr
    (request,) = server.requests(mirror.path(IMAGE))
    assert request.headers["Range"] == f"bytes={size}-"
    assert not list((tmp_path / "cache").rglob("partial/*"))


def test_an_interrupt_leaves_no_thread_and_no_child(
    server: MirrorServer, mirror: SignedMirror, key: TestKey, tmp_path: Path
) -> None:
    class Interrupting(Recorder):
        def bar(self, text: str, total: int | None) -> NoReturn:
            raise KeyboardInterrupt

    with open_store(server.url, tmp_path / "cache", key, Interrupting()) as store:
        with pytest.raises(KeyboardInterrupt):
            store.disk(RELEASE, IMAGE)
        assert "lbzip2 output" not in [thread.name for thread in threading.enumerate()]
        assert not {"gpg", "lbzip2"} & set(children().values())
    assert not list((tmp_path / "cache").rglob("*.raw"))


def test_an_object_in_use_survives_a_prune_by_another_process(
    server: MirrorServer, key: TestKey, tmp_path: Path, mirror: SignedMirror
) -> None:
    with open_store(server.url, tmp_path / "cache", key) as store:
        disk = store.disk(RELEASE, IMAGE)
        assert Cache(tmp_path / "cache", 0).prune(0) == []
        assert disk.path.read_bytes() == RAW
    assert [item.path for item in Cache(tmp_path / "cache", 0).prune(0)] == [disk.path]
