"""What is added for the extensions: a cpio with OEM content, or files in /usr."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from subprocess import DEVNULL

from baker.adding import add_to
from baker.diskless.routes import usr_image
from baker.errors import ImageError
from baker.job import Job
from baker.model import Injection, InstallTarget, Node
from baker.official import gather_official
from baker.placing import ReadySysext, oem_mount, place
from baker.readers import Squashfs
from baker.request import InstallTo
from baker.run import Bounds, spawn
from baker.sparse import file_sha256

OEM = "/usr/share/oem"
"""Where the initrd looks for OEM content in the initramfs, whatever the release mounts OEM at later."""
_LINKS = "/share/flatcar/etc/extensions"
_DEV_NULL = "/dev/null"


@dataclass(frozen=True)
class Content:
    """What machines without a disk get: by the route oem files of the initramfs, by the route usr files of /usr."""

    oem: tuple[Injection, ...] = ()
    usr: tuple[Injection, ...] = ()


def installed(route: str, item: ReadySysext, directory: str, version: str) -> str:
    """The path of a sysext in the running system."""
    if route == "usr":
        return f"/usr{usr_image(item.sysext.name)}"
    return f"{oem_mount(version)}{directory}/{item.file_name}"


def gather_content(job: Job, sysexts: Sequence[ReadySysext], version: str) -> Content:
    """Everything that the plan has for machines without a disk.

    Without sysupdate configs: what they would bring is gone with the next start.
    """
    official = _official(job)
    if job.plan.diskless[0].base == "usr":
        images = {item.sysext.name: item.sysext.path for item in sysexts} | official
        off = {name for item in sysexts for name in item.builtins}
        off |= {f"{name}-flatcar" for name in job.plan.additions.disabled_builtins}
        return Content(usr=tuple(_usr_files(images, off)))
    target = InstallTo(InstallTarget.OEM, job.plan.oem_directory, per_name=False)
    placed = place([replace(item, config=None) for item in sysexts], target, version, updates=False, replace=False)
    for name, path in official.items():
        file = target.path(name, f"{name}.raw")
        placed.setdefault("OEM", []).append(Injection(file, source=path))
        link = Injection(f"/etc/extensions/{name}.raw", mode=0o777, symlink=oem_mount(version) + file)
        placed.setdefault("ROOT", []).append(link)
    added = add_to(placed, job, version, in_memory=True)
    return Content(oem=tuple(replace(item, path=OEM + item.path) for item in added.get("OEM", ())))


def _official(job: Job) -> dict[str, Path]:
    """The official sysexts by the name of their link. Nothing needs to keep them in step with the system here."""
    files = {item.path: item.source for item in gather_official(job)}
    found = {f"flatcar-{item.name}": files[item.installed] for item in job.plan.additions.official}
    return {name: path for name, path in found.items() if path is not None}


def _usr_files(images: dict[str, Path], off: set[str]) -> list[Injection]:
    """The files to add to the squashfs with /usr, placed as the built-in sysexts are, and links that turn some off."""
    files = [Injection(usr_image(name), source=path) for name, path in images.items()]
    links = {name: f"/usr{usr_image(name)}" for name in images} | dict.fromkeys(off, _DEV_NULL)
    return files + [
        Injection(f"{_LINKS}/{name}.raw", symlink=link, replace=name in off) for name, link in sorted(links.items())
    ]


def check_usr(before: Path, after: Path, added: Sequence[Injection]) -> None:
    """Read back a squashfs that files were added to: they are there, and all else is as it was.

    ImageError for what is not so, or for a damaged squashfs.
    """
    there, found = _nodes(before), _nodes(after)
    for item in added:
        node = found.pop(item.path, None)
        there.pop(item.path, None)
        if node is None or not _same(node, item):
            raise ImageError(f"{item.path} was not written into /usr as it should.")
    for path, node in there.items():
        if path in found and _shape(found[path]) != _shape(node):
            raise ImageError(f"{path} of /usr is not as it was.")
    parents = {str(parent) for item in added for parent in Path(item.path).parents}
    strange = (there.keys() ^ found.keys()) - parents
    if strange:
        raise ImageError(f"{min(strange)} of /usr appeared or is gone.")
    for item in added:
        if item.source is not None and _digest(after, item.path) != file_sha256(item.source):
            raise ImageError(f"{item.path} in /usr does not have the content that was written.")


def _nodes(image: Path) -> dict[str, Node]:
    return dict(Squashfs(image, 0, image.stat().st_size).nodes)


def _same(node: Node, item: Injection) -> bool:
    return node.symlink == (item.symlink or "") and (item.symlink is not None or node.size == item.size)


def _shape(node: Node) -> tuple[object, ...]:
    return node.kind, node.mode, node.uid, node.gid, node.size, node.symlink


def _digest(image: Path, path: str) -> str:
    """The sha256 of a file in a squashfs, as unsquashfs reads it."""
    argv = ["unsquashfs", "-processors", "1", "-no-wildcards", "-cat", os.fspath(image), path.lstrip("/")]
    digest = sha256()
    with spawn(argv, stderr=DEVNULL, bounds=Bounds()) as process:
        assert process.stdout is not None
        while data := process.stdout.read(1 << 20):
            digest.update(data)
    return digest.hexdigest()
