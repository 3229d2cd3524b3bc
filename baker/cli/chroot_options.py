"""The options that say what becomes of a tree, for the commands that make sysexts out of root filesystems."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from baker.model import Arch

if TYPE_CHECKING:
    from baker.chroot.ending import Ending
    from baker.chroot.tree import Made
    from baker.console import Console

FolderArgument = Annotated[Path, typer.Argument(metavar="FOLDER", help="A root filesystem; it is only read.")]
NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="Name of the sysext.")]
PathsArgument = Annotated[
    list[str], typer.Argument(metavar="PATH…", help="What to take: /usr/PATH, or /SOURCE:/usr/DESTINATION."),
]  # fmt: skip
ArchOption = Annotated[
    str, typer.Option("--arch", "-a", envvar=["FLATCAR_BAKE_ARCH", "ARCH"], metavar="ARCH",
    autocompletion=lambda: [arch.value for arch in Arch],
    help="x86-64 or arm64, which the programs must be for.  [default: what they are for]"),
]  # fmt: skip
OsOption = Annotated[
    str, typer.Option("--os", envvar=["FLATCAR_BAKE_OS", "OS"], metavar="ID",
    help="System it is for; anything but _any also says SYSEXT_LEVEL=1.0.  [default: _any]"),
]  # fmt: skip
ReloadOption = Annotated[
    bool | None, typer.Option("--reload/--no-reload", envvar=["FLATCAR_BAKE_RELOAD", "RELOAD"],
    help="Let systemd load the sysext's units as soon as it is merged.  [default: when it has units]"),
]  # fmt: skip
UnitEnableOption = Annotated[
    list[str] | None, typer.Option("--unit-enable", envvar="FLATCAR_BAKE_UNIT_ENABLE", metavar="UNIT",
    help="Start this unit of the sysext by itself; may be repeated."),
]  # fmt: skip
DirOnlyOption = Annotated[
    bool, typer.Option("--dir-only", envvar="FLATCAR_BAKE_DIR_ONLY", help="Make the folder NAME instead of an image.")
]  # fmt: skip
OutputOption = Annotated[
    Path | None, typer.Option("--output", "-o", envvar="FLATCAR_BAKE_OUTPUT", metavar="FILE",
    help="The image or folder to write.  [default: NAME.raw or NAME here]"),
]  # fmt: skip


def ending(
    name: str, arch: str, format: str, os_id: str, reload: bool | None, compression: str, epoch: int,
    enable: list[str] | None, dir_only: bool, output: Path | None, force: bool,
) -> Ending:  # fmt: skip
    """What the options mean; UsageError for those that make no sense."""
    from baker.chroot.ending import Ending
    from baker.packing.options import PackOptions, arch_from_word

    options = PackOptions(
        name, arch_from_word(arch), format or "squashfs", os_id or "_any", False, compression, epoch, keep_modes=True
    )
    return Ending(
        options, output or Path(name if dir_only else f"{name}.raw"), reload, tuple(enable or ()), dir_only, force
    )


def tell(made: Made, console: Console) -> None:
    """Say what was taken and why; what came along in a folder is only counted."""
    counted = 0
    for told in made.told:
        if told.why.startswith("in the folder") and ";" not in told.why:
            counted += 1
        else:
            source = f" from {told.source}" if told.source and told.source != told.path else ""
            console.note(f"{told.path}{source}: {told.why}")
    if counted:
        console.note(f"and {counted} files, links and folders in them")
    for note in made.notes:
        console.note(note)


def remark(end: Ending, made: Made, console: Console) -> None:
    """Say what the lint has to say about an image."""
    from baker.survey.report import lint_image

    if end.folder_only:
        return
    for finding in lint_image(end.target, end.options.name, made.arch, None):
        (console.warn if finding.fatal else console.note)(finding.message)


def show(made: Made, name: str, target: Path, json: bool) -> None:
    """Print the result."""
    from json import dumps

    from baker.sparse import file_sha256

    if not json:
        typer.echo(target)
        return
    file = {"size": target.stat().st_size, "sha256": file_sha256(target)} if target.is_file() else {}
    typer.echo(dumps({"name": name, "files": [{"path": str(target), **file}], **made.as_dict()}, indent=2))
