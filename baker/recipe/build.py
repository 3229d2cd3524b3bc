"""Building an extension: downloads, tree, checks, image. The same inputs give the same bytes, and are built once.

RecipeBuild ─► obtain() ─► key ─► in the cache? ─► unpack ─► containers ─► fill() ─► judge() ─► pack() ─► lint()
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from baker import __version__
from baker.cache import Record
from baker.errors import ImageError
from baker.model import Sysext
from baker.packing.options import PackOptions
from baker.recipe.inputs import Input, obtain
from baker.recipe.request import RecipeBuild
from baker.recipe.steps import Build, Unpacked, fill
from baker.recipe.tree import Tree
from baker.recipe.verdict import judge
from baker.run import program_version
from baker.services import Services
from baker.sparse import clone
from baker.treelint import Finding

# The program that writes each format, and the argument that makes it tell its version: that decides the bytes too.
_WRITERS = {
    "squashfs": ("mksquashfs", "-version"), "erofs": ("mkfs.erofs", "--version"), "ext4": ("mke2fs", "-V"),
    "ext2": ("mke2fs", "-V"), "btrfs": ("mkfs.btrfs", "--version"),
}  # fmt: skip
_PACKING = 2  # to be raised when these programs are called otherwise, as then the bytes are others


@dataclass(frozen=True)
class Built:
    """A finished extension. `path` is in the cache: read it, clone it, do not change it."""

    path: Path
    sysext: Sysext
    request: RecipeBuild
    inputs: tuple[Input, ...]
    tool: str
    key: str
    from_cache: bool
    findings: Sequence[Finding]
    """What the lint has to say."""

    @property
    def record(self) -> dict[str, Any]:
        """What it was made of, as JSON."""
        return {
            **self.request.as_dict(), "key": self.key, "tool": self.tool, "flatcar_bake": __version__,
            "sha256": self.sysext.sha256, "inputs": [item.record(self.request.component) for item in self.inputs],
        }  # fmt: skip


def build(request: RecipeBuild, services: Services, work: Path) -> Built:
    """Build an extension, or find it in the cache. `work` is an empty folder of our own.

    Raises what downloads raise (NetworkError, VerificationError), ImageError where upstream's files are not what the
    recipe expects, UsageError where the recipe is wrong, EnvironmentFault where a tool is missing.
    """
    with services.console.step(f"Fetch what {request.component} {request.version} is made of"):
        inputs = obtain(request, services)
    for item in inputs:
        services.console.note(f"{item.file.name}: {item.file.trust}")
    tool = _tools(request)
    key = _key(request, inputs, tool, _container(request, services))
    identity = ("recipe", key)
    cached = services.cache.find(identity)
    if cached is not None:
        sysext, findings = _examined(cached[1], request)
        return Built(cached[1], sysext, request, inputs, tool, key, True, findings)
    image = work / request.file_name
    _make(request, inputs, image, services, work)
    sysext, findings = _examined(image, request)
    _refuse_fatal(request, findings)
    record = Record(request.file_name, "", sysext.size, sysext.sha256)
    # An image of a container is pinned as it is used: what is known now counts.
    key = _key(request, inputs, tool, _container(request, services))
    identity = ("recipe", key)
    path = services.cache.publish(identity, record, _to_cache(image, services.cache.partial(identity)))
    return Built(path, replace(sysext, path=path), request, inputs, tool, key, False, findings)


def _tools(request: RecipeBuild) -> str:
    """The programs that decide the bytes, with their versions."""
    tool = program_version(_WRITERS[request.format])
    rootfs = request.recipe.rootfs
    if rootfs is not None and rootfs.tool == "flix":
        from baker.recipe.carving import patchelf_version

        tool += f"; {patchelf_version()}"
    return tool


def _container(request: RecipeBuild, services: Services) -> str:
    """The digest of the image that a container of the recipe is made of; "" for a recipe without, or none yet."""
    if request.recipe.build is None and request.recipe.rootfs is None:
        return ""
    from baker.recipe.compile import image_digest

    return image_digest(request, services)


def _key(request: RecipeBuild, inputs: Sequence[Input], tool: str, container: str) -> str:
    """sha256 of everything that decides the bytes."""
    whole = {
        **request.as_dict(), "inputs": [[item.label, item.file.sha256] for item in inputs], "tool": tool,
        "container": container, "flatcar_bake": __version__, "packing": _PACKING,
    }  # fmt: skip
    return hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()


def _make(request: RecipeBuild, inputs: Sequence[Input], image: Path, services: Services, work: Path) -> None:
    recipe, console = request.recipe, services.console
    with console.step(f"Unpack {request.component}"):
        sources = _unpack(inputs, work / "sources")
    if recipe.rootfs is not None:
        from baker.recipe.carving import take_rootfs

        take_rootfs(request, services, work, work / "tree")
    tree = Tree(work / "tree", exists=recipe.rootfs is not None)
    if recipe.build is not None:
        from baker.recipe.compile import compile_sources

        with console.step(f"Compile {request.component}"):
            compiled = compile_sources(
                request, {name: parts[0].path for name, parts in sources.items()}, services, work
            )
        sources["build"] = [Unpacked(compiled, "the result of the build")]
    plan = Build(request.scope, request.variant)
    fill(tree, plan, sources)
    judge(tree, plan)
    tree.open_folders(f"/usr/local/{request.component}")
    with console.step(f"Pack {request.file_name}"):
        from baker.pack import pack

        options = PackOptions(
            request.component, request.arch, request.format, reload=recipe.reload, compression=request.compression,
            epoch=request.epoch, keep_modes=recipe.rootfs is not None,
        )  # fmt: skip
        pack(tree.root, image, options, own=True)


def _unpack(inputs: Sequence[Input], folder: Path) -> dict[str, list[Unpacked]]:
    """Unpack all sources side by side."""
    from baker.recipe.archives import extract

    folder.mkdir()

    def one(number: int) -> Unpacked:
        item = inputs[number]
        place = folder / str(number)
        if item.source.kind == "file":
            clone(item.file.path, place)
        else:
            extract(item.file.path, item.source.kind, place, strip=item.source.strip, name=item.file.name)
        return Unpacked(place, item.file.name, item.item)

    found: dict[str, list[Unpacked]] = {}
    with ThreadPoolExecutor(min(4, max(1, len(inputs)))) as pool:
        results = pool.map(one, range(len(inputs)))
        # What comes next takes Python a moment to load, in which the archives are unpacked.
        import baker.pack
        import baker.survey.report  # noqa: F401

        for item, unpacked in zip(inputs, results, strict=True):
            found.setdefault(item.source.id, []).append(unpacked)
    return found


def _examined(image: Path, request: RecipeBuild) -> tuple[Sysext, list[Finding]]:
    from baker.survey.report import examine

    return examine(image, request.component, request.arch, None)


def _refuse_fatal(request: RecipeBuild, findings: Iterable[Finding]) -> None:
    """The image must pass the lint that a bake would put it to."""
    for finding in findings:
        if finding.fatal:
            raise ImageError(f"{request.recipe.path}: {finding.message}", finding.hint)


def _to_cache(image: Path, partial: Path) -> Path:
    """Move a file to the cache's filesystem."""
    target = partial.with_name(f"{partial.name}.{os.getpid()}")
    try:
        return image.rename(target)
    except OSError:  # another filesystem
        try:
            return Path(shutil.copyfile(image, target))
        except BaseException:
            target.unlink(missing_ok=True)
            raise
