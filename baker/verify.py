"""Who vouches for a file: detached OpenPGP signatures by gpg, and SHA256SUMS.

gpg works in a private, throw-away GNUPGHOME and is believed only through its machine-readable status lines
(documented in GnuPG's doc/DETAILS), never through its prose or the user id of a key.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from subprocess import Popen

from baker.errors import UsageError, VerificationError
from baker.run import check_killed, run, spawn
from baker.work import scratch

FLATCAR_FINGERPRINT = "F88CFEDEFF29A5B4D9523864E25D9AED0593B34A"
"""The primary key "Flatcar Buildbot (Official Builds)"; its signing subkeys change every year or two."""

_CHUNK = 1 << 20
_GPG = (
    "gpg", "--batch", "--no-tty", "--no-options", "--no-autostart", "--disable-dirmngr", "--no-auto-key-retrieve",
    "--trust-model", "always", "--exit-on-status-write-error", "--status-fd", "1",
)  # fmt: skip
_DAMAGED_HINT = "It was changed or damaged on its way; try again, or use another --mirror."
_RENEWED_HINT = "If the key was renewed, get its new edition: --signing-key FILE."
# Keyword → (what it means, next step); of several, the first of these explains best.
_REFUSED = {
    "BADSIG": ("does not match its signature", _DAMAGED_HINT),
    "REVKEYSIG": ("is signed by a revoked key", "Do not use it; its owner has withdrawn the key."),
    "NO_PUBKEY": ("is signed by an unknown key", _RENEWED_HINT),
    "EXPSIG": ("has an expired signature", None),
    "NODATA": ("has a signature file without a signature in it", _DAMAGED_HINT),
    "UNEXPECTED": ("has a malformed signature", _DAMAGED_HINT),
    # A signature that brings its own text says nothing about the file beside it.
    "PLAINTEXT": ("has a signature that is not detached", None),
    "ERRSIG": ("has a signature that gpg cannot check", "Is the clock of this machine right?"),
}
_SIGNATURE_OF_BYTES = "00"  # RFC 4880 §5.2.1: class 01 ignores line endings, others do not sign documents at all
_STRONG_HASHES = {"8": "SHA256", "9": "SHA384", "10": "SHA512", "11": "SHA224", "12": "SHA3-256", "14": "SHA3-512"}


@dataclass(frozen=True)
class Signer:
    """Who signed a file: fingerprints of the primary key and of the (sub)key that made the signature."""

    primary: str
    key: str
    created: int
    """When the signature was made, by its own account; seconds since the epoch."""
    expired: bool
    """The key has expired since; it was valid when the signature was made."""


def parse_status(status: str, what: str = "The file") -> Signer:
    """The signer according to gpg's status lines of ONE verification.

    Demands exactly one signature, GOODSIG or EXPKEYSIG with its VALIDSIG, over the plain bytes and with a hash of
    the SHA-2 or SHA-3 family. Raises VerificationError for everything else. It does not judge who the signer is.
    """
    # Lines end with \n alone: str.splitlines would also break at characters that a user id may contain.
    fields_of_lines = (line.split()[1:] for line in status.split("\n") if line.startswith("[GNUPG:] "))
    lines = [fields for fields in fields_of_lines if fields]
    keywords = [keyword for keyword, *_ in lines]
    for keyword, (meaning, hint) in _REFUSED.items():
        if keyword in keywords:
            raise VerificationError(f"{what} {meaning}.", hint)
    verdicts = [keyword for keyword in keywords if keyword in ("GOODSIG", "EXPKEYSIG")]
    valid = [fields for keyword, *fields in lines if keyword == "VALIDSIG"]
    if len(verdicts) != 1 or len(valid) != 1 or keywords.count("NEWSIG") > 1:
        found = "no good signature" if not verdicts else "more than one signature"
        raise VerificationError(f"{what} has {found}; exactly one is expected.")
    try:
        key, _day, created, _expires, _version, _reserved, _algorithm, digest, kind, *primary = valid[0]
        signer = Signer((primary or [key])[0], key, int(created), verdicts[0] == "EXPKEYSIG")
    except ValueError:
        raise VerificationError(f"{what}: gpg's VALIDSIG line has an unknown form.") from None
    if kind != _SIGNATURE_OF_BYTES:
        raise VerificationError(f"{what} has a signature of class {kind}, which does not cover its exact bytes.")
    if digest not in _STRONG_HASHES:
        raise VerificationError(f"{what} has a signature with a weak hash (OpenPGP hash {digest}).")
    return signer


class SignatureStream:
    """A verification under way: `write` the data, then `finish`."""

    def __init__(self, verifier: Verifier, gpg: Popen[bytes], what: str) -> None:
        assert gpg.stdin is not None and gpg.stdout is not None
        self._verifier, self._stdin, self._stdout, self._what = verifier, gpg.stdin, gpg.stdout, what
        self._wait = gpg.wait

    def write(self, data: bytes) -> None:
        """Feed data. Raises VerificationError at once when gpg has already refused the signature."""
        try:
            self._stdin.write(data)
        except BrokenPipeError:
            self.finish()
            raise VerificationError(f"{self._what} was not read to its end by gpg.") from None

    def finish(self) -> Signer:
        """All data is there: who signed it? VerificationError if it is not the pinned key, or anything is wrong."""
        try:
            self._stdin.close()
        except BrokenPipeError:
            pass  # gpg gave up early; its status says why
        status = self._stdout.read().decode("utf-8", "replace")
        check_killed("gpg", self._wait())
        return self._verifier.judge(parse_status(status, self._what), self._what)


class Verifier:
    """Verifies detached signatures by one pinned primary key and its subkeys.

    `key`: OpenPGP key material, armored or binary, from wherever; it must contain the primary key with `fingerprint`.
    Raises VerificationError when it does not, or when that key is revoked. Close it, or use it as a context manager.
    """

    def __init__(self, key: bytes, fingerprint: str = FLATCAR_FINGERPRINT) -> None:
        self.fingerprint = normalize_fingerprint(fingerprint)
        # gpg puts sockets there, whose paths must be short: so directly below the temporary folder.
        self._folder = scratch()
        self._home = self._folder.open()  # for our eyes only, as gpg demands
        try:
            run([*_GPG, "--homedir", self._home, "--import"], input=key, ok=range(256))
            self._expiry = self._read_expiry()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Verifier:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Remove the keyring."""
        self._folder.close()

    def verify(self, data: Path | bytes, signature: bytes, what: str) -> Signer:
        """Check `signature` (armored or binary) over a file or bytes; VerificationError unless all is well.

        `what` names the data in messages.
        """
        with self.stream(signature, what) as stream:
            if isinstance(data, bytes):
                stream.write(data)
            else:
                with data.open("rb") as file:
                    while chunk := file.read(_CHUNK):
                        stream.write(chunk)
            return stream.finish()

    @contextmanager
    def stream(self, signature: bytes, what: str) -> Iterator[SignatureStream]:
        """Check a signature over data that is still on its way; nothing remains of it when the block ends."""
        with tempfile.NamedTemporaryFile(dir=self._home, suffix=".sig") as file:
            file.write(signature)
            file.flush()
            argv = [*_GPG, "--quiet", "--homedir", str(self._home), "--verify", "--", file.name, "-"]
            with (
                tempfile.TemporaryFile(dir=self._home) as prose,
                spawn(argv, stdin=-1, stdout=-1, stderr=prose) as gpg,
            ):
                yield SignatureStream(self, gpg, what)

    def judge(self, signer: Signer, what: str) -> Signer:
        """Is this signer the pinned key, and was its subkey valid at the time? VerificationError if not."""
        if signer.primary != self.fingerprint:
            raise VerificationError(
                f"{what} is signed by {signer.primary}, not by the pinned key {self.fingerprint}.",
                "Another release server needs its own --signing-key and --fingerprint.",
            )
        if signer.expired:
            expiries = [self._expiry.get(key, 0) for key in (signer.key, signer.primary)]
            if not any(expiries) or any(expiry and signer.created >= expiry for expiry in expiries):
                raise VerificationError(
                    f"{what} was signed after the signing key {signer.key} had expired.",
                    _RENEWED_HINT,
                )
        return signer

    def _read_expiry(self) -> dict[str, int]:
        """Expiry of every key of the pinned one by fingerprint, 0 for never; refuses material without that key.

        Format: GnuPG's doc/DETAILS, "Format of the colon listings".
        """
        listing = run([*_GPG, "--homedir", self._home, "--with-colons", "--fixed-list-mode",
                       "--with-subkey-fingerprint", "--list-keys"], ok=range(256)).text  # fmt: skip
        expiry: dict[str, int] = {}
        pinned = False
        record = [""] * 7
        for line in listing.splitlines():
            fields = line.split(":")
            if fields[0] in ("pub", "sub"):
                record = fields
            elif fields[0] == "fpr" and record[0]:
                if record[0] == "pub":
                    pinned = fields[9] == self.fingerprint
                if pinned:
                    expiry[fields[9]] = int(record[6] or 0)
                    if record[0] == "pub" and record[1] == "r":
                        raise VerificationError(
                            f"The signing key {self.fingerprint} is revoked.",
                            "Do not use anything signed by it; see the announcements of its owner.",
                        )
                record = [""] * 7
        if not expiry:
            raise VerificationError(
                f"The key material does not contain the pinned key {self.fingerprint}.",
                "Get the official key, or pin the one you mean with --fingerprint.",
            )
        return expiry


