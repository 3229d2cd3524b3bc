"""However a loop edit ends, no mount and no loop device stays, and the filesystem is whole."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from disks import make_disk
from loops import HELPER, MIB, Talk, assert_nothing_left, left_behind, make_ext4, mounting, needs_loop, writing

from baker.errors import EnvironmentFault
from baker.helper_client import Helper, identity
from baker.model import Injection, Partition
from baker.privilege import LoopEditor
from baker.run import run
from baker.sparse import clone

pytestmark = needs_loop


@pytest.fixture
def image(tmp_path: Path) -> Path:
    return make_ext4(tmp_path / "image", 64 * MIB)


def partition_of(image: Path) -> Partition:
    """A bare filesystem as a partition."""
    return Partition("ROOT", 9, "", "", 0, 0, image.stat().st_size, "ext4")


def half(total: int) -> Iterator[bytes]:
    """Half of the promised content, then an end that no helper expects."""
    yield bytes(total // 2)
    raise KeyboardInterrupt


def assert_whole(image: Path) -> None:
    run(["e2fsck", "-fn", image])


def test_killing_the_helper_in_the_middle_of_a_write(image: Path) -> None:
    with Talk() as talk:
        talk.ask(mounting(image))
        talk.ask(writing("/before", 4), b"done")
        talk.send(b'{"op": "write", "path": "/x", "mode": 0, "uid": 0, "gid": 0, "mtime": 0, "replace": false, ')
        talk.send(b'"payload": 33554432}\n' + bytes(16 * MIB))
        talk.process.send_signal(signal.SIGKILL)
        talk.process.wait()
    assert_nothing_left(image)
    assert_whole(image)


def test_the_end_of_the_pipe_in_the_middle_of_a_write(image: Path) -> None:
    with Talk() as talk:
        talk.ask(mounting(image))
        talk.send(b'{"op": "write", "path": "/x", "mode": 0, "uid": 0, "gid": 0, "mtime": 0, "replace": false, ')
        talk.send(b'"payload": 33554432}\n' + bytes(16 * MIB))
        assert talk.end() == 0
    assert_nothing_left(image)
    assert_whole(image)


PARENT = """
import signal, sys, time
from pathlib import Path
signal.signal(signal.SIGINT, signal.default_int_handler)  # a test run in the background inherits "ignored"
sys.path.insert(0, sys.argv[2])
from test_loop_cleanup import partition_of
from baker.helper_client import Helper, identity

def content():
    yield bytes(1 << 24)
    print("in the middle", flush=True)
    time.sleep(600)

image = Path(sys.argv[1])
with Helper() as helper, helper.mounted(image, identity(image.stat()), partition_of(image), readonly=False):
    helper.request("write", content(), path="/x", mode=0, uid=0, gid=0, mtime=0, replace=False, payload=1 << 25)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_ending_the_parent_in_the_middle_of_a_write(image: Path, number: signal.Signals) -> None:
    argv = [sys.executable, "-c", PARENT, str(image), str(Path(__file__).parent)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == b"in the middle\n"
        try:
            assert left_behind(image)
            parent.send_signal(number)
            assert parent.wait(10) != 0
        finally:
            parent.kill()
    assert_nothing_left(image)
    assert_whole(image)


def test_an_interrupted_exchange_unmounts_and_says_so_afterwards(image: Path) -> None:
    fields = {name: value for name, value in writing("/x", MIB).items() if name != "op"}
    with Helper() as helper:
        with (
            pytest.raises(KeyboardInterrupt),
            helper.mounted(image, identity(image.stat()), partition_of(image), readonly=False),
        ):
            helper.request("write", half(MIB), **fields)
        assert_nothing_left(image)
        with pytest.raises(EnvironmentFault, match="does not run"):
            helper.request("hello")
    assert_whole(image)


def test_an_error_of_ours_unmounts_and_leaves_the_helper_usable(image: Path) -> None:
    with Helper() as helper:
        for _ in range(2):
            with (
                pytest.raises(ZeroDivisionError),
                helper.mounted(image, identity(image.stat()), partition_of(image), readonly=False),
            ):
                raise ZeroDivisionError
            assert_nothing_left(image)


def test_a_helper_that_dies_is_an_environment_fault(image: Path) -> None:
    with Helper() as helper:
        children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
        os.kill(int(children[-1]), signal.SIGKILL)
        with (
            pytest.raises(EnvironmentFault, match="does not run"),
            helper.mounted(image, identity(image.stat()), partition_of(image), readonly=False),
        ):
            pass


def test_one_image_is_edited_by_one_helper_at_a_time(image: Path) -> None:
    with Talk() as first, Talk() as second:
        assert "error" not in first.ask(mounting(image))
        assert second.ask(mounting(image))["error"] == "image-busy"
        first.ask({"op": "umount"})
        assert_nothing_left(image)
        assert "error" not in second.ask(mounting(image))


def test_what_the_host_unmounts_meanwhile_is_not_kept_busy(image: Path, tmp_path: Path) -> None:
    """In mounts that are shared, as systemd makes them."""
    other = make_ext4(tmp_path / "other")
    script = """
        set -eu
        mount -o loop "$1" "$2"
        shift; mounted=$1; shift
        coproc helper { exec "$@"; }
        echo '{"op": "hello"}' >&"${helper[1]}"
        read -r answer <&"${helper[0]}"
        umount "$mounted"
        losetup --noheadings --associated "$0"
        kill -0 "$helper_PID"
        echo "$answer"
    """
    folder = tmp_path / "mounted"
    folder.mkdir()
    shared = ["unshare", "--mount", "--propagation", "shared"]
    found = run([*shared, "bash", "-c", script, other, other, folder, *HELPER]).stdout.decode()
    assert str(other) not in found and '"payload"' in found


def test_two_helpers_and_many_threads_edit_side_by_side(tmp_path: Path) -> None:
    """All disks are clones, so their filesystems have equal UUIDs, which btrfs minds when mounted at once."""
    base = make_disk(tmp_path / "base.raw")
    disks = [tmp_path / f"disk-{number}.raw" for number in range(4)]
    for disk in disks:
        clone(base, disk)

    def edit(job: tuple[Helper, Path]) -> bytes | None:
        helper, disk = job
        with LoopEditor(disk, tmp_path, 0, helper) as editor:
            for label in ("OEM", "ROOT"):
                editor.apply(label, [Injection("/etc/name", content=disk.name.encode())])
            return editor.read("OEM", "/etc/name")

    with Helper() as one, Helper() as other, ThreadPoolExecutor(4) as pool:
        names = list(pool.map(edit, zip((one, other, one, other), disks, strict=True)))
    assert names == [disk.name.encode() for disk in disks]
    for disk in disks:
        assert_nothing_left(disk)


def test_the_owner_and_times_of_the_image_file_are_the_users(tmp_path: Path) -> None:
    disk = make_disk(tmp_path / "disk.raw")
    os.chown(disk, 12345, 12346)
    disk.chmod(0o640)
    with Helper() as helper, LoopEditor(disk, tmp_path, 0, helper) as editor:
        editor.apply("ROOT", [Injection("/etc/name", content=b"x")])
    found = disk.stat()
    assert (found.st_uid, found.st_gid, found.st_mode & 0o7777) == (12345, 12346, 0o640)
