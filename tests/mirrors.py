"""Small signed mirrors for tests, stores that read them, and a console that remembers what it was told."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from keys import BORN, TestKey

from baker.cache import Cache
from baker.console import Console
from baker.fetch import Fetcher
from baker.model import Arch, Channel, Release
from baker.release import Mirror
from baker.store import Store
from baker.verify import Verifier

RELEASE = Release("4593.2.5", Channel.STABLE, Arch.X86_64)


class Recorder(Console):
    """Keeps notes and warnings."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.warnings: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)

    def warn(self, text: str) -> None:
        self.warnings.append(text)


class SignedMirror:
    """A folder laid out as a release server, every file signed by a key."""

    def __init__(self, folder: Path, key: TestKey) -> None:
        self.folder = folder
        self.key = key
        folder.mkdir(parents=True, exist_ok=True)

    def path(self, name: str, release: Release = RELEASE) -> str:
        """The path of a file on the server, from its root."""
        return f"/{release.channel}/{release.board}/{release.version}/{name}"

    def put(self, name: str, data: bytes, release: Release = RELEASE, signature: bytes | None = None) -> Path:
        """Publish a file with its signature (or with the one given)."""
        path = self.folder / self.path(name, release)[1:]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        path.with_name(path.name + ".sig").write_bytes(signature or self.key.sign(data, at=BORN + 60))
        return path

    def put_version(self, release: Release = RELEASE, current: str = "current") -> None:
        """Publish version.txt of a release and make the release the channel's current one."""
        self.put("version.txt", f'FLATCAR_VERSION={release.version}\nFLATCAR_BUILD_ID=""\n'.encode(), release)
        link = self.folder / release.channel / release.board / current
        link.unlink(missing_ok=True)
        link.symlink_to(release.version)

    def put_feed(self, *entries: tuple[str, str, list[str]], date: str = "2026-08-13 15:48:35 +0000") -> None:
        """Publish the release feed: (version, channel, architectures) each."""
        feed = {
            version: {"channel": channel, "architectures": architectures, "release_date": date}
            for version, channel, architectures in entries
        }
        path = self.folder / "releases-json" / "releases.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(feed))


@contextmanager
def open_store(
    base: str | Path, cache: Path, key: TestKey, console: Console | None = None, retries: int = 3, limit: int = 1 << 30
) -> Iterator[Store]:
    """A store that reads `base` (URL or folder), trusts `key`, and does not wait long between retries."""
    console = console or Recorder()
    kept = Cache(cache, limit, console)
    fetcher = Fetcher(console, retries=retries, timeout=(5, 5), backoff=0.01)
    with Store(
        kept, fetcher, Mirror(str(base)), lambda: Verifier(key.export(), key.fingerprint), console, key.fingerprint
    ) as store:
        try:
            yield store
        finally:
            kept.close()
