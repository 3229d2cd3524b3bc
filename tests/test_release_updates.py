"""What `release build` publishes: a baked machine updates itself from it, by a real systemd-sysupdate."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from cli import flatcar_bake, release_environment
from keys import TestKey
from servers import Handler, MirrorServer
from sysupdate_kit import HOST, NAME, NETWORK, kit
from upstream import Upstream

from baker.model import Arch

pytestmark = pytest.mark.boot
OLD, NEW = {"wasmtime": "v48.0.2", "wasmcloud": "v1.8.0"}, {"wasmtime": "v49.0.4", "wasmcloud": "v1.9.1"}
UPDATE = "systemctl start systemd-sysupdate.service; for i in $(seq 100); do " \
    "systemctl is-active -q systemd-sysupdate.service || break; sleep 1; done; " \
    "journalctl -b -u systemd-sysupdate.service -o cat --no-pager | tail -n 60; " \
    "test $(systemctl show -P Result systemd-sysupdate.service) = success"  # fmt: skip
LINKS = "readlink -f /etc/extensions/wasmtime.raw /etc/extensions/wasmcloud.raw"


@pytest.fixture(scope="module")
def signer() -> Iterator[TestKey]:
    with TestKey("Publisher <publisher@example.org>") as key:
        key.add_subkey()
        yield key


@pytest.fixture(scope="module")
def site(upstream: Upstream, signer: TestKey, tmp_path_factory: pytest.TempPathFactory) -> Iterator[MirrorServer]:
    """A web server with a signed release of the old versions."""
    for versions in (OLD, NEW):
        for name, version in versions.items():
            upstream.add(name, Arch.X86_64, version)
    folder = tmp_path_factory.mktemp("site")
    (folder / "secret.asc").write_bytes(signer.gpg("--armor", "--export-secret-keys"))
    (folder / "www").mkdir()
    with MirrorServer(folder / "www") as server:
        publish(upstream, server, "# the old form too\nwasmtime v48.0.2\nwasmcloud-v1.8.0 # what is baked\n")
        yield server


def publish(upstream: Upstream, server: MirrorServer, versions: str) -> dict[str, object]:
    """Build what a versions file says into the folder of the web server; returns what the command reports."""
    folder = server.folder.parent
    (folder / "versions.txt").write_text(versions)
    port = server.url.rpartition(":")[2]
    done = flatcar_bake(
        "release", "build", folder / "versions.txt", "--arch", "x86-64", "-o", server.folder, "--compression", "lz4",
        "--url", f"http://{HOST}:{port}", "--sign", folder / "secret.asc", "--json", "--progress", "plain",
        env={"FLATCAR_BAKE_CACHE_DIR": str(folder / "cache"),
             "FLATCAR_BAKE_MIRROR_URL": " ".join("=".join(rule) for rule in upstream.rewrites)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    report: dict[str, object] = json.loads(done.stdout)
    return report


def test_a_baked_machine_updates_itself_from_a_published_release(
    site: MirrorServer, upstream: Upstream, stand_in: Path, tmp_path: Path
) -> None:
    words = [f"{name}@{version}" for name, version in OLD.items()]
    done = flatcar_bake(
        "bake", "-v", "qemu_uefi", "-o", tmp_path, "--bakery", site.url, "--updates",
        "--bakery-key", site.folder / "import-pubring.gpg",
        "--update-key", site.folder / "import-pubring.gpg", f"{NAME}:{kit()}", *words,
        env=release_environment(stand_in) | {"FLATCAR_BAKE_CACHE_DIR": str(tmp_path / "cache")},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr

    report = publish(upstream, site, "wasmtime latest\nwasmcloud v1.9.1\nwasmtime v48.0.2\n")
    assert report["skipped"] == ["wasmtime-v48.0.2-x86-64.raw"]
    # Somebody on the way has a key of his own, once.
    with TestKey("Somebody else <else@example.org>") as other:
        other.add_subkey()
        forged = other.sign((site.folder / "wasmcloud/SHA256SUMS").read_bytes())

    def forge(request: Handler) -> bool:
        return request.answer(200, forged)

    site.on("/wasmcloud/SHA256SUMS.gpg", site.times(1, forge))
    commands = [
        NETWORK, "wasmtime --version", LINKS,
        "! /usr/lib/systemd/systemd-sysupdate --component=wasmcloud update 2>&1", LINKS,
        UPDATE, LINKS, "wasmtime --version", "systemd-sysext refresh && wasmtime --version && nats-server --version",
    ]  # fmt: skip
    done = flatcar_bake(
        "boot", tmp_path / "flatcar_production_qemu_uefi_image.img", "--network", "--json", "--timeout", "500",
        *(word for name in OLD for word in ("--expect-sysext", name)),
        *(word for command in commands for word in ("--run", command)),
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    (boot,) = json.loads(done.stdout)["boots"]
    before, links, refused, unchanged, log, updated, running, refreshed = (
        result["stdout"] for result in boot["commands"][1:]
    )
    assert "wasmtime 48.0.2" in before and "wasmtime 48.0.2" in running
    assert "Signature verification failed" in refused and "No public key" in refused
    assert unchanged == links and "wasmcloud-v1.8.0-x86-64.raw" in links
    assert [Path(line).name for line in updated.split()] == [
        "wasmtime-v49.0.4-x86-64.raw", "wasmcloud-v1.9.1-x86-64.raw"
    ], log  # fmt: skip
    assert "Signature verification succeeded" in log
    assert "wasmtime 49.0" in refreshed and "nats-server" in refreshed
