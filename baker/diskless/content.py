"""What is added for the extensions: a cpio with OEM content, or files in /usr."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from hashlib import sha256
from pathlib import Path
from subprocess import DEVNULL

from baker.errors import ImageError
from baker.ignition import BASE_PATH, base_config
from baker.model import Injection, Node
from baker.placing import ReadySysext, oem_mount
from baker.readers import Squashfs
from baker.run import Bounds, spawn
from baker.sparse import file_sha256

OEM = "/usr/share/oem"
"""Where the initrd looks for OEM content in the initramfs, whatever the release mounts OEM at later."""
_IMAGES, _LINKS = "/share/flatcar/sysext", "/share/flatcar/etc/extensions"
_DEV_NULL = "/dev/null"


def usr_image(name: str) -> str:
    """Where /usr has a sysext, within its squashfs."""
    return f"{_IMAGES}/{name}.raw"


def installed(route: str, item: ReadySysext, directory: str, version: str) -> str:
    """The path of a sysext in the running system."""
    if route == "usr":
        return f"/usr{usr_image(item.sysext.name)}"
    return f"{oem_mount(version)}{directory}/{item.file_name}"


def oem_content(sysexts: Sequence[ReadySysext], directory: str, version: str) -> list[Injection]:
    """The files of the second cpio: the sysexts in the folder `directory` of OEM, and the base config that links them.

    A sysupdate config has no use: what it would bring is gone with the next start.
    """
    files = [Injection(f"{OEM}{directory}/{item.file_name}", source=item.sysext.path) for item in sysexts]
    links = {f"/etc/extensions/{item.sysext.name}.raw": installed("oem", item, directory, version) for item in sysexts}
    links |= {f"/etc/extensions/{name}.raw": _DEV_NULL for name in _builtins(sysexts)}
    return [*files, Injection(f"{OEM}{BASE_PATH}", content=base_config(links))]


def usr_content(sysexts: Sequence[ReadySysext]) -> list[Injection]:
    """The files to add to the squashfs with /usr, placed as the built-in sysexts are."""
    files = []
    for item in sysexts:
        name = f"{item.sysext.name}.raw"
        files += [
            Injection(f"{_IMAGES}/{name}", source=item.sysext.path),
            Injection(f"{_LINKS}/{name}", symlink=f"/usr{_IMAGES}/{name}"),
        ]
    return files + [Injection(f"{_LINKS}/{name}.raw", symlink=_DEV_NULL, replace=True) for name in _builtins(sysexts)]


def _builtins(sysexts: Iterable[ReadySysext]) -> list[str]:
    """Flatcar's own sysexts that are to be off."""
    return sorted({name for item in sysexts for name in item.builtins})


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
