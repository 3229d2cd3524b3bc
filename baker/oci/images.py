"""Images on disk: OCI layouts, and what `docker save` writes. Every blob is checked against its digest.

Formats: OCI image-spec (image-layout.md, image-index.md, manifest.md, config.md), and Docker's image specification
v1.2 (manifest.json of `docker save`). Nothing in an image names a file outside its folder: what leads out is refused.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from baker import stopping
from baker.errors import ImageError, UsageError, VerificationError
from baker.model import Arch
from baker.oci.reference import ImageFile, oci_arch
from baker.recipe.archives import extract

_LARGEST_JSON = 4 << 20  # what registries accept for a manifest
_MOST_LAYERS = 1000
_DEEPEST_INDEX = 3
_REF_NAME = "org.opencontainers.image.ref.name"
_INDEXES = ("application/vnd.oci.image.index.v1+json", "application/vnd.docker.distribution.manifest.list.v2+json")
_LAYER = re.compile(
    r"application/vnd\.(oci\.image\.layer(\.nondistributable)?\.v1\.tar|docker\.image\.rootfs(\.foreign)?\.diff\.tar)"
    r"([.+](gzip|zstd))?"
)
_DIGEST = re.compile(r"(sha256):([0-9a-f]{64})|(sha512):([0-9a-f]{128})")
_HINT = "The image is damaged or incomplete; nothing of it is used."


@dataclass(frozen=True)
class Layer:
    """One layer: its file, and what its bytes must hash to, as they are ("" for no word) and without compression."""

    path: Path
    digest: str
    diff_id: str


@dataclass(frozen=True)
class Image:
    """An image that is complete on disk."""

    root: Path
    """The folder that no file of it lies outside of."""
    digest: str
    """Of the manifest, "" where there is none."""
    config_digest: str
    layers: tuple[Layer, ...]

    @property
    def size(self) -> int:
        """Bytes of all layers as they are."""
        return sum(layer.path.stat().st_size for layer in self.layers)


def open_file(file: ImageFile, arch: Arch, work: Path) -> Image:
    """The image in a layout or archive; archives are unpacked into the folder `work`.

    Raises UsageError when the file holds no such image or one for another architecture only, ImageError for what is
    damaged or no image, and VerificationError when a digest is not what it must be.
    """
    folder = file.path
    if not folder.is_dir():
        if file.transport == "oci":
            raise UsageError(f"{folder} is no folder.", f"For an archive, write oci-archive:{folder}")
        folder = work / "archive"
        extract(file.path, "tar", folder, name=file.path.name)
    has_index, has_list = (folder / "index.json").is_file(), (folder / "manifest.json").is_file()
    if has_index and file.transport != "docker-archive":
        return _from_layout(folder, file, arch)
    if has_list and file.transport in ("", "docker-archive"):
        return _from_saved(folder, file, arch)
    raise ImageError(
        f"{file.path} is no image: it has neither an index.json nor a manifest.json.",
        "Make one by `skopeo copy`, `podman save` or `docker save`; a plain root filesystem needs no unpacking by us.",
    )


def _from_layout(root: Path, file: ImageFile, arch: Arch) -> Image:
    index = _object(_parse(_read(root, "index.json"), "index.json"), "index.json")
    rows = _rows(index, "manifests", "index.json")
    if file.ref:
        chosen = [row for row in rows if _is_called(row, file.ref)]
        if not chosen:
            raise UsageError(f"{file.path} has no image {file.ref!r}.", _has(map(_ref_name, rows)))
        rows = chosen
    digest, manifest = _choose(root, rows, file, arch, 0)
    layers = _rows(manifest, "layers", digest)
    config_row = _object(manifest.get("config"), f"the config of {digest}")
    config_digest = _digest_of(config_row, digest)
    config = _config(_blob(root, config_digest), config_digest, file, arch)
    diff_ids = _diff_ids(config, len(layers), config_digest)
    found = []
    for row, diff_id in zip(layers, diff_ids, strict=True):
        kind = str(row.get("mediaType"))
        if not _LAYER.fullmatch(kind):
            raise ImageError(f"{file.path}: a layer is of the kind {kind!r}, which is no plain root filesystem.")
        blob = _digest_of(row, digest)
        found.append(Layer(_inside(root, _blob_path(blob)), blob, diff_id))
    return Image(root, digest, config_digest, tuple(found))


def _choose(
    root: Path, rows: list[dict[str, Any]], file: ImageFile, arch: Arch, depth: int
) -> tuple[str, dict[str, Any]]:
    """(digest, content) of the one manifest for an architecture, by way of indexes in the index."""
    if depth > _DEEPEST_INDEX:
        raise ImageError(f"{file.path} has indexes within indexes without end.", _HINT)
    fitting = [row for row in rows if _platform(row) in ("", oci_arch(arch))]
    if not fitting and rows:
        raise UsageError(f"{file.path} has no image for {arch}.", _has(map(_platform, rows)))
    # What tells its platform is better than what does not; then several must be told apart by name.
    exact = [row for row in fitting if _platform(row)] or fitting
    if len({_digest_of(row, "index.json") for row in exact}) != 1:
        known = list(filter(None, map(_ref_name, rows)))
        raise UsageError(
            f"{file.path} holds {len(exact)} images.",
            f"Say which: {file.path}:{known[0]}. {_has(known)}" if known else "Give one that holds a single image.",
        )
    digest = _digest_of(exact[0], "index.json")
    document = _object(_parse(_blob(root, digest), digest), digest)
    if exact[0].get("mediaType") in _INDEXES or document.get("mediaType") in _INDEXES or "manifests" in document:
        return _choose(root, _rows(document, "manifests", digest), file, arch, depth + 1)
    return digest, document


def _from_saved(root: Path, file: ImageFile, arch: Arch) -> Image:
    """What `docker save` wrote before it wrote layouts: manifest.json lists configs and layers by file name."""
    listed = _parse(_read(root, "manifest.json"), "manifest.json")
    rows = [_object(row, "manifest.json") for row in listed] if isinstance(listed, list) else []
    tags = [[str(tag) for tag in row.get("RepoTags") or []] for row in rows]
    if file.ref:
        rows = [row for row, own in zip(rows, tags, strict=True) if any(_same(tag, file.ref) for tag in own)]
    if len(rows) != 1:
        every = [tag for own in tags for tag in own]
        what = f"has no image {file.ref!r}" if file.ref and not rows else f"holds {len(rows)} images"
        raise UsageError(f"{file.path} {what}.", _has(every))
    config_name = str(rows[0].get("Config"))
    data = _read(root, config_name)
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    named = re.search("[0-9a-f]{64}", config_name)
    if named and digest != f"sha256:{named[0]}":
        raise VerificationError(f"{file.path}: the config {config_name} is not what its name says.", _HINT)
    names = rows[0].get("Layers")
    if not isinstance(names, list) or len(names) > _MOST_LAYERS:
        raise ImageError(f"{file.path}: manifest.json lists no layers.", _HINT)
    diff_ids = _diff_ids(_config(data, config_name, file, arch), len(names), config_name)
    layers = (Layer(_inside(root, str(name)), "", diff_id) for name, diff_id in zip(names, diff_ids, strict=True))
    return Image(root, "", digest, tuple(layers))


def _config(data: bytes, name: str, file: ImageFile, arch: Arch) -> dict[str, Any]:
    config = _object(_parse(data, name), name)
    if "rootfs" not in config:
        raise ImageError(f"{file.path} is no image of a root filesystem: its config says nothing of one.")
    system, machine = str(config.get("os", "linux")), str(config.get("architecture", ""))
    if system != "linux" or machine != oci_arch(arch):
        raise UsageError(f"{file.path} is for {system}/{machine}, not for {arch}.", "Use another --arch or image.")
    return config


def _diff_ids(config: dict[str, Any], count: int, name: str) -> list[str]:
    found = _object(config.get("rootfs"), name).get("diff_ids") or []
    if not isinstance(found, list) or len(found) != count:
        raise ImageError(f"{name} does not tell the digest of each of the {count} layers.", _HINT)
    return [_checked_digest(digest, name) for digest in found]


def open_layer(root: Path, layer: Layer, name: str) -> BinaryIO:
    """The file of a layer at its start, checked against its digest. VerificationError."""
    file = _open(root, layer.path)
    if layer.digest:
        algorithm, _, wanted = layer.digest.partition(":")
        digest = hashlib.new(algorithm)
        while chunk := file.read(1 << 20):
            stopping.check()
            digest.update(chunk)
        if digest.hexdigest() != wanted:
            file.close()
            raise VerificationError(f"{name} is not what its digest says.", _HINT)
        file.seek(0)
    return file


def _blob_path(digest: str) -> str:
    return f"blobs/{digest.replace(':', '/')}"


def _blob(root: Path, digest: str) -> bytes:
    data = _read(root, _blob_path(digest))
    algorithm, _, wanted = digest.partition(":")
    if hashlib.new(algorithm, data).hexdigest() != wanted:
        raise VerificationError(f"The blob {digest} is not what its digest says.", _HINT)
    return data


def _read(root: Path, name: str) -> bytes:
    with _open(root, _inside(root, name)) as file:
        data = file.read(_LARGEST_JSON + 1)
    if len(data) > _LARGEST_JSON:
        raise ImageError(f"{name} has more than {_LARGEST_JSON} bytes, far too many.", _HINT)
    return data


def _inside(root: Path, name: str) -> Path:
    """A file that an image names; ImageError when it is missing, or a link out of the image's folder."""
    try:
        path = (root / name).resolve(strict=True)
    except (OSError, ValueError, RuntimeError):
        raise ImageError(f"The image lacks {name[:200]!r}.", _HINT) from None
    if not path.is_relative_to(root.resolve()):
        raise ImageError(f"The image names {name[:200]!r}, which lies outside of it.", _HINT)
    return path


