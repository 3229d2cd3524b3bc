"""Checking the files of a finished bake against what it wrote down about them.

It tells damage and mix-ups. It is no proof of origin: whoever can replace a file can replace the manifest too, unless
its own digest is kept elsewhere, or signed.
"""

from __future__ import annotations

import json
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from baker.errors import UsageError, VerificationError
from baker.manifest import SUMS_NAME
from baker.printable import printable
from baker.sparse import file_sha256
from baker.verify import parse_sha256sums

_LIMIT = 16 << 20
_DIGITS = frozenset("0123456789abcdef")


@dataclass(frozen=True)
class Rechecked:
    """One file of a bake; `problem` is "" for one that is as it was written."""

    file: str
    sha256: str
    problem: str


def recheck(manifest: Path) -> list[Rechecked]:
    """Compare every output with the manifest, and all of them and the manifest itself with SHA256SUMS beside it.

    Raises UsageError where there is no such file, VerificationError for one that no bake can have written.
    """
    outputs = _outputs(manifest)
    found = [_check(manifest.parent, name, size, sha256) for name, (size, sha256) in outputs.items()]
    return [*found, *_check_sums(manifest, {name: sha256 for name, (_, sha256) in outputs.items()})]


def _outputs(manifest: Path) -> dict[str, tuple[int, str]]:
    """Size and sha256 of every output by its name; nothing in the manifest is trusted."""
    try:
        with manifest.open("rb") as file:
            data = file.read(_LIMIT + 1)
    except OSError as error:
        raise UsageError(f"Cannot read the manifest {manifest}: {error.strerror}.") from error
    try:
        found: Any = json.loads(data) if len(data) <= _LIMIT else None
        items = found["outputs"]
        outputs = {str(item["file"]): (int(item["size"]), str(item["sha256"])) for item in items}
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise _forged(manifest, "it is not the JSON that a bake writes") from error
    for name, (_, sha256) in outputs.items():
        if not _is_plain(name) or name in (SUMS_NAME, manifest.name):
            raise _forged(manifest, f"{printable(name)!r} is no output beside it")
        if len(sha256) != 64 or not set(sha256) <= _DIGITS:
            raise _forged(manifest, f"{printable(name)} has no proper sha256")
    if len(outputs) != len(items) or not outputs:
        raise _forged(manifest, "it lists no outputs, or one of them twice")
    return outputs


def _is_plain(name: str) -> bool:
    """Whether this is the name of a file in the same folder, whatever a path would make of it."""
    return bool(name) and name not in (".", "..") and "/" not in name and name.isprintable()


def _check(folder: Path, name: str, size: int, sha256: str) -> Rechecked:
    path = folder / name
    try:
        status = path.lstat()
    except FileNotFoundError:
        return Rechecked(name, sha256, "missing")
    if not stat.S_ISREG(status.st_mode):
        return Rechecked(name, sha256, "not a regular file")
    if status.st_size != size:
        return Rechecked(name, sha256, f"has {status.st_size} bytes instead of {size}")
    found = file_sha256(path)
    return Rechecked(name, sha256, "" if found == sha256 else f"has the sha256 {found} instead of {sha256}")


def _check_sums(manifest: Path, outputs: dict[str, str]) -> list[Rechecked]:
    """The manifest as SHA256SUMS has it, and SHA256SUMS itself as the manifest has it."""
    path = manifest.with_name(SUMS_NAME)
    if not path.is_file() or path.is_symlink():
        return [Rechecked(SUMS_NAME, "", "missing")]
    with path.open("rb") as file:
        sums = parse_sha256sums(file.read(_LIMIT))
    expected = sums.pop(manifest.name, None)
    problem = "" if sums == outputs else "does not list the same files and digests as the manifest"
    own = Rechecked(SUMS_NAME, "", problem)
    if expected is None:
        return [Rechecked(manifest.name, "", f"is not listed in {SUMS_NAME}"), own]
    return [_check(manifest.parent, manifest.name, manifest.stat().st_size, expected), own]


def _forged(manifest: Path, reason: str) -> VerificationError:
    return VerificationError(f"{manifest} is not the manifest of a bake: {reason}.", "Bake again.")
