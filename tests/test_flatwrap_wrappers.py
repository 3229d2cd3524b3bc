"""flatwrap's wrappers run programs in their root filesystem as if nothing were between: as root and as a user."""

from __future__ import annotations

import json
import os
import pty
import shutil
import signal
import subprocess
from pathlib import Path

import chroots
import pytest
from cli import flatcar_bake
from programs import debian, stand_in
from recipe_checks import listing
from test_flix_debian import on_a_terminal

from baker.chroot.flatwrap import FlatwrapRequest, flatwrap
from baker.chroot.view import Mapping
from baker.contents import open_contents
from baker.errors import ImageError, UsageError
from baker.model import Arch

WAYS = {"root": ("", False), "bwrap": ("", True), "user namespace": ("NOBWRAP=1", True)}
APPLETS = ("sh", "cat", "env", "echo", "id", "kill", "ls", "pwd", "readlink", "sleep", "test", "tool", "touch")


def small_root(folder: Path) -> Path:
    """A root filesystem with a busybox, under several names."""
    root = folder / "root"
    for name in ("usr/bin", "usr/lib", "etc", "var/lib", "home", "opt", "srv", "proc", "dev", "tmp"):
        (root / name).mkdir(parents=True)
    shutil.copy(debian("busybox-static") / "bin/busybox", root / "usr/bin/busybox")
    for name in APPLETS:
        (root / "usr/bin" / name).symlink_to("busybox")
    (root / "bin").symlink_to("usr/bin")
    (root / "etc/os-release").write_text("ID=small\n")
    (root / "var/lib/state").write_text("of the image\n")
    (root / "usr/bin/script").write_text('#!/bin/sh\nfor word; do echo "<$word>"; done\n')
    (root / "usr/bin/script").chmod(0o755)
    return root


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_root(tmp_path_factory.mktemp("small"))


def wrap(folder: Path, root: Path, *paths: str, **mapping: object) -> Path:
    """Run flatwrap; returns the tree."""
    request = FlatwrapRequest(root, "small", paths, None, Mapping(**mapping))  # type: ignore[arg-type]
    # A user must be able to reach what a sysext would have in /usr.
    for parent in [folder, *folder.parents][:-2]:
        if parent.stat().st_mode & 0o005 != 0o005:
            parent.chmod(parent.stat().st_mode | 0o055)
    return flatwrap(request, folder / "tree").tree


@pytest.fixture(scope="module")
def tree(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    paths = [f"/usr/bin/{name}:/usr/bin/small-{name}" for name in (*APPLETS, "script")]
    return wrap(tmp_path_factory.mktemp("wrapped"), root, *paths)


def command(tree: Path, way: str, *words: str) -> list[str | Path]:
    """The command that runs a wrapper in one of the WAYS."""
    variable, user = WAYS[way]
    return chroots.merged(tree, *(("env", variable) if variable else ()), *words, user=user)


def run(tree: Path, way: str, *words: str, **options: object) -> subprocess.CompletedProcess[str]:
    settings: dict[str, object] = {"capture_output": True, "text": True, "timeout": 120, **options}
    return subprocess.run(command(tree, way, *words), **settings)  # type: ignore[call-overload,no-any-return]


@pytest.mark.parametrize("way", WAYS)
def test_arguments_arrive_as_they_are(way: str, tree: Path) -> None:
    words = ["", "two words", "quo\"te'", "back\\slash", "$HOME", "`id`", "*", "--", "-n", "line\nbreak", "ünï"]
    said = run(tree, way, "small-script", *words)
    assert said.returncode == 0, said.stderr
    assert said.stdout == "".join(f"<{word}>\n" for word in words)


@pytest.mark.parametrize("way", WAYS)
def test_input_output_status_and_environment_pass_through(way: str, tree: Path) -> None:
    script = 'cat; echo "to stderr" >&2; echo "$WORD"; exit 37'
    said = run(tree, way, "small-sh", "-c", script, input="from stdin\n", env=os.environ | {"WORD": "a  b"})
    assert (said.returncode, said.stdout, said.stderr) == (37, "from stdin\na  b\n", "to stderr\n")


@pytest.mark.parametrize("way", WAYS)
def test_who_where_and_devices(way: str, tree: Path) -> None:
    number = "0" if way == "root" else str(chroots.AS_NOBODY[1].partition("=")[2])
    said = run(tree, way, "small-sh", "-c", "id -u; id -g; pwd; echo x >/dev/null; ls -d /usr/bin/bash", cwd="/tmp")
    assert said.stdout.splitlines() == [number, number, "/tmp"]
    assert "/usr/bin/bash" in said.stderr, "/usr is the system's"
    # A folder that only the system has does not exist in there.
    said = run(tree, way, "small-pwd", cwd="/usr/share")
    assert (said.returncode, said.stdout) in ((0, "/\n"), (0, f"{os.environ.get('HOME', '/')}\n"))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP])
