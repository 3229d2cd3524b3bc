"""Rootless edits of the OEM partition: the new btrfs is the old one and what was asked for, and stays in its place."""

import hashlib
import os
import shutil
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest
from disks import MIB, VM_DISK_BYTES, VM_ROOT_BYTES, make_disk, make_oem, offset, outside, put, tool
from forgeries import rename

from baker.btrfs import Btrfs
from baker.btrfs_tree import read_super, scan
from baker.disk import check_filesystems, extract, grow_root, read_table
from baker.errors import EnvironmentFault, ImageError, UsageError
from baker.model import Injection, Node
from baker.offline import OfflineEditor, offline_available
from baker.sparse import clone, content_digest, file_sha256

EPOCH = 1_700_000_000
FILES = {"/sysext/oem-qemu-1.raw": bytes(range(256)) * 40_000, "/sysext/active-oem-qemu": b"", "/link": "grub.cfg"}
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounting and foreign owners need root")


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    return make_disk(tmp_path_factory.mktemp("pristine") / "disk.img", oem_files=FILES)


@pytest.fixture
def image(tmp_path, pristine):
    clone(pristine, tmp_path / "disk.img")
    return tmp_path / "disk.img"


def edit(image: Path) -> OfflineEditor:
    return OfflineEditor(image, image.parent, EPOCH)


def apply(image: Path, *injections: Injection) -> None:
    with edit(image) as editor:
        editor.apply("OEM", injections)


@pytest.fixture
def source(tmp_path):
    (tmp_path / "source").write_bytes(os.urandom(5 * MIB + 1))
    return tmp_path / "source"


def test_entries_of_every_kind_arrive_and_the_rest_stays(image, source, tmp_path):
    rest, table = outside(image, "OEM"), read_table(image)
    extract(image, table.get("OEM"), tmp_path / "before")
    with edit(image) as editor:
        before = editor.tree("OEM")
        editor.apply(
            "OEM",
            [
                Injection("/opt/x.raw", source=source),
                Injection("/etc/x{}.raw", symlink="/opt/x.raw"),
                Injection("/grub.cfg", content=b"set oem_id=other\n", replace=True, mode=0o600),
                Injection("/a b/suid", content=b"", mode=0o1755),
                Injection("/empty", mode=0o1777),
            ],
        )
        after = editor.tree("OEM")
        assert editor.read("OEM", "/grub.cfg") == b"set oem_id=other\n"
    with edit(image) as editor:
        assert editor.tree("OEM") == after
        assert list(editor.tree("OEM", "/sysext/")) == sorted(path for path in before if path.startswith("/sysext"))
        assert editor.tree("OEM", "/none") == {}
        assert editor.read("OEM", "/grub.cfg", 3) == b"set"
        assert editor.read("OEM", "/link") is None
    changed = {path: node for path, node in after.items() if before.get(path) != node}
    empty = hashlib.sha256().hexdigest()
    assert list(changed.values()) == [
        Node("/a b", "directory", 0o755, 0, 0, 0),
        Node("/a b/suid", "file", 0o1755, 0, 0, 0, empty),
        Node("/empty", "directory", 0o1777, 0, 0, 0),
        Node("/etc", "directory", 0o755, 0, 0, 0),
        Node("/etc/x{}.raw", "symlink", 0o777, 0, 0, 10, symlink="/opt/x.raw"),
        Node("/grub.cfg", "file", 0o600, 0, 0, 17, hashlib.sha256(b"set oem_id=other\n").hexdigest()),
        Node("/opt", "directory", 0o755, 0, 0, 0),
        Node("/opt/x.raw", "file", 0o644, 0, 0, 5 * MIB + 1, file_sha256(source)),
    ]
    assert before.keys() <= after.keys()
    assert outside(image, "OEM") == rest
    assert read_table(image) == table
    check_filesystems(image, table, ["OEM", "ROOT", "EFI-SYSTEM"], tmp_path)
    extract(image, table.get("OEM"), tmp_path / "oem")
    assert read_super(tmp_path / "oem") == read_super(tmp_path / "before")
    entries = scan(tmp_path / "oem")
    assert {entries[path].mtime for path in changed} == {EPOCH}


def test_times_of_what_was_there_are_kept(image, tmp_path):
    table = read_table(image)
    extract(image, table.get("OEM"), tmp_path / "before")
    apply(image, Injection("/sysext/new", content=b"x"))
    extract(image, table.get("OEM"), tmp_path / "after")
    before, after = scan(tmp_path / "before"), scan(tmp_path / "after")
    assert {path: after[path] for path in before} == before


@as_root
def test_the_kernel_mounts_the_result_and_grub_finds_its_file(image, source, tmp_path):
    apply(image, Injection("/opt/x.raw", source=source))
    (tmp_path / "mnt").mkdir()
    size = 128 * MIB
    tool("mount", "-o", f"ro,loop,offset={offset('old', 'OEM')},sizelimit={size}", image, tmp_path / "mnt")
    try:
        assert file_sha256(tmp_path / "mnt/opt/x.raw") == file_sha256(source)
        assert (tmp_path / "mnt/grub.cfg").read_text() == 'set oem_id="qemu"\n'
    finally:
        tool("umount", tmp_path / "mnt")


