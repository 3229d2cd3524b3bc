"""Downloads of recipes: several side by side, verified by the first of these that has something to say.

1. the recipe itself (`pin`), or upstream: a checksum file, or the digest that GitHub's API tells
2. recipes.lock, in which a digest is recorded on first use
3. nothing, where the recipe gives a reason; the user is told and the manifest says so

What upstream said once is remembered in the cache beside the file, so a second build needs no network.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from baker.errors import NetworkError, UsageError, VerificationError
from baker.fetch import FileMissing, file_name
from baker.recipe.checksums import from_file, from_github
from baker.recipe.mirrors import Rewrites
from baker.recipe.model import Checksum
from baker.recipe.pins import PinFile, changed
from baker.services import Services
from baker.store import StoredFile

FIRST_USE, LOCK = "first use", "recipes.lock"
"""Values of `Obtained.trust`, which is a text for people otherwise."""

_AT_ONCE = 4  # more would not be faster, and servers count connections


@dataclass(frozen=True)
class Wanted:
    """A file to download. All templates of `checksum` are expanded; of a `pin`, `values` has the one for ""."""

    url: str
    checksum: Checksum
    recipe: str
    """Who wants it, for hints."""
    mirrors: tuple[str, ...] = ()
    """Further addresses of the same file."""

    @property
    def name(self) -> str:
        return file_name(self.url)


@dataclass(frozen=True)
class Obtained:
    """A verified file in the cache; read-only. `trust` says who vouches for it, in words for people."""

    path: Path
    url: str
    """As the recipe names it, whichever mirror served it."""
    name: str
    sha256: str
    trust: str
    size: int
    from_cache: bool


def download_all(wanted: Sequence[Wanted], services: Services, pins: PinFile, rewrites: Rewrites) -> list[Obtained]:
    """Download files side by side, in their order, and save new pins. Raises what `download` raises, for the first."""
    if len(wanted) == 1:  # in this thread, which a signal reaches even while a server says nothing
        obtained = [download(wanted[0], services, pins, rewrites)]
    else:
        obtained = _side_by_side(wanted, services, pins, rewrites)
    pins.save()
    return obtained


def _side_by_side(wanted: Sequence[Wanted], services: Services, pins: PinFile, rewrites: Rewrites) -> list[Obtained]:
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        try:
            futures = [pool.submit(download, one, services, pins, rewrites) for one in wanted]
            return [future.result() for future in futures]
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def download(wanted: Wanted, services: Services, pins: PinFile, rewrites: Rewrites) -> Obtained:
    """One verified file, from the cache if it is there.

    Raises VerificationError when it is not what it must be or nothing vouches for it, FileMissing with the address,
    NetworkError, EnvironmentFault. New pins are the caller's to save.
    """
    try:
        return _download(wanted, services, pins, rewrites)
    except FileMissing as error:
        raise FileMissing(
            error.message,
            f"Is there such a version, and for this architecture? `flatcar-bake recipe versions {wanted.recipe}` lists"
            " them; --mirror-url names another place.",
        ) from error


def _download(wanted: Wanted, services: Services, pins: PinFile, rewrites: Rewrites) -> Obtained:
    memory = f"sha256 of {wanted.url} by {wanted.checksum}"
    pinned = pins.get(wanted.url)
    found = _remembered(memory, services) or _vouched(wanted, services, rewrites, pinned)
    if found is None and pinned is not None:
        found = pinned, LOCK
    if found is not None:
        sha256, trust = found
        if pinned not in (None, sha256):
            raise changed(wanted.url, sha256, pinned, pins.path)
        file = _fetch(wanted, rewrites, lambda url: services.store.pinned_url(url, sha256))
    else:
        trust = _without_voucher(wanted, services, pins, rewrites)
        file = _fetch(wanted, rewrites, services.store.unpinned_url)
        if trust == FIRST_USE:
            pins.put(wanted.url, file.sha256)
            services.console.warn(f"{wanted.name} is used for the first time; its sha256 goes into {pins.path}.")
    if trust not in (FIRST_USE, LOCK):
        services.cache.remember(memory, json.dumps([file.sha256, trust]).encode())
    if trust.startswith("unverified"):
        services.console.warn(f"{wanted.name} is {trust}.")
    return Obtained(file.path, wanted.url, wanted.name, file.sha256, trust, file.size, file.from_cache)


def _remembered(memory: str, services: Services) -> tuple[str, str] | None:
    """(sha256, who vouched) of an earlier download that is still in the cache."""
    try:
        sha256, trust = json.loads(services.cache.recall(memory) or b"")
    except (ValueError, TypeError):
        return None
    return (sha256, trust) if services.cache.record(("digest", sha256)) else None


def _vouched(wanted: Wanted, services: Services, rewrites: Rewrites, pinned: str | None) -> tuple[str, str] | None:
    """(sha256, who vouches) by the recipe or upstream; None when neither has anything to say."""
    checksum = wanted.checksum
    if checksum.type == "none":
        return None
    if checksum.type == "pin":
        digest = re.fullmatch("sha256:([0-9a-f]{64})", checksum.values.get("", ""))
        if digest is None:
            raise UsageError(f"{checksum.where}: the pin of {wanted.url} is not sha256: and 64 digits 0-9a-f.")
        return digest[1], "the recipe"
    try:
        if checksum.type == "github-digest":
            found, trust = from_github(wanted.url, services, rewrites), "github digest"
        else:
            name = checksum.name or wanted.name
            found = from_file(checksum.type, checksum.url, name, services, rewrites)
            trust = "upstream checksum"
    except FileMissing:
        raise
    except NetworkError:
        if pinned is None:
            raise
        return None  # the pin vouches as well
    return (found, trust) if found else None


def _without_voucher(wanted: Wanted, services: Services, pins: PinFile, rewrites: Rewrites) -> str:
    """What a file is trusted for that neither upstream nor a pin vouches for; VerificationError for nothing."""
    checksum = wanted.checksum
    if checksum.unverified:
        return f"unverified: {checksum.unverified}"
    allowed = checksum.missing == "lock"
    # A version that does not exist has no checksum either: say what is more likely the reason.
    if not allowed and not wanted.mirrors and services.fetcher.size(rewrites.apply(wanted.url)) is None:
        raise FileMissing(f"There is no file {wanted.url}.")
    if not allowed:
        where = f" {checksum.url} does not list it." if checksum.url else ""
        raise VerificationError(
            f"Nothing vouches for {wanted.url}.{where}",
            'The recipe can pin it in recipes.lock (missing = "lock"), or say why not (unverified = "reason").',
        )
    pins.refuse_when_locked(wanted.url)
    return FIRST_USE


def _fetch(wanted: Wanted, rewrites: Rewrites, get: Callable[[str], StoredFile]) -> StoredFile:
    """The file from its address or, when that fails, from one of its mirrors."""
    failure: NetworkError | None = None
    for url in (wanted.url, *wanted.mirrors):
        try:
            return get(rewrites.apply(url))
        except NetworkError as error:
            failure = failure or error
    assert failure is not None
    raise failure
