"""The options that the release commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from baker.model import Arch

_PUBLISHED = "What is published, and where"

VersionsArgument = Annotated[
    Path | None, typer.Argument(metavar="[VERSIONS_FILE]", help=(
        "Lines NAME VERSION, NAME latest, or NAME-VERSION.  [default: release_build_versions.txt, unless --add]")),
]  # fmt: skip
AddOption = Annotated[
    list[str] | None, typer.Option("--add", envvar="FLATCAR_BAKE_ADD", metavar="NAME@VERSION",
    help="A further extension, as a line of the file would say; may be repeated."),
]  # fmt: skip
ArchesOption = Annotated[
    list[Arch] | None, typer.Option("--arch", "-a", envvar="FLATCAR_BAKE_ARCHES",
    help="Architecture to build for; may be repeated.  [default: both]"),
]  # fmt: skip
ReleaseDirOption = Annotated[
    Path, typer.Option("--output-dir", "-o", envvar="FLATCAR_BAKE_OUTPUT_DIR", metavar="DIR",
    help="The release's folder; what is there already is kept."),
]  # fmt: skip
UrlOption = Annotated[
    str, typer.Option("--url", envvar="FLATCAR_BAKE_RELEASE_URL", metavar="URL", rich_help_panel=_PUBLISHED,
    help="Where the folder will be served; sysupdate configs name it. Without it none are written."),
]  # fmt: skip
FlatOption = Annotated[
    bool, typer.Option("--flat", envvar="FLATCAR_BAKE_FLAT", rich_help_panel=_PUBLISHED,
    help="All files in one folder, as assets of a GitHub release, instead of a folder for each extension."),
]  # fmt: skip
PreviousOption = Annotated[
    str | None, typer.Option("--previous", envvar="FLATCAR_BAKE_PREVIOUS", metavar="URL|DIR",
    rich_help_panel=_PUBLISHED, help="A release whose images are not built again."),
]  # fmt: skip
OnlyNewOption = Annotated[
    bool, typer.Option("--only-new", envvar="FLATCAR_BAKE_ONLY_NEW", rich_help_panel=_PUBLISHED,
    help="List what the previous release has, but leave its files where they are."),
]  # fmt: skip
UnsignedPreviousOption = Annotated[
    bool, typer.Option("--unsigned-previous", envvar="FLATCAR_BAKE_UNSIGNED_PREVIOUS", rich_help_panel=_PUBLISHED,
    help="Sign although the previous release was not signed by the same key."),
]  # fmt: skip
SignOption = Annotated[
    str, typer.Option("--sign", envvar="FLATCAR_BAKE_SIGN", metavar="KEY", rich_help_panel=_PUBLISHED,
    help="Sign SHA256SUMS by this OpenPGP key: a file with the secret key, or a fingerprint in your keyring."),
]  # fmt: skip
SignPassphraseOption = Annotated[
    Path | None, typer.Option("--sign-passphrase-file", envvar="FLATCAR_BAKE_SIGN_PASSPHRASE_FILE", metavar="FILE",
    rich_help_panel=_PUBLISHED, help="A file with the key's passphrase, where no agent knows it."),
]  # fmt: skip
