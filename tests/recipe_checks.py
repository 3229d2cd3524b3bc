"""What tests look at in the extensions that recipes make: their files, and what systemd thinks of their units."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
from collections.abc import Collection, Mapping
from pathlib import Path

from programs import MACHINES

from baker.contents import open_contents
from baker.extension_release import RELEASE_FOLDER
from baker.model import Arch
from baker.recipe.build import Built
from baker.run import run
from baker.sysext import builtins_replaced

# Programs of Flatcar that units of ours run.
SYSTEM_PROGRAMS = (
    "chmod", "cp", "kill", "ln", "mkdir", "modprobe", "rm", "rsync", "sh", "systemctl", "systemd-sysusers",
    "systemd-tmpfiles", "test", "touch",
)  # fmt: skip
UNIT_FOLDERS = ("usr/lib/systemd/system", "usr/local/lib/systemd/system")
UNIT_SUFFIXES = (".service", ".socket", ".timer", ".path", ".mount", ".target", ".slice")


def programs(folder: str, *names: str) -> dict[str, str]:
    """Programs in a folder, as `listing` has them."""
    return {f"{folder}/{name}": "x" for name in names}


def texts(*paths: str) -> dict[str, str]:
    """Files that are no programs, as `listing` has them."""
    return dict.fromkeys(paths, "")


def upheld(unit: str, target: str = "multi-user.target") -> dict[str, str]:
    """The drop-in that starts a unit, as `listing` has it."""
    return texts(f"/{UNIT_FOLDERS[0]}/{target}.d/10-{unit.replace('.', '-')}.conf")


def listing(image: Path) -> dict[str, str]:
    """The files of an extension by path, without its extension-release: "x" executable, "" other, or a link's text."""
    with open_contents(image) as opened:
        assert opened.contents, opened.why_not
        contents = opened.contents
        return {
            path: contents.link(path) if node.kind == "symlink" else "x" if node.mode & 0o111 else ""
            for path, node in contents.nodes.items()
            if node.kind in ("file", "symlink") and not path.startswith(RELEASE_FOLDER)
        }


def unpack(image: Path, folder: Path) -> Path:
    """The files of a squashfs image, in a new folder."""
    run(["unsquashfs", "-q", "-n", "-d", folder, image])
    return folder


def wrong_machines(tree: Path, arch: Arch) -> dict[str, int]:
    """The ELF files of a tree that are not for `arch`, and what they are for (e_machine of elf(5))."""
    found = {}
    for path in tree.rglob("*"):
        if path.is_symlink() or not path.is_file():
            continue
        with path.open("rb") as file:
            header = file.read(20)
        if header[:4] == b"\x7fELF":
            found[str(path.relative_to(tree))] = struct.unpack_from("<H", header, 18)[0]
    return {path: machine for path, machine in found.items() if machine != MACHINES[arch]}


def system_root(folder: Path) -> Path:
    """A folder that passes for the root of a system: this machine's units, and Flatcar's programs by name."""
    (folder / "usr/bin").mkdir(parents=True)
    shutil.copytree("/usr/lib/systemd/system", folder / "usr/lib/systemd/system", symlinks=True)
    for name in ("bin", "lib"):
        (folder / name).symlink_to(f"usr/{name}")
    for name in SYSTEM_PROGRAMS:
        program = folder / "usr/bin" / name
        program.touch()
        program.chmod(0o755)
    return folder


def units(tree: Path) -> list[str]:
    """The names of the units that a tree ships."""
    found = [path for folder in UNIT_FOLDERS for path in (tree / folder).glob("*.*") if path.is_file()]
    return sorted(path.name for path in found if path.suffix in UNIT_SUFFIXES)


def verify_units(root: Path, *trees: Path) -> str:
    """What systemd has to say about the units of the first tree, with all trees merged into `root`; "" is praise."""
    for tree in trees:
        shutil.copytree(tree, root, symlinks=True, dirs_exist_ok=True)
    names = [name.replace("@.", "@instance.") for name in units(trees[0])]
    if not names:
        return ""
    result = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", f"--root={root}", *names],
        capture_output=True, text=True, env={**os.environ, "SYSTEMD_LOG_LEVEL": "warning"},
    )  # fmt: skip
    return result.stderr + (f"status {result.returncode}" if result.returncode else "")


def check(
    made: Built, contents: Mapping[str, str], folder: Path, known: Collection[str] = (), beside: Path | None = None
) -> Path:
    """What must be true of every extension; returns its files, unpacked into `folder`.

    `contents` is as `listing` has it, `known` are the codes of findings that are right, and `beside` holds the files
    of another extension that the units name.
    """
    assert listing(made.path) == contents
    assert {finding.code for finding in made.findings} == set(known)
    assert builtins_replaced(made.path, None) == set(made.request.recipe.replaces)
    tree = unpack(made.path, folder / "tree")
    assert wrong_machines(tree, made.request.arch) == {}
    assert verify_units(system_root(folder / "root"), tree, *([beside] if beside else [])) == ""
    return tree
