"""From base images to vendor images: grow, inject, fill the OEM partition, check, encode, read back."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from baker.bases import PlannedVendor
from baker.convert import encode
from baker.disk import check_filesystems, grow_root, read_table
from baker.errors import VerificationError
from baker.gather import Base
from baker.job import Job
from baker.layout import layout_size
from baker.model import Artifact, Injection
from baker.oem import oem_injections
from baker.origin import Origin
from baker.sparse import LeadingDigest, clone
from baker.sysext import read_sysext


@dataclass(frozen=True)
class Stage:
    """A disk of one base and one layout, with ROOT finished, and the vendors that go on from it."""

    path: Path
    version: str
    vendors: tuple[PlannedVendor, ...]
    origin: Origin | None = None
    """What holds the rest of the disk, when `path` has only the parts that are edited."""
    leading: LeadingDigest | None = None
    """The digest of what the disk begins with, if that is still what the base begins with."""


def stage_roots(job: Job, bases: Sequence[Base], root: list[Injection]) -> list[Stage]:
    """One disk for every layout that a base's vendors want: grown, and with the ROOT injections in it.

    What is equal for several vendors is done once; they part only afterwards.
    """
    stages: list[Stage] = []
    for base in bases:
        layouts = list(dict.fromkeys(item.vendor.layout for item in base.vendors))
        for number, layout in enumerate(layouts):
            vendors = tuple(item for item in base.vendors if item.vendor.layout == layout)
            path = job.work / f"stage-{len(stages)}.raw"
            if base.shared or number < len(layouts) - 1:
                clone(base.path, path)
            else:
                base.path.rename(path)
            leading = None if _prepare_root(job, path, layout, root) else base.leading
            stages.append(Stage(path, base.version, vendors, base.origin, leading))
    return stages


def _prepare_root(job: Job, path: Path, layout: str, root: list[Injection]) -> bool:
    """Bring a disk to its layout and edit its ROOT; returns whether its partition table changed."""
    table = read_table(path)
    size = layout_size(layout, table)
    grows = size.root > table.get("ROOT").size
    if grows:
        with job.console.step(f"Grow ROOT to the {layout} layout"):
            grow_root(path, size.root, size.disk, job.work)
    with job.console.step("Put the extensions into ROOT"), job.open_editor(path, job.work, job.plan.epoch) as editor:
        editor.apply("ROOT", root)
    return grows


def make_images(job: Job, stages: Sequence[Stage], oem: list[Injection]) -> list[Artifact]:
    """Finish every vendor's disk and encode it, side by side; returns the artifacts in the plan's order."""
    work: list[tuple[Stage, PlannedVendor, Path]] = []
    for stage in stages:
        # The last vendor of a stage takes its disk over, the others get copies.
        for number, item in enumerate(stage.vendors):
            path = stage.path
            if number < len(stage.vendors) - 1:
                path = job.work / f"vendor-{item.vendor.name}.raw"
                clone(stage.path, path)
            work.append((stage, item, path))
    with ThreadPoolExecutor(job.plan.jobs) as pool:
        futures = [pool.submit(_make_image, job, stage, item, path, oem) for stage, item, path in work]
        try:
            made = {future.result().vendor: future.result() for future in futures}
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)  # the end of the block waits for those that have begun
            raise
    return [made[item.vendor.name] for item in job.plan.vendors]


def _make_image(job: Job, stage: Stage, item: PlannedVendor, raw: Path, oem: list[Injection]) -> Artifact:
    vendor = item.vendor
    content = [*_vendor_content(job, stage, item), *oem]
    if content:
        with (
            job.console.step(f"{vendor.name}: fill the OEM partition"),
            job.open_editor(raw, job.work, job.plan.epoch) as editor,
        ):
            editor.apply("OEM", content)
    with job.console.step(f"{vendor.name}: check the filesystems"):
        check_filesystems(raw, read_table(raw), ["ROOT", "OEM"], job.work)
    target = job.out / vendor.image
    with job.console.step(f"{vendor.name}: write {vendor.image}"):
        digest = encode(
            raw, target, vendor.disk, job.plan.jobs, f"{job.plan.id} {vendor.name}", stage.origin, stage.leading
        )
    return Artifact(target, vendor.disk.format, target.stat().st_size, digest, vendor.name)


def _vendor_content(job: Job, stage: Stage, item: PlannedVendor) -> list[Injection]:
    """The vendor's own OEM content, where the image does not have it already."""
    oem = item.vendor.oem
    if item.base != "generic" or oem is None or job.plan.release is None:
        return []
    if not oem.sysext:
        return oem_injections(oem, None, stage.version, job.plan.arch)
    stored = job.services.store.signed_file(job.plan.release, f"oem-{oem.sysext}.raw")
    # The signature does not cover the name; an older OEM sysext in its place would keep the machine from booting.
    found = read_sysext(stored.path, f"oem-{oem.sysext}").version_id
    if found != stage.version:
        raise VerificationError(
            f"{stored.name} of the release server is for Flatcar {found or 'of no version'}, not {stage.version}.",
            "The mirror serves a wrong file.",
        )
    job.use(stored, "OEM sysext")
    return oem_injections(oem, stored.path, stage.version, job.plan.arch)
