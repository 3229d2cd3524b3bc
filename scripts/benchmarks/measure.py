"""Running one program and watching what it takes: time, processor, memory and disk of it and all its children."""

from __future__ import annotations

import os
import statistics
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

_INTERVAL = 0.1
_PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True)
class Sample:
    """What was in use at one moment, in bytes: resident memory of all processes, shared pages counted in each, and
    what the files in the watched folder took on the disk."""

    seconds: float
    memory: int
    disk: int


@dataclass(frozen=True)
class Run:
    """One run; `memory` and `disk` are the most of all samples, which are taken ten times a second."""

    seconds: float
    cpu: float
    memory: int = 0
    disk: int = 0
    output: str = ""
    samples: Sequence[Sample] = ()

    def first(self, seconds: float) -> Run:
        """The run as if it had ended after so many seconds; its processor time is not known."""
        samples = [sample for sample in self.samples if sample.seconds <= seconds]
        return _sampled(seconds, 0, samples, self.output)


@dataclass
class Case:
    """The runs of one thing that is measured."""

    name: str
    runs: list[Run] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        """The median."""
        return statistics.median(run.seconds for run in self.runs)

    @property
    def cpu(self) -> float:
        return statistics.median(run.cpu for run in self.runs)

    @property
    def memory(self) -> int:
        return max(run.memory for run in self.runs)

    @property
    def disk(self) -> int:
        return max(run.disk for run in self.runs)

    @property
    def spread(self) -> tuple[float, float]:
        """The fastest and the slowest run."""
        return min(run.seconds for run in self.runs), max(run.seconds for run in self.runs)


class Failed(Exception):
    """A measured program failed, took too long, or gave a wrong result."""


def measure(
    argv: Sequence[str | os.PathLike[str]],
    folder: Path,
    env: Mapping[str, str] | None = None,
    timeout: float = 600,
) -> Run:
    """Run a program in `folder` and watch it; raises Failed when it does not end well in time."""
    with (folder.parent / f"{folder.name}.log").open("w+b") as log:
        begin = time.monotonic()
        process = subprocess.Popen(
            argv, cwd=folder, env={**os.environ, **(env or {})}, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            start_new_session=True,
        )  # fmt: skip
        watcher = _Watcher(process.pid, folder)
        killer = threading.Timer(timeout, process.kill)
        killer.start()
        with watcher:
            _, status, usage = os.wait4(process.pid, 0)
        seconds = time.monotonic() - begin
        killer.cancel()
        process.returncode = os.waitstatus_to_exitcode(status)
        log.seek(0)
        output = log.read().decode("utf-8", "replace")
    if process.returncode:
        raise Failed(f"{argv[0]} ended with {process.returncode} after {seconds:.0f} s: {output[-600:]}")
    return _sampled(seconds, usage.ru_utime + usage.ru_stime, watcher.samples, output)


def _sampled(seconds: float, cpu: float, samples: Sequence[Sample], output: str) -> Run:
    memory = max((sample.memory for sample in samples), default=0)
    disk = max((sample.disk for sample in samples), default=0)
    return Run(seconds, cpu, memory, disk, output, samples)


class _Watcher:
    """Samples a session's memory and a folder's size in a thread."""

    def __init__(self, session: int, folder: Path) -> None:
        self._session, self._folder = session, folder
        self.samples: list[Sample] = []
        self._begin = time.monotonic()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(_INTERVAL):
            now = time.monotonic() - self._begin
            self.samples.append(Sample(now, _resident(self._session), on_disk(self._folder)))


def _resident(session: int) -> int:
    total = 0
    for entry in os.scandir("/proc"):
        if entry.name.isdecimal():
            try:
                stat = Path(entry.path, "stat").read_text().rpartition(")")[2].split()
                if int(stat[3]) == session:
                    total += int(stat[21]) * _PAGE
            except (OSError, IndexError):
                continue  # it ended just now
    return total


def on_disk(folder: Path) -> int:
    """Bytes that a folder's files take on the disk, each file once."""
    blocks: dict[tuple[int, int], int] = {}
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                stat = os.lstat(os.path.join(parent, name))
            except FileNotFoundError:
                continue
            blocks[stat.st_dev, stat.st_ino] = stat.st_blocks * 512
    return sum(blocks.values())


def repeat(name: str, times: int, once: Callable[[int], Run]) -> Case:
    """Run something several times; the number of the run is passed in."""
    return Case(name, [once(number) for number in range(times)])
