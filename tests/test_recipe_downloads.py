"""What recipes download is vouched for by upstream, by recipes.lock or by a stated reason, and fetched once."""

from __future__ import annotations

import hashlib
import json
import random
import tomllib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from mirrors import Recorder
from servers import MirrorServer, setting, status

from baker.errors import NetworkError, UsageError, VerificationError
from baker.fetch import FileMissing
from baker.recipe.download import Obtained, Wanted, download, download_all
from baker.recipe.mirrors import Rewrites
from baker.recipe.model import Checksum
from baker.recipe.pins import PinFile
from baker.services import Services, Settings

URL = "https://github.com/o/app/releases/download/v1.0.0/app-1.0.0.tgz"
API = "/api.github.com/repos/o/app/releases/tags/v1.0.0"
DATA = random.Random(1).randbytes(300_000)
DIGEST = hashlib.sha256(DATA).hexdigest()
OTHER = "0" * 64


class Bench:
    """A mirror, the services that use it, and a lock file."""

    def __init__(self, server: MirrorServer, folder: Path) -> None:
        self.server, self.folder = server, folder
        self.lock = folder / "recipes.lock"
        self.console = Recorder()
        self.open()

    def open(self, locked: bool = False) -> None:
        """As if started anew: the cache and the lock stay, what is in memory does not."""
        self.services = Services(Settings(cache_dir=self.folder / "cache"), self.console)
        self.services.fetcher.retries = 0
        self.pins = PinFile(self.lock, locked=locked)
        self.rewrites = Rewrites.parse([f"https://={self.server.url}/"])

    def put(self, url: str, data: bytes | str) -> Path:
        path = self.server.folder / url.removeprefix("https://")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data.encode() if isinstance(data, str) else data)
        return path

    def get(self, checksum: Checksum, url: str = URL, **more: tuple[str, ...]) -> Obtained:
        found = download(Wanted(url, checksum, "app", **more), self.services, self.pins, self.rewrites)
        self.pins.save()
        return found


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    (tmp_path / "www").mkdir()
    with MirrorServer(tmp_path / "www") as server:
        bench = Bench(server, tmp_path)
        bench.put(URL, DATA)
        yield bench


NAME = "app-1.0.0.tgz"
SUMS = f"{URL}.sums"
LOCK = Checksum(missing="lock")

FORMS = {
    "sha256sum": ("sha256sum-file", f"{OTHER}  else.tgz\n{DIGEST}  {NAME}\n"),
    "binary mode": ("sha256sum-file", f"{DIGEST} *{NAME}\n"),
    "with a folder": ("sha256sum-file", f"{DIGEST}  ./{NAME}\r\n{OTHER}  dist/else.tgz\r\n"),
    "capitals and notes": ("sha256sum-file", f"# checksums\n\n{DIGEST.upper()}  {NAME}\n"),
    "bare": ("bare-file", DIGEST),
    "bare with newline": ("bare-file", f"{DIGEST}\n"),
    "bare with name": ("bare-file", f"{DIGEST}  {NAME}\n"),
    "bsd": ("bsd-file", f"SHA256 (else.tgz) = {OTHER}\nSHA256 ({NAME}) = {DIGEST}\n"),
}


@pytest.mark.parametrize("form", FORMS)
def test_upstream_checksum_files(bench: Bench, form: str) -> None:
    kind, text = FORMS[form]
    bench.put(SUMS, text)
    found = bench.get(Checksum(kind, SUMS))
    assert (found.path.read_bytes(), found.sha256, found.trust) == (DATA, DIGEST, "upstream checksum")
    assert (found.url, found.name, found.size, found.from_cache) == (URL, NAME, len(DATA), False)
    assert not bench.lock.exists()
    bench.put(SUMS, text.replace(DIGEST, OTHER).replace(DIGEST.upper(), OTHER))
    bench.services.settings.cache_dir = bench.folder / "empty"
    with pytest.raises(VerificationError, match=f"{NAME} has the sha256 {DIGEST}, but {OTHER} is expected"):
        bench.services = Services(bench.services.settings, bench.console)
        bench.get(Checksum(kind, SUMS))


def test_a_checksum_file_may_know_another_name(bench: Bench) -> None:
    bench.put(SUMS, f"{DIGEST}  release.tgz\n")
    assert bench.get(Checksum("sha256sum-file", SUMS, "release.tgz")).trust == "upstream checksum"


