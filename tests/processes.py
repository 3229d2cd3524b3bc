"""What runs on this machine, read from /proc: for tests that nothing is left behind."""

from __future__ import annotations

import os
from pathlib import Path


def children() -> dict[int, str]:
    """Our own child processes: id → command name. Ended ones that nobody waited for count too."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            # "PID (NAME) STATE PPID …": the name may hold blanks and parentheses.
            before, _, after = path.read_text().rpartition(")")
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(after.split()[1]) == os.getpid():
            pid, _, name = before.partition(" (")
            found[int(pid)] = name
    return found


def mentions(text: str) -> list[str]:
    """The command lines of all processes that contain `text`."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = path.read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
        except (FileNotFoundError, ProcessLookupError):
            continue
        if text in command:
            found.append(command)
    return found
