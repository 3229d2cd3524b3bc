"""Sysexts and configs of a bakery are checked against its SHA256SUMS; pinned addresses against their digest."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from keys import TestKey
from mirrors import Recorder, open_store
from servers import MirrorServer, setting, status

from baker.errors import NetworkError, UsageError, VerificationError
from baker.fetch import FileMissing
from baker.store import Store, component

SYSEXT = "k3s-v1.31.0+k3s1-x86-64.raw"
DATA = os.urandom(300_000)
CONF = b"[Transfer]\nVerify=false\n"


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.fixture(scope="module")
def key() -> Iterator[TestKey]:
    with TestKey() as key:
        yield key


@pytest.fixture
def bakery(tmp_path: Path) -> Path:
    """A bakery's folder: a listed sysext, a config that no list covers, and an unlisted sysext."""
    folder = tmp_path / "www" / "extensions"
    folder.mkdir(parents=True)
    (folder / SYSEXT).write_bytes(DATA)
    (folder / "k3s.conf").write_bytes(CONF)
    (folder / "stray-1.0-x86-64.raw").write_bytes(b"stray")
    (folder / "SHA256SUMS").write_text(f"{sha256(DATA)}  {SYSEXT}\n{sha256(b'other')}  other-1.0-x86-64.raw\n")
    return folder


@pytest.fixture
def server(bakery: Path) -> Iterator[MirrorServer]:
    with MirrorServer(bakery.parent) as server:
        yield server


@pytest.fixture
def url(server: MirrorServer) -> str:
    return f"{server.url}/extensions"


@pytest.fixture
def store(key: TestKey, tmp_path: Path) -> Iterator[Store]:
    with open_store("http://127.0.0.1:9", tmp_path / "cache", key) as store:
        yield store


def test_a_listed_sysext_is_verified_and_cached(store: Store, url: str, server: MirrorServer) -> None:
    assert store.bakery_names(url)[SYSEXT] == sha256(DATA)
    stored = store.bakery(url, SYSEXT)
    assert stored.path.read_bytes() == DATA
    assert (stored.name, stored.size, stored.sha256) == (SYSEXT, len(DATA), sha256(DATA))
    assert stored.url == f"{url}/k3s-v1.31.0%2Bk3s1-x86-64.raw"
    assert stored.verified
    assert stored.signer is None
    assert not stored.from_cache
    assert store.bakery(url, SYSEXT).from_cache
    assert len(server.seen) == 2, "the list and the file, once each"


def test_a_folder_is_a_bakery_too(store: Store, bakery: Path) -> None:
    for base in (str(bakery), bakery.as_uri(), f"{bakery}/"):
        assert store.bakery(base, SYSEXT).path.read_bytes() == DATA
        assert store.bakery(base, "k3s.conf").path.read_bytes() == CONF


def test_a_sysext_with_other_content_is_refused(store: Store, url: str, bakery: Path, tmp_path: Path) -> None:
    (bakery / SYSEXT).write_bytes(DATA[:-1])
    with pytest.raises(VerificationError, match=f"has the sha256 {sha256(DATA[:-1])}, but {sha256(DATA)} is expected"):
        store.bakery(url, SYSEXT)
    assert not list((tmp_path / "cache").rglob("partial/*"))


def test_a_sysext_that_is_not_listed_is_refused_without_fetching_it(
    store: Store, url: str, server: MirrorServer
) -> None:
    with pytest.raises(VerificationError, match=r"does not list stray-1\.0-x86-64\.raw"):
        store.bakery(url, "stray-1.0-x86-64.raw")
    assert not server.requests("/extensions/stray-1.0-x86-64.raw")


def test_a_bakery_without_any_list_gives_no_sysext(store: Store, url: str, bakery: Path) -> None:
    (bakery / "SHA256SUMS").unlink()
    with pytest.raises(FileMissing):
        store.bakery_names(url)
    with pytest.raises(VerificationError, match="does not list"):
        store.bakery(url, SYSEXT)


def test_a_malformed_list_is_refused(store: Store, url: str, bakery: Path) -> None:
    (bakery / "SHA256SUMS").write_text(f"{sha256(DATA)}  ../{SYSEXT}\n")
    with pytest.raises(VerificationError, match="Line 1 of SHA256SUMS"):
        store.bakery(url, SYSEXT)


def test_a_config_that_no_list_covers_says_so_and_is_not_cached(store: Store, url: str, tmp_path: Path) -> None:
    stored = store.bakery(url, "k3s.conf")
    assert stored.path.read_bytes() == CONF
    assert not stored.verified
    assert stored.sha256 == sha256(CONF)
    assert tmp_path / "cache" not in stored.path.parents
    store.close()
    assert not stored.path.exists()


