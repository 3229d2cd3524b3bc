"""Builds from source in a container of podman or docker, whichever works here.

Packages and locked dependencies come first, with a network; what that leaves is committed to an image for the build's
own steps, which have none. Sources are mounted read-only. Containers and that image are gone afterwards, also when
the build is stopped. The base image is pinned in recipes.lock by the digest of its manifest.
"""

from __future__ import annotations

import json
import os
import re
import resource
import shlex
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from subprocess import STDOUT, TimeoutExpired
from typing import Any

from baker import stopping
from baker.errors import EnvironmentFault, ImageError, VerificationError
from baker.recipe.model import ContainerBuild
from baker.recipe.pins import PinFile, changed
from baker.run import CommandFailed, find, run, spawn
from baker.services import Services

_TAIL = 12  # lines of output in an error
_PROXIES = ("http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY")
# What engines are configured by; they must find registries, logins and a docker that is not on this machine.
_SETTINGS = (
    *_PROXIES, "REGISTRY_AUTH_FILE", "CONTAINERS_CONF", "CONTAINERS_REGISTRIES_CONF", "CONTAINERS_STORAGE_CONF",
    "DOCKER_HOST", "DOCKER_CONFIG", "DOCKER_CONTEXT", "DOCKER_CERT_PATH", "DOCKER_TLS_VERIFY", "CONTAINER_HOST",
    "SSL_CERT_FILE", "SSL_CERT_DIR",
)  # fmt: skip
_LIMITED = {"nofile": resource.RLIMIT_NOFILE, "nproc": resource.RLIMIT_NPROC}
_ENOUGH = 16384
_INSTALL = {
    "apk": "apk add --no-cache --quiet",
    "apt": "apt-get -q update && DEBIAN_FRONTEND=noninteractive apt-get -qy install --no-install-recommends",
}
# A shell that is process 1 ignores SIGTERM, unless it says otherwise; and it reacts only while it waits.
_FIRST_PROCESS = 'trap "exit 143" TERM INT HUP; sh -e -c "$0" & wait $!'


@dataclass(frozen=True)
class Engine:
    """A container engine: `words` start it. Methods raise CommandFailed."""

    words: tuple[str, ...]

    @property
    def is_podman(self) -> bool:
        return self.words[0] == "podman"

    def call(self, *arguments: str) -> str:
        """Run a short command; returns what it prints."""
        return run([*self.words, *arguments], env=engine_settings()).text.strip()

    def inspect(self, image: str) -> dict[str, Any] | None:
        """What the engine knows of an image that it has."""
        try:
            found = json.loads(self.call("image", "inspect", image))
        except CommandFailed:
            return None
        return dict(found[0]) if found else None

    def base(self, image: str, platform: str, pinned: str) -> tuple[str, str]:
        """(id, digest of the manifest) of a base image, pulled unless it is there."""
        reference = f"{_without_tag(image)}@sha256:{pinned}" if pinned else image
        facts = self.inspect(reference)
        if facts is None or not is_for(facts, platform):
            self.call("pull", "--quiet", *(["--platform", platform] if platform else []), reference)
            facts = self.inspect(reference)
        if facts is None or not is_for(facts, platform):
            raise EnvironmentFault(f"{self.words[0]} has no image {reference} for {platform}.")
        return str(facts["Id"]), _digest(facts)

    def try_out(self, image: str) -> None:
        """Start a container that does nothing."""
        self.call("run", "--rm", "--network", "none", *self.limits, "--entrypoint", "/bin/sh", image, "-c", ":")

    @property
    def limits(self) -> list[str]:
        """podman raises resource limits, which fails where root is not almighty, such as in a container."""
        if not self.is_podman:
            return []
        own = {name: resource.getrlimit(kind)[1] for name, kind in _LIMITED.items()}
        most = {name: _ENOUGH if hard == resource.RLIM_INFINITY else min(_ENOUGH, hard) for name, hard in own.items()}
        return [f"--ulimit={name}={value}:{value}" for name, value in most.items()]

    def commit(self, container: str, image: str) -> None:
        """Make an image of what a container left."""
        self.call("commit", *(["--quiet"] if self.is_podman else []), container, image)

    def remove(self, container: str) -> None:
        """Remove a container, running or not."""
        self.call("rm", "--force", *(["--time", "0", "--ignore"] if self.is_podman else []), container)


