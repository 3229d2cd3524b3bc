"""A program that reads untrusted content and runs wild is stopped, and cannot do harm before that."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from baker import landlock, run
from baker.errors import ImageError
from baker.run import Bounds, CommandFailed

MIB = 1 << 20
needs_landlock = pytest.mark.skipif(not landlock.version(), reason="this kernel has no Landlock")


def shell(script: str, bounds: Bounds) -> run.Completed:
    return run.run(["sh", "-c", script], bounds=bounds)


def test_an_endless_loop_ends() -> None:
    started = time.monotonic()
    with pytest.raises(ImageError, match=r"sh was stopped because it ran for more than 1 s over this image"):
        shell("while :; do :; done", Bounds(cpu_seconds=1))
    assert time.monotonic() - started < 30


@pytest.mark.parametrize("where", ["", ">&2"])
def test_endless_output_ends_and_does_not_fill_our_memory(where: str) -> None:
    with pytest.raises(ImageError, match="sh was stopped because it printed more than 1048576 bytes"):
        shell(f"exec yes {where}", Bounds(output=MIB))


def test_a_file_that_grows_without_end_ends(tmp_path: Path) -> None:
    target = tmp_path / "target"
    with pytest.raises(ImageError, match="wrote a file of more than 1048576 bytes"):
        run.run(["dd", "if=/dev/zero", f"of={target}", "bs=64k"], bounds=Bounds((tmp_path,), file_size=MIB))
    assert target.stat().st_size <= MIB


def test_memory_is_denied_beyond_the_bound() -> None:
    with pytest.raises(CommandFailed):
        run.run(["dd", "if=/dev/zero", "of=/dev/null", "bs=512M", "count=1"], bounds=Bounds(memory=256 * MIB))


def test_input_and_output_pass_as_without_bounds() -> None:
    data = os.urandom(3 * MIB)
    done = run.run(["cat"], input=data, bounds=Bounds())
    assert (done.status, done.stdout, done.stderr) == (0, data, "")
    assert run.run(["true"], input=data, bounds=Bounds()).status == 0
    assert run.run(["sh", "-c", "echo out; echo err >&2; exit 3"], ok=(3,), bounds=Bounds()).stderr == "err\n"
    with run.spawn(["cat"], stdin=subprocess.PIPE, bounds=Bounds()) as process:
        assert process.communicate(data)[0] == data


def test_limits_of_ones_own_stay() -> None:
    """As of a build machine: nobody but root may raise a hard limit, and the bounds must not try."""
    program = (
        "import os, resource; from baker.run import Bounds, run\n"
        "for kind in (resource.RLIMIT_AS, resource.RLIMIT_CPU, resource.RLIMIT_FSIZE):\n"
        "    resource.setrlimit(kind, (1 << 29, 1 << 30))\n"
        "os.setuid(65534)\n"
        "print(run(['sh', '-c', 'ulimit -S -v; ulimit -H -v'], bounds=Bounds()).text)"
    )
    done = run.run([sys.executable, "-c", program], cwd=Path(__file__).parent.parent)
    assert done.text.split() == [str((1 << 29) // 1024), str((1 << 30) // 1024)]


def test_a_program_within_bounds_ends_with_its_block() -> None:
    with run.spawn(["sleep", "1000"], bounds=Bounds()) as process:
        pass
    assert process.returncode is not None


@needs_landlock
@pytest.mark.parametrize(
    "command",
    [
        "echo x >{outside}/new", "echo x >>{outside}/file", ": >{outside}/file", "rm {outside}/file",
        "mkdir {outside}/folder", "ln -s x {outside}/link", "mkfifo {outside}/pipe",
        "mv {outside}/file {outside}/moved",
        "mv {inside}/file {outside}/moved", "ln {outside}/file {inside}/linked", "rmdir {outside}/empty",
        "ln -s {outside} {inside}/way && echo x >{inside}/way/new", "cp {inside}/file {outside}/file",
        "mknod {inside}/node c 1 3", "truncate -s 0 {outside}/file",
    ],
)  # fmt: skip
def test_nothing_is_written_but_where_it_may_be(tmp_path: Path, command: str) -> None:
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    for folder in (inside, outside):
        (folder / "empty").mkdir(parents=True)
        (folder / "file").write_text("content")
    with pytest.raises(CommandFailed):
        shell(command.format(inside=inside, outside=outside), Bounds((inside,)))
    assert sorted(path.name for path in outside.iterdir()) == ["empty", "file"]
    assert (outside / "file").read_text() == "content"


@needs_landlock
def test_what_it_may_write_it_can(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("old")
    script = (
        f"cd {tmp_path} && mkdir -p a/b && echo new >a/b/c && mv a/b/c a/d && ln -s d a/l && rm -r a/b && echo x >file"
    )
    assert shell(script, Bounds((tmp_path,))).status == 0
    assert (tmp_path / "a/d").read_text() == "new\n"
    with pytest.raises(CommandFailed):
        shell(f"echo y >{tmp_path}/file; echo y >{tmp_path}/other", Bounds((tmp_path / "file",)))
    assert (tmp_path / "file").read_text() == "y\n"


@needs_landlock
def test_it_reaches_no_network() -> None:
    if landlock.version() < 4:
        pytest.skip("this kernel's Landlock does not cover networks")
    with pytest.raises(CommandFailed, match="Permission denied"):
        run.run(["bash", "-c", "exec 3<>/dev/tcp/127.0.0.1/9"], bounds=Bounds())


@needs_landlock
def test_other_threads_keep_their_rights(tmp_path: Path) -> None:
    run.run(["true"], bounds=Bounds())
    (tmp_path / "from-this-thread").touch()
    other = threading.Thread(target=(tmp_path / "from-another").touch)
    other.start()
    other.join()
    run.run(["touch", tmp_path / "from-a-child"])
    assert len(list(tmp_path.iterdir())) == 3


def test_without_landlock_programs_run_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(landlock, "version", lambda: 0)
    assert shell(f"echo x >{tmp_path}/file", Bounds()).status == 0
