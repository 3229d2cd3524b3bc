"""Which release is meant, and where its files are: channels, versions, the release feed and the mirror's layout.

The feed (`releases.json` of Flatcar's website) carries no signature, so it only fills in what a signed `version.txt`
does not say: dates, architectures, and the list of versions that "did you mean" draws from.
"""

from __future__ import annotations

import difflib
import json
import re
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeGuard
from urllib.parse import quote

from baker.errors import NetworkError, UsageError, VerificationError
from baker.fetch import FileMissing
from baker.model import Arch, Channel, Release

if TYPE_CHECKING:
    from baker.store import Store

LTS_YEARS = {2021: 2605, 2022: 3033, 2023: 3510, 2024: 4081}
"""The major version behind each year of LTS, as Flatcar's `releases-lts-YEAR.json` files map them."""

_FEED_LIMIT = 64 << 20
_RELEASES_HINT = "https://www.flatcar.org/releases lists all releases."
_VERSION = re.compile(r"([0-9]{1,6})\.([0-9]{1,6})\.([0-9]{1,6})(\+[A-Za-z0-9][A-Za-z0-9.-]*)?")
_LAST_IRREGULAR_MAJOR = 2605  # up to here beta and stable shared their minor numbers
_FIRST_LTS_MINOR = 10  # 2605, the first LTS, went on counting minors where stable had stopped


def version_key(version: str) -> tuple[int, int, int, str]:
    """A key that sorts versions by number. Raises UsageError when the text is no version."""
    match = _VERSION.fullmatch(version)
    if match is None:
        raise UsageError(f"{version!r} is not a Flatcar version.", "A version looks like 4593.2.5.")
    return int(match[1]), int(match[2]), int(match[3]), match[4] or ""


def guess_channel(version: str) -> Channel:
    """The channel of a version by its numbers alone: N.0 alpha, N.1 beta, N.2 stable, N.3 LTS, N.99 edge.

    That order holds after 2605; before it only alpha, edge and the LTS of 2605 can be told.
    Raises UsageError for every other version.
    """
    major, minor, patch, _ = version_key(version)
    fixed = {0: Channel.ALPHA, 99: Channel.EDGE}
    ordered = {1: Channel.BETA, 2: Channel.STABLE, 3: Channel.LTS}
    if minor in fixed:
        return fixed[minor]
    if major > _LAST_IRREGULAR_MAJOR and minor in ordered:
        return ordered[minor]
    if major == LTS_YEARS[2021] and minor >= _FIRST_LTS_MINOR and patch > 0:
        return Channel.LTS
    raise UsageError(
        f"The version {version} does not tell its channel, and the release feed does not list it.",
        "Check the version; after release 2605, N.0 is alpha, N.1 beta, N.2 stable and N.3 LTS.",
    )


def parse_version_txt(data: bytes) -> dict[str, str]:
    """The settings of a release's `version.txt`: KEY=VALUE lines, the value plain or in quotes.

    The file is shell text by origin, but it is never sourced: whatever a shell would expand, and every control
    character, raises VerificationError. So does a file without a well-formed FLATCAR_VERSION.
    """
    settings: dict[str, str] = {}
    try:
        lines = data.decode("ascii").split("\n")
    except UnicodeDecodeError:
        raise VerificationError("version.txt holds bytes that are not ASCII.") from None
    for number, line in enumerate(lines, 1):
        if not line or line.startswith("#"):
            continue
        match = re.fullmatch(r"""([A-Z][A-Z0-9_]*)=(?:"([^"'\\$`]*)"|'([^"'\\$`]*)'|([^"'\\$`\s]*))""", line)
        if match is None or not line.isprintable() or match[1] in settings:
            raise VerificationError(f"Line {number} of version.txt is not a plain KEY=VALUE setting: {line[:80]!r}.")
        settings[match[1]] = match[2] or match[3] or match[4] or ""
    if _VERSION.fullmatch(settings.get("FLATCAR_VERSION", "")) is None:
        raise VerificationError("version.txt has no FLATCAR_VERSION.")
    return settings


@dataclass(frozen=True)
class FeedEntry:
    """What the release feed says about one version. `architectures` are feed names (`amd64`, `arm64`)."""

    version: str
    channel: Channel
    architectures: frozenset[str]
    build_date: int
    """Seconds since the epoch; 0 where the feed has no usable date."""
    major_software: dict[str, list[str]]


