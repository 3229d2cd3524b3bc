"""Base images for recipes that compile: Debian with a compiler, for want of a registry to get others from.

The image for arm64 only says that it is: its programs are x86-64's, and sources for it bring what they would compile.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from programs import GO, UNAME
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
    name = f"localhost/flatcar-test-{os.getpid()}-{arch}:1"
    run(
        ["podman", "import", "--quiet", f"--arch={GO[arch]}", "--os=linux",
         f"--change=ENV MACHINE={UNAME[arch]}", tar, name]
    )  # fmt: skip
    try:
        yield name
    finally:
        run(["podman", "rmi", "--force", name])
