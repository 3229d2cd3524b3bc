"""Torcx archives become sysexts whose units load and whose programs run."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tarfile
import time
import urllib.request
from pathlib import Path

import pytest
from cli import flatcar_bake
from oci_images import entry as tar_entry
from oci_images import hard, layer, link
from programs import stand_in
from torcxes import UNITS, Content, busybox, make_archive, web_archive

from baker.chroot.tree import Made
from baker.contents import open_contents
from baker.errors import ImageError, UsageError
from baker.model import Arch
from baker.torcx.convert import TorcxRequest, convert


def converted(archive: Path, folder: Path, name: str = "webd", **more: object) -> Made:
    folder.mkdir(exist_ok=True)
    return convert(TorcxRequest(archive, name, **more), folder / "tree")  # type: ignore[arg-type]


def tree(folder: Path) -> dict[str, str]:
    """Path → what is there, without folders."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_symlink():
            found[str(path.relative_to(folder))] = f"-> {os.readlink(path)}"
        elif path.is_file():
            found[str(path.relative_to(folder))] = oct(path.stat().st_mode & 0o7777)
    return found


EXPECTED = {
    "usr/bin/busybox": "0o755", "usr/bin/webd": "-> busybox", "usr/bin/webctl": "-> busybox",
    "usr/bin/helper": "-> ../libexec/webd/helper", "usr/libexec/webd/helper": "0o755",
    "usr/share/www/index.html": "0o644", "usr/lib/tmpfiles.d/webd.conf": "0o644",
    "usr/lib/tmpfiles.d/webd-etc.conf": "0o644", "usr/share/webd/etc/webd/webd conf.d/100%": "0o644",
    "usr/lib/systemd/system/webd.service": "0o644", "usr/lib/systemd/system/webd.socket": "0o644",
    "usr/lib/systemd/system/extra.service": "0o644", "usr/lib/systemd/system/webd.service.d/10-more.conf": "0o644",
    "usr/lib/systemd/system/multi-user.target.wants/webd.service": "-> ../webd.service",
    "usr/lib/systemd/system/sockets.target.wants/webd.socket": "-> ../webd.socket",
    "usr/lib/systemd/system/multi-user.target.d/10-webd-service.conf": "0o644",
    "usr/lib/systemd/system/sockets.target.d/10-webd-socket.conf": "0o644",
}  # fmt: skip


@pytest.mark.parametrize("kind", ["tgz", "squashfs"])
def test_everything_is_where_a_sysext_has_it(tmp_path: Path, kind: str) -> None:
    made = converted(web_archive(tmp_path, kind), tmp_path / "out")
    assert tree(made.tree) == EXPECTED
    units = made.tree / "usr/lib/systemd/system"
    assert (units / "multi-user.target.d/10-webd-service.conf").read_text() == "[Unit]\nUpholds=webd.service\n"
    assert (units / "webd.service.d/10-more.conf").read_text() == "[Service]\nExecStartPre=/usr/bin/busybox true\n"
    assert "ExecStart=/usr/bin/busybox true\n" in (units / "extra.service").read_text()
    assert "ExecReload=/usr/bin/webctl kill" in (units / "webd.service").read_text()
    assert (made.tree / "usr/lib/tmpfiles.d/webd-etc.conf").read_text() == (
        'C "/etc/webd/webd conf.d/100%%" - - - - /usr/share/webd/etc/webd/webd conf.d/100%%\n'
    )
    assert made.arch is Arch.X86_64
    assert made.notes == [
        "/var is left out: a sysext has no place for it",
        "these speak of torcx, and may need a change: /usr/libexec/webd/helper",
    ]


def systemd_root(folder: Path, *trees: Path) -> Path:
    """A root with this machine's systemd units, and trees laid over it; links for what Flatcar has merged."""
    shutil.copytree("/usr/lib/systemd/system", folder / "usr/lib/systemd/system", symlinks=True)
    (folder / "usr/bin").mkdir()
    for name in ("env", "sh"):
        shutil.copy(f"/usr/bin/{name}", folder / "usr/bin")
    for name in ("bin", "lib"):
        (folder / name).symlink_to(f"usr/{name}")
    for name in ("sbin", "usr/sbin"):
        (folder / name).symlink_to("bin" if "/" in name else "usr/bin")
    for tree in trees:
        shutil.copytree(tree, folder, symlinks=True, dirs_exist_ok=True)
    return folder


def verify(root: Path, *units: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["systemd-analyze", "verify", "--man=no", f"--root={root}", *units], capture_output=True, text=True
    )


