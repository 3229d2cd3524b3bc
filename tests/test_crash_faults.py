"""Whole bakes among real faults: full disks, caches that cannot be written, odd mirrors, bakes that race.

Small and read-only filesystems are mounted in a mount namespace of the bake alone, so they vanish with it.
"""

from __future__ import annotations

import os
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from cli import flatcar_bake
from disks import MIB, tool
from servers import Fault, Handler, MirrorServer, setting
from tiny import BOTH_VENDORS, GENERIC, PACKED, VENDOR_IMAGE, TinyRelease, tiny_disk, tiny_release, tiny_sysext

from baker.run import run
from baker.sparse import content_digest

RECORDS = {"bake-sbom.spdx.json", "bake-manifest.json", "SHA256SUMS"}
EPOCH = {"SOURCE_DATE_EPOCH": "1700000000"}


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_disk(tmp_path_factory.mktemp("disk") / "files")


@pytest.fixture(scope="module")
def tools(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A sysext, as the command line wants it."""
    return f"tools:{tiny_sysext(tmp_path_factory.mktemp('sysext'))}"


@pytest.fixture
def release(disk: Path, tmp_path: Path) -> Iterator[TinyRelease]:
    with tiny_release(disk, tmp_path / "release") as release:
        yield release


@pytest.fixture
def env(release: TinyRelease, tmp_path: Path) -> dict[str, str]:
    return release.env | EPOCH | {"FLATCAR_BAKE_CACHE_DIR": str(tmp_path / "cache")}


@pytest.fixture
def out(tmp_path: Path) -> Path:
    folder = tmp_path / "out"
    folder.mkdir()
    return folder


@pytest.fixture(scope="module")
def digest(disk: Path, tools: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """What the generic image of an undisturbed bake holds; --image and the release give the same one."""
    folder = tmp_path_factory.mktemp("undisturbed")
    done = flatcar_bake("--image", disk, "-o", folder, tools, env=EPOCH)
    assert done.returncode == 0, done.stderr
    return content_digest(folder / GENERIC)


def refused(done: subprocess.CompletedProcess[str], code: int, *sentences: str) -> None:
    """One error of this kind that says all this."""
    assert done.returncode == code, done.stderr
    assert done.stderr.count("error: ") == 1 and "Traceback" not in done.stderr
    for sentence in sentences:
        assert sentence in done.stderr, done.stderr


def with_mount(folder: Path, *words: str | Path) -> tuple[str, ...]:
    """What goes before a command so that it sees `mount WORDS… folder`, and what it leaves there is listed."""
    script = 'mount "${@:2:$1}" "$0" && { "${@:$1 + 2}"; status=$?; ls -A "$0" > "$0.left"; exit $status; }'
    return ("unshare", "--mount", "bash", "-c", script, str(folder), str(len(words)), *map(str, words))


def left(folder: Path) -> set[str]:
    """The names a command left in the folder that was mounted for it."""
    return set(Path(f"{folder}.left").read_text().split())


@pytest.mark.parametrize(
    ("backend", "room"), [*(("offline", room) for room in (1, 4, 7, 9, 12, 15, 40)), ("loop", 9), ("loop", 12)]
)
def test_an_output_folder_that_fills_up(backend: str, room: int, out: Path, tools: str, env: dict[str, str]) -> None:
    """The bake needs 20 MB there for both images, and runs out of space in one step or another."""
    small = with_mount(out, "-t", "tmpfs", "-o", f"size={room}m", "none")
    done = flatcar_bake(*BOTH_VENDORS, "--backend", backend, "-o", out, tools, env=env, prefix=small)
    if done.returncode == 0:
        assert left(out) == {GENERIC, VENDOR_IMAGE, *RECORDS}
    else:
        refused(done, 4, "space")  # for both images, or for one when the other is complete
        assert left(out) in (set(), {GENERIC, *RECORDS}, {VENDOR_IMAGE, *RECORDS})
    assert (done.returncode == 0) == (room == 40), done.stderr


def test_a_cache_that_is_full(out: Path, tools: str, tmp_path: Path, env: dict[str, str]) -> None:
    cache = tmp_path / "cache"
    cache.mkdir()
    small = with_mount(cache, "-t", "tmpfs", "-o", "size=8m", "none")
    refused(flatcar_bake("-o", out, tools, env=env, prefix=small), 4, "no space left for the cache", "--cache-dir")
    assert not list(out.iterdir())


def test_a_read_only_cache_serves_what_it_has(out: Path, tools: str, tmp_path: Path, env: dict[str, str]) -> None:
    cache = tmp_path / "cache"
    cache.mkdir()
    frozen = with_mount(cache, "--bind", "-o", "ro", cache)
    refused(flatcar_bake("-o", out, tools, env=env, prefix=frozen), 4, "cache", "Read-only", "--cache-dir")
    assert not list(out.iterdir())
    assert flatcar_bake("-o", tmp_path / "first", tools, env=env).returncode == 0
    done = flatcar_bake("-o", out, tools, env=env, prefix=frozen)
    assert done.returncode == 0, done.stderr


def test_a_cache_that_turns_read_only(
    out: Path, tools: str, tmp_path: Path, release: TinyRelease, env: dict[str, str]
) -> None:
    """As a kernel makes a filesystem when its disk fails, although files are open for writing."""
    cache, device = tmp_path / "cache", tmp_path / "device"
    cache.mkdir()
    with device.open("xb") as file:
        file.truncate(400 * MIB)
    tool("mkfs.ext4", "-q", "-e", "remount-ro", device)
    running: list[int] = []

    def fail(_: Handler) -> bool:
        tool("nsenter", "--mount", "-t", str(running[0]), "mount", "-o", "remount,abort", cache)
        return False

    release.server.on(release.mirror.path(PACKED), fail)
    argv = [*with_mount(cache, "-o", "loop", device), sys.executable, "-m", "baker", "-o", out, tools]
    with subprocess.Popen(argv, env={**os.environ, **env}, stderr=subprocess.PIPE, text=True) as process:
        running.append(process.pid)
        _, said = process.communicate(timeout=60)
    refused(subprocess.CompletedProcess([], process.returncode, "", said), 4, "cache", "Read-only")
    assert not list(out.iterdir())


def changed(release: TinyRelease) -> Fault:
    """Another file takes the place of the image, properly signed, while the first one is on its way."""

    def fault(handler: Handler) -> bool:
        handler.cut = 3 * MIB
        # The end of a bz2 file is the right place for bytes that change nothing but the file.
        file = release.mirror.folder / release.mirror.path(PACKED)[1:]
        answered = handler.server.mirror.requests(release.mirror.path(PACKED))
        if len(answered) == 2:
            release.mirror.put(PACKED, file.read_bytes() + b"a later build")
            handler.cut = None
        return False

    return fault


@pytest.mark.parametrize("fault", ["cut", "no ranges", "too long", "late"])
def test_a_mirror_that_stumbles_once(
    fault: str, out: Path, tools: str, release: TinyRelease, env: dict[str, str], digest: str
) -> None:
    size = (release.mirror.folder / release.mirror.path(PACKED)[1:]).stat().st_size

    def longer(handler: Handler) -> bool:
        handler.send_response(200)
        handler.send_header("Content-Length", str(size + 1))
        handler.end_headers()
        handler.close_connection = True
        handler.wfile.write((release.mirror.folder / release.mirror.path(PACKED)[1:]).read_bytes())
        return True

    def late(handler: Handler) -> bool:
        time.sleep(2)
        return False

    faults: dict[str, Fault] = {
        "cut": setting(cut=3 * MIB), "no ranges": setting(cut=3 * MIB, ranges=False), "too long": longer, "late": late,
    }  # fmt: skip
    server = release.server
    first = server.times(1, faults[fault])
    server.on(release.mirror.path(PACKED), first)
    if fault == "no ranges":
        server.on(release.mirror.path(PACKED), lambda handler: first(handler) or setting(ranges=False)(handler))
    done = flatcar_bake("-o", out, tools, env=env)
    assert done.returncode == 0, done.stderr
    assert content_digest(out / GENERIC) == digest


def test_a_file_that_changes_between_two_requests(
    out: Path, tools: str, release: TinyRelease, env: dict[str, str], digest: str
) -> None:
    """Its signature was read before, so this bake must fail; the next one must not."""
    release.server.on(release.mirror.path(PACKED), changed(release))
    refused(flatcar_bake("-o", out, tools, env=env), 3, PACKED)
    assert not list(out.iterdir())
    release.server.faults.clear()
    done = flatcar_bake("-o", out, tools, env=env)
    assert done.returncode == 0, done.stderr
    assert content_digest(out / GENERIC) == digest


def redirect(server: MirrorServer) -> Fault:
    return lambda handler: handler.answer(302, Location=server.url + handler.path)


def test_a_redirect_to_another_host(out: Path, tools: str, release: TinyRelease, env: dict[str, str]) -> None:
    with MirrorServer(release.mirror.folder) as other:
        release.server.on(release.mirror.path(PACKED), redirect(other))
        done = flatcar_bake("-o", out, tools, env=env)
        assert done.returncode == 0, done.stderr
        assert len(other.requests(release.mirror.path(PACKED))) == 1


def test_a_redirect_from_https_to_http_is_not_followed(
    out: Path, tools: str, release: TinyRelease, env: dict[str, str], tmp_path: Path
) -> None:
    certificate, key = tmp_path / "tls.crt", tmp_path / "tls.pem"
    run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
         "-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out", certificate]
    )  # fmt: skip
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    with MirrorServer(release.mirror.folder, tls=context) as secure:
        there = env | {"FLATCAR_BAKE_MIRROR": secure.url, "REQUESTS_CA_BUNDLE": str(certificate)}
        secure.on(release.mirror.path(PACKED), redirect(release.server))
        refused(flatcar_bake("-o", out, tools, env=there), 5, "not https")
        assert not release.server.requests(release.mirror.path(PACKED))
        secure.faults.clear()
        done = flatcar_bake("-o", out, tools, env=there)
        assert done.returncode == 0, done.stderr


def test_an_interrupt_while_a_mirror_says_nothing(
    out: Path, tools: str, release: TinyRelease, env: dict[str, str], digest: str
) -> None:
    path = release.mirror.path(PACKED)
    release.server.on(path, setting(stall=2 * MIB))
    argv = [sys.executable, "-m", "baker", "-o", out, tools]
    with subprocess.Popen(argv, env={**os.environ, **env}, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 20
        while not release.server.requests(path):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        began = time.monotonic()
        _, said = process.communicate(timeout=20)
    assert process.returncode == 130 and "Interrupted" in said
    assert time.monotonic() - began < 5
    assert not list(out.iterdir())
    release.server.released.set()
    release.server.faults.clear()
    done = flatcar_bake("-o", out, tools, env=env)
    assert done.returncode == 0, done.stderr
    assert "Range" in release.server.requests(path)[-1].headers, "what had come was not used"
    assert content_digest(out / GENERIC) == digest


@pytest.mark.parametrize("count", [2, 10])
def test_bakes_at_once_into_one_folder(
    count: int, out: Path, tools: str, release: TinyRelease, env: dict[str, str], digest: str
) -> None:
    with ThreadPoolExecutor(count) as pool:
        ended = list(pool.map(lambda _: flatcar_bake("-o", out, tools, env=env), range(count)))
    for done in ended:
        if done.returncode:
            refused(done, 2, str(out), "--force")
    assert sorted(done.returncode for done in ended) == [0] + [2] * (count - 1)
    assert {path.name for path in out.iterdir()} == {GENERIC, *RECORDS}
    run(["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=out)
    assert content_digest(out / GENERIC) == digest
    assert len(release.server.requests(release.mirror.path(PACKED))) == 1


@pytest.mark.parametrize("count", [2, 10])
def test_bakes_at_once_into_folders_of_their_own(
    count: int, tmp_path: Path, tools: str, release: TinyRelease, env: dict[str, str], digest: str
) -> None:
    folders = [tmp_path / f"out-{number}" for number in range(count)]
    with ThreadPoolExecutor(count) as pool:
        ended = list(pool.map(lambda folder: flatcar_bake("-o", folder, tools, env=env), folders))
    for done, folder in zip(ended, folders, strict=True):
        assert done.returncode == 0, done.stderr
        assert content_digest(folder / GENERIC) == digest
    assert len(release.server.requests(release.mirror.path(PACKED))) == 1


def test_two_bakes_at_once_with_force_do_not_mix_their_results(
    out: Path, tools: str, disk: Path, tmp_path: Path
) -> None:
    other = f"other:{tiny_sysext(tmp_path, 'other')}"
    for _ in range(2):
        with ThreadPoolExecutor(2) as pool:
            ended = list(
                pool.map(lambda sysext: flatcar_bake("--image", disk, "--force", "-o", out, sysext), (tools, other))
            )
        assert [done.returncode for done in ended] == [0, 0], [done.stderr for done in ended]
        run(["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=out)
