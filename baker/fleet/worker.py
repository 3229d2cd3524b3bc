"""What a Dask worker runs: it starts the child that does the work, passes on what it tells, and stops it if need be.

Only this module and `engine.py` know Dask. A function is named on the wire, not sent, so every worker needs the same
flatcar-bake.
"""

from __future__ import annotations

import json
import os
import secrets
import sys
import threading
import time
from subprocess import PIPE, Popen
from typing import Any

from baker.errors import EnvironmentFault
from baker.fleet.answers import error_words
from baker.run import find, spawn

_LOOK = 0.2  # seconds between two looks at whether the task is still wanted


def carry_out(document: str, label: str, topic: str) -> str:
    """Carry out a task in a process of its own; returns its answer as JSON. Events go to the `topic`."""
    from distributed import get_worker

    worker = get_worker()
    key, attempt = worker.get_current_task(), secrets.token_hex(4)

    def tell(event: str, **words: Any) -> None:
        worker.log_event(topic, {**words, "event": event, "task": label, "attempt": attempt})

    tell("begun", on=str(worker.name))
    # run.py lets the kernel kill what outlives us; this child is asked to end, so that it removes its work folder.
    asked = [setpriv, "--pdeathsig", "TERM", "--"] if (setpriv := find("setpriv")) else []
    argv = [*asked, sys.executable, "-P", "-m", "baker.fleet.child", worker.local_directory]
    try:
        with spawn(argv, stdin=PIPE, env=os.environ) as process:
            answer = _attend(process, document, tell, lambda: _wanted(worker, key))
    finally:
        tell("ended")
    return json.dumps(answer | {"worker": str(worker.name)})


def _wanted(worker: Any, key: object) -> bool:
    """Whether anybody still waits for this task: it was not cancelled, and neither client nor scheduler is gone."""
    task = worker.state.tasks.get(key)
    gone = worker.status.name in ("closing", "closed", "failed")
    return task is not None and task.state != "cancelled" and not gone


def _attend(process: Popen[bytes], document: str, tell: Any, wanted: Any) -> dict[str, Any]:
    """Feed the child, pass on its progress, and stop it (by leaving the block of `spawn`) when nobody wants it."""
    assert process.stdin is not None and process.stdout is not None and process.stderr is not None
    stdout, last = process.stdout, [""]
    said: list[bytes] = []

    def listen() -> None:
        assert process.stderr is not None
        for line in process.stderr:
            try:
                event = json.loads(line)
                tell(event.pop("event"), **event)
            except (ValueError, KeyError, AttributeError, TypeError):
                last[0] = line.decode("utf-8", "replace").strip()

    threads = [threading.Thread(target=listen), threading.Thread(target=lambda: said.append(stdout.read()))]
    try:
        with process.stdin:
            process.stdin.write(document.encode())
    except BrokenPipeError:
        pass  # it tells why, or its status does
    for thread in threads:
        thread.daemon = True
        thread.start()
    while process.poll() is None:
        if not wanted():
            return error_words(EnvironmentFault("The task was cancelled."))
        time.sleep(_LOOK)
    for thread in threads:
        thread.join()
    try:
        answer: dict[str, Any] = json.loads(b"".join(said))
        return answer
    except ValueError:
        status = f"ended with status {process.returncode}"
        return error_words(EnvironmentFault(f"The process of a task {status}: {last[0] or 'it said nothing'}."))
