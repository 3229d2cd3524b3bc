"""One run of a mirror: fetch what is new, index it, then remove what is too old."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from shutil import rmtree

from baker.mirroring.extensions import Choice, mirror_extension, old_images, write_extensions_index
from baker.mirroring.folder import EXTENSIONS, MirrorFolder
from baker.mirroring.releases import mirror_key, mirror_release, mirrored_releases, old_releases, write_feed
from baker.model import Arch
from baker.services import Services
from baker.sign import Signer


@dataclass(frozen=True)
class MirrorRequest:
    """What to mirror. `keep_releases` and `keep_sysexts`: how many versions of each stay; 0 for all."""

    releases: Sequence[str] = ()
    arches: Sequence[Arch] = (Arch.X86_64,)
    vendors: tuple[str, ...] = ("generic",)
    base: str = "auto"
    files: Sequence[str] = ()
    extensions: Sequence[Choice] = ()
    url: str = ""
    keep_releases: int = 0
    keep_sysexts: int = 0


@dataclass(frozen=True)
class MirrorResult:
    """What changed: paths from the mirror's root."""

    added: list[str]
    removed: list[str]


def mirror(request: MirrorRequest, folder: MirrorFolder, services: Services, signer: Signer | None) -> MirrorResult:
    """Bring a mirror up to date. `services` has its cache in the mirror's `incoming` folder.

    Bakes may read the mirror meanwhile: files come before the lists that name them, and go after. Raises what
    fetching raises; then everything fetched so far is kept, and the next run goes on from there.
    """
    for word in request.releases:
        for arch in request.arches:
            with services.console.step(f"Mirror {word} for {arch}"):
                mirror_release(word, arch, request.vendors, request.base, request.files, folder, services)
    for choice in request.extensions:
        with services.console.step(f"Mirror {choice.name} {choice.version}".rstrip()):
            mirror_extension(choice, request.arches, folder, services)
    gone = _too_old(request, folder, services)
    if mirrored_releases(folder.names()):
        if request.releases:
            mirror_key(folder, services)
        write_feed(folder, services, gone)
    if any(name.startswith(f"{EXTENSIONS}/") for name in folder.names()):
        write_extensions_index(folder, services, request.url, signer, gone)
    removed = [name for name in gone if folder.path(name).is_file()]
    for name in removed:
        folder.remove(name)
    folder.save()
    services.cache.close()  # our own leases would keep everything
    rmtree(folder.incoming, ignore_errors=True)
    return MirrorResult(folder.added, removed)


def _too_old(request: MirrorRequest, folder: MirrorFolder, services: Services) -> list[str]:
    gone: list[str] = []
    if request.keep_releases:
        gone += old_releases(folder, request.keep_releases)
    if request.keep_sysexts:
        gone += old_images(folder, request.keep_sysexts, services)
    return gone
