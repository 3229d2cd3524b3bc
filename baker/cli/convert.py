"""The convert command: an image baked earlier becomes the images of other vendors."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from baker.cli import options
from baker.cli.bake import print_plan, run_plan
from baker.model import Arch

if TYPE_CHECKING:
    from baker.request import BakeRequest

_EPILOG = """Without --release the OEM partition stays as it is in IMAGE, which should then be for the same platform.
With --release, which must be the release inside IMAGE, it is filled anew for each vendor.

Examples:

\b
  flatcar-bake convert flatcar_production_image.bin --vendor azure,gce,vmware_ova --release 4593.2.5
  flatcar-bake convert flatcar_production_openstack_image.img --vendor kubevirt --release 4593.2.5 -o out
  flatcar-bake convert flatcar_production_hetzner_image.bin --vendor hetzner --compress zst -o out
"""


def convert(
    image: Annotated[Path, typer.Argument(metavar="IMAGE", help="A raw or qcow2 image of Flatcar, baked or not.")],
    vendor: options.VendorOption = None,
    arch: options.ArchOption = None,
    release: Annotated[
        str | None,
        typer.Option(
            "--release",
            envvar="FLATCAR_BAKE_RELEASE",
            metavar="RELEASE",
            help="Fill the OEM partition for the vendor, from this release.  [default: it is kept]",
        ),
    ] = None,
    base: options.BaseOption = None,
    output_dir: options.OutputDirOption = None,
    compress: options.CompressOption = None,
    kernel_arg: options.KernelArgOption = None,
    backend: options.BackendOption = None,
    mirror: options.MirrorOption = None,
    signing_key: options.SigningKeyOption = None,
    fingerprint: options.FingerprintOption = None,
    cache_dir: options.CacheDirOption = None,
    vendors: options.VendorsOption = None,
    jobs: options.JobsOption = None,
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
    """Convert an image baked earlier into the formats of vendors."""
    from baker.cli.fleet import bake_in_fleet, check_options
    from baker.console import make_console
    from baker.plan import make_plan

    fleet = check_options(executor, storage, {"--keep-work": keep_work, "--plan": plan_only})
    request = _request(
        image, vendor, arch, release, base, output_dir or Path(), compress, tuple(kernel_arg or ()), backend,
        jobs or 0, force, keep_work,
    )  # fmt: skip
    console = make_console(progress, quiet)
    with ExitStack() as stack:
        stack.callback(console.close)
        services = stack.enter_context(
            options.open_services(
                console, mirror=mirror, signing_key=signing_key, fingerprint=fingerprint, cache_dir=cache_dir,
                vendors=vendors,
            )
        )  # fmt: skip
        if fleet and executor and storage:
            bake_in_fleet(request, services, executor, storage, output_dir, json)
            return
        plan = make_plan(request, services)
        if plan_only:
            console.close()
            print_plan(plan, json)
            return
        run_plan(plan, services, stack, json)


convert.__doc__ = f"{convert.__doc__}\n\n{_EPILOG}"


def _request(
    image: Path,
    vendors: list[str] | None,
    arch: Arch | None,
    release: str | None,
    base: str | None,
    output_dir: Path,
    compress: str | None,
    kernel_args: tuple[str, ...],
    backend: str | None,
    jobs: int,
    force: bool,
    keep_work: bool,
) -> BakeRequest:
    """A bake of no sysexts into the image."""
    from baker.errors import UsageError
    from baker.request import BakeRequest, parse_vendors

    if not vendors:
        raise UsageError("No vendor was given to convert for.", "Name at least one, for example --vendor azure.")
    return BakeRequest(
        sysexts=(), vendors=parse_vendors(vendors), arch=arch or Arch.X86_64, release=release or "stable",
        output_dir=output_dir, backend=str(backend or "auto"), image=image, jobs=jobs, keep_work=keep_work,
        base=str(base or ("generic" if release else "auto")), force=force, compress=str(compress or ""),
        kernel_args=kernel_args,
    )  # fmt: skip
