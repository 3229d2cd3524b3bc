"""Results appear all or none of them, and what a bake left that died in the middle is found and taken back."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cli import flatcar_bake
from test_doctor_cleanup import living_bake
from tiny import GENERIC, tiny_disk, tiny_sysext

from baker.cache import Cache
from baker.errors import UsageError
from baker.manifest import SUMS_NAME
from baker.publish import FINISHED, MANIFEST_NAME, publish, tidy, unfinished
from baker.work import WorkFolder

NAMES = ("image.bin", "image.qcow2", SUMS_NAME, MANIFEST_NAME)


def finish(work: Path) -> list[Path]:
    """Finished files in a work folder, before they are published."""
    (work / FINISHED).mkdir()
    for name in NAMES:
        (work / FINISHED / name).write_text(f"the new {name}")
    return [work / FINISHED / name for name in NAMES]


def published(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir() if path.is_file()}


def test_everything_appears(tmp_path: Path) -> None:
    with WorkFolder(tmp_path) as work:
        publish(finish(work), tmp_path, force=False)
    assert published(tmp_path) == {name: f"the new {name}" for name in NAMES}


@pytest.mark.parametrize("taken", NAMES)
def test_a_name_that_is_taken_keeps_all_back(tmp_path: Path, taken: str) -> None:
    (tmp_path / taken).write_text("precious")
    with WorkFolder(tmp_path) as work, pytest.raises(UsageError, match="appeared while the bake ran"):
        publish(finish(work), tmp_path, force=False)
    assert published(tmp_path) == {taken: "precious"}


def test_force_overwrites(tmp_path: Path) -> None:
    for name in NAMES:
        (tmp_path / name).write_text("old")
    with WorkFolder(tmp_path) as work:
        publish(finish(work), tmp_path, force=True)
    assert published(tmp_path) == {name: f"the new {name}" for name in NAMES}


@pytest.mark.parametrize("force", [False, True])
def test_a_failure_in_the_middle_leaves_none(tmp_path: Path, force: bool) -> None:
    with WorkFolder(tmp_path) as work:
        files = finish(work)
        (tmp_path / SUMS_NAME).mkdir()  # nothing can take the place of a folder
        with pytest.raises((UsageError, OSError)):
            publish(files, tmp_path, force)
    assert published(tmp_path) == {}


@pytest.mark.parametrize("force", [False, True])
def test_a_filesystem_without_hard_links(tmp_path: Path, force: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """As vfat answers, which not every kernel has."""

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    with WorkFolder(tmp_path) as work:
        publish(finish(work), tmp_path, force)
    assert published(tmp_path) == {name: f"the new {name}" for name in NAMES}
    with WorkFolder(tmp_path) as work, pytest.raises(UsageError, match="appeared"):
        publish(finish(work), tmp_path, force=False)


@pytest.mark.parametrize("count", range(len(NAMES) + 1))
def test_a_death_in_the_middle_is_told_from_one_after_the_end(tmp_path: Path, count: int) -> None:
    with living_bake(tmp_path) as work:
        for path in finish(work)[:count]:
            os.link(path, tmp_path / path.name)
        assert unfinished(tmp_path) == [], "it lives"
        assert tidy(tmp_path) == ([], [])
    partly = [] if count == len(NAMES) else [tmp_path / name for name in NAMES[:count]]
    assert sorted(unfinished(tmp_path)) == sorted(partly)
    gone, resisting = tidy(tmp_path)
    assert (sorted(gone), resisting) == (sorted([*partly, work]), [])
    assert sorted(published(tmp_path)) == (sorted(NAMES) if count == len(NAMES) else [])


def test_files_of_the_same_names_from_elsewhere_are_left_alone(tmp_path: Path) -> None:
    with living_bake(tmp_path) as work:
        finish(work)
    (tmp_path / "image.bin").write_text("precious")
    (tmp_path / SUMS_NAME).symlink_to("image.bin")
    assert unfinished(tmp_path) == []
    tidy(tmp_path)
    assert published(tmp_path) == {"image.bin": "precious", SUMS_NAME: "precious"}


@pytest.fixture
def power_cut(tmp_path: Path) -> tuple[Path, Path, str]:
    """An output folder, a cache, and the loop device of a mount, as a machine finds them that lost its power."""
    out, cache, target = tmp_path / "out", tmp_path / "cache", tmp_path / "target"
    out.mkdir()
    target.mkdir()
    with living_bake(out) as work:
        (work / FINISHED).mkdir()
        for name in (GENERIC, SUMS_NAME, MANIFEST_NAME):
            (work / FINISHED / name).write_text("half of the truth")
        os.link(work / FINISHED / GENERIC, out / GENERIC)
        disk = work / "disk.raw"
        with disk.open("xb") as file:
            file.truncate(8 << 20)
        subprocess.run(["mkfs.ext4", "-q", disk], check=True)
        subprocess.run(["mount", "-o", "loop", disk, target], check=True)
    partial = Cache(cache, 0).partial(("a release",))
    partial.write_bytes(b"half a download")
    os.utime(partial, (time.time() - 30 * 86400,) * 2)
    loop = subprocess.run(["findmnt", "-no", "SOURCE", target], check=True, capture_output=True, text=True)
    return out, cache, loop.stdout.strip()


def test_doctor_cleans_up_after_a_power_cut(tmp_path: Path, power_cut: tuple[Path, Path, str]) -> None:
    out, cache, loop = power_cut
    (temporary := tmp_path / "tmp").mkdir()
    with living_bake(temporary) as keyring:
        pass
    done = flatcar_bake("doctor", "--cleanup", "-o", out, "--cache-dir", cache, env={"TMPDIR": str(temporary)})
    assert done.returncode == 0, done.stderr
    for removed in (
        "mount ",
        loop,
        f"unfinished bake {out / GENERIC}",
        "work folder",
        str(keyring),
        "broken download",
    ):
        assert removed in done.stdout
    assert not list(out.iterdir()) and not list(temporary.iterdir()) and not list(cache.glob("v*/partial/*"))
    assert not (tmp_path / "target").is_mount()
    # A loop device that another test's listing has open at this instant goes only when that one closes it.
    for _ in range(5):
        done = flatcar_bake("doctor", "--cleanup", "-o", out, "--cache-dir", cache, env={"TMPDIR": str(temporary)})
        if "loop device" not in done.stdout:
            break
    assert done.stdout == "Nothing was left behind.\n"


def test_the_next_bake_needs_no_cleanup_and_no_force(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    with living_bake(out) as work:
        for path in finish(work)[:2]:
            os.link(path, out / path.name)
        (work / FINISHED / GENERIC).write_text("half of the truth")
        os.link(work / FINISHED / GENERIC, out / GENERIC)
    words = ("--image", tiny_disk(tmp_path / "disk"), "-o", out, f"tools:{tiny_sysext(tmp_path)}")
    done = flatcar_bake(*words, "--plan")
    assert done.returncode == 0, done.stderr
    assert (out / GENERIC).exists(), "a plan changes nothing"
    done = flatcar_bake(*words)
    assert done.returncode == 0, done.stderr
    assert f"removed {out / GENERIC}, left by a bake that was killed" in done.stderr
    names = {path.name for path in out.iterdir()}
    assert {MANIFEST_NAME, SUMS_NAME, GENERIC} <= names and not {"image.bin", "image.qcow2"} & names
    subprocess.run(["sha256sum", "--quiet", "--check", "SHA256SUMS"], cwd=out, check=True)


BUSY = """
import os, signal, sys, time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from baker import stopping
from baker.run import run
from baker.sparse import content_digest, file_sha256
from baker.work import WorkFolder

endless = Path(sys.argv[1])
signal.signal(signal.SIGTERM, stopping.handle)
try:
    with WorkFolder(endless.parent), ThreadPoolExecutor(4) as pool:
        jobs = [pool.submit(file_sha256, endless), pool.submit(run, ["sleep", "600"]),
                pool.submit(lambda: [run(["true"]) for _ in range(10**6)])]
        print("busy", flush=True)
        jobs[0].result()
except stopping.Stopped as stopped:
    os._exit(stopped.number)
"""


def test_a_signal_stops_threads_that_hash_and_programs_they_wait_for(tmp_path: Path) -> None:
    endless = tmp_path / "endless"
    with endless.open("xb") as file:
        file.truncate(1 << 42)
    with subprocess.Popen([sys.executable, "-c", BUSY, endless], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == "busy\n"
            time.sleep(0.3)
            process.terminate()
            assert process.wait(10) == 15
        finally:
            process.kill()
    assert list(tmp_path.iterdir()) == [endless]
