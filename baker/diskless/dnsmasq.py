"""dnsmasq as the netboot's DHCP and TFTP side: its configuration, and how it is started."""

from __future__ import annotations

import ipaddress
import os
import pwd
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from baker.errors import UsageError
from baker.run import need

IPXE = Path("/usr/lib/ipxe")
"""Where Debian's package ipxe has its programs."""
# Client architectures of RFC 4578 with IANA's additions: numbers in DHCP, dnsmasq's names for PXE, iPXE's program.
_LOADERS = (
    ((0,), ("x86PC",), "undionly.kpxe"),
    ((7, 9), ("BC_EFI", "X86-64_EFI"), "snponly.efi"),
    ((11,), ("ARM64_EFI",), "snponly-arm64.efi"),
)
_RIGHTS = ("net_bind_service", "net_admin", "net_raw")  # ports 67, 69 and 4011; ARP entries; one interface only


@dataclass(frozen=True)
class Netboot:
    """What is served: `script` is the URL of the iPXE script, `address` ours on `interface` with its network.

    `pool` is None where another DHCP server gives machines their addresses, else the first and last address to give.
    `loaders` are the iPXE programs that are there.
    """

    interface: str
    address: ipaddress.IPv4Interface
    script: str
    loaders: tuple[str, ...]
    pool: tuple[ipaddress.IPv4Address, ipaddress.IPv4Address] | None = None


def parse_pool(
    word: str | None, address: ipaddress.IPv4Interface
) -> tuple[ipaddress.IPv4Address, ipaddress.IPv4Address] | None:
    """The addresses FIRST,LAST to give to machines; UsageError when they are not of our network."""
    if word is None:
        return None
    try:
        first, last = (ipaddress.IPv4Address(part.strip()) for part in word.split(","))
    except ValueError:
        raise UsageError(
            f"--dhcp {word} is no range of addresses.", "Write the first and the last: --dhcp 192.0.2.100,192.0.2.150."
        ) from None
    if first > last or first not in address.network or last not in address.network:
        raise UsageError(f"--dhcp {word} is no range within {address.network}, the network of {address.ip}.")
    return first, last


def loaders(folder: Path) -> dict[str, Path]:
    """The iPXE programs in a folder, by name."""
    return {name: folder / name for _, _, name in _LOADERS if (folder / name).is_file()}


def configuration(netboot: Netboot, folder: Path) -> str:
    """The text of dnsmasq.conf; `folder` is what TFTP serves.

    A machine's own network boot gets iPXE by TFTP; iPXE, which says so by DHCP option 175, gets the script. It
    takes that from a proxy's offer only if the offer names the server as well.
    """
    network = netboot.address.network
    pool = (
        f"{netboot.pool[0]},{netboot.pool[1]},{network.netmask},1h" if netboot.pool else f"{netboot.address.ip},proxy"
    )
    lines = [
        "# Written by `flatcar-bake pxe serve`.",
        "port=0", f"interface={netboot.interface}", "bind-interfaces", "except-interface=lo", "no-hosts", "no-resolv",
        "leasefile-ro", "enable-tftp", f"tftp-root={folder}", f"dhcp-range={pool}",
        "dhcp-match=set:ipxe,175",
        f"dhcp-boot=tag:ipxe,{netboot.script},,{netboot.address.ip}",
    ]  # fmt: skip
    for numbers, names, program in _LOADERS:
        if program not in netboot.loaders:
            continue
        for number in numbers:
            lines.append(f"dhcp-match=set:{program},option:client-arch,{number}")
        lines.append(f"dhcp-boot=tag:!ipxe,tag:{program},{program},,{netboot.address.ip}")
        # A proxy's answer to a machine's own network boot is of PXE's kind.
        lines += [f'pxe-service=tag:!ipxe,{name},"Flatcar",{program}' for name in names]
    return "\n".join(lines) + "\n"


def command(config: Path) -> Sequence[str | os.PathLike[str]]:
    """What starts dnsmasq in the foreground: as nobody, with the few rights that it needs, and it dies with us."""
    nobody = pwd.getpwnam("nobody")
    rights = ",".join(f"+{right}" for right in _RIGHTS)
    return [
        "setpriv", f"--reuid={nobody.pw_uid}", f"--regid={nobody.pw_gid}", "--clear-groups",
        f"--inh-caps={rights}", f"--ambient-caps={rights}", "--pdeathsig=KILL", "--",
        need("dnsmasq"), "--keep-in-foreground", f"--conf-file={config}", "--log-facility=-",
        f"--pid-file={config.with_name('pid')}",
    ]  # fmt: skip
