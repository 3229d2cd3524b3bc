"""Bundles: a disk and the texts about it in one file, as a platform imports it."""

from __future__ import annotations

import hashlib
import tarfile
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from baker.bundles.deflate import write_gzip
from baker.bundles.facts import BundleFacts
from baker.bundles.pieces import Member, counted
from baker.bundles.proof import prove_sparse_tar, prove_tar
from baker.bundles.tars import USTAR_LARGEST, sparse_tar_pieces, tar_pieces
from baker.bundles.zips import make_zip
from baker.console import Bar
from baker.errors import ImageError, UsageError
from baker.vendor import Bundle

__all__ = ["BundleFacts", "make_bundle"]

_GCE_DISK = "disk.raw"
_BOX_METADATA = "metadata.json"


def make_bundle(bundle: Bundle, facts: BundleFacts, folder: Path, jobs: int = 1, bar: Bar | None = None) -> Path:
    """Write the new file `folder/bundle.name` from the disk and the bundle's members, read it back, and return it.

    Equal facts give equal bytes, whatever `jobs` is. `bar` counts bytes before compression. The disk is left alone.
    Raises UsageError for a bundle that its vendor describes wrongly, ImageError for a disk that the format cannot
    hold (before anything is written) and for a result that cannot be read back.
    """
    target, bar = folder / bundle.name, bar or Bar()
    if bundle.format == "gce":
        return _gce(bundle, facts, target, jobs, bar)
    members = [Member(extra.name, facts.text(extra).encode(), extra.mode) for extra in bundle.members]
    disk = Member(facts.vendor.image, facts.disk)
    if bundle.format == "ova":
        return _ova(bundle, members, disk, target, facts.epoch, bar)
    if bundle.format == "box":
        members = [_only(bundle, members, _BOX_METADATA), *(item for item in members if item.name != _BOX_METADATA)]
    members.append(disk)
    if bundle.format == "zip":
        make_zip(target, members, jobs, facts.epoch, bar)
    else:
        with target.open("xb") as file:
            write_gzip(file, counted(tar_pieces(members, facts.epoch), bar), jobs)
        prove_tar(target, members)
    return target


def _only(bundle: Bundle, members: Sequence[Member], pattern: str) -> Member:
    """The one member whose name matches."""
    found = [item for item in members if PurePosixPath(item.name).match(pattern)]
    if len(found) != 1:
        raise UsageError(
            f"A bundle of the format {bundle.format} needs one member {pattern}, but {bundle.name} has {len(found)}.",
            "See the [[bundle.member]] tables of the vendor.",
        )
    return found[0]


def _ova(bundle: Bundle, members: Sequence[Member], disk: Member, target: Path, epoch: int, bar: Bar) -> Path:
    """An OVA as DSP0243 has it: a ustar with the descriptor, then its manifest, then the files it refers to."""
    descriptor = _only(bundle, members, "*.ovf")
    files = [*(item for item in members if item is not descriptor), disk]
    for item in files:
        if item.size > USTAR_LARGEST:
            raise ImageError(
                f"{item.name} has {item.size} bytes, and no file in an OVA may have more than {USTAR_LARGEST}.",
                "That is the limit of the tar format that OVAs are made of. Bake fewer or smaller extensions, or "
                "choose the vendor vmware, which has no such limit.",
            )
    manifest = Member(
        str(PurePosixPath(descriptor.name).with_suffix(".mf")),
        "".join(f"SHA1({item.name})= {_sha1(item)}\n" for item in (descriptor, *files)).encode(),
    )
    packed = [descriptor, manifest, *files]
    with target.open("xb") as file:
        for piece in counted(tar_pieces(packed, epoch, tarfile.USTAR_FORMAT), bar):
            file.write(piece)
    prove_tar(target, packed)
    return target


def _sha1(member: Member) -> str:
    """The digest that OVF 1.x has for manifests and every importer reads. It finds broken copies; what protects from
    forgers is the sha256 in bake-manifest.json."""
    digest = hashlib.sha1(usedforsecurity=False)
    for piece in member.pieces():
        digest.update(piece)
    return digest.hexdigest()


def _gce(bundle: Bundle, facts: BundleFacts, target: Path, jobs: int, bar: Bar) -> Path:
    """What Compute Engine imports: a gzipped tar in GNU's old format with nothing but disk.raw, its holes left out."""
    if (facts.vendor.image, facts.vendor.disk.format, bundle.members) != (_GCE_DISK, "raw", ()):
        raise UsageError(f"{bundle.name} must hold a raw disk called {_GCE_DISK} and nothing else.")
    with target.open("xb") as file:
        write_gzip(file, counted(sparse_tar_pieces(_GCE_DISK, facts.disk, facts.epoch), bar), jobs)
    prove_sparse_tar(target, _GCE_DISK, facts.disk)
    return target
