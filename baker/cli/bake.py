"""The bake command: options and bake.toml become a request, the request a plan, the plan files."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from baker.cli import diskless_options as diskless
from baker.cli import options
from baker.cli.recipe_options import LockedSourcesOption, MirrorUrlOption, RecipesLockOption, RecipesOption
from baker.model import Arch

if TYPE_CHECKING:
    from baker.config import BakeFile
    from baker.lock import Lock
    from baker.manifest import BakeManifest
    from baker.plan import BakePlan
    from baker.request import BakeRequest
    from baker.services import Services

_EPILOG = """Examples:

\b
  flatcar-bake --fetch --vendor qemu_uefi wasmtime:wasmtime-24.0.0-x86-64.raw
  flatcar-bake --release lts --vendor azure,gce,vmware_ova my-tools:./my-tools.raw
  flatcar-bake --image flatcar_production_image.bin --output-dir out my-tools:./my-tools.raw
  flatcar-bake --vendor pxe,iso --ram 4G my-tools:./my-tools.raw
  flatcar-bake --install-to oem:/sysext docker@28.0.4
  flatcar-bake --build kubernetes@v1.33.2 my-tools:./my-tools.raw
  flatcar-bake --ignition node.ign --file motd:root:/etc/motd my-tools:./my-tools.raw
  flatcar-bake -v azure,gce docker@28.0.4 --executor dask://10.0.0.1:8786 --storage s3://images/golden
