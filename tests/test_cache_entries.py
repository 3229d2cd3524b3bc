"""The cache gives back only what is intact, keeps what is in use, and stays within its limit."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from mirrors import Recorder

from baker.cache import CACHE_VERSION, Cache, Record, disk_faults
from baker.errors import EnvironmentFault
from baker.sparse import content_digest
from baker.verify import Signer

SIGNER = Signer("A" * 40, "B" * 40, 1_700_000_000, True)
ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def console() -> Recorder:
    return Recorder()


@pytest.fixture
def cache(tmp_path: Path, console: Recorder) -> Iterator[Cache]:
    cache = Cache(tmp_path / "cache", 1 << 30, console)
    yield cache
    cache.close()


def put(cache: Cache, name: str, data: bytes = b"content", raw: bool = False) -> Path:
    """Store `data` under the identity (name,)."""
    file = cache.partial((name,))
    file.write_bytes(data)
    digest = hashlib.sha256(data).hexdigest()
    record = Record(name, f"http://m/{name}", len(data), digest, content_digest(file) if raw else "", SIGNER)
    with cache.lock((name,), name):
        return cache.publish((name,), record, file)


def age(path: Path, seconds: float) -> None:
    when = time.time() - seconds
    os.utime(path, (when, when))


@pytest.mark.parametrize("raw", [False, True], ids=["file", "decoded image"])
def test_what_was_published_is_found_with_all_that_is_known(cache: Cache, raw: bool) -> None:
    assert cache.find(("x",)) is None
    path = put(cache, "x", raw=raw)
    found = cache.find(("x",))
    assert found is not None
    record, there = found
    assert there == path
    assert path.read_bytes() == b"content"
    assert (record.name, record.url, record.size, record.signer) == ("x", "http://m/x", 7, SIGNER)
    assert path.stat().st_mode & 0o777 == 0o444
    assert f"v{CACHE_VERSION}" in path.parts, "another version of the cache must not read it"
    assert cache.find(("x", "")) is None
    assert cache.find(("y",)) is None


def test_equal_content_is_stored_once_whatever_it_is_called(cache: Cache) -> None:
    assert put(cache, "x") == put(cache, "y")
    (item,) = cache.items()
    assert item.name == "x, y"


@pytest.mark.parametrize("raw", [False, True], ids=["file", "decoded image"])
@pytest.mark.parametrize("damage", [b"Content", b"conten", b"content\0", b""])
def test_a_damaged_object_is_dropped_with_a_warning(cache: Cache, console: Recorder, raw: bool, damage: bytes) -> None:
    path = put(cache, "x", raw=raw)
    path.chmod(0o644)
    path.write_bytes(damage)
    assert cache.find(("x",)) is None
    assert console.warnings == ["x in the cache is damaged and will be fetched again."]
    assert not path.exists()
    assert put(cache, "x", raw=raw) == path
    assert cache.find(("x",)) is not None


@pytest.mark.parametrize(
    "noise", [b"", b"{", b"[]", b'"x"', b"{}", b'{"signer": null}', b'{"signer": {"x": 1}}', b"\xff"]
)
def test_an_unreadable_index_entry_is_no_entry(cache: Cache, noise: bytes) -> None:
    put(cache, "x")
    (entry,) = (cache.root / f"v{CACHE_VERSION}" / "index").iterdir()
    entry.write_bytes(noise)
    assert cache.find(("x",)) is None
    assert [item.name for item in cache.items()] == [hashlib.sha256(b"content").hexdigest() + ".file"]


def test_an_entry_without_its_object_is_no_entry(cache: Cache) -> None:
    put(cache, "x").unlink()
    assert cache.find(("x",)) is None
    assert cache.record(("x",)) is None


def test_listings_count_what_is_really_on_the_disk(cache: Cache) -> None:
    put(cache, "dense", os.urandom(300_000))
    file = cache.partial(("sparse",))
    with file.open("wb") as sparse:
        sparse.truncate(1 << 30)
        sparse.write(b"x")
    cache.publish(("sparse",), Record("sparse", "", 1 << 30, "0" * 64, content_digest(file)), file)
    sizes = {item.name: item.size for item in cache.items()}
    assert 300_000 <= sizes["dense"] < 310_000
    assert sizes["sparse"] < 100_000


def test_the_oldest_go_first_and_use_keeps_young(cache: Cache, tmp_path: Path) -> None:
    paths = {name: put(cache, name, os.urandom(100_000)) for name in "abcd"}
    for count, path in enumerate(paths.values()):
        age(path, 1000 - count)
    cache.close()
    reader = Cache(tmp_path / "cache", 1 << 30)
    reader.find(("a",))  # the oldest is used again
    reader.close()
    dropped = cache.prune(220_000)
    assert [item.name for item in dropped] == ["b", "c"]
    assert sorted(item.name for item in cache.items()) == ["a", "d"]
    assert cache.find(("b",)) is None
    assert len(list((tmp_path / "cache" / f"v{CACHE_VERSION}" / "index").iterdir())) == 2


def test_the_limit_holds_by_itself(tmp_path: Path) -> None:
    root = tmp_path / "cache"
    for number in range(5):
        cache = Cache(root, 250_000)
        age(put(cache, str(number), os.urandom(100_000)), 100 - number)
        cache.close()
    assert [item.name for item in Cache(root, 0).items()] == ["4", "3"]


def test_what_this_or_another_process_uses_is_never_pruned(cache: Cache, tmp_path: Path) -> None:
    path = put(cache, "x")
    assert cache.prune(0) == []
    assert path.exists()
    cache.close()
    code = f"""
