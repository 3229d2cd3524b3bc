"""The only door to other programs: clean environment, no shell, a log, and a failure one can paste.

Children get `setpriv --pdeathsig` where the machine has it, so that a bake killed outright takes its tools with it.
"""

from __future__ import annotations

import os
import resource
import shlex
import shutil
import signal
import subprocess
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import IO, Any

from baker import landlock, stopping
from baker.errors import EnvironmentFault, ImageError

_SBIN = "/usr/local/sbin:/usr/sbin:/sbin"
_KEPT = ("HOME", "TMPDIR", "SOURCE_DATE_EPOCH", "XDG_RUNTIME_DIR")
_log_lock = threading.Lock()
_log_file: Path | None = None

# The Debian package that brings each program, for hints and `doctor`.
PACKAGES = {
    "gpg": "gnupg", "lbzip2": "lbzip2", "qemu-img": "qemu-utils",
    "qemu-system-x86_64": "qemu-system-x86", "qemu-system-aarch64": "qemu-system-arm",
    "debugfs": "e2fsprogs", "e2fsck": "e2fsprogs", "resize2fs": "e2fsprogs", "btrfs": "btrfs-progs",
    "mdir": "mtools", "fsck.vfat": "dosfstools", "blkid": "util-linux", "unsquashfs": "squashfs-tools",
    "mksquashfs": "squashfs-tools", "fsck.erofs": "erofs-utils", "mkfs.erofs": "erofs-utils", "mke2fs": "e2fsprogs",
    "systemd-repart": "systemd", "xz": "xz-utils", "zstd": "zstd", "git": "git", "podman": "podman",
    "sudo": "sudo", "xorriso": "xorriso", "grub-mkimage": "grub-common", "mkfs.vfat": "dosfstools", "mmd": "mtools",
    "mcopy": "mtools", "dnsmasq": "dnsmasq-base", "ip": "iproute2",
    "ignition-validate": "ignition", "skopeo": "skopeo",
}  # fmt: skip
ESSENTIAL = ("gpg", "qemu-img", "debugfs", "e2fsck", "resize2fs", "btrfs", "blkid", "unsquashfs")
"""The programs without which no bake works."""


class CommandFailed(EnvironmentFault):
    """A program ended with a status other than 0, or could not be started."""

    def __init__(self, argv: Sequence[str], status: int, stderr: str) -> None:
        self.argv = tuple(argv)
        self.status = status
        self.stderr = stderr
        last = "; ".join(stderr.strip().splitlines()[-6:])
        log = f" Full log: {_log_file}" if _log_file else ""
        what = f"was killed by signal {-status}" if status < 0 else f"failed with status {status}"
        super().__init__(
            f"{argv[0]} {what}{': ' + last if last else '.'}",
            f"To see it alone, run: {shlex.join(argv)}.{log}",
        )


class CommandKilled(EnvironmentFault):
    """Somebody ended a program by a signal. That says nothing about what it was working on."""

    def __init__(self, program: str, status: int) -> None:
        super().__init__(
            f"{program} was ended by {signal.Signals(-status).name}.",
            "Run it again. If nobody sent the signal, memory may have run out: see the kernel's log.",
        )


@dataclass(frozen=True)
class Bounds:
    """What a program may do at most that reads content nobody vouches for; sizes in bytes.

    No honest image comes near the defaults. They hold for each process of the program.
    """

    writable: tuple[Path, ...] = ()
    """Files and folders that it may change, where the kernel has Landlock; everything else it may only read."""
    memory: int = 8 << 30
    """Address space; every thread of a program takes its share, used or not."""
    cpu_seconds: int = 600
    file_size: int = 1 << 40
    output: int = 256 << 20
    """What it may print on stdout, and on stderr; `run` keeps that in memory."""


@dataclass(frozen=True)
class Completed:
    """A finished program: its status and what it printed."""

    argv: tuple[str, ...]
    status: int
    stdout: bytes
    stderr: str

    @property
    def text(self) -> str:
        """stdout as text; bytes that are not UTF-8 become surrogate escapes, as Python's file names do."""
        return self.stdout.decode("utf-8", "surrogateescape")


def log_to(path: Path | None) -> None:
    """Append every command and its output to `path` from now on; None stops it."""
    global _log_file
    _log_file = path