@as_root
def test_a_device_with_the_same_uuid_does_not_matter(image, tmp_path):
    """On a Flatcar host the OEM partition of the image may be the host's own, by its UUID."""
    device = tool("losetup", "--find", "--show", "--offset", str(offset("old", "OEM")), image).decode().strip()
    try:
        other = tmp_path / "other.img"
        clone(image, other)
        apply(other, Injection("/x", content=b"x"))
        as_nobody(lambda folder: apply(folder / "other.img", Injection("/y", content=b"y")), other)
    finally:
        tool("losetup", "--detach", device)


@as_root
def test_compressed_and_scattered_files_are_taken_over(image, tmp_path):
    """As the kernel writes them: zlib, and more extents than older versions of `btrfs restore` like."""
    (tmp_path / "mnt").mkdir()
    tool("mount", "-o", f"loop,compress-force=zlib,offset={offset('old', 'OEM')},sizelimit={128 * MIB}", image,
         tmp_path / "mnt")  # fmt: skip
    try:
        (tmp_path / "mnt/text").write_bytes(b"compressible " * 500_000)
        with (tmp_path / "mnt/scattered").open("wb") as file:
            for block in range(1200):
                file.seek(block * 8192)
                file.write(b"x" * 4096)
        os.setxattr(tmp_path / "mnt/text", "user.note", b"a\nb\0c")
        digests = {name: file_sha256(tmp_path / "mnt" / name) for name in ("text", "scattered")}
    finally:
        tool("umount", tmp_path / "mnt")
    apply(image, Injection("/new", content=b"x"))
    with edit(image) as editor:
        tree = editor.tree("OEM")
    assert {name: tree[f"/{name}"].sha256 for name in digests} == digests
    extract(image, read_table(image).get("OEM"), tmp_path / "oem")
    assert scan(tmp_path / "oem")["/text"].xattrs == {b"user.note"}


@as_root
def test_subvolumes_are_refused(image, tmp_path):
    (tmp_path / "mnt").mkdir()
    tool("mount", "-o", f"loop,offset={offset('old', 'OEM')},sizelimit={128 * MIB}", image, tmp_path / "mnt")
    try:
        tool("btrfs", "subvolume", "create", tmp_path / "mnt/sub")
    finally:
        tool("umount", tmp_path / "mnt")
    with pytest.raises(ImageError, match="subvolumes or snapshots"):
        apply(image, Injection("/x", content=b""))


def test_foreign_owners_are_kept(image):
    apply(image, Injection("/x/y", content=b"", uid=500, gid=600), Injection("/x", mode=0o750, uid=1))
    apply(image, Injection("/z", content=b""))
    with edit(image) as editor:
        tree = editor.tree("OEM")
    assert (tree["/x/y"].uid, tree["/x/y"].gid, tree["/x"].uid, tree["/x"].mode) == (500, 600, 1, 0o750)


def test_conflicts_change_nothing(image):
    before = content_digest(image)
    with edit(image) as editor:
        with pytest.raises(UsageError, match=r"/grub\.cfg exists already in OEM"):
            editor.apply("OEM", [Injection("/new", content=b""), Injection("/grub.cfg", content=b"")])
        with pytest.raises(ImageError, match="/link, the parent of /link/x, is a symlink"):
            editor.apply("OEM", [Injection("/link/x", content=b"")])
        with pytest.raises(UsageError, match="never replaced"):
            editor.apply("OEM", [Injection("/sysext", content=b"", replace=True)])
        assert "/new" not in editor.tree("OEM")
    assert content_digest(image) == before


def test_too_little_space_is_said_before_anything_is_written(image, tmp_path):
    before = content_digest(image)
    with edit(image) as editor:
        free = editor.free_bytes("OEM")
        assert 60 * MIB < free < 110 * MIB
        with (tmp_path / "source").open("wb") as file:
            file.truncate(free)
        with pytest.raises(EnvironmentFault, match="OEM has too little space"):
            editor.apply("OEM", [Injection("/x", source=tmp_path / "source")])
    assert content_digest(image) == before


def test_a_full_oem_partition_still_fits_its_place(image, tmp_path):
    with edit(image) as editor:
        size = editor.free_bytes("OEM") // 4096 * 4096 - 2 * 4096
        (tmp_path / "source").write_bytes(os.urandom(size))
        editor.apply("OEM", [Injection("/x", source=tmp_path / "source")])
    extract(image, read_table(image).get("OEM"), tmp_path / "oem")
    assert read_super(tmp_path / "oem").total_bytes == 128 * MIB


def test_what_does_not_fit_after_all_changes_nothing(image, tmp_path, monkeypatch):
    before = content_digest(image)
    monkeypatch.setattr(Btrfs, "free_bytes", lambda self: 1 << 40)
    (tmp_path / "source").write_bytes(os.urandom(124 * MIB))
    with pytest.raises(EnvironmentFault, match="OEM has too little space for its files"):
        apply(image, Injection("/x", source=tmp_path / "source"))
    assert content_digest(image) == before