def _open(root: Path, path: Path) -> BinaryIO:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise ImageError(
            f"{path.relative_to(root.resolve())} of the image cannot be read: {error.strerror}."
        ) from error
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise ImageError(f"{path.relative_to(root.resolve())} of the image is no file.", _HINT)
    return os.fdopen(fd, "rb")


def _parse(data: bytes, name: str) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        raise ImageError(f"{name} of the image is no valid JSON.", _HINT) from None


def _object(value: Any, name: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ImageError(f"{name} of the image is not what it should be.", _HINT)
    return value


def _rows(document: dict[str, Any], key: str, name: str) -> list[dict[str, Any]]:
    rows = document.get(key)
    if not isinstance(rows, list) or not rows or len(rows) > _MOST_LAYERS:
        raise ImageError(f"{name} of the image lists no {key}, or too many.", _HINT)
    return [_object(row, name) for row in rows]


def _digest_of(row: dict[str, Any], name: str) -> str:
    return _checked_digest(row.get("digest"), name)


def _checked_digest(word: Any, name: str) -> str:
    if not isinstance(word, str) or not _DIGEST.fullmatch(word):
        raise ImageError(f"{name} of the image has the digest {str(word)[:80]!r}, which is none.", _HINT)
    return word


def _platform(row: dict[str, Any]) -> str:
    platform = row.get("platform")
    return str(platform.get("architecture") or "") if isinstance(platform, dict) else ""


def _ref_name(row: dict[str, Any]) -> str:
    notes = row.get("annotations")
    return str(notes.get(_REF_NAME) or "") if isinstance(notes, dict) else ""


def _is_called(row: dict[str, Any], ref: str) -> bool:
    return row.get("digest") == ref or _same(_ref_name(row), ref)


def _same(name: str, ref: str) -> bool:
    """Whether a whole name, `docker.io/library/alpine:3.20`, is meant by its end."""
    return name == ref or name.endswith((f"/{ref}", f":{ref}"))


def _has(words: Any) -> str:
    known = sorted({str(word) for word in words if word})
    return f"It has {', '.join(known[:10])}." if known else "It does not say what it has."
