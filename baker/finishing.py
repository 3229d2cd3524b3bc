"""One vendor's image, from the disk that it shares with others to the files that are handed over."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from baker.adding import settle_oem
from baker.bases import PlannedVendor
from baker.bundles import BundleFacts, make_bundle
from baker.bundles.outer import compress
from baker.convert import convert, encode, settle
from baker.disk import check_filesystems, grow_root, read_table
from baker.extras import disk_facts, write_vendor_files
from baker.job import Job
from baker.model import Artifact, Injection
from baker.platform import check_platform, enforce, expected_size, final_size
from baker.stages import Stage
from baker.vendor import Vendor


def finish_vendor(
    job: Job, stage: Stage, item: PlannedVendor, content: Sequence[Injection], jobs: int
) -> list[Artifact]:
    """Fill the OEM partition with `content`, fit the disk, check, encode and pack it; all with at most `jobs` cores.

    Returns the vendor's files, which are in the folder of finished files then; none of them is when it fails.
    """
    vendor = item.vendor
    folder = job.work / f"vendor-{vendor.name}"
    folder.mkdir()
    try:
        made = _make(job, stage, item, content, folder, jobs)
        return [_finished(job, artifact) for artifact in made]
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _make(
    job: Job, stage: Stage, item: PlannedVendor, content: Sequence[Injection], folder: Path, jobs: int
) -> list[Artifact]:
    vendor = item.vendor
    raw = folder / "disk.raw"
    origin = stage.take(item, raw)
    changed = _edit(job, raw, vendor, content, folder)
    disk = folder / "disk" / vendor.image
    disk.parent.mkdir(parents=True)
    facts = disk_facts(job, vendor, disk, raw.stat().st_size, stage.version)
    seed = f"{job.plan.id} {vendor.name}"
    packed, digest = vendor.result != vendor.image, ""
    with job.console.step(f"{vendor.name}: write {vendor.image}"):
        if packed:
            convert(raw, disk, vendor.disk, jobs, seed, origin)
        else:
            digest = encode(raw, disk, vendor.disk, jobs, seed, origin, None if changed else stage.leading)
    raw.unlink(missing_ok=True)
    files = write_vendor_files(job, facts, folder)  # some tell the size of the disk's file
    if packed:
        with job.console.step(f"{vendor.name}: pack {vendor.result}"):
            disk = _packed(job, facts, folder, jobs)
        digest = settle(disk)
    _check_platform(job, vendor, facts.virtual_size, disk)
    kind = vendor.bundle.format if vendor.bundle else f"{vendor.disk.format}.{vendor.compress}".rstrip(".")
    return [Artifact(disk, kind, disk.stat().st_size, digest, vendor.name), *files]


def _packed(job: Job, facts: BundleFacts, folder: Path, jobs: int) -> Path:
    """The encoded disk in its bundle, or compressed; the disk's own file is gone then."""
    bundle = facts.vendor.bundle
    if bundle is None:
        return compress(facts.disk, facts.vendor.compress, jobs, facts.epoch)
    made = make_bundle(bundle, facts, folder, jobs)
    facts.disk.unlink()
    return made


def _check_platform(job: Job, vendor: Vendor, size: int, file: Path) -> None:
    """Check what the platform demands of the finished file; what the plan has warned of is not said again."""
    release = job.plan.release
    told = check_platform(vendor, expected_size(vendor, release.version)) if release else []
    enforce((breach for breach in check_platform(vendor, size, file) if breach not in told), job.console)


def _edit(job: Job, raw: Path, vendor: Vendor, content: Sequence[Injection], folder: Path) -> bool:
    """Edit the vendor's OEM partition and bring the disk to its size; returns whether that changed."""
    table = read_table(raw)
    size = final_size(vendor, table.size)
    grows = size != table.size
    if grows:
        with job.console.step(f"{vendor.name}: enlarge the disk to {size} bytes"):
            table = grow_root(raw, table.get("ROOT").size, size, folder)
    if content or job.plan.kernel_args:
        with (
            job.console.step(f"{vendor.name}: fill the OEM partition"),
            job.open_editor(raw, folder, job.plan.epoch) as editor,
        ):
            editor.apply("OEM", settle_oem(editor, content, job.plan.kernel_args))
    with job.console.step(f"{vendor.name}: check the OEM partition"):
        check_filesystems(raw, table, ["OEM"], folder)
    return grows


def _finished(job: Job, artifact: Artifact) -> Artifact:
    """Move a vendor's file to the finished ones."""
    target = job.out / artifact.path.name
    artifact.path.rename(target)
    return replace(artifact, path=target)
