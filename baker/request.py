"""What was asked: the words of the command line as checked data, before anything is looked up."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from baker.additions import Additions
from baker.diskless.options import DisklessOptions
from baker.errors import UsageError
from baker.extension_release import validate_name
from baker.lock import Lock
from baker.model import Arch, InstallTarget

OEM_DIRECTORY = "/sysext"
"""Where sysexts go on OEM unless a folder is asked for."""
_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class SysextRequest:
    """One sysext as asked for: a local file, a URL, a file of the bakery, or a version of the bakery.

    `sha256` is the digest the user pinned, "" where none was given. `path` is used for local files only.
    """

    name: str
    path: Path | None = None
    url: str = ""
    bakery_file: str = ""
    version: str = ""
    sha256: str = ""


@dataclass(frozen=True)
class InstallTo:
    """Where sysexts go: a partition and a folder on it.

    `per_name` puts each into a folder of its own name, which is the layout systemd-sysupdate updates in.
    """

    target: InstallTarget = InstallTarget.ROOT
    directory: str = "/opt/extensions"
    per_name: bool = True

    def path(self, name: str, file_name: str) -> str:
        """The path of a sysext within the partition."""
        parts = [self.directory, name, file_name] if self.per_name else [self.directory, file_name]
        return str(PurePosixPath(*parts))


@dataclass(frozen=True)
class BakeRequest:
    """A whole bake as asked for. Defaults are those of the command line."""

    sysexts: tuple[SysextRequest, ...]
    vendors: tuple[str, ...] = ("generic",)
    arch: Arch = Arch.X86_64
    release: str = "stable"
    install_to: InstallTo = field(default_factory=InstallTo)
    output_dir: Path = Path()
    backend: str = "auto"
    base: str = "auto"
    image: Path | None = None
    updates: bool = False
    update_key: Path | None = None
    """Public keys that the machines will trust signed releases by; see `baker.sign`."""
    allow: tuple[str, ...] = ()
    jobs: int = 0
    """Conversions side by side; 0 means one per CPU."""
    keep_work: bool = False
    force: bool = False
    vendor_folders: tuple[Path, ...] = ()
    lock: Lock | None = None
    """What the bake must be made of; None leaves it open."""
    compress: str = ""
    """Compression of finished images: one of vendor.COMPRESSIONS, `none`, or "" for what each platform takes."""
    kernel_args: tuple[str, ...] = ()
    without_disk: DisklessOptions = field(default_factory=DisklessOptions)
    """How vendors without a disk are to start."""
    build: bool = False
    """Build NAME@VERSION from its recipe even if the bakery has it."""
    additions: Additions = field(default_factory=Additions)


def parse_sysext(word: str, fetch: bool) -> SysextRequest:
    """Understand `NAME:FILE`, `NAME:URL[#sha256=HEX]` and `NAME@VERSION`.

    With `fetch` a FILE that is a bare name comes from the bakery; one with a folder in it stays local.
    Raises UsageError for anything else.
    """
    name, colon, file = word.partition(":")
    if not colon:
        name, at, version = word.partition("@")
        if not at or not version:
            raise UsageError(
                f"{word!r} does not say what to bake under which name.",
                "Write NAME:FILE, for example wasmtime:wasmtime-24.0.0-x86-64.raw, or NAME@VERSION.",
            )
        return SysextRequest(validate_name(name), version=version)
    validate_name(name)
    if not file or "\0" in file:  # NUL can come from a bake.toml
        raise UsageError(f"{word!r} names no file after the colon.", f"Write {name}:FILE.")
    if file.startswith(("http://", "https://")):
        url, mark, digest = file.partition("#sha256=")
        if mark and not _DIGEST.fullmatch(digest.lower()):
            raise UsageError(f"The sha256 in {word!r} is not 64 hexadecimal digits.")
        return SysextRequest(name, url=url, sha256=digest.lower())
    if fetch and "/" not in file:
        return SysextRequest(name, bakery_file=file)
    return SysextRequest(name, path=Path(file))


def parse_vendors(words: Iterable[str]) -> tuple[str, ...]:
    """Names of vendors, each word one or several with commas between; UsageError for an empty name."""
    names = [name.strip() for word in words for name in word.split(",")]
    if "" in names:
        raise UsageError("A name is missing in the list of vendors.", "Write --vendor azure,gce or repeat --vendor.")
    return tuple(dict.fromkeys(names))


def parse_sysexts(words: tuple[str, ...], fetch: bool, required: bool = True) -> tuple[SysextRequest, ...]:
    """All sysexts of a bake; UsageError when a name comes twice, or there is none and one is `required`."""
    if not words and required:
        raise UsageError(
            "No sysext was given, so there is nothing to bake.",
            "Name at least one, for example: flatcar-bake --fetch wasmtime:wasmtime-24.0.0-x86-64.raw",
        )
    found: dict[str, SysextRequest] = {}
    for word in words:
        request = parse_sysext(word, fetch)
        if request.name in found:
            raise UsageError(
                f"The sysext name {request.name} is given twice.",
                f"Only one image can be linked as /etc/extensions/{request.name}.raw; drop one or rename it.",
            )
        found[request.name] = request
    return tuple(found.values())


def parse_install_to(word: str | None, survive_reset: bool = False) -> InstallTo:
    """Understand `root:/DIR` and `oem:/DIR`; None is the default, one folder per sysext in ROOT:/opt/extensions.

    A folder that was asked for is used as it is, without a folder per sysext. What shall `survive_reset` goes to the
    OEM partition, and nowhere else.
    """
    if not word:
        return InstallTo(InstallTarget.OEM, OEM_DIRECTORY, per_name=False) if survive_reset else InstallTo()
    partition, _, directory = word.partition(":")
    targets = [target.value for target in InstallTarget]
    if partition not in targets:
        raise UsageError(
            f"--install-to {word} names no partition to install to.", "Write root:/opt/extensions or oem:/sysext."
        )
    if survive_reset and partition != "oem":
        raise UsageError(
            f"--survive-reset keeps sysexts on the OEM partition, which --install-to {word} does not name.",
            "Drop one of the two, or write oem:/sysext.",
        )
    directory = directory or ("/opt/extensions" if partition == "root" else OEM_DIRECTORY)
    parts = PurePosixPath(directory).parts
    if not directory.startswith("/") or ".." in parts or not re.fullmatch(r"[A-Za-z0-9._/+@-]+", directory):
        raise UsageError(
            f"--install-to {word}: the folder must be an absolute path of plain names.",
            "For example root:/opt/extensions.",
        )
    clean = str(PurePosixPath("/", *[part for part in parts if part != "/"]))
    if partition == "root" and clean.split("/")[1] in ("usr", "oem", "proc", "sys", "dev", "run", "tmp", "boot", ""):
        raise UsageError(
            f"--install-to {word}: {clean} on ROOT is hidden by another mount in the running system.",
            "Use a folder such as root:/opt/extensions.",
        )
    return InstallTo(InstallTarget(partition), clean, per_name=False)
