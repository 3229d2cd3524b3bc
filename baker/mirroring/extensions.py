"""Mirroring a bakery: chosen versions of extensions, checked against SHA256SUMS, with an index of their own.

Where a list here says the same as upstream's, upstream's own file and its signature are kept byte for byte.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from baker.errors import ImageError, NetworkError, UsageError
from baker.extension_release import validate_name
from baker.fetch import FileMissing
from baker.mirroring.folder import EXTENSIONS, MirrorFolder
from baker.model import Arch
from baker.recipe.order import minor_of, version_key
from baker.release import join_url
from baker.releasing.index import Contents, add_folder, write_index
from baker.releasing.items import ImageName, parse_image_name, recipe_names
from baker.releasing.layout import SUMS, Layout, record_name
from baker.services import Services
from baker.sign import SIGNATURE_SUFFIX, Signer
from baker.sources import config_candidates
from baker.sparse import file_sha256
from baker.sysupdate import lint_config
from baker.verify import parse_sha256sums

_SMALL = 1 << 20
_LIST_LIMIT = 16 << 20
LATEST = "latest"


@dataclass(frozen=True)
class Choice:
    """Which versions of an extension to mirror: one, `latest`, or "" for all."""

    name: str
    version: str = ""

    @classmethod
    def parse(cls, word: str) -> Choice:
        """NAME, NAME@latest or NAME@VERSION; UsageError for anything else."""
        name, at, version = word.partition("@")
        if at and not version:
            raise UsageError(f"{word!r} names no version.", "Write NAME, NAME@latest or NAME@VERSION.")
        return cls(validate_name(name), version)


def mirror_extension(choice: Choice, arches: Sequence[Arch], folder: MirrorFolder, services: Services) -> None:
    """Mirror the chosen versions of an extension and their sysupdate configs.

    Raises UsageError when the bakery does not have it, ImageError for a config that nothing vouches for and that
    would do harm, and what fetching raises.
    """
    listed = services.bakery_files(choice.name)
    files = _chosen(choice, arches, listed)
    configs: dict[str, None] = {}
    for file in files:
        for name in (file, record_name(file)):
            if name in listed:
                _mirror_image(choice.name, name, listed[name], folder, services)
        configs |= dict.fromkeys(config_candidates(choice.name, file))
        folder.save()
    for name in configs:
        if services.in_bakery(name):
            _mirror_config(choice.name, name, folder, services)


def _chosen(choice: Choice, arches: Sequence[Arch], listed: Mapping[str, str]) -> list[str]:
    images: dict[str, ImageName] = {}
    for file in listed:
        image = parse_image_name(file, [choice.name])
        if image is not None and image.component == choice.name and image.arch in arches:
            images[file] = image
    versions = sorted({image.version for image in images.values()}, key=version_key)
    if choice.version == LATEST:
        wanted = set(versions[-1:])
    else:
        bare = choice.version.removeprefix("v")
        wanted = {version for version in versions if not bare or version.removeprefix("v") == bare}
    if not wanted:
        has = f"It has: {', '.join(versions[-8:])}." if versions else "It has no sysext of that name."
        raise UsageError(f"The bakery has no {choice.name} {choice.version}".rstrip() + ".", has)
    return sorted(file for file, image in images.items() if image.version in wanted)


def _mirror_image(name: str, file: str, sha256: str, folder: MirrorFolder, services: Services) -> None:
    place = f"{EXTENSIONS}/{name}/{file}"
    path = folder.path(place)
    if path.is_file():
        if file_sha256(path) == sha256:
            folder.own(place)
            return
        services.console.warn(f"{file} in the mirror is not what SHA256SUMS says, and is fetched again.")
    folder.link(services.store.bakery(services.bakery, file, sha256).path, place)


def _mirror_config(name: str, file: str, folder: MirrorFolder, services: Services) -> None:
    stored = services.store.bakery(services.bakery, file)
    data = stored.path.read_bytes()
    problem = "" if stored.verified else lint_config(data, name)
    if problem:
        raise ImageError(f"The bakery's {file} is not covered by SHA256SUMS, and {problem}.")
    folder.write(f"{EXTENSIONS}/{file}", data)


def old_images(folder: MirrorFolder, keep: int, services: Services) -> list[str]:
    """The images (and their records) beyond the `keep` newest of each extension and architecture.

    Where a recipe publishes a stream for each minor version, each of those counts for itself.
    """
    by_minor = {
        name for recipe in services.recipes.values() if any(stream.per == "minor" for stream in recipe.streams)
        for name in (recipe.name, *recipe.aliases)
    }  # fmt: skip
    streams: dict[tuple[str, str, str], list[tuple[str, str]]] = {}
    for place in folder.names():
        parts = place.split("/")
        image = parse_image_name(parts[-1], [parts[1]]) if len(parts) == 3 and parts[0] == EXTENSIONS else None
        if image is not None:
            minor = minor_of(image.version) if image.component in by_minor else ""
            streams.setdefault((image.component, image.arch, minor), []).append((image.version, place))
    lost = []
    for found in streams.values():
        for _, place in sorted(found, key=lambda each: version_key(each[0]), reverse=True)[keep:]:
            lost += [place, record_name(place)]
    return lost


def write_extensions_index(
    folder: MirrorFolder, services: Services, url: str, signer: Signer | None, gone: Iterable[str] = ()
) -> None:
    """Index what is there: SHA256SUMS, signed by `signer` if there is one. `gone` are files about to be pruned.

    With the `url` of the mirror, configs are written that update from it; else upstream's stay as they are.
    """
    root = folder.path(EXTENSIONS)
    own = [name for name in folder.names() if name.startswith(f"{EXTENSIONS}/")]
    components = {name.split("/")[1] for name in own if name.count("/") == 2}
    layout = Layout(root, False, frozenset(recipe_names(services.recipes) | components))
    contents = Contents()
    add_folder(contents, layout)
    for name in gone:
        contents.files.pop(Path(name).name, None)
    contents.new = {file for file in contents.files if file.endswith(".raw")}
    if not url:
        contents.files |= {path.name: file_sha256(path) for path in map(folder.path, own)
                           if path.suffix == ".conf" and path.parent == root}  # fmt: skip
    base = f"{url.rstrip('/')}/{EXTENSIONS}" if url else ""
    for path in write_index(layout, contents, services.recipes, base, signer, services.console):
        folder.own(str(path.relative_to(folder.root)))
    for name in own if url else ():
        if name.endswith(".conf") and Path(name).name not in contents.files:
            folder.remove(name)  # of a stream whose versions are gone
    if signer is None:
        for name in ("", *sorted(components)):
            _keep_signature(name, folder, services)


def _keep_signature(component: str, folder: MirrorFolder, services: Services) -> None:
    """Take over upstream's list with its signature where it says what ours says; tell where that cannot be."""
    address = join_url(services.bakery, component, SUMS) if component else join_url(services.bakery, SUMS)
    place = "/".join(part for part in (EXTENSIONS, component, SUMS) if part)
    if not folder.path(place).is_file():
        return
    try:
        signature = services.fetcher.read(address + SIGNATURE_SUFFIX, _SMALL)
        data = services.fetcher.read(address, _LIST_LIMIT)
    except FileMissing:
        return
    except NetworkError as error:
        services.console.warn(f"{error.message} Its signature is not kept.")
        return
    if parse_sha256sums(data) == parse_sha256sums(folder.path(place).read_bytes()):
        folder.write(place, data)
        folder.write(place + SIGNATURE_SUFFIX, signature)
    else:
        services.console.warn(
            f"{address} is signed, but the mirror holds a part of it only: sign its list by a key of your own, --sign."
        )
