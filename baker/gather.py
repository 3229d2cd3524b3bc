"""Bringing the inputs in: base images, sysexts and their configs, each verified before anything uses it."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from shutil import rmtree
from typing import Any

from baker.admission import admit
from baker.bases import PlannedVendor, choose_source
from baker.convert import edits_in_place, to_raw
from baker.disk import probe_fs, read_table
from baker.errors import ImageError, UsageError, VerificationError
from baker.formats import takes_over
from baker.formats.probe import image_info
from baker.gpt import read_gpt
from baker.inspection import read_os_release
from baker.job import Job
from baker.model import Arch, Injection, Partition, Release
from baker.oem import oem_injections
from baker.origin import Origin, first_edited, unpack_edited
from baker.origins import PlannedSysext
from baker.placing import ReadySysext
from baker.services import Services
from baker.sign import KEYRING_NAME
from baker.sparse import LeadingDigest, file_sha256
from baker.store import StoredDisk, StoredFile
from baker.sysext import builtins_replaced, read_sysext
from baker.sysupdate import lint_config, matches, parse_config
from baker.vendor import find_vendors

_OEM_ID = re.compile(rb'^set oem_id="([^"]*)"', re.MULTILINE)


@dataclass(frozen=True)
class Base:
    """A raw disk image to start from.

    `shared` means the cache's copy, which must be cloned and never written to. With `origin` the disk holds only what
    a bake edits. `digest` identifies what was downloaded; "" for an image of the user's own.
    """

    path: Path
    vendors: tuple[PlannedVendor, ...]
    shared: bool = False
    origin: Origin | None = None
    digest: str = ""
    version: str = ""
    leading: LeadingDigest | None = None
    """The digest of what raw results begin with: all up to the first partition that is edited."""


def fetch_bases(job: Job) -> list[Base]:
    """Get every base image of the plan as a raw disk, and make sure that it holds the release it claims to be.

    A signature covers a file's bytes, not its name: a mirror could serve an older release, properly signed, in place
    of the one asked for. What the image says of itself settles that.
    """
    bases = []
    for source in dict.fromkeys(item.source for item in job.plan.disks):
        base = _raw_base(job, source, tuple(item for item in job.plan.disks if item.source == source))
        leading = _leading_digest(base)  # begun now, to be ready when the rest is
        bases.append(replace(base, version=_check_release(job, base, source), leading=leading))
    return bases


def _leading_digest(base: Base) -> LeadingDigest | None:
    if not base.shared or not any(takes_over(item.vendor.disk) for item in base.vendors):
        return None
    return LeadingDigest(base.path, first_edited(read_gpt(base.path)))


def _raw_base(job: Job, source: str, vendors: tuple[PlannedVendor, ...]) -> Base:
    plan = job.plan
    if plan.image is not None or plan.release is None:
        assert plan.image is not None
        # Under its own name, for the sake of messages; in a folder, for the sake of other names in the work folder.
        target = job.work / "image" / plan.image.name
        target.parent.mkdir()
        with job.console.step(f"Read {plan.image.name}"):
            return Base(target, vendors, origin=_unpack(job, plan.image, target, vendors))
    stored = fetch_base(job.services, plan.release, source)
    job.use(stored, "image")
    if isinstance(stored, StoredDisk) and image_info(stored.path).format == "raw":
        return Base(stored.path, vendors, shared=True, digest=stored.sha256)
    target = job.work / f"{Path(source).name}.raw"
    with job.console.step(f"Unpack {source}"):
        return Base(target, vendors, origin=_unpack(job, stored.path, target, vendors), digest=stored.sha256)


def _unpack(job: Job, image: Path, target: Path, vendors: tuple[PlannedVendor, ...]) -> Origin | None:
    """Make a raw disk of an image: of its edited parts alone where that is enough for all of its vendors."""
    if all(edits_in_place(item.vendor.disk) for item in vendors):
        origin = unpack_edited(image, target, job.plan.jobs)
        if origin is not None:
            return origin
    to_raw(image, target)
    return None


def fetch_base(services: Services, release: Release, source: str) -> StoredDisk | StoredFile:
    """A release's disk image, verified and without its outer compression, in the cache."""
    if source.endswith((".bz2", ".gz")):
        return services.store.disk(release, source)
    return services.store.signed_file(release, source)


