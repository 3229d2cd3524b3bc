"""A mirror is a copy that can be baked from without a network: whole, signed, fresh, and no larger than wanted."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from cli import flatcar_bake, release_environment
from keys import TestKey
from mirrors import Recorder, SignedMirror
from servers import MirrorServer
from standin.http_server import FolderServer

from baker.errors import ImageError, UsageError, VerificationError
from baker.fetch import FileMissing
from baker.mirroring.extensions import Choice
from baker.mirroring.folder import MirrorFolder
from baker.mirroring.mirror import MirrorRequest, MirrorResult, mirror
from baker.mirroring.releases import mirrored_releases
from baker.model import Arch, Channel, Release
from baker.services import Services, Settings
from baker.sign import Signer
from baker.sysupdate import parse_config, transfer_config
from baker.verify import Verifier, parse_sha256sums

IMAGE = "flatcar_production_image.bin.bz2"
WASMTIME = "wasmtime-49.0.4-x86-64.raw"


@pytest.fixture(scope="module")
def key() -> Iterator[TestKey]:
    with TestKey() as made:
        made.add_subkey()
        yield made


class Upstream:
    """A release server and bakery, and the mirror that is made of it."""

    def __init__(self, folder: Path, key: TestKey, server: MirrorServer) -> None:
        self.releases = SignedMirror(folder / "www", key)
        self.bakery = folder / "www/extensions"
        self.bakery.mkdir(parents=True)
        self.server, self.key, self.folder = server, key, folder
        self.mirror = folder / "mirror"
        self.console = Recorder()
        (folder / "key.asc").write_bytes(key.export("--armor"))

    def release(self, *versions: str, channel: Channel = Channel.STABLE, current: str = "current") -> None:
        """Publish releases; the last is the channel's current one."""
        for version in versions:
            release = Release(version, channel, Arch.X86_64)
            self.releases.put(IMAGE, b"image of " + version.encode(), release)
            self.releases.put_version(release, current)

    def extensions(self, *files: str, config: str = "") -> None:
        """Publish images with their SHA256SUMS, and a sysupdate config that it does not list."""
        for file in files:
            (self.bakery / file).write_bytes(f"content of {file}".encode())
        lines = "".join(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n"
                        for path in sorted(self.bakery.glob("*.raw")))  # fmt: skip
        (self.bakery / "SHA256SUMS").write_text(lines)
        if config:
            name = files[0].split("-")[0]
            (self.bakery / f"{name}.conf").write_text(config)

    def run(self, *, signer: Signer | None = None, **request: object) -> MirrorResult:
        settings = Settings(
            mirror=self.server.url, bakery=f"{self.server.url}/extensions", signing_key=self.folder / "key.asc",
            fingerprint=self.key.fingerprint, cache_dir=self.mirror / ".incoming",
        )  # fmt: skip
        with Services(settings, self.console) as services:
            services.fetcher.retries = 0
            folder = MirrorFolder(self.mirror)
            return mirror(MirrorRequest(**request), folder, services, signer)  # type: ignore[arg-type]

    def files(self) -> set[str]:
        return {str(path.relative_to(self.mirror)) for path in self.mirror.rglob("*") if path.is_file()}


@pytest.fixture
def up(tmp_path: Path, key: TestKey) -> Iterator[Upstream]:
    (tmp_path / "www").mkdir()
    with MirrorServer(tmp_path / "www") as server:
        yield Upstream(tmp_path, key, server)


