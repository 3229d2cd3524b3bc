"""Starts helper.py, through sudo where needed, and talks with it."""

from __future__ import annotations

import fcntl
import json
import os
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from subprocess import PIPE, Popen
from tempfile import TemporaryFile
from types import TracebackType
from typing import IO, Any, Self

from baker.errors import EnvironmentFault
from baker.helper import PROTOCOL
from baker.model import Partition
from baker.run import find, spawn

OFFLINE_HINT = "Use --backend offline, which needs no privileges."
_HELPER = Path(__file__).resolve().with_name("helper.py")


class Refused(Exception):
    """The helper's answer to a request that it did not carry out; `code` is one of helper.py's."""

    def __init__(self, code: str, path: str, detail: str) -> None:
        super().__init__(f"{code} {path} {detail}")
        self.code, self.path, self.detail = code, path, detail


def identity(found: os.stat_result) -> dict[str, Any]:
    """What makes a file the one that was looked at, in the helper's words."""
    return {"device": found.st_dev, "inode": found.st_ino, "owner": found.st_uid}


class Helper:
    """The one privileged process of a run; a context manager, to be entered before any live display starts.

    Root runs it as it is, others by sudo: silently if sudo allows that, else sudo asks for the password on the
    terminal (never with `ask` False). Threads may share it; a mounted partition keeps the others waiting.
    Enter it in a thread that outlives it: the parent-death signal of `spawn` goes with the thread. That signal is
    harmless, for the kernel unmounts and detaches whatever a killed helper leaves, and sudo drops it anyway; then
    the helper notices the end of its pipe.

    Raises EnvironmentFault when sudo is missing or refuses.
    """

    def __init__(self, ask: bool = True) -> None:
        self._ask = ask
        self._lock = threading.RLock()
        self._stack = ExitStack()
        self._in_step = False

    def __enter__(self) -> Self:
        *silent, last = _prefixes(self._ask)
        for prefix in silent:
            try:
                return self._start(prefix)
            except EnvironmentFault:
                continue
        return self._start(last)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def _start(self, prefix: Sequence[str]) -> Self:
        # -I and -S keep the environment, the current folder and site-packages off the module path; the real path
        # leads out of a virtual environment, which belongs to the user.
        python = [os.path.realpath(sys.executable), "-I", "-S", "-X", "utf8"]
        with ExitStack() as stack:
            self._stderr: IO[bytes] = stack.enter_context(TemporaryFile())
            argv = [*prefix, *python, os.fspath(_HELPER)]
            self._process: Popen[bytes] = stack.enter_context(
                spawn(argv, stdin=PIPE, stdout=PIPE, stderr=self._stderr)
            )
            stack.callback(self._end)
            self._in_step = True
            answer = self.request("hello")
            if answer.get("protocol") != PROTOCOL:
                raise EnvironmentFault("The privileged helper is of another version.", "Reinstall flatcar-bake.")
            self._stack = stack.pop_all()
        return self

    def _end(self) -> None:
        """Close the pipes and wait: the helper unmounts and detaches before it exits."""
        self._in_step = False
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            try:
                pipe.close()
            except BrokenPipeError:
                pass
        self._process.wait()

    def request(self, operation: str, content: Iterable[bytes] = (), **fields: Any) -> dict[str, Any]:
        """One exchange with the helper; returns the fields of its answer, with raw bytes as `data`.

        Raises Refused for the helper's refusal, EnvironmentFault when the helper is gone.
        """
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None and stdout is not None
        with self._lock:
            if not self._in_step:
                raise self._death()
            # An exchange that is interrupted leaves the pipe out of step, and nothing more can be asked.
            self._in_step = False
            try:
                stdin.write(json.dumps({"op": operation, **fields}).encode() + b"\n")
                for chunk in content:
                    stdin.write(chunk)
                stdin.flush()
                answer: dict[str, Any] = json.loads(stdout.readline())
                answer["data"] = stdout.read(answer["payload"])
            except (BrokenPipeError, ValueError) as error:
                raise self._death() from error
            self._in_step = True
        if "error" in answer:
            path = answer.get("path") or fields.get("path", "")
            raise Refused(answer["error"], str(path), answer.get("detail", ""))
        return answer

    def _death(self) -> EnvironmentFault:
        self._end()
        self._stderr.seek(0)
        said = self._stderr.read().decode("utf-8", "backslashreplace").strip().splitlines()
        return EnvironmentFault(
            f"The privileged helper does not run: {said[-1] if said else 'it ended'}.", OFFLINE_HINT
        )

    @contextmanager
    def mounted(self, image: Path, seen: dict[str, Any], partition: Partition, readonly: bool) -> Iterator[None]:
        """Mount a partition of `image`, which must still have the `identity` that was `seen`, for the block."""
        with self._lock:
            try:
                self.request(
                    "mount", image=os.fspath(image), **seen, offset=partition.offset, size=partition.size,
                    fstype=partition.fs, readonly=readonly,
                )  # fmt: skip
                yield
            except BaseException:
                self._abandon()
                raise
            else:
                self.request("umount")
            finally:
                _wait_for_release(image)

    def _abandon(self) -> None:
        """Unmount after a failure, if anything is mounted; a second failure must not hide the first."""
        try:
            self.request("umount")
        except Refused as refused:
            if refused.code != "order":
                self._end()
        except EnvironmentFault:
            pass  # it is gone, and its mount with it


def _prefixes(ask: bool) -> list[list[str]]:
    """The ways to run a command as root, least intrusive first."""
    if os.geteuid() == 0:
        return [[]]
    if find("sudo") is None:
        raise EnvironmentFault("The loop backend needs root, and sudo is not installed.", OFFLINE_HINT)
    silent, asking = ["sudo", "-n", "--"], ["sudo", "--"]
    return [silent, asking] if ask and _has_terminal() else [silent]


def _has_terminal() -> bool:
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_CLOEXEC))
    except OSError:
        return False
    return True


def _wait_for_release(image: Path) -> None:
    """Wait until the loop device has let go of the image, and with it of the helper's lock.

    It does so at once, unless someone else has the device open: udev or blkid may be looking at it, for moments.
    """
    for _ in range(500):
        try:
            with image.open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                return
        except BlockingIOError:
            time.sleep(0.01)
        except OSError:
            return  # not there any more, or not ours to read: then there is nothing to wait for
