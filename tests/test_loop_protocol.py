"""The privileged helper takes well-formed requests in order and nothing else."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from loops import MIB, Talk, assert_nothing_left, debugfs, left_behind, make_ext4, mounting, needs_loop, writing

from baker.run import run

pytestmark = needs_loop


@pytest.fixture
def image(tmp_path: Path) -> Path:
    return make_ext4(tmp_path / "image")


@pytest.fixture
def mounted(image: Path) -> Iterator[Talk]:
    with Talk() as talk:
        assert talk.ask(mounting(image)) == {"payload": 0, "data": b""}
        yield talk


def test_says_which_protocol_it_speaks() -> None:
    with Talk() as talk:
        assert talk.ask({"op": "hello"})["protocol"] == 1
        assert talk.end() == 0


@pytest.mark.parametrize(
    "garbage",
    [
        b"garbage\n",
        b"\xff\xfe\x00\n",
        b"[]\n",
        b"null\n",
        b'{"op": "hello"\n',
        b"[" * 60_000 + b"\n",
        b"x" * 100_000,
        b'{"op": "umount", "payload": -1}\n',
        b'{"op": "umount", "payload": "many"}\n',
        b'{"op": "umount", "payload": 1e9}\n',
        b'{"op": "write", "payload": 99999999999999999999}\n',
    ],
)
def test_ends_and_unmounts_when_the_framing_breaks(image: Path, garbage: bytes) -> None:
    with Talk() as talk:
        talk.ask(mounting(image))
        talk.send(garbage)
        out, err = talk.process.communicate()
    assert (talk.process.returncode, out) == (1, b"")
    assert err == b"helper: what came is not a request\n"
    assert_nothing_left(image)


def test_ends_and_unmounts_at_the_end_of_the_pipe(image: Path) -> None:
    with Talk() as talk:
        talk.ask(mounting(image))
        assert left_behind(image)
        assert talk.end() == 0
    assert_nothing_left(image)


@pytest.mark.parametrize(
    "request_",
    [
        {},
        {"op": "exec"},
        {"op": "__init__"},
        {"op": ["list"]},
        {"op": None},
        {"op": "list", "path": "/"},
        {"op": "list", "path": "/", "deep": True, "more": 1},
        {"op": "list", "path": "/", "deep": 1},
        {"op": "list", "path": None, "deep": True},
        {"op": "read", "path": "/x", "limit": -1},
        {"op": "read", "path": "/x", "limit": 1 << 40},
        {"op": "read", "path": "/x", "limit": True},
    ],
)
def test_refuses_requests_it_does_not_know(mounted: Talk, request_: dict[str, object]) -> None:
    assert mounted.ask(request_)["error"] == "argument"
    assert mounted.ask({"op": "list", "path": "/", "deep": False})["nodes"]


@pytest.mark.parametrize(
    "path",
    ["", "x", "etc/x", "/..", "/../x", "/etc/../x", "/./x", "//x", "/x/", "/x//y", "/a\nb", "/a\x00b", "/a\x7f"],
)
def test_refuses_paths_that_are_not_plain(mounted: Talk, path: str) -> None:
    assert mounted.ask(writing(path, 4), b"data")["error"] == "argument"
    assert mounted.ask({"op": "list", "path": path, "deep": True})["error"] == "argument"
    assert mounted.ask({"op": "read", "path": path, "limit": 1})["error"] == "argument"


@pytest.mark.parametrize("path", ["/" + "x" * 256, "/x" * 3000, "/\ud800"])
def test_refuses_names_that_no_filesystem_has(mounted: Talk, path: str) -> None:
    assert mounted.ask(writing(path, 4), b"data")["error"] in ("io", "absent")


@pytest.mark.parametrize(
    "changed",
    [
        {"mode": 0o4755},
        {"mode": 0o2755},
        {"mode": 0o10644},
        {"mode": -1},
        {"mode": "0644"},
        {"mode": True},
        {"uid": -1},
        {"uid": 1 << 32},
        {"gid": 0xFFFFFFFF},
        {"mtime": -1},
        {"mtime": 0.5},
        {"replace": "yes"},
    ],
)
def test_refuses_values_out_of_range(mounted: Talk, changed: dict[str, object]) -> None:
    assert mounted.ask(writing("/file", 4, **changed), b"data")["error"] == "argument"
    names = [node["path"] for node in mounted.ask({"op": "list", "path": "/", "deep": True})["nodes"]]
    assert names == ["/", "/lost+found"]


@pytest.mark.parametrize(
    "changed",
    [
        {"fstype": "proc"},
        {"fstype": "xfs"},
        {"fstype": ""},
        {"fstype": ["ext4"]},
        {"offset": -512},
        {"offset": 17 * MIB},
        {"offset": 1 << 62},
        {"offset": 512},
        {"size": 0},
        {"size": 1 << 61},
        {"size": 1 << 80},
        {"image": "image"},
        {"image": ""},
        {"readonly": 0},
    ],
)
def test_refuses_to_mount_what_it_should_not(image: Path, changed: dict[str, object]) -> None:
    with Talk() as talk:
        assert talk.ask(mounting(image, **changed))["error"] == "argument"
        assert talk.ask({"op": "hello"})["protocol"] == 1
    assert_nothing_left(image)


def test_refuses_operations_out_of_order(image: Path) -> None:
    with Talk() as talk:
        for request in ({"op": "umount"}, {"op": "space"}, {"op": "list", "path": "/", "deep": True}):
            assert talk.ask(request)["error"] == "order"
        assert talk.ask(writing("/x", 4), b"data")["error"] == "order"
        talk.ask(mounting(image))
        assert talk.ask(mounting(image))["error"] == "order"
        assert talk.ask({"op": "hello"})["error"] == "order"
        assert "error" not in talk.ask({"op": "umount"})
        assert talk.ask({"op": "umount"})["error"] == "order"


def test_takes_what_follows_a_refused_write_off_the_pipe(mounted: Talk) -> None:
    content = b'{"op": "umount"}\n' * 100_000
    assert mounted.ask(writing("/missing/file", len(content)), content)["error"] == "absent"
    assert mounted.ask(writing("/lost+found", len(content)), content)["error"] == "exists"
    assert mounted.ask(writing("/file", len(content)), content).get("error") is None
    assert mounted.ask({"op": "read", "path": "/file", "limit": 1 << 24})["data"] == content


def test_a_full_filesystem_is_an_answer_and_not_the_end(mounted: Talk) -> None:
    assert mounted.ask(writing("/file", 20 * MIB), bytes(20 * MIB))["error"] == "no-space"
    assert mounted.ask({"op": "read", "path": "/none", "limit": 1})["error"] == "absent"


def test_writes_owner_mode_and_time_and_leaves_the_directory_its_own(mounted: Talk) -> None:
    before = mounted.ask({"op": "list", "path": "/", "deep": False})["nodes"][0]
    values = {"mode": 0o640, "uid": 500, "gid": 70_000, "mtime": 1_700_000_000}
    assert mounted.ask(writing("/file", 2, **values), b"hi").get("error") is None
    node = mounted.ask({"op": "list", "path": "/file", "deep": False})["nodes"][0]
    assert {name: node[name] for name in values} == values
    assert mounted.ask({"op": "list", "path": "/", "deep": False})["nodes"][0] == before


def test_never_replaces_a_directory_and_nothing_unasked(mounted: Talk) -> None:
    assert mounted.ask(writing("/lost+found", 1, replace=True), b"x")["error"] == "exists"
    assert mounted.ask(writing("/file", 1), b"x").get("error") is None
    assert mounted.ask(writing("/file", 1), b"y")["error"] == "exists"
    directory = {"op": "mkdir", "path": "/file", "mode": 0o755, "uid": 0, "gid": 0, "mtime": 0}
    assert mounted.ask(directory)["error"] == "exists"
    assert mounted.ask(writing("/file", 1, replace=True), b"z").get("error") is None
    assert mounted.ask({"op": "read", "path": "/file", "limit": 9})["data"] == b"z"


def test_a_readonly_mount_cannot_be_written(image: Path) -> None:
    before = image.read_bytes()
    with Talk() as talk:
        talk.ask(mounting(image, readonly=True))
        assert talk.ask(writing("/file", 1), b"x")["error"] == "io"
    assert image.read_bytes() == before


def test_refuses_what_is_no_filesystem(tmp_path: Path) -> None:
    blank = tmp_path / "blank"
    blank.write_bytes(os.urandom(MIB))
    with Talk() as talk:
        assert talk.ask(mounting(blank))["error"] == "bad-filesystem"
        assert talk.ask(mounting(blank, fstype="btrfs"))["error"] == "bad-filesystem"
        assert_nothing_left(blank)


def test_mounts_without_setuid_devices_and_programs_and_never_panics(image: Path) -> None:
    debugfs(image, 0, "ssv errors 3")
    assert "Errors behavior:          Panic" in run(["dumpe2fs", "-h", image]).text
    with Talk() as talk:
        talk.ask(mounting(image))
        mounts = Path(f"/proc/{talk.process.pid}/mounts").read_text().splitlines()
        options = next(line for line in mounts if "/dev/loop" in line).split()[3].split(",")
    assert {"nosuid", "nodev", "noexec", "noatime", "errors=remount-ro"} <= set(options)


def test_signals_of_the_terminal_do_not_end_it(mounted: Talk) -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        mounted.process.send_signal(number)
    assert mounted.ask({"op": "list", "path": "/", "deep": False})["nodes"]


def test_an_answer_that_nobody_takes_does_not_hold_it_up(mounted: Talk, image: Path) -> None:
    mounted.ask(writing("/file", 8 * MIB), bytes(8 * MIB))
    mounted.send(b'{"op": "read", "path": "/file", "limit": 8388608}\n')
    for pipe in (mounted.process.stdin, mounted.process.stdout):
        assert pipe is not None
        pipe.close()
    mounted.process.wait(10)
    assert_nothing_left(image)


def test_listing_stops_when_the_parent_is_gone(image: Path) -> None:
    with Talk() as talk:
        talk.ask(mounting(image))
        talk.ask(writing("/file", 0))
        talk.ask({"op": "umount"})
        debugfs(image, 0, "sif /file size 0xfffffffe000")  # 16 TiB of nothing
        talk.ask(mounting(image, readonly=True))
        talk.send(json.dumps({"op": "list", "path": "/", "deep": True}).encode() + b"\n")
        assert talk.process.stdin is not None
        talk.process.stdin.close()
        assert talk.process.wait(10) == 0
    assert_nothing_left(image)
