"""The privileged helper under any requests in any order: it answers each, ends in order, and touches but the image."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from disks import tool
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from loops import Talk, assert_nothing_left, debugfs, make_ext4, mounting, needs_loop

from baker.helper import OPERATIONS
from baker.privilege import _FAULTS

pytestmark = needs_loop
RUNS = int(os.environ.get("FLATCAR_BAKE_FUZZ", "0"))

PATHS = [
    "/", "/a", "/a/b", "/way", "/way/secret", "/way/new", "/up/x", "/round/x", "/null", "/pipe", "/lost+found", "/..",
    "//",    "/a/../..", "", "a", "/\n", "/-rf", "/\udcff", "/" + "x" * 300,
]  # fmt: skip
NUMBERS = st.sampled_from([0, 1, 0o644, 0o4755, 7, 512, 1 << 20, 1 << 62, 1 << 64, -1]) | st.integers()
ODD = st.none() | st.booleans() | st.text(max_size=3) | st.just([]) | st.just({})


def values(image: Path, host: Path) -> dict[str, st.SearchStrategy[Any]]:
    """What a field may be given: mostly what it takes, also what it must not."""
    path = st.sampled_from(PATHS)
    flag = st.booleans()
    return {
        "path": path, "text": path | st.just(str(host)), "fstype": st.sampled_from(["ext4", "btrfs", "proc"]),
        "image": st.sampled_from([str(image), str(host / "secret"), str(host / "link"), "/dev/null", "/dev/loop0"]),
        "readonly": flag, "deep": flag, "replace": flag, "uid": st.just(0) | NUMBERS, "gid": st.just(0) | NUMBERS,
        "mode": st.just(0o644) | NUMBERS, "mtime": st.just(0) | NUMBERS, "limit": st.just(99) | NUMBERS,
        "device": NUMBERS, "inode": NUMBERS, "owner": NUMBERS, "offset": NUMBERS, "size": NUMBERS,
    }  # fmt: skip


@st.composite
def requests(draw: st.DrawFn, image: Path, host: Path) -> tuple[dict[str, Any], bytes]:
    """One request whose framing is right, and its raw bytes."""
    operation = draw(st.sampled_from([*OPERATIONS, "write", "mkdir", "symlink", "exec"]))
    if operation == "mount" and draw(st.integers(0, 3)):
        return mounting(image, readonly=draw(st.booleans())), b""
    pools = values(image, host)
    fields = {name: draw(pools[name]) for name in OPERATIONS.get(operation, ()) if name != "payload"}
    if fields and not draw(st.integers(0, 5)):
        fields[draw(st.sampled_from(sorted(fields)))] = draw(ODD)
    if not draw(st.integers(0, 9)):
        fields["more"] = 1
    content = draw(st.binary(max_size=30)) if operation == "write" else b""
    return {"op": operation, **fields, **({"payload": len(content)} if operation == "write" else {})}, content


def test_any_requests_in_any_order(tmp_path: Path) -> None:
    image, host = make_ext4(tmp_path / "image"), tmp_path / "host"
    host.mkdir()
    (host / "secret").write_text("of the host")
    (host / "link").symlink_to(image)
    debugfs(
        image,
        0,
        f"symlink way {host}",
        "symlink up ../../../..",
        "symlink round round",
        "mknod null c 1 3",
        "mknod pipe p",
    )

    @settings(
        max_examples=RUNS or 60, derandomize=not RUNS, deadline=None, database=None,
        suppress_health_check=[HealthCheck.too_slow],
    )  # fmt: skip
    @given(st.lists(requests(image, host), max_size=25))
    def attempt(conversation: list[tuple[dict[str, Any], bytes]]) -> None:
        with Talk() as talk:
            for request, content in conversation:
                answer = talk.ask(request, content)
                assert answer.get("error", "io") in _FAULTS, answer
            assert talk.end() == 0
        assert_nothing_left(image)
        assert sorted(path.name for path in host.iterdir()) == ["link", "secret"]
        assert (host / "secret").read_text() == "of the host"

    attempt()
    tool("e2fsck", "-fn", image)
