"""How the extensions get to a machine that starts without a disk, and how much memory it needs then.

The release's cpio holds /usr alone: nothing of the partitions ROOT and OEM, and what an appended cpio has outside of
/usr/share/oem stays behind in the initramfs. Two ways lead to the running system:

- `oem`: a second cpio with /usr/share/oem, which the initrd copies to /oem, and in it a base Ignition config that
  links the sysexts. The release's own cpio stays as it was signed.
- `usr`: the sysexts go into /usr itself, where Flatcar's own built-in ones are, and need no Ignition. The squashfs
  with /usr is not the signed one any more. Up to release 4593: later ones have their default /etc elsewhere.

Sources: flatcar/bootengine (dracut/10diskless-generator, 30ignition/ignition-setup.sh, 99setup-root), flatcar/scripts
(build_library/vm_image_util.sh, changelog), Flatcar's release notes. docs/bare-metal.md tells users.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from baker.errors import UsageError
from baker.model import Channel, Release
from baker.vendor import numbers

ROUTES = ("oem", "usr")
_FIRST_BUILTIN, _LAST_BUILTIN = 3794, 4593
"""The major numbers of the first and last releases with built-in sysexts linked from /usr/share/flatcar/etc."""

_HEADROOM = 512 << 20  # bytes for the kernel, its buffers and the services, beside what is in memory as files
_STEP = 64 << 20
DOCUMENTED = {"pxe": 3 << 30, "iso": 2 << 30}
"""Bytes of memory that Flatcar's documentation asks for, without extensions."""


@dataclass(frozen=True)
class _Fault:
    """Releases from `first` on, until `fixed` in each channel, whose initrd does not take /usr/share/oem."""

    first: tuple[int, ...]
    fixed: dict[Channel, str]
    what: str


_FAULTS = (
    _Fault(
        (3619, 0, 0),
        {Channel.ALPHA: "3913.0.0", Channel.BETA: "3874.1.0", Channel.STABLE: "3815.2.1"},
        "its initrd looks for OEM content in /oem instead of /usr/share/oem",
    ),
    _Fault(
        (4487, 0, 0),
        {Channel.ALPHA: "4669.0.0", Channel.BETA: "4628.1.0", Channel.STABLE: "4593.2.0"},
        "its minimal initrd loses OEM content",
    ),
)


@dataclass(frozen=True)
class Route:
    """The way that was chosen, one of ROUTES, and why."""

    name: str
    why: str


def usr_image(name: str) -> str:
    """Where the route usr puts a sysext, within the squashfs of /usr."""
    return f"/share/flatcar/sysext/{name}.raw"


def choose_route(release: Release, wanted: str = "auto") -> Route:
    """The route for a release; `wanted` is auto, oem or usr. UsageError names a release that works where none does."""
    fault = _fault(release)
    builtin = _FIRST_BUILTIN <= numbers(release.version)[0] <= _LAST_BUILTIN
    if wanted == "usr":
        if not builtin:
            raise UsageError(
                f"The route usr does not work with release {release.version}: only {_FIRST_BUILTIN} to "
                f"{_LAST_BUILTIN} have built-in sysexts where it puts others.",
                f"Use --pxe-route oem with another release: {_works(fault, release)}."
                if fault
                else "Use --pxe-route oem.",
            )
        return Route("usr", "asked for")
    if fault is None:
        why = "asked for" if wanted == "oem" else "the release's own cpio stays as it was signed"
        return Route("oem", why)
    if wanted == "oem" or not builtin:
        hint = f"OEM content works in {_works(fault, release)}."
        if builtin:
            hint += " Or use --pxe-route usr, which does not need it."
        raise UsageError(f"Booting {release.version} by PXE or ISO loses the extensions: {fault.what}.", hint)
    return Route("usr", f"{fault.what}; OEM content works in {_works(fault, release)}")


def _fault(release: Release) -> _Fault | None:
    """What is wrong with a release's OEM content, None if nothing is."""
    version = numbers(release.version)
    return next(
        (
            fault
            for fault in _FAULTS
            if (fixed := fault.fixed.get(release.channel)) and fault.first <= version < numbers(fixed)
        ),
        None,
    )


def _works(fault: _Fault, release: Release) -> str:
    """In which releases it works."""
    others = ", ".join(f"{channel} {fixed}" for channel, fixed in fault.fixed.items() if channel != release.channel)
    before = ".".join(map(str, fault.first))
    return f"{release.channel} {fault.fixed[release.channel]} and later ({others}), and in releases before {before}"


def memory_needed(initrds: Iterable[int]) -> int:
    """Bytes of memory for a machine that gets initrds of these sizes, in whole 64 MiB.

    While the kernel unpacks them, and again while /usr/share/oem is copied to /oem, everything is there twice. The
    initramfs itself may fill half of the memory, which is the same demand.
    """
    needed = 2 * sum(initrds) + _HEADROOM
    return -(-needed // _STEP) * _STEP


def check_memory(needed: int, most: int, what: str) -> None:
    """UsageError when machines would need more memory than they have; `most` is in bytes, 0 for any."""
    if most and needed > most:
        raise UsageError(
            f"{what} needs {needed >> 20} MiB of memory to start, more than the {most >> 20} MiB of --ram.",
            "Leave out or shrink extensions, or start machines with more memory.",
        )
