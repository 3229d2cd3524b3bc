"""What a vendor's image is made from: the generic image, or one that the release publishes for the vendor."""

from __future__ import annotations

from dataclasses import dataclass

from baker.diskless.routes import choose_route
from baker.errors import UsageError
from baker.model import Release
from baker.services import Services
from baker.vendor import Vendor, numbers

GENERIC_IMAGE = "flatcar_production_image.bin.bz2"
_NO_OWN = "the release has no image of the vendor's own"
_ONLY_PUBLISHED = "its OEM files exist in published images alone"


@dataclass(frozen=True)
class PlannedVendor:
    """A vendor and the image its own is made from. `base` is `generic`, `published` or `image`.

    For a vendor without a disk `base` is the route of the extensions, see `diskless/routes.py`.
    """

    vendor: Vendor
    base: str
    source: str
    why: str


def choose_source(
    vendor: Vendor, base: str, count: int, release: Release, services: Services, route: str = "auto"
) -> PlannedVendor:
    """What one of `count` vendors is made from, for `base` auto, generic or published; `route` if it needs no disk.

    Asks the release server which files exist. UsageError when nothing fits, saying why.
    """
    # The server is asked only for what the answer depends on, so that a full cache needs no server at all.
    vendor = vendor.at(release.version)
    if vendor.diskless is not None:
        chosen = choose_route(release, route)
        return PlannedVendor(vendor, chosen.name, vendor.diskless.cpio, chosen.why)
    if vendor.oem is None:
        return PlannedVendor(vendor, "generic", GENERIC_IMAGE, "the vendor has no OEM content")
    if base != "generic" and (base == "published" or count == 1 or vendor.published_only):
        name = _published(vendor, release, services)
        if name:
            why = "asked for" if base == "published" else "one vendor: an image with its OEM content is published"
            return PlannedVendor(vendor, "published", name, _ONLY_PUBLISHED if vendor.published_only else why)
        if base == "published":
            raise UsageError(
                f"Release {release.version} has no published image for {vendor.name}.",
                vendor.retired or "Use --base generic.",
            )
    lack = _lack(vendor, release, services)
    if not lack:
        why = {"generic": "asked for"}.get(base, "several vendors share one download" if count > 1 else _NO_OWN)
        return PlannedVendor(vendor, "generic", GENERIC_IMAGE, why)
    name = None if vendor.published_only else _published(vendor, release, services)
    if base == "generic":
        hint = "Use --base published." if name else vendor.retired or "Choose another release or vendor."
        raise UsageError(f"{vendor.name} cannot be made from the generic image: {lack}.", hint)
    if name:
        return PlannedVendor(vendor, "published", name, lack)
    raise UsageError(
        f"Nothing to make {vendor.name} from: {lack}, and no published image either.",
        vendor.retired or "Choose another release or vendor.",
    )


def _lack(vendor: Vendor, release: Release, services: Services) -> str:
    """What is missing to make the vendor's image from the generic one; "" for nothing."""
    oem = vendor.oem
    if vendor.published_only:
        return _ONLY_PUBLISHED
    if oem is None or not oem.sysext or services.published(release, sysext := f"oem-{oem.sysext}.raw"):
        return ""
    if oem.since and numbers(release.version) < numbers(oem.since):
        return f"release {release.version} has no {sysext}, which exists since {oem.since}"
    return f"release {release.version} has no {sysext}"


def _published(vendor: Vendor, release: Release, services: Services) -> str | None:
    """The vendor's own image on the release server, the preferred one of those that exist."""
    return next((name for name in vendor.published if services.published(release, name)), None)
