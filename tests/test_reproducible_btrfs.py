"""The OEM partition's btrfs is ours to the last byte: sound to btrfs-progs and the kernel, and always the same."""

import hashlib
import itertools
import os
import stat
import subprocess
from pathlib import Path
from uuid import UUID

import pytest
from disks import MIB, tool

from baker.btrfs_tree import read_super, scan
from baker.btrfs_writer import BtrfsFull, BtrfsNode, capacity, write_btrfs
from baker.crc32c import START, crc32c, crc32c_blocks
from baker.sparse import file_sha256

UUID_ = UUID("7d6c22f0-3a5e-4c55-bb4d-3a6d1f0b6c11")
EPOCH = 1_700_000_000
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")


def directory(mode: int = 0o755) -> BtrfsNode:
    return BtrfsNode(stat.S_IFDIR | mode, 0, 0, EPOCH)


def file(source: Path, **changes: int) -> BtrfsNode:
    values = {"mode": 0o644, "uid": 0, "gid": 0, "mtime": EPOCH} | changes
    values["mode"] |= stat.S_IFREG
    return BtrfsNode(**values, source=source)


@pytest.fixture
def nodes(tmp_path: Path) -> dict[str, BtrfsNode]:
    """Enough to need trees of several levels, extents in several block groups, and colliding names."""
    content = tmp_path / "content"
    content.mkdir()
    (content / "large").write_bytes(os.urandom(1 << 20) * 70 + b"end")
    (content / "empty").touch()
    (content / "block").write_bytes(b"b" * 4096)
    found = {
        "/": directory(),
        "/a b": directory(0o1777),
        "/a b/large": file(content / "large"),
        "/empty": file(content / "empty", mode=0o4755, uid=500, gid=600),
        "/link": BtrfsNode(stat.S_IFLNK | 0o777, 0, 0, EPOCH, symlink=b"a b/large"),
        "/noted": BtrfsNode(
            stat.S_IFREG | 0o600, 0, 0, 1, source=content / "block", xattrs={b"user.a": b"1\0\n", b"user.b": b""}
        ),
        "/many": directory(),
    }
    for number in range(2500):
        found[f"/many/{number}-{'x' * (number % 200)}"] = file(content / "block")
    for number, name in enumerate(colliding_names()):
        found[f"/{name}"] = file(content / "block", mtime=number)
    return found


def colliding_names() -> list[str]:
    """Two names with the same hash, by which directories are sorted."""
    seen: dict[int, str] = {}
    for number in itertools.count():
        name = hashlib.sha256(str(number).encode()).hexdigest()[:16]
        value = crc32c(name.encode(), 0xFFFF_FFFE)
        if value in seen:
            return [seen[value], name]
        seen[value] = name
    raise AssertionError("unreachable")


@pytest.mark.parametrize("size", [96 * MIB, 128 * MIB, 1024 * MIB])
def test_btrfs_progs_find_no_fault_and_all_that_was_asked_for(tmp_path, nodes, size):
    write_btrfs(tmp_path / "fs", size, UUID_, "OEM", nodes)
    assert (tmp_path / "fs").stat().st_size == size
    tool("btrfs", "check", "--check-data-csum", tmp_path / "fs")
    found = read_super(tmp_path / "fs")
    assert (found.uuid, found.label, found.total_bytes, found.devices) == (UUID_, "OEM", size, 1)
    entries = scan(tmp_path / "fs")
    assert entries.keys() == nodes.keys()
    for path, node in nodes.items():
        entry = entries[path]
        assert (entry.mode, entry.uid, entry.gid, entry.mtime) == (node.mode, node.uid, node.gid, node.mtime)
        assert entry.xattrs == set(node.xattrs)


@as_root
def test_the_kernel_reads_writes_and_scrubs_it(tmp_path, nodes):
    write_btrfs(tmp_path / "fs", 128 * MIB, UUID_, "OEM", nodes)
    mount = tmp_path / "mnt"
    mount.mkdir()
    tool("mount", "-o", "loop", tmp_path / "fs", mount)
    try:
        for path, node in nodes.items():
            there = mount / path.strip("/")
            if node.source:
                assert file_sha256(there) == file_sha256(node.source)
        assert os.readlink(mount / "link") == "a b/large"
        assert os.getxattr(mount / "noted", "user.a") == b"1\0\n"
        assert sorted(os.listdir(mount)) == sorted(path[1:] for path in nodes if path.count("/") == 1 and path != "/")
        (mount / "new").write_bytes(os.urandom(5 * MIB))
        for path in list(nodes)[-1000:]:
            (mount / path.strip("/")).unlink()
        os.sync()
        scrub = tool("btrfs", "scrub", "start", "-B", mount).decode()
        assert "no errors found" in scrub
    finally:
        tool("umount", mount)
    tool("btrfs", "check", "--check-data-csum", tmp_path / "fs")


def test_the_same_content_gives_the_same_bytes(tmp_path, nodes):
    write_btrfs(tmp_path / "one", 128 * MIB, UUID_, "OEM", nodes)
    shuffled = dict(sorted(nodes.items(), key=lambda item: item[0][::-1]))
    write_btrfs(tmp_path / "two", 128 * MIB, UUID_, "OEM", shuffled)
    assert subprocess.run(["cmp", tmp_path / "one", tmp_path / "two"], check=False).returncode == 0


def test_a_filesystem_filled_to_the_last_block_is_sound_and_one_more_is_refused(tmp_path):
    size = 32 * MIB
    content = tmp_path / "content"
    blocks = capacity(size) // 4096
    fitting = 0
    for spare in range(60):
        content.write_bytes(b"x" * ((blocks - spare) * 4096))
        (tmp_path / "fs").unlink(missing_ok=True)
        try:
            write_btrfs(tmp_path / "fs", size, UUID_, "", {"/": directory(), "/x": file(content)})
        except BtrfsFull:
            continue
        fitting = spare
        break
    assert fitting > 8, "the tightest case must be among those tried"
    tool("btrfs", "check", "--check-data-csum", tmp_path / "fs")


@pytest.mark.parametrize("count", [1, 11, 12, 300])
def test_checksums_of_blocks_are_crc32c(count):
    assert crc32c(b"123456789") ^ START == 0xE3069283  # RFC 3720's check value
    data = os.urandom(64 * count)
    each = [crc32c(data[at : at + 64]) ^ START for at in range(0, len(data), 64)]
    assert crc32c_blocks(data, 64) == b"".join(value.to_bytes(4, "little") for value in each)
