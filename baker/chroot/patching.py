"""Telling ELF files where their dynamic linker and their libraries are, by patchelf."""

from __future__ import annotations

import os
import sysconfig
from collections.abc import Sequence
from pathlib import Path

from baker.chroot.root import file_elf
from baker.errors import ImageError
from baker.run import Bounds, need, run


def patchelf() -> str:
    """The program: that of the Python package beside us, else the system's; EnvironmentFault where there is none."""
    own = Path(sysconfig.get_path("scripts"), "patchelf")
    return str(own) if os.access(own, os.X_OK) else need("patchelf")


def patch(file: Path, interpreter: str, folders: Sequence[str]) -> None:
    """Let a file use the dynamic linker `interpreter` ("": as before) and look for libraries in `folders` alone.

    They are written as DT_RPATH, which counts for what is loaded later as well, and before LD_LIBRARY_PATH.
    Raises ImageError when the result is not as it was asked for.
    """
    before = file_elf(file)
    assert before is not None
    words = ["--set-interpreter", interpreter] if interpreter else []
    words += ["--force-rpath", "--set-rpath", ":".join(folders), "--no-default-lib"]
    run([patchelf(), *words, file], bounds=Bounds(writable=(file.parent,)))
    after = file_elf(file)
    if (
        after is None
        or after.needed != before.needed
        or after.interpreter != (interpreter or before.interpreter)
        or after.rpath != tuple(folders)
        or after.runpath
    ):
        raise ImageError(f"patchelf did not patch {file.name} as it was told.", "Its format is unusual: use flatwrap.")
