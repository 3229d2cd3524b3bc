"""Networks for tests, in network namespaces of their own: a lab with a router that gives machines their addresses."""

from __future__ import annotations

import secrets
import signal
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from baker.run import need, run

SERVER = "192.0.2.1"


@dataclass(frozen=True)
class Lab:
    """The namespace `name`: a bridge `br0` with the address SERVER, and taps for machines on it."""

    name: str

    def inside(self, *words: str | Path) -> list[str | Path]:
        """A command, to be run in the namespace."""
        return [need("ip"), "netns", "exec", self.name, *words]


@contextmanager
def lab(work: Path, taps: int = 1, router: bool = True) -> Iterator[Lab]:
    """A lab network. Its router is a DHCP server in another namespace, and knows nothing of booting."""
    mark = secrets.token_hex(3)
    inner, outer = f"bake-lab-{mark}", f"bake-router-{mark}"
    with ExitStack() as stack:
        for name in (inner, outer):
            run(["ip", "netns", "add", name])
            stack.callback(run, ["ip", "netns", "delete", name])
        run(["ip", "-n", inner, "link", "add", "br0", "type", "bridge"])
        run(["ip", "-n", inner, "address", "add", f"{SERVER}/24", "dev", "br0"])
        run(["ip", "-n", inner, "link", "add", "router", "type", "veth", "peer", "name", "lan", "netns", outer])
        for number in range(taps):
            run(["ip", "-n", inner, "tuntap", "add", f"tap{number}", "mode", "tap"])
        for name in ("router", *(f"tap{number}" for number in range(taps))):
            run(["ip", "-n", inner, "link", "set", name, "master", "br0", "up"])
        for name in ("br0", "lo"):
            run(["ip", "-n", inner, "link", "set", name, "up"])
        run(["ip", "-n", outer, "address", "add", "192.0.2.254/24", "dev", "lan"])
        run(["ip", "-n", outer, "link", "set", "lan", "up"])
        if router:
            stack.enter_context(_dhcp(outer, work))
        yield Lab(inner)


@contextmanager
def _dhcp(namespace: str, work: Path) -> Iterator[None]:
    with subprocess.Popen(
        [
            need("ip"), "netns", "exec", namespace, need("dnsmasq"), "--keep-in-foreground", "--conf-file=/dev/null",
            "--port=0", "--interface=lan", "--bind-interfaces", "--dhcp-range=192.0.2.100,192.0.2.150,1h",
            "--leasefile-ro", "--log-facility=-", f"--pid-file={work / 'router.pid'}", "--user=root",
        ],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    ) as server:  # fmt: skip
        try:
            yield
        finally:
            server.send_signal(signal.SIGTERM)