def test_its_units_load(tmp_path: Path) -> None:
    archive = web_archive(tmp_path)
    made = converted(archive, tmp_path / "out")
    root = systemd_root(tmp_path / "root", made.tree)
    names = ("webd.service", "webd.socket", "extra.service", "multi-user.target", "sockets.target")
    done = verify(root, *names)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    # The judge does judge: as they were in the archive, the units do not load.
    (root / "usr/lib/systemd/system/webd.service").write_text(
        (tmp_path / f"webd-tree/{UNITS}/webd.service").read_text()
    )
    before = verify(root, "webd.service")
    assert before.returncode and "torcx.target" in before.stderr


def test_tmpfiles_accepts_what_is_written_for_etc(tmp_path: Path) -> None:
    made = converted(web_archive(tmp_path), tmp_path / "out")
    subprocess.run(["systemd-tmpfiles", "--create", f"--root={made.tree}", "webd-etc.conf"], check=True)
    assert (made.tree / "etc/webd/webd conf.d/100%").read_text() == "x=1\n"


def test_the_sysext_runs_what_its_unit_says(tmp_path: Path) -> None:
    """The command as systemd would run it, in a root with nothing but the sysext and a shell."""
    archive = web_archive(tmp_path)
    done = flatcar_bake("torcx", archive, "webd", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["files"][0]["path"] == "webd.raw" and report["arch"] == "x86-64"
    with open_contents(tmp_path / "webd.raw") as opened:
        assert opened.contents is not None
        release = opened.contents.read("/usr/lib/extension-release.d/extension-release.webd", 1000).decode()
        unit = opened.contents.read("/usr/lib/systemd/system/webd.service", 10_000).decode()
    assert release == "ID=_any\nARCHITECTURE=x86-64\nEXTENSION_RELOAD_MANAGER=1\n"
    subprocess.run(["unsquashfs", "-q", "-n", "-d", tmp_path / "merged", tmp_path / "webd.raw"], check=True)
    (command,) = [line for line in unit.splitlines() if line.startswith("ExecStart=")]
    words = command.removeprefix("ExecStart=/usr/bin/env ").replace("${PATH}", "/bin").replace("$OPTS", "").split()
    path, *argv = words
    argv[argv.index("127.0.0.1:8077")] = "127.0.0.1:0"
    env = {path.partition("=")[0]: path.partition("=")[2]}
    with subprocess.Popen(["/usr/sbin/chroot", tmp_path / "merged", *argv], env=env) as server:
        try:
            page = served(server)
        finally:
            server.kill()
    assert page == b"served\n"


def served(server: subprocess.Popen[bytes]) -> bytes:
    """What a web server with a port of its own choice says at its root."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        assert server.poll() is None
        inodes = {os.readlink(fd) for fd in Path(f"/proc/{server.pid}/fd").iterdir()}
        for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and f"socket:[{fields[9]}]" in inodes:
                port = int(fields[1].partition(":")[2], 16)
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/index.html", timeout=30) as reply:
                    return bytes(reply.read())
        time.sleep(0.05)
    raise AssertionError("it does not listen")


def test_options_and_variables_of_the_old_script(tmp_path: Path) -> None:
    archive = web_archive(tmp_path)
    env = {"FORMAT": "erofs", "OS": "flatcar", "RELOAD": "0", "ARCH": "amd64", "SOURCE_DATE_EPOCH": "1700000000"}
    done = flatcar_bake("torcx", archive, "web", "--unit-enable", "extra.service", env=env, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    with open_contents(tmp_path / "web.raw") as opened:
        assert opened.fs == "erofs" and opened.contents is not None
        release = opened.contents.read("/usr/lib/extension-release.d/extension-release.web", 1000).decode()
        assert "/usr/lib/systemd/system/multi-user.target.d/10-extra-service.conf" in opened.contents.nodes
    assert release == "ID=flatcar\nSYSEXT_LEVEL=1.0\nARCHITECTURE=x86-64\n"
    folder = flatcar_bake("torcx", archive, "web", "--dir-only", cwd=tmp_path)
    assert folder.returncode == 0 and folder.stdout == "web\n"
    assert (tmp_path / "web/usr/bin/busybox").is_file()
    again = flatcar_bake("torcx", archive, "web", "--dir-only", cwd=tmp_path)
    assert again.returncode == 2 and "web exists" in again.stderr
    wrong = flatcar_bake("torcx", archive, "arm", "--arch", "arm64", cwd=tmp_path)
    assert wrong.returncode == 6 and "is for x86-64, not for arm64" in wrong.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["web", "web.raw", "webd-tree", "webd:1.torcx.tgz"]


def test_without_wants_nothing_is_upheld(tmp_path: Path) -> None:
    """The old script made a folder of the name `*.d` with `Upholds=*` in it."""
    files: dict[str, Content] = {"bin/busybox": busybox(), f"{UNITS}/x.service": "[Service]\nExecStart=/bin/busybox\n"}
    made = converted(make_archive(tmp_path, "x", files, {"bin": ["/bin/busybox"]}), tmp_path / "out", "x")
    assert tree(made.tree) == {"usr/bin/busybox": "0o755", "usr/lib/systemd/system/x.service": "0o644"}


def test_without_a_manifest_the_archive_counts(tmp_path: Path) -> None:
    made = converted(web_archive(tmp_path, assets=None), tmp_path / "out")
    found = tree(made.tree)
    assert "usr/lib/systemd/system/extra.service" not in found and "usr/share/webd/units/extra.service" in found
    assert "usr/lib/systemd/system/multi-user.target.d/10-webd-service.conf" in found
    assert "no .torcx/manifest.json" in made.notes[0]


def test_a_whole_usr_in_the_archive(tmp_path: Path) -> None:
    """The old script failed where usr/bin was there already, and left usr/sbin, which hides Flatcar's."""
    files: dict[str, Content] = {
        "bin/one": busybox(), "usr/bin/two": busybox(), "usr/sbin/three": busybox(), "usr/lib/data": "x",
        "usr/bin/link": "-> ../sbin/three", "usr/bin/absolute": "-> /sbin/three", "usr/bin/away": "-> /etc/away",
        "usr/lib/systemd/system/y.service":
            "[Service]\nEnvironmentFile=/run/metadata/torcx\n"
            "ExecStart=${TORCX_UNPACKDIR}/y/usr/sbin/three\nExecStop=/usr/sbin/three x\n",
    }  # fmt: skip
    made = converted(make_archive(tmp_path, "y", files, None), tmp_path / "out", "y")
    found = tree(made.tree)
    assert found["usr/bin/link"] == "-> three" and found["usr/bin/away"] == "-> /etc/away"
    assert found["usr/bin/absolute"] == "-> /sbin/three"
    assert {f"usr/bin/{name}" for name in ("one", "two", "three")} <= found.keys()
    assert not any(path.startswith("usr/sbin") for path in found)
    unit = (made.tree / "usr/lib/systemd/system/y.service").read_text()
    assert "TORCX_UNPACKDIR=/ " in unit
    assert "ExecStart=/usr/bin/three\nExecStop=/usr/bin/three x\n" in unit


def test_units_and_settings_in_etc_take_effect(tmp_path: Path) -> None:
    unit = "[Unit]\nAfter=torcx.target\n[Service]\nExecStart=/usr/bin/env true\n"
    files: dict[str, Content] = {
        "etc/systemd/system/e.service": unit, "etc/sysctl.d/e.conf": "x=1\n", "etc/e.conf": "y=1\n",
        "etc/systemd/system/multi-user.target.wants/e.service": "-> ../e.service",
        "usr/local/lib/systemd/system/l.service": unit,
    }  # fmt: skip
    made = converted(make_archive(tmp_path, "e", files, None), tmp_path / "out", "e")
    assert sorted(tree(made.tree)) == [
        "usr/lib/sysctl.d/e.conf", "usr/lib/systemd/system/e.service",
        "usr/lib/systemd/system/multi-user.target.d/10-e-service.conf",
        "usr/lib/systemd/system/multi-user.target.wants/e.service", "usr/lib/tmpfiles.d/e-etc.conf",
        "usr/local/lib/systemd/system/l.service", "usr/share/e/etc/e.conf",
    ]  # fmt: skip
    for folder in ("usr/lib", "usr/local/lib"):
        for file in (made.tree / folder / "systemd/system").glob("*.service"):
            assert "torcx" not in file.read_text()


def test_two_files_for_one_place(tmp_path: Path) -> None:
    files: dict[str, Content] = {"bin/same": b"1", "sbin/same": b"1", "bin/x": b"1", "usr/sbin/x": b"2"}
    with pytest.raises(ImageError, match="two files that would be /usr/bin/x"):
        converted(make_archive(tmp_path, "z", files, None), tmp_path / "out", "z")


def test_the_same_archive_gives_the_same_bytes(tmp_path: Path) -> None:
    images = []
    for kind in ("tgz", "squashfs"):
        (tmp_path / kind).mkdir()
        archive = web_archive(tmp_path / kind, kind)
        done = flatcar_bake("torcx", archive, "webd", cwd=tmp_path / kind)
        assert done.returncode == 0, done.stderr
        images.append((tmp_path / kind / "webd.raw").read_bytes())
    assert images[0] == images[1]


def bare(tmp_path: Path, data: bytes) -> Path:
    (tmp_path / "bad:1.torcx.tgz").write_bytes(data)
    return tmp_path / "bad:1.torcx.tgz"


def manifest(text: str) -> bytes:
    return layer(tar_entry(".torcx/manifest.json", text.encode()), tar_entry("bin/x", b"x"))


HOSTILE = {
    "dots": (layer(tar_entry("../x", b"x")), r"the entry \.\./x has a name with"),
    "hard link": (layer(hard("bin/x", "/etc/passwd")), "is no file before it"),
    "set-id": (layer(tar_entry("bin/x", b"x", mode=0o4755)), "/bin/x is a set-id program"),
    "device": (layer(tar_entry("bin/x", type=tarfile.CHRTYPE, devmajor=1, devminor=3)), "/bin/x is a device"),
    "pipe": (layer(tar_entry("bin/x", type=tarfile.FIFOTYPE)), "/bin/x of the archive is a pipe"),
    "no JSON": (manifest("{"), "is no valid JSON"),
    "other kind": (manifest('{"kind": "profile-manifest-v0", "value": {}}'), "of the kind 'profile-manifest-v0'"),
    "a list": (manifest("[]"), "of the kind 'None'"),
    "no value": (manifest('{"kind": "image-manifest-v0"}'), "lists nothing"),
    "dots in it": (manifest('{"kind": "image-manifest-v0", "value": {"bin": ["/../x"]}}'), "no absolute path"),
    "no text in it": (manifest('{"kind": "image-manifest-v0", "value": {"units": [7]}}'), "no absolute path"),
    "missing": (manifest('{"kind": "image-manifest-v0", "value": {"bin": ["/bin/y"]}}'), "/bin/y, which is not in"),
    "line break": (layer(tar_entry("etc/x\nf+ /etc/shadow", b"x")), "a name that is no plain text"),
    "no archive": (b"hello" * 200, "is no intact tar archive"),
    "file as folder": (layer(tar_entry("bin", b"x"), tar_entry("usr/bin/y", b"y")), "no folder|two files"),
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_archive_gives_nothing(tmp_path: Path, case: str) -> None:
    data, message = HOSTILE[case]
    with pytest.raises(ImageError, match=message):
        converted(bare(tmp_path, data), tmp_path / "out")


def test_links_of_an_archive_are_never_followed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "manifest.json").write_text('{"kind": "image-manifest-v0", "value": {}}')
    archive = bare(tmp_path, layer(
        link(".torcx", str(victim)), link("usr", str(victim)), link("lib", str(victim)), link("bin/x", "/etc/shadow"),
        link("etc/deep", str(victim)), tar_entry("share/y", b"y"),
    ))  # fmt: skip
    with pytest.raises(ImageError, match="two files that would be /usr"):
        converted(archive, tmp_path / "out")
    assert [path.name for path in victim.iterdir()] == ["manifest.json"]
    fine = bare(tmp_path, layer(link(".torcx", str(victim)), link("bin/x", "/etc/shadow"), link("units", "/etc")))
    made = converted(fine, tmp_path / "fine")
    assert tree(made.tree) == {"usr/bin/x": "-> /etc/shadow", "usr/share/webd/units": "-> /etc"}


def test_programs_of_two_machines_need_a_word(tmp_path: Path) -> None:
    files: dict[str, Content] = {"bin/a": stand_in("a", Arch.X86_64), "bin/b": stand_in("b", Arch.ARM64)}
    archive = make_archive(tmp_path, "two", files, None)
    with pytest.raises(ImageError, match="programs for x86-64 and arm64"):
        converted(archive, tmp_path / "out", "two")
    assert converted(archive, tmp_path / "said", "two", arch=Arch.ARM64).arch is Arch.ARM64


def test_capabilities_are_refused_or_left_out(tmp_path: Path) -> None:
    headers = {"SCHILY.xattr.security.capability": b"\x01\0\0\x02\0\x20\0\0\0\0\0\0\0\0\0\0\0\0\0\0".decode("latin-1")}
    archive = bare(tmp_path, layer(tar_entry("bin/ping", b"x", mode=0o755, pax_headers=headers)))
    with pytest.raises(ImageError, match="/bin/ping has file capabilities"):
        converted(archive, tmp_path / "out")
    made = converted(archive, tmp_path / "without", drop_capabilities=True)
    assert os.listxattr(made.tree / "usr/bin/ping") == []


def test_there_must_be_an_archive(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="There is no file"):
        converted(tmp_path / "none.torcx.tgz", tmp_path / "out")
