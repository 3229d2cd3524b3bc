"""What people write for an image: a name in a registry, or a layout or archive on this machine."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from baker.errors import UsageError
from baker.model import Arch

DEFAULT_REGISTRY = "docker.io"
TRANSPORTS = ("oci", "oci-archive", "docker-archive")

_COMPONENT = r"[a-z0-9]+(?:(?:\.|_{1,2}|-+)[a-z0-9]+)*"  # OCI distribution-spec, pulling manifests
_REGISTRY = r"(?:[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?|\[[0-9a-fA-F:]+\])(?::[0-9]{1,5})?"
_NAME = re.compile(
    rf"(?P<path>{_COMPONENT}(?:/{_COMPONENT})*)"
    r"(?::(?P<tag>[A-Za-z0-9_][A-Za-z0-9._-]{0,127}))?(?:@(?P<digest>sha256:[0-9a-f]{64}))?"
)
_PLATFORMS = {Arch.X86_64: "amd64", Arch.ARM64: "arm64"}


@dataclass(frozen=True)
class ImageName:
    """An image in a registry, or in the storage of an engine."""

    registry: str
    path: str
    tag: str
    digest: str

    def __str__(self) -> str:
        tag = f":{self.tag}" if self.tag else ""
        return f"{self.registry}/{self.path}{tag}" + (f"@{self.digest}" if self.digest else "")

    @property
    def pullable(self) -> str:
        """What engines accept: some refuse a tag beside a digest, which says it all."""
        tag = f":{self.tag}" if self.tag and not self.digest else ""
        return f"{self.registry}/{self.path}{tag}" + (f"@{self.digest}" if self.digest else "")

    @property
    def is_local(self) -> bool:
        """Whether only the storage of an engine can have it, as podman's own images are called."""
        return self.registry == "localhost"


@dataclass(frozen=True)
class ImageFile:
    """An image on this machine: an OCI layout in a folder or a tar, or what `docker save` writes."""

    path: Path
    ref: str
    """Which image of several, "" for the only one."""
    transport: str
    """One of TRANSPORTS, "" to find out."""

    def __str__(self) -> str:
        return f"{self.path}:{self.ref}" if self.ref else str(self.path)


def parse_image(word: str, registry: str = "") -> ImageName | ImageFile:
    """Read IMAGE: `alpine:3.20`, `ghcr.io/owner/name@sha256:…`, `./image.tar`, `oci:FOLDER:TAG` and the like.

    `registry` is for names that mention none. UsageError for what is neither, or does not exist.
    """
    transport, colon, rest = word.partition(":")
    if colon and transport in TRANSPORTS:
        return _file(rest, transport)
    if word.startswith(("/", "./", "../")) or word in (".", "..") or _looks_like_file(Path(word)):
        return _file(word, "")
    name = word.removeprefix("docker://")
    first, slash, below = name.partition("/")
    own = first if slash and ("." in first or ":" in first or first == "localhost") else ""
    found = _NAME.fullmatch(below if own else name)
    if not found or (own and not re.fullmatch(_REGISTRY, own)):
        raise UsageError(
            f"{word!r} is no name of an image.",
            "Write alpine:3.20, ghcr.io/owner/name:tag, name@sha256:…, or the path of a layout or archive.",
        )
    path, tag, digest = (found[group] or "" for group in ("path", "tag", "digest"))
    own = own or _checked_registry(registry) or DEFAULT_REGISTRY
    if own in (DEFAULT_REGISTRY, "index.docker.io") and "/" not in path:
        path = f"library/{path}"
    return ImageName(own, path, tag or ("" if digest else "latest"), digest)


def image_arch(word: str) -> Arch:
    """An architecture by the names that people use for it, those of Docker's repositories too. UsageError."""
    from baker.packing.options import arch_from_word

    found = arch_from_word({"arm64v8": "arm64", "arm64/v8": "arm64"}.get(word, word) or "x86-64")
    assert found is not None
    return found


def oci_arch(arch: Arch) -> str:
    """The image-spec's word, which is Go's."""
    return _PLATFORMS[arch]


def _looks_like_file(path: Path) -> bool:
    return (path / "oci-layout").is_file() or (path.is_file() and ".tar" in path.name)


def _file(words: str, transport: str) -> ImageFile:
    # The name behind the path has colons of its own, and so may the path.
    pieces = words.split(":")
    for count in range(len(pieces), 0, -1):
        path = Path(":".join(pieces[:count]))
        if words and path.exists():
            return ImageFile(path, ":".join(pieces[count:]), transport)
    raise UsageError(f"There is no image {words}.", "Give a folder with an oci-layout in it, or an archive.")


def _checked_registry(word: str) -> str:
    word = word.strip().rstrip("/")
    # A path below the registry is fine: some mirrors have all images in one.
    if word and not re.fullmatch(rf"{_REGISTRY}(?:/{_COMPONENT})*", word):
        raise UsageError(f"{word!r} is no registry.", "Write a host such as ghcr.io, with a port where it has one.")
    return word