import sys; from pathlib import Path; from baker.cache import Cache
cache = Cache(Path({str(tmp_path / "cache")!r}), 0)
assert cache.find(("x",)); print("in use", flush=True); sys.stdin.read()
"""
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdin=-1, stdout=-1) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"in use\n"
        assert cache.prune(0) == []
        assert path.exists()
        other.kill()
    assert [item.name for item in cache.prune(0)] == ["x"]
    assert not path.exists()


def test_pruning_everything_leaves_nothing_but_folders(cache: Cache, tmp_path: Path) -> None:
    put(cache, "x")
    cache.remember("http://m/feed", b"feed")
    cache.partial(("broken",)).write_bytes(b"half")
    with cache.lock(("broken",), "broken"):
        pass
    cache.close()
    cache.prune(0)
    assert [path for path in (tmp_path / "cache").rglob("*") if not path.is_dir()] == []


def test_broken_downloads_are_kept_for_a_week_unless_somebody_works_on_them(cache: Cache) -> None:
    old, young, active = (cache.partial((name,)) for name in ("old", "young", "active"))
    for path in (old, young, active):
        path.write_bytes(b"half")
        path.with_name(path.name + ".json").write_text("{}")
    for path in (old, active):
        age(path, 8 * 86400)
        age(path.with_name(path.name + ".json"), 8 * 86400)
    with cache.lock(("active",), "active"):
        cache.prune()
    assert not old.exists()
    assert not old.with_name(old.name + ".json").exists()
    assert young.exists()
    assert active.exists()


def test_what_a_killed_bake_left_beside_a_finished_file_goes(cache: Cache, tmp_path: Path) -> None:
    put(cache, "x")
    partial = cache.partial(("x",))
    rest = [partial, partial.with_name(f"{partial.name}.json"), partial.with_name(f"{partial.name}.4711")]
    for path in rest:
        path.write_text("bytes")
    with cache.lock(("x",), "x"):
        assert cache.find(("x",)) and all(path.exists() for path in rest), "somebody is at work on it"
    assert cache.find(("x",)) and not any(path.exists() for path in rest)


def test_a_lock_is_waited_for_and_the_user_told_once(cache: Cache, tmp_path: Path, console: Recorder) -> None:
    other = Cache(tmp_path / "cache", 0)
    order = []

    def second() -> None:
        with cache.lock(("x",), "x.bz2"):
            order.append("second")

    with other.lock(("x",), "x.bz2"):
        thread = threading.Thread(target=second)
        thread.start()
        time.sleep(0.6)
        order.append("first")
    thread.join(5)
    assert order == ["first", "second"]
    assert console.notes == ["waiting for another bake that downloads x.bz2"]
    with cache.lock(("y",), "y"), other.lock(("z",), "z"):
        pass  # different files do not wait for each other


def test_a_killed_process_holds_no_lock(cache: Cache, tmp_path: Path) -> None:
    code = f"""
