"""The stand-in's HTTP server answers ranges and conditions as release servers do (RFC 9110)."""

from __future__ import annotations

import http.client
from collections.abc import Iterator
from pathlib import Path

import pytest
from standin.http_server import FolderServer

CONTENT = bytes(range(256)) * 8


@pytest.fixture
def server(tmp_path: Path) -> Iterator[FolderServer]:
    folder = tmp_path / "served"
    (folder / "a folder").mkdir(parents=True)
    (folder / "a folder/x+1.raw").write_bytes(CONTENT)
    (folder / ".hidden").write_bytes(b"secret")
    (folder / "link").symlink_to("a folder")
    (tmp_path / "outside").write_bytes(b"secret")
    with FolderServer(folder) as running:
        yield running


def ask(
    server: FolderServer, path: str = "/a%20folder/x%2B1.raw", method: str = "GET", **headers: str
) -> tuple[http.client.HTTPResponse, bytes]:
    """One request; header names have underscores for dashes."""
    connection = http.client.HTTPConnection("127.0.0.1", server.server_address[1], timeout=10)
    connection.request(method, path, headers={name.replace("_", "-"): value for name, value in headers.items()})
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    return answer, body


def test_whole_file_with_validators(server: FolderServer) -> None:
    answer, body = ask(server)
    assert (answer.status, body) == (200, CONTENT)
    assert answer.headers["Accept-Ranges"] == "bytes"
    assert answer.headers["ETag"]
    assert answer.headers["Last-Modified"].endswith("GMT")
    assert server.requests == [("GET", "/a%20folder/x%2B1.raw", None)]


def test_head_has_the_length_but_no_body(server: FolderServer) -> None:
    answer, body = ask(server, method="HEAD")
    assert (answer.status, body, answer.headers["Content-Length"]) == (200, b"", str(len(CONTENT)))


@pytest.mark.parametrize(
    ("wanted", "start", "end"),
    [
        ("bytes=0-0", 0, 1),
        ("bytes=100-199", 100, 200),
        ("bytes=2000-", 2000, 2048),
        ("bytes=2000-9999", 2000, 2048),
        ("bytes=-48", 2000, 2048),
        ("bytes=-9999", 0, 2048),
    ],
)
def test_ranges(server: FolderServer, wanted: str, start: int, end: int) -> None:
    answer, body = ask(server, Range=wanted)
    assert (answer.status, body) == (206, CONTENT[start:end])
    assert answer.headers["Content-Range"] == f"bytes {start}-{end - 1}/2048"
    assert answer.headers["Content-Length"] == str(end - start)


@pytest.mark.parametrize("wanted", ["bytes=2048-", "bytes=9999-", "bytes=-0"])
def test_range_beyond_the_end_is_refused(server: FolderServer, wanted: str) -> None:
    answer, body = ask(server, Range=wanted)
    assert (answer.status, body, answer.headers["Content-Range"]) == (416, b"", "bytes */2048")


@pytest.mark.parametrize("wanted", ["bytes=5-2", "bytes=-", "lines=1-2", "bytes=0-1,5-6"])
def test_range_without_sense_gives_the_whole_file(server: FolderServer, wanted: str) -> None:
    answer, body = ask(server, Range=wanted)
    assert (answer.status, body) == (200, CONTENT)


@pytest.mark.parametrize("validator", ["ETag", "Last-Modified"])
def test_if_range_holds_only_for_the_same_file(server: FolderServer, validator: str) -> None:
    known = ask(server, method="HEAD")[0].headers[validator]
    answer, body = ask(server, Range="bytes=2000-", If_Range=known)
    assert (answer.status, body) == (206, CONTENT[2000:])
    answer, body = ask(server, Range="bytes=2000-", If_Range='"another"')
    assert (answer.status, body) == (200, CONTENT)


def test_changed_file_changes_its_etag(server: FolderServer) -> None:
    before = ask(server, method="HEAD")[0].headers["ETag"]
    (server.folder / "a folder/x+1.raw").write_bytes(CONTENT[:-1])
    answer, body = ask(server, Range="bytes=2000-", If_Range=before)
    assert (answer.status, body) == (200, CONTENT[:-1])


def test_known_file_is_not_sent_again(server: FolderServer) -> None:
    etag = ask(server, method="HEAD")[0].headers["ETag"]
    answer, body = ask(server, If_None_Match=etag)
    assert (answer.status, body) == (304, b"")


@pytest.mark.parametrize("path", ["/", "/no", "/a%20folder", "/.hidden", "/../outside", "/%2e%2e/outside", "/%00"])
def test_only_plain_files_of_the_folder_are_served(server: FolderServer, path: str) -> None:
    assert ask(server, path)[0].status == 404


def test_links_are_followed_within_the_folder(server: FolderServer) -> None:
    assert ask(server, "/link/x+1.raw?query")[1] == CONTENT
    (server.folder / "out").symlink_to("../outside")
    assert ask(server, "/out")[0].status == 404
