"""bake.toml says what the command line can say, and what it says wrongly is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from baker.config import BakeFile, load
from baker.errors import UsageError
from baker.model import Arch
from baker.request import parse_sysexts


def read(folder: Path, text: str) -> BakeFile:
    path = folder / "bake.toml"
    path.write_text(text)
    return load(path)


def test_an_empty_file_leaves_everything_open(tmp_path: Path) -> None:
    assert read(tmp_path, "") == BakeFile()


def test_every_key_is_read(tmp_path: Path) -> None:
    file = read(
        tmp_path,
        """
        sysexts = ["a@1.2"]
        fetch = true
        vendors = ["generic", "qemu_uefi"]
        arch = "arm64"
        release = "lts-2024"
        install_to = "oem:/sysext"
        output_dir = "out"
        image = "../flatcar.bin"
        base = "published"
        backend = "loop"
        updates = false
        allow = ["owner"]
        mirror = "https://mirror.example"
        bakery = "bakery"
        signing_key = "/etc/key.asc"
        fingerprint = "ABCD"
        jobs = 3
        files = ["motd:root:/etc/motd", "/srv/x:oem:/x:0600"]
        ignition = "node.ign"
        ignition_base = "/etc/base.ign"
        disable_builtins = ["docker"]
        official_sysexts = ["zfs"]
        survive_reset = true
        """,
    )
    assert file == BakeFile(
        sysexts=("a@1.2",), fetch=True, vendors=("generic", "qemu_uefi"), arch=Arch.ARM64, release="lts-2024",
        install_to="oem:/sysext", output_dir=tmp_path / "out", image=tmp_path / "../flatcar.bin", base="published",
        backend="loop", updates=False, allow=("owner",), mirror="https://mirror.example",
        bakery=str(tmp_path / "bakery"), signing_key=Path("/etc/key.asc"), fingerprint="ABCD", jobs=3,
        files=(f"{tmp_path}/motd:root:/etc/motd", "/srv/x:oem:/x:0600"), ignition=tmp_path / "node.ign",
        ignition_base=Path("/etc/base.ign"), disable_builtins=("docker",), official_sysexts=("zfs",),
        survive_reset=True,
    )  # fmt: skip


def test_sysexts_become_words_the_command_line_understands(tmp_path: Path) -> None:
    digest = "ab" * 32
    file = read(
        tmp_path,
        f"""
        [[sysexts]]
        name = "local"
        file = "local.raw"
        [[sysexts]]
        name = "far"
        url = "https://example.org/far.raw"
        sha256 = "{digest}"
        [[sysexts]]
        name = "baked"
        version = "1.2"
        """,
    )
    local, far, baked = parse_sysexts(file.sysexts or (), fetch=True)
    assert (local.name, local.path) == ("local", tmp_path / "local.raw")
    assert (far.name, far.url, far.sha256) == ("far", "https://example.org/far.raw", digest)
    assert (baked.name, baked.version) == ("baked", "1.2")


def test_files_are_relative_to_the_bake_toml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep/bake.toml").write_text(
        'sysexts = ["a:a.raw", "b:../b.raw", "c:/c.raw", "d:https://x/d#sha256=0"]\n'
    )
    assert load(Path("deep/bake.toml")).sysexts == (
        f"a:{tmp_path}/deep/a.raw", f"b:{tmp_path}/deep/../b.raw", "c:/c.raw", "d:https://x/d#sha256=0",
    )  # fmt: skip


def test_with_fetch_a_bare_name_is_a_file_of_the_bakery(tmp_path: Path) -> None:
    assert read(tmp_path, 'fetch = true\nsysexts = ["a:a.raw", "b:./b.raw"]').sysexts == (
        "a:a.raw", f"b:{tmp_path}/b.raw",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ('vendor = ["x"]', "unknown key 'vendor'", "vendors"),
        ("arhc = 'arm64'", "unknown key 'arhc'", "arch"),
        ("vendors = 'qemu_uefi'", "vendors must be", None),
        ("vendors = [1]", "vendors must be a list of strings", None),
        ("jobs = true", "jobs must be", None),
        ("jobs = 0", "jobs must be at least 1", None),
        ("updates = 'yes'", "updates must be", None),
        ("updates = true\nenable_updates = false", "are one thing, and say two", None),
        ("arch = 'arm46'", "arch must be one of x86-64, arm64", "arm64"),
        ("backend = 'online'", "backend must be one of auto, offline, loop", "offline"),
        ("sysexts = 'a:b'", "sysexts must be", None),
        ("sysexts = [1]", "sysexts 1 must be a string or a table", None),
        ("sysexts = [{name = 'a'}]", "exactly one of file, url and version", None),
        ("sysexts = [{name = 'a', file = ''}]", "exactly one of file, url and version", None),
        ("sysexts = [{name = 'a', file = 'x', version = '1'}]", "exactly one", None),
        ("sysexts = [{file = 'x'}]", "lacks the key 'name'", None),
        ("sysexts = [{name = 'a', file = 'x', sha256 = 'y'}]", "sha256 goes with url", None),
        ("sysexts = [{name = 'a', url = 'https://x'}]", "sha256 goes with url", None),
        ("sysexts = [{name = 'a', fil = 'x'}]", "unknown key 'fil'", "file"),
        ("release = ", "not valid TOML", None),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(tmp_path: Path, text: str, message: str, hint: str | None) -> None:
    with pytest.raises(UsageError, match=r"bake\.toml") as caught:
        read(tmp_path, text)
    assert message in caught.value.message
    assert hint is None or hint in str(caught.value.hint)


def test_a_missing_or_binary_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="Cannot read"):
        load(tmp_path / "absent.toml")
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match="not valid TOML"):
        load(tmp_path / "binary.toml")
