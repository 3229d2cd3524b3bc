"""A small netboot for a lab: dnsmasq for DHCP and TFTP, an HTTP server for the rest, until it is interrupted."""

from __future__ import annotations

import ipaddress
import json
import os
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

from baker.console import Console
from baker.diskless import dnsmasq
from baker.errors import EnvironmentFault, UsageError, VerificationError
from baker.publish import MANIFEST_NAME
from baker.recheck import recheck
from baker.run import CommandFailed, need, run, spawn
from baker.work import scratch


@dataclass(frozen=True)
class ServeRequest:
    """What to serve and where: `folder` is the output of a bake, `port` the HTTP server's, `pool` as dnsmasq.py."""

    folder: Path
    interface: str
    port: int = 8080
    pool: str | None = None
    ipxe: Path = dnsmasq.IPXE


def plan_netboot(request: ServeRequest, console: Console) -> tuple[dnsmasq.Netboot, dict[str, Path]]:
    """What `serve` would do, and the files by their names for HTTP.

    UsageError for a folder without a PXE bake or an unknown interface, VerificationError for files that are not what
    the bake wrote, EnvironmentFault when there is no iPXE.
    """
    address = interface_address(request.interface)
    files = _files(request.folder, console)
    script = next(name for name in files if name.endswith(".ipxe"))
    found = dnsmasq.loaders(request.ipxe)
    if not found:
        raise EnvironmentFault(
            f"There is no iPXE in {request.ipxe}, which machines load first.",
            "Install it, on Debian: apt-get install ipxe; or name its folder with --ipxe.",
        )
    url = f"http://{address.ip}:{request.port}/{script}"
    pool = dnsmasq.parse_pool(request.pool, address)
    return dnsmasq.Netboot(request.interface, address, url, tuple(found), pool), files


def interface_address(name: str) -> ipaddress.IPv4Interface:
    """The first IPv4 address of a network interface; UsageError when there is none."""
    try:
        shown = json.loads(run(["ip", "-json", "-4", "address", "show", "dev", name]).text)
    except CommandFailed as failure:
        names = [item["ifname"] for item in json.loads(run(["ip", "-json", "link", "show"]).text)]
        raise UsageError(f"There is no network interface {name}.", f"Here are: {', '.join(names)}.") from failure
    for item in shown:
        for info in item.get("addr_info", ()):
            return ipaddress.IPv4Interface(f"{info['local']}/{info['prefixlen']}")
    raise UsageError(
        f"The interface {name} has no IPv4 address.",
        f"Give it one, for example: ip address add 192.0.2.1/24 dev {name}",
    )


def _files(folder: Path, console: Console) -> dict[str, Path]:
    """The files of a PXE bake, checked against the manifest: nothing else in the folder is served."""
    manifest = folder / MANIFEST_NAME
    with console.step(f"Check the files in {folder}"):
        checked = recheck(manifest)
    outputs = json.loads(manifest.read_bytes())["outputs"]
    vendors = {item["vendor"] for item in outputs if item["format"] == "kernel"}
    names = [item["file"] for item in outputs if item["vendor"] in vendors]
    if not any(name.endswith(".ipxe") for name in names):
        raise UsageError(f"{folder} holds nothing to boot by PXE.", "Bake it: flatcar-bake --vendor pxe …")
    for item in checked:
        if item.problem and item.file not in {output["file"] for output in outputs} - set(names):
            raise VerificationError(
                f"{folder / item.file} {item.problem}.", "Bake again; damaged files are not served."
            )
    return {name: folder / name for name in names}


def serve(request: ServeRequest, console: Console, ready: Callable[[str], None] = lambda url: None) -> None:
    """Serve until interrupted; `ready` gets the script's URL when everything answers.

    EnvironmentFault when ports cannot be had, or dnsmasq ends.
    """
    if os.geteuid():
        raise EnvironmentFault(
            "DHCP and TFTP answer on ports that only root may use.", "Run it with sudo, or look at it with --dry-run."
        )
    need("dnsmasq")
    netboot, files = plan_netboot(request, console)
    with scratch() as work, _http(netboot, request.port, files, console):
        root = work / "tftp"
        root.mkdir()
        for name, path in dnsmasq.loaders(request.ipxe).items():
            shutil.copyfile(path, root / name)
        config = work / "dnsmasq.conf"
        config.write_text(dnsmasq.configuration(netboot, root), encoding="utf-8")
        for path in (work, root):
            path.chmod(0o755)  # dnsmasq runs as nobody
        with spawn(dnsmasq.command(config), stdout=None, stderr=None, cwd=root) as process:
            ready(netboot.script)
            process.wait()
        raise EnvironmentFault(
            f"dnsmasq ended with status {process.returncode}.",
            "What it said is above; is another DHCP or TFTP server running here?",
        )


@contextmanager
def _http(netboot: dnsmasq.Netboot, port: int, files: Mapping[str, Path], console: Console) -> Iterator[None]:
    try:
        server = _Server((str(netboot.address.ip), port), _Handler)
    except OSError as error:
        raise EnvironmentFault(
            f"Cannot listen on {netboot.address.ip} port {port}: {error.strerror}.", "Choose another with --port."
        ) from error
    server.known, server.tell = files, console.note
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.2}, daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    known: Mapping[str, Path]
    tell: Callable[[str], None]


class _Handler(BaseHTTPRequestHandler):
    """Answers GET and HEAD for the known names, and nothing else: no path of a request becomes one of ours."""

    server: _Server
    protocol_version = "HTTP/1.1"
    timeout = 60

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def _answer(self, with_body: bool) -> None:
        path = self.server.known.get(unquote(urlsplit(self.path).path).lstrip("/"))
        if path is None:
            self.send_error(404)
            return
        with path.open("rb") as file:
            self.send_response(200)
            self.send_header("Content-Type", "application/octet-stream")
            self.send_header("Content-Length", str(os.fstat(file.fileno()).st_size))
            self.end_headers()
            if with_body:
                self.server.tell(f"{self.client_address[0]} fetches {path.name}")
                try:
                    shutil.copyfileobj(file, self.wfile, 1 << 20)
                except (BrokenPipeError, ConnectionResetError, TimeoutError):
                    self.close_connection = True  # the machine went away

    def log_message(self, format: str, *args: object) -> None:
        """Told by `tell`."""
