"""Container images made by hand or by umoci, and what a root filesystem holds, down to owners and hard links."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import stat
import subprocess
import tarfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

Entry = tuple[str, dict[str, Any], bytes]

CAPABILITY = bytes.fromhex("0100000200200000000000000000000000000000")
"""security.capability of a program with cap_net_raw=ep (linux/capability.h, VFS_CAP_REVISION_2)."""


def entry(name: str, data: bytes = b"", **fields: Any) -> Entry:
    return name, fields, data


def folder(name: str, mode: int = 0o755, **fields: Any) -> Entry:
    return entry(name, type=tarfile.DIRTYPE, mode=mode, **fields)


def link(name: str, target: str) -> Entry:
    return entry(name, type=tarfile.SYMTYPE, linkname=target, mode=0o777)


def hard(name: str, target: str) -> Entry:
    return entry(name, type=tarfile.LNKTYPE, linkname=target)


def layer(*entries: Entry, form: int = tarfile.PAX_FORMAT) -> bytes:
    """A layer's tar with exactly these entries, however odd."""
    with io.BytesIO() as buffer:
        with tarfile.open(fileobj=buffer, mode="w", format=form) as archive:
            for name, fields, data in entries:
                info = tarfile.TarInfo(name)
                info.size, info.mtime = len(data), 1_600_000_000
                for field, value in fields.items():
                    setattr(info, field, value)
                archive.addfile(info, io.BytesIO(data))
        return buffer.getvalue()


def zstd(data: bytes) -> bytes:
    return subprocess.run(["zstd", "-q", "-c"], input=data, check=True, capture_output=True).stdout


PACKERS = {"tar": bytes, "tar+gzip": lambda data: gzip.compress(data, mtime=0), "tar+zstd": zstd}


def put_blob(root: Path, data: bytes) -> dict[str, Any]:
    """Store a blob of a layout; returns a descriptor without its media type."""
    digest = hashlib.sha256(data).hexdigest()
    blobs = root / "blobs/sha256"
    blobs.mkdir(parents=True, exist_ok=True)
    (blobs / digest).write_bytes(data)
    return {"digest": f"sha256:{digest}", "size": len(data)}


def add_image(
    root: Path, layers: Iterable[bytes], *, arch: str = "amd64", packing: str = "tar+gzip", **config: Any
) -> dict[str, Any]:
    """Store an image in a layout; returns the descriptor of its manifest."""
    plain = list(layers)
    rows = [
        put_blob(root, PACKERS[packing](data)) | {"mediaType": f"application/vnd.oci.image.layer.v1.{packing}"}
        for data in plain
    ]
    diff_ids = [f"sha256:{hashlib.sha256(data).hexdigest()}" for data in plain]
    said = {"architecture": arch, "os": "linux", "rootfs": {"type": "layers", "diff_ids": diff_ids}} | config
    manifest = {
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json", "layers": rows,
        "config": put_blob(root, json.dumps(said).encode())
        | {"mediaType": "application/vnd.oci.image.config.v1+json"},
    }  # fmt: skip
    return put_blob(root, json.dumps(manifest).encode()) | {"mediaType": manifest["mediaType"]}


def add_index(root: Path, *rows: dict[str, Any]) -> dict[str, Any]:
    """Store an index of images for several platforms in a layout; returns its descriptor."""
    kind = "application/vnd.oci.image.index.v1+json"
    index = {"schemaVersion": 2, "mediaType": kind, "manifests": rows}
    return put_blob(root, json.dumps(index).encode()) | {"mediaType": kind}


