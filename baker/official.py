"""Flatcar's own extra sysexts (flatcar-zfs, flatcar-podman …), baked so that Flatcar keeps them in step with itself.

The release server has `flatcar-NAME.raw` beside the images. Flatcar's initrd (flatcar/bootengine, dracut/99setup-root)
reads ROOT:/etc/flatcar/enabled-sysext.conf, takes ROOT:/etc/flatcar/sysext/flatcar-NAME-VERSION.raw for every name in
it and links it below /etc/extensions; without that file it downloads one, and fails the boot if it cannot. The update
engine fetches the next version with every update of the system.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from baker.errors import UsageError, VerificationError
from baker.model import Injection, Release
from baker.schema import suggest
from baker.sysext import read_sysext
from baker.treelint import major

if TYPE_CHECKING:
    from baker.job import Job
    from baker.services import Services

CONF = "/etc/flatcar/enabled-sysext.conf"
KIND = "official sysext"
"""What records of inputs call such a file."""

# Name: first release with it, for x86-64 (flatcar-website, content/docs/latest/sys-ext). There may be more.
_KNOWN = {
    "zfs": 3913, "podman": 3941, "python": 4012, "incus": 4285, "overlaybd": 4426, "nvidia-drivers-535": 4344,
    "nvidia-drivers-535-open": 4344, "nvidia-drivers-550": 4344, "nvidia-drivers-550-open": 4344,
    "nvidia-drivers-570": 4344, "nvidia-drivers-570-open": 4344,
}  # fmt: skip


@dataclass(frozen=True)
class OfficialSysext:
    """An official sysext of a release."""

    name: str
    version: str

    @property
    def file(self) -> str:
        """Its name on the release server."""
        return f"flatcar-{self.name}.raw"

    @property
    def installed(self) -> str:
        """Its path on ROOT, which the initrd looks for."""
        return f"/etc/flatcar/sysext/flatcar-{self.name}-{self.version}.raw"

    def as_dict(self) -> dict[str, str]:
        return {"name": self.name, "file": self.file, "installed": f"ROOT:{self.installed}"}


def plan_official(
    names: Iterable[str], release: Release | None, sysexts: Collection[str], services: Services
) -> tuple[OfficialSysext, ...]:
    """The official sysexts of a release that were asked for.

    `sysexts` names the other sysexts of the bake. UsageError for one that the release does not have, or whose link
    another sysext takes.
    """
    planned = []
    for name in names:
        if release is None:
            raise UsageError(
                f"Which flatcar-{name}.raw fits is not known for an image of your own.",
                "Add --base generic and --release VERSION, or bake from a release instead of --image.",
            )
        item = OfficialSysext(name, release.version)
        if f"flatcar-{name}" in sysexts:
            raise UsageError(f"Both a sysext flatcar-{name} and the official sysext {name} are to be baked.")
        if not services.published(release, item.file):
            raise UsageError(
                f"Flatcar {release.version} has no {item.file} for {release.arch} on this server.",
                _hint(name, release.version),
            )
        planned.append(item)
    return tuple(planned)


def _hint(name: str, version: str) -> str:
    if name in _KNOWN and (major(version) or 0) >= _KNOWN[name]:
        return "Flatcar has one, but not all are for arm64; or the mirror is not complete."
    if name in _KNOWN:
        return f"There is one since release {_KNOWN[name]}."
    return suggest(name, _KNOWN) or f"Known are {', '.join(sorted(_KNOWN))}."


def gather_official(job: Job) -> list[Injection]:
    """Fetch the plan's official sysexts, verified, and say where they go on ROOT."""
    injections = []
    for item in job.plan.additions.official:
        assert job.plan.release is not None
        stored = job.services.store.signed_file(job.plan.release, item.file)
        # The signature does not cover the name; one of another release would keep the machine from booting.
        found = read_sysext(stored.path, f"flatcar-{item.name}").version_id
        if found != item.version:
            raise VerificationError(
                f"{item.file} of the release server is for Flatcar {found or 'of no version'}, not {item.version}.",
                "The mirror serves a wrong file.",
            )
        job.use(stored, KIND)
        injections.append(Injection(item.installed, source=stored.path, replace=True))
    names = [item.name for item in job.plan.additions.official]
    return [*injections, Injection(CONF, content=enabled_conf(None, names), replace=True)] if names else []


def enabled_conf(existing: bytes | None, names: Iterable[str]) -> bytes:
    """enabled-sysext.conf with `names` enabled: what is there (None for no file) stays, but for lines that disable."""
    wanted = list(names)
    lines = (existing or b"").decode("utf-8", "surrogateescape").splitlines()
    kept = [line for line in lines if line.partition("#")[0].strip().removeprefix("-") not in wanted]
    return "".join(f"{line}\n" for line in (*kept, *wanted)).encode("utf-8", "surrogateescape")
