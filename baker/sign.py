"""Signing what we publish: a detached OpenPGP signature over SHA256SUMS, as systemd-sysupdate's Verify=true wants it.

systemd-pull looks for SHA256SUMS.gpg beside SHA256SUMS and checks it by gpg with the keyring import-pubring.gpg
in /etc/systemd or /usr/lib/systemd (sysupdate.d(5), `Verify=`).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import AbstractContextManager
from itertools import pairwise
from pathlib import Path

from baker.errors import UsageError, VerificationError
from baker.run import CommandFailed, run
from baker.verify import Verifier
from baker.work import scratch

SIGNATURE_SUFFIX = ".gpg"
KEYRING_NAME = "import-pubring.gpg"
"""The name of the public key's file: the one that systemd looks for in /etc/systemd."""


def read_keyring(path: Path) -> bytes:
    """The public keys in a file, armored or not, in the form that gpg's `--keyring` takes. UsageError for no key."""
    with scratch() as home:
        try:
            run([*_gpg_in(home), "--import"], input=path.read_bytes())
            keys = run([*_gpg_in(home), "--export"]).stdout
        except OSError as error:
            raise UsageError(f"Cannot read the key {path}: {error.strerror}.") from error
        except CommandFailed:
            keys = b""
    if not keys:
        raise UsageError(f"{path} holds no OpenPGP public key.", "A file made by gpg --export, armored or not.")
    return keys


def check_by_any(keys: bytes, data: bytes, signature: bytes, what: str) -> None:
    """VerificationError unless `signature` over `data` is a good one by one of the public `keys`."""
    errors = []
    for fingerprint in _fingerprints(keys):
        try:
            with Verifier(keys, fingerprint) as verifier:
                verifier.verify(data, signature, what)
            return
        except VerificationError as error:
            errors.append(error)
    raise (
        errors[0]
        if len(errors) == 1
        else VerificationError(
            f"{what} is signed by none of the {len(errors)} keys that may.", errors[0].hint if errors else None
        )
    )


def _fingerprints(keys: bytes) -> list[str]:
    """Of all primary keys."""
    with scratch() as home:
        listing = run([*_gpg_in(home), "--with-colons", "--show-keys"], input=keys).text
    lines = [line.split(":") for line in listing.splitlines()]
    return [after[9] for line, after in pairwise(lines) if line[0] == "pub" and after[0] == "fpr"]


def _gpg_in(home: Path) -> list[str]:
    """gpg with a keyring of its own."""
    return ["gpg", "--batch", "--no-tty", "--no-options", "--no-autostart", "--homedir", os.fspath(home)]


class Signer(AbstractContextManager["Signer"]):
    """Signs by one secret key. A context manager.

    `key`: a file with the exported secret key, or what gpg calls a user id: a fingerprint, key id or mail address of
    a key in the user's own keyring. `passphrase`: a file with the passphrase of a key that has one and no agent.
    Raises UsageError for a key that cannot sign.
    """

    def __init__(self, key: str, passphrase: Path | None = None) -> None:
        self._folder = scratch()
        self._own_home = Path(key).is_file()
        self._options: list[str] = ["--pinentry-mode", "loopback"] if passphrase or self._own_home else []
        if passphrase:
            self._options += ["--passphrase-file", os.fspath(passphrase.absolute())]
        elif self._own_home:
            self._options += ["--passphrase", ""]  # it must not ask
        try:
            self._home = self._folder.open()
            if self._own_home:
                self._import(Path(key))
            self.fingerprint = self._find("" if self._own_home else key)
            self.public_key = self._gpg("--export", self.fingerprint)
        except BaseException:
            self.__exit__()
            raise

    def __exit__(self, *_: object) -> None:
        if self._own_home:
            run(["gpgconf", "--homedir", self._folder.open(), "--kill", "all"], ok=range(256))
        self._folder.close()

    def sign(self, data: bytes, what: str) -> bytes:
        """A detached binary signature over `data`, which was verified with the public key alone before it is returned.

        Raises UsageError when gpg does not make one. `what` names the data in messages.
        """
        try:
            signature = self._gpg(
                "--local-user",
                self.fingerprint,
                "--digest-algo",
                "SHA512",
                "--output",
                "-",
                "--detach-sign",
                data=data,
            )
        except CommandFailed as failure:
            said = failure.stderr.strip().splitlines() or [f"status {failure.status}"]
            raise UsageError(
                f"gpg cannot sign {what} by {self.fingerprint}: {said[-1]}",
                "Does the key need a passphrase? --sign-passphrase-file FILE gives it.",
            ) from failure
        self.check(data, signature, what)
        return signature

    def has_signed(self, data: bytes, signature: bytes) -> bool:
        """Whether a signature over `data` is a good one by this key."""
        try:
            self.check(data, signature, "")
        except VerificationError:
            return False
        return True

    def check(self, data: bytes, signature: bytes, what: str) -> None:
        """VerificationError unless `signature` over `data` is a good one by this key; `what` names the data."""
        with Verifier(self.public_key, self.fingerprint) as verifier:
            verifier.verify(data, signature, what)

    def _import(self, key: Path) -> None:
        try:
            self._gpg("--import", data=key.read_bytes())
        except (OSError, CommandFailed) as error:
            raise UsageError(f"{key} is no key that gpg can read.", "Export one: gpg --export-secret-keys.") from error

    def _find(self, key: str) -> str:
        """The fingerprint of the primary key; UsageError when there is not exactly one."""
        listing = self._gpg("--with-colons", "--list-secret-keys", *([key] if key else []), ok=(0, 2)).decode()
        lines = [line.split(":") for line in listing.splitlines()]
        found = [after[9] for line, after in pairwise(lines) if line[0] == "sec" and after[0] == "fpr"]
        if len(found) != 1:
            what = key or "the file of --sign"
            several = f"{len(found)} secret keys: {', '.join(found)}" if found else "no secret key"
            raise UsageError(
                f"There is {several} for {what}." if key else f"{what} holds {several}.".capitalize(),
                "Name one by its fingerprint, or give a file made by gpg --export-secret-keys.",
            )
        return found[0]

    def _gpg(self, *words: str, data: bytes | None = None, ok: Sequence[int] = (0,)) -> bytes:
        home = {"GNUPGHOME": os.environ["GNUPGHOME"]} if "GNUPGHOME" in os.environ else {}
        if self._own_home:
            home = {"GNUPGHOME": os.fspath(self._home)}
        argv = ["gpg", "--batch", "--no-tty", "--yes", *self._options, *words]
        return run(argv, input=data, env=home, ok=ok).stdout
