"""flix on real software of Debian, run in a system that has nothing but the sysext."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import chroots
from chroots import alone
from cli import flatcar_bake
from recipe_checks import listing, unpack

from baker.chroot.flix import FlixRequest, flix

LOADER = "ld-linux-x86-64.so.2"


def take(folder: Path, name: str, *paths: str) -> Path:
    """Run flix on the Debian; returns the tree."""
    return flix(FlixRequest(chroots.debian(), name, paths), folder / name).tree


def libraries(tree: Path, name: str) -> set[str]:
    return {path.name for path in (tree / "usr/local" / name).iterdir()}


def test_nginx_serves_a_page(tmp_path: Path) -> None:
    tree = take(tmp_path, "web", "/usr/sbin/nginx", "/srv/web:/usr/share/web")
    assert {LOADER, "libc.so.6", "libssl.so.3", "libcrypto.so.3", "libpcre2-8.so.0"} <= libraries(tree, "web")
    assert "text/html" in (tree / "usr/share/web/mime.types").read_text(), "a link to /etc became a copy"
    port, conf = free_port(), tree / "usr/share/web/nginx.conf"
    conf.write_text(conf.read_text().replace(f":{chroots.PORT}", f":{port}"))
    users = {chroots.debian() / "etc" / name: f"/etc/{name}" for name in ("passwd", "group")}
    nginx = ("/usr/bin/nginx", "-e", "stderr", "-c", "/usr/share/web/nginx.conf")
    tested = alone(tree, *nginx, "-t", binds=users)
    assert tested.returncode == 0 and "test is successful" in tested.stderr
    command = chroots.alone_command(tree, *nginx, "-g", "daemon off;", binds=users)
    with subprocess.Popen(command, stdin=subprocess.DEVNULL) as server:
        try:
            assert fetch(f"http://127.0.0.1:{port}/") == chroots.PAGE
        finally:
            server.kill()


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def fetch(url: str) -> str:
    """A page of a server that is about to start."""
    deadline = time.monotonic() + 60
    while True:
        try:
            with urllib.request.urlopen(url, timeout=30) as answer:
                return str(answer.read().decode())
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


def test_htop_draws_with_its_own_terminfo(tmp_path: Path) -> None:
    tree = take(tmp_path, "htop", "/usr/bin/htop", "/usr/lib/terminfo")
    assert {LOADER, "libncursesw.so.6", "libtinfo.so.6"} <= libraries(tree, "htop")
    assert "Error opening terminal" in alone(take(tmp_path, "bare", "/usr/bin/htop"), "/usr/bin/htop").stderr
    assert b"Load average" in on_a_terminal(chroots.alone_command(tree, "/usr/bin/htop"), b"Load average", b"q")


def on_a_terminal(command: list[str | Path], wanted: bytes, then: bytes) -> bytes:
    """What a program draws on a terminal until `wanted` is there; `then` is typed to end it."""
    ours, theirs = pty.openpty()
    drawn, deadline = b"", time.monotonic() + 60
    with subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True) as program:
        os.close(theirs)
        while wanted not in drawn and time.monotonic() < deadline:
            if select.select([ours], [], [], 1)[0]:
                try:
                    drawn += os.read(ours, 1 << 16)
                except OSError:  # the program is gone
                    break
        os.write(ours, then)
        try:
            program.wait(10)
        except subprocess.TimeoutExpired:
            program.kill()
    os.close(ours)
    return drawn


PYTHON = """
import ctypes, curses, lzma, sqlite3, ssl, sys, yaml
ssl.create_default_context()
with open("/proc/self/maps") as maps:
    files = {line.split()[-1] for line in maps if ".so" in line or "python" in line.split()[-1]}
