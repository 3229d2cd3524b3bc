"""Rootless edits of ROOT: what is written arrives exactly, what is there stays, and a hostile image fools nobody."""

import hashlib
import os
import subprocess
from pathlib import Path

import pytest
from disks import LAYOUTS, MIB, SECTOR, make_disk, make_root, offset, outside, put

import baker.ext4
from baker.debugfs import Debugfs
from baker.disk import read_table
from baker.errors import EnvironmentFault, ImageError, UsageError
from baker.model import Injection, Node
from baker.offline import OfflineEditor
from baker.sparse import clone, content_digest, file_sha256

EPOCH = 1_700_000_000
FILES = {
    "/etc/hostname": b"flatcar\n",
    "/etc/other": b"kept",
    "/etc/link": "hostname",
    "/etc/long": "x" * 100,
    "/opt/extensions/old/old.raw": b"old" * 100_000,
}


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    return make_disk(tmp_path_factory.mktemp("pristine") / "disk.img", "old", FILES, {"/sysext": None})


@pytest.fixture
def image(tmp_path, pristine):
    clone(pristine, tmp_path / "disk.img")
    return tmp_path / "disk.img"


def edit(image: Path) -> OfflineEditor:
    return OfflineEditor(image, image.parent, EPOCH)


def apply(image: Path, *injections: Injection, label: str = "ROOT") -> None:
    with edit(image) as editor:
        editor.apply(label, injections)


def debugfs(image: Path, *commands: str) -> str:
    device = f"{image}?offset={offset('old', 'ROOT')}"
    argv = ["/usr/sbin/debugfs", "-w", "-f", "-", device]
    script = "".join(f"{command}\n" for command in commands).encode()
    return subprocess.run(argv, input=script, capture_output=True, check=True).stdout.decode("utf-8", "replace")


def random_file(path: Path, size: int) -> Path:
    path.write_bytes(os.urandom(size))
    return path


def test_entries_of_every_kind_arrive(image, tmp_path):
    source = random_file(tmp_path / "a 'b' \"c\" ?d", 100_001)
    before, kept = outside(image, "ROOT"), content_digest(image)
    with edit(image) as editor:
        tree = editor.tree("ROOT")
        editor.apply(
            "ROOT",
            [
                Injection("/opt/extensions/x/x.raw", source=source),
                Injection("/etc/extensions/x.raw", symlink="/opt/extensions/x/x.raw"),
                Injection("/etc/a b/{}\\x2d#é.conf", content=b"", mode=0o1711, uid=70_000, gid=3),
                Injection("/etc/target", symlink="/" + "long/" * 100),
                Injection("/var/empty", mode=0o1777, uid=1, gid=2),
                Injection("/etc", mode=0o700),
            ],
        )
        now = editor.tree("ROOT")
    assert {path: node for path, node in now.items() if path in tree} == tree
    new = {path: node for path, node in now.items() if path not in tree}
    digest, empty = file_sha256(source), hashlib.sha256().hexdigest()
    assert list(new.values()) == [
        Node("/etc/a b", "directory", 0o755, 0, 0, 0),
        Node("/etc/a b/{}\\x2d#é.conf", "file", 0o1711, 70_000, 3, 0, empty),
        Node("/etc/extensions", "directory", 0o755, 0, 0, 0),
        Node("/etc/extensions/x.raw", "symlink", 0o777, 0, 0, 23, symlink="/opt/extensions/x/x.raw"),
        Node("/etc/target", "symlink", 0o777, 0, 0, 501, symlink="/" + "long/" * 100),
        Node("/opt/extensions/x", "directory", 0o755, 0, 0, 0),
        Node("/opt/extensions/x/x.raw", "file", 0o644, 0, 0, 100_001, digest),
        Node("/var", "directory", 0o755, 0, 0, 0),
        Node("/var/empty", "directory", 0o1777, 1, 2, 0),
    ]
    assert outside(image, "ROOT") == before
    assert content_digest(image) != kept
    for path in new:
        stat = debugfs(image, f'stat "{path}"')
        assert stat.count(f"0x{EPOCH:x}:00000000") == 4, stat


def test_the_same_edit_gives_the_same_bytes(image, tmp_path):
    other = tmp_path / "other.img"
    clone(image, other)
    source = random_file(tmp_path / "source", 20 * MIB)
    for disk in (image, other):
        apply(disk, Injection("/opt/x.raw", source=source), Injection("/etc/y", content=b"y"))
    assert content_digest(image) == content_digest(other)


