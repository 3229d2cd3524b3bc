"""What the report says in words: how it was measured, the goals, and why one may be missed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from benchmarks.measure import Case
from benchmarks.recipes import ALONE, BUILD

HOW = """\
The pipeline is `scripts/benchmarks/pipeline.sh`: curl, gpg --verify, bunzip2, losetup, mount, cp, umount, then
cp --sparse=always, resize2fs and qemu-img convert -c. It neither checks its result nor writes digests. A bake does:
filesystems are checked, what was written is read back, images are compared with their disk, SHA256SUMS is written,
and files reach the disk before they are published. All that is included in its time, and so is the start of Python.
The pipeline's results stay in the page cache.

Files come from an HTTP server on the same machine, so downloads cost nearly nothing; over a network both sides
wait for it, but a bake decodes while it downloads. `cold`: empty cache. `warm`: the verified image is in the cache and
its data is hashed again. `memory` is the largest sum over all processes, shared pages counted in each; `disk` the most
in use at one time, cache included where it is cold."""


@dataclass(frozen=True)
class Goal:
    """One goal: what is measured, its limit, and what to say when it is missed or not measured."""

    what: str
    value: Callable[[Mapping[str, Case]], float]
    limit: float
    reason: str = ""
    sign: str = "≤"
    unit: str = ""


def _ratio(one: str, two: str) -> Callable[[Mapping[str, Case]], float]:
    return lambda cases: cases[one].seconds / cases[two].seconds


_SUMS = """\
SHA256SUMS must cover the raw image, nine tenths of which are zeros; sha256 takes them one block after the other, on
one core, at the speed of the processor's SHA instructions: the case "sha256 of the raw image alone" is what that
takes, and it alone is over the goal. There is no shortcut for zeros: the state after them depends on what comes
before. Tried: the digest of all that comes before the first edited partition begins in a thread as soon as the cached
image is verified, so that only the rest is waited for. Left: raw images without a digest, which users would miss."""
_ENDING = """\
What follows the decoder uses one core at a time: hash the data for the cache, copy it, edit, check, and above all the
digest of the raw image for SHA256SUMS, half of which runs beside the rest. The pipeline has no digest."""
_BESIDES = """\
A build packs with a level of compression that takes less than half the time of mksquashfs' own. Beside packing there
are the start of Python, the download, xz, and reading back what was packed, about a second together."""

GOALS = (
    Goal("cold generic, of the pipeline", _ratio("generic cold", "pipeline generic"), 0.37, _ENDING),
    Goal("cold generic, of parallel bz2 decoding alone", _ratio("generic cold", "floor"), 1.08, _ENDING),
    Goal(
        "cold generic without lbzip2, of the pipeline",
        _ratio("generic cold without lbzip2", "pipeline generic"), 0.45,
        "indexed_bzip2 decodes on all cores, but only once the file is there, and is a quarter slower than lbzip2.",
    ),
    Goal("warm generic, of the pipeline", _ratio("generic warm", "pipeline generic"), 0.02, _SUMS),
    Goal(
        "cold qemu_uefi from its published qcow2, of the pipeline",
        _ratio("qemu_uefi cold", "pipeline qemu_uefi"), 0.10,
    ),
    Goal(
        "cold qemu_uefi from the bz2, of the pipeline",
        _ratio("qemu_uefi cold from bz2", "pipeline qemu_uefi"), 0.40, _ENDING,
    ),
    Goal("warm qemu_uefi", lambda cases: cases["qemu_uefi warm"].seconds, 2, unit=" s"),
    Goal(
        "first encoding as qcow2, of the fastest qemu-img command",
        _ratio("ours, two threads", "qemu-img convert -c -W -m 16"), 1,
    ),
    Goal(
        "peak disk of a cold generic bake, of the pipeline's",
        lambda cases: cases["generic cold"].disk / cases["pipeline generic"].disk, 0.25,
        "On a filesystem without reflinks the cache's image and the result are two copies of the data, and the "
        "download is kept until it is verified. With reflinks (btrfs, xfs) there is one copy less.",
    ),
    Goal("a recipe built from nothing, of mksquashfs alone on its tree", _ratio(BUILD, ALONE), 1.3, _BESIDES),
    Goal(
        "offline backend against libguestfs (virt-customize's copy-in)", _ratio("libguestfs, 60 MB", "offline, 60 MB"),
        10, "libguestfs is not installed here or does not work.", sign="≥", unit=" ×",
    ),
)  # fmt: skip

CURVES = {
    "sizes": ("The size of a sysext, qemu_uefi from a warm cache.", "MB"),
    "counts": ("The number of sysexts of 2 MB, qemu_uefi from a warm cache.", "sysexts"),
    "vendors": ("The number of qcow2 vendors made from the generic image, warm.", "vendors"),
    "jobs": ("`--jobs`, four such vendors. -1 would be perfect.", "jobs"),
}
"""Title and unit by the curve's name."""
