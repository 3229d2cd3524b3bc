"""Why a request failed: what exceptions of requests and headers of an answer mean, each in one word or number."""

from __future__ import annotations

import time
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from requests import Response


def retry_after(response: Response) -> float:
    """The seconds that a Retry-After header asks for; 0 without one (RFC 9110 §10.2.3: seconds or a date)."""
    text = response.headers.get("Retry-After", "").strip()
    if text.isdigit():
        return float(text[:9])
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    except ValueError:
        return 0.0


def host_of(url: str) -> str:
    """The host in an address, without its port."""
    return urlsplit(url).hostname or url


def root_cause(error: BaseException) -> BaseException:
    """The innermost exception: requests wraps urllib3, which wraps the system's error, each in its own way."""
    while True:
        inner = getattr(error, "reason", None)
        candidates = [inner, *error.args, error.__cause__, error.__context__]
        found = next((item for item in candidates if isinstance(item, BaseException)), None)
        if found is None:
            return error
        error = found


def unconnected(error: Exception, url: str) -> str:
    """The host (with its port) to which no connection came about; "" when the failure came after that.

    It need not be the one of `url`, which may redirect.
    """
    import urllib3

    seen = [error, *error.args, *(getattr(item, "reason", None) for item in error.args)]
    if not any(isinstance(item, urllib3.exceptions.NewConnectionError | urllib3.exceptions.ConnectTimeoutError)
               for item in seen):  # fmt: skip
        return ""
    asked = getattr(error, "request", None)
    return urlsplit((asked.url if asked is not None else None) or url).netloc


def reason_of(cause: BaseException) -> str:
    """An exception's own words, without a full stop."""
    text = (cause.strerror if isinstance(cause, OSError) else None) or str(cause) or type(cause).__name__
    return text.rstrip(".")
