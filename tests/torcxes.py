"""Torcx archives of the documented shape, with real programs."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from programs import debian

WEBD = """\
[Unit]
Description=Web daemon out of torcx
# torcx has to have unpacked it
Requires=torcx.target
After=torcx.target
After=network-online.target webd.socket torcx.target
Requires=webd.socket
ConditionPathExists=/run/metadata/torcx

[Service]
EnvironmentFile=/run/metadata/torcx
Environment=TORCX_IMAGEDIR=/webd
Environment="GREETING=hello world" OTHER=x
Type=exec
ExecStartPre=-/bin/sh -c 'echo "$$TORCX_BINDIR" $${TORCX_UNPACKDIR}$${TORCX_IMAGEDIR}/share'
ExecStart=/usr/bin/env PATH=${TORCX_BINDIR}:${PATH} ${TORCX_BINDIR}/busybox httpd -f -p 127.0.0.1:8077 \\
# a comment within the line
    -h ${TORCX_UNPACKDIR}${TORCX_IMAGEDIR}/share/www $OPTS
ExecReload=/sbin/webctl kill -HUP $MAINPID

[Install]
WantedBy=multi-user.target
"""
SOCKET = "[Unit]\nDescription=Its socket\nAfter=torcx.target\n[Socket]\nListenStream=/run/webd.sock\n"
EXTRA = (
    "[Unit]\nDescription=Extra\nAfter=torcx.target\n[Service]\nType=oneshot\n"
    "ExecStart=/run/torcx/unpack/webd/bin/busybox true\n"
)
DROP_IN = "[Service]\nExecStartPre=${TORCX_BINDIR}/busybox true\n"
UNITS = "lib/systemd/system"

Content = bytes | str | Path
"""A file's content, or the program to copy; `-> TARGET` is a link."""

WEB: Mapping[str, Content] = {
    f"{UNITS}/webd.service": WEBD, f"{UNITS}/webd.socket": SOCKET, "units/extra.service": EXTRA,
    f"{UNITS}/webd.service.d/10-more.conf": DROP_IN,
    f"{UNITS}/multi-user.target.wants/webd.service": "-> ../webd.service",
    f"{UNITS}/sockets.target.wants/webd.socket": "-> ../webd.socket",
    "bin/webd": "-> busybox", "sbin/webctl": "-> ../bin/busybox", "share/www/index.html": "served\n",
    "libexec/webd/helper": "#!/bin/sh\n. /run/metadata/torcx\n", "etc/webd/webd conf.d/100%": "x=1\n",
    "lib/tmpfiles.d/webd.conf": "d /run/webd 0755 root root -\n", "var/lib/webd/state": "never\n",
}  # fmt: skip
ASSETS = {
    "bin": ["/bin/busybox", "/bin/webd", "/sbin/webctl", "/libexec/webd/helper"],
    "units": [
        "/lib/systemd/system/webd.service", "/lib/systemd/system/webd.socket", "/units/extra.service",
        "/lib/systemd/system/multi-user.target.wants", "/lib/systemd/system/sockets.target.wants",
    ],
    "tmpfiles": ["/lib/tmpfiles.d/webd.conf"],
}  # fmt: skip


def busybox() -> Path:
    return debian("busybox-static") / "bin/busybox"


def web_archive(folder: Path, kind: str = "tgz", assets: Mapping[str, Any] | None = ASSETS) -> Path:
    """An archive `webd:1.torcx.KIND` with a web server, as torcx' documentation describes it."""
    return make_archive(folder, "webd", dict(WEB) | {"bin/busybox": busybox()}, assets, kind)


def make_archive(
    folder: Path, name: str, files: Mapping[str, Content], assets: Mapping[str, Any] | None, kind: str = "tgz"
) -> Path:
    """An archive with these files; without `assets` it has no manifest."""
    tree = folder / f"{name}-tree"
    for path, content in files.items():
        place = tree / path
        place.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, Path):
            place.write_bytes(content.read_bytes())
            place.chmod(0o755)
        elif isinstance(content, str) and content.startswith("-> "):
            place.symlink_to(content.removeprefix("-> "))
        else:
            place.write_bytes(content.encode() if isinstance(content, str) else content)
            place.chmod(0o755 if str(content).startswith("#!") else 0o644)
    if assets is not None:
        (tree / ".torcx").mkdir(parents=True)
        (tree / ".torcx/manifest.json").write_text(json.dumps({"kind": "image-manifest-v0", "value": assets}))
    archive = folder / f"{name}:1.torcx.{kind}"
    if kind == "squashfs":
        words: list[str | Path] = ["mksquashfs", tree, archive, "-quiet", "-no-progress", "-comp", "gzip"]
    else:
        words = ["tar", "--force-local", "-C", tree, "-czf", archive, "."]
    subprocess.run(words, check=True, capture_output=True)
    return archive
