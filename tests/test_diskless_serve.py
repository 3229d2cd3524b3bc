"""`flatcar-bake pxe serve`: what it would do, what it refuses, and that nothing of it outlives it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cli import flatcar_bake
from networks import lab

from baker.model import Artifact
from baker.sparse import file_sha256

FILES = {
    "flatcar_production_pxe_image.cpio.gz": "cpio",
    "flatcar_production_pxe.vmlinuz": "kernel",
    "flatcar_production_pxe.ipxe": "text",
}


@pytest.fixture
def baked(tmp_path: Path) -> Path:
    """The output of a PXE bake, with another vendor's image and something that is none of a bake's beside it."""
    out = tmp_path / "out"
    out.mkdir()
    for name in (*FILES, "image.bin"):
        (out / name).write_text(f"content of {name}\n")
    write_records(out, {**FILES, "image.bin": "raw"})
    (out / "private").write_text("secret")
    return out


def write_records(out: Path, files: dict[str, str]) -> None:
    artifacts = [
        Artifact(
            out / name, kind, (out / name).stat().st_size, file_sha256(out / name), "pxe" if kind != "raw" else "x"
        )
        for name, kind in files.items()
    ]
    outputs = [
        {"file": item.path.name, "vendor": item.vendor, "format": item.format, "size": item.size,
         "sha256": item.sha256}
        for item in artifacts
    ]  # fmt: skip
    (out / "bake-manifest.json").write_text(json.dumps({"outputs": outputs}))
    lines = [f"{item.sha256}  {item.path.name}\n" for item in artifacts]
    lines.append(f"{file_sha256(out / 'bake-manifest.json')}  bake-manifest.json\n")
    (out / "SHA256SUMS").write_text("".join(lines))


def test_a_dry_run_prints_a_configuration_that_dnsmasq_takes(baked: Path, tmp_path: Path) -> None:
    for words, dhcp in (
        ((), "dhcp-range=127.0.0.1,proxy"),
        (("--dhcp", "127.1.0.1,127.1.0.9"), "dhcp-range=127.1.0.1,127.1.0.9,255.0.0.0,1h"),
    ):
        done = flatcar_bake("pxe", "serve", baked, "-i", "lo", "--dry-run", *words)
        assert done.returncode == 0, done.stderr
        for line in (
            dhcp, "interface=lo", "bind-interfaces", "port=0", "dhcp-match=set:ipxe,175",
            "dhcp-boot=tag:ipxe,http://127.0.0.1:8080/flatcar_production_pxe.ipxe,,127.0.0.1",
            "dhcp-boot=tag:!ipxe,tag:undionly.kpxe,undionly.kpxe,,127.0.0.1",
            'pxe-service=tag:!ipxe,X86-64_EFI,"Flatcar",snponly.efi',
            "# HTTP: http://127.0.0.1:8080/flatcar_production_pxe.vmlinuz",
        ):  # fmt: skip
            assert line in done.stdout.splitlines()
        assert "image.bin" not in done.stdout
        config = tmp_path / "dnsmasq.conf"
        config.write_text(done.stdout.replace("TFTP_FOLDER", str(tmp_path)))
        subprocess.run(["/usr/sbin/dnsmasq", "--test", f"--conf-file={config}"], check=True, capture_output=True)


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (["-i", "nowhere0"], 2, "There is no network interface nowhere0"),
        (["-i", "lo", "--dhcp", "192.0.2.1,192.0.2.9"], 2, "no range within 127.0.0.0/8"),
        (["-i", "lo", "--dhcp", "127.0.0.9,127.0.0.1"], 2, "no range within 127.0.0.0/8"),
        (["-i", "lo", "--dhcp", "127.0.0.9"], 2, "no range of addresses"),
        (["-i", "lo", "--ipxe", "/nowhere"], 4, "apt-get install ipxe"),
    ],
)
def test_what_cannot_be_served_is_refused(words: list[str], status: int, said: str, baked: Path) -> None:
    done = flatcar_bake("pxe", "serve", baked, "--dry-run", *words)
    assert done.returncode == status, done.stderr
    assert said in done.stderr


def test_only_a_whole_pxe_bake_is_served(baked: Path, tmp_path: Path) -> None:
    (baked / "image.bin").unlink()  # of another vendor, and not served
    assert flatcar_bake("pxe", "serve", baked, "-i", "lo", "--dry-run").returncode == 0
    (baked / "flatcar_production_pxe.vmlinuz").write_text("CONTENT OF flatcar_production_pxe.vmlinuz\n")
    damaged = flatcar_bake("pxe", "serve", baked, "-i", "lo", "--dry-run")
    assert damaged.returncode == 3
    assert "flatcar_production_pxe.vmlinuz has the sha256" in damaged.stderr

    other = tmp_path / "other"
    other.mkdir()
    (other / "image.bin").write_text("an image\n")
    write_records(other, {"image.bin": "raw"})
    none = flatcar_bake("pxe", "serve", other, "-i", "lo", "--dry-run")
    assert none.returncode == 2
    assert "flatcar-bake --vendor pxe" in none.stderr
    assert flatcar_bake("pxe", "serve", tmp_path, "-i", "lo", "--dry-run").returncode == 2


def test_an_ordinary_user_is_told_that_it_takes_root(baked: Path) -> None:
    done = flatcar_bake(
        "pxe", "serve", baked, "-i", "lo", prefix=("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--")
    )
    assert done.returncode == 4
    assert "sudo" in done.stderr


def test_it_serves_its_files_alone_and_nothing_outlives_it(baked: Path, tmp_path: Path) -> None:
    with lab(tmp_path, taps=0, router=False) as net:
        argv = net.inside(sys.executable, "-m", "baker", "pxe", "serve", baked, "--interface", "br0")
        with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as server:
            try:
                assert server.stdout is not None
                url = server.stdout.readline().rsplit("/", 1)[0]
                dnsmasq = started_by(server.pid, "dnsmasq")
                assert "\nUid:\t65534\t65534\t" in (dnsmasq / "status").read_text(), "dnsmasq is not nobody"
                for name in FILES:
                    assert get(net.name, f"{url}/{name}") == f"content of {name}\n"
                for path in ("private", "image.bin", "../out/private", "%2e%2e/out/private", "", "etc/passwd"):
                    assert get(net.name, f"{url}/{path}") == "404"
                taken = flatcar_bake(
                    "pxe", "serve", baked, "--interface", "br0", prefix=("ip", "netns", "exec", net.name)
                )
                assert taken.returncode == 4
                assert "port 8080" in taken.stderr
            finally:
                server.send_signal(signal.SIGKILL)
        for _ in range(100):
            if not dnsmasq.exists():
                break
            time.sleep(0.1)
        assert not dnsmasq.exists(), "dnsmasq outlives flatcar-bake"


def started_by(parent: int, name: str) -> Path:
    """The child of this name in /proc; what gives up root's rights before it becomes that has another name."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        for pid in Path(f"/proc/{parent}/task/{parent}/children").read_text().split():
            if (child := Path("/proc") / pid).joinpath("comm").read_text() == f"{name}\n":
                return child
        time.sleep(0.05)
    raise AssertionError(f"{name} was not started")


_GET = """
import sys, urllib.error, urllib.request
try:
    print(urllib.request.urlopen(sys.argv[1]).read().decode(), end="")
except urllib.error.HTTPError as error:
    print(error.code, end="")
"""


def get(namespace: str, url: str) -> str:
    """What an HTTP server in a namespace answers: the content, or the status of an error."""
    done = subprocess.run(
        ["ip", "netns", "exec", namespace, sys.executable, "-c", _GET, url], capture_output=True, text=True, check=True
    )
    return done.stdout


def test_arm64_machines_are_served_where_there_is_an_ipxe_for_them(baked: Path, tmp_path: Path) -> None:
    folder = tmp_path / "ipxe"
    folder.mkdir()
    (folder / "snponly-arm64.efi").touch()
    done = flatcar_bake("pxe", "serve", baked, "-i", "lo", "--dry-run", "--ipxe", folder)
    assert 'pxe-service=tag:!ipxe,ARM64_EFI,"Flatcar",snponly-arm64.efi' in done.stdout
    assert "undionly" not in done.stdout