def search_path() -> str:
    """PATH with the sbin folders, which ordinary users often lack and mkfs lives in."""
    return os.environ.get("PATH", "/usr/local/bin:/usr/bin:/bin") + ":" + _SBIN


@cache
def _find(program: str, path: str) -> str | None:
    return shutil.which(program, path=path)


def find(program: str) -> str | None:
    """The absolute path of a program, or None."""
    return _find(program, search_path())


def need(program: str) -> str:
    """Like `find`; raises EnvironmentFault naming the package that brings it."""
    found = find(program)
    if found is None:
        package = PACKAGES.get(program, program)
        raise EnvironmentFault(
            f"The program {program} is not installed.",
            f"Install it, on Debian: apt-get install {package}. `flatcar-bake doctor` lists all tools.",
        )
    return found


def clean_environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """A small, predictable environment for a child."""
    env = {name: os.environ[name] for name in _KEPT if name in os.environ}
    env |= {"PATH": search_path(), "LANG": "C.UTF-8", "LC_ALL": "C.UTF-8", "TZ": "UTC"}
    return env | dict(extra or {})


def _command(argv: Sequence[str | os.PathLike[str]], bounds: Bounds | None) -> list[str]:
    words = [os.fspath(word) for word in argv]
    words = [*(_limiting(bounds) if bounds else []), need(words[0]), *words[1:]]
    setpriv = find("setpriv")
    # An own process group is not enough: SIGKILL to us reaches no child. The kernel's parent-death signal does.
    return [setpriv, "--pdeathsig", "KILL", "--", *words] if setpriv else words


def _limiting(bounds: Bounds) -> list[str]:
    """The words that set resource limits before a command; where ours are lower already, they stay."""
    prlimit = find("prlimit")
    if prlimit is None:
        return []
    words = [prlimit, "--core=0"]
    for option, kind, most in (
        ("as", resource.RLIMIT_AS, bounds.memory), ("cpu", resource.RLIMIT_CPU, bounds.cpu_seconds),
        ("fsize", resource.RLIMIT_FSIZE, bounds.file_size),
    ):  # fmt: skip
        # The kernel kills at the hard limit of CPU time, so that is later: a kill is somebody else's.
        wanted = most, most + (kind == resource.RLIMIT_CPU)
        soft, hard = (
            most if own == resource.RLIM_INFINITY else min(most, own)
            for most, own in zip(wanted, resource.getrlimit(kind), strict=True)
        )
        words.append(f"--{option}={soft}:{hard}")
    return [*words, "--"]


def _log(words: Sequence[str], status: int | None, stderr: str) -> None:
    if _log_file is None:
        return
    with _log_lock, _log_file.open("a", encoding="utf-8", errors="backslashreplace") as log:
        log.write(f"$ {shlex.join(words)}\n{stderr}{'' if stderr.endswith(chr(10)) or not stderr else chr(10)}")
        log.write(f"-> {status}\n")


def run(
    argv: Sequence[str | os.PathLike[str]],
    *,
    input: bytes | None = None,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    ok: Iterable[int] = (0,),
    pass_fds: Sequence[int] = (),
    bounds: Bounds | None = None,
) -> Completed:
    """Run a program to its end and return what it printed; `bounds` are for untrusted content.

    Raises CommandFailed when its status is not in `ok`, EnvironmentFault when it is not installed or somebody ended
    it (CommandKilled), ImageError when it hits its bounds.
    """
    words = [os.fspath(word) for word in argv]
    with _started(
        argv, bounds, stdin=subprocess.PIPE if input is not None else subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=clean_environment(env), cwd=cwd, pass_fds=pass_fds,
    ) as process:  # fmt: skip
        try:
            stdout, stderr_bytes = _exchange(process, input, bounds.output) if bounds else process.communicate(input)
        except BaseException:
            _stop(process)
            raise
    stderr = stderr_bytes.decode("utf-8", "backslashreplace")
    _log(words, process.returncode, stderr)
    _check_bounds(words[0], process.returncode, bounds, max(len(stdout), len(stderr_bytes)))
    check_killed(words[0], process.returncode)
    if process.returncode not in tuple(ok):
        raise CommandFailed(words, process.returncode, stderr or stdout[-4000:].decode("utf-8", "backslashreplace"))
    return Completed(tuple(words), process.returncode, stdout, stderr)


