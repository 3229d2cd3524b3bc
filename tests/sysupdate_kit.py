"""A sysext that brings a real systemd-sysupdate to the stand-in release, and a network to this machine.

Debian 12, which the stand-in is made of, builds systemd without it. Debian 13 has it, in systemd 257 as Flatcar's
stable release 4593: its systemd-sysupdate, systemd-pull and gpg come with their own libraries and dynamic loader, so
that nothing of the guest is replaced. Units of the same package make the timer and the service.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from standin import cache
from standin.packages import Apt, network_environment, unpack
from standin.sysexts import Content, pack, release_file

from baker.run import run

NAME = "sysupdate-kit"
SUITE = "trixie"
HOST = "10.0.2.2"
"""This machine's loopback, as a guest with QEMU's user networking sees it."""
NETWORK = (
    "for i in $(seq 60); do nic=$(ls /sys/class/net | grep -v lo) && break; sleep 1; done; "
    "/usr/lib/kit/busybox ip link set lo up; /usr/lib/kit/busybox ip link set $nic up; "
    "/usr/lib/kit/busybox ip addr add 10.0.2.15/24 dev $nic; ls /sys/class/net"
)
"""The command that brings up the guest's network."""

_PROGRAMS = {
    "systemd-sysupdate": "usr/lib/systemd", "systemd-pull": "usr/lib/systemd", "gpg": "usr/bin",
}  # fmt: skip
_UNITS = ("systemd-sysupdate.service", "systemd-sysupdate.timer")
_WRAPPER = '#!/bin/sh\nexec /usr/lib/kit/ld.so --library-path /usr/lib/kit --argv0 "$0" /usr/lib/kit/{name} "$@"\n'


class _Trixie(Apt):
    """Debian 13's package archive, at the mirror that this machine's apt uses."""

    def __init__(self, work: Path) -> None:
        lists = work / "lists"
        (lists / "partial").mkdir(parents=True)
        super().__init__(lists)
        # What an update would fetch: apt tells that without any lists, as a container image comes.
        told = run([*self._command, "--print-uris", "update"]).text
        address = next(iter(re.findall(r"'(\S+/debian)/dists/", told)))
        sources = work / "sources.list"
        sources.write_text(f"deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] {address} {SUITE} main\n")
        self._command += ["-o", f"Dir::Etc::SourceList={sources}", "-o", "Dir::Etc::SourceParts=-"]
        run([*self._command, "update"], env=network_environment())


def kit() -> Path:
    """The sysext, from the cache or made now."""

    def make(work: Path) -> None:
        scratch = work / "scratch"
        root, archives = scratch / "root", scratch / "archives"
        for folder in (root, archives):
            folder.mkdir(parents=True)
        apt = _Trixie(scratch)
        skipped = re.compile(r"(perl|dbus|adduser|udev|init|passwd|tar|login|util-linux|mount|sensible)\b")
        wanted = [each for each in apt.closure(["systemd-container", "gpg"]) if not skipped.match(each)]
        apt.download([*wanted, apt.newest("busybox-static")], archives)
        for archive in archives.glob("*.deb"):
            unpack(archive, root)
        pack(work / f"{NAME}.raw", NAME, release_file(id="_any", architecture="x86-64"), _files(root))
        shutil.rmtree(scratch)

    return cache.item("sysupdate_kit", Path(__file__).read_bytes(), make) / f"{NAME}.raw"


def _files(root: Path) -> dict[str, Content]:
    libraries = root / "usr/lib/x86_64-linux-gnu"
    loader = next(path for path in (root / "usr/lib64/ld-linux-x86-64.so.2", libraries / "ld-linux-x86-64.so.2")
                  if path.exists())  # fmt: skip
    files = {
        "usr/lib/kit/ld.so": Content(loader, 0o755),
        "usr/lib/kit/busybox": Content(next(root.glob("**/bin/busybox")), 0o755),
    }
    for name, folder in _PROGRAMS.items():
        program = root / folder / name
        files[f"usr/lib/kit/{name}"] = Content(program, 0o755)
        files[f"{folder}/{name}"] = Content(_WRAPPER.format(name=name).encode(), 0o755)
        listed = run([loader, "--library-path", f"{libraries}:{libraries}/systemd", "--list", program]).text
        for library in re.findall(r"=> (\S+) \(", listed):
            files[f"usr/lib/kit/{Path(library).name}"] = Content(Path(library), 0o755)
    for name in _UNITS:
        unit = next(root.glob(f"usr/lib/systemd/system/{name}"))
        files[f"usr/lib/systemd/system/{name}"] = Content(unit)
    return files