def _check_release(job: Job, base: Base, source: str) -> str:
    """The version the image's /usr is of; VerificationError when it is not the planned one."""
    plan = job.plan
    table = read_table(base.path)
    table.get("ROOT")
    with job.console.step("Check the release inside the image"):
        try:
            found = _os_release(job, base, table.get("USR-A"))
        except ImageError as error:
            if plan.image is None:
                raise
            job.console.warn(f"{error.message} The release in {source} stays unknown and is not checked.")
            found = {}
    version, board = found.get("VERSION", found.get("VERSION_ID", "")), found.get("FLATCAR_BOARD", "")
    if board and board != plan.arch.board:
        raise (VerificationError if plan.image is None else UsageError)(
            f"{source} is built for {board}, but {plan.arch} was asked for.", "Choose the architecture with --arch."
        )
    if plan.release and version != plan.release.version:
        raise (VerificationError if plan.image is None else UsageError)(
            f"{source} holds Flatcar {version or 'of an unknown version'}, not {plan.release.version}.",
            "The mirror serves a wrong file."
            if plan.image is None
            else f"Say which release it is: --release {version}",
        )
    return version


def _os_release(job: Job, base: Base, partition: Partition) -> dict[str, str]:
    """The os-release of an image's /usr; read once for each downloaded file, because getting at it takes a second."""
    cache, name = job.services.cache, f"os-release of sha256:{base.digest}"
    known = cache.recall(name) if base.digest else None
    if known is not None:
        fields: dict[str, str] = json.loads(known)
        return fields
    disk = base.path
    if base.origin is not None:
        disk = job.work / "usr.raw"
        base.origin.unpack_partition(partition, disk, job.plan.jobs)
        partition = replace(partition, fs=probe_fs(disk, partition.offset, partition.size))
    found = read_os_release(disk, partition, job.work)
    if base.origin is not None:
        disk.unlink()
    if base.digest:
        cache.remember(name, json.dumps(found).encode())
    return found


def gather_oem(job: Job, bases: Sequence[Base]) -> dict[str, list[Injection]]:
    """Each vendor's own OEM content, by its name; empty where the image it is made from has it already."""
    if not bases:
        return {}
    version = bases[0].version
    if job.plan.release is None:
        _check_kept_oem(job, bases[0])
    with ThreadPoolExecutor(job.plan.jobs) as pool:
        contents = pool.map(lambda item: _vendor_content(job, item, version), job.plan.disks)
        return {item.vendor.name: content for item, content in zip(job.plan.disks, contents, strict=True)}


def _check_kept_oem(job: Job, base: Base) -> None:
    """Warn of vendors whose platform the OEM partition that is kept was not made for."""
    with job.open_editor(base.path, job.work, job.plan.epoch) as editor:
        found = _OEM_ID.search(editor.read("OEM", "/grub.cfg") or b"")
    kept = found[1].decode("utf-8", "replace") if found else ""
    for item in job.plan.vendors:
        wanted = item.vendor.oem.id if item.vendor.oem else kept
        if kept != wanted:
            holds = f"that of {kept}" if kept else "empty"
            job.console.warn(
                f"The OEM partition of {base.path.name} is {holds}, and {item.vendor.name} needs that of {wanted}. "
                f"To have it filled: --base generic --release {base.version or 'VERSION'}"
            )


def _vendor_content(job: Job, item: PlannedVendor, version: str) -> list[Injection]:
    oem, release = item.vendor.oem, job.plan.release
    if item.base != "generic" or oem is None or release is None:
        return []
    if not oem.sysext:
        return oem_injections(oem, None, version, job.plan.arch)
    stored = job.services.store.signed_file(release, f"oem-{oem.sysext}.raw")
    # The signature does not cover the name; an older OEM sysext in its place would keep the machine from booting.
    found = read_sysext(stored.path, f"oem-{oem.sysext}").version_id
    if found != version:
        raise VerificationError(
            f"{stored.name} of the release server is for Flatcar {found or 'of no version'}, not {version}.",
            "The mirror serves a wrong file.",
        )
    job.use(stored, "OEM sysext")
    return oem_injections(oem, stored.path, version, job.plan.arch)


def gather_sysexts(job: Job, version: str) -> list[ReadySysext]:
    """Fetch what is not local, check every digest, and let each sysext through the lint."""
    return [_ready(job, item, version) for item in job.plan.sysexts]


def _ready(job: Job, item: PlannedSysext, version: str) -> ReadySysext:
    store = job.services.store
    path = Path(item.location)
    built: dict[str, Any] = {}
    if item.origin == "bakery":
        stored = store.bakery(job.services.bakery, item.location, item.sha256 if job.plan.lock else "")
        path = stored.path
        job.use(stored, "sysext")
    elif item.origin == "url":
        stored = store.pinned_url(item.location, item.sha256)
        path = stored.path
        job.use(stored, "sysext")
    elif item.origin == "recipe":
        path, built = _build(job, item)
    sysext = read_sysext(path, item.name)
    if item.sha256 and sysext.sha256 != item.sha256:
        if item.origin == "recipe":
            raise VerificationError(
                f"{item.file_name} was built again, and is not what bake.lock says: {sysext.sha256}.",
                "The recipe or a tool is another one; if that is wanted, bake once with --lock instead of --locked.",
            )
        raise VerificationError(
            f"{item.file_name} changed after the plan was made.", "Run the bake again, when nobody writes to the file."
        )
    findings = admit(sysext, job.plan.arch, version or None, job.plan.allow, job.console)
    config = _config(job, item)
    if config is not None and job.plan.lock is not None:
        job.plan.lock.check_config(item.name, file_sha256(config))
    return ReadySysext(
        sysext, item.origin, item.file_name, config, Path(item.config).name if config else "",
        tuple(sorted(builtins_replaced(path, version or None))), findings, built,
    )  # fmt: skip


