"""The lists of a bakery: SHA256SUMS files, signed where the user says by whom."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

from baker.errors import VerificationError
from baker.fetch import FileMissing
from baker.release import join_url
from baker.verify import parse_sha256sums

T = TypeVar("T")
SUMS = "SHA256SUMS"
_LIST_LIMIT = 16 << 20
_SIGNATURE_LIMIT = 64 << 10

Check = Callable[[bytes, bytes, str], object]
"""Judges (data, signature, what it is); raises VerificationError unless the signature is a good one."""


class Read(Protocol):
    """Reads a small file that nobody vouches for: (address, most bytes, what to make of it)."""

    def __call__(self, url: str, limit: int, parse: Callable[[bytes], T], /) -> T: ...


class BakeryLists:
    """SHA256SUMS files by address, each read once. With `check`, none counts that is not signed.

    Raises FileMissing where there is no list, VerificationError for one that is malformed or not signed as it must be.
    """

    def __init__(self, read: Read, check: Check | None) -> None:
        self._read, self._check = read, check
        self._known: dict[str, dict[str, str]] = {}

    @property
    def signed(self) -> bool:
        """Whether lists must be signed, so that what they do not name is vouched for by nobody."""
        return self._check is not None

    def names(self, folder: str) -> dict[str, str]:
        """File name → sha256 of everything that the list in a folder names."""
        url = join_url(folder, SUMS)
        if url not in self._known:
            data, names = self._read(url, _LIST_LIMIT, lambda data: (data, parse_sha256sums(data)))
            if self._check is not None:
                self._check(data, self._signature(url), url)
            self._known[url] = names
        return self._known[url]

    def digest(self, folders: Sequence[str], name: str) -> str | None:
        """The digest of a file in the first list that names it."""
        for folder in folders:
            try:
                found = self.names(folder).get(name)
            except FileMissing:
                continue
            if found is not None:
                return found
        return None

    def _signature(self, url: str) -> bytes:
        try:
            return self._read(f"{url}.gpg", _SIGNATURE_LIMIT, bytes)
        except FileMissing:
            raise VerificationError(
                f"The bakery's list is not signed: there is no {url}.gpg.", "--bakery-key is for bakeries that sign."
            ) from None
