"""The client's side of Dask: hand out tasks, show what they do, and take back what is not wanted any more."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

from baker.console import Console
from baker.errors import BakeError, EnvironmentFault, NetworkError, UsageError
from baker.fleet.storage import EXTRA_HINT

_SCHEMES = {"dask": "tcp", "dask+tls": "tls"}
_CONNECT = 15  # seconds for the scheduler to answer
_LETTING_GO = 20  # seconds for workers to stop a cancelled task and clean up behind it


def scheduler_address(executor: str) -> str:
    """Dask's address for `dask://HOST:PORT` or `dask+tls://HOST:PORT`; UsageError for anything else."""
    parts = urlsplit(executor)
    try:
        port = parts.port
    except ValueError:
        port = None
    if parts.scheme not in _SCHEMES or not parts.hostname or not port or parts.path.strip("/") or "@" in parts.netloc:
        raise UsageError(
            f"--executor {executor} names no cluster.", "Write dask://HOST:PORT, the address of a Dask scheduler."
        )
    return f"{_SCHEMES[parts.scheme]}://{parts.netloc}"


class Engine:
    """A connection to a cluster; use `connect`."""

    def __init__(self, client: Any, address: str, topic: str, console: Console) -> None:
        self._client, self._address, self._topic, self._console = client, address, topic, console
        self._running: dict[str, str] = {}  # label → attempt that has begun and not ended
        self._changed = threading.Condition()

    def run(self, documents: Mapping[str, str]) -> Generator[tuple[str, str | BakeError]]:
        """Carry out documents by label, in any order; yields what each came to, JSON or a failure of the cluster.

        When the caller stops listening, by an exception or otherwise, the tasks that are not done are cancelled.
        """
        from distributed import as_completed

        from baker.fleet.worker import carry_out

        self._client.subscribe_topic(self._topic, self._hear)
        if not self._client.scheduler_info(n_workers=-1)["workers"]:
            self._console.warn(f"The cluster at {self._address} has no workers yet; the tasks wait for some.")
        labels = {}
        try:
            for label, document in documents.items():
                future = self._client.submit(
                    carry_out, document, label, self._topic, key=f"{self._topic}-{label}", pure=False
                )
                labels[future] = label
            for future in as_completed(list(labels), loop=self._client.loop):
                yield labels[future], _outcome(future, self._address)
        finally:
            if waiting := [future for future in labels if not future.done()]:
                self._console.note("cancelling what is not done")
                self._client.cancel(waiting, force=True)
                self._wait_for_workers()

    def _hear(self, event: tuple[float, Any]) -> None:
        """One event of a worker; Dask calls this in a thread of its own."""
        words = event[1]
        label, kind, text = words["task"], words["event"], words.get("text", "")
        with self._changed:
            if kind == "begun":
                again = "again " if label in self._running else ""
                self._running[label] = words["attempt"]
                self._console.note(f"{label}: begun {again}on {words['on']}")
            elif kind == "ended" and self._running.get(label) == words["attempt"]:
                del self._running[label]
                self._changed.notify_all()
        if kind == "step-end":
            self._console.note(f"{label}: {text}: {words['seconds']:.1f} s")
        elif kind == "note":
            self._console.note(f"{label}: {text}")
        elif kind == "warning":
            self._console.warn(f"{label}: {text}")

    def _wait_for_workers(self) -> None:
        """Let the workers that have heard of us end what they do, so that they write nothing behind our back."""
        deadline = time.monotonic() + _LETTING_GO
        with self._changed:
            while self._running and (left := deadline - time.monotonic()) > 0:
                self._changed.wait(left)


@contextmanager
def connect(executor: str, topic: str, console: Console) -> Iterator[Engine]:
    """A connection to the cluster of an `--executor`. NetworkError when no scheduler answers."""
    address = scheduler_address(executor)
    try:
        from distributed import Client
    except ImportError as error:
        raise EnvironmentFault(
            "Dask, which hands out tasks to other machines, is not installed.", EXTRA_HINT
        ) from error
    # Its own words on a lost connection are tracebacks. Each of its loggers has a level of its own.
    for name in [name for name in logging.root.manager.loggerDict if name.startswith("distributed")]:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        client = Client(address, timeout=_CONNECT, set_as_default=False, name="flatcar-bake")
    except Exception as error:  # also what Dask says of certificates
        raise NetworkError(
            f"No Dask scheduler answers at {executor}: {' '.join(str(error).split())}.",
            "Start one with `dask scheduler`, and workers with `dask worker tcp://HOST:PORT --nthreads 1`.",
        ) from error
    try:
        yield Engine(client, executor, topic, console)
    finally:
        client.close(timeout=5)


def _outcome(future: Any, address: str) -> str | BakeError:
    """What a finished future holds."""
    from concurrent.futures import CancelledError

    from distributed.scheduler import KilledWorker

    try:
        return str(future.result())
    except KilledWorker:
        return EnvironmentFault(
            "One worker after the other was lost with this task.",
            "Look at the logs of the workers; memory may have run out.",
        )
    except ModuleNotFoundError as error:
        return EnvironmentFault(f"A worker has no module {error.name}.", f"On every worker: {EXTRA_HINT}.")
    except (CancelledError, OSError) as error:
        return NetworkError(
            f"The connection to the scheduler at {address} was lost: {type(error).__name__}.", "Run it again."
        )
    except Exception as error:
        return EnvironmentFault(f"The worker failed: {type(error).__name__}: {error}.")
