"""What may go into a sysext, what is refused by name, and what the image then says about itself."""

from __future__ import annotations

import os
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from cli import flatcar_bake
from packs import AS_NOBODY, FORMATS, NOBODY, mounted_tree, snapshot

from baker.contents import open_contents
from baker.errors import BakeError, ImageError, UsageError
from baker.model import Arch
from baker.pack import pack
from baker.packing.options import PackOptions
from baker.run import run
from baker.sysext import lint, read_sysext

OPTIONS = PackOptions("tool", Arch.X86_64)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A small sound folder."""
    folder = tmp_path / "tool"
    (folder / "usr/bin").mkdir(parents=True)
    (folder / "usr/bin/tool").write_text("#!/bin/sh\n")
    (folder / "usr/bin/tool").chmod(0o755)
    return folder


def mknod(path: Path) -> None:
    os.mknod(path, 0o020644, os.makedev(0, 0))


def bind(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as end:
        end.bind(os.fspath(path))


def set_id(mode: int) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        path.touch()
        path.chmod(mode)

    return make


def give_capability(path: Path) -> None:
    """CAP_NET_RAW, as vfs_cap_data of linux/capability.h."""
    path.touch()
    os.setxattr(path, "security.capability", struct.pack("<IIIII", 0x02000001, 1 << 13, 0, 0, 0))


@pytest.mark.parametrize(
    ("name", "make", "what"),
    [
        ("usr/pipe", os.mkfifo, "is a pipe"),
        ("usr/socket", bind, "is a socket"),
        ("usr/whiteout", mknod, "is a character device"),
        ("usr/su", set_id(0o4755), "set-user-id"),
        ("usr/sg", set_id(0o2755), "set-group-id"),
        ("usr/ping", give_capability, "file capabilities"),
        ("usr/two\nlines", Path.touch, "line break"),
        ("usr/link", lambda path: path.symlink_to("a\nb"), "without doubt"),
        ("usr/a -> b", lambda path: path.symlink_to("c"), "without doubt"),
        ("etc", Path.mkdir, "neither usr nor opt"),
        ("README", Path.touch, "neither usr nor opt"),
        ("usr/sbin", Path.mkdir, "usr/sbin"),
        ("usr/lib", lambda path: path.symlink_to("/etc"), "is no folder"),
        ("usr/lib64", lambda path: path.symlink_to("lib"), "hides all"),
        ("usr/lib/os-release", lambda path: (path.parent.mkdir(), path.touch()), "os-release"),
    ],
)
def test_what_no_sysext_may_hold_is_refused_by_name(
    tree: Path, tmp_path: Path, name: str, make: Callable[[Path], object], what: str
) -> None:
    make(tree / name)
    before = snapshot(tree) if "socket" not in what else None
    with pytest.raises(BakeError, match=what) as caught:
        pack(tree, tmp_path / "tool.raw", OPTIONS)
    assert Path(name).name.split("\n")[0] in caught.value.message
    assert caught.value.hint
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tool"]
    assert before is None or snapshot(tree) == before


@pytest.mark.parametrize("name", FORMATS)
def test_links_are_packed_as_links_wherever_they_lead(tree: Path, tmp_path: Path, name: str) -> None:
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "file").write_text("not for the image")
    (tree / "usr/share").mkdir()
    (tree / "usr/share/file").symlink_to(secret / "file")
    (tree / "usr/share/folder").symlink_to(secret)
    pack(tree, tmp_path / "tool.raw", replace(OPTIONS, format=name, compression=""))
    with open_contents(tmp_path / "tool.raw") as opened:
        assert opened.contents is not None
        assert opened.contents.link("/usr/share/file") == str(secret / "file")
        assert opened.contents.nodes["/usr/share/folder"].kind == "symlink"
        assert not any("secret" in path for path in opened.contents.nodes)
    assert lint(read_sysext(tmp_path / "tool.raw", "tool"), Arch.X86_64, None) == []


def test_capabilities_are_left_out_on_request(tree: Path, tmp_path: Path) -> None:
    give_capability(tree / "usr/bin/tool")
    pack(tree, tmp_path / "tool.raw", replace(OPTIONS, drop_capabilities=True, format="ext4"))
    assert not run(["debugfs", "-R", "ea_list usr/bin/tool", tmp_path / "tool.raw"]).stdout.strip()
    assert b"security.capability" not in (tmp_path / "tool.raw").read_bytes()


def test_modes_are_kept_on_request(tree: Path, tmp_path: Path) -> None:
    (tree / "usr/bin/tool").chmod(0o750)
    (tree / "usr/private").mkdir()
    (tree / "usr/private").chmod(0o1711)
    pack(tree, tmp_path / "tool.raw", replace(OPTIONS, keep_modes=True))
    found = mounted_tree(tmp_path / "tool.raw", tmp_path / "mnt")
    assert [oct(found[name][0] & 0o7777) for name in ("usr/private", "usr/bin/tool")] == ["0o711", "0o750"]


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (PackOptions("tool", None), "ID=_any\n"),
        (PackOptions("tool", Arch.ARM64, reload=True), "ID=_any\nARCHITECTURE=arm64\nEXTENSION_RELOAD_MANAGER=1\n"),
        (PackOptions("tool", Arch.X86_64, os_id="flatcar"), "ID=flatcar\nSYSEXT_LEVEL=1.0\nARCHITECTURE=x86-64\n"),
    ],
)
def test_the_release_file_says_what_was_asked_and_replaces_an_old_one(
    tree: Path, tmp_path: Path, options: PackOptions, text: str
) -> None:
    left = tree / "usr/lib/extension-release.d/extension-release.tool"
    left.parent.mkdir(parents=True)
    left.write_text("ID=left-by-bake.sh\n")
    pack(tree, tmp_path / "tool.raw", options)
    with open_contents(tmp_path / "tool.raw") as opened:
        assert opened.contents is not None
        name = "/usr/lib/extension-release.d/extension-release.tool"
        assert opened.contents.read(name, 1000).decode() == text
    assert left.read_text() == "ID=left-by-bake.sh\n"


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"name": "a/b"}, "cannot be the name"),
        ({"format": "squash"}, "no format 'squash'"),
        ({"compression": "lz4hc"}, "squashfs has no compression"),
        ({"os_id": "Flat Car"}, "no ID"),
        ({"epoch": 2**31}, "out of range"),
        ({"verity": True, "arch": None}, "one architecture"),
        ({"verity": True, "format": "btrfs"}, "could not be checked"),
        ({"signing": (Path("/no/key"), Path("/no/cert"))}, "/no/key"),
    ],
)
def test_options_that_make_no_sense_are_refused(changes: dict[str, object], what: str) -> None:
    with pytest.raises(UsageError, match=what):
        replace(OPTIONS, **changes)  # type: ignore[arg-type]


def test_output_is_not_overwritten_nor_put_into_the_folder(tree: Path, tmp_path: Path) -> None:
    target = tmp_path / "tool.raw"
    target.write_text("precious")
    with pytest.raises(UsageError, match="exists"):
        pack(tree, target, OPTIONS)
    with pytest.raises(UsageError, match="inside the folder"):
        pack(tree, tree / "usr/tool.raw", OPTIONS, force=True)
    with pytest.raises(UsageError, match="is not a folder"):
        pack(target, tmp_path / "other.raw", OPTIONS)
    assert target.read_text() == "precious"
    pack(tree, target, OPTIONS, force=True)
    assert target.read_bytes()[:4] == b"hsqs"


@pytest.mark.parametrize("name", ["squashfs", "btrfs"])
def test_a_file_that_changes_meanwhile_gives_no_image(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    from baker import pack as module

    def read_then_grow(*words: object, **options: bool) -> object:
        entries = module_read(*words, **options)  # type: ignore[arg-type]
        with (tree / "usr/bin/tool").open("a") as file:
            file.write("more\n")
        return entries

    module_read = module.read_tree
    monkeypatch.setattr(module, "read_tree", read_then_grow)
    with pytest.raises(ImageError, match=r"changed while|does not hold what went in"):
        pack(tree, tmp_path / "tool.raw", replace(OPTIONS, format=name))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tool"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_pack_that_is_ended_leaves_no_image(tree: Path, tmp_path: Path, number: signal.Signals) -> None:
    with (tree / "usr/noise").open("wb") as file:
        for _ in range(64):
            file.write(os.urandom(1 << 20))
    process = subprocess.Popen(
        [sys.executable, "-m", "baker", "sysext", "pack", tree, "-o", tmp_path / "tool.raw", "--compression", "xz"],
        stderr=subprocess.PIPE, text=True, cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[1])},
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob(".flatcar-bake-*/image.raw")):
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.01)
    process.send_signal(number)
    process.communicate(timeout=60)
    assert process.returncode == (-number if number is signal.SIGKILL else 128 + number)
    left = sorted(path.name for path in tmp_path.iterdir() if not path.name.startswith(".flatcar-bake-"))
    assert left == ["tool"]
    (tree / "usr/noise").unlink()
    pack(tree, tmp_path / "tool.raw", OPTIONS)  # it clears away what a killed run had to leave
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tool", "tool.raw"]


@pytest.mark.parametrize("name", FORMATS)
def test_what_the_formats_can_hardly_hold_is_no_crash(tree: Path, tmp_path: Path, name: str) -> None:
    (tree / "usr/long").symlink_to("x" * 4000)
    (tree / "usr" / ("n" * 255)).touch()
    try:
        pack(tree, tmp_path / "tool.raw", replace(OPTIONS, format=name))
    except UsageError as error:
        assert error.hint and name in ("erofs", "btrfs")
        assert sorted(path.name for path in tmp_path.iterdir()) == ["tool"]


def test_a_folder_closed_to_its_owner_leaves_nothing_behind(tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="flatcar-bake-nobody-") as name:
        home = Path(name)
        (home / "tool/usr/closed").mkdir(parents=True)
        (home / "tool/usr/closed/file").touch()
        (home / "tool/usr/closed").chmod(0o555)
        for path in [home, *home.rglob("*")]:
            os.chown(path, NOBODY, NOBODY)
        env = {"HOME": name, "TMPDIR": name, "PYTHONPATH": str(Path(__file__).resolve().parents[1])}
        done = flatcar_bake("sysext", "pack", "tool", "--keep-modes", cwd=home, env=env, prefix=AS_NOBODY)
        assert done.returncode == 0, done.stderr
        (home / "tool/usr/closed/secret").touch(0o600)
        done = flatcar_bake("sysext", "pack", "tool", "--force", cwd=home, env=env, prefix=AS_NOBODY)
        assert done.returncode == 2 and "Cannot read" in done.stderr and "secret" in done.stderr
        assert sorted(path.name for path in home.iterdir()) == ["tool", "tool.raw"]


def test_verity_protects_what_was_packed(tree: Path, tmp_path: Path) -> None:
    run([
        "openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=test",
        "-keyout", tmp_path / "key.pem", "-out", tmp_path / "cert.pem",
    ])  # fmt: skip
    image = tmp_path / "tool.raw"
    pack(tree, image, replace(OPTIONS, signing=(tmp_path / "key.pem", tmp_path / "cert.pem")))
    table = run(["sfdisk", "--dump", image]).text
    assert table.count("name=") == 3 and 'name="root-x86-64-verity-sig"' in table
    sysext = read_sysext(image, "tool")
    assert (sysext.fs, sysext.architecture) == ("ddi", "x86-64")
    assert lint(sysext, Arch.X86_64, None) == []
    _check_verity(image, tmp_path)


def _check_verity(image: Path, folder: Path) -> None:
    """Let cryptsetup compare all data with the hashes; the root hash is in the two partitions' ids."""
    sectors = (
        run(["sfdisk", "--list", "--output", "Start,Sectors,UUID", image]).text.split("Start")[1].splitlines()[1:]
    )
    parts = []
    for number, line in enumerate(sectors[:2]):
        start, count, uuid = line.split()
        part = folder / f"part{number}"
        with image.open("rb") as disk:
            disk.seek(int(start) * 512)
            part.write_bytes(disk.read(int(count) * 512))
        parts.append((part, uuid.replace("-", "").lower()))
    (data, first), (hashes, second) = parts
    run(["veritysetup", "verify", data, hashes, first + second])