def test_nothing_to_do_writes_nothing(image):
    before = content_digest(image)
    apply(image, Injection("/etc"))
    apply(image, Injection("/sysext"), label="OEM")
    assert content_digest(image) == before


@pytest.mark.parametrize("epoch", [0, 1, 2**31 - 1])
def test_any_time_can_be_given(image, epoch):
    with OfflineEditor(image, image.parent, epoch) as editor:
        editor.apply("ROOT", [Injection("/new/file", content=b"x")])
    assert debugfs(image, "stat /new/file").count(f"time: 0x{epoch:08x}:00000000") == 4


def test_reading_gives_regular_files_only(image):
    with edit(image) as editor:
        assert editor.read("ROOT", "/etc/hostname") == b"flatcar\n"
        assert editor.read("ROOT", "/opt/extensions/old/old.raw", 5) == b"oldol"
        for path in ("/etc/link", "/etc/link/x", "/etc", "/nothing", "/etc/hostname/x"):
            assert editor.read("ROOT", path) is None
        assert editor.tree("ROOT", "/nothing") == {}
        assert list(editor.tree("ROOT", "/etc/")) == ["/etc", "/etc/hostname", "/etc/link", "/etc/long", "/etc/other"]
        assert list(editor.tree("ROOT", "/etc/link")) == ["/etc/link"]
        assert editor.tree("ROOT", "/etc/long")["/etc/long"].symlink == "x" * 100


def test_existing_entries_are_replaced_only_when_allowed(image):
    before = content_digest(image)
    for path in ("/etc/hostname", "/etc/link", "/etc/long"):
        with pytest.raises(UsageError, match=f"{path} exists already"):
            apply(image, Injection("/new", content=b""), Injection(path, content=b"x"))
    with pytest.raises(UsageError, match="never replaced"):
        apply(image, Injection("/etc", content=b"x", replace=True))
    assert content_digest(image) == before
    apply(
        image,
        Injection("/etc/hostname", symlink="other", replace=True),
        Injection("/etc/link", content=b"new", replace=True),
        Injection("/etc/long", symlink="short", replace=True),
    )
    with edit(image) as editor:
        tree = editor.tree("ROOT", "/etc")
        assert editor.read("ROOT", "/etc/link") == b"new"
        assert editor.read("ROOT", "/etc/other") == b"kept"
    assert (tree["/etc/hostname"].symlink, tree["/etc/long"].symlink) == ("other", "short")


def test_replacing_one_name_of_a_file_keeps_the_other(image):
    debugfs(image, "link /etc/other /etc/second", "sif /etc/other links_count 2")
    apply(image, Injection("/etc/other", content=b"new", replace=True))
    with edit(image) as editor:
        assert editor.read("ROOT", "/etc/second") == b"kept"
        assert editor.read("ROOT", "/etc/other") == b"new"


def test_extended_attributes_are_kept_and_those_of_replaced_files_freed(image):
    large = "x" * 3000  # more than fits the inode: it gets a block of its own
    debugfs(image, "ea_set /etc/hostname user.a small", f"ea_set /etc/other user.b {large}", "ea_set /etc user.c dir")
    apply(image, Injection("/etc/other", content=b"new", replace=True), Injection("/etc/x", content=b""))
    assert "small" in debugfs(image, "ea_get /etc/hostname user.a")
    assert "dir" in debugfs(image, "ea_get /etc user.c")
    assert "user.b" not in debugfs(image, "ea_list /etc/other")


@pytest.mark.parametrize(
    ("commands", "path", "what"),
    [
        (['symlink /bin "/etc"'], "/bin/x", "/bin, the parent of /bin/x, is a symlink in the image's ROOT"),
        (["mkdir /var", 'symlink /var/run "/"'], "/var/run/a/b", "/var/run, .* is a symlink"),
        (["cd /etc", "mknod node b 7 0"], "/etc/node/x", "/etc/node, .* is a special file"),
        ([], "/etc/hostname/x", "/etc/hostname, .* is a file"),
    ],
)
def test_only_real_directories_are_written_into(image, commands, path, what):
    debugfs(image, *commands)
    before = content_digest(image)
    with pytest.raises(ImageError, match=what):
        apply(image, Injection(path, content=b"x"))
    assert content_digest(image) == before


