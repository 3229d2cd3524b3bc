"""Bakes for machines without a disk that several tests look at, each made once in a process."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cli import flatcar_bake, release_environment

PREFIX = "flatcar_production"
CPIO, KERNEL = f"{PREFIX}_pxe_image.cpio.gz", f"{PREFIX}_pxe.vmlinuz"
OEM, ISO = f"{PREFIX}_pxe_oem.cpio.gz", f"{PREFIX}_iso_image.iso"
CURRENT = "stable/amd64-usr/current"


@dataclass(frozen=True)
class Baked:
    """A finished bake and what it said on stderr."""

    folder: Path
    release: Path
    env: dict[str, str]
    said: str


def sysexts(release: Path) -> list[str]:
    """Both sysexts of the stand-in's bakery, as words for --fetch."""
    names = [next((release / "extensions").glob(f"{name}-*-x86-64.raw")).name for name in ("wasmtime", "hello")]
    return [f"{name.partition('-')[0]}:{name}" for name in names]


def bake(release: Path, work: Path, *words: str | Path, out: str = "out") -> Baked:
    """Bake both sysexts for PXE and ISO into `work`/`out`."""
    env = release_environment(release) | {"FLATCAR_BAKE_CACHE_DIR": str(work / "cache")}
    done = flatcar_bake("--fetch", "-v", "pxe,iso", "-o", work / out, *words, *sysexts(release), env=env)
    assert done.returncode == 0, done.stderr
    return Baked(work / out, release, env, done.stderr)