"""


def bake(
    sysexts: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="NAME:FILE…",
            help=(
                "Sysexts to bake: NAME:FILE (a path, or with --fetch a file of the bakery), NAME:URL#sha256=HEX, or "
                "NAME@VERSION from the bakery, or built from its recipe."
            ),
        ),
    ] = None,
    fetch: Annotated[
        bool, typer.Option("--fetch", envvar="FLATCAR_BAKE_FETCH", help="Take FILE and its config from the bakery.")
    ] = False,
    vendor: options.VendorOption = None,
    arch: options.ArchOption = None,
    release: options.ReleaseOption = None,
    install_to: Annotated[
        str | None,
        typer.Option(
            "--install-to",
            "--install_to",
            envvar="FLATCAR_BAKE_INSTALL_TO",
            metavar="PARTITION:/DIR",
            help=(
                "Partition and folder for the sysexts: root:/DIR or oem:/DIR.  [default: ROOT, /opt/extensions/NAME/]"
            ),
        ),
    ] = None,
    output_dir: options.OutputDirOption = None,
    image: Annotated[
        Path | None,
        typer.Option(
            "--image",
            envvar="FLATCAR_BAKE_IMAGE",
            metavar="FILE",
            help="Bake into this raw or qcow2 image instead of a download.",
        ),
    ] = None,
    base: options.BaseOption = None,
    compress: options.CompressOption = None,
    kernel_arg: options.KernelArgOption = None,
    backend: options.BackendOption = None,
    updates: options.UpdatesOption = None,
    file: options.FileOption = None,
    ignition: options.IgnitionOption = None,
    ignition_base: options.IgnitionBaseOption = None,
    official_sysext: options.OfficialSysextOption = None,
    disable_builtin: options.DisableBuiltinOption = None,
    survive_reset: options.SurviveResetOption = None,
    allow: Annotated[
        list[str] | None,
        typer.Option(
            "--allow",
            envvar="FLATCAR_BAKE_ALLOW",
            metavar="FINDING",
            help="Bake in spite of this finding of the lint; may be repeated.",
        ),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            "--config",
            "-c",
            envvar="FLATCAR_BAKE_CONFIG",
            metavar="FILE",
            help=(
                "A bake.toml that says all this; options win over it.  [default: ./bake.toml if no sysext is given]"
            ),
        ),
    ] = None,
    mirror: options.MirrorOption = None,
    bakery: options.BakeryOption = None,
    bakery_key: options.BakeryKeyOption = None,
    update_key: options.UpdateKeyOption = None,
    signing_key: options.SigningKeyOption = None,
    fingerprint: options.FingerprintOption = None,
    cache_dir: options.CacheDirOption = None,
    vendors: options.VendorsOption = None,
    build: Annotated[
        bool | None,
        typer.Option(
            "--build/--no-build",
            envvar="FLATCAR_BAKE_BUILD",
            help="Build NAME@VERSION from its recipe even if the bakery has it.  [default: no-build]",
        ),
    ] = None,
    recipes: RecipesOption = None,
    mirror_url: MirrorUrlOption = None,
    recipes_lock: RecipesLockOption = None,
    locked_sources: LockedSourcesOption = False,
    pxe_route: diskless.RouteOption = None,
    pxe_split: diskless.SplitOption = None,
    ram: diskless.RamOption = None,
    serial: diskless.SerialOption = None,
    jobs: options.JobsOption = None,
    lock: Annotated[
        bool,
        typer.Option(
            "--lock",
            envvar="FLATCAR_BAKE_LOCK",
            help="After the bake, write down in bake.lock what it was made of.",
        ),
    ] = False,
    locked: Annotated[
        bool,
        typer.Option(
            "--locked",
            envvar="FLATCAR_BAKE_LOCKED",
            help="Bake just what bake.lock says: its release, its files, its digests.",
        ),
    ] = False,
    lock_file: Annotated[
        Path | None,
        typer.Option(
            "--lock-file",
            envvar="FLATCAR_BAKE_LOCK_FILE",
            metavar="FILE",
            help="The bake.lock of --lock and --locked.  [default: beside bake.toml, else ./bake.lock]",
        ),
    ] = None,
    executor: options.ExecutorOption = None,
    storage: options.StorageOption = None,
    plan_only: options.PlanOption = False,
    force: options.ForceOption = False,
    keep_work: options.KeepWorkOption = False,
    json: options.JsonOption = False,
    progress: options.ProgressOption = options.ProgressMode.AUTO,
    quiet: options.QuietOption = False,
    debug: options.DebugOption = False,
) -> None:
    """Bake sysexts into a Flatcar image for a vendor."""
    from baker.cli.fleet import bake_in_fleet, check_options
    from baker.config import load
    from baker.console import make_console
    from baker.errors import UsageError
    from baker.lock import LOCK_NAME, Lock
    from baker.plan import make_plan

    said: dict[str, Any] = {
        "sysexts": sysexts or None, "fetch": fetch or None, "vendors": vendor or None, "arch": arch,
        "release": release, "install_to": install_to, "output_dir": output_dir, "image": image, "base": base,
        "backend": backend, "updates": updates, "allow": allow or None, "mirror": mirror, "bakery": bakery,
        "bakery_key": bakery_key, "update_key": update_key,
        "signing_key": signing_key, "fingerprint": fingerprint, "jobs": jobs,
        "compress": compress, "kernel_args": kernel_arg or None, "build": build, "recipes": recipes or None,
        "pxe_route": pxe_route, "pxe_split": pxe_split, "ram": ram, "serial": serial,
        "mirror_urls": mirror_url or None, "recipes_lock": recipes_lock, "files": file or None, "ignition": ignition,
        "ignition_base": ignition_base, "official_sysexts": official_sysext or None,
        "disable_builtins": disable_builtin or None, "survive_reset": survive_reset,
    }  # fmt: skip
    fleet = check_options(executor, storage, {"--lock": lock, "--keep-work": keep_work, "--plan": plan_only})
    config = _config_path(config, sysexts)
    chosen = _merge(said, load(config) if config else None)
    path = lock_file or (config.parent if config else Path()) / LOCK_NAME
    if lock and (locked or plan_only):
        raise UsageError(f"--lock writes {path} after a bake, so it does not go with --locked or --plan.")
    request = make_request(chosen, force, keep_work, tuple(vendors or ()), Lock.load(path) if locked else None)
    console = make_console(progress, quiet)
    with ExitStack() as stack:
        stack.callback(console.close)
        services = stack.enter_context(
            options.open_services(
                console, mirror=chosen["mirror"], bakery=chosen["bakery"], bakery_key=chosen["bakery_key"],
                signing_key=chosen["signing_key"],
                fingerprint=chosen["fingerprint"], cache_dir=cache_dir, vendors=vendors,
                recipes=chosen["recipes"], mirror_urls=chosen["mirror_urls"], recipes_lock=chosen["recipes_lock"],
                locked_sources=locked_sources,
            )
        )  # fmt: skip
        if fleet and executor and storage:
            bake_in_fleet(request, services, executor, storage, chosen["output_dir"], json)
            return
        plan = make_plan(request, services)
        if plan_only:
            console.close()
            print_plan(plan, json)
            return
        manifest = run_plan(plan, services, stack, json)
        if lock:
            Lock.of(path, plan, manifest).save()


bake.__doc__ = f"{bake.__doc__}\n\n{_EPILOG}"


def _config_path(config: Path | None, sysexts: list[str] | None) -> Path | None:
    """The bake.toml to use: the one named, else ./bake.toml when the command line says nothing to bake."""
    default = Path("bake.toml")
    return default if config is None and not sysexts and default.is_file() else config


def _merge(said: dict[str, Any], file: BakeFile | None) -> dict[str, Any]:
    """Options win over bake.toml; what neither says is None."""
    return {key: value if value is not None else getattr(file, key, None) for key, value in said.items()}


def make_request(
    chosen: dict[str, Any], force: bool, keep_work: bool, folders: tuple[Path, ...], lock: Lock | None
) -> BakeRequest:
    from baker.additions import Additions
    from baker.request import BakeRequest, parse_install_to, parse_sysexts, parse_vendors

    additions = Additions.parse(
        files=chosen["files"] or (), ignition=chosen["ignition"], ignition_base=chosen["ignition_base"],
        disable_builtins=chosen["disable_builtins"] or (), official=chosen["official_sysexts"] or (),
        survive_reset=bool(chosen["survive_reset"]),
    )  # fmt: skip
    return BakeRequest(
        sysexts=parse_sysexts(tuple(chosen["sysexts"] or ()), bool(chosen["fetch"]), additions == Additions()),
        vendors=parse_vendors(chosen["vendors"] or ("generic",)),
        arch=Arch(chosen["arch"] or Arch.X86_64),
        release=chosen["release"] or (lock.release.version if lock and lock.release else "stable"),
        install_to=parse_install_to(chosen["install_to"], additions.survive_reset),
        output_dir=Path(chosen["output_dir"] or "."),
        backend=str(chosen["backend"] or "auto"),
        base=str(chosen["base"] or "auto"),
        image=chosen["image"],
        updates=bool(chosen["updates"]),
        update_key=chosen["update_key"],
        allow=tuple(chosen["allow"] or ()),
        jobs=chosen["jobs"] or 0,
        keep_work=keep_work,
        force=force,
        vendor_folders=folders,
        lock=lock,
        compress=str(chosen["compress"] or ""),
        kernel_args=tuple(chosen["kernel_args"] or ()),
        build=bool(chosen["build"]),
        without_disk=diskless.diskless_options(
            chosen["pxe_route"], chosen["pxe_split"], chosen["ram"], chosen["serial"]
        ),
        additions=additions,
    )


def print_plan(plan: BakePlan, as_json: bool) -> None:
    """Print what would be done."""
    from json import dumps

    from baker.plan import describe

    typer.echo(dumps(plan.as_dict(), indent=2) if as_json else describe(plan))


def run_plan(plan: BakePlan, services: Services, stack: ExitStack, as_json: bool) -> BakeManifest:
    """Execute a plan and print the files it gave; VendorsFailed at the end when some vendors have none."""
    from json import dumps

    from baker.backends import open_backend
    from baker.bake import bake as execute
    from baker.errors import VendorsFailed

    manifest = execute(plan, services, open_backend(plan.backend, services, stack))
    services.console.close()
    if as_json:
        typer.echo(dumps(manifest.as_dict(), indent=2))
    else:
        for artifact in manifest.outputs:
            typer.echo(plan.output_dir / artifact.path.name)
        for line in advice(plan):
            services.console.note(line)
    if manifest.failures:
        failed = [(item.vendor, item.error) for item in manifest.failures]
        lost = [vendor for vendor, _ in failed]
        raise VendorsFailed(failed, [item.vendor.name for item in plan.vendors if item.vendor.name not in lost])
    return manifest


def advice(plan: BakePlan) -> list[str]:
    """What the user should know of the result: what survives a reset, and whether updates will happen."""
    from baker.model import InstallTarget

    lines = []
    names = [item.name for item in plan.sysexts]
    if plan.additions.survive_reset:
        lines.append("All of it survives flatcar-reset: the first boot after one makes links and files on ROOT again.")
    elif plan.disks and plan.install_to.target is InstallTarget.OEM:
        keep = "|".join(f"/etc/extensions/{name}.raw" for name in names)
        lines.append(
            "The sysexts on the OEM partition survive flatcar-reset, the links that activate them do not: "
            f"flatcar-reset --keep-paths '{keep}'"
        )
    configured = [item.name for item in plan.sysexts if item.config]
    if configured and plan.disks and not plan.updates:
        lines.append(f"Updates are described for {', '.join(configured)} but not enabled; --updates enables them.")
    return lines
