"""Making what machines without a disk boot from: kernel and cpio with the extensions, and the texts or the ISO."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory

from baker.bases import PlannedVendor
from baker.diskless import cpio, iso, squashfs
from baker.diskless.content import Content, check_usr
from baker.diskless.routes import check_memory, memory_needed
from baker.diskless.texts import MENU, LiveFacts, kernel_arguments
from baker.erofs import Damaged
from baker.errors import ImageError, VerificationError
from baker.extension_release import MAX_RELEASE_SIZE, parse_release
from baker.job import Job
from baker.model import Artifact, Injection
from baker.readers import Squashfs
from baker.sparse import clone, file_sha256
from baker.store import StoredFile
from baker.vendor import Diskless

USR = "usr.squashfs"
"""The file in the release's cpio that holds /usr."""
_OS_RELEASE = "/lib/os-release"


@dataclass(frozen=True)
class Live:
    """A release's kernel and cpio, verified, and the version that the /usr in it is of."""

    kernel: StoredFile
    cpio: StoredFile
    version: str


def fetch_live(job: Job) -> Live | None:
    """Bring in what the plan's machines without a disk are made from; None when there are none.

    VerificationError for a cpio that holds another release than the planned one: a signature covers no name.
    """
    diskless = next((item.vendor.diskless for item in job.plan.diskless), None)
    release = job.plan.release
    if diskless is None or release is None:
        return None
    kernel = job.services.store.signed_file(release, diskless.kernel)
    job.use(kernel, "kernel")
    archive = job.services.store.signed_file(release, diskless.cpio)
    job.use(archive, "cpio")
    with job.console.step("Check the release inside the cpio"):
        found = _os_release(job, archive)
    version = found.get("VERSION", found.get("VERSION_ID", ""))
    for what, said, wanted in (
        ("holds Flatcar", version, release.version),
        ("is built for", found.get("FLATCAR_BOARD", release.board), release.board),
    ):
        if said != wanted:
            raise VerificationError(
                f"{archive.name} {what} {said or 'of an unknown version'}, not {wanted}.",
                "The mirror serves a wrong file.",
            )
    return Live(kernel, archive, version)


def _os_release(job: Job, archive: StoredFile) -> dict[str, str]:
    """The os-release of the /usr in a cpio; read once for each downloaded file."""
    cache, name = job.services.cache, f"os-release of sha256:{archive.sha256}"
    known = cache.recall(name)
    if known is not None:
        fields: dict[str, str] = json.loads(known)
        return fields
    with TemporaryDirectory(dir=job.work, prefix="usr-") as folder:
        image = Path(folder) / USR
        cpio.extract(archive.path, USR, image)
        try:
            tree = Squashfs(image, 0, image.stat().st_size)
            data = tree.read(_OS_RELEASE, MAX_RELEASE_SIZE) if _OS_RELEASE in tree.nodes else b""
        except Damaged as error:
            raise VerificationError(f"{USR} in {archive.name} {error}.") from error
    found = parse_release(data)
    cache.remember(name, json.dumps(found).encode())
    return found


def make_diskless(job: Job, item: PlannedVendor, live: Live, added: Content) -> list[Artifact]:
    """A vendor's files, in the folder of finished files then; none of them is when it fails."""
    folder = job.work / f"vendor-{item.vendor.name}"
    folder.mkdir()
    try:
        made = _Maker(job, item, live, folder).make(added)
        return [_finished(job, artifact) for artifact in made]
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _finished(job: Job, artifact: Artifact) -> Artifact:
    target = job.out / artifact.path.name
    artifact.path.rename(target)
    return replace(artifact, path=target)


