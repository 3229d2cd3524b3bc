"""An ordinary user edits images through sudo: their own, and nothing else."""

from __future__ import annotations

import codecs
import os
import pty
import pwd
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NoReturn

import pytest
from disks import make_disk
from loops import HELPER, Talk, assert_nothing_left, left_behind, make_ext4, mounting, needs_loop

from baker import helper
from baker.errors import EnvironmentFault
from baker.helper_client import Helper, identity
from baker.model import Injection
from baker.privilege import LoopEditor, loop_available
from baker.sparse import clone

pytestmark = needs_loop

USER = pwd.getpwnam("nobody")
RULE = f"{USER.pw_name} ALL=(root) NOPASSWD: {' '.join(HELPER)}\n"
MS_PRIVATE = 1 << 18  # linux/mount.h
codecs.lookup("utf-16-le")  # the GPT reader's; a child cannot load it from a Python in root's home
SUDO = {"SUDO_UID": str(USER.pw_uid), "SUDO_GID": str(USER.pw_gid), "SUDO_USER": USER.pw_name}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_disk(tmp_path_factory.mktemp("base") / "disk.raw")


@pytest.fixture
def home() -> Iterator[Path]:
    """A folder of the user's; pytest's own are closed to them."""
    with TemporaryDirectory() as folder:
        os.chown(folder, USER.pw_uid, USER.pw_gid)
        yield Path(folder)


def as_user(work: Callable[[], None], rule: str = "") -> int:
    """Run `work` in a child that belongs to the user; returns its exit status (a signal's number is negative)."""
    return wait(start_as_user(work, rule))


def start_as_user(work: Callable[[], None], rule: str = "") -> int:
    """Fork a child that belongs to the user and finds only `rule` in sudoers.d; returns its process id."""
    child = os.fork()
    if not child:
        os.setsid()  # no terminal: sudo cannot ask
        _work_as_user(work, rule)
    return child


def start_on_terminal(work: Callable[[], None], rule: str = "") -> tuple[int, int]:
    """Like `start_as_user`, on a terminal of its own; returns the process id and the other end of the terminal."""
    child, terminal = pty.fork()
    if not child:
        _work_as_user(work, rule)
    return child, terminal


def _work_as_user(work: Callable[[], None], rule: str) -> NoReturn:
    try:
        _write_rule(rule)
        os.setgroups([])
        os.setgid(USER.pw_gid)
        os.setuid(USER.pw_uid)
        sys.executable = HELPER[0]  # the user could not resolve a link in a folder of root's
        work()
        os._exit(0)
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        os._exit(1)


def _write_rule(rule: str) -> None:
    """Show this process and its children another /etc/sudoers.d; the real one is never touched."""
    helper._call(helper._libc.unshare, helper.CLONE_NEWNS)
    helper._call(helper._libc.mount, "none", "/", None, helper.MS_REC | MS_PRIVATE, None)
    helper._call(helper._libc.mount, "none", "/etc/sudoers.d", "tmpfs", 0, "mode=755")
    Path("/etc/sudoers.d/test").write_text(rule)
    os.chmod("/etc/sudoers.d/test", 0o440)


def read_until(terminal: int, wanted: bytes) -> bytes:
    """What a terminal shows, up to `wanted` or to the end of the last process on it."""
    shown = b""
    while wanted not in shown:
        try:
            shown += os.read(terminal, 4096)
        except OSError:
            break
    return shown


