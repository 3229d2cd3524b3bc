"""What upstream says a download's sha256 is: checksum files in their three forms, and GitHub's own digests."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from urllib.parse import unquote

from baker.errors import NetworkError, VerificationError
from baker.fetch import FileMissing
from baker.recipe.github import api
from baker.recipe.mirrors import Rewrites
from baker.services import Services

_LARGEST_LIST = 4 << 20
_SHA256SUM = re.compile(r"\\?([0-9a-fA-F]{64})[ \t]+\*?(\S.*?)\s*")
_BSD = re.compile(r"SHA256 ?\((.+)\) ?= ?([0-9a-fA-F]{64})\s*")
_GITHUB_ASSET = re.compile(r"https://github\.com/([^/]+/[^/]+)/releases/download/([^/]+)/([^/?]+)")


def from_file(kind: str, url: str, name: str, services: Services, rewrites: Rewrites) -> str | None:
    """The sha256 of `name` in the checksum file at `url`; None when there is no such file or it does not list `name`.

    `kind`: `sha256sum-file` (what `sha256sum` prints), `bsd-file` (`SHA256 (NAME) = …`) or `bare-file` (only digits).
    VerificationError for a file of another kind, and for one name with two digests.
    """
    parse: Callable[[bytes], str | None] = partial(_PARSERS[kind], name, url)
    try:
        return services.store.unsigned(rewrites.apply(url), _LARGEST_LIST, parse)
    except FileMissing:
        return None


def from_github(url: str, services: Services, rewrites: Rewrites) -> str | None:
    """The sha256 that GitHub's API tells for a release asset; None for assets older than that (June 2025).

    FileMissing when the release has no such asset. API: docs.github.com/rest/releases/releases, `assets[].digest`.
    """
    found = _GITHUB_ASSET.fullmatch(url)
    if found is None:
        raise VerificationError(
            f"{url} is no asset of a GitHub release.", "Choose another kind of checksum in the recipe."
        )
    repo, tag, asset = found.groups()
    try:
        release = api(f"repos/{repo}/releases/tags/{tag}", services, rewrites)
    except FileMissing:
        return None  # the asset itself will tell whether there is such a release
    assets = release.get("assets", []) if isinstance(release, dict) else []
    for entry in assets:
        if isinstance(entry, dict) and entry.get("name") == unquote(asset):
            digest = re.fullmatch("sha256:([0-9a-f]{64})", str(entry.get("digest")))
            return digest[1] if digest else None
    raise FileMissing(f"The release {unquote(tag)} of {repo} has no {unquote(asset)}.")


def _sha256sum(name: str, url: str, data: bytes) -> str | None:
    lines = [_SHA256SUM.fullmatch(line) for line in _text(url, data).split("\n")]
    return _of_name(name, url, [(line[2], line[1]) for line in lines if line])


def _bsd(name: str, url: str, data: bytes) -> str | None:
    lines = [_BSD.fullmatch(line) for line in _text(url, data).split("\n")]
    return _of_name(name, url, [(line[1], line[2]) for line in lines if line])


def _bare(name: str, url: str, data: bytes) -> str | None:
    text = _text(url, data).strip()
    if re.fullmatch("[0-9a-fA-F]{64}", text):
        return text.lower()
    return _sha256sum(name, url, data)


def _of_name(name: str, url: str, entries: list[tuple[str, str]]) -> str | None:
    if not entries:
        raise VerificationError(f"{url} is no list of sha256 checksums.", "Does the recipe name the right file?")
    digests = {digest.lower() for listed, digest in entries if listed.rsplit("/", 1)[-1] == name}
    if len(digests) > 1:
        raise VerificationError(f"{url} lists {name} with two digests.")
    return digests.pop() if digests else None


def _text(url: str, data: bytes) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise NetworkError(f"{url} is no text.") from None


_PARSERS = {"sha256sum-file": _sha256sum, "bsd-file": _bsd, "bare-file": _bare}
