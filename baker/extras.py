"""The files beside an image: launcher scripts, READMEs, UEFI firmware."""

from __future__ import annotations

from pathlib import Path

from baker.job import Job
from baker.model import Artifact
from baker.qemu import firmware_files
from baker.run import run
from baker.sparse import clone, file_sha256
from baker.vendor import ExtraFile, Vendor


def write_extras(job: Job, version: str) -> list[Artifact]:
    """Write every vendor's extra files into the folder of finished files."""
    artifacts = []
    for item in job.plan.vendors:
        for extra in item.vendor.files:
            target = job.out / extra.name
            if extra.template:
                target.write_text(_render(job, item.vendor, extra, version), encoding="utf-8")
                kind = "text"
            else:
                _firmware(job, extra, target)
                kind = "qcow2"
            target.chmod(extra.mode)
            artifacts.append(Artifact(target, kind, target.stat().st_size, file_sha256(target), item.vendor.name))
    return artifacts


def _render(job: Job, vendor: Vendor, extra: ExtraFile, version: str) -> str:
    """Fill a template's @NAMES@. All values are plain file names, versions or sysext names, safe in a shell."""
    by_firmware = {item.firmware: item.name for item in vendor.files if item.firmware}
    script = next((item.name for item in vendor.files if item.mode & 0o111), "")
    values = {
        "IMAGE": vendor.image, "EFI_CODE": by_firmware.get("code", ""), "EFI_VARS": by_firmware.get("vars", ""),
        "SCRIPT": script, "VERSION": version or "unknown", "ARCH": job.plan.arch.value,
        "SYSEXTS": ", ".join(item.name for item in job.plan.sysexts),
    }  # fmt: skip
    text = (vendor.folder / "templates" / extra.template).read_text(encoding="utf-8")
    for name, value in values.items():
        text = text.replace(f"@{name}@", value)
    return text


def _firmware(job: Job, extra: ExtraFile, target: Path) -> None:
    """UEFI firmware as qcow2: the release's own file where it has one, else this machine's OVMF."""
    release = job.plan.release
    lock = job.plan.lock
    if release and (lock.has_file("firmware", extra.name) if lock else job.services.published(release, extra.name)):
        stored = job.services.store.signed_file(release, extra.name)
        job.use(stored, "firmware")
        clone(stored.path, target)
        return
    local = firmware_files(job.plan.arch)
    code = extra.firmware == "code"
    source, source_format = (local.code, local.code_format) if code else (local.vars, local.vars_format)
    job.record(
        {"kind": "local firmware", "name": extra.name, "url": "", "sha256": file_sha256(source), "signer": None}
    )
    run(["qemu-img", "convert", "-f", source_format, "-O", "qcow2", source, target])
