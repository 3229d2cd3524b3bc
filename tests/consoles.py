"""Driving a guest by its serial console, as a person at a terminal would."""

from __future__ import annotations

import os
import re
import selectors
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

SECONDS = 300


class Terminal:
    """The serial console of a running machine."""

    def __init__(self, machine: subprocess.Popen[bytes]) -> None:
        self._machine = machine
        self._unread = b""
        self.said = b""

    def wait(self, pattern: bytes, seconds: float = SECONDS) -> str:
        """Wait until the guest has said something that matches; returns all up to there since the last wait."""
        assert self._machine.stdout is not None
        deadline = time.monotonic() + seconds
        with selectors.DefaultSelector() as ready:
            ready.register(self._machine.stdout, selectors.EVENT_READ)
            while not (found := re.search(pattern, self._unread)):
                assert time.monotonic() < deadline, f"no {pattern!r} within {seconds} s:\n{self._last()}"
                if ready.select(1):
                    chunk = os.read(self._machine.stdout.fileno(), 1 << 16)
                    assert chunk, f"the machine ended before it said {pattern!r}:\n{self._last()}"
                    self._unread, self.said = self._unread + chunk, self.said + chunk
        text, self._unread = self._unread[: found.end()], self._unread[found.end() :]
        return text.decode(errors="replace").replace("\r", "")

    def run(self, command: str, seconds: float = SECONDS) -> str:
        """Run a command in the shell that is logged in; returns its output."""
        assert self._machine.stdin is not None
        # The mark is not in what the terminal echoes.
        self._machine.stdin.write(f"{command}; echo end''-mark $?.\n".encode())
        self._machine.stdin.flush()
        return re.sub(r"\x1b[\[\]][0-9;?]*[a-zA-Z\x07]?", "", self.wait(rb"end-mark [0-9]+\.", seconds))

    def _last(self) -> str:
        return self.said[-3000:].decode(errors="replace")


@contextmanager
def machine(argv: Sequence[str | Path]) -> Iterator[Terminal]:
    """Start QEMU with its console on stdin and stdout; it is killed at the end."""
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        try:
            yield Terminal(process)
        finally:
            process.kill()
