"""Small files, sizes and errors: what a mirror answers becomes bytes, None, or one clear sentence."""

from __future__ import annotations

import email.utils
import os
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from mirrors import Recorder
from servers import Handler, MirrorServer, setting, status

from baker.errors import NetworkError
from baker.fetch import Fetcher, FileMissing, file_name, local_path


@pytest.fixture
def server(tmp_path: Path) -> Iterator[MirrorServer]:
    folder = tmp_path / "www"
    folder.mkdir()
    (folder / "x").write_bytes(b"content")
    with MirrorServer(folder) as server:
        yield server


@pytest.fixture
def console() -> Recorder:
    return Recorder()


@pytest.fixture
def fetcher(console: Recorder) -> Fetcher:
    return Fetcher(console, retries=2, timeout=(5, 5), backoff=0.01)


def test_a_small_file_is_read_up_to_its_limit(server: MirrorServer, fetcher: Fetcher) -> None:
    for url in (f"{server.url}/x", str(server.folder / "x"), (server.folder / "x").as_uri()):
        assert fetcher.read(url, 7) == b"content"
        with pytest.raises(NetworkError, match="larger than the 6 bytes"):
            fetcher.read(url, 6)


def test_a_limit_holds_without_a_content_length(server: MirrorServer, fetcher: Fetcher) -> None:
    def endless(handler: Handler) -> bool:
        handler.send_response(200)
        handler.end_headers()
        handler.close_connection = True
        for _ in range(1000):
            handler.wfile.write(bytes(1 << 16))
        return True

    server.on("/x", endless)
    with pytest.raises(NetworkError, match="larger than"):
        fetcher.read(f"{server.url}/x", 100_000)


@pytest.mark.parametrize("code", [429, 500, 502, 503, 504])
def test_a_passing_failure_is_tried_again(
    server: MirrorServer, fetcher: Fetcher, console: Recorder, code: int
) -> None:
    server.on("/x", server.times(2, status(code)))
    assert fetcher.read(f"{server.url}/x", 10) == b"content"
    assert len(server.seen) == 3
    assert all(f"status {code}" in note for note in console.notes)


def test_a_lasting_failure_is_named_with_a_way_out(server: MirrorServer, fetcher: Fetcher) -> None:
    server.on("/x", status(503))
    with pytest.raises(NetworkError, match=r"127\.0\.0\.1 answered with status 503") as caught:
        fetcher.read(f"{server.url}/x", 10)
    assert "--mirror" in (caught.value.hint or "")
    assert len(server.seen) == 3


@pytest.mark.parametrize("code", [400, 401, 403, 451])
def test_a_refusal_is_not_tried_again(server: MirrorServer, fetcher: Fetcher, code: int) -> None:
    server.on("/x", status(code))
    with pytest.raises(NetworkError, match=f"{code}"):
        fetcher.read(f"{server.url}/x", 10)
    assert len(server.seen) == 1


@pytest.mark.parametrize("code", [404, 410])
def test_a_missing_file_is_missing_even_if_the_server_is_chatty(
    server: MirrorServer, fetcher: Fetcher, code: int
) -> None:
    server.on("/x", lambda handler: handler.answer(code, b"<html>", Content_Type="text/html"))
    with pytest.raises(FileMissing):
        fetcher.read(f"{server.url}/x", 10)
    assert fetcher.size(f"{server.url}/x") is None


def test_retry_after_is_waited_for(server: MirrorServer, fetcher: Fetcher) -> None:
    for wait in (lambda: "1", lambda: email.utils.formatdate(time.time() + 2, usegmt=True)):
        value = wait()
        server.on("/x", server.times(1, status(503, Retry_After=value)))
        started = time.monotonic()
        assert fetcher.read(f"{server.url}/x", 10) == b"content"
        assert 0.9 <= time.monotonic() - started < 10


@pytest.mark.parametrize("value", ["", "soon", "-5", "Thu, 01 Jan 1970 00:00:00 GMT", "1e9"])
def test_a_senseless_retry_after_is_ignored(server: MirrorServer, fetcher: Fetcher, value: str) -> None:
    server.on("/x", server.times(1, status(503, Retry_After=value)))
    started = time.monotonic()
    assert fetcher.read(f"{server.url}/x", 10) == b"content"
    assert time.monotonic() - started < 10


def test_a_dead_mirror_is_named(fetcher: Fetcher) -> None:
    with pytest.raises(NetworkError, match=r"127\.0\.0\.1 failed: Connection refused\.") as caught:
        fetcher.read("http://127.0.0.1:9/x", 10)
    assert "--mirror" in (caught.value.hint or "")
    with pytest.raises(NetworkError, match=r"no\.such\.host\.invalid"):
        fetcher.read("http://no.such.host.invalid/x", 10)


def test_a_dead_host_is_tried_again_for_one_file_only(
    server: MirrorServer, fetcher: Fetcher, console: Recorder
) -> None:
    """Not for each of the dozen files of a bake."""
    for name in ("one", "two", "three"):
        with pytest.raises(NetworkError, match="Connection refused"):
            fetcher.read(f"http://127.0.0.1:9/{name}", 10)
    assert len(console.notes) == 2
    assert fetcher.read(f"{server.url}/x", 10) == b"content"


@pytest.mark.parametrize("url", ["http://", "http://[::1/x", "gopher://127.0.0.1/x", "http://127.0.0.1:99999/x"])
def test_an_address_that_is_none_is_a_network_error(fetcher: Fetcher, url: str) -> None:
    with pytest.raises(NetworkError):
        fetcher.read(url, 10)


