"""The release commands: build what a versions file says, list it as a CI matrix, merge what was built elsewhere."""

from __future__ import annotations

from contextlib import ExitStack
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from baker.cli import options
from baker.cli.pack_options import CompressionOption, EpochOption, FormatOption
from baker.cli.recipe_options import LockedSourcesOption, MirrorUrlOption, RecipesLockOption, RecipesOption
from baker.cli.release_options import (
    AddOption,
    ArchesOption,
    FlatOption,
    OnlyNewOption,
    PreviousOption,
    ReleaseDirOption,
    SignOption,
    SignPassphraseOption,
    UnsignedPreviousOption,
    UrlOption,
    VersionsArgument,
)  # fmt: skip
from baker.model import Arch

if TYPE_CHECKING:
    from baker.releasing.items import Failure, Item
    from baker.releasing.layout import Layout
    from baker.releasing.produce import Outcome
    from baker.services import Services
    from baker.sign import Signer

release_app = typer.Typer(
    help="Build, sign and index many sysexts as a release.",
    no_args_is_help=True, rich_markup_mode=None,
)  # fmt: skip


class MatrixFormat(StrEnum):
    GITHUB = "github"
    GITLAB = "gitlab"
    JSON = "json"


_BUILD_EPILOG = """Examples:

\b
  flatcar-bake release build --output-dir site --url https://sysexts.example/ --sign release-key.asc
  flatcar-bake release build --add wasmtime@latest --add kubernetes@latest --arch x86-64
  flatcar-bake release build versions.txt --flat --previous https://sysexts.example/ --only-new
  flatcar-bake release build versions.txt --executor dask://10.0.0.1:8786 --storage s3://images/sysexts

What is in the folder or in the previous release is not built again, so the same command goes on where it was
interrupted, and tries again what failed. The result can be served as it is, and baked from with --bakery.
"""
_MATRIX_EPILOG = """Examples:

\b
  echo "matrix=$(flatcar-bake release matrix --previous https://sysexts.example/)" >> "$GITHUB_OUTPUT"
  flatcar-bake release matrix --format gitlab > child-pipeline.yml

Each job builds one image: flatcar-bake release build --add "$ITEM" --arch "$ARCH". Collect their folders, and merge
them with `flatcar-bake release metadata`.
"""
_METADATA_EPILOG = """Examples:

\b
  flatcar-bake release metadata parts/* --output-dir site --url https://sysexts.example/ --sign release-key.asc
  flatcar-bake release metadata https://sysexts.example/wasmtime-v24.0.0/ --output-dir index

Images in folders are taken into the release; what a URL lists in its SHA256SUMS is listed only. Without parts the
index of the folder is made anew.
"""


