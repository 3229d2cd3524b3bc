"""GitHub's API: with a token when there is one, and with its refusals explained.

The token (GH_TOKEN, else GITHUB_TOKEN) goes to https://api.github.com and nowhere else: not to mirrors, not along
redirects to other hosts.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

from baker.errors import NetworkError
from baker.fetch import FileMissing, Reply
from baker.recipe.mirrors import Rewrites
from baker.services import Services

API = "https://api.github.com/"
_LARGEST = 64 << 20  # a page of 100 releases with all their assets and notes
_PAGES = 10


def token() -> str:
    """The user's token, or ""."""
    return (os.environ.get("GH_TOKEN") or os.environ.get("GITHUB_TOKEN") or "").strip()


def headers_for(url: str) -> dict[str, str]:
    """The headers of a request to the API or a mirror of it; the token is among them for the API alone."""
    headers = {"Accept": "application/vnd.github+json"}
    parts = urlsplit(url)
    if token() and parts.scheme == "https" and parts.netloc == "api.github.com":
        headers["Authorization"] = f"Bearer {token()}"
    return headers


def api(path: str, services: Services, rewrites: Rewrites) -> Any:
    """What the API says about `path` (below https://api.github.com/), parsed.

    Raises FileMissing where there is nothing, NetworkError for a refusal, with what to do about it.
    """
    return _parse(_get(rewrites.apply(API + path), services))


def pages(path: str, services: Services, rewrites: Rewrites) -> Iterator[dict[str, Any]]:
    """The entries of a list of the API, page by page, the newest thousand at most."""
    url = rewrites.apply(f"{API}{path}?per_page=100")
    for _ in range(_PAGES):
        reply = _get(url, services)
        entries = _parse(reply)
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise NetworkError(f"{url} is no list of what GitHub lists.")
        yield from entries
        if not reply.next:
            return
        url = rewrites.apply(reply.next)


def _get(url: str, services: Services) -> Reply:
    reply = services.fetcher.ask(url, _LARGEST, headers_for(url))
    if reply.status == 200:
        return reply
    if reply.status in (404, 410):
        raise FileMissing(f"There is nothing at {url}.")
    host = urlsplit(url).hostname
    if reply.status == 401:
        raise NetworkError(f"{host} does not know the token in GH_TOKEN or GITHUB_TOKEN.", "Renew it, or unset both.")
    if reply.status in (403, 429):
        raise _refused(str(host), reply)
    raise NetworkError(f"{host} answered with status {reply.status} for {url}.")


def _refused(host: str, reply: Reply) -> NetworkError:
    """Why the API refuses: docs.github.com, "Rate limits for the REST API"."""
    wait = 0.0
    if reply.headers.get("retry-after", "").isdigit():
        wait = float(reply.headers["retry-after"])
    elif reply.headers.get("x-ratelimit-remaining") == "0" and reply.headers.get("x-ratelimit-reset", "").isdigit():
        wait = max(0.0, float(reply.headers["x-ratelimit-reset"]) - time.time())
    elif reply.status == 403:
        return NetworkError(
            f"{host} refuses the request (status 403).",
            "A token in GH_TOKEN may lack the right, or an organization demands single sign-on for it.",
        )
    when = f" It answers again in {-int(-wait // 60)} min." if wait else ""
    more = "wait" if token() else "set GH_TOKEN to a token (none of its rights are needed): that allows 5000 an hour"
    return NetworkError(f"{host} allows no more requests for now (rate limit).{when}", f"To go on, {more}.")


def _parse(reply: Reply) -> Any:
    try:
        return json.loads(reply.body)
    except (ValueError, RecursionError):
        raise NetworkError("GitHub's API, or the mirror in its place, sent something else than JSON.") from None