def write_index(root: Path, *rows: dict[str, Any]) -> Path:
    """Make a folder a layout with these manifests."""
    (root / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    (root / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": rows}))
    return root


def write_layout(root: Path, *layers: Sequence[Entry], packing: str = "tar+gzip") -> Path:
    """A layout with one image of layers with these entries."""
    row = add_image(root, [layer(*entries) for entries in layers], packing=packing)
    return write_index(root, row | {"annotations": {"org.opencontainers.image.ref.name": "1"}})


def rootfs(root: Path) -> dict[str, tuple[object, ...]]:
    """Everything about a root filesystem: path → mode with type, owner, time, device, content or link, attributes.

    The names of one file have its first name in common.
    """
    found: dict[str, tuple[object, ...]] = {}
    names: dict[int, str] = {}
    for path in sorted(root.rglob("*")):
        status, name = path.lstat(), str(path.relative_to(root))
        content: object = ""
        if path.is_symlink():
            content = os.readlink(path)
        elif stat.S_ISREG(status.st_mode):
            content = hashlib.sha256(path.read_bytes()).hexdigest()
        first = name if stat.S_ISDIR(status.st_mode) else names.setdefault(status.st_ino, name)
        attributes = tuple(
            (key, os.getxattr(path, key, follow_symlinks=False)) for key in os.listxattr(path, follow_symlinks=False)
        )
        device = status.st_rdev if stat.S_IFMT(status.st_mode) in (stat.S_IFCHR, stat.S_IFBLK) else 0
        found[name] = (
            oct(status.st_mode), status.st_uid, status.st_gid, int(status.st_mtime), device, content, attributes,
            first,
        )  # fmt: skip
    return found


def by_umoci(layout: Path, tag: str, target: Path) -> dict[str, tuple[object, ...]]:
    """What umoci, an implementation of its own, makes of an image; it must run as root."""
    subprocess.run(["umoci", "unpack", "--image", f"{layout}:{tag}", target], check=True, capture_output=True)
    return rootfs(target / "rootfs")


def make_rich_image(work: Path) -> Path:
    """A layout made by umoci out of real trees: two layers, tagged `lower` and `upper`, with all that layers can hold.

    The upper one deletes, replaces and changes what is in the lower one.
    """
    layout, bundle = work / "layout", work / "bundle"
    umoci = ["umoci", "--log=error"]
    for words in (
        ["init", "--layout", layout], ["new", "--image", f"{layout}:lower"],
        ["unpack", "--image", f"{layout}:lower", bundle],
    ):  # fmt: skip
        subprocess.run([*umoci, *words], check=True)
    root = bundle / "rootfs"
    _lower(root)
    subprocess.run([*umoci, "repack", "--refresh-bundle", "--image", f"{layout}:lower", bundle], check=True)
    _upper(root)
    subprocess.run([*umoci, "repack", "--image", f"{layout}:upper", bundle], check=True)
    return layout


def _lower(root: Path) -> None:
    for name in ("usr/bin", "usr/lib", "etc", "var/log/app", "dev", "gone/deep", "home/user", "swap", "closed"):
        (root / name).mkdir(parents=True)
    files = {
        "usr/bin/su": b"set-uid", "usr/bin/ping": b"capable", "etc/shadow": b"secret", "etc/old": b"old",
        "var/log/app/log": b"x" * 100_000, "gone/deep/file": b"", "gone/file": b"gone", "swap/file": b"below",
        "usr/lib/lib.so.1": b"library", "etc/ünï\udcff": b"odd name", "home/user/mine": b"mine",
    }  # fmt: skip
    for name, data in files.items():
        (root / name).write_bytes(data)
    for name, target in {
        "bin": "usr/bin", "lib": "/usr/lib", "etc/mtab": "/proc/self/mounts", "usr/lib/lib.so": "lib.so.1",
        "etc/away": "../../../../../etc/passwd", "gone/link": "file",
    }.items():  # fmt: skip
        (root / name).symlink_to(target)
    (root / "usr/bin/twin").hardlink_to(root / "usr/bin/su")
    for path in (root / "home/user", root / "home/user/mine"):
        os.chown(path, 1000, 100)
    os.chown(root / "etc/mtab", 7, 8, follow_symlinks=False)
    os.chown(root / "etc/shadow", 0, 42)
    os.mkfifo(root / "dev/initctl", 0o640)
    os.mknod(root / "dev/null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.mknod(root / "dev/loop", stat.S_IFBLK | 0o660, os.makedev(7, 200))
    for name, mode in {
        "usr/bin/su": 0o4755, "usr/bin/ping": 0o755, "etc/shadow": 0o640, "closed": 0o1750, "dev/null": 0o666,
        "home/user/mine": 0, "var/log/app": 0o2775,
    }.items():  # fmt: skip
        (root / name).chmod(mode)
    os.setxattr(root / "usr/bin/ping", "security.capability", CAPABILITY)


def _upper(root: Path) -> None:
    (root / "etc/old").unlink()
    subprocess.run(["rm", "-r", root / "gone"], check=True)
    (root / "swap/file").unlink()
    (root / "swap").rmdir()
    (root / "swap").symlink_to("etc")
    (root / "lib").unlink()
    (root / "lib").mkdir()
    (root / "lib/new").write_bytes(b"a folder in place of a link")
    (root / "usr/lib/lib.so.1").unlink()
    (root / "usr/lib/lib.so.1").mkdir()
    (root / "etc/shadow").chmod(0o600)
    (root / "usr/bin/third").hardlink_to(root / "usr/bin/su")
    (root / "home/user/mine").write_bytes(b"changed")
    (root / "dev/loop").unlink()
    (root / "dev/loop").write_bytes(b"a file in place of a device")
