"""The privileged half of the loop backend: one file, standard library only, run as `sudo -- python -I -S helper.py`.

It mounts a partition of a disk image, edits files inside it, unmounts it, and can do nothing else. docs/security.md
has the threat model; what this file promises is:

- It speaks JSON lines on stdin and stdout, one answer per request. A `write` is followed by `payload` raw bytes,
  the answer to a `read` by `payload` raw bytes. Whatever breaks the framing ends it.
- Its life is the pipe: at the end of stdin it unmounts, detaches and exits; signals from the terminal are ignored.
- It lives in a private mount namespace and its loop devices clear themselves, so the kernel cleans up even after
  SIGKILL: the namespace dies with its last process, the mount with the namespace, the loop device with the mount.
- The only host file it opens is the image, with the rights of the user who called sudo. Contents come by the pipe.
- Inside the image every path is walked one name at a time without following links, so no image leads out of itself.

It imports nothing of the package. Answers carry an error code and a path; privilege.py makes the sentences.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import hashlib
import json
import os
import select
import signal
import stat
import struct
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

PROTOCOL = 1
CHUNK, MAX_LINE, MAX_NODES, MAX_PATH = 1 << 20, 1 << 16, 1 << 17, 1 << 12

# The filesystems we mount at all, and how. The superblock of a hostile image may ask for errors=panic, so say
# otherwise; noinit_itable keeps the kernel from filling the sparse image with zeroed inode tables meanwhile.
FILESYSTEMS = {"ext4": "errors=remount-ro,noinit_itable", "btrfs": ""}

# Covered in our own namespace only, while no host path is opened. It exists everywhere: nothing is left to remove.
MOUNTPOINT = "/tmp"  # noqa: S108

# linux/loop.h, linux/sched.h, linux/mount.h
LOOP_CTL_GET_FREE, LOOP_CONFIGURE, LO_READ_ONLY, LO_AUTOCLEAR = 0x4C82, 0x4C0A, 1, 4
LOOP_CONFIG = struct.Struct("=II5Q4I64s64s32s2Q8Q")  # struct loop_config around struct loop_info64
CLONE_NEWNS = 1 << 17
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_NOATIME = 1, 2, 4, 8, 1 << 10
MS_REC, MS_SILENT, MS_SLAVE = 1 << 14, 1 << 15, 1 << 19

SAFE = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
KINDS = {stat.S_IFREG: "file", stat.S_IFDIR: "directory", stat.S_IFLNK: "symlink"}
Message = dict[str, Any]


class Refusal(Exception):
    """A request that is not carried out: a code for the parent, details for people, the path it concerns."""


OPERATIONS = {
    "hello": (),
    "mount": ("image", "device", "inode", "owner", "offset", "size", "fstype", "readonly"),
    "list": ("path", "deep"),
    "read": ("path", "limit"),
    "space": (),
    "mkdir": ("path", "mode", "uid", "gid", "mtime"),
    "write": ("path", "mode", "uid", "gid", "mtime", "replace", "payload"),
    "symlink": ("path", "text", "uid", "gid", "mtime", "replace"),
    "umount": (),
}
FLAGS = ("readonly", "deep", "replace")
# Numbers and their largest value. A mode has no room for the setuid and setgid bits.
NUMBERS = {"device": 1 << 64, "inode": 1 << 64, "owner": 1 << 32, "offset": 1 << 62, "size": 1 << 62, "limit": 1 << 30,
           "mode": 0o1777, "uid": 0xFFFF_FFFE, "gid": 0xFFFF_FFFE, "mtime": 1 << 33, "payload": 1 << 40}  # fmt: skip


def valid(name: str, value: object) -> bool:
    """Whether `value` may be given for the field `name`.

    A path inside the image is `/` or plain: absolute, no `.`, `..`, `//`, trailing slash or control character.
    """
    if name in NUMBERS:
        return type(value) is int and 0 <= value <= NUMBERS[name]
    if name in FLAGS:
        return type(value) is bool
    if not isinstance(value, str) or not value or "\0" in value:
        return False
    if name == "fstype":
        return value in FILESYSTEMS
    if name == "path" and value != "/":
        plain = all(part not in ("", ".", "..") for part in value[1:].split("/"))
        return value.startswith("/") and plain and not any(ord(letter) < 32 or letter == "\x7f" for letter in value)
    return name == "text" or value.startswith("/")


def check(request: Message) -> None:
    """Refuse all but a known operation with exactly its fields and every value in range."""
    operation = request.get("op")
    if not isinstance(operation, str) or operation not in OPERATIONS:
        raise Refusal("argument", "unknown operation")
    fields = OPERATIONS[operation]
    if set(request) != {"op", *fields}:
        raise Refusal("argument", f"{operation} takes exactly: {', '.join(fields) or 'nothing'}")
    for name in fields:
        if not valid(name, request[name]):
            raise Refusal("argument", f"{name} of {operation} is out of range")


_libc = ctypes.CDLL(None, use_errno=True)
_libc.mount.argtypes = [ctypes.c_char_p] * 3 + [ctypes.c_ulong, ctypes.c_char_p]


def _call(function: Callable[..., int], *arguments: object) -> None:
    """Call a function of libc that Python does not have; OSError when it fails."""
    if function(*(argument.encode() if isinstance(argument, str) else argument for argument in arguments)) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


@contextmanager
def _closing(fd: int) -> Iterator[int]:
    try:
        yield fd
    finally:
        os.close(fd)


def open_image(path: str) -> int:
    """Open the image for writing with the rights of the user who called sudo; root's own where there is no sudo."""
    groups = os.getgroups()
    try:
        if "SUDO_UID" in os.environ:
            gid = int(os.environ["SUDO_GID"])
            os.initgroups(os.environ["SUDO_USER"], gid)
            os.setegid(gid)
            os.seteuid(int(os.environ["SUDO_UID"]))
        return os.open(path, os.O_RDWR | SAFE)
    except (OSError, KeyError) as error:
        raise Refusal("image-denied", str(error)) from error
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups(groups)


