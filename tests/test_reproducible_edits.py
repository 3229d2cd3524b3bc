"""The same edits of the same disk give the same bytes, also where they replace what is there or enlarge ROOT."""

import os
import time
from pathlib import Path

import pytest
from disks import MIB, VM_DISK_BYTES, VM_ROOT_BYTES, make_disk

from baker.disk import grow_root
from baker.model import Injection
from baker.offline import OfflineEditor
from baker.sparse import clone, file_sha256

EPOCH = 1_700_000_000


@pytest.fixture
def pristine(tmp_path: Path) -> Path:
    return make_disk(tmp_path / "disk.img", oem_files={"/grub.cfg": b"old\n", "/sysext/old.raw": b"o" * 5000})


def edited(pristine: Path, folder: Path, source: Path) -> str:
    """The sha256 of a disk after everything that a bake may do to it."""
    folder.mkdir()
    disk = folder / "disk.img"
    clone(pristine, disk)
    grow_root(disk, VM_ROOT_BYTES, VM_DISK_BYTES["old"], folder)
    with OfflineEditor(disk, folder, EPOCH) as editor:
        for text in (b"first\n", b"second\n"):
            editor.apply(
                "ROOT",
                [
                    Injection("/opt/extensions/x/x.raw", source=source, replace=True),
                    Injection("/etc/extensions/x.raw", symlink="/opt/extensions/x/x.raw", replace=True),
                    Injection("/etc/x.conf", content=text, replace=True),
                ],
            )
            editor.apply(
                "OEM", [Injection("/grub.cfg", content=text, replace=True), Injection(f"/{text.decode()[:3]}/x")]
            )
    return file_sha256(disk)


def test_edits_do_not_depend_on_time_folder_or_umask(pristine, tmp_path):
    source = tmp_path / "source"
    source.write_bytes(os.urandom(20 * MIB + 7))
    first = edited(pristine, tmp_path / "one", source)
    time.sleep(1.1)
    usual = os.umask(0o077)
    try:
        assert edited(pristine, tmp_path / ("another" * 9), source) == first
    finally:
        os.umask(usual)