import time; from pathlib import Path; from baker.cache import Cache
with Cache(Path({str(tmp_path / "cache")!r}), 0).lock(("x",), "x"):
    print("locked", flush=True); time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=-1) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"locked\n"
        other.kill()
        with cache.lock(("x",), "x"):
            pass


def test_a_lock_file_that_was_pruned_under_us_is_made_anew(cache: Cache, tmp_path: Path) -> None:
    """Many bakes and prunes at once: never two within the lock, never an error."""
    inside, overlaps = [0], []

    def work() -> None:
        own = Cache(tmp_path / "cache", 0)
        for _ in range(15):
            with own.lock(("x",), "x"):
                inside[0] += 1
                overlaps.append(inside[0])
                time.sleep(0.001)
                inside[0] -= 1
            own.prune(0)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert overlaps == [1] * 45


def test_publishing_and_pruning_at_once_never_gives_a_wrong_file(tmp_path: Path) -> None:
    code = f"""
import hashlib, random, sys; sys.path[:0] = [{str(ROOT / "tests")!r}]
from pathlib import Path; from baker.cache import Cache, Record
random.seed(int(sys.argv[1]))
for _ in range(30):
    cache = Cache(Path({str(tmp_path / "cache")!r}), 60_000)
    name = random.choice("abcdefgh")
    data = name.encode() * 20_000
    with cache.lock((name,), name):
        found = cache.find((name,))
        if found is None:
            file = cache.partial((name,))
            file.write_bytes(data)
            path = cache.publish((name,), Record(name, "", len(data), hashlib.sha256(data).hexdigest()), file)
        else:
            path = found[1]
    if random.random() < 0.3:
        cache.prune(0)
    assert path.read_bytes() == data
    cache.close()
"""
    workers = [subprocess.Popen([sys.executable, "-c", code, str(n)], cwd=ROOT) for n in range(3)]
    assert [worker.wait() for worker in workers] == [0, 0, 0]


def test_small_unverified_files_are_remembered_by_their_address(cache: Cache) -> None:
    assert cache.recall("http://m/feed") is None
    cache.remember("http://m/feed", b"one")
    cache.remember("http://m/feed", b"two")
    assert cache.recall("http://m/feed") == b"two"
    assert cache.recall("http://other/feed") is None


@contextmanager
def as_nobody() -> Iterator[None]:
    """Without root's power to write everywhere; nothing changes for other users."""
    if os.geteuid() == 0:
        os.seteuid(65534)
        try:
            yield
        finally:
            os.seteuid(0)
    else:
        yield


def test_a_cache_that_cannot_be_written_can_still_be_read() -> None:
    with tempfile.TemporaryDirectory(prefix="fbcache-") as folder:
        root = Path(folder)
        path = put(full := Cache(root, 1 << 30), "x")
        full.close()
        for item in [root, *root.rglob("*")]:
            item.chmod(0o555 if item.is_dir() else 0o444)
        cache = Cache(root, 1 << 30)
        with as_nobody():
            found = cache.find(("x",))
            assert found is not None
            assert found[1] == path
            cache.remember("http://m/feed", b"feed")  # not worth an error
            for action in (lambda: cache.lock(("y",), "y").__enter__(), lambda: cache.partial(("y",)).touch()):
                with pytest.raises((EnvironmentFault, PermissionError)) as caught:
                    action()
                if isinstance(caught.value, EnvironmentFault):
                    assert "--cache-dir" in (caught.value.hint or "")
        cache.close()
        for item in [root, *root.rglob("*")]:
            item.chmod(0o755)


def test_a_file_in_the_place_of_the_cache_is_a_fault_with_a_way_out(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("in the way")
    with (
        pytest.raises(EnvironmentFault, match="cannot be used: Not a directory") as caught,
        Cache(tmp_path / "cache", 0).lock(("x",), "x"),
    ):
        pass
    assert "--cache-dir" in (caught.value.hint or "")


def test_a_full_disk_names_the_way_to_free_some() -> None:
    with pytest.raises(EnvironmentFault, match="no space left") as caught, disk_faults(Path("/somewhere")):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert "cache prune" in (caught.value.hint or "")


def test_index_entries_are_plain_json(cache: Cache) -> None:
    put(cache, "x")
    (entry,) = (cache.root / f"v{CACHE_VERSION}" / "index").iterdir()
    assert json.loads(entry.read_text())["signer"]["primary"] == SIGNER.primary