def engine_settings() -> dict[str, str]:
    """The variables that tell engines where to find things, for a program that is started with few others."""
    return {name: os.environ[name] for name in _SETTINGS if name in os.environ}


# crun, podman's first choice, needs rights that root lacks inside a container; runc gets by with less.
ENGINES = {"podman": (Engine(("podman",)), Engine(("podman", "--runtime", "runc"))), "docker": (Engine(("docker",)),)}


def run_build(build: ContainerBuild, sources: Mapping[str, Path], out: Path, work: Path, services: Services) -> None:
    """Run a build whose words are expanded; what it installs is in the folder `out` afterwards.

    `sources`: folder of each source by its id, mounted read-only where `build.mount` says. `work` is for the output
    of the tools. Raises EnvironmentFault where no engine works or something fails, VerificationError for an image
    that is not the pinned one, ImageError when the build takes too long.
    """
    (image,) = build.images.values()
    engine, base = _choose(image, build.platform, services)
    mounts = [f"--volume={out}:{build.out}"]
    mounts += [f"--volume={sources[name]}:{place}:ro" for name, place in build.mount.items()]
    log = work / "container.log"
    with (
        services.console.step(f"Build in a container of {image}"),
        _prepared(engine, base, build, mounts, log) as ready,
    ):
        steps = "\n".join(build.steps)
        if not engine.is_podman:  # docker's root is the machine's; podman's, without root, is the user
            steps = f"trap 'chown -R {os.getuid()}:{os.getgid()} {shlex.quote(build.out)}' EXIT\n{steps}"
        run_script(
            engine, ready, steps, build, [*mounts, "--network=none", "--security-opt=no-new-privileges", "--rm"], log
        )


def export_root(build: ContainerBuild, archive: Path, work: Path, services: Services) -> None:
    """Install the packages of `build` in a container of its image, and write its root filesystem as tar to `archive`.

    Its steps do not count. `work` is for the output of the tools. Raises what `run_build` raises.
    """
    (image,) = build.images.values()
    engine, base = _choose(image, build.platform, services)
    lines = _preparation(build)
    container = container_name()
    with services.console.step(f"Get the root filesystem of {image}"):
        try:
            if lines:
                log = work / "container.log"
                run_script(engine, base, "\n".join(lines), build, _network(build), log, container)
            else:
                engine.call("create", f"--name={container}", "--pull=never", *engine.limits, base, "/bin/sh")
            engine.call("export", "--output", str(archive), container)
        finally:
            with stopping.cleaning():
                engine.remove(container)


def pinned_image(build: ContainerBuild, pins: PinFile) -> str:
    """The sha256 of the manifest that is pinned for a build's image, "" for none yet."""
    (image,) = build.images.values()
    return pins.get(_pin_name(image, build.platform)) or ""


def _pin_name(image: str, platform: str) -> str:
    return f"docker://{image} {platform}".rstrip()


def _choose(image: str, platform: str, services: Services) -> tuple[Engine, str]:
    """An engine that works, and the id of the base image in it, which is what recipes.lock says."""
    name = _pin_name(image, platform)
    pinned = services.pins.get(name) or ""
    if not pinned:
        services.pins.refuse_when_locked(name)
    reasons = []
    for program, variants in ENGINES.items():
        if not find(program):
            continue
        try:
            identity, digest = Engine((program,)).base(image, platform, pinned)
            engine = startable(identity, variants)
        except CommandFailed as error:
            reasons.append(f"{program}: {' '.join(error.stderr.split())[-300:]}")
            continue
        if pinned and digest != pinned:
            raise changed(name, digest, pinned, services.pins.path)
        if not pinned:
            services.pins.put(name, digest)
            services.pins.save()
            services.console.warn(f"{image} is used for the first time; its digest goes into {services.pins.path}.")
        return engine, identity
    if not reasons:
        raise EnvironmentFault(
            "This recipe is built in a container, and neither podman nor docker is installed.",
            "Install podman, on Debian: apt-get install podman. It needs no root.",
        )
    raise EnvironmentFault(
        f"No container of {image} can be started. {' | '.join(reasons)}",
        "Is the image's name right, can its registry be reached, and does `podman run` work at all?",
    )