def test_a_config_that_a_list_covers_is_verified(store: Store, url: str, bakery: Path) -> None:
    with (bakery / "SHA256SUMS").open("a") as file:
        file.write(f"{sha256(CONF)} *k3s.conf\n")
    assert store.bakery(url, "k3s.conf").verified
    (bakery / "k3s.conf").write_bytes(b"[Transfer]\n")
    assert store.bakery(url, "k3s.conf").from_cache


def test_a_missing_config_is_missing(store: Store, url: str) -> None:
    with pytest.raises(FileMissing):
        store.bakery(url, "nothing.conf")


def test_a_list_and_files_may_be_in_the_extensions_own_folder(store: Store, url: str, bakery: Path) -> None:
    own = bakery / "tailscale"
    own.mkdir()
    (own / "tailscale-1.70.0-x86-64.raw").write_bytes(b"vpn")
    (own / "tailscale.conf").write_bytes(CONF)
    (own / "SHA256SUMS").write_text(f"{sha256(b'vpn')}  tailscale-1.70.0-x86-64.raw\n")
    stored = store.bakery(url, "tailscale-1.70.0-x86-64.raw")
    assert stored.path.read_bytes() == b"vpn"
    assert store.bakery(url, "tailscale.conf").url == f"{url}/tailscale/tailscale.conf"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (SYSEXT, "k3s"), ("kubernetes-v1.31.conf", "kubernetes"),
        ("docker-compose-2.24.1-arm64.raw", "docker-compose"),
        ("docker_compose.conf", "docker_compose"), ("nvidia-drivers-570.1-x86-64.raw", "nvidia-drivers"),
    ],
)  # fmt: skip
def test_the_extension_of_a_file_name(name: str, expected: str) -> None:
    assert component(name) == expected


def test_redirects_to_where_the_files_really_are(store: Store, url: str, server: MirrorServer, bakery: Path) -> None:
    (bakery.parent / "elsewhere").mkdir()
    (bakery / SYSEXT).rename(bakery.parent / "elsewhere" / "file")
    server.on(f"/extensions/{SYSEXT}", status(302, Location="/elsewhere/file"))
    stored = store.bakery(url, SYSEXT)
    assert stored.path.read_bytes() == DATA
    assert stored.name == SYSEXT


def test_a_list_seen_before_serves_without_a_network(
    url: str, server: MirrorServer, key: TestKey, tmp_path: Path
) -> None:
    console = Recorder()
    with open_store("http://127.0.0.1:9", tmp_path / "cache", key) as store:
        store.bakery(url, SYSEXT)
    server.on("/extensions/SHA256SUMS", status(503))
    with open_store("http://127.0.0.1:9", tmp_path / "cache", key, console) as offline:
        assert offline.bakery(url, SYSEXT).from_cache
    assert "as it was seen last" in console.warnings[0]
    server.on("/extensions/SHA256SUMS", status(404))
    with (
        open_store("http://127.0.0.1:9", tmp_path / "cache", key, console) as store,
        pytest.raises(VerificationError),
    ):
        store.bakery(url, SYSEXT)


def test_a_pinned_address_is_known_by_its_digest(store: Store, url: str, server: MirrorServer) -> None:
    address = f"{url}/k3s-v1.31.0%2Bk3s1-x86-64.raw"
    stored = store.pinned_url(address, sha256(DATA).upper())
    assert stored.path.read_bytes() == DATA
    assert (stored.name, stored.url, stored.sha256) == (SYSEXT, address, sha256(DATA))
    del server.seen[:]
    again = store.pinned_url("http://127.0.0.1:9/another/name.raw", sha256(DATA))
    assert again.from_cache
    assert (again.name, again.path) == ("name.raw", stored.path)
    assert not server.seen


def test_a_pinned_address_with_other_content_is_refused(store: Store, url: str, tmp_path: Path) -> None:
    with pytest.raises(VerificationError, match="is expected") as caught:
        store.pinned_url(f"{url}/k3s.conf", "0" * 64)
    assert url in (caught.value.hint or "")
    assert not list((tmp_path / "cache").rglob("partial/*"))


@pytest.mark.parametrize("digest", ["", "abc", "g" * 64, "0" * 63, "0" * 65, "0" * 40])
def test_a_pin_that_is_no_sha256_is_a_usage_error(store: Store, url: str, digest: str) -> None:
    with pytest.raises(UsageError, match="not a sha256"):
        store.pinned_url(f"{url}/k3s.conf", digest)


def test_a_lost_connection_is_resumed_by_the_next_run(store: Store, url: str, server: MirrorServer) -> None:
    server.on(f"/extensions/{SYSEXT}", setting(cut=50_000))
    with pytest.raises(NetworkError):
        store.bakery(url, SYSEXT)
    server.faults.clear()
    del server.seen[:]
    assert store.bakery(url, SYSEXT).path.read_bytes() == DATA
    assert server.seen[-1].headers["Range"] == "bytes=200000-"