def test_a_second_build_needs_no_network(bench: Bench) -> None:
    bench.put(SUMS, FORMS["sha256sum"][1])
    bench.put(API[1:], json.dumps({"assets": [{"name": NAME, "digest": f"sha256:{DIGEST}"}]}))
    for checksum in (
        Checksum("sha256sum-file", SUMS), Checksum("github-digest"), LOCK, Checksum(unverified="no sums upstream"),
    ):  # fmt: skip
        bench.open()
        first = bench.get(checksum)
        asked = len(bench.server.seen)
        bench.open()
        second = bench.get(checksum)
        assert second.from_cache
        assert len(bench.server.seen) == asked
        assert second.trust == ("recipes.lock" if first.trust == "first use" else first.trust)


@pytest.mark.parametrize("text", ["<html>", "", f"{DIGEST[:-1]}  {NAME}\n", f"{DIGEST}  {NAME}\n{OTHER}  {NAME}\n"])
def test_a_checksum_file_that_makes_no_sense_is_refused(bench: Bench, text: str) -> None:
    bench.put(SUMS, text)
    with pytest.raises((VerificationError, NetworkError)):
        bench.get(Checksum("sha256sum-file", SUMS, missing="lock"))
    assert not bench.lock.exists()


def test_a_missing_checksum_needs_a_rule(bench: Bench) -> None:
    bench.put(SUMS, f"{OTHER}  else.tgz\n")
    with pytest.raises(VerificationError, match=f"Nothing vouches for {URL}. {SUMS} does not list it") as caught:
        bench.get(Checksum("sha256sum-file", SUMS))
    assert "missing = " in (caught.value.hint or "")
    assert bench.get(Checksum("sha256sum-file", SUMS, missing="lock")).trust == "first use"
    assert bench.get(Checksum("sha256sum-file", f"{URL}.nowhere", missing="lock")).trust == "recipes.lock"


def test_github_digests(bench: Bench) -> None:
    def release(digest: str | None) -> None:
        bench.put(API[1:], json.dumps({"assets": [{"name": "x"}, {"name": NAME, "digest": digest}]}))

    release(f"sha256:{DIGEST}")
    assert bench.get(Checksum("github-digest", missing="lock")).trust == "github digest"
    release(None)
    bench.services.settings.cache_dir = bench.folder / "empty"
    bench.open()
    bench.services.settings.cache_dir = bench.folder / "empty"
    assert bench.get(Checksum("github-digest", missing="lock")).trust == "first use"
    bench.put(API[1:], '{"assets": []}')
    with pytest.raises(FileMissing, match=r"release v1\.0\.0 of o/app has no other\.tgz"):
        bench.get(Checksum("github-digest"), URL.replace(NAME, "other.tgz"))


def test_a_recipe_can_pin(bench: Bench) -> None:
    assert bench.get(Checksum("pin", values={"": f"sha256:{DIGEST}"})).trust == "the recipe"
    with pytest.raises(UsageError, match="pin of https"):
        bench.get(Checksum("pin", values={"": DIGEST}))


def test_first_use_then_the_same_or_nothing(bench: Bench) -> None:
    assert bench.get(LOCK).trust == "first use"
    assert "used for the first time" in bench.console.warnings[0]
    assert tomllib.loads(bench.lock.read_text()) == {"sha256": {URL: DIGEST}}
    bench.put(URL, b"changed upstream")
    bench.open()
    bench.services.settings.cache_dir = bench.folder / "empty"
    with pytest.raises(VerificationError, match=f"but {DIGEST} is expected"):
        bench.get(LOCK)
    bench.put(SUMS, f"{hashlib.sha256(b'changed upstream').hexdigest()}  {NAME}\n")
    with pytest.raises(VerificationError, match=r"recipes\.lock pins") as caught:
        bench.get(Checksum("sha256sum-file", SUMS))
    assert "Somebody replaced a published file" in (caught.value.hint or "")


def test_locked_sources_take_nothing_new(bench: Bench) -> None:
    bench.open(locked=True)
    with pytest.raises(VerificationError, match=f"Nothing vouches for {URL}: recipes.lock does not pin it"):
        bench.get(LOCK)
    assert not bench.server.seen
    bench.open()
    bench.get(LOCK)
    bench.open(locked=True)
    assert bench.get(LOCK).trust == "recipes.lock"


def test_an_unverified_file_says_why(bench: Bench) -> None:
    assert bench.get(Checksum(unverified="it changes daily")).trust == "unverified: it changes daily"
    assert bench.console.warnings == [f"{NAME} is unverified: it changes daily."]


def test_a_pin_stands_in_for_an_upstream_that_does_not_answer(bench: Bench) -> None:
    bench.get(LOCK)
    bench.open()
    bench.server.on(API, status(403, X_RateLimit_Remaining="0", X_RateLimit_Reset="1"))
    assert bench.get(Checksum("github-digest")).trust == "recipes.lock"
    bench.lock.unlink()
    bench.open()
    with pytest.raises(NetworkError, match="rate limit"):
        bench.get(Checksum("github-digest"))