@release_app.command("build")
def build(
    versions_file: VersionsArgument = None,
    add: AddOption = None,
    arch: ArchesOption = None,
    output_dir: ReleaseDirOption = Path("release"),
    jobs: Annotated[
        int | None,
        typer.Option(
            "--jobs",
            "-j",
            min=1,
            envvar="FLATCAR_BAKE_JOBS",
            metavar="N",
            help="Builds side by side.  [default: one per CPU, at most 4]",
        ),
    ] = None,
    executor: options.ExecutorOption = None,
    storage: options.StorageOption = None,
    format: FormatOption = "",
    compression: CompressionOption = "",
    epoch: EpochOption = 0,
    url: UrlOption = "",
    flat: FlatOption = False,
    previous: PreviousOption = None,
    only_new: OnlyNewOption = False,
    unsigned_previous: UnsignedPreviousOption = False,
    sign: SignOption = "",
    sign_passphrase_file: SignPassphraseOption = None,
    recipes: RecipesOption = None,
    mirror_url: MirrorUrlOption = None,
    recipes_lock: RecipesLockOption = None,
    locked_sources: LockedSourcesOption = False,
    cache_dir: options.CacheDirOption = None,
    plan_only: options.PlanOption = False,
    json: options.JsonOption = False,
    progress: options.ProgressOption = options.ProgressMode.AUTO,
    quiet: options.QuietOption = False,
    debug: options.DebugOption = False,
) -> None:
    """Build every extension of a versions file, and index them as a release."""
    import os

    from baker.cli.fleet import check_options
    from baker.console import make_console
    from baker.packing.options import PackOptions
    from baker.releasing.index import Contents, add_folder, check_url, write_index
    from baker.releasing.previous import carry_over, read_previous
    from baker.releasing.produce import PackedAs, build_all, plan_builds

    check_options(executor, storage, {"--plan": plan_only})
    packed = PackedAs(format or "squashfs", compression, epoch)
    PackOptions("any", Arch.X86_64, packed.format, compression=compression, epoch=epoch)  # checks the words
    console = make_console(progress, quiet)
    with ExitStack() as stack:
        stack.callback(console.close)
        services = stack.enter_context(
            options.open_services(
                console, recipes=recipes, mirror_urls=mirror_url, recipes_lock=recipes_lock,
                locked_sources=locked_sources, cache_dir=cache_dir,
            )
        )  # fmt: skip
        layout = _layout(output_dir, flat, services)
        check_url(url, bool(sign))
        signer = _signer(sign, sign_passphrase_file, stack)
        items, unknown = _items(versions_file, add, arch, services)
        earlier = read_previous(previous, services, signer, unsigned_previous) if previous else {}
        wanted, there = plan_builds(items, layout, earlier)
        if plan_only:
            console.close()
            for item in wanted:
                typer.echo(item.file_name)
            return
        if executor and storage:
            from baker.releasing.afar import build_in_fleet

            outcome = build_in_fleet(wanted, layout, packed, services, executor, storage)
        else:
            outcome = build_all(wanted, layout, packed, services, jobs or min(4, len(os.sched_getaffinity(0))))
        outcome.skipped, outcome.failed = there, unknown + outcome.failed
        if previous and not only_new:
            carry_over(previous, earlier, layout, services)
        contents = Contents(layout.of_images(earlier))
        add_folder(contents, layout, earlier)
        index = write_index(layout, contents, services.recipes, url, signer, console)
        if not url:
            console.note("no sysupdate configs were written: --url says where the release will be served")
    _report_build(layout, outcome, index, json)


def _report_build(layout: Layout, outcome: Outcome, index: list[Path], as_json: bool) -> None:
    """Print what was built and the index; SomeFailed at the end when something failed."""
    from json import dumps

    from baker.releasing.items import SomeFailed

    built = [layout.folder(record["name"]) / file for file, record in outcome.built.items()]
    if as_json:
        failed = [
            {"file": item.what, "kind": item.error.kind, "message": item.error.message} for item in outcome.failed
        ]
        typer.echo(
            dumps(
                {
                    "built": list(outcome.built.values()), "skipped": outcome.skipped, "failed": failed,
                    "files": [str(path) for path in (*built, *index)],
                },
                indent=2,
            )
        )  # fmt: skip
    else:
        for path in (*built, *index):
            typer.echo(path)
    if outcome.failed:
        raise SomeFailed(outcome.failed, len(outcome.built) + len(outcome.skipped))


@release_app.command("matrix")
def matrix(
    versions_file: VersionsArgument = None,
    add: AddOption = None,
    arch: ArchesOption = None,
    format: Annotated[
        MatrixFormat, typer.Option("--format", envvar="FLATCAR_BAKE_MATRIX_FORMAT", help="What the CI engine takes.")
    ] = MatrixFormat.GITHUB,
    previous: PreviousOption = None,
    recipes: RecipesOption = None,
    mirror_url: MirrorUrlOption = None,
    cache_dir: options.CacheDirOption = None,
    progress: options.ProgressOption = options.ProgressMode.AUTO,
    quiet: options.QuietOption = False,
    debug: options.DebugOption = False,
) -> None:
    """List what a release has to build as a CI matrix."""
    from baker.console import make_console
    from baker.releasing.items import Item
    from baker.releasing.matrix import render_matrix
    from baker.releasing.previous import read_previous

    console = make_console(progress, quiet)
    with ExitStack() as stack:
        stack.callback(console.close)
        services = stack.enter_context(
            options.open_services(console, recipes=recipes, mirror_urls=mirror_url, cache_dir=cache_dir)
        )
        items, unknown = _items(versions_file, add, arch, services)
        # What could not be looked up is a job all the same: there it will be found, or fail where it is seen.
        lines = [failure.line for failure in unknown if failure.line]
        items += [Item(line.name, line.version, each, line.parameters) for line in lines for each in arch or Arch]
        earlier = read_previous(previous, services, None, True) if previous else {}
    typer.echo(render_matrix([item for item in items if item.file_name not in earlier], format.value))


