"""What the user names becomes one release: signed version.txt first, the feed for the rest, and helpful refusals."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from keys import TestKey
from mirrors import RELEASE, Recorder, SignedMirror, open_store
from servers import MirrorServer, status

from baker.errors import NetworkError, UsageError, VerificationError
from baker.model import Arch, Channel, Release
from baker.release import Mirror, resolve
from baker.store import Store

LTS = Release("4081.3.10", Channel.LTS, Arch.X86_64)
OLD_LTS = Release("3510.3.7", Channel.LTS, Arch.X86_64)
ALPHA = Release("4790.0.0", Channel.ALPHA, Arch.X86_64)
BUILT = 1786636115
BOTH = ["amd64", "arm64"]


@pytest.fixture(scope="module")
def key() -> Iterator[TestKey]:
    with TestKey() as key:
        key.add_subkey()
        yield key


@pytest.fixture
def mirror(tmp_path: Path, key: TestKey) -> SignedMirror:
    mirror = SignedMirror(tmp_path / "www", key)
    mirror.put_version(RELEASE)
    mirror.put_version(ALPHA)
    mirror.put_version(OLD_LTS, "current-2023")
    mirror.put_version(LTS, "current-2024")
    mirror.put_version(LTS)
    mirror.put_feed(
        ("4593.2.4", "stable", BOTH), ("4593.2.5", "stable", BOTH), ("4790.0.0", "alpha", ["amd64"]),
        ("4788.0.0", "alpha", BOTH), ("4081.3.10", "lts", BOTH), ("3510.3.7", "lts", BOTH),
        ("2905.2.1", "stable", ["amd64"]), ("1911.5.0", "stable", ["amd64"]),
    )  # fmt: skip
    return mirror


@pytest.fixture
def server(mirror: SignedMirror) -> Iterator[MirrorServer]:
    with MirrorServer(mirror.folder) as server:
        yield server


@pytest.fixture
def store(server: MirrorServer, key: TestKey, tmp_path: Path) -> Iterator[Store]:
    with open_store(server.url, tmp_path / "cache", key) as store:
        yield store


def resolved(store: Store, request: str, arch: Arch = Arch.X86_64) -> Release:
    return resolve(request, arch, store._mirror, store)


@pytest.mark.parametrize(
    ("request_", "release"),
    [
        ("stable", RELEASE), ("current", RELEASE), ("alpha", ALPHA), ("lts", LTS), ("lts-2024", LTS),
        ("lts-2023", OLD_LTS), ("4593.2.5", RELEASE), ("1911.5.0", Release("1911.5.0", Channel.STABLE, Arch.X86_64)),
    ],
)  # fmt: skip
def test_channels_years_and_versions_are_found(store: Store, request_: str, release: Release) -> None:
    assert resolved(store, request_) == replace(release, build_date=BUILT)


def test_a_folder_is_a_mirror_too(mirror: SignedMirror, key: TestKey, tmp_path: Path) -> None:
    for base in (str(mirror.folder), mirror.folder.as_uri(), f"{mirror.folder}/"):
        with open_store(base, tmp_path / "cache", key) as store:
            assert resolved(store, "stable").version == "4593.2.5"


def test_the_server_knows_a_release_before_the_feed_does(store: Store, mirror: SignedMirror) -> None:
    newer = replace(RELEASE, version="4593.2.6")
    mirror.put_version(newer)
    assert resolved(store, "stable") == newer
    assert resolved(store, "4593.2.6") == newer


def test_a_version_that_was_seen_needs_no_network(store: Store, server: MirrorServer) -> None:
    resolved(store, "4593.2.5")
    del server.seen[:]
    assert resolved(store, "4593.2.4").build_date == BUILT
    assert not server.seen


@pytest.mark.parametrize(
    ("request_", "suggestion"),
    [("stabel", "stable"), ("Alpha", "alpha"), ("lts2024", "lts-2024"), ("lst", "lts"), ("curent", "current")],
)
def test_a_misspelt_channel_gets_a_suggestion(store: Store, request_: str, suggestion: str) -> None:
    with pytest.raises(UsageError, match="no release channel") as caught:
        resolved(store, request_)
    assert caught.value.hint == f"Did you mean {suggestion}?"


def test_a_hopeless_name_gets_the_list(store: Store) -> None:
    with pytest.raises(UsageError) as caught:
        resolved(store, "zzz/../x")
    assert "alpha, beta, stable, lts, edge" in (caught.value.hint or "")


def test_a_version_that_does_not_exist_gets_neighbours(store: Store) -> None:
    with pytest.raises(UsageError, match=r"no release 4593\.2\.7") as caught:
        resolved(store, "4593.2.7")
    assert "4593.2.5" in (caught.value.hint or "")


def test_an_old_version_that_tells_no_channel_is_refused(store: Store) -> None:
    with pytest.raises(UsageError, match=r"1912\.5\.0"):
        resolved(store, "1912.5.0")


def test_an_lts_year_that_does_not_exist_is_refused(store: Store) -> None:
    with pytest.raises(UsageError, match="lts-2031"):
        resolved(store, "lts-2031")


def test_a_release_without_the_architecture_names_those_that_have_it(store: Store) -> None:
    with pytest.raises(UsageError, match=r"2905\.2\.1 does not exist for arm64") as caught:
        resolved(store, "2905.2.1", Arch.ARM64)
    assert caught.value.hint == "stable releases that have it: 4593.2.4, 4593.2.5."


def test_a_channel_whose_newest_lacks_the_architecture_gives_the_newest_that_has_it(store: Store) -> None:
    assert resolved(store, "alpha", Arch.ARM64).version == "4788.0.0"


def test_without_the_server_the_feed_decides_and_the_user_is_told(
    store: Store, server: MirrorServer, mirror: SignedMirror
) -> None:
    server.on("/stable/amd64-usr/current/version.txt", status(503))
    assert resolved(store, "stable").version == "4593.2.5"
    assert isinstance(store.console, Recorder)
    assert any("taken from the release feed" in warning for warning in store.console.warnings)


def test_offline_a_version_is_taken_by_its_number(key: TestKey, tmp_path: Path) -> None:
    with open_store("http://127.0.0.1:9", tmp_path / "cache", key, retries=0) as store:
        assert resolved(store, "4593.2.5") == RELEASE
        with pytest.raises(NetworkError):
            resolved(store, "stable")


def test_offline_the_feed_seen_last_still_serves(
    store: Store, key: TestKey, tmp_path: Path, server: MirrorServer
) -> None:
    resolved(store, "stable")
    for path in ("/stable/amd64-usr/current/version.txt", "/releases-json/releases.json"):
        server.on(path, status(502))
    assert resolved(store, "stable") == replace(RELEASE, build_date=BUILT)


def test_a_feed_that_became_nonsense_is_replaced_by_the_copy_seen_last(
    store: Store, server: MirrorServer, mirror: SignedMirror
) -> None:
    resolved(store, "stable")
    (mirror.folder / "releases-json" / "releases.json").write_text("[]")
    with pytest.raises(UsageError, match="no release"):
        resolved(store, "4593.2.7")
    assert resolved(store, "4593.2.4").build_date == BUILT


def test_nonsense_is_never_remembered(store: Store, mirror: SignedMirror) -> None:
    (mirror.folder / "releases-json" / "releases.json").write_text("[]")
    assert resolved(store, "stable") == RELEASE
    mirror.put_feed(("4593.2.5", "stable", BOTH))
    assert resolved(store, "stable").build_date == BUILT


def test_a_server_that_stands_still_is_noticed(store: Store, mirror: SignedMirror) -> None:
    mirror.put_feed(("4593.2.5", "stable", BOTH), ("4593.2.10", "stable", BOTH))
    assert resolved(store, "stable").version == "4593.2.5"
    assert isinstance(store.console, Recorder)
    assert store.console.warnings == [
        "The server calls 4593.2.5 the newest stable release, but the feed lists 4593.2.10."
    ]


def test_a_forged_version_txt_is_refused_not_replaced_by_the_feed(store: Store, mirror: SignedMirror) -> None:
    path = mirror.put("version.txt", b"FLATCAR_VERSION=4593.2.5\n")
    path.write_bytes(b"FLATCAR_VERSION=4593.2.4\n")
    with pytest.raises(VerificationError, match="does not match"):
        resolved(store, "stable")


def test_an_unsigned_version_txt_is_refused(store: Store, mirror: SignedMirror) -> None:
    (mirror.folder / mirror.path("version.txt.sig")[1:]).unlink()
    with pytest.raises(VerificationError, match="not signed"):
        resolved(store, "stable")


@pytest.mark.parametrize(
    ("request_", "link", "served"),
    [("stable", "stable/amd64-usr/current", ALPHA), ("lts-2024", "lts/amd64-usr/current-2024", OLD_LTS)],
)
def test_a_signed_release_of_another_channel_is_refused(
    store: Store, mirror: SignedMirror, request_: str, link: str, served: Release
) -> None:
    path = mirror.folder / link
    path.unlink()
    path.symlink_to(mirror.folder / mirror.path("", served)[1:])
    with pytest.raises(VerificationError, match=served.version):
        resolved(store, request_)


def test_a_version_served_under_another_name_is_refused(store: Store, mirror: SignedMirror) -> None:
    (mirror.folder / "stable/amd64-usr/4593.2.6").symlink_to("4593.2.5")
    with pytest.raises(VerificationError, match=r"offers 4593\.2\.5 under the name of 4593\.2\.6"):
        resolved(store, "4593.2.6")


def test_official_addresses() -> None:
    mirror = Mirror()
    assert mirror.file_url(RELEASE, "version.txt") == (
        "https://stable.release.flatcar-linux.net/amd64-usr/4593.2.5/version.txt"
    )
    assert mirror.current_url(Channel.LTS, Arch.ARM64, 2024, "version.txt") == (
        "https://lts.release.flatcar-linux.net/arm64-usr/current-2024/version.txt"
    )
    assert mirror.feed_url == "https://www.flatcar.org/releases-json/releases.json"
    assert mirror.key_url == ("https://www.flatcar.org/security/image-signing-key/Flatcar_Image_Signing_Key.asc")


@pytest.mark.parametrize(
    ("base", "url"),
    [
        ("https://m.example/flatcar/", "https://m.example/flatcar/stable/amd64-usr/1.2.3%2Bb/a%20b%2B%23.raw"),
        ("file:///srv/m", "file:///srv/m/stable/amd64-usr/1.2.3%2Bb/a%20b%2B%23.raw"),
        ("/srv/m/", "/srv/m/stable/amd64-usr/1.2.3+b/a b+#.raw"),
        ("m", "m/stable/amd64-usr/1.2.3+b/a b+#.raw"),
    ],
)
def test_names_are_encoded_in_urls_and_left_alone_in_paths(base: str, url: str) -> None:
    assert Mirror(base).file_url(replace(RELEASE, version="1.2.3+b"), "a b+#.raw") == url
