"""Mirroring releases: the files that bakes need, each with the signature it was checked by."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from typing import Any

from baker.errors import NetworkError, UsageError, VerificationError
from baker.fetch import FileMissing
from baker.gather import release_files
from baker.mirroring.folder import MirrorFolder
from baker.model import Arch, Channel, Release
from baker.release import parse_version_txt, version_key
from baker.services import Services

FEED = "releases-json/releases.json"
KEY = "security/image-signing-key/Flatcar_Image_Signing_Key.asc"
_VERSION_TXT = "version.txt"
_FEED_LIMIT = 64 << 20
_SIGNATURE_LIMIT = 64 << 10


def mirror_release(
    request: str,
    arch: Arch,
    vendors: tuple[str, ...],
    base: str,
    extra: Sequence[str],
    folder: MirrorFolder,
    services: Services,
) -> Release:
    """Mirror one release for one architecture: what bakes for `vendors` need, and the files `extra`.

    What is there already is verified, and fetched again when it is damaged. Raises what fetching raises; files that
    are complete stay.
    """
    release, names = release_files(services, request, arch, vendors, base)
    for name in dict.fromkeys((_VERSION_TXT, *names, *extra)):
        _mirror_file(release, name, folder, services)
        folder.save()
    text = folder.path(_place(release, _VERSION_TXT)).read_bytes()
    found = parse_version_txt(text)["FLATCAR_VERSION"]
    if found != release.version:
        raise VerificationError(
            f"version.txt of {release.version} is signed, but describes {found}.", "Use another --mirror."
        )
    if current := _current(request):
        for suffix in ("", ".sig"):
            data = folder.path(_place(release, _VERSION_TXT + suffix)).read_bytes()
            folder.write(f"{release.channel}/{release.board}/{current}/{_VERSION_TXT}{suffix}", data)
    return release


def _mirror_file(release: Release, name: str, folder: MirrorFolder, services: Services) -> None:
    if "/" in name or name.startswith("."):
        raise UsageError(f"{name!r} is not the name of a release's file.", "For example flatcar-zfs.raw.")
    place = _place(release, name)
    path, signature = folder.path(place), folder.path(f"{place}.sig")
    if path.is_file() and signature.is_file():
        try:
            services.store.check(path, signature.read_bytes(), name)
            for each in (place, f"{place}.sig"):
                folder.own(each)
            return
        except VerificationError as error:
            services.console.warn(f"{error.message} It is fetched again.")
    stored = services.store.signed_file(release, name)
    data = services.fetcher.read(f"{stored.url}.sig", _SIGNATURE_LIMIT)
    # What is kept must fit together, whatever the server sent in the meantime.
    services.store.check(stored.path, data, name)
    folder.write(f"{place}.sig", data)
    folder.link(stored.path, place)


def _place(release: Release, name: str) -> str:
    return f"{release.channel}/{release.board}/{release.version}/{name}"


def _current(request: str) -> str:
    """The name under which a release is a channel's newest; "" for one that was asked for by its version."""
    if year := re.fullmatch(r"lts-([0-9]{4})", request):
        return f"current-{year[1]}"
    return "current" if request in (*Channel, "current") else ""


def mirror_key(folder: MirrorFolder, services: Services) -> None:
    """Keep the key that the signatures were checked by, so that bakes find it where they look for it."""
    own = services.settings.signing_key
    folder.write(KEY, own.read_bytes() if own else services.fetcher.read(services.mirror.key_url, 1 << 20))


def mirrored_releases(names: Iterable[str]) -> dict[tuple[str, str], set[str]]:
    """(channel, board) → versions that are mirrored, by the paths of files."""
    found: dict[tuple[str, str], set[str]] = {}
    for name in names:
        parts = name.split("/")
        if len(parts) == 4 and parts[0] in set(Channel) and re.match(r"\d", parts[2]):
            found.setdefault((parts[0], parts[1]), set()).add(parts[2])
    return found


def write_feed(folder: MirrorFolder, services: Services, gone: Iterable[str] = ()) -> None:
    """Write the release feed, reduced to what is mirrored: releases that are not there cannot be baked.

    Entries of releases that upstream lists no longer are kept. `gone` are files about to be pruned. Without a feed
    upstream there is none here.
    """
    lost = set(gone)
    mirrored = mirrored_releases(name for name in folder.names() if name not in lost)
    entries: dict[str, Any] = {}
    path = folder.path(FEED)
    for found in (_feed(path.read_bytes()) if path.is_file() else {}, _upstream_feed(services)):
        entries |= {version: fields for version, fields in (found or {}).items() if isinstance(fields, dict)}
    feed: dict[str, Any] = {}
    for (channel, board), versions in sorted(mirrored.items()):
        arch = next(arch.feed_name for arch in Arch if arch.board == board)
        for version in sorted(versions, key=version_key):
            entry = entries.get(version)
            if entry is not None and entry.get("channel") == channel:
                there = feed.setdefault(version, {**entry, "architectures": []})["architectures"]
                there.append(arch)
    folder.write(FEED, json.dumps(feed, indent=1).encode() + b"\n")


def _feed(data: bytes) -> dict[str, Any] | None:
    """A feed's entries; None for what is no feed."""
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _upstream_feed(services: Services) -> dict[str, Any] | None:
    try:
        found = _feed(services.fetcher.read(services.mirror.feed_url, _FEED_LIMIT))
    except FileMissing:
        services.console.note("upstream has no release feed")
        return None
    except NetworkError as error:
        services.console.warn(f"{error.message} The mirror's release feed is made of what was known before.")
        return None
    if found is None:
        services.console.warn("Upstream's release feed cannot be read; the mirror's is made of what was known before.")
    return found


def old_releases(folder: MirrorFolder, keep: int) -> list[str]:
    """The files of releases beyond the `keep` newest of each channel (of each year of LTS) and board.

    What a channel means, by its `current`, stays.
    """
    lost = set()
    for (channel, board), versions in mirrored_releases(folder.names()).items():
        streams: dict[int, list[str]] = {}
        for version in versions:
            streams.setdefault(version_key(version)[0] if channel == Channel.LTS else 0, []).append(version)
        for found in streams.values():
            for version in sorted(found, key=version_key, reverse=True)[keep:]:
                lost.add(f"{channel}/{board}/{version}/")
        for path in folder.path(f"{channel}/{board}").glob(f"current*/{_VERSION_TXT}"):
            lost.discard(f"{channel}/{board}/{parse_version_txt(path.read_bytes())['FLATCAR_VERSION']}/")
    return [name for name in folder.names() if f"{name.rpartition('/')[0]}/" in lost]
