"""What the tests of the loop backend share: small images, a raw conversation with the helper, what is left behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pytest

from baker import helper
from baker.privilege import loop_available
from baker.run import run

HELPER = [os.path.realpath(sys.executable), "-I", "-S", "-X", "utf8", os.path.realpath(helper.__file__)]
MIB = 1 << 20

_reason = "these tests run as root" if os.geteuid() else loop_available()
needs_loop = pytest.mark.skipif(_reason is not None, reason=f"no loop mounts here: {_reason}")


def make_ext4(path: Path, size: int = 16 * MIB) -> Path:
    """Create a file that is one bare ext4 filesystem."""
    path.touch()
    os.truncate(path, size)
    run(["mke2fs", "-q", "-t", "ext4", path])
    return path


def debugfs(image: Path, offset: int, *commands: str) -> None:
    """Change an ext4 inside an image in ways that no kernel and no editor of ours would."""
    run(["debugfs", "-w", "-f", "-", f"{image}?offset={offset}"], input="\n".join(commands).encode())


def mounting(file: Path, **changed: object) -> dict[str, object]:
    """The `mount` request for a bare ext4."""
    found = file.stat()
    return {
        "op": "mount", "image": str(file), "device": found.st_dev, "inode": found.st_ino, "owner": found.st_uid,
        "offset": 0, "size": found.st_size, "fstype": "ext4", "readonly": False, **changed,
    }  # fmt: skip


def writing(path: str, size: int, **changed: object) -> dict[str, object]:
    """The `write` request for a file of root."""
    entry = {"op": "write", "path": path, "mode": 0o644, "uid": 0, "gid": 0, "mtime": 0}
    return entry | {"replace": False, "payload": size} | changed


class Talk:
    """A helper of our own, spoken to without the manners of `privilege.Helper`."""

    def __init__(self, env: Mapping[str, str] | None = None) -> None:
        self.process = subprocess.Popen(
            HELPER, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=dict(env or {})
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()

    def send(self, data: bytes) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(data)
        self.process.stdin.flush()

    def answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        answer: dict[str, Any] = json.loads(self.process.stdout.readline())
        answer["data"] = self.process.stdout.read(answer["payload"])
        return answer

    def ask(self, request: Mapping[str, object], data: bytes = b"") -> dict[str, Any]:
        self.send(json.dumps(request).encode() + b"\n" + data)
        return self.answer()

    def end(self) -> int:
        """Close the pipe if it still is open; returns the exit status."""
        if self.process.returncode is None:
            self.process.communicate()
        return self.process.returncode


def left_behind(image: Path) -> list[str]:
    """The loop devices that hold an image, and mounts that escaped from the helper's namespace."""
    devices = [
        file.parent.parent.name
        for file in Path("/sys/block").glob("loop*/loop/backing_file")
        if file.exists() and str(image) in file.read_text()
    ]
    mounts = Path("/proc/mounts").read_text().splitlines()
    return devices + [line for line in mounts if line.startswith("/dev/loop") and f" {helper.MOUNTPOINT} " in line]


def assert_nothing_left(image: Path) -> None:
    """The kernel cleans up after a killed process on its own time, so allow it some."""
    deadline = time.monotonic() + 10
    while left := left_behind(image):
        assert time.monotonic() < deadline, left
        time.sleep(0.02)
