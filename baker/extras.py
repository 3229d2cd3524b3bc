"""The files beside an image: launcher scripts, READMEs, UEFI firmware."""

from __future__ import annotations

from pathlib import Path

from baker.bundles.facts import BundleFacts
from baker.job import Job
from baker.model import Artifact
from baker.qemu import firmware_files
from baker.run import run
from baker.sparse import clone, file_sha256
from baker.vendor import ExtraFile, Vendor


def disk_facts(job: Job, vendor: Vendor, disk: Path, virtual_size: int, version: str) -> BundleFacts:
    """What texts may say of a vendor's finished disk, the encoded file `disk` of `virtual_size` bytes."""
    return BundleFacts(
        vendor=vendor, disk=disk, virtual_size=virtual_size, arch=job.plan.arch, version=version,
        sysexts=tuple(item.name for item in job.plan.sysexts), seed=job.plan.id, epoch=job.plan.epoch,
    )  # fmt: skip


def write_vendor_files(job: Job, facts: BundleFacts, folder: Path) -> list[Artifact]:
    """Write a vendor's extra files into `folder`. UsageError or ImageError for a template that cannot be filled in."""
    artifacts = []
    for extra in facts.vendor.files:
        target = folder / extra.name
        if extra.template:
            target.write_text(facts.text(extra), encoding="utf-8")
            kind = "text"
        else:
            _firmware(job, extra, target)
            kind = "qcow2"
        target.chmod(extra.mode)
        artifacts.append(Artifact(target, kind, target.stat().st_size, file_sha256(target), facts.vendor.name))
    return artifacts


def _firmware(job: Job, extra: ExtraFile, target: Path) -> None:
    """UEFI firmware as qcow2: the release's own file where it has one, else this machine's OVMF."""
    release = job.plan.release
    lock = job.plan.lock
    if release and (lock.has_file("firmware", extra.name) if lock else job.services.published(release, extra.name)):
        stored = job.services.store.signed_file(release, extra.name)
        job.use(stored, "firmware")
        clone(stored.path, target)
        return
    local = firmware_files(job.plan.arch, secure=extra.secure)
    code = extra.firmware == "code"
    source, source_format = (local.code, local.code_format) if code else (local.vars, local.vars_format)
    job.record(
        {"kind": "local firmware", "name": extra.name, "url": "", "sha256": file_sha256(source), "signer": None}
    )
    run(["qemu-img", "convert", "-f", source_format, "-O", "qcow2", source, target])