def test_special_files_are_not_lost_silently(image, tmp_path):
    folder = tmp_path / "tree"
    folder.mkdir()
    os.mkfifo(folder / "pipe")
    oem = tmp_path / "oem"
    with oem.open("wb") as file:
        file.truncate(128 * MIB)
    tool("mkfs.btrfs", "--mixed", "-m", "single", "-d", "single", "--rootdir", folder, oem)
    put(image, "old", "OEM", oem)
    with edit(image) as editor:
        assert editor.tree("OEM")["/pipe"].kind == "other"
        with pytest.raises(ImageError, match="/pipe in OEM is a device, pipe or socket"):
            editor.apply("OEM", [Injection("/x", content=b"")])


# Crafted filesystems


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        (b"name-one", b"../../ab", "malformed file name"),
        (b"name-one", b"/etc/abc", "malformed file name"),
        (b"name-one", b"new\nline", "malformed directory entry"),
        (b"name-one", b"nul\0nul\0", "malformed file name"),
        (b"name-one", b"name-two", "duplicate name"),
        (b"..", b"..", None),
    ],
)
def test_crafted_names_are_refused_before_anything_is_restored(image, tmp_path, old, new, complaint):
    oem = make_oem(tmp_path / "oem", 32 * MIB, {"/name-one": "/etc", "/name-two/passwd": b"x"})
    rename(oem, old, new)
    if complaint is None:
        assert "/name-two/passwd" in scan(oem)
        return
    with pytest.raises(ImageError, match=complaint):
        scan(oem)
    put(image, "old", "OEM", oem)
    before = sorted(tmp_path.iterdir())
    with edit(image) as editor, pytest.raises(ImageError):
        editor.tree("OEM")
    assert sorted(tmp_path.iterdir()) == before


def test_a_name_that_looks_like_output_is_refused(tmp_path):
    name = "x\n\titem 9 key (256 DIR_INDEX 9) itemoff 1 itemsize 1\n"
    oem = make_oem(tmp_path / "oem", 32 * MIB, {name: b""})
    with pytest.raises(ImageError, match="malformed directory entry"):
        scan(oem)


@pytest.mark.parametrize("where", [0, 0x40, 4 << 20])
def test_a_damaged_btrfs_is_refused(image, where):
    with image.open("r+b") as file:
        file.seek(offset("old", "OEM") + (64 << 10) + where)
        file.write(b"\xa5" * (1 << 20))
    with pytest.raises(ImageError):
        apply(image, Injection("/x", content=b""))


# An ordinary user


def as_nobody(work: Callable[[Path], None], *files: Path) -> None:
    """Run `work` in a child process that is nobody, in an empty folder of its own with copies of `files`.

    A fork and no new interpreter: nobody may not be able to read the one that runs the tests.
    """
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        folder = Path(name)
        for file in files:
            clone(file, folder / file.name)
            shutil.copymode(file, folder / file.name)
        for path in (folder, *folder.iterdir()):
            os.chown(path, 65534, 65534)
        child = os.fork()
        if child == 0:
            try:
                os.setgroups([])
                os.setgid(65534)
                os.setuid(65534)
                os.environ["HOME"] = name
                work(folder)
            except BaseException:
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0


def edit_everything(folder: Path) -> None:
    image, source = folder / "disk.img", folder / "source"
    assert os.geteuid() == 65534
    assert offline_available() is None
    grow_root(image, VM_ROOT_BYTES, VM_DISK_BYTES["old"], folder)
    with OfflineEditor(image, folder, EPOCH) as editor:
        for label in ("ROOT", "OEM"):
            injections = [
                Injection("/opt/x.raw", source=source, mode=0o600),
                Injection("/etc/x.raw", symlink="/opt/x.raw"),
                Injection("/etc/suid", content=b"", mode=0o1755),
            ]
            editor.apply(label, injections)
            tree = editor.tree(label)
            assert {(node.uid, node.gid) for node in tree.values()} == {(0, 0)}
            assert tree["/opt/x.raw"] == Node("/opt/x.raw", "file", 0o600, 0, 0, 5 * MIB + 1, file_sha256(source))
            assert tree["/etc/suid"].mode == 0o1755
    check_filesystems(image, read_table(image), ["ROOT", "OEM"], folder)


@as_root
def test_an_ordinary_user_can_do_it_all(image, source):
    as_nobody(edit_everything, image, source)


@as_root
def test_an_ordinary_user_keeps_foreign_owners(image):
    apply(image, Injection("/x", content=b"", uid=500))

    def work(folder: Path) -> None:
        with OfflineEditor(folder / "disk.img", folder, EPOCH) as editor:
            editor.apply("OEM", [Injection("/y", content=b"", gid=600)])
            tree = editor.tree("OEM")
        assert (tree["/x"].uid, tree["/y"].gid) == (500, 600)

    as_nobody(work, image)
