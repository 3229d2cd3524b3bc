"""Verified files, from the cache or the network: the one place that decides what may be used.

Images take a single pass: each chunk that arrives goes to the partial file, the digest, gpg and the decoder at once,
and what the decoder wrote enters the cache only after gpg has named the pinned signer.
"""

from __future__ import annotations

import functools
import hashlib
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from baker import stopping
from baker.bakery import BakeryLists, Check
from baker.cache import Cache, Identity, Record, disk_faults
from baker.console import Console
from baker.decompress import LARGEST_IMAGE, Decoder, open_decoder
from baker.errors import ImageError, NetworkError, UsageError, VerificationError
from baker.fetch import Fetcher, FileMissing, StreamRestarted, file_name, local_path
from baker.model import Release
from baker.release import Mirror, join_url
from baker.sparse import content_digest
from baker.verify import FLATCAR_FINGERPRINT, Signer, Verifier, normalize_fingerprint
from baker.work import WorkFolder, scratch

T = TypeVar("T")

_SIGNATURE_LIMIT = 64 << 10
_TEXT_LIMIT = 1 << 20
_UNSIGNED_HINT = "What is not signed by Flatcar is never used, and no option changes that. Try another --mirror."


@dataclass(frozen=True)
class StoredFile:
    """A file in the cache, stored as it came. Read-only: clone it to change it."""

    path: Path
    name: str
    url: str
    size: int
    sha256: str
    signer: Signer | None
    from_cache: bool
    verified: bool = True
    """False for a bakery's config that its SHA256SUMS does not list: judge its content."""


@dataclass(frozen=True)
class StoredDisk:
    """A decoded disk image in the cache, sparse. Read-only: clone it to change it."""

    path: Path
    name: str
    url: str
    size: int
    """Bytes of the decoded image."""
    sha256: str
    """Of the file as it was downloaded."""
    content_digest: str
    """See baker.sparse.content_digest; checked again on each use."""
    signer: Signer | None
    from_cache: bool