class Feed:
    """The release feed, keyed by version (format: flatcar-website, tools/release-scripts/releases_as_json.py)."""

    def __init__(self, entries: dict[str, FeedEntry]) -> None:
        self.entries = entries

    @classmethod
    def parse(cls, data: bytes) -> Feed:
        """Read the feed's JSON. Unknown fields and channels are skipped; NetworkError for anything that is no feed."""
        try:
            document = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise NetworkError(f"The release feed is not JSON: {error}.") from None
        if not isinstance(document, dict):
            raise NetworkError("The release feed is not a JSON object keyed by version.")
        entries = [_feed_entry(version, fields) for version, fields in document.items() if _VERSION.fullmatch(version)]
        return cls({entry.version: entry for entry in entries if entry is not None})

    def get(self, version: str) -> FeedEntry | None:
        """The entry of one version, or None."""
        return self.entries.get(version)

    def latest(self, channel: Channel, arch: Arch, lts_year: int | None = None) -> FeedEntry:
        """The newest release of a channel (of one LTS year) for an architecture; UsageError when there is none."""
        found = [entry for entry in self._stream(channel, lts_year) if arch.feed_name in entry.architectures]
        if not found:
            stream = f"{channel}-{lts_year}" if lts_year else channel
            raise UsageError(f"No {stream} release for {arch} is known.", _RELEASES_HINT)
        return max(found, key=lambda entry: version_key(entry.version))

    def _stream(self, channel: Channel, lts_year: int | None) -> list[FeedEntry]:
        major = LTS_YEARS.get(lts_year) if lts_year else None
        return [
            entry
            for entry in self.entries.values()
            if entry.channel is channel and (lts_year is None or version_key(entry.version)[0] == major)
        ]


def _feed_entry(version: str, fields: Any) -> FeedEntry | None:
    """One value of the feed; None for a channel that this program does not know (yet)."""
    broken = NetworkError(f"The release feed's entry for {version} is malformed.")
    if not isinstance(fields, dict):
        raise broken
    channel, architectures = fields.get("channel"), fields.get("architectures")
    if not isinstance(channel, str) or not _is_strings(architectures):
        raise broken
    if channel not in set(Channel):
        return None
    software = fields.get("major_software")
    return FeedEntry(
        version=version,
        channel=Channel(channel),
        architectures=frozenset(architectures),
        build_date=_feed_date(fields.get("release_date")),
        major_software={
            name: versions for name, versions in (software if isinstance(software, dict) else {}).items()
            if _is_strings(versions)
        },
    )  # fmt: skip


def _is_strings(value: object) -> TypeGuard[list[str]]:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _feed_date(text: Any) -> int:
    try:
        return max(0, int(datetime.strptime(text, "%Y-%m-%d %H:%M:%S %z").timestamp()))
    except (TypeError, ValueError, OverflowError):
        return 0


class Mirror:
    """Where a release's files are. `base`: a URL or folder laid out as BASE/CHANNEL/BOARD/VERSION/FILE;
    None for the official servers."""

    def __init__(self, base: str | None = None) -> None:
        self.base = base.rstrip("/") or "/" if base is not None else None

    def file_url(self, release: Release, name: str) -> str:
        """The URL (or path) of one file of a release."""
        return self._in_channel(release.channel, release.arch, release.version, name)

    def current_url(self, channel: Channel, arch: Arch, lts_year: int | None, name: str) -> str:
        """The URL of a file of the newest release of a channel or of one LTS year."""
        return self._in_channel(channel, arch, f"current-{lts_year}" if lts_year else "current", name)

    @property
    def feed_url(self) -> str:
        return join_url(self.base or "https://www.flatcar.org", "releases-json", "releases.json")

    @property
    def key_url(self) -> str:
        return join_url(
            self.base or "https://www.flatcar.org",
            "security", "image-signing-key", "Flatcar_Image_Signing_Key.asc",
        )  # fmt: skip

    def _in_channel(self, channel: Channel, arch: Arch, version: str, name: str) -> str:
        if self.base is None:
            return join_url(f"https://{channel}.release.flatcar-linux.net", arch.board, version, name)
        return join_url(self.base, channel, arch.board, version, name)


def join_url(base: str, *parts: str) -> str:
    """`base` with path segments added: percent-encoded below a URL (a `+` too), as they are below a plain path."""
    if "://" in base:
        parts = tuple(quote(part, safe="") for part in parts)
    return "/".join((base.rstrip("/"), *parts))


def resolve(request: str, arch: Arch, mirror: Mirror, store: Store) -> Release:
    """Turn what the user asked for into one release.

    `request` is a channel (`stable`, `lts`, …), an LTS year (`lts-2024`), `current` (stable) or a version. A channel
    is what the signed `current/version.txt` on the server says; the feed is the fallback when the server lacks it.
    A version that a feed seen before lists costs no network access at all.
    Raises UsageError for what does not exist, NetworkError and VerificationError as the store does.
    """
    if _VERSION.fullmatch(request):
        return _Resolver(arch, mirror, store).version(request)
    if request == "current":
        return _Resolver(arch, mirror, store).newest(Channel.STABLE, None)
    year = re.fullmatch(r"lts-([0-9]{4})", request)
    if year:
        return _Resolver(arch, mirror, store).newest(Channel.LTS, int(year[1]))
    if request in set(Channel):
        return _Resolver(arch, mirror, store).newest(Channel(request), None)
    names = [*Channel, "current", *(f"lts-{year}" for year in LTS_YEARS)]
    close = difflib.get_close_matches(request.lower(), names, 1)
    raise UsageError(
        f"There is no release channel {request!r}.",
        f"Did you mean {close[0]}?" if close else f"Use one of {', '.join(names)}, or a version such as 4593.2.5.",
    )


