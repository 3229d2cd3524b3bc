"""Signed releases: what `--sign` makes is what gpgv accepts, and nothing is signed that came unsigned."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import jsonschema
import pytest
from cli import flatcar_bake, release_environment
from keys import TestKey
from mirrors import Recorder
from release_sites import Workshop, images
from servers import MirrorServer
from spdx_tools.spdx.parser.parse_anything import parse_file
from spdx_tools.spdx.validation.document_validator import validate_full_spdx_document

from baker.errors import UsageError, VerificationError
from baker.offline import OfflineEditor
from baker.services import Services, Settings
from baker.sign import Signer, read_keyring
from baker.sysupdate import lint_config, parse_config, transfer_config


@pytest.fixture(scope="module")
def key() -> Iterator[TestKey]:
    with TestKey("Publisher <publisher@example.org>") as made:
        made.add_subkey()
        yield made


@pytest.fixture(scope="module")
def secret(key: TestKey, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("key") / "secret.asc"
    path.write_bytes(key.gpg("--armor", "--export-secret-keys"))
    return path


def gpgv(folder: Path, keyring: Path) -> bool:
    """Does gpgv, which is no part of ours, accept the signature of a folder's SHA256SUMS?"""
    files = [folder / "SHA256SUMS.gpg", folder / "SHA256SUMS"]
    done = subprocess.run(["gpgv", "--keyring", keyring, *files], capture_output=True, check=False)
    return done.returncode == 0


def test_every_list_is_signed_and_configs_ask_for_it(secret: Path, tmp_path: Path) -> None:
    shop = Workshop(tmp_path)
    words = ("--sign", str(secret), "--url", "http://plain.example")
    shop.build("tool 1.2.3\n", *words)
    site = tmp_path / "site"
    for folder in (site, site / "tool"):
        assert gpgv(folder, site / "import-pubring.gpg")
    config = (site / "tool.conf").read_bytes()
    assert parse_config(config).verify and lint_config(config, "tool") == ""
    before = (site / "SHA256SUMS.gpg").read_bytes()
    shop.build("tool 1.2.3\n", *words)
    assert (site / "SHA256SUMS.gpg").read_bytes() == before, "what has not changed is not signed again"
    shop.build("tool 1.3.0\n", *words)
    assert gpgv(site, site / "import-pubring.gpg") and gpgv(site / "tool", site / "import-pubring.gpg")
    shop.build("tool 1.2.3\ntool 1.3.0\n", "--add", "old_tool@1.2.3", "--url", "https://x.example")
    assert not (site / "SHA256SUMS.gpg").exists(), "a signature that no longer fits is worse than none"


def test_a_signed_release_follows_signed_ones_only(key: TestKey, secret: Path, tmp_path: Path) -> None:
    shop = Workshop(tmp_path)
    shop.build("tool 1.2.3\n", "--sign", str(secret), out="signed")
    shutil.copytree(tmp_path / "signed", tmp_path / "unsigned")
    (tmp_path / "unsigned/SHA256SUMS.gpg").unlink()
    shutil.copytree(tmp_path / "signed", tmp_path / "forged")
    sums = tmp_path / "forged/SHA256SUMS"
    sums.write_text(sums.read_text().replace("v1.2.3-x86", "v9.9.9-x86"))
    for previous, message in (("unsigned", "The previous release is not signed"), ("forged", "does not match its")):
        with MirrorServer(tmp_path / previous) as server:
            done = shop.run("build", "--add", "tool@1.3.0", "--sign", secret, "--previous", server.url)
        assert done.returncode == 3 and message in done.stderr
        assert not shop.files("release")
    with MirrorServer(tmp_path / "signed") as server:
        shop.build("tool 1.2.3\n", "--sign", str(secret), "--previous", server.url, out="next")
    assert "tool/tool-v1.2.3-arm64.raw" in shop.files("next")
    report = shop.build("tool 1.2.3\n", "--sign", str(secret), "--previous", str(tmp_path / "unsigned"),
                        "--unsigned-previous", "--only-new", out="trusting")  # fmt: skip
    assert report["skipped"] == images("v1.2.3")


def test_a_bakery_that_must_be_signed(key: TestKey, secret: Path, tmp_path: Path) -> None:
    shop = Workshop(tmp_path)
    shop.build("tool 1.2.3\n", "--sign", str(secret), "--url", "https://x.example", "-a", "x86-64")
    site, image = tmp_path / "site", "tool-v1.2.3-x86-64.raw"
    with TestKey("Else <else@example.org>") as other:
        other.add_subkey()
        others = other.export()
    keys = {"right": key.export("--armor"), "both": others + key.export(), "wrong": others}
    for name, data in keys.items():
        (tmp_path / name).write_bytes(data)

    def read(trusted: str, file: str) -> bool:
        settings = Settings(bakery=str(site), bakery_key=tmp_path / trusted, cache_dir=tmp_path / "read")
        with Services(settings, Recorder()) as services:
            return services.store.bakery(services.bakery, file).verified

    for trusted in ("right", "both"):
        assert read(trusted, image) and read(trusted, "tool.conf")
    with pytest.raises(VerificationError, match="is signed by an unknown key"):
        read("wrong", image)
    (site / "more.conf").write_bytes((site / "tool.conf").read_bytes())
    with pytest.raises(VerificationError, match="does not list more"):
        read("right", "more.conf")
    sums = site / "SHA256SUMS"
    sums.write_text(sums.read_text().replace("noop", "moop"))
    with pytest.raises(VerificationError, match="does not match its signature"):
        read("right", image)
    (site / "SHA256SUMS.gpg").unlink()
    with pytest.raises(VerificationError, match="The bakery's list is not signed"):
        read("right", image)


