"""The mirror's folder, and which files in it are ours: only those are ever removed.

CHANNEL/BOARD/VERSION/FILE, FILE.sig       as on the release server, signatures as they came
CHANNEL/BOARD/current/version.txt          which release a channel means; current-YEAR for an LTS
releases-json/releases.json                the feed, of what is here
security/image-signing-key/…               the key that the signatures are checked by
extensions/…                               the bakery, laid out as `release build` does
mirror.json                                our files
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from baker.errors import UsageError
from baker.releasing.layout import write_file
from baker.stopping import unbroken

STATE = "mirror.json"
EXTENSIONS = "extensions"
INCOMING = ".incoming"
"""Downloads that are not complete or not in their place yet; a web server need not see it."""


class MirrorFolder:
    """A mirror below `root`, which is made when it is missing. Raises UsageError where something else is there."""

    def __init__(self, root: Path) -> None:
        self.root = root
        if root.exists() and not root.is_dir():
            raise UsageError(f"{root} is not a folder.", "Name the folder that a web server will serve.")
        root.mkdir(parents=True, exist_ok=True)
        self._files = self._read()
        self.added: list[str] = []

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Be the only run that works on this mirror; UsageError when there is another."""
        fd = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(fd)
            raise UsageError(f"Another run works on the mirror {self.root}.", "Wait for it to end.") from None
        try:
            yield
        finally:
            os.close(fd)

    @property
    def incoming(self) -> Path:
        """A folder on the same filesystem for downloads."""
        return self.root / INCOMING

    def path(self, name: str) -> Path:
        """Where one of our files is; `name` is its path from the root."""
        return self.root / name

    def names(self) -> list[str]:
        """The paths from the root of all our files that are still there."""
        return sorted(name for name in self._files if self.path(name).is_file())

    def link(self, source: Path, name: str) -> None:
        """Give a downloaded file its place; `source` is on the same filesystem."""
        target = self.path(name)
        target.parent.mkdir(parents=True, exist_ok=True)
        new = target.with_name(f".{target.name}.new")
        with unbroken():
            new.unlink(missing_ok=True)
            os.link(source, new)
            new.chmod(0o644)
            new.replace(target)
        self.own(name)
        self.added.append(name)

    def write(self, name: str, data: bytes) -> None:
        """Write a small file, at once."""
        if write_file(self.path(name), data):
            self.added.append(name)
        self.own(name)

    def own(self, name: str) -> None:
        """Note that a file is ours."""
        self._files.add(name)

    def remove(self, name: str) -> None:
        """Remove one of our files, and its folder when that is empty then."""
        if name not in self._files:
            return
        path = self.path(name)
        path.unlink(missing_ok=True)
        self._files.discard(name)
        try:
            path.parent.rmdir()
        except OSError:
            pass  # somebody else's files are in it

    def save(self) -> None:
        """Write down what is ours. Done in between too: what an interrupted run has brought is not forgotten."""
        document = {"format": 1, "files": self.names()}
        write_file(self.root / STATE, json.dumps(document, indent=1).encode() + b"\n")

    def _read(self) -> set[str]:
        path = self.root / STATE
        if not path.is_file():
            return set()
        try:
            files = json.loads(path.read_bytes())["files"]
            return {name for name in files if _is_inside(name)}
        except (ValueError, KeyError, TypeError) as error:
            raise UsageError(
                f"{path} is not what flatcar-bake mirror has written: {error}.",
                "Remove it: then nothing here counts as the mirror's, and nothing is ever pruned of what is here now.",
            ) from None


def _is_inside(name: str) -> bool:
    """Whether a path stays below the root, whatever somebody wrote into the state."""
    parts = PurePosixPath(name).parts
    return bool(parts) and not name.startswith("/") and ".." not in parts and len(parts) > 1
