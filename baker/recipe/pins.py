"""recipes.lock: the sha256 of sources for which upstream vouches in no way, recorded on first use, reviewed by diff.

    [sha256]
    "https://download.docker.com/linux/static/stable/x86_64/docker-28.0.4.tgz" = "9c0b…"

Sorted, one line for each, so that two people's additions merge. The key is the address that the recipe names,
wherever a mirror may have served it; for a container image it is `docker://IMAGE PLATFORM`.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import tempfile
import threading
from pathlib import Path

from baker.errors import EnvironmentFault, UsageError, VerificationError
from baker.schema import Table, load_toml

_HEAD = """\
# What recipes download and upstream does not vouch for: address = sha256, as it was when it was used first.
# Written by flatcar-bake. A line that changes means that somebody replaced a published file: find out why.

[sha256]
"""


class PinFile:
    """The pins in `path`, and those in `below` (such as the ones shipped with the recipes), which are only read.

    `locked`: no new pins, what has none is refused. Safe to share between threads; `save` also between processes.
    Raises UsageError for a file that cannot be read.
    """

    def __init__(self, path: Path, *below: Path, locked: bool = False) -> None:
        self.path = path
        self.locked = locked
        self._pins: dict[str, str] = {}
        for file in (*below, path):
            self._pins |= _read(file)
        self._new: dict[str, str] = {}
        self._guard = threading.Lock()

    def get(self, url: str) -> str | None:
        """The sha256 (64 hexadecimal digits) that is pinned for an address."""
        return self._pins.get(url)

    def own(self) -> dict[str, str]:
        """What the file itself pins now."""
        return _read(self.path)

    def put(self, url: str, sha256: str) -> None:
        """Pin an address; VerificationError when it is pinned to something else, or when pins are `locked`."""
        with self._guard:
            known = self._pins.get(url)
            if known == sha256:
                return
            if known is not None:
                raise changed(url, sha256, known, self.path)
            self.refuse_when_locked(url)
            self._pins[url] = self._new[url] = sha256

    def refuse_when_locked(self, url: str) -> None:
        """Raise VerificationError when no new pin may be added."""
        if self.locked:
            raise VerificationError(
                f"Nothing vouches for {url}: {self.path.name} does not pin it, and --locked-sources is given.",
                "Build once without --locked-sources, look at what was added to the file, and keep it.",
            )

    def save(self) -> None:
        """Write new pins, beside those that others may have added meanwhile."""
        with self._guard:
            if not self._new:
                return
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                guard = os.open(self.path.parent, os.O_RDONLY | os.O_CLOEXEC)
                try:
                    fcntl.flock(guard, fcntl.LOCK_EX)
                    _write(self.path, _read(self.path) | self._new)
                finally:
                    os.close(guard)
            except OSError as error:
                raise EnvironmentFault(
                    f"{self.path} cannot be written: {error.strerror}.",
                    "It records what was used for the first time; name a file of your own with --recipes-lock.",
                ) from error
            self._new = {}


def changed(url: str, found: str, pinned: str, path: Path) -> VerificationError:
    """The error for a published file that is not what it was."""
    return VerificationError(
        f"{url} has the sha256 {found} now, but {path.name} pins {pinned}.",
        f"Somebody replaced a published file. Find out why before you change the line in {path}.",
    )


def _read(path: Path) -> dict[str, str]:
    if not path.exists():
        return {}
    top = Table(load_toml(path), str(path))
    pins: dict[str, str] = {}
    table = top.take("sha256", dict, {})
    top.done()
    for url, digest in table.items():
        if not isinstance(digest, str) or not re.fullmatch("[0-9a-f]{64}", digest):
            raise UsageError(f"{path}: {url!r} has no sha256, which is 64 digits 0-9a-f, but {digest!r}.")
        pins[url] = digest
    return pins


def _write(path: Path, pins: dict[str, str]) -> None:
    # A basic string of TOML escapes as JSON does (toml.io/en/v1.0.0#string).
    lines = [f"{json.dumps(url)} = {json.dumps(digest)}\n" for url, digest in sorted(pins.items())]
    with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
        file.write(_HEAD + "".join(lines))
        os.fchmod(file.fileno(), path.stat().st_mode & 0o777 if path.exists() else 0o644)
    os.replace(file.name, path)
