"""A release's files enter the cache in one pass, only with the pinned key's signature, else they leave nothing."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import importlib.util
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from keys import BORN, TestKey
from mirrors import RELEASE, Recorder, SignedMirror, open_store
from servers import MirrorServer, setting, status

from baker.errors import EnvironmentFault, ImageError, NetworkError, VerificationError
from baker.fetch import FileMissing
from baker.run import find
from baker.sparse import content_digest
from baker.store import Store

RAW = os.urandom(1_000_000) + bytes(5_000_000) + b"end"
PACKED = bz2.compress(RAW)
IMAGE = "flatcar_production_image.bin.bz2"
SYSEXT = "oem-qemu.raw"


@pytest.fixture(scope="module")
def key() -> Iterator[TestKey]:
    with TestKey() as key:
        key.add_subkey()
        yield key


@pytest.fixture
def mirror(tmp_path: Path, key: TestKey) -> SignedMirror:
    mirror = SignedMirror(tmp_path / "www", key)
    mirror.put(IMAGE, PACKED)
    mirror.put(SYSEXT, RAW)
    return mirror


@pytest.fixture
def server(mirror: SignedMirror) -> Iterator[MirrorServer]:
    with MirrorServer(mirror.folder) as server:
        yield server


@pytest.fixture
def console() -> Recorder:
    return Recorder()


@pytest.fixture
def store(server: MirrorServer, key: TestKey, tmp_path: Path, console: Recorder) -> Iterator[Store]:
    with open_store(server.url, tmp_path / "cache", key, console) as store:
        yield store


@pytest.fixture(params=["lbzip2", "indexed_bzip2", "bz2"])
def engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """Run the test as on a machine whose best bz2 decoder is this one."""
    if request.param != "lbzip2":
        tools = tmp_path / "tools"
        tools.mkdir()
        for name in ("gpg", "setpriv"):
            (tools / name).symlink_to(find(name) or name)
        monkeypatch.setenv("PATH", str(tools))
        assert find("lbzip2") is None
    if request.param == "bz2":
        monkeypatch.setitem(sys.modules, "indexed_bzip2", None)
    assert request.param != "indexed_bzip2" or importlib.util.find_spec("indexed_bzip2"), "it is needed for this test"
    return str(request.param)


def leftovers(tmp_path: Path) -> list[str]:
    """Everything in the cache but locks and folders, by kind."""
    return sorted(
        path.parent.name for path in (tmp_path / "cache").rglob("*") if path.is_file() and path.parent.name != "locks"
    )


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_an_image_is_verified_and_decoded_in_one_pass(
    store: Store, server: MirrorServer, key: TestKey, tmp_path: Path, engine: str
) -> None:
    disk = store.disk(RELEASE, IMAGE)
    assert disk.path.read_bytes() == RAW
    assert disk.path.stat().st_blocks * 512 < 1_200_000
    assert disk.size == len(RAW)
    assert disk.sha256 == hashlib.sha256(PACKED).hexdigest()
    assert disk.content_digest == content_digest(disk.path)
    assert disk.signer is not None
    assert (disk.signer.primary, disk.signer.created) == (key.fingerprint, BORN + 60)
    assert (disk.name, disk.from_cache) == (IMAGE, False)
    assert disk.url == f"{server.url}/stable/amd64-usr/4593.2.5/{IMAGE}"
    assert len(server.seen) == 2, "the file and its signature, once each"
    assert leftovers(tmp_path) == ["index", "objects"], "the download itself is gone"


def test_the_second_time_nothing_is_fetched(store: Store, server: MirrorServer) -> None:
    disk, file = store.disk(RELEASE, IMAGE), store.signed_file(RELEASE, SYSEXT)
    del server.seen[:]
    again, file_again = store.disk(RELEASE, IMAGE), store.signed_file(RELEASE, SYSEXT)
    assert again.from_cache
    assert file_again.from_cache
    assert (again.path, again.signer, again.sha256) == (disk.path, disk.signer, disk.sha256)
    assert (file_again.path, file_again.signer) == (file.path, file.signer)
    assert not server.seen


def test_without_any_network_the_cache_is_enough(
    store: Store, server: MirrorServer, key: TestKey, tmp_path: Path
) -> None:
    store.disk(RELEASE, IMAGE)
    store.signed_file(RELEASE, SYSEXT)
    with open_store("http://127.0.0.1:9", tmp_path / "cache", key, retries=0) as offline:
        offline._new_verifier = lambda: pytest.fail("no key is needed for what is verified already")
        assert offline.disk(RELEASE, IMAGE).path.read_bytes() == RAW
        assert offline.signed_file(RELEASE, SYSEXT).from_cache
        assert offline.has(RELEASE, IMAGE)
        assert offline.has(RELEASE, SYSEXT)
        with pytest.raises(NetworkError):
            offline.has(RELEASE, "another.raw")


def test_every_kind_of_file_by_its_suffix(store: Store, mirror: SignedMirror) -> None:
    mirror.put("akamai.bin.gz", gzip.compress(RAW))
    mirror.put("plain.bin", RAW)
    mirror.put("qemu.img", b"QFI\xfb" + RAW)
    assert store.disk(RELEASE, "akamai.bin.gz").path.read_bytes() == RAW
    plain = store.disk(RELEASE, "plain.bin")
    assert plain.path.read_bytes() == RAW
    assert plain.sha256 == hashlib.sha256(RAW).hexdigest()
    assert store.disk(RELEASE, "qemu.img").path.read_bytes() == b"QFI\xfb" + RAW, "a qcow2 stays as it is"
    packed = store.signed_file(RELEASE, IMAGE)
    assert packed.path.read_bytes() == PACKED
    assert packed.size == len(PACKED)
    assert packed.path != store.disk(RELEASE, IMAGE).path


@pytest.mark.parametrize("form", ["path", "uri"])
def test_a_folder_serves_like_a_server(
    mirror: SignedMirror, key: TestKey, tmp_path: Path, form: str, engine: str
) -> None:
    base = str(mirror.folder) if form == "path" else mirror.folder.as_uri()
    with open_store(base, tmp_path / "cache", key) as store:
        assert store.disk(RELEASE, IMAGE).path.read_bytes() == RAW
        assert store.signed_file(RELEASE, SYSEXT).path.read_bytes() == RAW
        flip(mirror.put("other.bin.bz2", PACKED))
        with pytest.raises(VerificationError):
            store.disk(RELEASE, "other.bin.bz2")
    assert (mirror.folder / mirror.path(IMAGE)[1:]).read_bytes() == PACKED, "the mirror itself is never touched"


def test_has_asks_the_server_once(store: Store, server: MirrorServer) -> None:
    for _ in range(2):
        assert store.has(RELEASE, IMAGE)
        assert not store.has(RELEASE, "oem-nothing.raw")
    assert [seen.method for seen in server.seen] == ["HEAD", "HEAD"]


@pytest.mark.parametrize("damage", ["flipped bit", "cut short", "longer", "empty", "no bz2 at all"])
def test_a_forged_image_is_called_forged_whatever_the_decoder_says(
    store: Store, mirror: SignedMirror, tmp_path: Path, damage: str, engine: str
) -> None:
    path = mirror.folder / mirror.path(IMAGE)[1:]
    path.write_bytes({
        "flipped bit": PACKED[:500_000] + bytes([PACKED[500_000] ^ 1]) + PACKED[500_001:],
        "cut short": PACKED[:-1000],
        "longer": PACKED + b"x",
        "empty": b"",
        "no bz2 at all": b"rubbish" * 1000,
    }[damage])  # fmt: skip
    for get in (store.disk, store.signed_file):
        with pytest.raises(VerificationError, match="does not match its signature"):
            get(RELEASE, IMAGE)
        assert leftovers(tmp_path) == []


@pytest.mark.parametrize("damage", ["cut short", "flipped bit", "no bz2 at all"])
def test_a_signed_image_that_is_damaged_is_an_image_error(
    store: Store, mirror: SignedMirror, tmp_path: Path, damage: str, engine: str
) -> None:
    mirror.put(IMAGE, {
        "cut short": PACKED[:-1000],
        "flipped bit": PACKED[:500_000] + bytes([PACKED[500_000] ^ 1]) + PACKED[500_001:],
        "no bz2 at all": b"rubbish" * 1000,
    }[damage])  # fmt: skip
    with pytest.raises(ImageError, match="not an intact compressed file"):
        store.disk(RELEASE, IMAGE)
    assert leftovers(tmp_path) == []


def test_files_swapped_with_their_signatures_are_refused(store: Store, mirror: SignedMirror) -> None:
    image, sysext = (mirror.folder / mirror.path(name + ".sig")[1:] for name in (IMAGE, SYSEXT))
    one, two = image.read_bytes(), sysext.read_bytes()
    image.write_bytes(two)
    sysext.write_bytes(one)
    with pytest.raises(VerificationError):
        store.disk(RELEASE, IMAGE)
    with pytest.raises(VerificationError):
        store.signed_file(RELEASE, SYSEXT)


def test_a_file_without_a_signature_is_refused_before_it_is_fetched(
    store: Store, mirror: SignedMirror, server: MirrorServer
) -> None:
    (mirror.folder / mirror.path(IMAGE + ".sig")[1:]).unlink()
    with pytest.raises(VerificationError, match=r"not signed: there is no http.*\.sig") as caught:
        store.disk(RELEASE, IMAGE)
    assert "no option changes that" in (caught.value.hint or "")
    assert not server.requests(mirror.path(IMAGE))


def test_a_file_that_is_not_there_is_missing_not_unsigned(store: Store) -> None:
    for get in (store.disk, store.signed_file):
        with pytest.raises(FileMissing, match=r"nothing\.bin\.bz2"):
            get(RELEASE, "nothing.bin.bz2")


@pytest.mark.parametrize("signature", [b"\n", b"-----BEGIN PGP SIGNATURE-----\n", bytes(range(160, 250))])
def test_a_signature_that_is_none_is_refused(
    store: Store, mirror: SignedMirror, tmp_path: Path, signature: bytes
) -> None:
    mirror.put(IMAGE, PACKED, signature=signature)
    with pytest.raises(VerificationError):
        store.disk(RELEASE, IMAGE)
    assert leftovers(tmp_path) == []


def test_an_empty_signature_is_refused(store: Store, mirror: SignedMirror) -> None:
    (mirror.folder / mirror.path(IMAGE + ".sig")[1:]).write_bytes(b"")
    with pytest.raises(VerificationError):
        store.disk(RELEASE, IMAGE)


def test_a_web_page_as_signature_is_a_network_error(store: Store, mirror: SignedMirror) -> None:
    mirror.put(IMAGE, PACKED, signature=b"<!DOCTYPE html>")
    with pytest.raises(NetworkError, match="web page"):
        store.disk(RELEASE, IMAGE)


def test_what_one_key_vouched_for_is_nothing_under_another(
    store: Store, server: MirrorServer, mirror: SignedMirror, tmp_path: Path
) -> None:
    store.disk(RELEASE, IMAGE)
    with TestKey() as other:
        other.add_subkey()
        with open_store(server.url, tmp_path / "cache", other) as strict:
            with pytest.raises(VerificationError):
                strict.disk(RELEASE, IMAGE)
            mirror.put(IMAGE, PACKED, signature=other.sign(PACKED))
            resigned = strict.disk(RELEASE, IMAGE)
            assert resigned.signer is not None
            assert resigned.signer.primary == other.fingerprint
    first = store.disk(RELEASE, IMAGE)
    assert first.from_cache
    assert first.signer is not None
    assert first.signer.primary != other.fingerprint


def test_a_store_and_its_verifier_must_agree_on_the_key(server: MirrorServer, key: TestKey, tmp_path: Path) -> None:
    with TestKey() as other, open_store(server.url, tmp_path / "cache", key) as store:
        store._fingerprint = other.fingerprint
        with pytest.raises(VerificationError, match="The store trusts"):
            store.disk(RELEASE, IMAGE)


def test_a_damaged_cache_entry_is_fetched_again(store: Store, console: Recorder) -> None:
    for get, name in ((store.disk, IMAGE), (store.signed_file, SYSEXT)):
        path = get(RELEASE, name).path
        path.chmod(0o644)
        flip(path)
        stored = get(RELEASE, name)
        assert not stored.from_cache
        assert stored.path.read_bytes() == RAW
    assert [warning.split()[0] for warning in console.warnings] == [IMAGE, SYSEXT]


def test_after_a_lost_connection_the_next_run_goes_on(
    store: Store, server: MirrorServer, mirror: SignedMirror, tmp_path: Path, engine: str
) -> None:
    path = mirror.path(IMAGE)
    server.on(path, setting(cut=100_000))
    with pytest.raises(NetworkError):
        store.disk(RELEASE, IMAGE)
    assert leftovers(tmp_path) == ["partial", "partial"], "the part and its origin stay, the half-decoded image goes"
    server.faults.clear()
    del server.seen[:]
    assert store.disk(RELEASE, IMAGE).path.read_bytes() == RAW
    (request,) = server.requests(path)
    assert request.headers["Range"] == "bytes=400000-"


def test_a_connection_lost_under_way_is_not_even_noticed(
    store: Store, server: MirrorServer, mirror: SignedMirror, engine: str
) -> None:
    server.on(mirror.path(IMAGE), server.times(3, setting(cut=123_456)))
    assert store.disk(RELEASE, IMAGE).path.read_bytes() == RAW


def test_a_server_that_cannot_resume_restarts_the_whole_pass(
    store: Store, server: MirrorServer, mirror: SignedMirror, engine: str
) -> None:
    cut = server.times(2, setting(cut=700_000))
    server.on(mirror.path(IMAGE), lambda handler: setting(ranges=False)(handler) or cut(handler))
    disk = store.disk(RELEASE, IMAGE)
    assert disk.path.read_bytes() == RAW
    assert disk.sha256 == hashlib.sha256(PACKED).hexdigest()


def test_a_server_that_cannot_resume_and_always_breaks_off_is_given_up(
    store: Store, server: MirrorServer, mirror: SignedMirror
) -> None:
    server.on(mirror.path(IMAGE), setting(cut=700_000, ranges=False))
    with pytest.raises(NetworkError, match="cannot resume"):
        store.disk(RELEASE, IMAGE)


def test_a_resumed_part_that_was_bad_is_thrown_away_and_all_is_fetched(
    store: Store, server: MirrorServer, mirror: SignedMirror, tmp_path: Path, console: Recorder
) -> None:
    server.on(mirror.path(IMAGE), setting(cut=100_000))
    with pytest.raises(NetworkError):
        store.disk(RELEASE, IMAGE)
    server.faults.clear()
    (part,) = (path for path in (tmp_path / "cache").rglob("partial/*") if path.suffix != ".json")
    flip(part)
    assert store.disk(RELEASE, IMAGE).path.read_bytes() == RAW
    assert "fetched again as a whole" in console.warnings[0]


def test_a_bad_file_is_refused_once_even_after_a_resume(
    store: Store, server: MirrorServer, mirror: SignedMirror, tmp_path: Path
) -> None:
    flip(mirror.folder / mirror.path(IMAGE)[1:])
    server.on(mirror.path(IMAGE), setting(cut=100_000))
    with pytest.raises(NetworkError):
        store.disk(RELEASE, IMAGE)
    server.faults.clear()
    with pytest.raises(VerificationError):
        store.disk(RELEASE, IMAGE)
    assert leftovers(tmp_path) == []


def test_a_signed_bomb_is_stopped(
    store: Store, mirror: SignedMirror, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("baker.store.LARGEST_IMAGE", 1_000_000)
    with pytest.raises(ImageError, match="unpacks to more than"):
        store.disk(RELEASE, IMAGE)
    assert leftovers(tmp_path) == []


def test_a_small_signed_file_comes_with_its_signer(store: Store, mirror: SignedMirror, server: MirrorServer) -> None:
    mirror.put_version()
    url = f"{server.url}/stable/amd64-usr/current/version.txt"
    data, signer = store.signed_bytes(url, "version.txt")
    assert data.startswith(b"FLATCAR_VERSION=4593.2.5\n")
    assert signer.primary == mirror.key.fingerprint
    (mirror.folder / "stable/amd64-usr/current/version.txt").write_bytes(data + b" ")
    with pytest.raises(VerificationError, match=r"version\.txt does not match"):
        store.signed_bytes(url, "version.txt")
    server.on("/stable/amd64-usr/current/version.txt.sig", status(404))
    with pytest.raises(VerificationError, match="not signed"):
        store.signed_bytes(url, "version.txt")


def test_a_cache_that_cannot_be_used_is_the_machines_fault(server: MirrorServer, key: TestKey, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with (
        open_store(server.url, tmp_path / "file" / "cache", key) as store,
        pytest.raises(EnvironmentFault, match="cache folder"),
    ):
        store.disk(RELEASE, IMAGE)