def test_signals_reach_the_program(way: str, number: signal.Signals, tree: Path) -> None:
    name = number.name.removeprefix("SIG")
    script = f'trap "echo caught; exit 5" {name}; echo ready; while :; do sleep 0.1; done'
    with subprocess.Popen(
        command(tree, way, "small-sh", "-c", script), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        assert process.stdout.read() == "caught\n"
        assert process.wait(60) == 5


@pytest.mark.parametrize("way", WAYS)
def test_a_killed_wrapper_takes_the_program_along(way: str, tree: Path) -> None:
    with subprocess.Popen(
        command(tree, way, "small-sh", "-c", "echo ready; while :; do sleep 0.1; done"),
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.kill()
        assert process.stdout.read() == "", "the program would keep its output open"


@pytest.mark.parametrize("way", WAYS)
def test_a_program_that_dies_of_a_signal_says_so(way: str, tree: Path) -> None:
    status = run(tree, way, "small-sh", "-c", "kill -SEGV $$").returncode
    assert status in (-signal.SIGSEGV, 128 + signal.SIGSEGV)


@pytest.mark.parametrize("way", WAYS)
def test_control_c_on_a_terminal_is_told_once(way: str, tree: Path) -> None:
    script = 'trap "echo caught" INT; echo ready; sleep 1; sleep 1; sleep 1; echo over'
    wanted = command(tree, way, "small-sh", "-c", script)
    ours, theirs = pty.openpty()
    # setsid --ctty: the terminal is its own, so that ^C goes to the whole group.
    with subprocess.Popen(["setsid", "--ctty", *wanted], stdin=theirs, stdout=theirs, stderr=theirs) as process:
        os.close(theirs)
        said = b""
        while b"ready" not in said:
            said += os.read(ours, 4096)
        os.write(ours, b"\x03")
        try:
            while chunk := os.read(ours, 4096):
                said += chunk
        except OSError:
            pass  # the end of a terminal
        assert process.wait(60) == 0
    os.close(ours)
    assert said.count(b"caught") == 1 and b"over" in said


def test_scripts_are_clean(tree: Path) -> None:
    scripts = [tree / f"usr/local/small/{name}" for name in ("enter", "inside")]
    subprocess.run(["shellcheck", *scripts, tree / "usr/bin/small-sh"], check=True)


@pytest.mark.parametrize("way", WAYS)
def test_a_link_is_called_by_its_own_name(way: str, tree: Path) -> None:
    assert run(tree, way, "small-echo", "hello").stdout == "hello\n"


@pytest.mark.parametrize("way", WAYS)
def test_etc_var_and_home_come_from_either_side(way: str, root: Path, tmp_path: Path) -> None:
    look = "cat /etc/os-release; cat /var/lib/state; ls -d /root /home"
    host = wrap(tmp_path, root, "/usr/bin/sh:/usr/bin/small-sh")
    assert "ID=small" not in run(host, way, "small-sh", "-c", look).stdout
    shutil.rmtree(tmp_path / "tree")
    image = wrap(tmp_path, root, "/usr/bin/sh:/usr/bin/small-sh", etc="chroot", var="chroot", home="chroot")
    said = run(image, way, "small-sh", "-c", look)
    assert said.stdout.startswith("ID=small\nof the image\n/")
    assert "/root" in said.stderr, "the image has none"


@pytest.mark.parametrize("way", WAYS)
def test_lists_say_more(way: str, root: Path, tmp_path: Path) -> None:
    """Paths of the system within the image's, and of the image within the system's; missing ones are left out."""
    own = shutil.copytree(root, tmp_path / "root", symlinks=True)
    (own / "etc/hostname").touch()
    tree = wrap(
        tmp_path, own, "/usr/bin/sh:/usr/bin/small-sh", etc="chroot",
        host=("/proc", "/dev", "/etc/hostname", "/usr/share", "/no/such/folder"), chroot=("/bin", "/etc"),
    )  # fmt: skip
    said = run(tree, way, "small-sh", "-c", "cat /etc/hostname /etc/os-release; ls -d /usr/share/zoneinfo /tmp")
    assert Path("/etc/hostname").read_text() in said.stdout and "ID=small" in said.stdout
    assert "/usr/share/zoneinfo" in said.stdout and "/tmp" in said.stderr


def test_units_links_and_data(root: Path, tmp_path: Path) -> None:
    own = shutil.copytree(root, tmp_path / "root", symlinks=True)
    (own / "usr/share/data").mkdir(parents=True)
    (own / "usr/share/data/file").write_text("data\n")
    (own / "usr/sbin").mkdir()
    (own / "usr/sbin/daemon").symlink_to("../bin/busybox")
    (own / "usr/lib/systemd/system").mkdir(parents=True)
    unit = "[Service]\nExecStart=/usr/sbin/daemon sleep\nExecStop=/usr/sbin/daemon-not\n"
    (own / "usr/lib/systemd/system/d.service").write_text(unit)
    tree = wrap(tmp_path, own, "/usr/sbin/daemon", "/usr/share/data", "/usr/lib/systemd/system/d.service")
    assert (tree / "usr/share/data/file").read_text() == "data\n"
    assert os.readlink(tree / "usr/share/data") == "../local/small/rootfs/usr/share/data"
    adapted = (tree / "usr/lib/systemd/system/d.service").read_text()
    assert adapted == unit.replace("/usr/sbin/daemon sleep", "/usr/bin/daemon sleep")
    assert not (tree / "usr/lib/systemd/system/d.service").is_symlink()
    assert not (tree / "usr/sbin").exists()


def test_modes_do_not_depend_on_the_umask(root: Path, tmp_path: Path) -> None:
    found = []
    for umask in (0o022, 0o077):
        before = os.umask(umask)
        try:
            tree = wrap(tmp_path, root, "/usr/bin/sh", etc="chroot", chroot=("/usr/bin",), host=("/etc/new/deep",))
        finally:
            os.umask(before)
        listed = ["find", ".", "-printf", "%p %m\\n"]
        found.append(subprocess.run(listed, cwd=tree, check=True, capture_output=True, text=True).stdout)
        shutil.rmtree(tree)
    assert found[0] == found[1]
    assert "./usr/local/small/rootfs/etc/new/deep 755\n" in found[0]


def test_what_is_left_out_is_told(root: Path, tmp_path: Path) -> None:
    own = shutil.copytree(root, tmp_path / "root", symlinks=True)
    shutil.copy(own / "usr/bin/busybox", own / "usr/bin/su")
    (own / "usr/bin/su").chmod(0o4755)
    os.mkfifo(own / "usr/lib/pipe")
    (own / "usr/lib/secret").write_text("")
    (own / "usr/lib/secret").chmod(0o600)
    request = FlatwrapRequest(own, "small", ("/usr/bin/sh",))
    made = flatwrap(request, tmp_path / "tree")
    assert made.notes == [
        "left out the set-id bit of /usr/bin/su",
        "left out devices, pipes and sockets: /usr/lib/pipe",
    ]
    rootfs = made.tree / "usr/local/small/rootfs"
    assert (rootfs / "usr/bin/su").stat().st_mode & 0o7777 == 0o755
    assert (rootfs / "usr/lib/secret").stat().st_mode & 0o7777 == 0o600
    assert not (rootfs / "usr/lib/pipe").exists()
    with pytest.raises(ImageError, match="/usr/bin/su is a set-id program"):
        flatwrap(FlatwrapRequest(own, "small", ("/usr/bin/su",)), tmp_path / "other")


@pytest.mark.parametrize(
    ("mapping", "paths", "error", "message"),
    [
        ({"etc": "both"}, (), UsageError, "--etc cannot be 'both'"),
        ({"host": ("../etc",)}, (), UsageError, "is no absolute path"),
        ({"chroot": ("/nothing",)}, (), UsageError, "has no /nothing"),
        ({}, ("/usr/bin/foreign",), ImageError, "/usr/bin/foreign is for arm64"),
        ({"chroot": ("/usr/lib",)}, (), ImageError, "not in the part of the root filesystem"),
        ({"etc": "chroot", "host": ("/etc/deep/file",)}, (), ImageError, "lies behind a link"),
    ],
)
def test_what_cannot_work_is_refused(
    mapping: dict[str, object],
    paths: tuple[str, ...],
    error: type[Exception],
    message: str,
    root: Path,
    tmp_path: Path,
) -> None:
    own = shutil.copytree(root, tmp_path / "root", symlinks=True)
    (own / "usr/bin/foreign").write_bytes(stand_in("foreign", Arch.ARM64))
    (own / "usr/bin/foreign").chmod(0o755)
    (own / "etc/deep").symlink_to("/usr/lib")
    with pytest.raises(error, match=message):
        wrap(tmp_path, own, "/usr/bin/sh", *paths, **mapping)


def test_a_link_is_no_place_to_mount_on(root: Path, tmp_path: Path) -> None:
    """An absolute link in the image would lead the mount to a path of the system."""
    own = shutil.copytree(root, tmp_path / "root", symlinks=True)
    (own / "etc/hostname").symlink_to("/etc/passwd")
    tree = wrap(tmp_path, own, "/usr/bin/sh:/usr/bin/small-sh", etc="chroot", host=("/etc/hostname", "/proc", "/dev"))
    place = tree / "usr/local/small/rootfs/etc/hostname"
    assert place.is_file() and not place.is_symlink()
    said = run(tree, "root", "small-sh", "-c", "cat /etc/hostname")
    assert said.stdout == Path("/etc/hostname").read_text()


def test_htop_on_a_terminal(tmp_path: Path) -> None:
    """A real program of Debian that draws, as a user."""
    tree = wrap(tmp_path, chroots.debian(), "/usr/bin/htop:/usr/bin/small-htop", etc="chroot")
    wanted = chroots.merged(tree, "env", "TERM=linux", "small-htop", user=True)
    assert b"Load average" in on_a_terminal(wanted, b"Load average", b"q")


def test_the_command_knows_the_old_variables(root: Path, tmp_path: Path) -> None:
    env = {
        "ETCMAP": "chroot", "VARMAP": "host", "HOMEMAP": "chroot", "CHROOT": "/usr /bin", "HOST": "/dev /proc /run",
        "OS": "flatcar", "RELOAD": "1", "FORMAT": "erofs",
    }  # fmt: skip
    done = flatcar_bake("flatwrap", root, "small", "/usr/bin/sh:/usr/bin/small-sh", "--json", env=env, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["arch"] == "x86-64"
    found = listing(tmp_path / "small.raw")
    assert found["/usr/bin/small-sh"] == "x" and "/usr/local/small/rootfs/etc/os-release" in found
    with open_contents(tmp_path / "small.raw") as opened:
        assert opened.contents
        inside = opened.contents.read("/usr/local/small/inside", 1 << 16).decode()
        release = opened.contents.read("/usr/lib/extension-release.d/extension-release.small", 4096).decode()
    lines = [line for line in inside.splitlines() if line.startswith(("host ", "image "))]
    assert lines == [
        "host /dev", "image /etc", "image /home", "host /proc", "host /run", "image /usr", "host /var",
    ]  # fmt: skip
    assert release == "ID=flatcar\nSYSEXT_LEVEL=1.0\nARCHITECTURE=x86-64\nEXTENSION_RELOAD_MANAGER=1\n"
    done = flatcar_bake("flatwrap", root, "small", "/usr/bin/sh", "--etc", "no", env=env, cwd=tmp_path)
    assert done.returncode == 2 and "--etc cannot be 'no'" in done.stderr


@pytest.mark.parametrize(("way", "parent"), [("bwrap", True), ("user namespace", False), ("root", False)])
def test_bwrap_is_used_by_users_who_have_it(way: str, parent: bool, tree: Path) -> None:
    said = run(tree, way, "small-sh", "-c", "cat /proc/$PPID/comm")
    assert (said.stdout == "bwrap\n") == parent
