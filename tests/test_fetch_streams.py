"""A download survives a server that breaks off, changes, lies or stalls, and always gives the file's own bytes."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mirrors import Recorder
from servers import Fault, Handler, MirrorServer, setting, status

from baker.errors import NetworkError
from baker.fetch import Fetcher, FileMissing, StreamRestarted

DATA = os.urandom(3_000_000)
FILE = "/a+b c.bin"
URL = "/a%2Bb%20c.bin"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[MirrorServer]:
    folder = tmp_path / "www"
    folder.mkdir()
    (folder / FILE[1:]).write_bytes(DATA)
    with MirrorServer(folder) as server:
        yield server


@pytest.fixture
def console() -> Recorder:
    return Recorder()


@pytest.fixture
def fetcher(console: Recorder) -> Fetcher:
    return Fetcher(console, retries=3, timeout=(5, 5), backoff=0.01)


@pytest.fixture
def partial(tmp_path: Path) -> Path:
    return tmp_path / "partial"


def take(fetcher: Fetcher, url: str, partial: Path) -> bytes:
    with fetcher.stream(url, partial) as download:
        return b"".join(download)


def ranges(server: MirrorServer) -> list[str | None]:
    return [seen.headers.get("Range") for seen in server.requests(FILE)]


def test_a_download_gives_the_bytes_and_keeps_them(server: MirrorServer, fetcher: Fetcher, partial: Path) -> None:
    with fetcher.stream(server.url + URL, partial) as download:
        assert download.total == len(DATA)
        assert b"".join(download) == DATA
    assert partial.read_bytes() == DATA
    (request,) = server.seen
    assert request.headers["User-Agent"].startswith("flatcar-bake/")
    assert request.headers["Accept-Encoding"] == "identity"


def test_an_empty_file_is_a_file(server: MirrorServer, fetcher: Fetcher, partial: Path) -> None:
    (server.folder / "empty").touch()
    assert take(fetcher, f"{server.url}/empty", partial) == b""
    assert partial.read_bytes() == b""


def test_a_broken_connection_is_resumed(
    server: MirrorServer, fetcher: Fetcher, partial: Path, console: Recorder
) -> None:
    server.on(FILE, server.times(1, setting(cut=1_234_567)))
    assert take(fetcher, server.url + URL, partial) == DATA == partial.read_bytes()
    assert ranges(server) == [None, "bytes=1234567-"]
    assert server.seen[1].headers["If-Range"].startswith('"')
    assert "Trying again" in console.notes[0]


def test_a_later_run_goes_on_where_the_first_was_stopped(
    server: MirrorServer, fetcher: Fetcher, partial: Path
) -> None:
    with fetcher.stream(server.url + URL, partial) as download:
        assert next(download)
    kept = partial.stat().st_size
    assert 0 < kept < len(DATA)
    assert take(fetcher, server.url + URL, partial) == DATA == partial.read_bytes()
    assert ranges(server) == [None, f"bytes={kept}-"]


def test_a_complete_partial_file_costs_no_second_download(
    server: MirrorServer, fetcher: Fetcher, partial: Path
) -> None:
    take(fetcher, server.url + URL, partial)
    assert take(fetcher, server.url + URL, partial) == DATA == partial.read_bytes()
    assert ranges(server) == [None, f"bytes={len(DATA)}-"]


@pytest.mark.parametrize("size", [len(DATA), 1000, len(DATA) + 5], ids=["same size", "smaller", "larger"])
def test_a_file_that_changed_since_the_last_run_is_taken_anew(
    server: MirrorServer, fetcher: Fetcher, partial: Path, size: int
) -> None:
    server.on(FILE, setting(cut=500_000))
    with pytest.raises(NetworkError), Fetcher(Recorder(), 0, backoff=0.01).stream(server.url + URL, partial) as old:
        list(old)
    server.faults.clear()
    changed = os.urandom(size)
    (server.folder / FILE[1:]).write_bytes(changed)
    assert take(fetcher, server.url + URL, partial) == changed == partial.read_bytes()


def test_a_file_that_changes_under_way_restarts_the_consumer(
    server: MirrorServer, fetcher: Fetcher, partial: Path
) -> None:
    changed = os.urandom(len(DATA))
    server.on(FILE, server.times(1, setting(cut=2_000_000)))
    with fetcher.stream(server.url + URL, partial) as download:
        next(download)
        (server.folder / FILE[1:]).write_bytes(changed)
        with pytest.raises(StreamRestarted):
            list(download)
    assert take(fetcher, server.url + URL, partial) == changed == partial.read_bytes()


@pytest.mark.parametrize("lack", [{"ranges": False}, {"validators": False}, {"weak": True}])
def test_a_server_that_cannot_resume_restarts_the_consumer(
    server: MirrorServer, fetcher: Fetcher, partial: Path, lack: dict[str, bool]
) -> None:
    cut = server.times(1, setting(cut=2_000_000))
    server.on(FILE, lambda handler: setting(**lack)(handler) or cut(handler))
    with fetcher.stream(server.url + URL, partial) as download, pytest.raises(StreamRestarted):
        list(download)
    assert take(fetcher, server.url + URL, partial) == DATA == partial.read_bytes()
    if "ranges" not in lack:
        assert ranges(server) == [None] * 3, "without a strong validator, no part may be asked for"


def test_last_modified_serves_where_there_is_no_etag(server: MirrorServer, fetcher: Fetcher, partial: Path) -> None:
    def no_etag(handler: Handler) -> bool:
        send = handler.send_header
        handler.send_header = lambda name, value: None if name == "ETag" else send(name, value)  # type: ignore[method-assign]
        return False

    cut = server.times(1, setting(cut=2_000_000))
    server.on(FILE, lambda handler: no_etag(handler) or cut(handler))
    assert take(fetcher, server.url + URL, partial) == DATA
    assert server.seen[1].headers["If-Range"].endswith("GMT")


@pytest.mark.parametrize(
    "answer",
    [
        {"Content_Range": "bytes 0-999999/3000000"},
        {"Content_Range": "bytes 2000000-2999999/4000000"},
        {"Content_Range": "bytes 2000000-2999999/3000000", "ETag": '"other"'},
        {"Content_Range": "lines 1-2/3"},
        {},
    ],
    ids=["another start", "another size", "another tag", "another unit", "no range at all"],
)
def test_a_part_that_was_not_asked_for_is_not_used(
    server: MirrorServer, fetcher: Fetcher, partial: Path, answer: dict[str, str]
) -> None:
    def lie(handler: Handler) -> bool:
        return handler.headers.get("Range") is not None and handler.answer(206, bytes(1_000_000), **answer)

    cut = server.times(1, setting(cut=2_000_000))
    server.on(FILE, lambda handler: lie(handler) or cut(handler))
    with pytest.raises(StreamRestarted):
        take(fetcher, server.url + URL, partial)
    assert take(fetcher, server.url + URL, partial) == DATA == partial.read_bytes()


def test_a_stall_ends_in_a_timeout_and_a_resume(server: MirrorServer, partial: Path, console: Recorder) -> None:
    fetcher = Fetcher(console, retries=3, timeout=(5, 0.5), backoff=0.01)
    server.on(FILE, server.times(1, setting(stall=2_500_000)))
    assert take(fetcher, server.url + URL, partial) == DATA
    assert ranges(server)[0] is None
    assert ranges(server)[1] is not None
    assert "timed out" in console.notes[0]


def test_a_server_that_always_breaks_off_is_given_up_and_the_part_stays(
    server: MirrorServer, fetcher: Fetcher, partial: Path
) -> None:
    server.on(FILE, setting(cut=1000))
    with pytest.raises(NetworkError) as caught:
        take(fetcher, server.url + URL, partial)
    assert "127.0.0.1" in caught.value.message
    assert len(server.seen) == 4
    assert partial.read_bytes() == DATA[:4000]


def test_progress_renews_patience(server: MirrorServer, fetcher: Fetcher, partial: Path) -> None:
    (server.folder / "big").write_bytes(DATA * 4)
    server.on("/big", setting(cut=1_100_000))
    assert take(fetcher, f"{server.url}/big", partial) == DATA * 4
    assert len(server.seen) > fetcher.retries + 1


@pytest.mark.parametrize("noise", [b"", b"{", b"[]", b'{"url": 1}', b'{"evil": 1}', b"\xff"])
def test_an_unreadable_origin_means_a_new_start(
    server: MirrorServer, fetcher: Fetcher, partial: Path, noise: bytes
) -> None:
    partial.write_bytes(b"rubbish")
    partial.with_name("partial.json").write_bytes(noise)
    assert take(fetcher, server.url + URL, partial) == DATA == partial.read_bytes()


def test_a_partial_file_of_another_address_is_not_continued(
    server: MirrorServer, fetcher: Fetcher, partial: Path
) -> None:
    take(fetcher, server.url + URL, partial)
    origin = partial.with_name("partial.json")
    origin.write_text(json.dumps({**json.loads(origin.read_text()), "url": "http://elsewhere/x"}))
    assert take(fetcher, server.url + URL, partial) == DATA
    assert ranges(server) == [None, None]


def test_a_missing_file_is_said_at_once(server: MirrorServer, fetcher: Fetcher, partial: Path) -> None:
    with pytest.raises(FileMissing, match="/nothing"):
        fetcher.stream(f"{server.url}/nothing", partial)
    assert not partial.exists()


def test_a_web_page_instead_of_the_file_is_recognised(server: MirrorServer, fetcher: Fetcher, partial: Path) -> None:
    page = b"\n <!DOCTYPE html><title>Log in</title>"
    for kind in ("text/html; charset=utf-8", "application/octet-stream"):
        server.on(FILE, lambda handler, kind=kind: handler.answer(200, page, Content_Type=kind))  # type: ignore[misc]
        with pytest.raises(NetworkError, match=r"sent a web page instead of a\+b c\.bin"):
            take(fetcher, server.url + URL, partial)
    assert len(server.seen) == 2, "trying again does not make it a file"
    assert not partial.exists() or not partial.read_bytes()


def test_a_local_file_is_streamed_with_or_without_a_copy(
    fetcher: Fetcher, server: MirrorServer, partial: Path
) -> None:
    path = server.folder / FILE[1:]
    for url in (str(path), path.as_uri()):
        with fetcher.stream(url, None) as download:
            assert download.total == len(DATA)
            assert b"".join(download) == DATA
        assert not partial.exists()
        assert take(fetcher, url, partial) == DATA == partial.read_bytes()
        partial.unlink()
    with pytest.raises(FileMissing):
        fetcher.stream(str(path) + "x", None)


FAULTS: list[Fault] = [
    setting(cut=0), setting(cut=1), setting(cut=65_536), setting(cut=1_500_000), setting(ranges=False, cut=70_000),
    status(503), status(500), setting(validators=False, cut=200_000), setting(weak=True, cut=100_000), setting(),
]  # fmt: skip


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.sampled_from(FAULTS), max_size=6))
def test_whatever_goes_wrong_the_bytes_are_right(server: MirrorServer, partial: Path, faults: list[Fault]) -> None:
    left = list(faults)
    server.on(FILE, lambda handler: bool(left) and left.pop(0)(handler))
    fetcher = Fetcher(Recorder(), retries=10, timeout=(2, 2), backoff=0.0)
    partial.unlink(missing_ok=True)
    while True:
        try:
            assert take(fetcher, server.url + URL, partial) == DATA
            break
        except StreamRestarted:
            continue
    assert partial.read_bytes() == DATA