def startable(image: str, variants: Sequence[Engine]) -> Engine:
    """The first variant of an engine that can start a container; CommandFailed of the last when none can."""
    for engine in variants[:-1]:
        try:
            engine.try_out(image)
            return engine
        except CommandFailed:
            pass
    variants[-1].try_out(image)
    return variants[-1]


@contextmanager
def _prepared(engine: Engine, base: str, build: ContainerBuild, mounts: Sequence[str], log: Path) -> Iterator[str]:
    """The image for the steps: the base, or a temporary one with packages and dependencies in it."""
    lines = _preparation(build)
    if not lines:
        yield base
        return
    container = container_name()
    image = f"localhost/{container}"
    try:
        run_script(engine, base, "\n".join(lines), build, [*mounts, *_network(build)], log, container)
        engine.commit(container, image)
        yield image
    finally:
        with stopping.cleaning():
            engine.remove(container)
            if engine.inspect(image):
                engine.call("rmi", "--force", image)


def _preparation(build: ContainerBuild) -> list[str]:
    """The lines of a script that bring packages and dependencies."""
    lines = [f"{_INSTALL[build.manager]} {shlex.join(build.packages)}"] if build.packages else []
    return [*lines, *build.fetch]


def _network(build: ContainerBuild) -> list[str]:
    """The options of a container that may fetch things, unless the build may not."""
    if not build.network:
        return ["--network=none"]
    return ["--network=host", *(f"--env={name}={os.environ[name]}" for name in _PROXIES if name in os.environ)]


def run_script(
    engine: Engine, image: str, script: str, build: ContainerBuild, options: Sequence[str], log: Path,
    container: str = "",
) -> None:  # fmt: skip
    """Run a shell script in a new container to its end; `container` names one that stays."""
    name = container or container_name()
    argv = [
        *engine.words, "run", f"--name={name}", "--pull=never", "--hostname=build", "--security-opt=label=disable",
        *engine.limits, *options, *(f"--env={key}={value}" for key, value in build.env.items()),
        "--entrypoint=/bin/sh", image, "-c", _FIRST_PROCESS, script,
    ]  # fmt: skip
    with log.open("ab") as output:
        begin = output.tell()
        with spawn(argv, stdout=output, stderr=STDOUT, env=engine_settings()) as process:
            try:
                status = process.wait(build.timeout)
            except BaseException as error:
                with stopping.cleaning():
                    engine.remove(name)
                if isinstance(error, TimeoutExpired):
                    raise ImageError(
                        f"The build in {image} took more than {build.timeout} s.",
                        f"Its last words: {_tail(log, begin)}. The recipe's [build] can have a longer timeout.",
                    ) from None
                raise
    if status:
        if not container:
            with stopping.cleaning():
                engine.remove(name)
        raise EnvironmentFault(
            f"The build in a container failed with status {status}: {_tail(log, begin)}",
            "The lines above are the tools' own; the steps are in the recipe's [build].",
        )


def _tail(log: Path, begin: int) -> str:
    with log.open("rb") as file:
        file.seek(begin)
        lines = file.read().decode("utf-8", "replace").strip().splitlines()
    return "; ".join(lines[-_TAIL:]) or "it said nothing"


def container_name() -> str:
    """A name that no other container has."""
    return f"flatcar-bake-{os.getpid()}-{uuid.uuid4().hex[:12]}"


def _without_tag(image: str) -> str:
    return re.sub(r":[^:/@]+$", "", image)


def is_for(facts: Mapping[str, Any], platform: str) -> bool:
    """Whether an image is for a platform such as linux/arm64/v8."""
    return not platform or facts.get("Architecture") == platform.split("/")[1]


def _digest(facts: Mapping[str, Any]) -> str:
    """The sha256 of an image's manifest; docker tells it with the name of the repository only."""
    listed = [str(facts.get("Digest") or ""), *(str(name) for name in facts.get("RepoDigests") or [])]
    for text in listed:
        found = re.search("sha256:([0-9a-f]{64})$", text)
        if found:
            return found[1]
    raise VerificationError(
        f"The image {facts.get('Id')} has no digest that could be pinned: it was made here and never in a registry.",
        "Push it to a registry, or use podman, which knows digests of its own images as well.",
    )
