"""The lists of tags and versions that upstreams publish, each in its own way, as they are: unsorted and unjudged."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote, urlencode

from baker.errors import NetworkError
from baker.fetch import FileMissing, Reply
from baker.recipe import github
from baker.recipe.mirrors import Rewrites
from baker.recipe.model import VersionSource
from baker.run import CommandFailed, run
from baker.services import Services

_LARGEST = 16 << 20
_PAGES = 20
_HASHICORP = "https://api.releases.hashicorp.com/v1/releases/"
_HASHICORP_PAGE = 20  # the most that its API gives at once


@dataclass(frozen=True)
class Tag:
    """One entry of an upstream's list. `prerelease`: upstream itself calls it one."""

    name: str
    prerelease: bool = False


@dataclass(frozen=True)
class Asker:
    """Where to ask: `url` is the source's address with its words expanded, before rewriting."""

    source: VersionSource
    url: str
    services: Services
    rewrites: Rewrites

    def reply(self, url: str) -> Reply:
        """What is at an address; NetworkError, FileMissing where there is nothing."""
        place = self.rewrites.apply(url)
        reply = self.services.fetcher.ask(place, _LARGEST)
        if reply.status in (404, 410):
            raise FileMissing(f"There is no list of versions at {place}.")
        if reply.status == 429:
            raise NetworkError(f"{place} allows no more requests for now (status 429).", "Try again in some minutes.")
        if reply.status != 200:
            raise NetworkError(f"{place} answered with status {reply.status}.", "--mirror-url names another place.")
        return reply

    def page(self, url: str) -> str:
        """A page as text. Plain servers and folders have that of a folder in index.html."""
        try:
            return self.reply(url).body.decode("utf-8", "replace")
        except FileMissing:
            if not url.endswith("/"):
                raise
        return self.reply(f"{url}index.html").body.decode("utf-8", "replace")


def tags(asker: Asker) -> list[Tag]:
    """All that a source lists. NetworkError, FileMissing."""
    return list(_LISTS[asker.source.type](asker))


def _github_releases(asker: Asker) -> Iterator[Tag]:
    for entry in github.pages(f"repos/{asker.source.repo}/releases", asker.services, asker.rewrites):
        if not entry.get("draft"):
            yield Tag(str(entry.get("tag_name")), bool(entry.get("prerelease")))


def _github_tags(asker: Asker) -> Iterator[Tag]:
    for entry in github.pages(f"repos/{asker.source.repo}/tags", asker.services, asker.rewrites):
        yield Tag(str(entry.get("name")))


def _gitlab_tags(asker: Asker) -> Iterator[Tag]:
    """docs.gitlab.com/api/tags, with its keyset or offset pages in the Link header."""
    project = quote(asker.source.repo, safe="")
    url = f"{asker.url.rstrip('/')}/api/v4/projects/{project}/repository/tags?per_page=100"
    for _ in range(_PAGES):
        reply = asker.reply(url)
        for entry in _list(url, _json(url, reply.body)):
            yield Tag(str(entry.get("name")))
        if not reply.next:
            return
        url = reply.next


def _git_tags(asker: Asker) -> Iterator[Tag]:
    place = asker.rewrites.apply(asker.url)
    environment = {
        "GIT_TERMINAL_PROMPT": "0", "GIT_ALLOW_PROTOCOL": "https:http:file", "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_CONFIG_GLOBAL": "/dev/null",
    }  # fmt: skip
    try:
        listing = run(["git", "ls-remote", "--tags", "--refs", "--", place], env=environment).text
    except CommandFailed as error:
        raise NetworkError(f"The tags of {place} cannot be listed: {error.stderr.strip()}", error.hint) from error
    for line in listing.splitlines():
        yield Tag(line.partition("\t")[2].removeprefix("refs/tags/"))


def _k8s_schedule(asker: Asker) -> Iterator[Tag]:
    """data/releases/schedule.yaml of Kubernetes' website: the minors that are supported, with their patches.

    A minor without patches counts from its release date on.
    """
    import yaml

    try:
        # Texts only: as YAML has it, 1.30 is the number 1.3.
        found = yaml.load(asker.page(asker.url), Loader=yaml.BaseLoader)  # noqa: S506 (makes texts, lists, tables only)
    except (yaml.YAMLError, RecursionError) as error:
        raise NetworkError(f"{asker.url} is no YAML: {str(error).splitlines()[0]}.") from None
    today = datetime.now(UTC).date().isoformat()
    for minor in _list(asker.url, found.get("schedules") if isinstance(found, dict) else None):
        patches = [str(patch.get("release")) for patch in _list(asker.url, minor.get("previousPatches") or [])]
        if not patches and str(minor.get("releaseDate") or "9999") <= today:
            patches = [f"{minor.get('release')}.0"]
        yield from (Tag(patch) for patch in patches)


def _hashicorp(asker: Asker) -> Iterator[Tag]:
    """developer.hashicorp.com, "Releases API": newest first; `after` is the time of the last entry seen."""
    query = {"limit": str(_HASHICORP_PAGE), "license_class": "oss"}
    for _ in range(_PAGES):
        url = f"{_HASHICORP}{quote(asker.source.product)}?{urlencode(query)}"
        entries = _list(url, _json(url, asker.reply(url).body))
        for entry in entries:
            if entry.get("license_class", "oss") == "oss":
                yield Tag(str(entry.get("version")), bool(entry.get("is_prerelease")))
        if len(entries) < _HASHICORP_PAGE:
            return
        after = str(entries[-1].get("timestamp_created"))
        if query.get("after") == after:  # a mirror of plain files, which gives the same page for ever
            return
        query["after"] = after


def _html_index(asker: Asker) -> Iterator[Tag]:
    yield from _matches(asker, asker.page(asker.url))


def _text(asker: Asker) -> Iterator[Tag]:
    text = asker.page(asker.url)
    if asker.source.pattern:
        yield from _matches(asker, text)
    else:
        yield from (Tag(line.strip()) for line in text.splitlines() if line.strip())


def _json_values(asker: Asker) -> Iterator[Tag]:
    found = [_json(asker.url, asker.reply(asker.url).body)]
    for name in asker.source.key.split("."):
        found = [value for item in found for value in _step(item, name)]
    for value in found:
        if isinstance(value, str):
            yield Tag(value)


def _step(item: Any, name: str) -> list[Any]:
    """What a part of a JSON path leads to from one place."""
    if name == "*":
        return list(item.values()) if isinstance(item, dict) else item if isinstance(item, list) else []
    return [item[name]] if isinstance(item, dict) and name in item else []


def _matches(asker: Asker, text: str) -> Iterator[Tag]:
    for found in re.finditer(asker.source.pattern, text):
        yield Tag(found[1] if found.re.groups else found[0])


def _json(url: str, data: bytes) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        raise NetworkError(f"{url} is no JSON.") from None


def _list(url: str, value: Any) -> list[dict[str, Any]]:
    if not isinstance(value, list) or not all(isinstance(entry, dict) for entry in value):
        raise NetworkError(f"{url} has no list of versions where one is expected.")
    return value


_LISTS: Mapping[str, Callable[[Asker], Iterator[Tag]]] = {
    "github-releases": _github_releases, "github-tags": _github_tags, "gitlab-tags": _gitlab_tags,
    "git-tags": _git_tags, "k8s-schedule": _k8s_schedule, "hashicorp": _hashicorp, "html-index": _html_index,
    "json": _json_values, "text": _text,
}  # fmt: skip
"""By type; `follow` asks another recipe, which is the business of `versions`."""
