"""`btrfs restore` creates whatever path a directory entry spells, and still nothing outside our folder is touched.

Two things see to that: the entries are judged before it runs, and it runs without the right to write elsewhere.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from disks import MIB, make_oem
from forgeries import rename

from baker import landlock
from baker.btrfs_tree import restore, scan
from baker.errors import BakeError, ImageError

ATTACKS = ["link with a folder as its twin", "name that leads up"]
needs_landlock = pytest.mark.skipif(not landlock.version(), reason="this kernel has no Landlock")


@pytest.fixture(params=ATTACKS)
def attack(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, Path]:
    """A btrfs, and the file of the host that it overwrites when it is restored into the folder `work/tree`."""
    victim = tmp_path / "host" / "passwd"
    victim.parent.mkdir()
    victim.write_text("of the host")
    (tmp_path / "work").mkdir()
    oem = tmp_path / "oem"
    if request.param == ATTACKS[0]:
        make_oem(oem, 32 * MIB, {"/name-one": str(victim.parent), "/name-two/passwd": b"forged"})
        rename(oem, b"name-two", b"name-one")
    else:
        make_oem(oem, 32 * MIB, {"/xxxxxxhost": None, "/xxxxxxhost/passwd": b"forged"})
        rename(oem, b"xxxxxxhost", b"../../host")
    return oem, victim


def test_the_attack_works_on_the_bare_tool(attack: tuple[Path, Path], tmp_path: Path) -> None:
    """Or this file would prove nothing. When btrfs-progs refuse it one day, so much the better: then remove this."""
    oem, victim = attack
    (tmp_path / "work" / "tree").mkdir()
    # -o overwrites what is there; without it only new files are made.
    argv = ["/usr/bin/btrfs", "restore", "-S", "-o", oem, tmp_path / "work" / "tree"]
    subprocess.run(argv, capture_output=True, check=False)
    assert victim.read_text() == "forged"


def test_its_entries_are_refused(attack: tuple[Path, Path]) -> None:
    oem, victim = attack
    with pytest.raises(ImageError, match=r"malformed file name|duplicate name"):
        scan(oem)
    assert victim.read_text() == "of the host"


@needs_landlock
def test_even_restored_it_stays_inside(attack: tuple[Path, Path], tmp_path: Path) -> None:
    oem, victim = attack
    victim.unlink()  # the easier case for the attack: nothing to overwrite
    with pytest.raises(BakeError):
        restore(oem, tmp_path / "work" / "tree", {})
    assert list(victim.parent.iterdir()) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["host", "oem", "oem.tree", "work"]