def wait(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def copy(base: Path, target: Path) -> Path:
    clone(base, target)
    return target


def users(image: Path) -> Path:
    os.chown(image, USER.pw_uid, USER.pw_gid)
    return image


def test_a_user_edits_an_own_image_through_sudo(home: Path, base: Path) -> None:
    disk = users(copy(base, home / "disk.raw"))

    def work() -> None:
        assert os.geteuid() == USER.pw_uid
        assert loop_available() is None
        with Helper() as own, LoopEditor(disk, home, 0, own) as editor:
            for label in ("ROOT", "OEM"):
                editor.apply(label, [Injection("/etc/name", content=bytes(3 << 20), uid=5)])
                assert editor.tree(label, "/etc/name")["/etc/name"].uid == 5

    assert as_user(work, RULE) == 0
    assert (disk.stat().st_uid, disk.stat().st_gid) == (USER.pw_uid, USER.pw_gid)
    assert_nothing_left(disk)


def test_killing_the_user_s_process_ends_the_helper_behind_sudo(home: Path) -> None:
    image = users(make_ext4(home / "image"))

    def work() -> None:
        from test_loop_cleanup import partition_of

        with Helper() as own, own.mounted(image, identity(image.stat()), partition_of(image), readonly=False):
            (home / "mounted").touch()
            time.sleep(60)

    child = start_as_user(work, RULE)
    while not (home / "mounted").exists():
        assert os.waitpid(child, os.WNOHANG) == (0, 0)
        time.sleep(0.02)
    assert left_behind(image)
    os.kill(child, signal.SIGKILL)
    assert wait(child) == -signal.SIGKILL
    assert_nothing_left(image)


def test_on_a_terminal_contents_pass_sudo_unchanged(home: Path, base: Path) -> None:
    """sudo runs its command on a terminal of its own there, which must not come between the pipes."""
    disk = users(copy(base, home / "disk.raw"))
    content = bytes(range(256)) * 4096

    def work() -> None:
        with Helper() as own, LoopEditor(disk, home, 0, own) as editor:
            editor.apply("ROOT", [Injection("/etc/name", content=content)])
            assert editor.read("ROOT", "/etc/name") == content

    child, terminal = start_on_terminal(work, RULE)
    shown = read_until(terminal, b"never shown")
    assert (wait(child), shown) == (0, b"")
    os.close(terminal)


def test_sudo_asks_on_the_terminal_only_when_allowed() -> None:
    def work() -> None:
        assert loop_available() == "The privileged helper does not run: sudo: a password is required."
        os.write(1, b"not asked\n")
        loop_available(ask=True)

    child, terminal = start_on_terminal(work)
    shown = read_until(terminal, b"password for ")
    os.kill(child, signal.SIGKILL)
    assert wait(child) == -signal.SIGKILL
    assert shown.startswith(b"not asked")
    assert b"[sudo] password for " in shown
    os.close(terminal)


def test_without_the_rule_sudo_s_refusal_is_the_reason(capfd: pytest.CaptureFixture[str]) -> None:
    def work() -> None:
        reason = loop_available()
        print(reason, flush=True)
        assert reason
        with Helper():
            pass

    assert as_user(work) == 1
    out, err = capfd.readouterr()
    assert out.startswith("The privileged helper does not run: sudo: ")
    assert err.startswith("EnvironmentFault: The privileged helper does not run: sudo: ")


def test_no_sudo_at_all_is_an_environment_fault(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("baker.run._SBIN", os.fspath(tmp_path))
    monkeypatch.setenv("PATH", os.fspath(tmp_path))

    def work() -> None:
        with pytest.raises(EnvironmentFault, match="sudo is not installed") as fault, Helper():
            pass
        assert "--backend offline" in str(fault.value.hint)

    assert as_user(work) == 0


@pytest.mark.parametrize(
    ("mode", "allowed"), [(0o600, False), (0o644, False), (0o664, False), (0o646, True), (0o666, True)]
)
def test_only_images_the_user_may_write_are_opened(home: Path, mode: int, allowed: bool) -> None:
    image = make_ext4(home / "image")  # root's
    image.chmod(mode)
    with Talk(SUDO) as talk:
        assert talk.ask(mounting(image)).get("error") == (None if allowed else "image-denied")


def test_groups_of_the_user_count(home: Path) -> None:
    image = make_ext4(home / "image")
    os.chown(image, 0, USER.pw_gid)
    image.chmod(0o660)
    with Talk(SUDO) as talk:
        assert "error" not in talk.ask(mounting(image))


def test_an_image_in_a_folder_closed_to_the_user_is_not_opened(home: Path) -> None:
    (home / "closed").mkdir(mode=0o700)
    image = users(make_ext4(home / "closed" / "image"))
    with Talk(SUDO) as talk:
        assert talk.ask(mounting(image))["error"] == "image-denied"


def test_links_devices_and_folders_are_no_images(home: Path) -> None:
    image = users(make_ext4(home / "image"))
    (home / "link").symlink_to(image)
    os.mkfifo(home / "fifo")
    os.mknod(home / "device", 0o60666, os.makedev(7, 0))
    os.chmod(home / "device", 0o666)
    request = mounting(image)
    with Talk(SUDO) as talk:
        for name in ("link", "fifo", "device", "."):
            assert talk.ask({**request, "image": f"{home}/{name}"})["error"] in ("image-denied", "image-changed")
        assert "error" not in talk.ask(request)


def test_another_file_than_the_one_seen_is_refused(home: Path) -> None:
    image, other = users(make_ext4(home / "image")), users(make_ext4(home / "other"))
    with Talk(SUDO) as talk:
        assert talk.ask({**mounting(image), "image": str(other)})["error"] == "image-changed"
        assert talk.ask(mounting(image, owner=0))["error"] == "image-changed"
        assert talk.ask(mounting(image, device=0))["error"] == "image-changed"
        assert "error" not in talk.ask(mounting(image))


@pytest.mark.parametrize(
    "changed", [{"SUDO_UID": "nobody"}, {"SUDO_UID": "-1"}, {"SUDO_GID": ""}, {"SUDO_USER": "\n"}]
)
def test_a_garbled_sudo_environment_opens_nothing(home: Path, changed: dict[str, str]) -> None:
    image = make_ext4(home / "image")
    with Talk({**SUDO, **changed}) as talk:
        assert "error" in talk.ask(mounting(image))
    with Talk({"SUDO_UID": "0"}) as talk:
        assert talk.ask(mounting(image))["error"] == "image-denied"


def test_nothing_from_the_user_s_environment_is_imported(home: Path) -> None:
    (home / "json.py").write_text("raise SystemExit('imported from the user')\n")
    done = subprocess.run(
        HELPER, cwd=home, env={"PYTHONPATH": os.fspath(home), "PYTHONSTARTUP": os.fspath(home / "json.py")},
        input=b'{"op": "hello"}\n', capture_output=True, check=True,
    )  # fmt: skip
    assert done.stdout == b'{"protocol": 1, "payload": 0}\n'
