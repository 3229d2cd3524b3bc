"""A throw-away signing key shaped like Flatcar's, and what Flatcar publishes beside each file: .sig and .DIGESTS."""

from __future__ import annotations

import hashlib
import re
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from baker.run import run

USER_ID = "Flatcar Buildbot (throw-away key of a stand-in release) <buildbot@stand-in.invalid>"
SECRET = ".signing-key.asc"
"""The secret key, kept in the release server's folder so that later releases are signed with the same one."""
PUBLIC = "security/image-signing-key/Flatcar_Image_Signing_Key.asc"


class Signer:
    """Signs with a subkey of the key in an open GNUPGHOME; `fingerprint` is the primary's."""

    def __init__(self, home: Path) -> None:
        self._home = home
        listing = self._gpg("--list-secret-keys", "--with-colons").decode()
        found = re.search(r"^fpr:+([0-9A-F]{40}):", listing, re.MULTILINE)
        assert found, "the key ring is empty"
        self.fingerprint = found.group(1)

    def _gpg(self, *arguments: str | Path, input: bytes | None = None) -> bytes:
        return gpg(self._home, *arguments, input=input)

    def public_key(self) -> bytes:
        """The public key, armoured."""
        return self._gpg("--armor", "--export", self.fingerprint)

    def sign(self, path: Path) -> None:
        """Write the binary detached signature `path`.sig."""
        signature = Path(f"{path}.sig")
        signature.unlink(missing_ok=True)
        self._gpg("--output", signature, "--detach-sign", path)


def gpg(home: Path, *arguments: str | Path, input: bytes | None = None) -> bytes:
    """Run gpg on a key ring of its own and return its stdout."""
    return run(["gpg", "--homedir", home, "--batch", "--quiet", "--no-tty", *arguments], input=input).stdout


@contextmanager
def signer(root: Path) -> Iterator[Signer]:
    """The signer of the release server in `root`; makes its key the first time, and publishes the public half."""
    # gpg's agent listens on a socket in its home, whose path must be short; so the home is not below `root`.
    with tempfile.TemporaryDirectory(prefix="stand-in-gpg-") as folder:
        home = Path(folder)
        try:
            secret = root / SECRET
            if secret.exists():
                gpg(home, "--import", secret)
            else:
                _make_key(home, secret)
            ready = Signer(home)
            public = root / PUBLIC
            public.parent.mkdir(parents=True, exist_ok=True)
            public.write_bytes(ready.public_key())
            yield ready
        finally:
            run(["gpgconf", "--homedir", home, "--kill", "all"])


def _make_key(home: Path, secret: Path) -> None:
    """A primary that only certifies and a subkey that signs for two years, as Flatcar's."""
    protect = ("--passphrase", "", "--pinentry-mode", "loopback")
    gpg(home, *protect, "--quick-generate-key", USER_ID, "rsa2048", "cert", "never")
    fingerprint = Signer(home).fingerprint
    gpg(home, *protect, "--quick-add-key", fingerprint, "rsa2048", "sign", "2y")
    partial = secret.with_suffix(".partial")
    partial.touch(mode=0o600)
    partial.write_bytes(gpg(home, *protect, "--armor", "--export-secret-keys", fingerprint))
    partial.rename(secret)


def write_digests(path: Path) -> None:
    """Write `path`.DIGESTS: a block for each of MD5, SHA1 and SHA512, as flatcar/scripts' `create_digests` does."""
    hashes = [hashlib.md5(usedforsecurity=False), hashlib.sha1(usedforsecurity=False), hashlib.sha512()]
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            for each in hashes:
                each.update(chunk)
    blocks = (f"# {each.name.upper()} HASH\n{each.hexdigest()}  {path.name}\n" for each in hashes)
    Path(f"{path}.DIGESTS").write_text("".join(blocks))


def sign_folder(folder: Path, ready: Signer) -> None:
    """Sign every file of a release, and give the images digests; both as on the release server."""
    for path in sorted(folder.iterdir()):
        if path.suffix in {".bz2", ".img", ".raw", ".gz", ".qcow2", ".vmlinuz"}:
            write_digests(path)
    with ThreadPoolExecutor() as pool:
        list(pool.map(ready.sign, sorted(folder.iterdir())))
