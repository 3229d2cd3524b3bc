"""Two bakes of one lock give the same bytes, whoever bakes, where, when, and with how many jobs."""

import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from cli import flatcar_bake, release_environment
from standin.http_server import FolderServer

from baker.sparse import file_sha256

NOBODY = 65534
SYSEXT = "wasmtime@49.0.4"
GENERIC, QEMU = "flatcar_production_image.bin", "flatcar_production_qemu_uefi_image.img"
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="becoming another user needs root")


@pytest.fixture(scope="module")
def server(stand_in: Path) -> Iterator[str]:
    with FolderServer(stand_in) as running:
        yield running.url


@pytest.fixture(scope="module")
def env(stand_in: Path, server: str) -> dict[str, str]:
    fingerprint = release_environment(stand_in)["FLATCAR_BAKE_FINGERPRINT"]
    return {
        "FLATCAR_BAKE_MIRROR": server, "FLATCAR_BAKE_BAKERY": f"{server}/extensions",
        "FLATCAR_BAKE_FINGERPRINT": fingerprint, "FLATCAR_BAKE_PROGRESS": "plain",
    }  # fmt: skip


@pytest.fixture(scope="module")
def caches(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Path]]:
    """Root's cache and nobody's: neither bake has anything of the other's."""
    with tempfile.TemporaryDirectory(prefix="flatcar-bake-nobody-") as folder:
        os.chown(folder, NOBODY, NOBODY)
        yield tmp_path_factory.mktemp("cache"), Path(folder)


@as_root
@pytest.mark.parametrize(
    ("words", "images"),
    [
        (("-v", "generic", "-v", "qemu_uefi", "--base", "generic"), (GENERIC, QEMU)),
        (("-v", "qemu_uefi", "--base", "published"), (QEMU,)),
        (("-v", "qemu_uefi", "-v", "generic", "--base", "generic", "--install-to", "oem:/sysext"), (GENERIC, QEMU)),
        (("-v", "qemu_uefi", "--base", "published", "--install-to", "oem:/sysext", "--updates"), (QEMU,)),
    ],
    ids=["root-generic", "root-published", "oem-generic", "oem-published"],
)
@pytest.mark.long
def test_root_and_nobody_bake_the_same_bytes_from_one_lock(env, caches, tmp_path, words, images):
    by_root, home = tmp_path / "by-root", caches[1]
    first = flatcar_bake(
        *words, "--fetch", "--lock", "--lock-file", tmp_path / "bake.lock", "-o", by_root, "--jobs", "2", SYSEXT,
        env=env | {"FLATCAR_BAKE_CACHE_DIR": str(caches[0]), "TZ": "UTC", "LANG": "C"},
    )  # fmt: skip
    assert first.returncode == 0, first.stderr
    time.sleep(1.1)  # filesystems count seconds
    with tempfile.TemporaryDirectory(prefix="elsewhere-", dir=home) as name:
        elsewhere = Path(name)
        os.chown(elsewhere, NOBODY, NOBODY)
        lock = elsewhere / "bake.lock"
        lock.write_bytes((tmp_path / "bake.lock").read_bytes())
        lock.chmod(0o644)
        by_nobody = elsewhere / "a much longer" / "path"
        usual = os.umask(0o077)
        try:
            second = flatcar_bake(
                *words, "--fetch", "--locked", "-o", by_nobody, "--jobs", "1", SYSEXT, cwd=elsewhere,
                env=env | {
                    "HOME": str(home), "TMPDIR": str(home), "XDG_CACHE_HOME": str(home / "cache"),
                    "TZ": "Asia/Kathmandu", "LANG": "de_DE.UTF-8", "LC_ALL": "C",
                    "PYTHONPATH": str(Path(__file__).resolve().parent.parent),
                },
                prefix=(
                    "setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "--no-new-privs",
                    "--inh-caps=-all", "--bounding-set=-all",
                ),
            )  # fmt: skip
        finally:
            os.umask(usual)
        assert second.returncode == 0, second.stderr
        for image in images:
            assert file_sha256(by_nobody / image) == file_sha256(by_root / image)
        # Everything else too: launchers, firmware, the manifest, the SBOM.
        assert (by_nobody / "SHA256SUMS").read_text() == (by_root / "SHA256SUMS").read_text()


def test_sysexts_in_another_order_and_a_warm_cache_change_nothing(env, stand_in, tmp_path):
    there = env | {"FLATCAR_BAKE_CACHE_DIR": str(tmp_path / "cache")}
    hello = next((stand_in / "extensions").glob("hello-*-x86-64.raw")).name
    sums = []
    for name, sysexts in (("cold", [f"hello:{hello}", SYSEXT]), ("warm", [SYSEXT, f"hello:{hello}"])):
        done = flatcar_bake("-v", "qemu_uefi", "--fetch", "-o", tmp_path / name, *sysexts, env=there)
        assert done.returncode == 0, done.stderr
        sums.append(file_sha256(tmp_path / name / QEMU))
    assert sums[0] == sums[1]
