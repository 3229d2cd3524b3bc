"""Writing ext4 and ext2: mke2fs fills them from a folder, debugfs levels what it took from there, resize2fs shrinks.

mke2fs takes owners and the times of last access and of change over from the folder, which nobody can set there; so
every inode gets them afterwards. Measured with e2fsprogs 1.47.0: then the same content gives the same bytes.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path
from uuid import UUID

from baker.debugfs import Debugfs
from baker.e2fs import frozen_time
from baker.model import Partition
from baker.packing.tree import Entry
from baker.readers import Ext
from baker.run import run

_BLOCK, _INODE = 4096, 256
# Named one by one, so that no mke2fs.conf decides. Without a journal, which nothing that is mounted read-only needs,
# and without what kernels before 5.10 do not know.
_FEATURES = {
    "ext2": "none,filetype,sparse_super,large_file,ext_attr",
    "ext4": "none,filetype,sparse_super,large_file,ext_attr,extents,huge_file,dir_nlink,extra_isize,flex_bg,"
    "metadata_csum",
}
_TIMES = ("atime", "ctime", "mtime", "crtime")
_ROOT = 2


def write_ext(fs: str, entries: Collection[Entry], folder: Path, target: Path, epoch: int, uuid: UUID) -> None:
    """Make `target`, a new file, an ext4 or ext2 (`fs`) of a staged folder, as small as it gets.

    CommandFailed when a tool cannot.
    """
    env = frozen_time(epoch) | {"MKE2FS_CONFIG": "/dev/null", "SOURCE_DATE_EPOCH": str(max(1, epoch))}
    extended = f"hash_seed={uuid},root_owner=0:0,lazy_itable_init=0,nodiscard"
    run([
        "mke2fs", "-q", "-F", "-t", fs, "-O", _FEATURES[fs], "-b", str(_BLOCK), "-I", str(_INODE),
        "-N", str(len(entries) + 16), "-m", "0", "-U", str(uuid), "-E", extended, "-d", folder, target,
        f"{_room(entries) >> 10}k",
    ], env=env)  # fmt: skip
    size = target.stat().st_size
    level = target.with_name("debugfs")
    level.mkdir()
    numbers = _inode_numbers(target, size, level)
    (again := target.with_name("debugfs-write")).mkdir()
    partition = Partition(target.name, 0, "", "", 0, 0, size, "ext4")
    Debugfs(target, partition, again, epoch).write(_leveling(numbers, epoch))
    run(["resize2fs", "-M", target], env=env)


def _room(entries: Collection[Entry]) -> int:
    """Bytes that are enough for a filesystem with these entries; what is too much is cut off later."""
    blocks = sum(-(-entry.size // _BLOCK) + 1 for entry in entries)
    names = sum(len(entry.path.rpartition("/")[2].encode("utf-8", "surrogateescape")) + 16 for entry in entries)
    # Block maps of ext2 take a thousandth of the data.
    return (blocks * 1003 // 1000) * _BLOCK + 2 * names + len(entries) * _INODE + (4 << 20)


def _inode_numbers(image: Path, size: int, folder: Path) -> list[int]:
    tree = Ext(image, 0, size, folder)
    return [_ROOT, *sorted({tree.inode_number(path) for path in tree.nodes})]


def _leveling(numbers: Collection[int], epoch: int) -> Iterator[str]:
    """The debugfs commands that give inodes to root and to the time `epoch`."""
    for number in numbers:
        yield f"set_inode_field <{number}> uid 0"
        yield f"set_inode_field <{number}> gid 0"
        for time in _TIMES:
            yield f"set_inode_field <{number}> {time} @{epoch}"
            yield f"set_inode_field <{number}> {time}_extra 0"