def test_a_missing_asset_is_named_with_what_to_do(bench: Bench) -> None:
    with pytest.raises(FileMissing, match=r"There is no file .*/v9\.9\.9/app\.tgz") as caught:
        bench.get(LOCK, URL.replace("v1.0.0", "v9.9.9").replace(NAME, "app.tgz"))
    assert "flatcar-bake recipe versions app" in (caught.value.hint or "")
    assert not bench.lock.exists()


def test_other_mirrors_are_tried_in_order(bench: Bench) -> None:
    url = "https://dl.example/app.tgz"
    bench.server.on("/dl.example/app.tgz", status(403))
    assert bench.get(LOCK, url, mirrors=("https://gone.example/app.tgz", URL)).sha256 == DIGEST
    assert tomllib.loads(bench.lock.read_text()) == {"sha256": {url: DIGEST}}


def test_a_broken_download_goes_on_where_it_stopped(bench: Bench) -> None:
    path = f"/{URL.removeprefix('https://')}"
    bench.server.on(path, setting(cut=200_000))
    with pytest.raises(NetworkError):
        bench.get(LOCK)
    bench.server.faults.clear()
    bench.open()
    assert bench.get(LOCK).sha256 == DIGEST
    assert [seen.headers.get("Range") for seen in bench.server.requests(path)][-1] == "bytes=200000-"


def test_several_come_side_by_side_in_their_order(bench: Bench) -> None:
    urls = [f"https://host/{number}" for number in range(8)]
    for url in urls:
        bench.put(url, url)
    wanted = [Wanted(url, LOCK, "app") for url in urls]
    found = download_all(wanted, bench.services, bench.pins, bench.rewrites)
    assert [one.path.read_text() for one in found] == urls
    lines = bench.lock.read_text().splitlines()
    assert [line.split('"')[1] for line in lines if line.startswith('"')] == urls
    bench.open()
    broken = [*wanted[:3], replace(wanted[0], url="https://host/none"), *wanted[3:]]
    with pytest.raises(FileMissing, match="host/none"):
        download_all(broken, bench.services, bench.pins, bench.rewrites)


def test_pins_of_others_survive(tmp_path: Path) -> None:
    shipped = tmp_path / "shipped.lock"
    shipped.write_text(f'[sha256]\n"https://a" = "{DIGEST}"\n')
    one, two = (PinFile(tmp_path / "recipes.lock", shipped) for _ in range(2))
    assert one.get("https://a") == DIGEST
    one.put("https://c", DIGEST)
    two.put('https://b"\\é', OTHER)
    one.save()
    two.save()
    found = tomllib.loads((tmp_path / "recipes.lock").read_text())["sha256"]
    assert found == {'https://b"\\é': OTHER, "https://c": DIGEST}
    assert list(found) == sorted(found)
    with pytest.raises(VerificationError, match="pins"):
        one.put("https://a", OTHER)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["recipes.lock", "shipped.lock"]


@pytest.mark.parametrize("text", ['[sha256]\n"u" = "short"', "[sha256]\nu = 1", "[other]", "nonsense", "sha256 = 1"])
def test_a_lock_file_that_makes_no_sense_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "recipes.lock").write_text(text)
    with pytest.raises(UsageError, match=r"recipes\.lock"):
        PinFile(tmp_path / "recipes.lock")


def test_rewrites(tmp_path: Path) -> None:
    rewrites = Rewrites.parse([
        "https://github.com/=http://mirror/gh/", "https://github.com/o/=file:///srv/o/", f"https://dl.k8s.io/={tmp_path}/",
    ])  # fmt: skip
    assert rewrites.apply("https://github.com/x/y?z=1") == "http://mirror/gh/x/y?z=1"
    assert rewrites.apply("https://github.com/o/a%2Bb?z=1") == "file:///srv/o/a%2Bb"
    assert rewrites.apply("https://dl.k8s.io/a%2Bb") == f"{tmp_path}/a+b"
    assert rewrites.apply("https://example.org/") == "https://example.org/"
    for wrong in ("https://a/", "a=b", "https://a/="):
        with pytest.raises(UsageError, match="--mirror-url"):
            Rewrites.parse([wrong])
    with pytest.raises(UsageError, match="password"):
        Rewrites.parse(["https://a/=https://me:secret@b/"])


def test_a_folder_serves_as_a_mirror(bench: Bench) -> None:
    bench.rewrites = Rewrites.parse([f"https://={bench.server.folder}/"])
    bench.put(SUMS, FORMS["sha256sum"][1])
    assert bench.get(Checksum("sha256sum-file", SUMS)).sha256 == DIGEST
    assert not bench.server.seen
