"""Real OpenPGP keys for tests: a primary with signing subkeys, expiry, revocation, and signatures made by gpg."""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path

DAY = 86400
BORN = 1_700_000_000
"""When test keys are made (November 2023), so that a subkey can expire before today."""

USER = "Flatcar Buildbot (Official Builds) <buildbot@flatcar-linux.org>"


class TestKey:
    """A primary key that can only certify and subkeys that sign, as Flatcar has them; in a keyring of its own."""

    __test__ = False

    def __init__(self, user: str = USER) -> None:
        # A short path: the agent's socket goes there.
        self._folder = tempfile.TemporaryDirectory(prefix="fbkey-")
        self.home = Path(self._folder.name)
        self.gpg("--quick-generate-key", user, "ed25519", "cert", "never", at=BORN)
        self.fingerprint = self._fingerprints()[0]

    def __enter__(self) -> TestKey:
        return self

    def __exit__(self, *_: object) -> None:
        subprocess.run(["gpgconf", "--homedir", self.home, "--kill", "all"], check=False, capture_output=True)
        self._folder.cleanup()

    def gpg(self, *arguments: str | Path, at: int | None = None, data: bytes | None = None) -> bytes:
        """Run gpg on this keyring, at another time if asked; returns its stdout."""
        clock = [f"--faked-system-time={at}!"] if at is not None else []
        argv = ["gpg", "--homedir", self.home, "--batch", "--yes", "--pinentry-mode", "loopback", "--passphrase", "",
                "--no-auto-check-trustdb", *clock, *arguments]  # fmt: skip
        return subprocess.run(argv, input=data, check=True, capture_output=True).stdout

    def add_subkey(self, days: int = 0, at: int = BORN) -> str:
        """A new signing subkey, valid for `days` (0: for ever); returns its fingerprint."""
        before = set(self._fingerprints())
        self.gpg("--quick-add-key", self.fingerprint, "ed25519", "sign", f"{days}d" if days else "never", at=at)
        (new,) = set(self._fingerprints()) - before
        return new

    def sign(self, data: bytes, *options: str, at: int | None = None, key: str | None = None) -> bytes:
        """A detached signature; options such as `--armor`. `key`: the subkey to use, default the newest."""
        chosen = ["--local-user", f"{key}!"] if key else []
        return self.gpg(*chosen, *options, "--detach-sign", at=at, data=data)

    def export(self, *options: str) -> bytes:
        """The public key, as a release server offers it."""
        return self.gpg(*options, "--export", self.fingerprint)

    def revoke_subkey(self, number: int) -> None:
        """Revoke the `number`th subkey, counted from 1."""
        self._edit(f"key {number}", "revkey", "y", "0", "", "y", "save")

    def revoke(self) -> None:
        """Revoke the primary key with the certificate that gpg made beforehand."""
        path = self.home / "openpgp-revocs.d" / f"{self.fingerprint}.rev"
        # gpg puts a colon before the armor, against mistakes.
        self.gpg("--import", data=path.read_bytes().replace(b"\n:-----", b"\n-----"))

    def _edit(self, *answers: str) -> None:
        subprocess.run(
            ["gpg", "--homedir", self.home, "--no-tty", "--command-fd", "0", "--status-fd", "2",
             "--pinentry-mode", "loopback", "--passphrase", "", "--edit-key", self.fingerprint],
            input="".join(f"{answer}\n" for answer in answers).encode(), check=True, capture_output=True,
        )  # fmt: skip

    def _fingerprints(self) -> list[str]:
        listing = self.gpg("--with-colons", "--with-subkey-fingerprint", "--list-keys").decode()
        return [line.split(":")[9] for line in listing.splitlines() if line.startswith("fpr")]
