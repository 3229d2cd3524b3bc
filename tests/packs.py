"""Folders to pack, and what an image must then hold, as the kernel sees it."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from baker.packing.options import FORMATS as FORMATS
from baker.run import run

NOBODY = 65534
AS_NOBODY = (
    "setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "--no-new-privs", "--inh-caps=-all",
    "--bounding-set=-all",
)  # fmt: skip

_ODD = (
    "-dash",
    "two words",
    "quo\"te'",
    "back\\slash",
    "tab\tand\x1b[31m",
    "ünï",
    os.fsdecode(b"\xff\xfe"),
    "x" * 254,
)
_ZEROS = 3 << 20


def write_folder(folder: Path, other: bool = False) -> Path:
    """A folder with all that can make images differ. With `other`, everything that must not matter is different."""
    files = {f"usr/share/odd/{name}": name.encode("utf-8", "surrogateescape") for name in _ODD}
    # A directory of several blocks, a file of several clusters that does not compress, an empty one, a twin.
    files |= {f"usr/share/many/{number:03}{'n' * 60}": b"%d" % number for number in range(300)}
    noise = b"".join(hashlib.sha256(b"%d" % number).digest() for number in range(20_000))
    files |= {"usr/lib64/noise": noise, "usr/share/empty": b"", "usr/share/twin-a": noise, "usr/share/twin-b": noise}
    files |= {"usr/bin/tool": b"#!/bin/sh\n", "opt/tool/data": b"data\n"}
    order = sorted(files, reverse=other)
    usual = os.umask(0o077 if other else 0o022)
    try:
        for path in order:
            target = folder / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(files[path])
        (folder / "usr/bin/tool").chmod(0o700 if other else 0o755)
        (folder / "usr/share/nothing").mkdir()
        for name, text in (("absolute", "/etc/passwd"), ("long", "../" * 60 + "etc"), ("dangling", "no\tsuch")):
            (folder / "usr/share" / name).symlink_to(text)
        zeros = folder / "usr/share/zeros"
        zeros.write_bytes(b"" if other else bytes(_ZEROS))
        os.truncate(zeros, _ZEROS)
    finally:
        os.umask(usual)
    if other:
        (folder / "usr/share/twin-b").unlink()
        (folder / "usr/share/twin-b").hardlink_to(folder / "usr/share/twin-a")
        os.setxattr(folder / "usr/share/empty", "user.note", b"not for the image")
        os.utime(folder / "usr/bin/tool", (1_900_000_000, 1_900_000_000))
    return folder


def snapshot(folder: Path) -> dict[str, tuple[object, ...]]:
    """Everything about a folder that packing must leave as it is; times of access aside."""
    found: dict[str, tuple[object, ...]] = {}
    for path in [folder, *sorted(folder.rglob("*"))]:
        status = path.lstat()
        content = hashlib.sha256(path.read_bytes()).digest() if stat.S_ISREG(status.st_mode) else b""
        found[str(path.relative_to(folder))] = (
            status.st_mode, status.st_uid, status.st_nlink, status.st_mtime_ns, status.st_ctime_ns, content,
            tuple(os.listxattr(path, follow_symlinks=False)),
        )  # fmt: skip
    return found


def mounted_tree(image: Path, folder: Path) -> dict[str, tuple[object, ...]]:
    """What the kernel finds in an image: path → type and mode, owner, group, time, and content or link."""
    with _mounted(image, folder):
        found: dict[str, tuple[object, ...]] = {}
        for path in [folder, *folder.rglob("*")]:
            status = path.lstat()
            content: object = ""
            if path.is_symlink():
                content = os.readlink(path)
            elif stat.S_ISREG(status.st_mode):
                content = hashlib.sha256(path.read_bytes()).digest()
            name = str(path.relative_to(folder))
            if name != "lost+found":
                found[name] = (status.st_mode, status.st_uid, status.st_gid, int(status.st_mtime), content)
    return found


@contextmanager
def _mounted(image: Path, folder: Path) -> Iterator[None]:
    folder.mkdir()
    run(["mount", "-o", "loop,ro", image, folder])
    try:
        yield
    finally:
        run(["umount", folder])


def expected_tree(folder: Path, epoch: int, added: dict[str, bytes]) -> dict[str, tuple[object, ...]]:
    """What `mounted_tree` must find for a folder that was packed with files `added`."""
    found: dict[str, tuple[object, ...]] = {}
    for path in [folder, *folder.rglob("*")]:
        status = path.lstat()
        kind, mode, content = stat.S_IFREG, 0o755 if status.st_mode & 0o100 else 0o644, b""
        name = str(path.relative_to(folder))
        if path.is_symlink():
            found[name] = (stat.S_IFLNK | 0o777, 0, 0, epoch, os.readlink(path))
            continue
        if path.is_dir():
            found[name] = (stat.S_IFDIR | 0o755, 0, 0, epoch, "")
            continue
        content = path.read_bytes()
        found[name] = (kind | mode, 0, 0, epoch, hashlib.sha256(content).digest())
    for name, content in added.items():
        found[name] = (stat.S_IFREG | 0o644, 0, 0, epoch, hashlib.sha256(content).digest())
        for parent in list(Path(name).parents)[:-1]:
            found[str(parent)] = (stat.S_IFDIR | 0o755, 0, 0, epoch, "")
    return found
