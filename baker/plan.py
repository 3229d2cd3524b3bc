"""From a request to a plan: everything that can be known before work begins, decided and said.

A plan is data. It prints (`--plan`), it has an id that depends only on what will be baked, and `bake()` executes it
without deciding anything again.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from baker import __version__
from baker.bases import PlannedVendor, choose_source
from baker.diskless.options import DisklessOptions
from baker.diskless.planning import (
    adapt,
    check_request,
    check_sources,
    describe_diskless,
    least_memory,
    place_in_memory,
    settle_sysexts,
)
from baker.errors import EnvironmentFault, UsageError
from baker.lock import Lock
from baker.manifest import RECORDS
from baker.model import Arch, InstallTarget, Release
from baker.oem import check_kernel_arg
from baker.origins import PlannedSysext, describe_sysext, plan_sysext
from baker.planned_additions import PlannedAdditions, plan_additions
from baker.platform import check_platform, enforce, expected_size
from baker.printable import printable
from baker.publish import unfinished
from baker.request import OEM_DIRECTORY, BakeRequest, InstallTo
from baker.run import ESSENTIAL, need
from baker.services import Services
from baker.sign import read_keyring
from baker.sparse import file_sha256
from baker.vendor import Vendor, find_vendors


@dataclass(frozen=True)
class BakePlan:
    """Everything `bake()` needs. `release` is None for a bake into an image of the user's own."""

    release: Release | None
    arch: Arch
    image: Path | None
    sysexts: tuple[PlannedSysext, ...]
    vendors: tuple[PlannedVendor, ...]
    install_to: InstallTo
    backend: str
    backend_why: str
    updates: bool
    allow: tuple[str, ...]
    epoch: int
    output_dir: Path
    jobs: int
    keep_work: bool
    force: bool
    lock: Lock | None = None
    """Everything that is used must be in it."""
    update_key: bytes = b""
    """A keyring for systemd-sysupdate; b"" for none."""
    compress: str = ""
    """Asked for instead of what each platform takes; it is in the vendors already."""
    kernel_args: tuple[str, ...] = ()
    without_disk: DisklessOptions = field(default_factory=DisklessOptions)
    least_memory: int = 0
    """Bytes of memory that machines without a disk need, as far as that is known; 0 for none of them."""
    additions: PlannedAdditions = field(default_factory=PlannedAdditions)

    @property
    def disks(self) -> tuple[PlannedVendor, ...]:
        """The vendors whose machines have the image on a disk."""
        return tuple(item for item in self.vendors if item.vendor.diskless is None)

    @property
    def diskless(self) -> tuple[PlannedVendor, ...]:
        """The others, which start by PXE or from an ISO."""
        return tuple(item for item in self.vendors if item.vendor.diskless is not None)

    @property
    def oem_directory(self) -> str:
        """The folder of OEM that sysexts of machines without a disk are in."""
        return self.install_to.directory if self.install_to.target is InstallTarget.OEM else OEM_DIRECTORY

    @property
    def outputs(self) -> tuple[str, ...]:
        """The names of all files the bake will write."""
        return (*(name for item in self.vendors for name in item.vendor.outputs), *RECORDS)

    def substance(self) -> dict[str, Any]:
        """What decides the bytes of the result, and nothing else: no folders, no job counts."""
        return {
            "release": dataclasses.asdict(self.release) if self.release else None,
            "image": file_sha256(self.image) if self.image else None,
            "arch": self.arch,
            "sysexts": [
                {"name": item.name, "file": item.file_name, "installed": item.installed,
                 # Of what is built, a lock knows it and a first bake does not: it is no part of what was asked.
                 "sha256": "" if item.recipe else item.sha256,
                 "config": Path(item.config).name,
                 **({"recipe": item.recipe.as_dict()} if item.recipe else {})}
                for item in self.sysexts
            ],
            "vendors": [
                {"name": item.vendor.name, "base": item.base, "source": Path(item.source).name}
                for item in self.vendors
            ],
            "target": self.install_to.target,
            "updates": self.updates,
            **({"update_key": hashlib.sha256(self.update_key).hexdigest()} if self.update_key else {}),
            "epoch": self.epoch,
            "compress": self.compress,
            "kernel_args": list(self.kernel_args),
            **({"split": self.without_disk.split, "serial": self.without_disk.serial} if self.diskless else {}),
            **({"additions": facts} if (facts := self.additions.facts()) else {}),
        }  # fmt: skip

    @cached_property
    def id(self) -> str:
        """sha256 of the canonical form of the plan's substance."""
        canonical = json.dumps(self.substance(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()

    def as_dict(self) -> dict[str, Any]:
        """The JSON form of `--plan --json`."""
        return {
            "id": self.id,
            **self.substance(),
            "sysexts": [item.as_dict() for item in self.sysexts],
            "vendors": [
                {"name": item.vendor.name, "base": item.base, "source": item.source, "why": item.why,
                 "outputs": list(item.vendor.outputs)}
                for item in self.vendors
            ],
            "backend": self.backend,
            "backend_why": self.backend_why,
            "output_dir": str(self.output_dir),
            "allow": list(self.allow),
            **({"least_memory": self.least_memory} if self.diskless else {}),
            **({"additions": record} if (record := self.additions.as_dict()) else {}),
        }  # fmt: skip

    def additions_record(self) -> dict[str, Any]:
        """What was baked besides sysexts, for the manifest."""
        more = {"kernel_args": list(self.kernel_args), "updates": self.updates}
        return self.additions.as_dict() | {key: value for key, value in more.items() if value}


def make_plan(request: BakeRequest, services: Services) -> BakePlan:
    """Decide a whole bake.

    Reads local sysexts and small signed files of the release; downloads nothing large and writes nothing outside the
    cache. Raises UsageError, VerificationError, EnvironmentFault, NetworkError or ImageError naming what is wrong.
    """
    found = find_vendors(request.vendors, request.arch, services.vendors)
    vendors = tuple(adapt(_compressed(vendor, request.compress), request) for vendor in found)
    for arg in request.kernel_args:
        check_kernel_arg(arg)
    _check_tools()
    _check_inputs(request)
    check_request(request, vendors, services.console)
    request = dataclasses.replace(request, install_to=place_in_memory(request.install_to, vendors))
    _check_outputs(request, vendors)
    lock = request.lock
    if lock is not None:
        lock.check_request(request, os.environ.get("SOURCE_DATE_EPOCH", ""))
        if lock.made_by != __version__:
            services.console.warn(f"{lock.path} is of flatcar-bake {lock.made_by}; the bytes of results may differ.")
    release = _release(request, services)
    version = release.version if release else None
    backend, backend_why = _backend(request.backend, services)
    planned = _sources(vendors, request, release, services)
    sysexts = settle_sysexts((plan_sysext(item, request, version, services) for item in request.sysexts), planned)
    plan = BakePlan(
        release=release, arch=request.arch, image=request.image, sysexts=sysexts, vendors=planned,
        install_to=request.install_to, backend=backend, backend_why=backend_why, updates=request.updates,
        update_key=read_keyring(request.update_key) if request.update_key else b"",
        allow=request.allow, epoch=lock.epoch if lock else _epoch(release), output_dir=request.output_dir,
        jobs=request.jobs or len(os.sched_getaffinity(0)), keep_work=request.keep_work, force=request.force,
        lock=lock, compress=request.compress, kernel_args=request.kernel_args,
        without_disk=request.without_disk, least_memory=least_memory(planned, request, release, services),
        additions=plan_additions(request.additions, release, version or "", sysexts, request.install_to, services,
                                 in_memory=all(vendor.diskless for vendor in vendors)),
    )  # fmt: skip
    if lock is not None:
        lock.check_plan(plan)
    if plan.updates and not any(item.config for item in plan.sysexts):
        services.console.warn("No sysext has a sysupdate config, so there is nothing that --updates could update.")
    return plan


def _compressed(vendor: Vendor, wanted: str) -> Vendor:
    """The vendor with the outer compression that was asked for; a bundle has its own."""
    if not wanted or vendor.bundle or vendor.diskless:
        return vendor
    return dataclasses.replace(vendor, compress="" if wanted == "none" else wanted)


def _release(request: BakeRequest, services: Services) -> Release | None:
    """The release that is asked for, or locked."""
    if request.lock is not None:
        return request.lock.release
    # An own image needs no release, unless its OEM partition is to be filled from one.
    own = request.image is not None and request.base != "generic"
    return None if own else services.resolve(request.release, request.arch)


def _epoch(release: Release | None) -> int:
    """The time every file gets that we create: SOURCE_DATE_EPOCH, else the release's build date."""
    word = os.environ.get("SOURCE_DATE_EPOCH", "")
    if word:
        if not word.isdecimal():
            raise UsageError(f"SOURCE_DATE_EPOCH is {word!r}, not a number of seconds.")
        return int(word)
    return release.build_date if release else 0


def _check_inputs(request: BakeRequest) -> None:
    """Local files must be there; said first, because it costs nothing."""
    if request.image and not request.image.is_file():
        raise UsageError(f"There is no image file {request.image}.")
    for item in request.sysexts:
        if item.path is not None and not item.path.is_file():
            hint = "Add --fetch to take it from the bakery." if len(item.path.parts) == 1 else None
            raise UsageError(f"There is no file {item.path} for the sysext {item.name}.", hint)


def _check_outputs(request: BakeRequest, vendors: tuple[Vendor, ...]) -> None:
    folder = request.output_dir
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"The output folder {folder} is not a folder.")
    existing_parent = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if not os.access(existing_parent, os.W_OK | os.X_OK):
        raise EnvironmentFault(
            f"The output folder {folder} cannot be written to.", "Choose another with --output-dir."
        )
    leftovers = unfinished(folder)
    owners: dict[str, str] = {}
    for vendor in vendors:
        for name in vendor.outputs:
            if owners.setdefault(name, vendor.name) != vendor.name:
                raise UsageError(
                    f"The vendors {owners[name]} and {vendor.name} both write {name}.",
                    "Bake them one after the other.",
                )
        for name in (*vendor.outputs, *RECORDS):
            if (folder / name).exists() and folder / name not in leftovers and not request.force:
                raise UsageError(
                    f"{folder / name} exists already.", "Bake into another --output-dir, or overwrite it with --force."
                )
            if request.image and (folder / name).exists() and (folder / name).samefile(request.image):
                raise UsageError(
                    f"The bake would overwrite its own input {request.image}.", "Choose another --output-dir."
                )


def _check_tools() -> None:
    """Every program the bake will start, before a byte is downloaded."""
    for tool in ESSENTIAL:
        need(tool)


def _backend(wanted: str, services: Services) -> tuple[str, str]:
    """The backend that will be used and why. Raises EnvironmentFault when the one asked for cannot work here."""
    from baker.offline import offline_available
    from baker.privilege import loop_available

    if wanted == "loop":
        with services.console.suspended():  # sudo may want to ask for a password
            reason = loop_available(ask=True)
        if reason:
            raise EnvironmentFault(f"The loop backend cannot work here: {reason}", "Use --backend offline.")
        return "loop", "asked for"
    reason = offline_available()
    if not reason:
        return "offline", "asked for" if wanted == "offline" else "it needs no privileges"
    if wanted == "offline":
        raise EnvironmentFault(f"The offline backend cannot work here: {reason}", "`flatcar-bake doctor` tells more.")
    loop_reason = loop_available()
    if loop_reason:
        raise EnvironmentFault(
            f"No backend can work here. offline: {reason} loop: {loop_reason}", "`flatcar-bake doctor` tells more."
        )
    return "loop", f"the offline backend cannot work here: {reason}"


def _sources(
    vendors: tuple[Vendor, ...], request: BakeRequest, release: Release | None, services: Services
) -> tuple[PlannedVendor, ...]:
    """Choose what each vendor's image is made from."""
    if release is None:
        why = "--image was given; its OEM partition is kept"
        return tuple(PlannedVendor(vendor, "image", str(request.image), why) for vendor in vendors)
    if request.lock is not None:
        pins = [(vendor, request.lock.source(vendor.name)) for vendor in vendors]
        planned = tuple(
            PlannedVendor(vendor.at(release.version), pin.base, pin.source, pin.why) for vendor, pin in pins
        )
    else:
        on_disk = sum(vendor.diskless is None for vendor in vendors)
        planned = tuple(
            choose_source(vendor, request.base, on_disk, release, services, request.without_disk.route)
            for vendor in vendors
        )
    check_sources(planned, request)
    for item in planned:
        if item.vendor.diskless:
            continue
        if item.vendor.retired:
            services.console.warn(f"{item.vendor.name}: {item.vendor.retired}")
        enforce(check_platform(item.vendor, expected_size(item.vendor, release.version)), services.console)
    if request.image:
        return tuple(dataclasses.replace(item, source=str(request.image)) for item in planned)
    return planned


def describe(plan: BakePlan) -> str:
    """The plan for people, as `--plan` prints it."""
    what = f"Flatcar {plan.release.version} ({plan.release.channel})" if plan.release else str(plan.image)
    where = "ROOT" if plan.install_to.target is InstallTarget.ROOT else "OEM"
    if not plan.disks and plan.diskless and plan.diskless[0].base == "usr":
        where = "USR"
    lines = [f"Plan {plan.id[:16]}", f"  base       {what}, {plan.arch}"]
    for item in plan.sysexts:
        lines += describe_sysext(item, where)
    if plan.update_key:
        lines.append(f"  update key sha256 {plan.substance()['update_key'][:16]}…")
    for vendor in plan.vendors:
        lines.append(f"  vendor     {vendor.vendor.name} from {vendor.source} ({vendor.base}: {vendor.why})")
        lines += [f"             → {plan.output_dir / name}" for name in vendor.vendor.outputs]
    if plan.kernel_args:
        lines.append(f"  kernel     {' '.join(plan.kernel_args)}")
    if plan.updates and plan.disks:
        lines.append("  updates    systemd-sysupdate runs by itself")
    lines += [*describe_diskless(plan), *plan.additions.describe()]
    if plan.disks:
        lines.append(f"  backend    {plan.backend} ({plan.backend_why})")
    return "\n".join(map(printable, lines))