@contextmanager
def _started(
    argv: Sequence[str | os.PathLike[str]], bounds: Bounds | None, **options: Any
) -> Iterator[subprocess.Popen[bytes]]:
    """Start a program within `bounds`. The block must see to its end."""
    command = _command(argv, bounds)
    stopping.check()
    if bounds is None:
        process = subprocess.Popen(command, **options)
        with stopping.told(process):
            yield process
        return

    def start() -> subprocess.Popen[bytes]:
        landlock.restrict_thread(bounds.writable)
        return subprocess.Popen(command, **options)

    # The restriction stays with the thread that starts the program, and that thread must live as long as the program:
    # the parent-death signal comes when it ends.
    with ThreadPoolExecutor(1) as thread:
        process = thread.submit(start).result()
        with stopping.told(process):
            yield process


def _exchange(process: subprocess.Popen[bytes], input: bytes | None, most: int) -> tuple[bytes, bytes]:
    """Like `communicate`, but a program that prints more than `most` bytes is killed; one byte more is returned."""

    def take(stream: IO[bytes]) -> bytes:
        data = bytearray()
        while chunk := stream.read(min(1 << 16, most + 1 - len(data))):
            data += chunk
        if len(data) > most:
            process.kill()
        return bytes(data)

    assert process.stdout is not None and process.stderr is not None
    with ThreadPoolExecutor(2) as readers, process.stdout, process.stderr:
        try:
            taken = [readers.submit(take, stream) for stream in (process.stdout, process.stderr)]
            if process.stdin is not None:
                try:
                    with process.stdin:
                        process.stdin.write(input or b"")
                except BrokenPipeError:
                    pass  # it needs no more
            stdout, stderr = (one.result() for one in taken)
            process.wait()
        except BaseException:
            _stop(process)  # before the readers are waited for, which read to the end
            raise
    return stdout, stderr


def _check_bounds(program: str, status: int, bounds: Bounds | None, printed: int) -> None:
    if bounds is None:
        return
    if printed > bounds.output:
        reason = f"printed more than {bounds.output} bytes"
    elif status == -signal.SIGXCPU:
        reason = f"ran for more than {bounds.cpu_seconds} s"
    elif status == -signal.SIGXFSZ:
        reason = f"wrote a file of more than {bounds.file_size} bytes"
    else:
        return
    raise ImageError(
        f"{program} was stopped because it {reason} over this image.", "The image is damaged or made to do harm."
    )


def check_killed(program: str, status: int) -> None:
    """CommandKilled when a program's exit status is a signal that somebody sent, rather than a crash of its own."""
    if -status in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGKILL, signal.SIGTERM):
        raise CommandKilled(program, status)


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End a child for good: TERM, a moment to clean up, KILL."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def program_version(tool: tuple[str, str]) -> str:
    """The first line that a program prints with the argument that asks for its version; "" where it is missing."""
    if not find(tool[0]):
        return ""
    result = run(tool, ok=range(256))
    lines = (result.text + result.stderr).strip().splitlines()
    return lines[0].strip() if lines else "unknown"


@contextmanager
def spawn(
    argv: Sequence[str | os.PathLike[str]],
    *,
    stdin: int | IO[bytes] | None = subprocess.DEVNULL,
    stdout: int | IO[bytes] | None = subprocess.PIPE,
    stderr: int | IO[bytes] | None = subprocess.PIPE,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    pass_fds: Sequence[int] = (),
    bounds: Bounds | None = None,
) -> Iterator[subprocess.Popen[bytes]]:
    """Start a program to talk to while it runs; it is stopped at the latest when the block ends.

    Its status is the caller's to check. `bounds` are for untrusted content; how much is read is up to the caller.
    """
    words = [os.fspath(word) for word in argv]
    with _started(
        argv, bounds, stdin=stdin, stdout=stdout, stderr=stderr,
        env=clean_environment(env), cwd=cwd, pass_fds=pass_fds,
    ) as process:  # fmt: skip
        try:
            yield process
        finally:
            _stop(process)
            for stream in (process.stdin, process.stdout, process.stderr):
                if stream is not None and not stream.closed:
                    try:
                        stream.close()
                    except BrokenPipeError:
                        pass
            _log(words, process.returncode, "")
