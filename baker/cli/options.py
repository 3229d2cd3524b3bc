"""The options that several commands share, each with its environment variable FLATCAR_BAKE_…"""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from baker.console import Console
    from baker.services import Services

from baker.model import Arch


class ProgressMode(StrEnum):
    AUTO = "auto"
    RICH = "rich"
    PLAIN = "plain"
    JSON = "json"


class Backend(StrEnum):
    AUTO = "auto"
    OFFLINE = "offline"
    LOOP = "loop"


class Compress(StrEnum):
    BZ2 = "bz2"
    GZ = "gz"
    ZIP = "zip"
    ZST = "zst"
    NONE = "none"


class Base(StrEnum):
    AUTO = "auto"
    GENERIC = "generic"
    PUBLISHED = "published"


_TRUST, _OUTPUT, _MORE, _FLEET = "Where things come from", "Output", "More to bake", "Fleet"

VendorOption = Annotated[
    list[str] | None, typer.Option("--vendor", "-v", envvar="FLATCAR_BAKE_VENDOR", metavar="VENDOR",
    help="Who the image is for; several with commas, or repeated.  [default: generic]"),
]  # fmt: skip
CompressOption = Annotated[
    Compress | None, typer.Option("--compress", envvar="FLATCAR_BAKE_COMPRESS",
    help="Compress images this way; OVAs and other bundles stay as they are.  [default: what the platform takes]"),
]  # fmt: skip
KernelArgOption = Annotated[
    list[str] | None, typer.Option("--kernel-arg", envvar="FLATCAR_BAKE_KERNEL_ARG", metavar="ARG",
    help="Append this to the kernel command line; may be repeated."),
]  # fmt: skip
FileOption = Annotated[
    list[str] | None, typer.Option("--file", envvar="FLATCAR_BAKE_FILE", metavar="SRC:PARTITION:PATH[:MODE]",
    rich_help_panel=_MORE, help="Put a file into root or oem, for example motd:root:/etc/motd; may be repeated."),
]  # fmt: skip
IgnitionOption = Annotated[
    Path | None, typer.Option("--ignition", envvar="FLATCAR_BAKE_IGNITION", metavar="FILE", rich_help_panel=_MORE,
    help="Ignition config (JSON, or Butane as *.bu) that takes the place of the platform's user data."),
]  # fmt: skip
IgnitionBaseOption = Annotated[
    Path | None, typer.Option("--ignition-base", envvar="FLATCAR_BAKE_IGNITION_BASE", metavar="FILE",
    rich_help_panel=_MORE, help="Ignition config that is merged below every user's config."),
]  # fmt: skip
DisableBuiltinOption = Annotated[
    list[str] | None, typer.Option("--disable-builtin", envvar="FLATCAR_BAKE_DISABLE_BUILTIN", metavar="NAME",
    rich_help_panel=_MORE, help="Turn off a sysext that is built into Flatcar: docker or containerd."),
]  # fmt: skip
OfficialSysextOption = Annotated[
    list[str] | None, typer.Option("--official-sysext", envvar="FLATCAR_BAKE_OFFICIAL_SYSEXT", metavar="NAME",
    rich_help_panel=_MORE, help="Add Flatcar's own extra sysext (zfs, podman, python …), updated with the system."),
]  # fmt: skip
SurviveResetOption = Annotated[
    bool | None, typer.Option("--survive-reset/--no-survive-reset", envvar="FLATCAR_BAKE_SURVIVE_RESET",
    rich_help_panel=_MORE, help="Keep all of it on the OEM partition and let a base Ignition config link it."),
]  # fmt: skip
UpdatesOption = Annotated[
    bool | None, typer.Option("--updates/--no-updates", "--enable-updates/--no-enable-updates",
    envvar=["FLATCAR_BAKE_UPDATES", "FLATCAR_BAKE_ENABLE_UPDATES"],
    help="Let systemd-sysupdate update the sysexts that have a config.  [default: no-updates]"),
]  # fmt: skip
OutputDirOption = Annotated[
    Path | None, typer.Option("--output-dir", "-o", envvar="FLATCAR_BAKE_OUTPUT_DIR", metavar="DIR",
    help="Where the results go.  [default: the current folder]"),
]  # fmt: skip
BackendOption = Annotated[
    Backend | None, typer.Option("--backend", envvar="FLATCAR_BAKE_BACKEND",
    help="Edit filesystems rootless (offline) or by loop mounts through sudo (loop).  [default: auto]"),
]  # fmt: skip
JobsOption = Annotated[
    int | None, typer.Option("--jobs", "-j", min=1, envvar="FLATCAR_BAKE_JOBS", metavar="N",
    help="Conversions side by side.  [default: one per CPU]"),
]  # fmt: skip
ForceOption = Annotated[
    bool, typer.Option("--force", "-f", envvar="FLATCAR_BAKE_FORCE",
    help="Overwrite existing outputs, and existing entries in the image."),
]  # fmt: skip
KeepWorkOption = Annotated[
    bool, typer.Option("--keep-work", envvar="FLATCAR_BAKE_KEEP_WORK", help="Keep the work folder.")
]  # fmt: skip
PlanOption = Annotated[
    bool, typer.Option("--plan", envvar="FLATCAR_BAKE_PLAN", help="Show what would be done, and stop.")
]  # fmt: skip
BaseOption = Annotated[
    Base | None, typer.Option("--base", envvar="FLATCAR_BAKE_BASE",
    help="Make vendor images from the generic image or from the vendor's published one.  [default: auto]"),
]  # fmt: skip
ArchOption = Annotated[
    Arch | None, typer.Option("--arch", "-a", envvar="FLATCAR_BAKE_ARCH",
    help="Architecture of the image.  [default: x86-64]"),
]  # fmt: skip
ReleaseOption = Annotated[
    str | None, typer.Option("--release", envvar="FLATCAR_BAKE_RELEASE", metavar="RELEASE", help=(
        "Channel (alpha, beta, stable, lts, lts-2024), version (4593.2.5) or `current`.  [default: stable]")),
]  # fmt: skip
MirrorOption = Annotated[
    str | None, typer.Option("--mirror", envvar="FLATCAR_BAKE_MIRROR", metavar="URL|DIR", rich_help_panel=_TRUST,
    help="Release server or a folder laid out like one."),
]  # fmt: skip
BakeryOption = Annotated[
    str | None, typer.Option("--bakery", envvar="FLATCAR_BAKE_BAKERY", metavar="URL|DIR", rich_help_panel=_TRUST,
    help="Where --fetch takes sysexts from."),
]  # fmt: skip
BakeryKeyOption = Annotated[
    Path | None, typer.Option("--bakery-key", envvar="FLATCAR_BAKE_BAKERY_KEY", metavar="FILE", rich_help_panel=_TRUST,
    help="OpenPGP public keys, by one of which the bakery must have signed its SHA256SUMS."),
]  # fmt: skip
UpdateKeyOption = Annotated[
    Path | None, typer.Option("--update-key", envvar="FLATCAR_BAKE_UPDATE_KEY", metavar="FILE", rich_help_panel=_TRUST,
    help="OpenPGP public keys by which systemd-sysupdate will trust signed releases."),
]  # fmt: skip
SigningKeyOption = Annotated[
    Path | None, typer.Option("--signing-key", envvar="FLATCAR_BAKE_SIGNING_KEY", metavar="FILE",
    rich_help_panel=_TRUST, help="OpenPGP key that signs the release; its fingerprint must match."),
]  # fmt: skip
FingerprintOption = Annotated[
    str | None, typer.Option("--fingerprint", envvar="FLATCAR_BAKE_FINGERPRINT", metavar="HEX",
    rich_help_panel=_TRUST, help="Primary fingerprint to trust instead of Flatcar's own."),
]  # fmt: skip
CacheDirOption = Annotated[
    Path | None, typer.Option("--cache-dir", envvar="FLATCAR_BAKE_CACHE_DIR", metavar="DIR", rich_help_panel=_TRUST,
    help="Folder of verified downloads."),
]  # fmt: skip
VendorsOption = Annotated[
    list[Path] | None, typer.Option("--vendors", envvar="FLATCAR_BAKE_VENDORS", metavar="DIR",
    rich_help_panel=_TRUST, help="Further folder of vendor files; may be repeated."),
]  # fmt: skip
JsonOption = Annotated[
    bool, typer.Option("--json", envvar="FLATCAR_BAKE_JSON", rich_help_panel=_OUTPUT, help="Print the result as JSON.")
]  # fmt: skip
ProgressOption = Annotated[
    ProgressMode, typer.Option("--progress", envvar="FLATCAR_BAKE_PROGRESS", rich_help_panel=_OUTPUT,
    help="How progress is shown on stderr."),
]  # fmt: skip
QuietOption = Annotated[
    bool, typer.Option("--quiet", "-q", envvar="FLATCAR_BAKE_QUIET", rich_help_panel=_OUTPUT,
    help="Show warnings and errors only."),
]  # fmt: skip
DebugOption = Annotated[
    bool, typer.Option("--debug", envvar="FLATCAR_BAKE_DEBUG", rich_help_panel=_OUTPUT,
    help="Show a traceback on errors."),
]  # fmt: skip

