"""Base images for recipes that compile: Debian with a compiler, for want of a registry to get others from.

The image for arm64 only says that it is: its programs are x86-64's, and sources for it bring what they would compile.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from inspect import getsource
from pathlib import Path

from programs import GO, UNAME, debian
from standin import cache
from standin.packages import network_environment

from baker.model import Arch
from baker.run import run

PACKAGES = (
    "gcc", "libc6-dev", "make", "pkg-config",
    "bison", "flex", "m4", "libncurses-dev", "libreadline-dev",  # BIRD
    "libcap-dev", "libseccomp-dev",  # chrony
    "autoconf", "automake", "libmnl-dev", "libnftnl-dev", "libnl-3-dev", "libnl-genl-3-dev", "libpcre2-dev",
    "libssl-dev",  # keepalived
)  # fmt: skip

SCRIPTS = {
    # What Alpine's packages would bring is there already.
    "apk": "#!/bin/sh\n",
    # Stands in for a compiler of Rust: takes what the sources have as finished.
    "cargo": """#!/bin/sh
set -e
if [ "$1" = build ]; then
    mkdir -p target/release
    cp finished/$MACHINE/* target/release/
fi
""",
}


def _make(folder: Path) -> None:
    for name, text in SCRIPTS.items():
        (folder / name).write_text(text)
    scripts = " ".join(str(folder / name) for name in SCRIPTS)
    run(
        ["mmdebstrap", "--quiet", "--variant=apt", f"--include={','.join(PACKAGES)}",
         f'--customize-hook=install -m 755 {scripts} "$1/usr/local/bin/"', "bookworm", folder / "image.tar"],
        env=network_environment(),
    )  # fmt: skip


@contextmanager
def base_image(arch: Arch) -> Iterator[str]:
    """The name of a base image in podman, for as long as it is needed."""
    tar = cache.item("container_base", (PACKAGES, SCRIPTS), _make) / "image.tar"
    with _imported(tar, arch, f"--change=ENV MACHINE={UNAME[arch]}") as name:
        yield name


@contextmanager
def program_image(arch: Arch, *packages: str) -> Iterator[str]:
    """The name of an image with programs of Debian for `arch` in it, real ones, and managers that find nothing to do.

    Its shell is a busybox of this machine, in a folder that nothing takes anything from.
    """

    def make(folder: Path) -> None:
        hooks = [
            f"--extract-hook=mkdir -p $1/boot $1/bin; cp {debian('busybox-static') / 'bin/busybox'} $1/boot/",
            "--extract-hook=for name in sh apt-get apk; do ln -s /boot/$name $1/bin/$name; done",
            "--extract-hook=ln -s busybox $1/boot/sh; for name in apt-get apk; do "
            'echo "#!/boot/sh" >$1/boot/$name; chmod 755 $1/boot/$name; done',
        ]
        run(
            ["mmdebstrap", "--quiet", "--variant=extract", f"--architectures={GO[arch]}",
             f"--include={','.join(packages)}", *hooks, "bookworm", folder / "image.tar"],
            env=network_environment(),
        )  # fmt: skip

    tar = cache.item("container_programs", (packages, arch, getsource(program_image)), make) / "image.tar"
    with _imported(tar, arch) as name:
        yield name


@contextmanager
def folder_image(folder: Path, work: Path) -> Iterator[str]:
    """The name of an image for this machine, made of a root filesystem."""
    tar = work / "image.tar"
    run(["tar", "--create", "--file", tar, "--one-file-system", "--directory", folder, "."])
    with _imported(tar, Arch.X86_64) as name:
        yield name


@contextmanager
def _imported(tar: Path, arch: Arch, *words: str) -> Iterator[str]:
    name = f"localhost/flatcar-test-{os.getpid()}-{uuid.uuid4().hex[:8]}-{arch}:1"
    run(["podman", "import", "--quiet", f"--arch={GO[arch]}", "--os=linux", *words, tar, name])
    try:
        yield name
    finally:
        run(["podman", "rmi", "--force", name])
