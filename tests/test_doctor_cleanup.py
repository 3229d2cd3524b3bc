"""`doctor --cleanup` removes what a killed bake left, and only that."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from baker.cache import Cache
from baker.doctor import cleanup
from baker.work import PREFIX, WorkFolder

HOLD = (
    "import sys, time; from pathlib import Path; from baker.work import WorkFolder\n"
    "with WorkFolder(Path(sys.argv[1])) as work: print(work, flush=True); time.sleep(60)"
)


@contextmanager
def living_bake(folder: Path) -> Iterator[Path]:
    """A process that holds a work folder until the end of the block, when it is killed outright."""
    with subprocess.Popen([sys.executable, "-c", HOLD, folder], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield Path(process.stdout.readline().strip())
        finally:
            process.kill()


def test_a_killed_bakes_folder_is_removed_and_a_living_ones_is_not(tmp_path: Path) -> None:
    with living_bake(tmp_path) as dead:
        (dead / "deep/er").mkdir(parents=True)
    with living_bake(tmp_path) as alive:
        assert cleanup([tmp_path], tmp_path / "cache") == [f"work folder {dead}"]
        assert alive.is_dir()
        assert not dead.exists()


def test_nothing_left_is_nothing_removed(tmp_path: Path) -> None:
    (tmp_path / "precious").touch()
    with WorkFolder(tmp_path, keep=True):
        pass
    before = sorted(tmp_path.iterdir())
    assert cleanup([tmp_path, tmp_path / "absent"], tmp_path / "cache") == []
    assert sorted(tmp_path.iterdir()) == before


def loop_device(file: Path) -> str:
    """Attach an ext4 image to a new loop device."""
    with file.open("xb") as image:
        image.truncate(8 << 20)
    subprocess.run(["mkfs.ext4", "-q", file], check=True)
    attached = subprocess.run(["losetup", "--find", "--show", file], check=True, capture_output=True, text=True)
    return attached.stdout.strip()


def attached_file(loop: str) -> str:
    """What a loop device stands for; "" when it is free."""
    shown = subprocess.run(["losetup", "--noheadings", "-O", "BACK-FILE", loop], capture_output=True, text=True)
    return shown.stdout.strip()


@pytest.mark.parametrize("deleted", [False, True])
def test_mounts_and_loop_devices_on_a_killed_bakes_files_are_released(tmp_path: Path, deleted: bool) -> None:
    target = tmp_path / "target"
    target.mkdir()
    with living_bake(tmp_path) as work:
        loop = loop_device(work / "disk")
        subprocess.run(["mount", loop, target], check=True)
        cleanup([tmp_path], tmp_path / "cache")
        assert attached_file(loop) == str(work / "disk"), "a living bake's device is left alone"
    if deleted:
        subprocess.run(["rm", "-r", work], check=True)
    removed = cleanup([tmp_path], tmp_path / "cache")
    assert f"mount {target}" in removed
    assert any(line.startswith(f"loop device {loop} ") for line in removed)
    assert not target.is_mount()
    assert attached_file(loop) == ""


def test_other_loop_devices_are_left_alone(tmp_path: Path) -> None:
    with WorkFolder(tmp_path, keep=True) as kept:
        loop = loop_device(kept / "disk")
    (tmp_path / "deep").mkdir()
    with living_bake(tmp_path / "deep") as elsewhere:
        other = loop_device(elsewhere / "disk")
    try:
        assert cleanup([tmp_path], tmp_path / "cache") == []
        assert attached_file(loop) and attached_file(other)
    finally:
        subprocess.run(["losetup", "--detach", loop, other], check=True)


def test_a_link_named_like_a_work_folder_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious/pid.lock").touch()
    (tmp_path / f"{PREFIX}link").symlink_to("precious")
    assert cleanup([tmp_path], tmp_path / "cache") == []
    assert (tmp_path / "precious/pid.lock").exists()


def test_downloads_nobody_resumes_are_dropped(tmp_path: Path) -> None:
    cache = Cache(tmp_path, 0)
    old, fresh = cache.partial(("old",)), cache.partial(("fresh",))
    for path in (old, fresh):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"half a file")
    month_ago = time.time() - 30 * 86400
    os.utime(old, (month_ago, month_ago))
    assert cleanup([], tmp_path) == [f"broken download {old}"]
    assert fresh.exists()
    assert cleanup([], tmp_path) == []
