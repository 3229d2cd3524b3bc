"""Shared storage: a folder on file, s3, gs or az that client and workers reach, through fsspec.

Whatever is written appears whole under its name or not at all: object stores promise that, and on a file system a
name is given last. What is read is known by its digest. Who may do so is told by the environment of each machine, as
every client of that store reads it (AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL, an instance's role …), never by a task.
"""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from baker.errors import BakeError, EnvironmentFault, NetworkError, UsageError, VerificationError
from baker.fleet.holes import read_packed, write_packed
from baker.sparse import SparseWriter, clone, file_sha256

SCHEMES = {"file": "", "s3": "s3fs", "gs": "gcsfs", "az": "adlfs"}
"""What an address may begin with, and the package that reaches it."""
EXTRA_HINT = "pip install 'flatcar-bake[fleet]'"
_CHUNK = 8 << 20
_SEQUENTIAL = {"block_size": 32 << 20, "cache_type": "readahead"}


class Storage:
    """A folder of shared storage; names in it are relative paths. Every method raises NetworkError where it fails."""

    def __init__(self, url: str) -> None:
        """Raises UsageError for an address that is none, EnvironmentFault where its package is not installed."""
        scheme, sign, _ = url.partition("://")
        if not sign:
            scheme, url = "file", f"file://{os.path.abspath(url)}"
        if scheme not in SCHEMES:
            raise UsageError(
                f"Shared storage cannot be at {url}.",
                "Use file:///FOLDER, s3://BUCKET/, gs://BUCKET/ or az://CONTAINER/.",
            )
        if "@" in urlsplit(url).netloc:
            raise UsageError(
                "The address of the storage holds a user name or password.",
                "Put them into the environment of each machine, such as AWS_ACCESS_KEY_ID; the address is shown.",
            )
        self.url, self.scheme = url.rstrip("/"), scheme
        self._files: Any
        try:
            from fsspec.core import url_to_fs

            self._files, root = url_to_fs(self.url)
        except ImportError as error:
            raise EnvironmentFault(
                f"The package {SCHEMES[scheme] or 'fsspec'}, which reaches {self.url}, is not installed.", EXTRA_HINT
            ) from error
        except Exception as error:
            raise UsageError(
                f"The storage {self.url} cannot be used: {_why(error)}.",
                "Its credentials come from this machine's environment; docs/fleet.md names the variables.",
            ) from error
        self._root = str(root).rstrip("/")

    @property
    def is_folder(self) -> bool:
        """Whether it is a file system that all machines mount in the same place."""
        return self.scheme == "file"

    def folder(self, name: str) -> Storage:
        """A folder in this one."""
        return Storage(f"{self.url}/{name}")

    def address(self, name: str) -> str:
        """The URL of a file."""
        return f"{self.url}/{name}"

    def put(self, path: Path, name: str) -> None:
        """Store a file."""
        with self._asked(name):
            if self.is_folder:
                with self._placing(name) as new:
                    clone(path, new)
            else:
                self._files.put_file(os.fspath(path), self._at(name))

    def put_input(self, path: Path, sha256: str) -> None:
        """Store a file for workers, without its holes."""
        if self.is_folder:
            self.put(path, f"inputs/{sha256}")
            return
        with self._asked(f"inputs/{sha256}"), self._files.open(self._at(f"inputs/{sha256}"), "wb") as stream:
            write_packed(path, stream)

    def get_input(self, path: Path, sha256: str, size: int) -> None:
        """Fetch such a file into the new file `path`; VerificationError when it is not the one of that digest."""
        name = f"inputs/{sha256}"
        if self.is_folder:
            self.get(name, path, sha256)
            return
        with self._asked(name), self._files.open(self._at(name), "rb", **_SEQUENTIAL) as stream:
            read_packed(stream, path, size)
        self._check(name, path, file_sha256(path), sha256)

    def put_text(self, text: str, name: str) -> None:
        """Store a small text."""
        with self._asked(name):
            if self.is_folder:
                with self._placing(name) as new:
                    new.write_text(text, encoding="utf-8")
            else:
                self._files.pipe_file(self._at(name), text.encode())

    def get(self, name: str, path: Path, sha256: str) -> None:
        """Fetch a file into the new file `path`; VerificationError when it is not the one of that digest."""
        with self._asked(name):
            if self.is_folder:
                clone(Path(self._at(name)), path)
                found = file_sha256(path)
            else:
                found = self._download(name, path)
        self._check(name, path, found, sha256)

    def _check(self, name: str, path: Path, found: str, sha256: str) -> None:
        if found != sha256:
            path.unlink()
            raise VerificationError(
                f"{self.address(name)} is not what was stored: its sha256 is {found}, not {sha256}.",
                "Somebody or something changed it; find out who can write there.",
            )

    def _download(self, name: str, path: Path) -> str:
        digest = hashlib.sha256()
        with self._files.open(self._at(name), "rb", **_SEQUENTIAL) as source, path.open("xb") as file:
            writer = SparseWriter(file.fileno())
            while chunk := source.read(_CHUNK):
                digest.update(chunk)
                writer.write(chunk)
            writer.finish()
        return digest.hexdigest()

    def size(self, name: str) -> int | None:
        """The size of a file in bytes, None where there is none."""
        with self._asked(name):
            try:
                return int(self._files.info(self._at(name))["size"])
            except FileNotFoundError:
                return None

    def remove_except(self, kept: set[str]) -> None:
        """Remove all files but those, also what half an upload left; then the folders that are empty."""
        with self._asked(""):
            self._files.invalidate_cache()
            found = [str(path) for path in self._files.find(self._root)]
            for path in found:
                name = path.removeprefix(self._root).lstrip("/")
                if name and name not in kept:
                    self._files.rm_file(path)
            if self.scheme == "s3":
                self._abort_uploads()
            if self.is_folder:
                _remove_empty(Path(self._root))

    def _abort_uploads(self) -> None:
        """End the multipart uploads into this folder that nobody will complete; their parts cost money, unseen."""
        bucket, _, prefix = self._root.partition("/")
        try:
            uploads = self._files.list_multipart_uploads(bucket)
        except Exception:
            return  # not allowed, or not known to this server: what is unseen may stay unseen
        for upload in uploads:
            if upload["Key"].startswith(f"{prefix}/"):
                self._files.call_s3(
                    "abort_multipart_upload", Bucket=bucket, Key=upload["Key"], UploadId=upload["UploadId"]
                )

    def _at(self, name: str) -> str:
        return f"{self._root}/{name}"

    @contextmanager
    def _placing(self, name: str) -> Iterator[Path]:
        """A new file that gets its name when the block ends well."""
        target = Path(self._at(name))
        target.parent.mkdir(parents=True, exist_ok=True)
        new = target.with_name(f".{target.name}.{secrets.token_hex(8)}")
        try:
            yield new
            with new.open("rb") as file:
                os.fsync(file.fileno())
            new.replace(target)
        finally:
            new.unlink(missing_ok=True)

    @contextmanager
    def _asked(self, name: str) -> Iterator[None]:
        """Say what failed in our words. Drivers raise whatever their libraries do."""
        try:
            yield
        except BakeError:
            raise
        except ImportError as error:
            raise EnvironmentFault(f"{self.url} cannot be reached: {error}", EXTRA_HINT) from error
        except Exception as error:
            raise NetworkError(
                f"The storage did not do as asked with {self.address(name)}: {_why(error)}.",
                "Check that bucket or folder exist, and that this machine's environment has the rights.",
            ) from error


def _why(error: Exception) -> str:
    return " ".join(str(error).split()).rstrip(".!") or type(error).__name__


def _remove_empty(folder: Path) -> None:
    for path in sorted((path for path in folder.rglob("*") if path.is_dir()), reverse=True):
        if not any(path.iterdir()):
            path.rmdir()
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()
