"""What a sysext says about itself: the file extension-release.NAME, how it is read, and what NAME can be.

The rules are those of systemd-sysext(8) and os-release(5).
"""

from __future__ import annotations

import re

from baker.errors import ImageError, UsageError

RELEASE_FOLDER = "/usr/lib/extension-release.d"
RELEASE_PREFIX = "extension-release."
MAX_RELEASE_SIZE = 64 * 1024

# What Flatcar's os-release says since the first release with it (release notes of 3185.0.0).
FLATCAR_LEVEL = "1.0"

_NAME = re.compile(r"[A-Za-z0-9_+@][A-Za-z0-9._+@-]*")
_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def validate_name(name: str) -> str:
    """Return `name` if it can be the NAME of a link /etc/extensions/NAME.raw; UsageError otherwise."""
    if name.endswith(".raw") and _NAME.fullmatch(name):
        raise UsageError(f"The sysext name {name} is a file name.", f"Write {name.removesuffix('.raw')}.")
    # A file name can have 255 bytes, and the longest that NAME is part of is extension-release.NAME.
    if not _NAME.fullmatch(name) or len(name) > 255 - len(RELEASE_PREFIX):
        raise UsageError(
            f"{name!r} cannot be the name of a sysext.",
            "Use letters, digits and the characters . _ + - @, not beginning with a dot or a dash.",
        )
    return name


def parse_release(data: bytes) -> dict[str, str]:
    """Parse an extension-release or os-release file by the quoting rules of os-release(5).

    Lines that assign nothing are ignored, as systemd does. Raises ImageError for what is not text of at most
    MAX_RELEASE_SIZE bytes, or has a quote that is not closed.
    """
    if len(data) > MAX_RELEASE_SIZE:
        raise ImageError(f"The release file is larger than {MAX_RELEASE_SIZE} bytes.")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ImageError("The release file is not UTF-8 text.") from error
    if "\0" in text:
        raise ImageError("The release file is binary, not text.")
    fields = {}
    for number, line in enumerate(text.split("\n"), 1):
        key, equals, value = line.strip().partition("=")
        if equals and _KEY.fullmatch(key):
            fields[key] = _unquote(value, number)
    return fields


def _unquote(value: str, number: int) -> str:
    """A value without its quotes and escapes; `number` is the line's, for the error."""
    if value[:1] == "'":
        inner = re.fullmatch(r"'([^']*)'", value)
        if inner:
            return inner[1]
    elif value[:1] == '"':
        inner = re.fullmatch(r'"((?:[^"\\]|\\.)*)"', value)
        if inner:
            return re.sub(r'\\([\\"$`])', r"\1", inner[1])
    else:
        return re.sub(r"\\(.)", r"\1", value)
    raise ImageError(f"Line {number} of the release file has a quote that is not closed.")
