"""What the user sees on stderr while a bake works: rich on a terminal, plain lines in CI, JSON lines on request.

Library code gets a `Console` and never prints. stdout belongs to results. Texts may quote names from images and
servers, so nothing that steers a terminal gets through here.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TextIO

from baker.printable import printable

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID


class Console:
    """The quiet one, and the base of the others: tests and library users pass it as it is."""

    def note(self, text: str) -> None:
        """A fact worth a line."""

    def warn(self, text: str) -> None:
        """Something the user must know; shown even with --quiet."""

    @contextmanager
    def step(self, text: str) -> Iterator[None]:
        """A step of the work, with its duration; its end is not shown when it fails."""
        yield

    @contextmanager
    def bar(self, text: str, total: int | None) -> Iterator[Bar]:
        """A long stretch of work counted in bytes; `total` None where it is not known."""
        yield Bar()

    @contextmanager
    def suspended(self) -> Iterator[None]:
        """Give the terminal back for a while, so that a program such as sudo can ask something."""
        yield

    def close(self) -> None:
        """Give the terminal back for good."""


class Bar:
    """Counts bytes of one piece of work."""

    def advance(self, count: int) -> None:
        """`count` more bytes are done."""


class PlainConsole(Console):
    """One line per step; for CI logs and pipes."""

    def __init__(self, stream: TextIO | None = None, quiet: bool = False) -> None:
        self._stream = stream or sys.stderr
        self._quiet = quiet
        self._lock = threading.Lock()

    def _line(self, text: str) -> None:
        with self._lock:
            print(printable(text), file=self._stream, flush=True)

    def note(self, text: str) -> None:
        if not self._quiet:
            self._line(f"  {text}")

    def warn(self, text: str) -> None:
        self._line(f"warning: {text}")

    @contextmanager
    def step(self, text: str) -> Iterator[None]:
        if not self._quiet:
            self._line(f"{text} …")
        started = time.monotonic()
        yield
        if not self._quiet:
            self._line(f"{text}: {time.monotonic() - started:.1f} s")

    @contextmanager
    def bar(self, text: str, total: int | None) -> Iterator[Bar]:
        with self.step(text + (f" ({total / 1e6:.0f} MB)" if total else "")):
            yield Bar()


class JsonConsole(Console):
    """One JSON object per line: {"event": …}. Fields: event, text, seconds, done, total."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self._lock = threading.Lock()

    def emit(self, **fields: object) -> None:
        with self._lock:
            print(json.dumps(fields), file=self._stream, flush=True)

    def note(self, text: str) -> None:
        self.emit(event="note", text=text)

    def warn(self, text: str) -> None:
        self.emit(event="warning", text=text)

    @contextmanager
    def step(self, text: str) -> Iterator[None]:
        self.emit(event="step-start", text=text)
        started = time.monotonic()
        yield
        self.emit(event="step-end", text=text, seconds=round(time.monotonic() - started, 3))

    @contextmanager
    def bar(self, text: str, total: int | None) -> Iterator[Bar]:
        with self.step(text):
            yield _JsonBar(self, text, total)


class _JsonBar(Bar):
    def __init__(self, console: JsonConsole, text: str, total: int | None) -> None:
        self._console, self._text, self._total = console, text, total
        self._done = 0
        self._shown = time.monotonic()

    def advance(self, count: int) -> None:
        self._done += count
        if time.monotonic() - self._shown >= 0.5:
            self._shown = time.monotonic()
            self._console.emit(event="progress", text=self._text, done=self._done, total=self._total)


class RichConsole(Console):
    """Live bars on a terminal."""

    def __init__(self) -> None:
        from rich.console import Console as Terminal
        from rich.progress import BarColumn, DownloadColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

        self._terminal = Terminal(stderr=True, emoji=False)
        self._progress: Progress = Progress(
            SpinnerColumn(), TextColumn("{task.description}", markup=False), BarColumn(bar_width=24),
            DownloadColumn(), TimeElapsedColumn(), console=self._terminal, transient=True,
        )  # fmt: skip
        self._progress.start()

    def _print(self, text: str, style: str) -> None:
        self._terminal.print(printable(text), style=style, markup=False, highlight=False)

    def note(self, text: str) -> None:
        self._print(f"  {text}", "dim")

    def warn(self, text: str) -> None:
        self._print(f"warning: {text}", "yellow")

    @contextmanager
    def step(self, text: str) -> Iterator[None]:
        task = self._progress.add_task(printable(text), total=None)
        started = time.monotonic()
        try:
            yield
            self._print(f"✓ {text}  {time.monotonic() - started:.1f} s", "green")
        finally:
            self._progress.remove_task(task)

    @contextmanager
    def bar(self, text: str, total: int | None) -> Iterator[Bar]:
        task = self._progress.add_task(printable(text), total=total)
        started = time.monotonic()
        try:
            yield _RichBar(self._progress, task)
            self._print(f"✓ {text}  {time.monotonic() - started:.1f} s", "green")
        finally:
            self._progress.remove_task(task)

    @contextmanager
    def suspended(self) -> Iterator[None]:
        self._progress.stop()
        yield
        self._progress.start()

    def close(self) -> None:
        self._progress.stop()


class _RichBar(Bar):
    def __init__(self, progress: Progress, task: TaskID) -> None:
        self._progress, self._task = progress, task

    def advance(self, count: int) -> None:
        self._progress.update(self._task, advance=count)


def make_console(mode: str, quiet: bool) -> Console:
    """The console for `--progress` (`auto`, `rich`, `plain`, `json`) and `--quiet`."""
    if mode == "json":
        return JsonConsole()
    if quiet:
        return PlainConsole(quiet=True)
    if mode == "rich" or (mode == "auto" and sys.stderr.isatty()):
        return RichConsole()
    return PlainConsole()