def check_image(image: int, request: Message) -> None:
    """Refuse an image that is not the file the parent saw, or that another helper edits: two mounts destroy it."""
    found = os.fstat(image)
    seen = (request["device"], request["inode"], request["owner"])
    if not stat.S_ISREG(found.st_mode) or (found.st_dev, found.st_ino, found.st_uid) != seen:
        raise Refusal("image-changed", "it is not the regular file it was")
    if not 0 < request["size"] <= found.st_size - request["offset"]:
        raise Refusal("argument", "the partition lies outside the image")
    try:  # the loop device holds this lock as long as it lives
        fcntl.flock(image, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise Refusal("image-busy", error.strerror or "") from error


def attach(image: int, offset: int, size: int, readonly: bool) -> tuple[int, str]:
    """Bind a free loop device, which clears itself with its last user; returns its descriptor and path."""
    flags = LO_AUTOCLEAR | (LO_READ_ONLY if readonly else 0)
    config = LOOP_CONFIG.pack(image, 0, 0, 0, 0, offset, size, 0, 0, 0, flags, b"", b"", b"", *[0] * 10)
    with _closing(os.open("/dev/loop-control", os.O_RDWR | os.O_CLOEXEC)) as control:
        for _ in range(100):
            path = f"/dev/loop{fcntl.ioctl(control, LOOP_CTL_GET_FREE)}"
            loop = os.open(path, (os.O_RDONLY if readonly else os.O_RDWR) | os.O_CLOEXEC)
            try:
                fcntl.ioctl(loop, LOOP_CONFIGURE, config)
                return loop, path
            except OSError as error:
                os.close(loop)
                if error.errno != errno.EBUSY:  # busy: another process took the free device before we did
                    raise
    raise OSError(errno.EBUSY, "others took every free loop device")


def mount(image: int, request: Message) -> int:
    """Mount the requested partition of an open image; returns a descriptor of its root directory."""
    readonly, fstype = request["readonly"], request["fstype"]
    flags = MS_NOSUID | MS_NODEV | MS_NOEXEC | MS_NOATIME | MS_SILENT | (MS_RDONLY if readonly else 0)
    try:
        loop, device = attach(image, request["offset"], request["size"], readonly)
    except OSError as error:
        raise Refusal("no-loop", str(error)) from error
    try:
        with _closing(loop):
            _call(_libc.mount, device, MOUNTPOINT, fstype, flags, FILESYSTEMS[fstype])
    except OSError as error:
        codes = {errno.ENODEV: "no-driver", errno.EPERM: "no-mount", errno.EEXIST: "image-busy"}
        raise Refusal(codes.get(error.errno or 0, "bad-filesystem"), str(error.strerror)) from error
    return os.open(MOUNTPOINT, os.O_DIRECTORY | SAFE)


class Session:
    """Talks to the parent about at most one mounted partition."""

    def __init__(self) -> None:
        self._image = self._root = -1
        self._payload = 0

    def serve(self) -> None:
        """Answer requests until the end of the pipe (EOFError)."""
        while True:
            request = self._request()
            try:
                check(request)
                if (request["op"] in ("hello", "mount")) != (self._root < 0):
                    raise Refusal("order", "a partition is mounted" if self._root >= 0 else "nothing is mounted")
                answer: Message = getattr(self, "do_" + request["op"])(request) or {}
            except Refusal as refusal:
                answer = dict(zip(("error", "detail", "path"), refusal.args, strict=False))
            except (OSError, ValueError) as error:  # ValueError: a name that no encoding fits
                codes = {errno.ENOSPC: "no-space", errno.EDQUOT: "no-space", errno.ENOENT: "absent"}
                answer = {"error": codes.get(getattr(error, "errno", 0), "io"), "detail": str(error)}
            for _ in self._content():
                pass  # what a refused request left in the pipe
            data = answer.pop("data", b"")
            sys.stdout.buffer.write(json.dumps(answer | {"payload": len(data)}).encode() + b"\n" + data)
            sys.stdout.buffer.flush()

    def _request(self) -> Message:
        """The next request, decoded but unchecked."""
        line = sys.stdin.buffer.readline(MAX_LINE)
        if not line:
            raise EOFError
        try:
            request = json.loads(line)
        except (ValueError, RecursionError):
            request = None
        # How many raw bytes follow must be known even when the request is then refused.
        if not isinstance(request, dict) or not valid("payload", request.get("payload", 0)):
            sys.exit("helper: what came is not a request")
        self._payload = request.get("payload", 0)
        return request

    def _content(self) -> Iterator[bytes]:
        """What is left of the raw bytes after the request; EOFError when the parent died in the middle."""
        while self._payload:
            chunk = sys.stdin.buffer.read(min(self._payload, CHUNK))
            if not chunk:
                raise EOFError
            self._payload -= len(chunk)
            yield chunk

    def _still_wanted(self) -> None:
        """EOFError once the parent is gone: it says nothing while it waits, so anything to read is its end."""
        if select.select([0], [], [], 0)[0]:
            raise EOFError

    def do_hello(self, request: Message) -> Message:
        return {"protocol": PROTOCOL}

    def do_mount(self, request: Message) -> None:
        self._image = open_image(request["image"])
        try:
            check_image(self._image, request)
            self._root = mount(self._image, request)
        except BaseException:
            self.do_umount()
            raise

    def do_umount(self, _: Message | None = None) -> None:
        """Undo what there is of a mount."""
        root, image = self._root, self._image
        self._root = self._image = -1
        if image < 0:
            return
        with _closing(image):
            if root >= 0:
                try:
                    with _closing(root):
                        _call(_libc.syncfs, root)
                finally:
                    _call(_libc.umount2, MOUNTPOINT, 0)
                os.fsync(image)  # write errors of the loop device surface here

    def do_list(self, request: Message) -> Message:
        """The node at a path and, when `deep`, all below it; in no promised order."""
        with self._parent(request["path"]) as (parent, name):
            nodes = [self._node(parent, name, request["path"])]
        for node in nodes:  # grows meanwhile
            if request["deep"] and node["kind"] == "directory":
                with _closing(self._directory(node["path"])) as fd:
                    nodes += [self._node(fd, name, f"{node['path'].rstrip('/')}/{name}") for name in os.listdir(fd)]
            if len(nodes) > MAX_NODES or len(node["path"]) > MAX_PATH:
                raise Refusal("too-large", f"more than {MAX_NODES} entries, or paths of more than {MAX_PATH} letters")
        return {"nodes": nodes}

    def do_read(self, request: Message) -> Message:
        with self._parent(request["path"]) as (parent, name):
            if not stat.S_ISREG(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode):
                raise Refusal("absent")
            with open(os.open(name, SAFE, dir_fd=parent), "rb") as file:
                return {"data": file.read(request["limit"])}

    def do_space(self, request: Message) -> Message:
        space = os.fstatvfs(self._root)
        free, total = space.f_bfree * space.f_frsize, space.f_blocks * space.f_frsize
        return {"free": free, "total": total, "inodes": space.f_ffree if space.f_files else None}

    def do_mkdir(self, request: Message) -> None:
        with self._place(request) as (parent, name):
            os.mkdir(name, 0o700, dir_fd=parent)

    def do_symlink(self, request: Message) -> None:
        with self._place(request) as (parent, name):
            os.symlink(request["text"], name, dir_fd=parent)

    def do_write(self, request: Message) -> None:
        create = os.O_WRONLY | os.O_CREAT | os.O_EXCL | SAFE
        with self._place(request) as (parent, name), open(os.open(name, create, 0o600, dir_fd=parent), "wb") as file:
            for chunk in self._content():
                file.write(chunk)
            file.flush()
            os.fsync(file.fileno())

    def _directory(self, path: str) -> int:
        """Open a directory inside the image, walking down without following a link or leaving the filesystem."""
        fd, walked = os.dup(self._root), ""
        device = os.fstat(fd).st_dev
        for name in filter(None, path.split("/")):
            walked += f"/{name}"
            try:
                with _closing(fd):
                    fd = os.open(name, os.O_DIRECTORY | SAFE, dir_fd=fd)
            except OSError as error:
                if error.errno in (errno.ENOTDIR, errno.ELOOP):
                    raise Refusal("not-directory", "", walked) from error
                raise
            if os.fstat(fd).st_dev != device:
                os.close(fd)
                raise Refusal("not-directory", "another filesystem", walked)
        return fd

    @contextmanager
    def _parent(self, path: str) -> Iterator[tuple[int, str]]:
        """Yield (directory, name) of a path; the root is the entry `.` of itself."""
        folder, _, name = path.rpartition("/")
        with _closing(self._directory(folder)) as parent:
            yield parent, name or "."

    @contextmanager
    def _place(self, request: Message) -> Iterator[tuple[int, str]]:
        """Yield (directory, name) for a new entry, then give it owner, mode and time; the directory keeps its times.

        A file or link that may be replaced is removed first.
        """
        with self._parent(request["path"]) as (parent, name):
            before = os.fstat(parent)
            try:
                kind = stat.S_IFMT(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode)
                if not request.get("replace") or kind not in (stat.S_IFREG, stat.S_IFLNK):
                    raise Refusal("exists")
                os.unlink(name, dir_fd=parent)
            except FileNotFoundError:
                pass
            yield parent, name
            os.chown(name, request["uid"], request["gid"], dir_fd=parent, follow_symlinks=False)
            if "mode" in request:  # follows links, but this is what we have just made, and nobody else is here
                os.chmod(name, request["mode"], dir_fd=parent)
            os.utime(name, (request["mtime"],) * 2, dir_fd=parent, follow_symlinks=False)
            os.utime(parent, ns=(before.st_atime_ns, before.st_mtime_ns))

    def _node(self, parent: int, name: str, path: str) -> Message:
        self._still_wanted()
        found = os.stat(name, dir_fd=parent, follow_symlinks=False)
        kind = KINDS.get(stat.S_IFMT(found.st_mode), "other")
        node = {"path": path, "kind": kind, "mode": stat.S_IMODE(found.st_mode), "uid": found.st_uid,
                "gid": found.st_gid, "size": found.st_size, "mtime": int(found.st_mtime),
                "allocated": found.st_blocks * 512, "links": found.st_nlink}  # fmt: skip
        if kind == "symlink":
            node["symlink"] = os.readlink(name, dir_fd=parent)
        elif kind == "file":  # nothing but regular files is ever opened, so no device acts, no fifo blocks
            digest = hashlib.sha256()
            with open(os.open(name, SAFE, dir_fd=parent), "rb") as file:
                while chunk := file.read(CHUNK):
                    self._still_wanted()  # a sparse file can be read for days
                    digest.update(chunk)
            node["sha256"] = digest.hexdigest()
        return node


def main() -> None:
    """Serve until the parent is gone; whatever happens, unmount and detach."""
    for ignored in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(ignored, signal.SIG_IGN)
    os.umask(0o077)
    _call(_libc.unshare, CLONE_NEWNS)
    _call(_libc.mount, "none", "/", None, MS_REC | MS_SLAVE, None)  # what the host unmounts must not stay busy here
    session = Session()
    try:
        session.serve()
    except (EOFError, BrokenPipeError):
        pass  # the parent ended, in order or not
    finally:
        session.do_umount()


if __name__ == "__main__":
    main()