def normalize_fingerprint(text: str) -> str:
    """A fingerprint as gpg prints it in status lines: upper case, no spaces. UsageError if it is none."""
    plain = re.sub(r"\s", "", text).upper().removeprefix("0X")
    if not re.fullmatch(r"[0-9A-F]{40}|[0-9A-F]{64}", plain):
        raise UsageError(
            f"{text!r} is not a full key fingerprint.", "It has 40 hexadecimal digits; short key ids can be forged."
        )
    return plain


def parse_sha256sums(text: bytes) -> dict[str, str]:
    """File name → digest of a SHA256SUMS file (`sha256sum` output, text or binary mode).

    Raises VerificationError for any other line, for names that are not plain file names, and for one name with
    two digests.
    """
    digests: dict[str, str] = {}
    try:
        lines = text.decode("utf-8").split("\n")
    except UnicodeDecodeError:
        raise VerificationError("SHA256SUMS is not text.") from None
    for number, line in enumerate(lines, 1):
        if not line:
            continue
        match = re.fullmatch(r"([0-9A-Fa-f]{64}) [ *](.+)", line)
        name = match[2] if match else ""
        if match is None or "/" in name or name in (".", "..") or not name.isprintable():
            raise VerificationError(
                f"Line {number} of SHA256SUMS is not a digest and a plain file name: {line[:100]!r}."
            )
        digest = match[1].lower()
        if digests.setdefault(name, digest) != digest:
            raise VerificationError(f"SHA256SUMS lists {name} with two digests.")
    return digests