def test_hostile_names_fool_nobody(image):
    names = ["/etc/new\nline", "/etc/-rf", "/etc/<2>", '/etc/"', "/etc/\udcff\udcfe", "/etc/ ", "/etc/a\tb",
             "/etc/x\ndebugfs: ls -p <2>\n", "/etc/\x1b[31m", "/etc/*", "/etc/.hidden"]  # fmt: skip
    fresh = make_root(image.parent / "root", 256 * MIB, dict.fromkeys(names, b"x") | {"/etc/l": "\n\x1b\udcff"})
    put(image, "old", "ROOT", fresh)
    with edit(image) as editor:
        tree = editor.tree("ROOT", "/etc")
        assert sorted(tree) == sorted(["/etc", "/etc/l", *names])
        assert tree["/etc/l"].symlink == "\n\x1b\udcff"
        assert {tree[name].sha256 for name in names} == {hashlib.sha256(b"x").hexdigest()}
        assert editor.read("ROOT", "/etc/new\nline") == b"x"
        editor.apply("ROOT", [Injection("/etc/extensions/x", content=b"y")])


def test_large_directories_are_listed(image):
    put(image, "old", "ROOT", make_root(image.parent / "root", 256 * MIB, {f"/etc/{n:04}": b"" for n in range(1500)}))
    with edit(image) as editor:
        editor.apply("ROOT", [Injection("/etc/new", content=b"")])
        assert len(editor.tree("ROOT", "/etc")) == 1502


def test_a_file_that_claims_more_than_the_partition_is_not_dumped(image):
    debugfs(image, f"sif /etc/other size {1 << 40}")
    with edit(image) as editor, pytest.raises(ImageError, match="claims 1099511627776 bytes"):
        editor.tree("ROOT")


def test_a_damaged_filesystem_is_not_edited(image):
    debugfs(image, "freeb 1000 400")
    before = content_digest(image)
    with pytest.raises(ImageError, match="filesystem of ROOT is damaged"):
        apply(image, Injection("/x", content=b""))
    assert content_digest(image) == before


def test_a_journal_to_be_replayed_is_refused(image):
    debugfs(image, "feature needs_recovery")
    with pytest.raises(ImageError, match="not shut down") as error:
        apply(image, Injection("/x", content=b""))
    assert "fresh from the release" in (error.value.hint or "")


def test_other_filesystems_and_missing_partitions_are_named(image):
    with edit(image) as editor:
        with pytest.raises(ImageError, match="EFI-SYSTEM holds vfat"):
            editor.tree("EFI-SYSTEM")
        with pytest.raises(ImageError, match="no DATA partition"):
            editor.free_bytes("DATA")


# Space


def test_too_little_space_is_said_before_anything_is_written(image, tmp_path):
    put(image, "old", "ROOT", make_root(tmp_path / "root", 64 * MIB, {"/big": bytes(range(256)) * 40_000}))
    before = content_digest(image)
    with edit(image) as editor:
        free = editor.free_bytes("ROOT")
    source = tmp_path / "source"
    with source.open("wb") as file:
        file.truncate(free)
    with pytest.raises(EnvironmentFault, match=rf"ROOT has too little space: \d+ bytes are needed, {free} are free"):
        apply(image, Injection("/x.raw", source=source))
    assert content_digest(image) == before
    # What a replaced file gives back counts.
    apply(image, Injection("/big", source=source, replace=True))


def test_a_filesystem_can_be_filled_to_what_it_calls_free(image, tmp_path):
    put(image, "old", "ROOT", make_root(tmp_path / "root", 64 * MIB, {}))
    with edit(image) as editor:
        size = editor.free_bytes("ROOT") // 4096 * 4096 - 2 * 4096
        editor.apply("ROOT", [Injection("/x.raw", source=random_file(tmp_path / "source", size))])
        assert editor.free_bytes("ROOT") < 3 * 4096


def test_too_few_inodes_are_said(image, tmp_path):
    put(image, "old", "ROOT", make_root(tmp_path / "root", 64 * MIB, {}, "-N", "32"))
    with pytest.raises(EnvironmentFault, match="too few free inodes"):
        apply(image, *(Injection(f"/{n}", content=b"") for n in range(40)))


# Large files