class Store:
    """Files that have been verified, fetched when the cache lacks them. Safe to share between threads.

    `verifier` is called once, when the first signature is to be checked; it must pin `fingerprint`, which is also
    part of what a cached file is known by: a file vouched for by one key is never used under another.
    With `bakery_check` the lists of bakeries must be signed.
    Every method raises NetworkError (FileMissing), VerificationError, EnvironmentFault, and `disk` also ImageError.
    """

    def __init__(
        self,
        cache: Cache,
        fetcher: Fetcher,
        mirror: Mirror,
        verifier: Callable[[], Verifier],
        console: Console,
        fingerprint: str = FLATCAR_FINGERPRINT,
        bakery_check: Check | None = None,
    ) -> None:
        self.console = console
        self._cache, self._fetcher, self._mirror = cache, fetcher, mirror
        self._fingerprint = normalize_fingerprint(fingerprint)
        self._new_verifier = verifier
        self._opened: Verifier | None = None
        self._guard = threading.Lock()
        self._lists = BakeryLists(self.unsigned, bakery_check)
        self._present: dict[str, bool] = {}
        self._scratch: WorkFolder | None = None

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Remove the keyring and files that are in no cache."""
        with self._guard:
            if self._opened is not None:
                self._opened.close()
            if self._scratch is not None:
                self._scratch.close()
            self._opened = self._scratch = None

    def has(self, release: Release, name: str) -> bool:
        """Whether a release has a file: verified in the cache already, or there on the server (asked once)."""
        if any(self._cache.record(self._identity(release, name, kind)) for kind in ("file", "disk")):
            return True
        url = self._mirror.file_url(release, name)
        if url not in self._present:
            self._present[url] = self._fetcher.size(url) is not None
        return self._present[url]

    def size(self, release: Release, name: str) -> int:
        """The bytes of a file of a release, from the cache or as the server says; 0 where it does not."""
        record = self._cache.record(self._identity(release, name, "file"))
        return record.size if record else self._fetcher.size(self._mirror.file_url(release, name)) or 0

    def signed_file(self, release: Release, name: str) -> StoredFile:
        """A file of a release with a good signature, as it is on the server."""
        url = self._mirror.file_url(release, name)
        identity = self._identity(release, name, "file")

        def fetch(partial: Path) -> tuple[Record, Path]:
            signature = self._signature(url, name)

            def attempt() -> tuple[Record, Path]:
                with self._verifier().stream(signature, name) as check:
                    sha256 = self._receive(url, name, partial, check.write)
                    signer = check.finish()
                return Record(name, url, partial.stat().st_size, sha256, signer=signer), partial

            return _restarting(attempt, url, self._fetcher.retries)

        record, path, cached = self._cached(identity, name, fetch)
        return StoredFile(path, name, url, record.size, record.sha256, record.signer, cached)

    def disk(self, release: Release, name: str) -> StoredDisk:
        """A disk image of a release, verified and decoded by its suffix (.bz2, .gz, else as it is)."""
        url = self._mirror.file_url(release, name)
        identity = self._identity(release, name, "disk")

        def fetch(partial: Path) -> tuple[Record, Path]:
            signature = self._signature(url, name)
            local = local_path(url)
            target = partial.with_name(partial.name + ".raw")

            def attempt() -> tuple[Record, Path]:
                with (
                    target.open("wb") as file,
                    self._verifier().stream(signature, name) as check,
                    open_decoder(name, file.fileno(), local or partial, LARGEST_IMAGE) as decoder,
                ):
                    patient = _Patient(decoder)
                    sha256 = self._receive(url, name, None if local else partial, check.write, patient.write)
                    # First the signature: a forged file is forged, whatever a decoder thinks of it.
                    signer = check.finish()
                    size = patient.finish()
                return Record(name, url, size, sha256, content_digest(target), signer), target

            try:
                return _restarting(attempt, url, self._fetcher.retries)
            except BaseException:
                target.unlink(missing_ok=True)
                raise

        record, path, cached = self._cached(identity, name, fetch)
        return StoredDisk(path, name, url, record.size, record.sha256, record.content_digest, record.signer, cached)

    def signed_bytes(self, url: str, what: str) -> tuple[bytes, Signer]:
        """A small signed file (up to 1 MiB), fresh from the network. `what` names it in messages."""
        data = self._fetcher.read(url, _TEXT_LIMIT)
        return data, self._verifier().verify(data, self._signature(url, what), what)

    def check(self, data: Path | bytes, signature: bytes, what: str) -> Signer:
        """Who signed data that is here already; VerificationError unless it is the pinned key."""
        return self._verifier().verify(data, signature, what)

    def pinned_url(self, url: str, sha256: str) -> StoredFile:
        """A file from anywhere whose sha256 is known."""
        name = file_name(url)
        digest = sha256.lower()
        if not re.fullmatch("[0-9a-f]{64}", digest):
            raise UsageError(f"{sha256!r} is not a sha256.", "It has 64 hexadecimal digits.")

        def fetch(partial: Path) -> tuple[Record, Path]:
            found = _restarting(lambda: self._receive(url, name, partial), url, self._fetcher.retries)
            if found != digest:
                raise VerificationError(
                    f"{name} has the sha256 {found}, but {digest} is expected.",
                    f"The file at {url} is not the one that was pinned; check both.",
                )
            return Record(name, url, partial.stat().st_size, found), partial

        record, path, cached = self._cached(("digest", digest), name, fetch)
        return StoredFile(path, name, url, record.size, record.sha256, None, cached)

    def unpinned_url(self, url: str) -> StoredFile:
        """A file from anywhere that nobody vouches for, fetched anew; `pinned_url` finds it from then on."""
        identity, name = ("url", url), file_name(url)
        with self._cache.lock(identity, name), disk_faults(self._cache.root):
            partial = self._cache.partial(identity)
            sha256 = _restarting(lambda: self._receive(url, name, partial), url, self._fetcher.retries)
            record = Record(name, url, partial.stat().st_size, sha256)
            path = self._cache.publish(("digest", sha256), record, partial)
            self._cache.drop_partial(identity)
        return StoredFile(path, name, url, record.size, sha256, None, False, verified=False)

    def bakery_names(self, bakery_url: str) -> dict[str, str]:
        """File name → sha256 of everything a bakery lists in its SHA256SUMS."""
        return self._lists.names(bakery_url)

    def bakery(self, bakery_url: str, name: str, sha256: str = "") -> StoredFile:
        """A sysext or config of a bakery, checked against SHA256SUMS of the bakery or of the extension's own folder.

        A known `sha256` is checked instead. A sysext that neither lists raises VerificationError; a config (`*.conf`)
        is returned with `verified` False, unless lists must be signed.
        """
        folders = [bakery_url, join_url(bakery_url, component(name))]
        digest = sha256 or self._lists.digest(folders, name)
        if digest is None and (self._lists.signed or not name.endswith(".conf")):
            raise VerificationError(
                f"The bakery {bakery_url} does not list {name} in its SHA256SUMS.",
                "Check the name and version, or fetch the file yourself and bake it as a local one.",
            )
        get = functools.partial(self.pinned_url, sha256=digest) if digest else self._unlisted
        try:
            return get(join_url(folders[0], name))
        except FileMissing:
            return get(join_url(folders[1], name))

    def unsigned(self, url: str, limit: int, parse: Callable[[bytes], T]) -> T:
        """What `parse` makes of a small file that nobody vouches for.

        Without a network, or when the server sends nonsense, it is the copy seen last, with a warning.
        """
        try:
            data = self._fetcher.read(url, limit)
            parsed = parse(data)
        except FileMissing:
            raise
        except NetworkError as error:
            old = self.remembered(url, parse)
            if old is None:
                raise
            self.console.warn(f"{error.message} Using {file_name(url)} as it was seen last.")
            return old
        if local_path(url) is None:
            self._cache.remember(url, data)
        return parsed

    def remembered(self, url: str, parse: Callable[[bytes], T]) -> T | None:
        """What `unsigned` got last time, without looking at the network; None if never, or if it cannot be read."""
        data = self._cache.recall(url)
        try:
            return parse(data) if data is not None else None
        except (NetworkError, VerificationError):
            return None

    def _identity(self, release: Release, name: str, kind: str) -> Identity:
        """The same file on any mirror, vouched for by the same key."""
        return ("release", kind, release.channel, release.board, release.version, name, self._fingerprint)

    def _cached(
        self, identity: Identity, name: str, fetch: Callable[[Path], tuple[Record, Path]]
    ) -> tuple[Record, Path, bool]:
        """The cached file of an identity, or what `fetch` makes of the partial file it is given. (…, from cache?)"""
        found = self._cache.find(identity)
        if found is not None:
            return *found, True
        with self._cache.lock(identity, name):
            found = self._cache.find(identity)  # another bake may have brought it while we waited
            if found is not None:
                return *found, True
            partial = self._cache.partial(identity)
            with disk_faults(self._cache.root):
                record, file = self._fetch_afresh_if_damaged(identity, partial, fetch)
                path = self._cache.publish(identity, record, file)
                self._cache.drop_partial(identity)
            return record, path, False

    def _fetch_afresh_if_damaged(
        self, identity: Identity, partial: Path, fetch: Callable[[Path], tuple[Record, Path]]
    ) -> tuple[Record, Path]:
        """Bytes that turn out bad are never kept; when some of them were left by an earlier run, try without them."""
        resumed = partial.exists()
        try:
            return fetch(partial)
        except (VerificationError, ImageError) as error:
            self._cache.drop_partial(identity)
            if not resumed:
                raise
            self.console.warn(f"{error.message} It was a resumed download, so it is fetched again as a whole.")
        try:
            return fetch(partial)
        except (VerificationError, ImageError):
            self._cache.drop_partial(identity)
            raise

    def _receive(self, url: str, name: str, partial: Path | None, *sinks: Callable[[bytes], object]) -> str:
        """Pass a download through, once; returns its sha256."""
        digest = hashlib.sha256()
        with (
            self._fetcher.stream(url, partial) as download,
            self.console.bar(f"Fetch {name}", download.total) as bar,
        ):
            for chunk in download:
                stopping.check()
                digest.update(chunk)
                for sink in sinks:
                    sink(chunk)
                bar.advance(len(chunk))
        return digest.hexdigest()

    def _signature(self, url: str, what: str) -> bytes:
        try:
            return self._fetcher.read(f"{url}.sig", _SIGNATURE_LIMIT)
        except FileMissing:
            if self._fetcher.size(url) is None:
                raise FileMissing(f"There is no file {url}.") from None
            raise VerificationError(f"{what} is not signed: there is no {url}.sig.", _UNSIGNED_HINT) from None

    def _verifier(self) -> Verifier:
        with self._guard:
            if self._opened is None:
                verifier = self._new_verifier()
                if verifier.fingerprint != self._fingerprint:
                    verifier.close()
                    raise VerificationError(
                        f"The store trusts {self._fingerprint}, but its verifier {verifier.fingerprint}."
                    )
                self._opened = verifier
            return self._opened

    def _unlisted(self, url: str) -> StoredFile:
        """A small file that no digest covers; it lives until `close` and never enters the cache."""
        data = self._fetcher.read(url, _TEXT_LIMIT)
        digest = hashlib.sha256(data).hexdigest()
        with self._guard:
            if self._scratch is None:
                self._scratch = scratch()
            path = self._scratch.open() / digest
        path.write_bytes(data)
        return StoredFile(path, file_name(url), url, len(data), digest, None, False, verified=False)


class _Patient:
    """A decoder whose complaints wait until all data has passed, for the sake of the signature check beside it."""

    def __init__(self, decoder: Decoder) -> None:
        self._decoder = decoder
        self._complaint: ImageError | None = None

    def write(self, data: bytes) -> None:
        if self._complaint is None:
            try:
                self._decoder.write(data)
            except ImageError as complaint:
                self._complaint = complaint

    def finish(self) -> int:
        if self._complaint is not None:
            raise self._complaint
        return self._decoder.finish()


def component(name: str) -> str:
    """The extension that a bakery file belongs to, e.g. `kubernetes` for kubernetes-v1.31.conf."""
    match = re.match(r"(.+?)-v?\d", name)
    return match[1] if match else name.rsplit(".", 1)[0]


def _restarting(attempt: Callable[[], T], url: str, limit: int) -> T:
    """Run one pass, and again from the start when its download says that the bytes so far are void."""
    for _ in range(limit + 1):
        try:
            return attempt()
        except StreamRestarted:
            continue
    raise NetworkError(f"The server cannot resume and breaks off again and again: {url}", "Try another --mirror.")