class _Resolver:
    """One resolution: what `resolve` keeps at hand between its steps."""

    def __init__(self, arch: Arch, mirror: Mirror, store: Store) -> None:
        self._arch, self._mirror, self._store = arch, mirror, store

    def newest(self, channel: Channel, year: int | None) -> Release:
        stream = f"{channel}-{year}" if year else str(channel)
        url = self._mirror.current_url(channel, self._arch, year, "version.txt")
        try:
            data, _ = self._store.signed_bytes(url, f"version.txt of {stream}")
        except NetworkError as error:
            if not isinstance(error, FileMissing):
                self._store.console.warn(f"{error.message} The newest {stream} is taken from the release feed.")
            return self._release(self._feed.latest(channel, self._arch, year))
        version = parse_version_txt(data)["FLATCAR_VERSION"]
        entry = self._entry(version)
        if (entry.channel if entry else guess_channel(version)) is not channel or (
            year in LTS_YEARS and version_key(version)[0] != LTS_YEARS[year]
        ):
            raise VerificationError(
                f"{url} is signed, but describes {version}, which is no {stream} release.",
                "The server mixes up releases; use another mirror.",
            )
        self._warn_of_a_newer(version, channel, year, stream)
        # The feed follows publication by hours, so the newest release may not be in it.
        return self._release(entry) if entry else Release(version, channel, self._arch)

    def version(self, version: str) -> Release:
        entry = self._entry(version)
        if entry is not None:
            return self._release(entry)
        release = Release(version, guess_channel(version), self._arch)
        try:
            data, _ = self._store.signed_bytes(
                self._mirror.file_url(release, "version.txt"), f"version.txt of {version}"
            )
        except FileMissing:
            raise self._no_such_version(version) from None
        except NetworkError as error:
            self._store.console.warn(f"{error.message} Going on with {version} as a {release.channel} release.")
            return release
        found = parse_version_txt(data)["FLATCAR_VERSION"]
        if found != version:
            raise VerificationError(f"The server offers {found} under the name of {version}.", "Use another mirror.")
        return release

    def _warn_of_a_newer(self, version: str, channel: Channel, year: int | None, stream: str) -> None:
        """A signature does not tell old from new, so a mirror that stands still (or is held back) must be noticed."""
        seen = self._store.remembered(self._mirror.feed_url, Feed.parse)
        try:
            newest = seen.latest(channel, self._arch, year).version if seen is not None else version
        except UsageError:
            return
        if version_key(newest) > version_key(version):
            self._store.console.warn(
                f"The server calls {version} the newest {stream} release, but the feed lists {newest}."
            )

    def _entry(self, version: str) -> FeedEntry | None:
        """The feed's entry: from the copy seen last if it is there, since a published entry does not change."""
        seen = self._store.remembered(self._mirror.feed_url, Feed.parse)
        entry = seen.get(version) if seen is not None else None
        if entry is not None and self._arch.feed_name in entry.architectures:
            return entry
        try:
            return self._feed.get(version)
        except NetworkError as error:
            self._store.console.note(f"The release feed is not available ({error.message})")
            return None

    @cached_property
    def _feed(self) -> Feed:
        return self._store.unsigned(self._mirror.feed_url, _FEED_LIMIT, Feed.parse)

    def _release(self, entry: FeedEntry) -> Release:
        if self._arch.feed_name not in entry.architectures:
            raise UsageError(
                f"Release {entry.version} does not exist for {self._arch}.", self._releases_with_arch(entry)
            )
        return Release(entry.version, entry.channel, self._arch, entry.build_date)

    def _releases_with_arch(self, entry: FeedEntry) -> str:
        """The releases of the same channel that do have the architecture: the nearest, and the newest."""
        having = sorted(
            (version_key(other.version), other.version)
            for other in self._feed.entries.values()
            if other.channel is entry.channel and self._arch.feed_name in other.architectures
        )
        older = [version for key, version in having if key < version_key(entry.version)]
        newer = [version for key, version in having if key > version_key(entry.version)]
        names = [*older[-1:], *newer[:1], *newer[1:][-1:]]
        return f"{entry.channel} releases that have it: {', '.join(names) or 'none'}."

    def _no_such_version(self, version: str) -> UsageError:
        try:
            close = difflib.get_close_matches(version, self._feed.entries, 3, 0.7)
        except NetworkError:
            close = []
        hint = f"Did you mean {' or '.join(close)}?" if close else _RELEASES_HINT
        return UsageError(f"There is no release {version} for {self._arch}.", hint)