def test_a_bake_from_a_mirror_needs_no_network(stand_in: Path, tmp_path: Path) -> None:
    env = release_environment(stand_in)
    trust = {"FLATCAR_BAKE_FINGERPRINT": env["FLATCAR_BAKE_FINGERPRINT"]}
    words = ("mirror", tmp_path / "m", "wasmtime@49.0.4", "--release", "stable", "--vendor", "qemu_uefi")
    with FolderServer(stand_in) as server:
        from_web = {"FLATCAR_BAKE_MIRROR": server.url, "FLATCAR_BAKE_BAKERY": f"{server.url}/extensions"}
        done = flatcar_bake(*words, env=trust | from_web)
        assert done.returncode == 0, done.stderr
        server.requests.clear()
        again = flatcar_bake(*words, env=trust | from_web)
        assert again.returncode == 0 and not again.stdout, again.stdout
        fetched = [path for method, path, _ in server.requests if method == "GET" and path.endswith((".img", ".raw"))]
        assert not fetched
    # Another user's cache, in a network namespace with nothing in it.
    done = flatcar_bake(
        "bake", "--mirror", tmp_path / "m", "--bakery", tmp_path / "m/extensions", "-v", "qemu_uefi", "--updates",
        "-o", tmp_path / "out", "--cache-dir", tmp_path / "cache", "wasmtime@49.0.4",
        env=trust, prefix=("unshare", "--net"),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    manifest = json.loads((tmp_path / "out/bake-manifest.json").read_text())
    (sysext,) = manifest["sysexts"]
    assert sysext["file"] == WASMTIME and sysext["origin"] == "bakery"
    assert {"wasmtime.conf", WASMTIME} < {item["name"] for item in manifest["inputs"]}
    assert all(item["signer"] for item in manifest["inputs"] if item["kind"] in ("image", "firmware"))


def test_what_is_mirrored_is_what_was_signed(up: Upstream, key: TestKey) -> None:
    up.release("4459.2.3", "4593.2.0")
    for name in ("flatcar-zfs.raw", "oem-azure.raw"):
        up.releases.put(name, name.encode(), Release("4593.2.0", Channel.STABLE, Arch.X86_64))
    up.releases.put_feed(("4593.2.0", "stable", ["amd64", "arm64"]), ("4459.2.3", "stable", ["amd64"]))
    up.run(releases=("stable",), files=("flatcar-zfs.raw",), vendors=("azure",))
    home, names = "stable/amd64-usr/4593.2.0", (IMAGE, "version.txt", "flatcar-zfs.raw", "oem-azure.raw")
    assert up.files() == {
        *(f"{home}/{name}{suffix}" for name in names for suffix in ("", ".sig")),
        "stable/amd64-usr/current/version.txt", "stable/amd64-usr/current/version.txt.sig", "mirror.json",
        "releases-json/releases.json", "security/image-signing-key/Flatcar_Image_Signing_Key.asc",
    }  # fmt: skip
    with Verifier(key.export(), key.fingerprint) as verifier:
        for path in up.mirror.glob("stable/**/*.sig"):
            verifier.verify(path.with_suffix(""), path.read_bytes(), path.name)
    feed = json.loads((up.mirror / "releases-json/releases.json").read_text())
    assert {version: entry["architectures"] for version, entry in feed.items()} == {"4593.2.0": ["amd64"]}
    # A feed that is broken, here and there, is no reason to stop.
    for path in (up.mirror, up.folder / "www"):
        (path / "releases-json/releases.json").write_text("[" * 100_000)
    up.run(releases=("4593.2.0",), vendors=("azure",))
    assert json.loads((up.mirror / "releases-json/releases.json").read_text()) == {}


def test_a_damaged_file_is_fetched_again_and_an_interrupted_run_goes_on(up: Upstream) -> None:
    up.release("4593.2.0")
    up.extensions("tool-1.0-x86-64.raw")
    os.rename(up.bakery / "tool-1.0-x86-64.raw", up.folder / "away")
    with pytest.raises(FileMissing):
        up.run(releases=("stable",), extensions=(Choice("tool"),))
    image = up.mirror / "stable/amd64-usr/4593.2.0" / IMAGE
    assert image.is_file() and not (up.mirror / "extensions/SHA256SUMS").exists()
    os.rename(up.folder / "away", up.bakery / "tool-1.0-x86-64.raw")
    up.server.seen.clear()
    up.run(releases=("stable",), extensions=(Choice("tool"),))
    assert not up.server.requests(f"/stable/amd64-usr/4593.2.0/{IMAGE}")
    content = image.read_bytes()
    for path in (image, up.mirror / "extensions/tool/tool-1.0-x86-64.raw"):
        path.write_bytes(b"damaged")
    result = up.run(releases=("stable",), extensions=(Choice("tool"),))
    assert image.read_bytes() == content
    assert {IMAGE, "tool-1.0-x86-64.raw"} <= {Path(name).name for name in result.added}
    assert len(up.console.warnings) == 2


def test_a_forged_file_never_gets_into_the_mirror(up: Upstream) -> None:
    up.release("4593.2.0")
    path = up.folder / f"www/stable/amd64-usr/4593.2.0/{IMAGE}"
    path.write_bytes(b"forged")
    with pytest.raises(VerificationError):
        up.run(releases=("stable",))
    assert not any(IMAGE in name for name in up.files() if not name.startswith(".incoming"))


def test_old_versions_go_and_nobody_elses_files(up: Upstream) -> None:
    versions = {"tool": ("1.9", "1.10", "1.11"), "kubernetes": ("v1.30.1", "v1.31.1", "v1.31.2")}
    up.extensions(*(f"{name}-{version}-x86-64.raw" for name, found in versions.items() for version in found))
    up.release("4081.3.1", "4081.3.10", channel=Channel.LTS, current="current-2024")
    up.release("3510.3.9", channel=Channel.LTS, current="current-2023")
    up.release("4459.2.3", "4593.2.0")
    both = (Choice("tool"), Choice("kubernetes"))
    up.run(releases=("4459.2.3", "stable", "4081.3.1", "lts-2024", "lts-2023"), extensions=both)
    (up.mirror / "stable/amd64-usr/4459.2.3/notes").write_text("mine")
    (up.mirror / "stable/amd64-usr/3000.2.0").mkdir()
    result = up.run(keep_releases=1, keep_sysexts=1)
    assert {Path(name).parent.name for name in result.removed} == {"4459.2.3", "4081.3.1", "tool", "kubernetes"}
    assert mirrored_releases(up.files()) == {
        ("stable", "amd64-usr"): {"4593.2.0", "4459.2.3"}, ("lts", "amd64-usr"): {"4081.3.10", "3510.3.9"},
    }  # fmt: skip
    assert [path.name for path in (up.mirror / "stable/amd64-usr/4459.2.3").iterdir()] == ["notes"]
    sums = parse_sha256sums((up.mirror / "extensions/SHA256SUMS").read_bytes())
    assert set(sums) == {"tool-1.11-x86-64.raw", "kubernetes-v1.30.1-x86-64.raw", "kubernetes-v1.31.2-x86-64.raw"}
    assert set(sums) == {path.name for path in up.mirror.glob("extensions/*/*.raw")}


def test_the_release_that_a_channel_means_stays(up: Upstream) -> None:
    up.release("4593.2.0", "4459.2.3")
    up.run(releases=("4593.2.0", "stable"), keep_releases=1)
    assert mirrored_releases(up.files()) == {("stable", "amd64-usr"): {"4593.2.0", "4459.2.3"}}


def test_machines_update_from_the_mirror_when_it_has_an_address(up: Upstream, key: TestKey) -> None:
    own = transfer_config("tool", "tool-@v-%a.raw", "https://extensions.flatcar.org/extensions/tool")
    up.extensions("tool-1.0-x86-64.raw", "tool-1.1-x86-64.raw", config=own)
    up.run(extensions=(Choice("tool", "latest"),))
    assert (up.mirror / "extensions/tool.conf").read_text() == own
    assert [path.name for path in up.mirror.glob("extensions/tool/*.raw")] == ["tool-1.1-x86-64.raw"]
    (up.folder / "secret").write_bytes(key.gpg("--export-secret-keys"))
    with Signer(str(up.folder / "secret")) as signer:
        up.run(extensions=(Choice("tool", "v1.0"),), url="http://mirror.example/flatcar/", signer=signer)
        for folder in ("extensions", "extensions/tool"):
            sums = (up.mirror / folder / "SHA256SUMS").read_bytes()
            signer.check(sums, (up.mirror / folder / "SHA256SUMS.gpg").read_bytes(), folder)
    config = parse_config((up.mirror / "extensions/tool.conf").read_bytes())
    assert config.source_path == "http://mirror.example/flatcar/extensions/tool/" and config.verify


def test_upstreams_own_signature_is_kept_where_it_fits(up: Upstream, key: TestKey) -> None:
    up.extensions("tool-1.0-x86-64.raw", "tool-1.1-x86-64.raw")
    signature = key.sign((up.bakery / "SHA256SUMS").read_bytes())
    (up.bakery / "SHA256SUMS.gpg").write_bytes(signature)
    up.run(extensions=(Choice("tool", "1.0"),))
    assert not (up.mirror / "extensions/SHA256SUMS.gpg").exists()
    assert any("holds a part of it only" in text for text in up.console.warnings)
    up.run(extensions=(Choice("tool"),))
    assert (up.mirror / "extensions/SHA256SUMS.gpg").read_bytes() == signature


@pytest.mark.parametrize(
    ("request_", "error", "message"),
    [
        ({"extensions": (Choice("toll"),)}, UsageError, "The bakery has no toll"),
        ({"extensions": (Choice("tool", "9"),)}, UsageError, "The bakery has no tool 9"),
        ({"releases": ("stable",), "files": ("../../key.asc",)}, UsageError, "is not the name of a release's file"),
        ({"extensions": (Choice("evil"),)}, ImageError, "it writes to '/usr'"),
    ],
)  # fmt: skip
def test_what_cannot_be_mirrored_is_named(
    up: Upstream, request_: dict[str, object], error: type[Exception], message: str
) -> None:
    up.release("4593.2.0")
    up.extensions("tool-1.0-x86-64.raw")
    harm = transfer_config("evil", "evil-@v-%a.raw", "https://x.example").replace("/opt/extensions/evil", "/usr")
    up.extensions("evil-1.0-x86-64.raw", config=harm)
    with pytest.raises(error, match=message):
        up.run(**request_)


def test_a_state_that_leads_out_of_the_mirror_does_no_harm(up: Upstream, tmp_path: Path) -> None:
    up.release("4459.2.3", "4593.2.0")
    up.run(releases=("4459.2.3", "stable"))
    victim = tmp_path / "stable/amd64-usr/1.2.0"
    victim.mkdir(parents=True)
    (victim / "file").write_text("precious")
    state = json.loads((up.mirror / "mirror.json").read_text())
    state["files"] += [
        "../stable/amd64-usr/1.2.0/file",
        "stable/../../stable/amd64-usr/1.2.0/file",
        str(victim / "file"),
    ]
    (up.mirror / "mirror.json").write_text(json.dumps(state))
    up.run(keep_releases=1)
    assert (victim / "file").read_text() == "precious"
    (up.mirror / "mirror.json").write_text("[]")
    with pytest.raises(UsageError, match="is not what flatcar-bake mirror has written"):
        up.run(keep_releases=1)


def test_only_one_run_works_on_a_mirror(tmp_path: Path) -> None:
    with MirrorFolder(tmp_path).locked():
        done = flatcar_bake("mirror", tmp_path, "tool")
    assert done.returncode == 2 and "Another run works on the mirror" in done.stderr
    assert flatcar_bake("mirror", tmp_path).returncode == 2