def test_a_body_that_is_cut_short_is_read_again(server: MirrorServer, fetcher: Fetcher) -> None:
    server.on("/x", server.times(1, setting(cut=3)))
    assert fetcher.read(f"{server.url}/x", 10) == b"content"


def test_a_web_page_is_not_taken_for_a_small_file(server: MirrorServer, fetcher: Fetcher) -> None:
    (server.folder / "x").write_bytes(b"\xef\xbb\xbf<HTML><body>portal")
    with pytest.raises(NetworkError, match="web page instead of x"):
        fetcher.read(f"{server.url}/x", 100)
    server.on("/x", lambda handler: handler.answer(200, b"hello", Content_Type="Text/HTML"))
    with pytest.raises(NetworkError, match="web page"):
        fetcher.size(f"{server.url}/x")


def test_sizes(server: MirrorServer, fetcher: Fetcher) -> None:
    assert fetcher.size(f"{server.url}/x") == 7
    assert fetcher.size(f"{server.url}/y") is None
    assert fetcher.size(str(server.folder / "x")) == 7
    assert fetcher.size((server.folder / "y").as_uri()) is None
    assert fetcher.size(str(server.folder)) is None


def test_an_object_store_hides_missing_files_behind_403(server: MirrorServer, fetcher: Fetcher) -> None:
    server.on("/x", status(403))
    assert fetcher.size(f"{server.url}/x") is None


@pytest.mark.parametrize("code", [405, 501])
def test_a_server_without_head_is_asked_for_one_byte(server: MirrorServer, fetcher: Fetcher, code: int) -> None:
    server.on("/x", lambda handler: handler.command == "HEAD" and handler.answer(code))
    assert fetcher.size(f"{server.url}/x") == 7


def test_a_size_is_asked_again_when_the_server_is_busy(server: MirrorServer, fetcher: Fetcher) -> None:
    server.on("/x", server.times(2, status(500)))
    assert fetcher.size(f"{server.url}/x") == 7
    server.on("/x", status(500))
    with pytest.raises(NetworkError):
        fetcher.size(f"{server.url}/x")


def test_redirects_are_followed(server: MirrorServer, fetcher: Fetcher) -> None:
    server.on("/old", status(302, Location="/x"))
    assert fetcher.read(f"{server.url}/old", 10) == b"content"
    server.on("/loop", status(302, Location="/loop"))
    with pytest.raises(NetworkError, match="redirects"):
        fetcher.read(f"{server.url}/loop", 10)
    server.on("/file", status(302, Location="file:///etc/passwd"))
    with pytest.raises(NetworkError):
        fetcher.read(f"{server.url}/file", 10)


@pytest.fixture
def tls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ssl.SSLContext:
    """A server's TLS context with a certificate for 127.0.0.1 that requests trusts during the test."""
    pem = tmp_path / "cert.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
         "-subj", "/CN=test", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", pem,
         "-out", pem.with_suffix(".crt")],
        check=True, capture_output=True,
    )  # fmt: skip
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem.with_suffix(".crt"), pem)
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(pem.with_suffix(".crt")))
    return context


def test_https_is_never_left_by_a_redirect(
    server: MirrorServer, fetcher: Fetcher, tls: ssl.SSLContext, tmp_path: Path
) -> None:
    with MirrorServer(server.folder, tls=tls) as secure:
        assert fetcher.read(f"{secure.url}/x", 10) == b"content"
        secure.on("/away", status(302, Location=f"{server.url}/x"))
        for action in (
            lambda url: fetcher.read(url, 10),
            fetcher.size,
            lambda url: fetcher.stream(url, tmp_path / "p"),
        ):
            with pytest.raises(NetworkError, match="not https"):
                action(f"{secure.url}/away")
        assert not server.seen
        secure.on("/within", status(302, Location="/x"))
        assert fetcher.read(f"{secure.url}/within", 10) == b"content"


def test_an_unknown_certificate_is_refused_without_another_try(
    server: MirrorServer, fetcher: Fetcher, console: Recorder, tls: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("REQUESTS_CA_BUNDLE")
    with (
        MirrorServer(server.folder, tls=tls) as secure,
        pytest.raises(NetworkError, match=r"127\.0\.0\.1 has no certificate that can be trusted: self"),
    ):
        fetcher.read(f"{secure.url}/x", 10)
    assert not console.notes


def test_a_proxy_of_the_environment_is_used(
    server: MirrorServer, fetcher: Fetcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", server.url)
    monkeypatch.setenv("no_proxy", "")
    assert fetcher.read("http://mirror.example/x", 10) == b"content"
    assert server.seen[0].headers["Host"] == "mirror.example"


def test_addresses_of_local_files() -> None:
    assert local_path("/srv/a b+c%20") == Path("/srv/a b+c%20")
    assert local_path("relative/x") == Path("relative/x")
    assert local_path("file:///srv/a%20b%2Bc") == Path("/srv/a b+c")
    assert local_path("file://localhost/srv/x") == Path("/srv/x")
    assert local_path("https://host/x") is None
    with pytest.raises(NetworkError, match="another host"):
        local_path("file://host/share/x")
    assert file_name("https://host/a/k3s-v1.31.0%2Bk3s1.raw?x=1#y") == "k3s-v1.31.0+k3s1.raw"
    assert file_name("/srv/a+b") == "a+b"


def test_importing_costs_no_http_library() -> None:
    code = (
        "import sys, baker.fetch, baker.store, baker.release; "
        "print([m for m in ('requests', 'urllib3', 'indexed_bzip2', 'http.client') if m in sys.modules])"
    )
    root = Path(__file__).resolve().parents[1]
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=root, env={**os.environ}
    )
    assert done.stdout.strip() == "[]"