def test_a_bake_records_and_locks_the_key_of_updates(key: TestKey, stand_in: Path, tmp_path: Path) -> None:
    for name, options in (("key.gpg", ()), ("key.asc", ("--armor",))):
        (tmp_path / name).write_bytes(key.export(*options))
    with TestKey("Else <else@example.org>") as other:
        (tmp_path / "other.gpg").write_bytes(other.export())
    env = release_environment(stand_in) | {"FLATCAR_BAKE_CACHE_DIR": str(tmp_path / "cache")}

    def bake(*words: str) -> subprocess.CompletedProcess[str]:
        return flatcar_bake("bake", "-v", "qemu_uefi", "wasmtime@49.0.4", *words, env=env, cwd=tmp_path)

    done = bake("--lock", "--update-key", "key.asc")
    assert done.returncode == 0, done.stderr
    manifest = json.loads((tmp_path / "bake-manifest.json").read_text())
    assert [item["name"] for item in manifest["inputs"] if item["kind"] == "update key"] == ["import-pubring.gpg"]
    schema = Path(__file__).parent.parent / "docs/bake-manifest.schema.json"
    jsonschema.validate(manifest, json.loads(schema.read_text()))
    assert not validate_full_spdx_document(parse_file(str(tmp_path / "bake-sbom.spdx.json")))
    with OfflineEditor(_raw(tmp_path), tmp_path, 0) as editor:
        (tmp_path / "baked.gpg").write_bytes(editor.read("ROOT", "/etc/systemd/import-pubring.gpg") or b"")
    assert read_keyring(tmp_path / "baked.gpg") == read_keyring(tmp_path / "key.gpg")
    for words, status in (((), 3), (("--update-key", "other.gpg"), 3), (("--update-key", "key.gpg"), 0)):
        done = bake("--locked", "--plan", "-o", "again", *words)
        assert done.returncode == status, done.stderr
        assert status == 0 or "the update key" in done.stderr


def _raw(folder: Path) -> Path:
    image, raw = folder / "flatcar_production_qemu_uefi_image.img", folder / "disk.raw"
    subprocess.run(["qemu-img", "convert", "-O", "raw", image, raw], check=True)
    return raw


def test_keys_come_from_a_file_or_from_the_keyring(
    key: TestKey, secret: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Signer(str(secret)) as signer:
        assert signer.fingerprint == key.fingerprint
        assert signer.has_signed(b"data", signer.sign(b"data", "it"))
        assert not signer.has_signed(b"other", signer.sign(b"data", "it"))
        home = signer._home
    assert not home.exists()
    monkeypatch.setenv("GNUPGHOME", str(key.home))
    for word in (key.fingerprint, "publisher@example.org"):
        with Signer(word) as signer:
            signer.check(b"data", signer.sign(b"data", "it"), "it")
    with pytest.raises(UsageError, match="There is no secret key for nobody@"):
        Signer("nobody@example.org")
    public = tmp_path / "public.gpg"
    public.write_bytes(key.export())
    with pytest.raises(UsageError, match="holds no secret key"):
        Signer(str(public))
    (tmp_path / "junk").write_bytes(b"no key")
    with pytest.raises(UsageError, match="is no key that gpg can read"):
        Signer(str(tmp_path / "junk"))
    for form in ((), ("--armor",)):
        public.write_bytes(key.export(*form))
        assert read_keyring(public)
    with pytest.raises(UsageError, match="holds no OpenPGP public key"):
        read_keyring(tmp_path / "junk")


def test_a_key_with_a_passphrase(tmp_path: Path) -> None:
    home = tmp_path / "k"
    home.mkdir(mode=0o700)
    gpg = ["gpg", "--homedir", home, "--batch", "--pinentry-mode", "loopback", "--passphrase", "open sesame"]
    subprocess.run([*gpg, "--quick-generate-key", "P <p@example.org>", "ed25519", "sign"], check=True)
    exported = subprocess.run([*gpg, "--export-secret-keys"], check=True, capture_output=True).stdout
    subprocess.run(["gpgconf", "--homedir", home, "--kill", "all"], check=True)
    (tmp_path / "secret").write_bytes(exported)
    (tmp_path / "right").write_text("open sesame\n")
    (tmp_path / "wrong").write_text("open barley\n")
    with Signer(str(tmp_path / "secret"), tmp_path / "right") as signer:
        signer.check(b"data", signer.sign(b"data", "it"), "it")
    for passphrase in (None, tmp_path / "wrong"):
        with pytest.raises(UsageError), Signer(str(tmp_path / "secret"), passphrase) as signer:
            signer.sign(b"data", "it")


def test_a_signature_by_somebody_else_is_refused(secret: Path) -> None:
    with TestKey("Else <else@example.org>") as other, Signer(str(secret)) as signer:
        other.add_subkey()
        with pytest.raises(VerificationError):
            signer.check(b"data", other.sign(b"data"), "it")


def test_plain_http_is_for_signed_releases() -> None:
    with pytest.raises(UsageError, match="not a plain https address"):
        transfer_config("tool", "tool-@v-%a.raw", "http://plain.example/tool/")
    text = transfer_config("tool", "tool-@v-%a.raw", "http://plain.example/tool/", verify=True)
    assert lint_config(text.encode(), "tool") == ""
    for word in ("false", "no", "0", "off"):
        assert "https" in lint_config(text.replace("Verify=true", f"Verify={word}").encode(), "tool")
