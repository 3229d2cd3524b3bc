"""Landlock: one thread gives up writing and networking, and with it every program it starts from then on.

Interface: the kernel's Documentation/userspace-api/landlock.rst and linux/landlock.h; it needs no privileges.
"""

from __future__ import annotations

import ctypes
import os
import stat
import struct
from collections.abc import Iterable
from functools import cache
from pathlib import Path

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446  # the same numbers on x86-64 and arm64
_VERSION, _PATH_BENEATH = 1, 1
_NO_NEW_PRIVS = 38  # linux/prctl.h

_WRITE, _TRUNCATE, _REFER = 1 << 1, 1 << 14, 1 << 13
_REMOVE, _MAKE, _MAKE_DEVICE = 1 << 4 | 1 << 5, 1 << 7 | 1 << 8 | 1 << 9 | 1 << 10 | 1 << 12, 1 << 6 | 1 << 11
_TCP = 1 << 0 | 1 << 1

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


def _call(number: int, *arguments: int | bytes | None) -> int:
    words = [ctypes.c_long(value) if isinstance(value, int) else value for value in arguments]
    result = int(_libc.syscall(ctypes.c_long(number), *words))
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


@cache
def version() -> int:
    """The version of Landlock that this kernel offers; 0 for none."""
    try:
        return _call(_CREATE_RULESET, None, 0, _VERSION)
    except OSError:
        return 0


def restrict_thread(writable: Iterable[Path]) -> None:
    """From now on the calling thread changes no file but those at and below `writable`, and opens no TCP connection.

    The programs it starts inherit that; other threads are not affected. It cannot be undone, so use a thread that
    ends. Changes of modes, owners and times are not covered, nor is what is open already. Does nothing where the
    kernel has no Landlock.
    """
    if not version():
        return
    handled = _WRITE | _REMOVE | _MAKE | _MAKE_DEVICE
    handled |= (_REFER if version() >= 2 else 0) | (_TRUNCATE if version() >= 3 else 0)
    attributes = struct.pack("=QQ", handled, _TCP if version() >= 4 else 0)
    rules = _call(_CREATE_RULESET, attributes, len(attributes), 0)
    try:
        for path in (*writable, Path(os.devnull)):
            _allow(rules, path, handled & ~_MAKE_DEVICE)
        _libc.prctl(_NO_NEW_PRIVS, 1, 0, 0, 0)
        _call(_RESTRICT_SELF, rules, 0)
    finally:
        os.close(rules)


def _allow(rules: int, path: Path, access: int) -> None:
    file = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        if not stat.S_ISDIR(os.fstat(file).st_mode):
            access &= _WRITE | _TRUNCATE
        _call(_ADD_RULE, rules, _PATH_BENEATH, struct.pack("=Qi", access, file), 0)
    finally:
        os.close(file)