ExecutorOption = Annotated[
    str | None, typer.Option("--executor", envvar="FLATCAR_BAKE_EXECUTOR", metavar="URL", rich_help_panel=_FLEET,
    help="Let a Dask cluster do the work: dask://HOST:PORT, or dask+tls://HOST:PORT."),
]  # fmt: skip
StorageOption = Annotated[
    str | None, typer.Option("--storage", envvar="FLATCAR_BAKE_STORAGE", metavar="URL", rich_help_panel=_FLEET,
    help="Shared storage of such a cluster: s3://BUCKET/FOLDER, gs://…, az://… or file:///FOLDER. "
    "Results stay there; with --output-dir they are fetched too."),
]  # fmt: skip


def open_services(
    console: Console,
    *,
    mirror: str | None = None,
    bakery: str | None = None,
    bakery_key: Path | None = None,
    signing_key: Path | None = None,
    fingerprint: str | None = None,
    cache_dir: Path | None = None,
    vendors: list[Path] | None = None,
    recipes: Iterable[Path] | None = None,
    mirror_urls: Iterable[str] | None = None,
    recipes_lock: Path | None = None,
    locked_sources: bool = False,
) -> Services:
    """The services that the shared options describe; what was not said is the default."""
    from baker.services import DEFAULT_BAKERY, Services, Settings
    from baker.verify import FLATCAR_FINGERPRINT

    return Services(
        Settings(
            mirror=mirror, bakery=bakery or DEFAULT_BAKERY, bakery_key=bakery_key, signing_key=signing_key,
            fingerprint=(fingerprint or FLATCAR_FINGERPRINT).replace(" ", "").upper(), cache_dir=cache_dir,
            vendor_folders=tuple(vendors or ()), recipe_folders=tuple(recipes or ()),
            mirror_urls=tuple(mirror_urls or ()), recipes_lock=recipes_lock, locked_sources=locked_sources,
        ),
        console,
    )  # fmt: skip
