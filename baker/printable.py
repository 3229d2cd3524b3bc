"""What may go to a terminal. Names and texts come from images and servers, which may have other ideas."""

from __future__ import annotations


def printable(text: str) -> str:
    r"""`text` as one line without anything that steers a terminal: such characters become escapes, `\n` or `\x1b`.

    That includes line breaks of every kind, marks that turn the direction of writing, and bytes of file names that
    are not UTF-8.
    """
    return "".join(char if char.isprintable() else _escape(char) for char in text)


def _escape(char: str) -> str:
    code = ord(char)
    if 0xDC80 <= code <= 0xDCFF:  # how Python carries a byte that is no text
        return f"\\x{code - 0xDC00:02x}"
    return char.encode("unicode_escape").decode("ascii")
