"""Versions from every kind of upstream, served in their true shape: newest first, and no pre-release wins."""

from __future__ import annotations

import json
import socket
import ssl
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from mirrors import Recorder
from servers import Handler, MirrorServer, status

from baker.errors import NetworkError, UsageError
from baker.fetch import FileMissing
from baker.model import Arch
from baker.recipe import github
from baker.recipe.mirrors import Rewrites
from baker.recipe.model import Recipe, Versions, VersionSource
from baker.recipe.versions import Catalogue
from baker.recipe.words import Scope
from baker.services import Services, Settings

ARCHES = (Arch.X86_64, Arch.ARM64)
WORDS = {Arch.X86_64: {"uname": "x86_64"}, Arch.ARM64: {"uname": "aarch64"}}
V, BARE = r"v\d+\.\d+\.\d+", r"\d+\.\d+\.\d+"


def recipe(source: VersionSource | None, match: str = V, name: str = "app", **version: Any) -> Recipe:
    form = "v" if match.startswith("v") else "bare"
    return Recipe(name, "App", Path("recipes") / name, Versions(form, match, source=source, **version), ARCHES, WORDS)


class Bench:
    """A server that stands for all hosts, and a catalogue that asks it."""

    def __init__(self, server: MirrorServer, folder: Path) -> None:
        self.server, self.folder = server, folder
        self.console = Recorder()
        self.services = Services(Settings(cache_dir=folder / "cache"), self.console)
        self.services.fetcher.retries = 0
        self.recipes: dict[str, Recipe] = {}
        self.catalogue = Catalogue(self.services, Rewrites.parse([f"https://={server.url}/"]), self.recipes)

    def put(self, path: str, data: object) -> None:
        file = self.server.folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(data if isinstance(data, str) else json.dumps(data))

    def versions(self, source: VersionSource, match: str = V, **version: Any) -> list[str]:
        return self.catalogue.versions(recipe(source, match, **version))


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    for name in ("GH_TOKEN", "GITHUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "www").mkdir()
    with MirrorServer(tmp_path / "www") as server:
        yield Bench(server, tmp_path)


def release(tag: str, **more: object) -> dict[str, object]:
    return {"tag_name": tag, "prerelease": False, "draft": False, "assets": [], **more}


RELEASES = [
    release("v1.32.0-rc.1"), release("v1.33.0", prerelease=True), release("v1.34.0", draft=True), release("v1.9.12"),
    release("v1.31.10"), release("v1.31.9"), release("api/v1.99.0"), release("v1.30.1"), release("nightly"),
    release("v1.31.9"),
]  # fmt: skip
RELEASES_PATH = "api.github.com/repos/o/app/releases"
GITHUB = VersionSource("github-releases", repo="o/app")


def test_github_releases_are_sorted_as_numbers_without_prereleases(bench: Bench) -> None:
    bench.put(RELEASES_PATH, RELEASES)
    assert bench.versions(GITHUB) == ["v1.31.10", "v1.31.9", "v1.30.1", "v1.9.12"]
    assert bench.versions(GITHUB, BARE) == ["1.31.10", "1.31.9", "1.30.1", "1.9.12"]
    assert bench.versions(GITHUB, min="v1.30") == ["v1.31.10", "v1.31.9", "v1.30.1"]
    assert bench.versions(replace(GITHUB, reject=r"^v1\.31")) == ["v1.30.1", "v1.9.12"]
    assert bench.versions(replace(GITHUB, strip_prefix="api/")) == ["v1.99.0"]
    assert bench.catalogue.latest(recipe(GITHUB)) == ["v1.31.10"]
    assert bench.versions(GITHUB, V + r"(-rc\.\d+)?", prerelease=True)[:3] == ["v1.33.0", "v1.32.0-rc.1", "v1.31.10"]


def test_a_prerelease_never_wins_even_if_the_pattern_lets_it_in(bench: Bench) -> None:
    bench.put(RELEASES_PATH, [release("v2.0.0-beta1"), release("v2.0.0", prerelease=True), release("v1.0.0")])
    assert bench.catalogue.latest(recipe(GITHUB, "v.*")) == ["v1.0.0"]
    bench.put("api.github.com/repos/o/new/releases", [release("v2.0.0-beta1")])
    with pytest.raises(NetworkError, match="lists no version of app that fits"):
        bench.catalogue.latest(recipe(VersionSource("github-releases", repo="o/new"), "v.*"))


def paged(pages: list[Any], link: Callable[[str, int], str]) -> Callable[[Handler], bool]:
    """Answers ?page=N with a page and, unless it is the last, a Link header to the next."""

    def fault(handler: Handler) -> bool:
        query = parse_qs(urlsplit(handler.path).query)
        assert query["per_page"] == ["100"]
        number = int(query.get("page", ["1"])[0])
        more = {"Link": f'<{link(handler.path, number + 1)}>; rel="next"'} if number < len(pages) else {}
        return handler.answer(200, json.dumps(pages[number - 1]).encode(), Content_Type="application/json", **more)

    return fault


def test_pages_are_followed_through_the_mirror(bench: Bench) -> None:
    """The links of the API name the API itself: they are rewritten like every address."""
    tags = [[{"name": f"v1.{page}.{number}"} for number in range(3)] for page in range(3)]
    bench.server.on("/api.github.com/repos/o/app/tags", paged(
        tags, lambda path, page: f"https://api.github.com/repos/o/app/tags?per_page=100&page={page}"
    ))  # fmt: skip
    found = bench.versions(VersionSource("github-tags", repo="o/app"))
    assert (found[0], found[-1], len(found)) == ("v1.2.2", "v1.0.0", 9)
    path = "/gitlab.example/api/v4/projects/labs%2Fbird/repository/tags".replace("%2F", "/")
    bench.server.on(path, paged(tags, lambda path, page: (
        f"https://gitlab.example/api/v4/projects/labs%2Fbird/repository/tags?per_page=100&page={page}"
    )))  # fmt: skip
    assert bench.versions(VersionSource("gitlab-tags", url="https://gitlab.example", repo="labs/bird")) == found


def test_tags_of_a_git_repository(bench: Bench) -> None:
    folder = bench.server.folder / "git.example/app"
    identity = ["-c", "user.name=x", "-c", "user.email=x@example"]
    for words in (
        ["init", "-q", str(folder)], ["-C", str(folder), *identity, "commit", "-qm", "x", "--allow-empty"],
        ["-C", str(folder), "tag", "v1.2.3"], ["-C", str(folder), *identity, "tag", "-am", "x", "v1.10.0"],
        ["-C", str(folder), "tag", "v1.11.0-rc1"], ["-C", str(folder), "update-server-info"],
    ):  # fmt: skip
        subprocess.run(["git", *words], check=True)
    source = VersionSource("git-tags", url="https://git.example/app/.git")
    assert bench.versions(source) == ["v1.10.0", "v1.2.3"]
    with pytest.raises(NetworkError, match=r"The tags of .*/nothing cannot be listed"):
        bench.versions(replace(source, url="https://git.example/nothing"))


SCHEDULE = """
schedules:
- release: 1.35
  releaseDate: 9999-12-31
  next:
    release: 1.35.0
- release: 1.34
  releaseDate: 2025-08-27
- release: 1.30
  next:
    release: 1.30.15
  previousPatches:
  - release: 1.30.14
    targetDate: 2025-06-17
  - release: 1.30.0
- release: 1.3
  previousPatches:
  - release: 1.3.10
"""
K8S_PATH = "raw.githubusercontent.com/kubernetes/website/main/data/releases/schedule.yaml"
K8S = VersionSource("k8s-schedule", url=f"https://{K8S_PATH}", per="minor", supported="kubernetes")


def test_kubernetes_schedule_is_read_as_text(bench: Bench) -> None:
    bench.put(K8S_PATH, SCHEDULE)
    kubernetes = recipe(K8S, name="kubernetes")
    assert bench.catalogue.versions(kubernetes) == ["v1.34.0", "v1.30.14", "v1.30.0", "v1.3.10"]
    assert bench.catalogue.latest(kubernetes) == ["v1.34.0", "v1.30.14", "v1.3.10"]


@pytest.mark.parametrize("text", ["a: [", "schedules: 1", "[]", "schedules: [x]"])
def test_a_schedule_of_another_shape_is_no_crash(bench: Bench, text: str) -> None:
    bench.put(K8S_PATH, text)
    with pytest.raises(NetworkError):
        bench.versions(K8S)


def test_latest_by_minor_and_by_what_kubernetes_supports(bench: Bench) -> None:
    bench.put(K8S_PATH, SCHEDULE)
    bench.recipes["kubernetes"] = recipe(K8S, name="kubernetes")
    tags = ["v1.34.0+k3s2", "v1.34.0+k3s10", "v1.33.1+k3s1", "v1.30.14+k3s1", "v1.30.15-rc1+k3s1", "v1.30.9+k3s1"]
    bench.put(RELEASES_PATH, [release(tag) for tag in tags])
    k3s = replace(GITHUB, per="minor", supported="kubernetes")
    match = V + r"\+k3s\d+"
    assert bench.versions(k3s, match)[:2] == ["v1.34.0+k3s10", "v1.34.0+k3s2"]
    assert bench.catalogue.latest(recipe(k3s, match)) == ["v1.34.0+k3s10", "v1.30.14+k3s1"]
    by_minor = recipe(replace(GITHUB, per="minor", count=2), match)
    assert bench.catalogue.latest(by_minor) == ["v1.34.0+k3s10", "v1.33.1+k3s1"]
    follow = VersionSource("follow", recipe="kubernetes", where="recipe.toml:7")
    assert bench.versions(follow) == ["v1.34.0", "v1.30.14", "v1.30.0", "v1.3.10"]
    del bench.recipes["kubernetes"]
    with pytest.raises(UsageError, match=r"recipe\.toml:7: there is no recipe 'kubernetes'"):
        bench.versions(follow)


def test_hashicorp_pages_by_time(bench: Bench) -> None:
    entries = [
        {"version": f"1.{number}.0", "is_prerelease": number == 24, "timestamp_created": f"T{number}",
         "license_class": "enterprise" if number == 23 else "oss"}
        for number in range(24, -1, -1)
    ]  # fmt: skip

    def answer(handler: Handler) -> bool:
        query = parse_qs(urlsplit(handler.path).query)
        begin = next((n for n, e in enumerate(entries, 1) if [e["timestamp_created"]] == query.get("after")), 0)
        return handler.answer(200, json.dumps(entries[begin : begin + int(query["limit"][0])]).encode())

    bench.server.on("/api.releases.hashicorp.com/v1/releases/vault", answer)
    found = bench.versions(VersionSource("hashicorp", product="vault"), BARE)
    assert (found[0], found[-1], len(found)) == ("1.22.0", "1.0.0", 23)


def test_an_index_for_every_architecture(bench: Bench) -> None:
    page = '<html><body><a href="docker-{0}.tgz">docker-{0}.tgz</a> <a href="docker-rootless-extras-{0}.tgz">x</a>'
    for arch, versions in (("x86_64", ["9.0.1", "28.0.4", "29.0.0"]), ("aarch64", ["28.0.4", "9.0.1"])):
        bench.put(f"dl.example/{arch}/index.html", "\n".join(page.format(version) for version in versions))
    source = VersionSource("html-index", url="https://dl.example/{uname}/", pattern=r"docker-(\d+\.\d+\.\d+)\.tgz")
    assert bench.versions(source, BARE) == ["29.0.0", "28.0.4", "9.0.1"]
    assert bench.versions(replace(source, all_arches=True), BARE) == ["28.0.4", "9.0.1"]
    with pytest.raises(FileMissing, match=r"no list of versions at .*/gone/"):
        bench.versions(replace(source, url="https://dl.example/gone/"), BARE)


def test_json_and_text(bench: Bench) -> None:
    bench.put("host/a.json", {"branches": {"3.0": {"latest": "3.0.9"}, "3.2": {"latest": "3.2.1"}, "x": 7}})
    assert bench.versions(VersionSource("json", url="https://host/a.json", key="branches.*.latest"), BARE) == [
        "3.2.1", "3.0.9",
    ]  # fmt: skip
    bench.put("host/stable.txt", "v1.33.2\n")
    assert bench.versions(VersionSource("text", url="https://host/stable.txt")) == ["v1.33.2"]
    with pytest.raises(NetworkError, match="no JSON"):
        bench.versions(VersionSource("json", url="https://host/stable.txt", key="x"), BARE)


def test_a_parameter_may_depend_on_the_version(bench: Bench) -> None:
    bench.put("raw.example/v2.0.5/script/setup/runc-version", "v1.2.6\n")
    scope = Scope(recipe(GITHUB), "v2.0.5", Arch.X86_64)
    source = VersionSource("text", url="https://raw.example/v{bare}/script/setup/runc-version", where="recipe.toml:9")
    assert bench.catalogue.newest(source, scope) == "v1.2.6"
    bench.put(RELEASES_PATH, RELEASES)
    assert bench.catalogue.newest(GITHUB, scope) == "v1.31.10"
    bench.put("raw.example/v2.0.6/script/setup/runc-version", "\n")
    with pytest.raises(NetworkError, match=r"recipe\.toml:9: upstream lists no version"):
        bench.catalogue.newest(source, replace(scope, version="v2.0.6"))


LIMITED = {"X_RateLimit_Remaining": "0", "X_RateLimit_Limit": "60"}


@pytest.mark.parametrize("code", [403, 429])
def test_a_rate_limit_is_explained(bench: Bench, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    reset = str(int(time.time()) + 1500)
    bench.server.on(f"/{RELEASES_PATH}", status(code, **LIMITED, X_RateLimit_Reset=reset))
    with pytest.raises(
        NetworkError, match=r"no more requests for now \(rate limit\)\. It answers again in 25 min"
    ) as caught:
        bench.versions(GITHUB)
    assert "set GH_TOKEN" in (caught.value.hint or "")
    assert len(bench.server.seen) == 1, "asking again would not help"
    monkeypatch.setenv("GITHUB_TOKEN", "secret")
    bench.server.on(f"/{RELEASES_PATH}", status(code, Retry_After="61"))
    with pytest.raises(NetworkError, match="again in 2 min") as caught:
        bench.versions(GITHUB)
    assert "GH_TOKEN" not in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("code", "message"),
    [(401, "does not know the token"), (403, "refuses the request"), (404, "nothing at"), (418, "status 418"),
     (500, "status 500")],
)  # fmt: skip
def test_other_refusals_of_the_api(bench: Bench, code: int, message: str) -> None:
    bench.server.on(f"/{RELEASES_PATH}", status(code))
    with pytest.raises(NetworkError, match=message):
        bench.versions(GITHUB)


@pytest.mark.parametrize("answer", ["<html>", "{}", "[1]", '[{"tag_name": null}]'])
def test_an_api_of_another_shape_is_no_crash(bench: Bench, answer: str) -> None:
    bench.put(RELEASES_PATH, answer)
    with pytest.raises(NetworkError):
        bench.catalogue.latest(recipe(GITHUB))


def test_lists_are_kept_for_a_while_and_for_times_without_a_network(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.put(RELEASES_PATH, RELEASES)
    bench.versions(GITHUB)
    bench.put(RELEASES_PATH, [release("v9.0.0")])
    assert bench.versions(GITHUB)[0] == "v1.31.10"
    assert len(bench.server.seen) == 1
    later = time.time() + 1000
    monkeypatch.setattr("baker.recipe.versions.time.time", lambda: later)
    bench.server.on(f"/{RELEASES_PATH}", status(429, **LIMITED))
    assert bench.versions(GITHUB)[0] == "v1.31.10"
    assert "seen last" in bench.console.warnings[0]
    bench.server.faults.clear()
    assert bench.versions(GITHUB) == ["v9.0.0"]


@pytest.fixture
def github_here(tmp_path: Path, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> Iterator[MirrorServer]:
    """A TLS server that this process takes for api.github.com."""
    pem = tmp_path / "cert.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
         "-subj", "/CN=test", "-addext", "subjectAltName=DNS:api.github.com,DNS:other.example", "-keyout", pem,
         "-out", pem.with_suffix(".crt")], check=True, capture_output=True,
    )  # fmt: skip
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem.with_suffix(".crt"), pem)
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(pem.with_suffix(".crt")))
    monkeypatch.setenv("no_proxy", "*")
    resolve = socket.getaddrinfo
    with MirrorServer(bench.server.folder, tls=context) as server:
        port = urlsplit(server.url).port

        def here(host: str, *arguments: Any, **more: Any) -> Any:
            if host in ("api.github.com", "other.example"):
                return resolve("127.0.0.1", port, type=socket.SOCK_STREAM)
            return resolve(host, *arguments, **more)

        monkeypatch.setattr(socket, "getaddrinfo", here)
        yield server


