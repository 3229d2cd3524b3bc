"""Making what machines without a disk boot from: kernel and cpio with the extensions, and the texts or the ISO."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from baker.bases import PlannedVendor
from baker.diskless import content, cpio, iso, squashfs
from baker.diskless.routes import DOCUMENTED, check_memory, memory_needed
from baker.erofs import Damaged
from baker.errors import VerificationError
from baker.job import Job
from baker.model import Artifact, Injection
from baker.placing import ReadySysext
from baker.readers import Squashfs
from baker.sparse import clone, file_sha256
from baker.store import StoredFile
from baker.sysext import MAX_RELEASE_SIZE, parse_release
from baker.templates import render
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


def make_diskless(job: Job, item: PlannedVendor, live: Live, sysexts: Sequence[ReadySysext]) -> list[Artifact]:
    """A vendor's files, in the folder of finished files then; none of them is when it fails."""
    folder = job.work / f"vendor-{item.vendor.name}"
    folder.mkdir()
    try:
        made = _Maker(job, item, live, folder).make(sysexts)
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

    def make(self, sysexts: Sequence[ReadySysext]) -> list[Artifact]:
        initrds = self._initrds(sysexts)
        needed = memory_needed(path.stat().st_size for path in initrds)
        check_memory(needed, self._job.plan.without_disk.ram, self._vendor.name)
        self._job.console.note(f"{self._vendor.name}: machines need about {needed >> 20} MiB of memory")
        if self._diskless.format == "iso":
            return self._iso(initrds, needed)
        return self._pxe(initrds, needed)

    def _initrds(self, sysexts: Sequence[ReadySysext]) -> list[Path]:
        """What the kernel is to unpack, in order: the release's cpio and what is added, or one with another /usr."""
        job, official = self._job, self._live.cpio.path
        if self._route == "usr":
            with job.console.step(f"{self._vendor.name}: put the extensions into /usr"):
                return [self._with_usr(content.usr_content(sysexts))]
        added = self._folder / "added" / self._diskless.oem
        added.parent.mkdir()
        with job.console.step(f"{self._vendor.name}: pack the extensions"), added.open("wb") as file:
            cpio.pack(file, self._oem_content(sysexts), job.plan.epoch)
        return [official, added]

    def _oem_content(self, sysexts: Sequence[ReadySysext]) -> list[Injection]:
        return content.oem_content(sysexts, self._job.plan.oem_directory, self._live.version)

    def _with_usr(self, files: list[Injection]) -> Path:
        before, after, target = (self._folder / name for name in ("before.squashfs", "after.squashfs", "usr.cpio.gz"))
        cpio.extract(self._live.cpio.path, USR, before)
        squashfs.add_files(before, after, files, self._job.plan.epoch)
        content.check_usr(before, after, files)
        before.unlink()
        with target.open("wb") as file:
            cpio.replace(self._live.cpio.path, USR, after, file)
        after.unlink()
        return target

    def _pxe(self, initrds: Sequence[Path], needed: int) -> list[Artifact]:
        image, kernel = self._folder / self._vendor.image, self._folder / self._diskless.kernel
        clone(self._live.kernel.path, kernel)
        files = [(kernel, "kernel"), (image, "cpio")]
        clone(initrds[0], image)
        if self._diskless.split:
            oem = self._folder / self._diskless.oem
            initrds[1].rename(oem)
            files.append((oem, "cpio"))
        else:
            with image.open("ab") as target:
                for more in initrds[1:]:
                    with more.open("rb") as source:
                        shutil.copyfileobj(source, target, 1 << 20)
        names = [path.name for path, kind in files if kind == "cpio"]
        # The image first: it is what the vendor is known by.
        files.sort(key=lambda item: item[0] != image)
        return [self._artifact(path, kind) for path, kind in files] + self._texts(names, needed)

    def _iso(self, initrds: Sequence[Path], needed: int) -> list[Artifact]:
        job, image = self._job, self._folder / self._vendor.image
        names = ["cpio.gz", "oem.cpio.gz"][: len(initrds)]
        values = self._values([f"/flatcar/{name}" for name in names], needed)
        menu = render(self._vendor.folder / "templates", "iso.grub.j2", values).encode()
        files = {f"flatcar/{name}": path for name, path in zip(names, initrds, strict=True)}
        with job.console.step(f"{self._vendor.name}: write {image.name}"):
            iso.write_iso(
                image, {"flatcar/vmlinuz": self._live.kernel.path, **files}, menu,
                iso.volume_label(self._live.version), job.plan.id, job.plan.epoch, self._folder,
            )  # fmt: skip
        return [self._artifact(image, "iso"), *self._texts(names, needed)]

    def _texts(self, initrds: Sequence[str], needed: int) -> list[Artifact]:
        """The vendor's texts; `initrds` are names."""
        made = []
        for extra in self._vendor.files:
            target = self._folder / extra.name
            text = render(self._vendor.folder / "templates", extra.template, self._values(initrds, needed))
            target.write_text(text, encoding="utf-8")
            target.chmod(extra.mode)
            made.append(self._artifact(target, "text"))
        return made

    def _values(self, initrds: Sequence[str], needed: int) -> Mapping[str, object]:
        args = self._args()
        serial = next((arg for arg in args if arg.startswith("console=ttyS")), "")
        return {
            "image": self._vendor.image, "kernel": self._diskless.kernel, "initrds": list(initrds), "args": args,
            "version": self._live.version, "arch": self._job.plan.arch.value,
            "sysexts": ", ".join(item.name for item in self._job.plan.sysexts), "memory_mib": needed >> 20,
            "documented_mib": DOCUMENTED[self._diskless.format] >> 20, "how": _HOW[self._route],
            "files": {item.template: item.name for item in self._vendor.files},
            "serial": _serial_port(serial.partition("=")[2]),
        }  # fmt: skip

    def _args(self) -> list[str]:
        """The kernel's arguments: consoles, the vendor's, the user's; the last console is the system's own."""
        plan = self._job.plan
        consoles = list(dict(self._diskless.consoles).get(plan.arch, ()))
        if plan.without_disk.serial:
            consoles = [arg for arg in consoles if not _is_serial(arg)]
            if plan.without_disk.serial != "none":
                consoles.append(f"console={plan.without_disk.serial}")
        return [*consoles, *self._diskless.kernel_args, *plan.kernel_args]

    def _artifact(self, path: Path, kind: str) -> Artifact:
        return Artifact(path, kind, path.stat().st_size, file_sha256(path), self._vendor.name)


_HOW = {
    "oem": "The release's cpio is as it was signed; the extensions are in a second one, which is copied to /oem.",
    "usr": "The extensions are in /usr itself, where the release's own are; the cpio is not the signed one any more.",
}


def _is_serial(arg: str) -> bool:
    return arg.startswith("console=tty") and not arg[len("console=tty") :].isdecimal()


def _serial_port(console: str) -> Mapping[str, str]:
    """GRUB's number and speed of a serial port of a PC, as ttyS1,115200n8 names it; empty for another one."""
    port, _, mode = console.partition(",")
    number = port.removeprefix("ttyS")
    if not number.isdecimal() or int(number) > 3:
        return {}
    speed = re.match("[0-9]+", mode)
    return {"unit": number, "speed": speed[0] if speed else "9600"}