@release_app.command("metadata")
def metadata(
    parts: Annotated[
        list[str] | None, typer.Argument(metavar="[PART…]", help="Folders or URLs with images and their SHA256SUMS.")
    ] = None,
    output_dir: ReleaseDirOption = Path("release"),
    url: UrlOption = "",
    flat: FlatOption = False,
    previous: PreviousOption = None,
    unsigned_previous: UnsignedPreviousOption = False,
    sign: SignOption = "",
    sign_passphrase_file: SignPassphraseOption = None,
    recipes: RecipesOption = None,
    cache_dir: options.CacheDirOption = None,
    json: options.JsonOption = False,
    progress: options.ProgressOption = options.ProgressMode.AUTO,
    quiet: options.QuietOption = False,
    debug: options.DebugOption = False,
) -> None:
    """Merge parts that were built elsewhere into a release and its index."""
    from json import dumps

    from baker.console import make_console
    from baker.releasing.index import Contents, add_folder, check_url, write_index
    from baker.releasing.parts import merge_part
    from baker.releasing.previous import read_previous

    console = make_console(progress, quiet)
    with ExitStack() as stack:
        stack.callback(console.close)
        services = stack.enter_context(options.open_services(console, recipes=recipes, cache_dir=cache_dir))
        layout = _layout(output_dir, flat, services)
        check_url(url, bool(sign))
        signer = _signer(sign, sign_passphrase_file, stack)
        earlier = read_previous(previous, services, signer, unsigned_previous) if previous else {}
        contents = Contents(layout.of_images(earlier))
        for part in parts or ():
            merge_part(part, layout, contents, services, signer, unsigned_previous)
        contents.new = {file for file in contents.files if file.endswith(".raw") and file not in earlier}
        output_dir.mkdir(parents=True, exist_ok=True)
        add_folder(contents, layout, earlier)
        index = write_index(layout, contents, services.recipes, url, signer, console)
    if json:
        typer.echo(dumps({"images": sorted(contents.files), "files": [str(path) for path in index]}, indent=2))
    else:
        for path in index:
            typer.echo(path)


build.__doc__ = f"{build.__doc__}\n\n{_BUILD_EPILOG}"
matrix.__doc__ = f"{matrix.__doc__}\n\n{_MATRIX_EPILOG}"
metadata.__doc__ = f"{metadata.__doc__}\n\n{_METADATA_EPILOG}"


def _items(
    file: Path | None, add: list[str] | None, arches: list[Arch] | None, services: Services
) -> tuple[list[Item], list[Failure]]:
    """What a versions file and --add ask for, looked up."""
    from baker.releasing.items import recipe_names, resolve_items
    from baker.releasing.versions import DEFAULT_FILE, parse_added, read_versions

    names = recipe_names(services.recipes)
    path = file or (None if add else Path(DEFAULT_FILE))
    wanted = read_versions(path, names) if path else []
    wanted += [parse_added(word, names) for word in add or ()]
    return resolve_items(wanted, list(dict.fromkeys(arches or Arch)), services)


def _layout(folder: Path, flat: bool, services: Services) -> Layout:
    from baker.releasing.items import recipe_names
    from baker.releasing.layout import Layout

    return Layout(folder, flat, frozenset(recipe_names(services.recipes)))


def _signer(key: str, passphrase: Path | None, stack: ExitStack) -> Signer | None:
    from baker.sign import Signer

    return stack.enter_context(Signer(key, passphrase)) if key else None