def test_the_token_goes_to_github_and_to_nobody_else(
    bench: Bench, github_here: MirrorServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GH_TOKEN", "secret")
    direct = Catalogue(bench.services, Rewrites(), {})
    bench.put("repos/o/app/releases", RELEASES)
    assert direct.latest(recipe(GITHUB)) == ["v1.31.10"]
    assert [seen.headers.get("Authorization") for seen in github_here.seen] == ["Bearer secret"]
    github_here.on("/repos/o/moved/releases", status(302, Location="https://other.example/repos/o/app/releases"))
    assert direct.latest(recipe(replace(GITHUB, repo="o/moved"))) == ["v1.31.10"]
    first, second = github_here.seen[1:]
    assert (first.headers["Host"], first.headers["Authorization"]) == ("api.github.com", "Bearer secret")
    assert second.headers["Host"] == "other.example"
    assert "Authorization" not in second.headers
    bench.put(RELEASES_PATH, RELEASES)
    bench.put(K8S_PATH, SCHEDULE)
    bench.versions(GITHUB)
    bench.versions(K8S)
    assert len(bench.server.seen) == 2
    assert all("secret" not in str(seen.headers) for seen in bench.server.seen)


def test_only_https_and_only_the_api_get_the_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GITHUB_TOKEN", "secret")
    assert "Authorization" in github.headers_for("https://api.github.com/repos")
    for url in (
        "http://api.github.com/repos", "https://api.github.com.evil.example/repos", "https://github.com/repos",
        "https://api.github.com:444/repos", "https://me@api.github.com/", "https://mirror/api.github.com/", "/srv/api",
    ):  # fmt: skip
        assert "Authorization" not in github.headers_for(url), url


def test_a_recipe_without_a_list_says_so(bench: Bench) -> None:
    with pytest.raises(UsageError, match="app has no list of versions"):
        bench.catalogue.versions(recipe(None))