print(sys.version_info[:2], sorted(files))
"""


def test_python_loads_its_modules_with_their_libraries(tmp_path: Path) -> None:
    tree = take(
        tmp_path, "py", "/usr/bin/python3", "/usr/lib/python3.11",
        "/usr/lib/python3/dist-packages/yaml", "/usr/lib/python3/dist-packages/_yaml",
    )  # fmt: skip
    assert os.readlink(tree / "usr/bin/python3") == "python3.11"
    # What its modules need, and the interpreter itself does not.
    assert {"libssl.so.3", "libsqlite3.so.0", "liblzma.so.5", "libyaml-0.so.2"} <= libraries(tree, "py")
    said = alone(tree, "/usr/bin/python3", "-c", PYTHON)
    assert said.returncode == 0, said.stderr
    assert "(3, 11)" in said.stdout and "/usr/local/py/libyaml-0.so.2" in said.stdout


def test_a_musl_program_and_its_library(tmp_path: Path) -> None:
    tree = take(tmp_path, "greet", "/usr/bin/greet")
    assert libraries(tree, "greet") == {"ld-musl-x86_64.so.1", "libgreeting.so"}
    said = alone(tree, "/usr/bin/greet")
    # It loads the library by name as well, and ends with 1 where that fails.
    assert (said.returncode, said.stdout) == (0, "hello from musl\n"), said.stderr


def test_the_command_makes_an_image_and_says_what_is_in_it(tmp_path: Path) -> None:
    words = ("/usr/bin/greet", "/usr/bin/busybox:/usr/bin/busybox-too", "/etc/systemd/system/web.service:"
             "/usr/lib/systemd/system/web.service", "/usr/sbin/nginx")  # fmt: skip
    env = {"OS": "flatcar", "FORMAT": "squashfs", "ARCH": "amd64", "EXTRALIBS": "libz.so.1 libm.so.6"}
    done = flatcar_bake(
        "flix", chroots.debian(), "mix", *words, "--unit-enable", "web.service", "--json", env=env, cwd=tmp_path
    )
    # The program is musl's, nginx is glibc's; nothing of them has the same name.
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["arch"] == "x86-64" and said["files"][0]["path"] == "mix.raw"
    reasons = {item["path"]: item["why"] for item in said["taken"]}
    assert reasons["/usr/local/mix/libgreeting.so"] == "needed by /usr/bin/greet"
    found = listing(tmp_path / "mix.raw")
    assert "/usr/local/mix/extralibs/libz.so.1" in found
    assert "/usr/lib/systemd/system/multi-user.target.d/10-web-service.conf" in found
    tree = unpack(tmp_path / "mix.raw", tmp_path / "tree")
    release = (tree / "usr/lib/extension-release.d/extension-release.mix").read_text()
    assert release == "ID=flatcar\nSYSEXT_LEVEL=1.0\nARCHITECTURE=x86-64\nEXTENSION_RELOAD_MANAGER=1\n"
    assert "ExecStart=/usr/bin/nginx " in (tree / "usr/lib/systemd/system/web.service").read_text()
    assert alone(tree, "/usr/bin/busybox-too", "echo", "hello").stdout == "hello\n"


def test_the_command_fails_before_anything_is_written(tmp_path: Path) -> None:
    for words, code in (
        (("/usr/bin/greet", "--arch", "arm64"), 6),
        (("/usr/bin/greet", "--unit-enable", "none.service"), 2),
        (("/usr/bin/nothing",), 2),
        (("/usr/bin/su",), 6),
    ):
        done = flatcar_bake("flix", chroots.debian(), "tool", *words, cwd=tmp_path)
        assert done.returncode == code and "error: " in done.stderr, done.stderr
        assert list(tmp_path.iterdir()) == []


def test_a_folder_instead_of_an_image(tmp_path: Path) -> None:
    words = ("flix", chroots.debian(), "greet", "/usr/bin/greet", "--dir-only", "-q")
    assert flatcar_bake(*words, cwd=tmp_path).stdout == "greet\n"
    assert alone(tmp_path / "greet", "/usr/bin/greet").stdout == "hello from musl\n"
    again = flatcar_bake(*words, cwd=tmp_path)
    assert again.returncode == 2 and "greet exists" in again.stderr
    assert flatcar_bake(*words, "--force", cwd=tmp_path).returncode == 0
    packed = flatcar_bake("sysext", "pack", "greet", cwd=tmp_path)
    assert packed.returncode == 0, packed.stderr
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/letter").write_text("dear")
    other = flatcar_bake(*words, "--force", "--output", "mine", cwd=tmp_path)
    assert other.returncode == 2 and (tmp_path / "mine/letter").exists()


def test_the_same_programs_give_the_same_bytes(tmp_path: Path) -> None:
    digests = set()
    for umask in (0o022, 0o077):
        before = os.umask(umask)
        try:
            done = flatcar_bake(
                "flix", chroots.debian(), "greet", "/usr/bin/greet", "/usr/bin/htop", "--json", "-f", cwd=tmp_path
            )
        finally:
            os.umask(before)
        digests.add(json.loads(done.stdout)["files"][0]["sha256"])
    assert len(digests) == 1


def test_an_interrupted_command_leaves_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "baker", "flatwrap", chroots.debian(), "all", "/usr/bin/htop"]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 60
        while not list(tmp_path.glob(".flatcar-bake-*/tree/usr")) and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
    assert list(tmp_path.iterdir()) == []
