"""What a plan says and checks of vendors whose machines have no disk."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from baker.diskless import iso
from baker.diskless.routes import DOCUMENTED, check_memory, memory_needed, usr_image
from baker.errors import UsageError
from baker.model import InstallTarget

if TYPE_CHECKING:
    from baker.bases import PlannedVendor
    from baker.console import Console
    from baker.model import Release
    from baker.origins import PlannedSysext
    from baker.plan import BakePlan
    from baker.request import BakeRequest, InstallTo
    from baker.services import Services
    from baker.vendor import Vendor


def adapt(vendor: Vendor, request: BakeRequest) -> Vendor:
    """The vendor as it was asked for: with its extensions in a cpio of their own."""
    if vendor.diskless is None or vendor.diskless.format != "pxe" or not request.without_disk.split:
        return vendor
    return dataclasses.replace(vendor, diskless=dataclasses.replace(vendor.diskless, split=True))


def check_request(request: BakeRequest, vendors: Sequence[Vendor], console: Console) -> None:
    """Refuse what makes no sense without a disk, before anything is looked up; warn of what has no effect."""
    diskless = [vendor for vendor in vendors if vendor.diskless is not None]
    if not diskless:
        return
    name, only = diskless[0].name, len(diskless) == len(vendors)
    if request.image is not None:
        raise UsageError(
            f"{name} is made from a release's kernel and cpio, not from a disk image.",
            "Leave out --image; local sysexts can be given as NAME:FILE.",
        )
    if only and request.install_to.target is InstallTarget.ROOT and not request.install_to.per_name:
        raise UsageError(
            f"--install-to root:{request.install_to.directory} has no effect: ROOT is on a disk, and {name} starts "
            "machines without one.",
            "Leave it out, or choose the folder below /oem with --install-to oem:/DIR.",
        )
    if any(vendor.diskless and vendor.diskless.format == "iso" for vendor in diskless):
        iso.check_tools()
    if request.updates:
        console.warn(f"{name}: nothing is updated, because what an update brings is gone with the next start.")
    check_memory(memory_needed(_local_sizes(request)), request.without_disk.ram, f"{name}, of the extensions alone,")


def _local_sizes(request: BakeRequest) -> list[int]:
    return [item.path.stat().st_size for item in request.sysexts if item.path is not None]


def check_sources(planned: Iterable[PlannedVendor], request: BakeRequest) -> None:
    """Refuse what does not go with the route that was chosen."""
    additions = request.additions
    for item in planned:
        if (
            item.vendor.diskless
            and item.base == "usr"
            and any((additions.files, additions.ignition, additions.ignition_base))
        ):
            raise UsageError(
                f"{item.vendor.name}: only sysexts can go into /usr, no files and no Ignition: {item.why}.",
                "Ignition can come from the kernel command line: --kernel-arg ignition.config.url=URL.",
            )
        if item.vendor.diskless and item.vendor.diskless.split and item.base == "usr":
            raise UsageError(
                "--pxe-split keeps the extensions in a cpio of their own, and here they go into /usr: "
                + item.why
                + ".",
                "Leave out --pxe-split.",
            )


def least_memory(
    planned: Iterable[PlannedVendor], request: BakeRequest, release: Release | None, services: Services
) -> int:
    """Bytes of memory that machines without a disk need at least: what is known before sysexts are fetched.

    0 when every machine has a disk. UsageError when it is more than --ram.
    """
    first = next((item for item in planned if item.vendor.diskless), None)
    if first is None or release is None:
        return 0
    needed = memory_needed([services.store.size(release, first.source), *_local_sizes(request)])
    check_memory(needed, request.without_disk.ram, first.vendor.name)
    return needed


def settle_sysexts(sysexts: Iterable[PlannedSysext], planned: Sequence[PlannedVendor]) -> tuple[PlannedSysext, ...]:
    """The sysexts as they are when no machine has a disk: without sysupdate configs, and in /usr on that route."""
    if not planned or any(item.vendor.diskless is None for item in planned):
        return tuple(sysexts)
    in_usr = planned[0].base == "usr"
    return tuple(
        dataclasses.replace(
            item, config="", config_sha256="", installed=usr_image(item.name) if in_usr else item.installed
        )
        for item in sysexts
    )


def place_in_memory(install_to: InstallTo, vendors: Sequence[Vendor]) -> InstallTo:
    """Where sysexts go: below OEM when no machine has a disk."""
    if install_to.target is InstallTarget.OEM or not vendors or any(vendor.diskless is None for vendor in vendors):
        return install_to
    from baker.request import OEM_DIRECTORY, InstallTo

    return InstallTo(InstallTarget.OEM, OEM_DIRECTORY, per_name=False)


def describe_diskless(plan: BakePlan) -> list[str]:
    """Lines of the plan for people: how extensions come in, what is left out, and the memory."""
    if not plan.diskless:
        return []
    first = plan.diskless[0]
    route = {
        "oem": f"in a second cpio, copied to /oem{plan.oem_directory} and linked by a base Ignition config",
        "usr": "into /usr of the release's cpio, beside the built-in ones; no Ignition is needed",
    }[first.base]
    lines = [f"  in memory  extensions {route}", "             no sysupdate: nothing outlives a restart"]
    asked = ", ".join(f"{DOCUMENTED[item.vendor.diskless.format] >> 20} MiB for {item.vendor.name}"
                      for item in plan.diskless if item.vendor.diskless)  # fmt: skip
    lines.append(f"  memory     {plan.least_memory >> 20} MiB at least: twice what is loaded, and 512 MiB")
    lines.append(f"             Flatcar's documentation asks for {asked} even without extensions")
    return lines
