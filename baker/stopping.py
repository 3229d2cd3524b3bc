"""Being asked to stop by a signal: how that reaches the stack, other threads and child programs.

The command line installs `handle`. The main thread unwinds at once, except in a block that is `unbroken`; other
threads stop at their next `check`, and with the next program they want to start.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from subprocess import Popen
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)

_asked = threading.Event()
_programs: set[Popen[bytes]] = set()
_local = threading.local()
_unbroken = 0  # how many unbroken blocks the main thread is in
_waiting = 0  # the signal that came meanwhile


class Stopped(BaseException):
    """A signal asked us to end; it unwinds the whole stack, so that everything is cleaned up.

    Not a KeyboardInterrupt, which typer would turn into an exit code of its own. `number` is the signal's.
    """

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


def handle(number: int, _frame: FrameType | None) -> None:
    """The signal handler of a process that is to end by unwinding its stack."""
    global _waiting
    # Once is enough: the cleanup that follows must not be interrupted by an impatient second signal.
    for name in SIGNALS:
        signal.signal(name, signal.SIG_IGN)
    _asked.set()
    for process in list(_programs):
        _end(process)
    if _unbroken:
        _waiting = number
    else:
        raise Stopped(number)


def _must_end() -> bool:
    """Whether the thread we are in must end. The main one needs no telling, and its cleanup must not be hindered."""
    main = threading.current_thread() is threading.main_thread()
    return _asked.is_set() and not main and not getattr(_local, "cleaning", False)


def _end(process: Popen[bytes]) -> None:
    try:
        process.terminate()
    except OSError:
        pass  # another user's, such as sudo: the end of its pipe will tell it


@contextmanager
def told(process: Popen[bytes]) -> Iterator[None]:
    """Let a program that runs during the block be told to end as well, so that no thread waits for it."""
    _programs.add(process)
    if _must_end():
        _end(process)  # it was started while the signal came
    try:
        yield
    finally:
        _programs.discard(process)


def check() -> None:
    """For loops that may run for long: ends a thread (by SystemExit) once the process is to end."""
    if _must_end():
        raise SystemExit


@contextmanager
def cleaning() -> Iterator[None]:
    """A block that cleans up: the programs it starts run to their end although the process is to end."""
    _local.cleaning = True
    try:
        with unbroken():
            yield
    finally:
        _local.cleaning = False


@contextmanager
def unbroken() -> Iterator[None]:
    """A short block that runs to its end although a signal arrives; Stopped is raised behind it.

    Signals are the main thread's, so in others it does nothing.
    """
    global _unbroken, _waiting
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _unbroken += 1
    try:
        yield
    finally:
        _unbroken -= 1
        if _waiting and not _unbroken:
            number, _waiting = _waiting, 0
            raise Stopped(number)