class _Maker:
    """Makes the files of one vendor in `folder`."""

    def __init__(self, job: Job, item: PlannedVendor, live: Live, folder: Path) -> None:
        assert item.vendor.diskless is not None
        self._job, self._vendor, self._live, self._folder = job, item.vendor, live, folder
        self._diskless: Diskless = item.vendor.diskless
        self._route = item.base

    def make(self, added: Content) -> list[Artifact]:
        initrds = self._initrds(added)
        needed = memory_needed(path.stat().st_size for path in initrds)
        check_memory(needed, self._job.plan.without_disk.ram, self._vendor.name)
        self._job.console.note(f"{self._vendor.name}: machines need about {needed >> 20} MiB of memory")
        return self._iso(initrds, needed) if self._diskless.format == "iso" else self._pxe(initrds, needed)

    def _initrds(self, added: Content) -> list[Path]:
        """What the kernel is to unpack, in order: the release's cpio and what is added, or one with another /usr."""
        if self._route == "usr":
            with self._job.console.step(f"{self._vendor.name}: put the extensions into /usr"):
                return [self._with_usr(added.usr)]
        target = self._folder / "added" / self._diskless.oem
        target.parent.mkdir()
        with self._job.console.step(f"{self._vendor.name}: pack the extensions"), target.open("wb") as file:
            cpio.pack(file, added.oem, self._job.plan.epoch)
            file.flush()
            cpio.check(target, added.oem)
        return [self._live.cpio.path, target]

    def _with_usr(self, files: Sequence[Injection]) -> Path:
        before, after, target = (self._folder / name for name in ("before.squashfs", "after.squashfs", "usr.cpio.gz"))
        cpio.extract(self._live.cpio.path, USR, before)
        squashfs.add_files(before, after, files, self._job.plan.epoch)
        check_usr(before, after, files)
        before.unlink()
        with target.open("wb") as file:
            cpio.replace(self._live.cpio.path, USR, after, file)
        after.unlink()
        return target

    def _pxe(self, initrds: Sequence[Path], needed: int) -> list[Artifact]:
        image, kernel = self._folder / self._vendor.image, self._folder / self._diskless.kernel
        clone(initrds[0], image)
        clone(self._live.kernel.path, kernel)
        loaded = [image]
        if self._diskless.split:
            loaded.append(initrds[1].rename(self._folder / self._diskless.oem))
        else:
            with image.open("ab") as target:
                for more in initrds[1:]:
                    with more.open("rb") as source:
                        shutil.copyfileobj(source, target, 1 << 20)
        if self._route == "oem":
            self._check_official(image)
        facts = self._facts([path.name for path in loaded], needed)
        made = [self._artifact(path, "cpio") for path in loaded]
        return [*made, self._artifact(kernel, "kernel"), *self._texts(facts)]

    def _check_official(self, image: Path) -> None:
        """The file must begin with the release's cpio as it was signed."""
        official, digest = self._live.cpio, sha256()
        with image.open("rb") as file:
            left = official.size
            while left and (data := file.read(min(left, 1 << 20))):
                digest.update(data)
                left -= len(data)
        if digest.hexdigest() != official.sha256:
            raise ImageError(f"{image.name} does not begin with {official.name} as it was signed.")

    def _iso(self, initrds: Sequence[Path], needed: int) -> list[Artifact]:
        image, plan = self._folder / self._vendor.image, self._job.plan
        paths = ["flatcar/cpio.gz", "flatcar/oem.cpio.gz"][: len(initrds)]
        facts = self._facts([f"/{path}" for path in paths], needed)
        files = {"flatcar/vmlinuz": self._live.kernel.path, **dict(zip(paths, initrds, strict=True))}
        with self._job.console.step(f"{self._vendor.name}: write {image.name}"):
            label = iso.volume_label(self._live.version)
            iso.write_iso(image, files, facts.render(MENU).encode(), label, plan.id, plan.epoch, self._folder)
        return [self._artifact(image, "iso"), *self._texts(facts)]

    def _facts(self, initrds: Sequence[str], needed: int) -> LiveFacts:
        plan = self._job.plan
        args = kernel_arguments(self._diskless, plan.arch, plan.without_disk.serial, plan.kernel_args)
        return LiveFacts(
            self._vendor, self._diskless, plan.arch, self._live.version, tuple(item.name for item in plan.sysexts),
            tuple(initrds), args, needed, self._route,
        )  # fmt: skip

    def _texts(self, facts: LiveFacts) -> list[Artifact]:
        made = []
        for extra in self._vendor.files:
            target = self._folder / extra.name
            target.write_text(facts.text(extra), encoding="utf-8")
            target.chmod(extra.mode)
            made.append(self._artifact(target, "text"))
        return made

    def _artifact(self, path: Path, kind: str) -> Artifact:
        return Artifact(path, kind, path.stat().st_size, file_sha256(path), self._vendor.name)
