"""Getting an image by podman, docker or skopeo, whichever works here; what they hand over is read by us alone.

All that an engine does is to fetch an image, and to run a command in it where one is wanted. Its layers are then laid
over each other by `unpack`, so that every engine gives the same tree.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from baker import stopping
from baker.console import Console
from baker.errors import BakeError, EnvironmentFault, UsageError, VerificationError
from baker.model import Arch
from baker.oci.images import Image, open_file
from baker.oci.reference import ImageFile, ImageName, oci_arch
from baker.recipe.containers import (
    ENGINES,
    Engine,
    container_name,
    engine_settings,
    is_for,
    run_script,
    startable,
)
from baker.recipe.model import ContainerBuild
from baker.run import CommandFailed, find, need, run

PROGRAMS = ("podman", "docker", "skopeo")
"""The engines, the preferred one first."""

MADE_BY_ENGINES = (
    "proc", "sys", "run", "etc", "dev", "dev/pts", "dev/shm", "dev/mqueue", "dev/console", "etc/hosts",
    "etc/hostname", "etc/resolv.conf", "etc/mtab", "run/.containerenv", "run/secrets", ".dockerenv",
)  # fmt: skip
"""What engines put into every container, to mount something there; empty, in the layer that a command makes."""

_LONG = 7 * 24 * 3600  # seconds; a command of the user's own has no other limit


@dataclass(frozen=True)
class Wanted:
    """Which image, and how to get it."""

    image: ImageName | ImageFile
    arch: Arch
    program: str = ""
    """One of PROGRAMS, "" for the first that works."""
    pull: bool = True
    """Whether to ask the registry; without, the engine must have it."""
    command: str = ""
    """For a shell in the image, before its files are taken; "" for none."""
    network: str = ""
    """What the command's container is connected to, in the engine's words; "" is the engine's default."""


@dataclass(frozen=True)
class Obtained:
    """An image on disk, and by which program: "" for none."""

    image: Image
    program: str
    digest: str
    """By which the registry has it, "" where nobody knows."""


def obtain(wanted: Wanted, work: Path, console: Console) -> Obtained:
    """Get an image into the folder `work`, or read it where it is.

    Raises EnvironmentFault when no engine works, UsageError when there is no such image for the architecture,
    and the errors of `open_file`.
    """
    if isinstance(wanted.image, ImageFile):
        return _from_file(wanted.image, wanted, work, console)
    reasons = []
    for program in _programs(wanted):
        try:
            if program == "skopeo":
                return _by_skopeo(wanted.image, wanted, work, console)
            return _by_engine(Engine((program,)), wanted.image, wanted, work, console)
        except CommandFailed as error:
            if wanted.program:
                raise
            reasons.append(f"{program}: {' '.join(error.stderr.split())[-300:]}")
            console.note(f"not by {reasons[-1]}")
    raise EnvironmentFault(
        f"The image {wanted.image} cannot be had. {' | '.join(reasons)}",
        "Is its name right, can its registry be reached, and are you logged in where it asks for that?",
    )


def _programs(wanted: Wanted) -> list[str]:
    """The programs to try, in order."""
    assert isinstance(wanted.image, ImageName)
    engines_only = bool(wanted.command) or not wanted.pull or wanted.image.is_local
    why = "a command is to run in it" if wanted.command else "it is not to be pulled"
    if wanted.program:
        if wanted.program == "skopeo" and engines_only:
            raise UsageError(f"skopeo only copies from registries, and {why}.", "Use podman or docker.")
        need(wanted.program)
        return [wanted.program]
    found = [each for each in PROGRAMS if find(each) and not (each == "skopeo" and engines_only)]
    if not found:
        others = "podman nor docker" if engines_only else "podman, docker nor skopeo"
        raise EnvironmentFault(
            f"For the image {wanted.image}, neither {others} is installed.",
            "Install one, on Debian: apt-get install podman. A layout or archive of an image needs none of them.",
        )
    return found


def _by_engine(engine: Engine, name: ImageName, wanted: Wanted, work: Path, console: Console) -> Obtained:
    program, reference, platform = engine.words[0], name.pullable, f"linux/{oci_arch(wanted.arch)}"
    if wanted.pull and not name.is_local:
        with console.step(f"Pull {reference} by {program}"):
            engine.call("pull", "--quiet", "--platform", platform, reference)
    facts = engine.inspect(reference)
    if facts is None:
        raise EnvironmentFault(
            f"{program} has no image {reference}.", f"`{program} images` lists what it has; leave out --no-pull."
        )
    if not is_for(facts, platform):
        raise UsageError(
            f"{program} has {reference} for {facts.get('Architecture')}, not for {wanted.arch}.",
            "Let it be pulled, or use another --arch.",
        )
    image = _saved(engine, str(facts["Id"]), wanted, work, console)
    return Obtained(image, program, _registry_digest(facts, name))