def use_update_key(job: Job) -> list[Injection]:
    """What makes machines trust signed updates, as entries for ROOT; recorded as an input, if it is asked for."""
    key = job.plan.update_key
    if not key:
        return []
    digest = hashlib.sha256(key).hexdigest()
    job.record({"kind": "update key", "name": KEYRING_NAME, "url": "", "sha256": digest, "signer": None})
    return [Injection(f"/etc/systemd/{KEYRING_NAME}", content=key, replace=job.plan.force)]


def _build(job: Job, item: PlannedSysext) -> tuple[Path, dict[str, Any]]:
    """Build a sysext from its recipe, or find it in the cache; returns it and what it was built with."""
    from baker.recipe.build import build

    assert item.recipe is not None
    work = job.work / f"recipe-{item.name}"
    work.mkdir()
    built = build(item.recipe, job.services, work)
    rmtree(work)
    for source in built.inputs:
        job.record(source.record(item.name))
    return built.path, {**item.recipe.as_dict(), "tool": built.tool}


def _config(job: Job, item: PlannedSysext) -> Path | None:
    """The sysupdate config of a sysext; one that no digest covers must be harmless by its content."""
    if not item.config:
        return None
    if item.origin == "local":
        _check_recognised(job, item, Path(item.config).read_bytes())
        return Path(item.config)
    stored = job.services.store.bakery(job.services.bakery, item.config, item.config_sha256)
    job.use(stored, "sysupdate config")
    data = stored.path.read_bytes()
    if not stored.verified:
        problem = lint_config(data, item.name)
        if problem:
            raise ImageError(f"The bakery's {item.config} is not covered by SHA256SUMS, and {problem}.")
        job.console.note(f"{item.config} is not listed in SHA256SUMS; its content was checked instead")
    _check_recognised(job, item, data)
    return stored.path


def _check_recognised(job: Job, item: PlannedSysext, config: bytes) -> None:
    """Warn when systemd-sysupdate will not know the baked file for one of its own: it would download it again."""
    try:
        parsed = parse_config(config)
    except ImageError as error:
        raise ImageError(f"The sysupdate config {Path(item.config).name} {error.message}.") from error
    patterns = parsed.target_patterns
    if parsed.verify and not job.plan.update_key:
        job.console.warn(
            f"{item.name} is updated from signed releases only, and the image gets no key to check them by: "
            "--update-key FILE"
        )
    if not any(matches(pattern, item.file_name, job.plan.arch) for pattern in patterns):
        job.console.warn(
            f"{item.file_name} does not match {' or '.join(patterns) or 'any pattern'} of {Path(item.config).name}, "
            "so systemd-sysupdate will not recognise it as an installed version."
        )


def fetch_release(
    services: Services, request: str, arch: Arch, vendor_names: tuple[str, ...], base: str
) -> list[StoredDisk | StoredFile]:
    """Bring everything a bake of this release for these vendors would download into the cache, verified."""
    release, names = release_files(services, request, arch, vendor_names, base)
    return [
        fetch_base(services, release, name) if is_base else services.store.signed_file(release, name)
        for name, is_base in names.items()
    ]


def release_files(
    services: Services, request: str, arch: Arch, vendor_names: tuple[str, ...], base: str
) -> tuple[Release, dict[str, bool]]:
    """The release that `request` means, and what a bake of it for these vendors downloads: name → is it a disk?"""
    vendors = find_vendors(vendor_names, arch, services.vendors)
    release = services.resolve(request, arch)
    files: dict[str, bool] = {}
    for vendor in vendors:
        if vendor.diskless is not None:
            for name in (vendor.diskless.kernel, vendor.diskless.cpio):
                files.setdefault(name, False)
            continue
        chosen = choose_source(vendor, base, len(vendors), release, services)
        files[chosen.source] = True
        wanted = [extra.name for extra in vendor.files if extra.firmware and services.published(release, extra.name)]
        oem = chosen.vendor.oem
        if chosen.base == "generic" and oem and oem.sysext:
            wanted.append(f"oem-{oem.sysext}.raw")
        for name in wanted:
            files.setdefault(name, False)
    return release, files
