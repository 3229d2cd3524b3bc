"""Work folders vanish at the end, and one left by a crash is told from one in use."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from baker.errors import EnvironmentFault
from baker.work import LOCK_NAME, PREFIX, WorkFolder, remove, scratch, stale

_HOLD = (
    "import sys, time; from pathlib import Path; from baker.work import WorkFolder\n"
    "with WorkFolder(Path(sys.argv[1])) as work: print(work, flush=True); time.sleep(60)"
)


def test_a_work_folder_is_private_and_vanishes(tmp_path: Path) -> None:
    with WorkFolder(tmp_path) as work:
        assert work.parent == tmp_path
        assert work.stat().st_mode & 0o777 == 0o700
        (work / "image").write_text("x")
        assert stale(tmp_path) == []
    assert list(tmp_path.iterdir()) == []


def test_it_vanishes_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError), WorkFolder(tmp_path) as work:
        (work / "image").write_text("x")
        raise ValueError
    assert list(tmp_path.iterdir()) == []


def test_a_kept_folder_stays_and_is_not_stale(tmp_path: Path) -> None:
    with WorkFolder(tmp_path, keep=True) as work:
        (work / "image").write_text("x")
    assert (work / "image").read_text() == "x"
    assert stale(tmp_path) == []


def test_a_folder_in_use_by_another_process_is_not_stale_until_that_is_killed(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", _HOLD, tmp_path], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        work = Path(process.stdout.readline().strip())
        assert (work / LOCK_NAME).read_text().strip() == str(process.pid)
        assert stale(tmp_path) == []
        process.send_signal(signal.SIGKILL)
    assert stale(tmp_path) == [work]


def test_links_and_strangers_are_not_stale(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / LOCK_NAME).touch()
    (tmp_path / f"{PREFIX}link").symlink_to(precious)
    (tmp_path / f"{PREFIX}newborn").mkdir()
    (tmp_path / f"{PREFIX}full").mkdir()
    (tmp_path / f"{PREFIX}full" / "file").touch()
    assert stale(tmp_path) == []
    assert stale(tmp_path / "absent") == []


def test_a_newborn_folder_without_its_holders_lock_is_not_stale(tmp_path: Path) -> None:
    """Between making the lock file and taking the lock, another bake may look."""
    folder = tmp_path / f"{PREFIX}born"
    folder.mkdir()
    (folder / LOCK_NAME).touch()
    assert stale(tmp_path) == []
    os.utime(folder, (0, 0))
    assert stale(tmp_path) == [folder]


def test_what_others_lay_out_in_a_folder_for_everybody_is_not_stale(tmp_path: Path) -> None:
    foreign, pipe = tmp_path / f"{PREFIX}foreign", tmp_path / f"{PREFIX}pipe"
    for folder in (foreign, pipe):
        folder.mkdir()
    (foreign / LOCK_NAME).write_text("1")
    os.chown(foreign, 12345, 12345)
    os.mkfifo(pipe / LOCK_NAME)
    assert stale(tmp_path) == []


def test_a_folder_that_cannot_be_removed_as_a_whole_keeps_its_lock(tmp_path: Path) -> None:
    """Otherwise the rest would look like a folder that was kept on purpose, for ever."""
    with WorkFolder(tmp_path) as work:
        (work / "file").touch()
        (work / "deep").mkdir()
        (work / "deep" / "resists").touch()
        subprocess.run(["chattr", "+i", work / "deep" / "resists"], check=True)
        assert not remove(work)
        assert sorted(path.name for path in work.iterdir()) == ["deep", LOCK_NAME]
        subprocess.run(["chattr", "-i", work / "deep" / "resists"], check=True)
        assert remove(work)


def test_scratch_folders_of_the_dead_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with subprocess.Popen([sys.executable, "-c", _HOLD, tmp_path], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        dead = Path(process.stdout.readline().strip())
        with scratch() as mine:
            assert dead.exists() and mine.parent == tmp_path
        process.kill()
    with scratch():
        assert not dead.exists()
    assert list(tmp_path.iterdir()) == []


def test_an_old_folder_whose_owner_died_before_locking_it_is_stale(tmp_path: Path) -> None:
    folder = tmp_path / f"{PREFIX}old"
    folder.mkdir()
    os.utime(folder, (0, 0))
    assert stale(tmp_path) == [folder]


def test_removing_follows_no_link(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "file").touch()
    with WorkFolder(tmp_path) as work:
        (work / "link").symlink_to(precious)
    (tmp_path / f"{PREFIX}link").symlink_to(precious)
    assert not remove(tmp_path / f"{PREFIX}link")
    assert (precious / "file").exists()


def test_a_folder_that_cannot_be_written_to_is_an_environment_fault(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentFault, match="Cannot make a work folder"), WorkFolder(tmp_path / "absent"):
        pass