@pytest.fixture
def plain_writes(monkeypatch):
    """Notes the files written by debugfs itself, not by copying into allocated blocks."""
    seen: list[str] = []
    real = Debugfs.write

    def write(self, commands):
        commands = list(commands)
        seen.extend(command for command in commands if command.startswith("write new"))
        real(self, commands)

    monkeypatch.setattr(Debugfs, "write", write)
    return seen


def stored(image: Path, path: str, inode_blocks: int) -> bytes:
    """The last block of a file as it lies on the disk, with what is behind the file's end."""
    block = int(debugfs(image, f"bmap {path} {inode_blocks - 1}").split()[-1])
    with image.open("rb") as file:
        file.seek(offset("old", "ROOT") + block * 4096)
        return file.read(4096)


def test_a_large_file_is_copied_beside_debugfs(image, tmp_path, plain_writes):
    size = 128 * MIB + 1234
    # The free blocks hold old data, the source has holes: neither may show.
    root = make_root(tmp_path / "root", LAYOUTS["old"]["ROOT"][1] * SECTOR, {"/old": b"\xff" * (160 * MIB)})
    put(image, "old", "ROOT", root)
    debugfs(image, "rm /old")
    source = tmp_path / "source"
    with source.open("wb") as file:
        file.write(os.urandom(40 * MIB))
        file.seek(100 * MIB)
        file.write(os.urandom(20 * MIB))
        file.truncate(size)
    apply(image, Injection("/opt/x.raw", source=source))
    assert plain_writes == []
    tail = stored(image, "/opt/x.raw", -(-size // 4096))
    assert tail == bytes(4096)
    debugfs(image, f"dump /opt/x.raw {tmp_path}/back")
    assert file_sha256(tmp_path / "back") == file_sha256(source)


def test_copied_and_plainly_written_files_are_equal(image, tmp_path, monkeypatch, plain_writes):
    other = tmp_path / "other.img"
    clone(image, other)
    source = random_file(tmp_path / "source", 17 * MIB + 1)
    apply(image, Injection("/opt/x.raw", source=source))
    assert plain_writes == []
    monkeypatch.setattr(baker.ext4, "_FAST_FROM", 1 << 40)
    apply(other, Injection("/opt/x.raw", source=source))
    assert len(plain_writes) == 1
    with edit(image) as one, edit(other) as two:
        assert one.tree("ROOT") == two.tree("ROOT")


def test_a_fragmented_filesystem_takes_a_large_file(image, tmp_path, plain_writes):
    """Every second free block is taken, so that the file's extents fill many leaves of its tree."""
    put(image, "old", "ROOT", make_root(tmp_path / "root", 96 * MIB, {"/holes": b"\xff" * (60 * MIB)}, "-J", "size=4"))
    debugfs(image, *(f"punch /holes {block} {block}" for block in range(0, 60 * 256, 2)))
    source = random_file(tmp_path / "source", 24 * MIB + 7)
    apply(image, Injection("/x.raw", source=source))
    assert plain_writes == []
    extents = debugfs(image, "dump_extents -l /x.raw")
    assert len(extents.splitlines()) > 8 * 340, "more extents than one leaf holds"
    assert "Uninit" not in extents
    debugfs(image, f"dump /x.raw {tmp_path}/back")
    assert file_sha256(tmp_path / "back") == file_sha256(source)


def test_a_filesystem_without_extents_gets_plain_writes(image, tmp_path, plain_writes):
    root = make_root(tmp_path / "root", 128 * MIB, {}, "-O", "^extents,^64bit")
    put(image, "old", "ROOT", root)
    assert read_table(image).get("ROOT").fs == "ext4"
    apply(image, Injection("/x.raw", source=random_file(tmp_path / "source", 17 * MIB)))
    assert len(plain_writes) == 1


def test_a_debugfs_that_answers_otherwise_gets_plain_writes(image, tmp_path, plain_writes, monkeypatch):
    shim = tmp_path / "bin" / "debugfs"
    shim.parent.mkdir()
    shim.write_text('#!/bin/sh\n/usr/sbin/debugfs "$@" | sed "s/ Uninit/ Unwritten/"\n')
    shim.chmod(0o755)
    monkeypatch.setenv("PATH", f"{shim.parent}:{os.environ['PATH']}")
    source = random_file(tmp_path / "source", 17 * MIB)
    apply(image, Injection("/x.raw", source=source))
    assert len(plain_writes) == 1
    with edit(image) as editor:
        assert editor.tree("ROOT", "/x.raw")["/x.raw"].sha256 == file_sha256(source)
