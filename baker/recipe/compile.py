"""Builds from source: what a recipe's [build] means for one version, and where its container puts the result."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from baker.errors import UsageError
from baker.recipe.containers import pinned_image, run_build
from baker.recipe.model import ContainerBuild
from baker.recipe.request import RecipeBuild
from baker.recipe.rootfs import rootfs_container
from baker.services import Services


def compile_sources(request: RecipeBuild, sources: Mapping[str, Path], services: Services, work: Path) -> Path:
    """Run the recipe's container build on unpacked `sources`; returns the folder of what it installed."""
    build = expanded(request)
    assert build is not None
    out = work / "build"
    out.mkdir()
    mounted = {name: sources[name] for name in build.mount}
    run_build(build, mounted, out, work, services)
    return out


def expanded(request: RecipeBuild) -> ContainerBuild | None:
    """The build with all words replaced, for this architecture; None for a recipe without."""
    build = request.recipe.build
    if build is None:
        return None
    words = {"epoch": str(request.epoch), "jobs": str(len(os.sched_getaffinity(0)))}

    def text(template: str) -> str:
        return request.scope.expand(template, build.where, **words)

    image = build.images.get(request.arch, build.images.get("", ""))
    if not image:
        raise UsageError(f"{build.where}: there is no image for {request.arch}.")
    steps = build.steps or ((request.recipe.folder / build.script).read_text(encoding="utf-8"),)
    return replace(
        build, images={"": text(image)}, steps=tuple(map(text, steps)) if build.steps else steps, script="",
        fetch=tuple(map(text, build.fetch)), platform=text(build.platform), packages=tuple(map(text, build.packages)),
        env={name: text(value) for name, value in build.env.items()},
    )  # fmt: skip


def image_digest(request: RecipeBuild, services: Services) -> str:
    """The digest by which the container's image is pinned; "" for none yet, or a recipe without a container."""
    build = expanded(request) or rootfs_container(request)
    return "" if build is None else pinned_image(build, services.pins)
