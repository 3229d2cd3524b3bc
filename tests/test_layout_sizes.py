"""Disk layouts come out at exactly the sizes that Flatcar's own builds have."""

import pytest

from baker.disk import DiskTable
from baker.errors import ImageError, UsageError
from baker.layout import describe, expected_disk_size, layout_size
from baker.model import SECTOR, Partition


def table(start: int, sectors: int, disk: int) -> DiskTable:
    root = Partition("ROOT", 9, "", "", 0, start * SECTOR, sectors * SECTOR)
    return DiskTable("", disk, (root,))


OLD = table(4857856, 4427776, 4756340736)
NEW = table(12722176, 3653632, 8455716864)


# Bytes of the published images of both generations (flatcar/scripts build_library/disk_layout.json).
@pytest.mark.parametrize(
    ("layout", "image", "disk"),
    [
        ("base", OLD, 4756340736),
        ("vm", OLD, 9116319744),
        ("azure", OLD, 32633782272),
        ("vagrant", OLD, 19818086400),
        ("base", NEW, 8455716864),
        ("vm", NEW, 13212057600),
        ("azure", NEW, 32633782272),
        ("vagrant", NEW, 23913824256),
        ("vm-new", OLD, 4756340736),
        ("vm-new", NEW, 13212057600),
    ],
)
def test_a_layout_has_the_size_of_the_published_image(layout: str, image: DiskTable, disk: int) -> None:
    assert layout_size(layout, image).disk == disk
    assert expected_disk_size(layout, 4593 if image is NEW else 4081) == disk


def test_a_larger_root_is_never_shrunk() -> None:
    large = table(4857856, 58875904, 32633782272)
    assert layout_size("vm", large).root == 58875904 * SECTOR
    assert layout_size("vm", large).disk == 32633782272


def test_generation_and_layout_are_recognised() -> None:
    assert describe(OLD) == ("old", "base")
    assert describe(NEW) == ("new", "base")
    assert describe(table(12722176, 12943360, 0)) == ("new", "vm")
    assert describe(table(2048, 5, 0)) == ("unknown", "unknown")


def test_an_unknown_layout_or_place_of_root_is_an_error() -> None:
    with pytest.raises(UsageError, match="no disk layout 'tiny'"):
        layout_size("tiny", OLD)
    with pytest.raises(ImageError, match="sector 2048"):
        layout_size("vm", table(2048, 4427776, 4756340736))
