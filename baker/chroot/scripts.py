"""Programs that are texts: what their first line needs, and whether it will be there."""

from __future__ import annotations

import re
from dataclasses import dataclass

from baker.chroot.root import Root
from baker.chroot.taking import Piece, Taken, usr_merged, without_sbin
from baker.errors import ImageError
from baker.survey.findings import OF_THE_SYSTEM

_SEARCHED = ("/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin")
_LONGEST = 256  # bytes of the first line that the kernel looks at


@dataclass(frozen=True)
class Script:
    """The first line of a script: the interpreter as it is written, and the program that is meant by it."""

    interpreter: str
    program: str
    """A path, or after /usr/bin/env a name."""


def read_script(head: bytes) -> Script | None:
    """The script whose file begins with `head`; None for any other file."""
    if not head.startswith(b"#!"):
        return None
    words = head[2:_LONGEST].partition(b"\n")[0].decode("utf-8", "replace").split()
    if not words:
        return None
    interpreter = words[0]
    if interpreter.rpartition("/")[2] == "env":
        # env's own options and assignments stand before the program.
        rest = [word for word in words[1:] if not word.startswith("-") and not re.match(r"\w+=", word)]
        return Script(interpreter, rest[0] if rest else interpreter)
    return Script(interpreter, interpreter)


def check_script(root: Root, piece: Piece, script: Script, taken: Taken) -> str:
    """Where a script's interpreter comes from, in words; ImageError when neither the sysext nor Flatcar has it.

    A script out of a folder may be an example, so for that the words say what is missing.
    """
    name = script.program.rpartition("/")[2]
    if _is_shipped(root, script.program, taken):
        return f"a script for {name}, which comes along"
    if name in OF_THE_SYSTEM:
        return f"a script for Flatcar's own {name}"
    if not piece.asked:
        return f"a script for {name}, which is neither in the sysext nor in Flatcar"
    raise ImageError(
        f"{piece.source} is a script for {script.program}, which is neither in the sysext nor in Flatcar.",
        f"Take {_path_of(root, script.program)} too, with the folders of its modules; or use flatwrap.",
    )


def _is_shipped(root: Root, program: str, taken: Taken) -> bool:
    """Whether the sysext has a program where a script asks for it."""
    if "/" not in program:
        return any(f"{folder}/{program}" in taken.pieces for folder in _SEARCHED)
    return without_sbin(usr_merged(program)) in taken.pieces


def _path_of(root: Root, program: str) -> str:
    if "/" in program:
        return root.place(program) or program
    return next((path for folder in _SEARCHED if (path := f"{folder}/{program}") and root.place(path)), program)
