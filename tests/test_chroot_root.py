"""Paths in a root filesystem mean what they mean to a process that has it for its root: the kernel is the judge."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from baker.chroot.root import Root
from baker.errors import UsageError

# Opens each path in a chroot without following more than the kernel does, and tells where that led.
JUDGE = """
import json, os, sys
root, paths = sys.argv[1], json.load(sys.stdin)
fds = os.open("/proc/self/fd", os.O_PATH)
os.chroot(root)
os.chdir("/")
found = {}
for path in paths:
    try:
        fd = os.open(path, os.O_PATH)
    except OSError:
        found[path] = None
        continue
    found[path] = os.readlink(str(fd), dir_fd=fds)
    os.close(fd)
print(json.dumps(found))
"""
NAMES = ("a", "b", "c", "usr")


def plant(root: Path, chance: random.Random) -> None:
    """Folders, files, and links of every kind: relative, absolute, climbing, to nowhere, in circles."""
    folders = [root]
    for _ in range(12):
        folder = chance.choice(folders) / chance.choice(NAMES)
        if not os.path.lexists(folder):
            folder.mkdir()
            folders.append(folder)
    for _ in range(25):
        place = chance.choice(folders) / chance.choice((*NAMES, "d", "e"))
        if os.path.lexists(place):
            continue
        if chance.random() < 0.3:
            place.touch()
        else:
            words = [chance.choice((*NAMES, "d", "e", "..", ".")) for _ in range(chance.randint(1, 5))]
            place.symlink_to(chance.choice(("", "/", "../../../")) + "/".join(words))


@pytest.mark.parametrize("seed", range(8))
def test_paths_lead_where_the_kernel_says(seed: int, tmp_path: Path) -> None:
    chance = random.Random(seed)
    (tmp_path / "root").mkdir()
    plant(tmp_path / "root", chance)
    (tmp_path / "a").mkdir()  # beside it, for links that climb
    words = (*NAMES, "d", "e", "..", ".")
    paths = ["/" + "/".join(chance.choice(words) for _ in range(chance.randint(1, 6))) for _ in range(400)]
    judge = subprocess.run(
        [sys.executable, "-c", JUDGE, tmp_path / "root"], input=json.dumps(paths), capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    root = Root(tmp_path / "root")
    assert {path: root.resolve(path) for path in paths} == json.loads(judge.stdout)


def test_the_place_of_a_link_is_its_own(tmp_path: Path) -> None:
    (tmp_path / "usr/bin").mkdir(parents=True)
    (tmp_path / "bin").symlink_to("usr/bin")
    (tmp_path / "usr/bin/awk").symlink_to("/etc/alternatives/awk")
    root = Root(tmp_path)
    assert root.place("/bin/awk") == "/usr/bin/awk"
    assert root.resolve("/bin/awk") is None
    assert root.place("/bin/none") is None
    assert root.place("/bin/..") == "/usr"


def test_a_root_is_a_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for name, message in (("file", "is not a folder"), ("none", "does not exist")):
        with pytest.raises(UsageError, match=message):
            Root(tmp_path / name)
