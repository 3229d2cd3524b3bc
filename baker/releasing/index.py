"""The index of a release: SHA256SUMS, sysupdate configs and Release.md, all made of what images there are."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from baker.console import Console
from baker.errors import UsageError, VerificationError
from baker.recipe.load import Recipes, find_recipe
from baker.recipe.order import version_key
from baker.recipe.streams import stream_configs
from baker.recipe.versions import is_prerelease
from baker.recipe.words import Scope
from baker.releasing.items import ImageName
from baker.releasing.layout import NOTES, SUMS, Layout, record_name, write_file
from baker.sign import KEYRING_NAME, SIGNATURE_SUFFIX, Signer
from baker.sparse import file_sha256
from baker.sysupdate import noop_config, transfer_config


@dataclass
class Contents:
    """What a release lists: file name → sha256, of images and their records. `new` are the images it brings itself."""

    files: dict[str, str] = field(default_factory=dict)
    new: set[str] = field(default_factory=set)

    def add(self, file: str, sha256: str, origin: str) -> None:
        """List a file; VerificationError when it is listed with another digest."""
        known = self.files.setdefault(file, sha256)
        if known != sha256:
            raise VerificationError(
                f"{file} is {sha256} in {origin}, but {known} elsewhere.",
                "One version must always be the same bytes: who has it already does not fetch it again.",
            )


def check_url(url: str, signed: bool) -> None:
    """UsageError for an address that no machine should update from; said before work rather than after."""
    if url and not url.startswith(("https://", "http://") if signed else "https://"):
        raise UsageError(
            f"{url} is no address that machines may update from.",
            "Over plain http anybody on the way can change things: use https, or --sign.",
        )


def add_folder(contents: Contents, layout: Layout, earlier: Iterable[str] = ()) -> None:
    """List the images that are in the release's folder. Those that are not in `earlier` count as new."""
    known = set(earlier)
    for path in layout.images():
        contents.add(path.name, file_sha256(path), str(path.parent))
        record = path.with_name(record_name(path.name))
        if record.is_file():
            contents.files[record.name] = file_sha256(record)
        if path.name not in known:
            contents.new.add(path.name)


def write_index(
    layout: Layout,
    contents: Contents,
    recipes: Recipes,
    url: str,
    signer: Signer | None,
    console: Console,
) -> list[Path]:
    """Write everything but the images; returns the files of the index.

    Configs need the `url` at which the release will be served; without one there are none. What SHA256SUMS lists is
    there before it is. Raises UsageError for a stream that no config can describe, such as one over plain http
    without signatures.
    """
    images = {file: image for file in contents.files if (image := layout.parse(file)) is not None}
    _warn(images.values(), console)
    configs = _configs(layout, images.values(), recipes, url, signer is not None) if url else {}
    written: list[Path] = []
    for name, text in sorted(configs.items()):
        written.append(layout.root / name)
        write_file(written[-1], text.encode())
        contents.files[name] = file_sha256(written[-1])
    written.append(layout.root / NOTES)
    write_file(written[-1], _notes(layout, images, contents.new, url, signer).encode())
    if signer is not None:
        written.append(layout.root / KEYRING_NAME)
        write_file(written[-1], signer.public_key)
    folders = {layout.root: contents.files}
    if not layout.flat:
        for component in sorted({image.component for image in images.values()}):
            own = {file for file, image in images.items() if image.component == component}
            own |= {record_name(file) for file in own}
            folders[layout.folder(component)] = {
                file: digest for file, digest in contents.files.items() if file in own
            }
    for folder, files in folders.items():
        written += write_sums(folder, files, signer)
    return written


def write_sums(folder: Path, files: Mapping[str, str], signer: Signer | None) -> list[Path]:
    """Write SHA256SUMS and its signature; without a signer a signature that is there goes, as it no longer fits."""
    data = "".join(f"{digest}  {file}\n" for file, digest in sorted(files.items())).encode()
    sums, signature = folder / SUMS, folder / f"{SUMS}{SIGNATURE_SUFFIX}"
    if signer is None:
        if write_file(sums, data):
            signature.unlink(missing_ok=True)
        return [sums] + ([signature] if signature.exists() else [])
    if not (signature.is_file() and signer.has_signed(data, signature.read_bytes())):
        signed = signer.sign(data, str(sums))
        write_file(sums, data)
        write_file(signature, signed)
    return [sums, signature]


def _configs(layout: Layout, images: Iterable[ImageName], recipes: Recipes, url: str, verify: bool) -> dict[str, str]:
    """Every stream's config by file name: of each extension, and of each minor version where a recipe says so."""
    configs = {"noop.conf": noop_config()}
    for image in images:
        home = layout.url(url, image.component)
        try:
            recipe = find_recipe(image.component, recipes)
        except UsageError:  # a sysext of the user's own
            pattern = f"{image.component}-@v-%a.raw"
            configs[f"{image.component}.conf"] = transfer_config(image.component, pattern, home, verify=verify)
            continue
        scope = Scope(recipe, image.version, image.arch, {}, image.component)
        configs |= stream_configs(recipe, scope, home, verify=verify)
    return configs


def _warn(images: Iterable[ImageName], console: Console) -> None:
    """Tell of versions that systemd-sysupdate puts in another order than people do."""
    forms: dict[str, set[bool]] = {}
    for image in images:
        forms.setdefault(image.component, set()).add(image.version.startswith("v"))
        if is_prerelease(image.version):
            console.warn(
                f"{image.component} {image.version} is a pre-release: systemd-sysupdate takes it for newer than the "
                "release itself, and machines that update will install it."
            )
    for component in sorted(name for name, found in forms.items() if len(found) > 1):
        console.warn(
            f"Versions of {component} are listed both with and without a v: systemd-sysupdate takes every one with "
            "a v for older than those without."
        )


def _notes(layout: Layout, images: Mapping[str, ImageName], new: set[str], url: str, signer: Signer | None) -> str:
    """Release.md: what is new, what was there before, and how to use it."""
    lines = ["# System extensions", ""]
    for title, wanted in (("New in this release", new), ("From previous releases", set(images) - new)):
        rows: dict[tuple[str, str], dict[str, str]] = {}
        for file in wanted:
            image = images[file]
            place = f"{url.rstrip('/')}/{layout.link(image, file)}" if url else layout.link(image, file)
            rows.setdefault((image.component, image.version), {})[image.arch] = f"[{image.arch}]({place})"
        if rows:
            lines += [f"## {title}", "", "| extension | version | images |", "|---|---|---|"]
            for (component, version), links in sorted(
                rows.items(), key=lambda row: (row[0][0], version_key(row[0][1]))
            ):
                lines.append(f"| {component} | {version} | {', '.join(links[arch] for arch in sorted(links))} |")
            lines.append("")
    if not images:
        lines += ["There are none yet.", ""]
    lines += ["`SHA256SUMS` lists every file." + (
        f" `SHA256SUMS.gpg` is its OpenPGP signature by {signer.fingerprint}; the public key is in `{KEYRING_NAME}`."
        if signer is not None else ""
    )]  # fmt: skip
    if url:
        lines += ["", f"To bake one: `flatcar-bake --bakery {url.rstrip('/')} NAME@VERSION`"]
    return "\n".join(lines) + "\n"