def _saved(engine: Engine, identity: str, wanted: Wanted, work: Path, console: Console) -> Image:
    """The layers of an engine's image; with a command, those of the image that it leaves."""
    if not wanted.command:
        return _save(engine, identity, wanted, work, console)
    engine = startable(identity, ENGINES[engine.words[0]])
    container = container_name()
    changed = f"localhost/{container}"
    build = ContainerBuild({}, timeout=_LONG)
    options = ["--user=0", *([f"--network={wanted.network}"] if wanted.network else [])]
    options += ["--passwd=false"] if engine.is_podman else []  # it would add users to an image without any
    try:
        with console.step(f"Run in {wanted.image}: {wanted.command}"):
            run_script(engine, identity, wanted.command, build, options, work / "container.log", container)
        with console.step("Take what it left"):
            engine.commit(container, changed)
        return _save(engine, changed, wanted, work, console)
    finally:
        with stopping.cleaning():
            engine.remove(container)
            if engine.inspect(changed):
                engine.call("rmi", "--force", changed)


def _save(engine: Engine, identity: str, wanted: Wanted, work: Path, console: Console) -> Image:
    facts = engine.inspect(identity) or {}
    with console.step(f"Take {wanted.image} out of {engine.words[0]}"):
        if engine.is_podman:
            target = ImageFile(work / "layout", "", "oci")
            engine.call(
                "save", "--quiet", "--format", "oci-dir", "--uncompressed", "--output", str(target.path), identity
            )
        else:
            target = ImageFile(work / "image.tar", "", "")
            engine.call("save", "--output", str(target.path), identity)
        image = open_file(target, wanted.arch, work)
    layers = (facts.get("RootFS") or {}).get("Layers")
    if layers != [layer.diff_id for layer in image.layers]:
        raise VerificationError(
            f"{engine.words[0]} gave other layers than it says {wanted.image} has.", "Pull it anew, and try again."
        )
    return image


def _by_skopeo(name: ImageName, wanted: Wanted, work: Path, console: Console) -> Obtained:
    """Copy an image from its registry; the digest of a tag is looked up first, and then nothing else is copied."""
    env = engine_settings()
    platform = ["--override-os", "linux", "--override-arch", oci_arch(wanted.arch)]
    if "CONTAINERS_REGISTRIES_CONF" in env:  # podman obeys the variable, skopeo wants an option
        platform += ["--registries-conf", env["CONTAINERS_REGISTRIES_CONF"]]
    with console.step(f"Copy {name} by skopeo"):
        digest = name.digest or run(
            ["skopeo", *platform, "inspect", "--no-tags", "--format", "{{.Digest}}", f"docker://{name.pullable}"],
            env=env,
        ).text.strip()  # fmt: skip
        if not re.fullmatch("sha256:[0-9a-f]{64}", digest):
            raise EnvironmentFault(f"skopeo tells no digest of {name}, but {digest[:80]!r}.")
        source = f"docker://{name.registry}/{name.path}@{digest}"
        run(["skopeo", *platform, "copy", "--quiet", source, f"oci:{work / 'layout'}:image"], env=env)
    return Obtained(open_file(ImageFile(work / "layout", "", "oci"), wanted.arch, work), "skopeo", digest)


def _from_file(file: ImageFile, wanted: Wanted, work: Path, console: Console) -> Obtained:
    if not wanted.command:
        if wanted.program:
            raise UsageError(f"{file.path} is read without {wanted.program}.", "Leave out --engine.")
        with console.step(f"Read {file}"):
            return Obtained(open_file(file, wanted.arch, work), "", "")
    if wanted.program not in ("", "podman"):
        raise UsageError("Only podman can run a command in an image from a file.", "Use --engine podman.")
    need("podman")
    image = open_file(file, wanted.arch, work)
    saved = not (image.root / "index.json").is_file() or file.transport == "docker-archive"
    source = f"docker-archive:{file.path.resolve()}" if saved else f"oci:{image.root.resolve()}"
    engine = Engine(("podman",))
    known = engine.inspect(image.config_digest.removeprefix("sha256:")) is not None
    with console.step(f"Load {file} into podman"):
        ref = f":{file.ref}" if file.ref and not saved else ""
        identity = engine.call("pull", "--quiet", f"{source}{ref}").split()[-1]
    try:
        inner = work / "command"
        inner.mkdir()
        return Obtained(_saved(engine, identity, wanted, inner, console), "podman", "")
    finally:
        if not known:
            with stopping.cleaning():
                _forget(engine, identity)


def _forget(engine: Engine, identity: str) -> None:
    try:
        engine.call("rmi", "--force", identity)
    except BakeError:
        pass  # somebody else uses it by now


def _registry_digest(facts: Mapping[str, Any], name: ImageName) -> str:
    """The digest by which the image can be asked for again."""
    if name.digest:
        return name.digest
    if name.is_local:
        return ""
    wanted = f"/{name.path.removeprefix('library/')}@"
    for word in facts.get("RepoDigests") or []:
        repository, at, digest = str(word).partition("@")
        if at and f"/{repository}@".endswith(wanted) and re.fullmatch("sha256:[0-9a-f]{64}", digest):
            return digest
    return ""
