"""A corpus of images that mean harm or are broken, through both backends: each is refused with one clear sentence.

Nothing of the host changes, nothing of the image changes, nothing is left behind. tests/test_offline_*.py and
tests/test_loop_*.py go deeper into what is particular to one backend.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from disks import DISK_BYTES, LAYOUTS, MIB, SECTOR, make_disk, make_oem, make_root, offset, put, tool
from forgeries import crc32c, patch, rewrite_table
from loops import assert_nothing_left, debugfs, needs_loop

from baker.disk import grow_root
from baker.errors import BakeError, EnvironmentFault, ImageError, UsageError
from baker.helper_client import Helper
from baker.inject import Editor
from baker.model import Injection
from baker.offline import OfflineEditor
from baker.privilege import LoopEditor
from baker.sparse import clone, content_digest

ENTRIES = [
    Injection("/opt/extensions/demo/demo.raw", content=b"an extension"),
    Injection("/etc/extensions/demo.raw", symlink="/opt/extensions/demo/demo.raw"),
]
ROOT = offset("old", "ROOT")
ROOT_BYTES = LAYOUTS["old"]["ROOT"][1] * SECTOR
Open = Callable[[Path], AbstractContextManager[Editor]]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_disk(tmp_path_factory.mktemp("base") / "disk.raw")


@pytest.fixture
def disk(base: Path, work: Path) -> Path:
    clone(base, work / "disk.raw")
    return work / "disk.raw"


@pytest.fixture(scope="module")
def helper() -> Iterator[Helper]:
    with Helper() as helper:
        yield helper


@pytest.fixture
def work(tmp_path: Path) -> Path:
    (tmp_path / "work").mkdir()
    return tmp_path / "work"


@pytest.fixture(params=["offline", pytest.param("loop", marks=needs_loop)])
def open_editor(request: pytest.FixtureRequest, work: Path) -> Open:
    if request.param == "offline":
        return lambda image: OfflineEditor(image, work, 0)
    helper: Helper = request.getfixturevalue("helper")
    return lambda image: LoopEditor(image, work, 0, helper)


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Path]:
    """A canary: a folder of the host, beside the work folder. Neither may change, nor what is around them."""
    folder = tmp_path / "host"
    (folder / "extensions").mkdir(parents=True)
    (folder / "secret").write_text("of the host")
    before = _digests(tmp_path)
    yield folder
    assert _digests(tmp_path) == before


def _digests(folder: Path) -> dict[str, tuple[int, int, str]]:
    """Everything in a folder but the content of the work folder, with its times of change."""
    found = {}
    for path in sorted([folder, *folder.rglob("*")]):
        if (folder / "work") in path.parents:
            continue
        status = path.lstat()
        content = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        changed = 0 if path == folder / "work" else status.st_ctime_ns
        found[str(path)] = (status.st_mode, changed, content)
    return found


def refused(
    open_editor: Open, disk: Path, kind: type[BakeError], words: str, entries: list[Injection] | None = None
) -> None:
    """Baking must end with one sentence of that kind, and leave image and work folder as they were."""
    before, files = content_digest(disk), sorted(disk.parent.iterdir())
    with pytest.raises(kind, match=words) as refusal, open_editor(disk) as editor:
        editor.apply("ROOT", ENTRIES if entries is None else entries)
    assert type(refusal.value) is kind
    message = refusal.value.message
    assert message.endswith((".", ":")) or ":" in message
    assert len(message) < 400
    assert message.isprintable()
    assert "Traceback" not in message
    assert (content_digest(disk), sorted(disk.parent.iterdir())) == (before, files)
    assert_nothing_left(disk)


# Folders that are something else

LINKS = ["{host}", "{host}/extensions", "../../..", "../../../../../../../..{host}", "/proc/self/cwd", "/proc/1/root",
         "/dev/null", "/dev/zero", ".", "..", "extensions", "/etc/extensions"]  # fmt: skip
PLACES = ["etc", "etc/extensions", "opt", "opt/extensions", "opt/extensions/demo"]


def inside(place: str, command: str) -> list[str]:
    """debugfs commands that run `command` on the last name of a path, in the folders above it."""
    *folders, name = place.split("/")
    steps = [step for folder in folders for step in (f"mkdir {folder}", f"cd {folder}")]
    return [*steps, command.format(name=name)]


@pytest.mark.parametrize("place", PLACES)
def test_links_lead_nowhere(open_editor: Open, disk: Path, host: Path, work: Path, place: str) -> None:
    for number, target in enumerate(LINKS):
        copy = work / f"copy{number}.raw"
        clone(disk, copy)
        debugfs(copy, ROOT, *inside(place, f"symlink {{name}} {target.format(host=host)}"))
        refused(open_editor, copy, ImageError, f"^/{place}, the parent of /.*, is a symlink in the image's ROOT")
        copy.unlink()


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("node", ["c 1 1", "c 1 5", "b 7 0", "b 8 0", "p"])
def test_devices_and_pipes_are_no_folders(open_editor: Open, disk: Path, host: Path, place: str, node: str) -> None:
    debugfs(disk, ROOT, *inside(place, f"mknod {{name}} {node}"))
    refused(open_editor, disk, ImageError, f"^/{place}, the parent of /.*, is a special file")


@pytest.mark.parametrize("place", PLACES)
def test_files_are_no_folders(open_editor: Open, disk: Path, host: Path, place: str) -> None:
    debugfs(disk, ROOT, *inside(place, "write /dev/null {name}"))
    refused(open_editor, disk, ImageError, f"^/{place}, the parent of /.*, is a file in")


def test_links_in_a_circle_are_links(open_editor: Open, disk: Path, host: Path) -> None:
    debugfs(disk, ROOT, "symlink opt etc", "symlink etc opt")
    refused(open_editor, disk, ImageError, "^/etc, .* is a symlink")


@pytest.mark.parametrize("node", ["symlink demo.raw {host}/secret", "symlink demo.raw /dev/null"])
def test_a_link_in_the_place_of_the_file_is_not_written_through(
    open_editor: Open, disk: Path, host: Path, node: str
) -> None:
    place = ["mkdir opt", "cd opt", "mkdir extensions", "cd extensions", "mkdir demo", "cd demo"]
    debugfs(disk, ROOT, *place, node.format(host=host))
    refused(open_editor, disk, UsageError, "^/opt/extensions/demo/demo.raw exists already in ROOT")
    with open_editor(disk) as editor:
        editor.apply("ROOT", [Injection(ENTRIES[0].path, content=b"mine", replace=True)])
        assert editor.read("ROOT", ENTRIES[0].path) == b"mine"


def test_a_device_in_the_place_of_the_file_is_never_replaced(open_editor: Open, disk: Path, host: Path) -> None:
    debugfs(disk, ROOT, *inside("opt/extensions/demo/demo.raw", "mknod {name} b 7 0"))
    entry = Injection(ENTRIES[0].path, content=b"mine", replace=True)
    refused(open_editor, disk, UsageError, "is a special file in ROOT and is never replaced", [entry])


def test_odd_names_neither_hinder_nor_mislead(open_editor: Open, disk: Path, host: Path) -> None:
    names = [
        "/etc/new\nline", "/etc/-rf", "/etc/a b", "/etc/quo\"te'", "/etc/\udcff\udcfe", "/etc/<2>", "/etc/\x1b[2J",
        "/etc/x\ndebugfs: ls -p <2>\n", "/opt/extensions/-o\n", "/etc/$(touch x)", "/etc/;reboot", "/etc/\\134",
    ]  # fmt: skip
    put(disk, "old", "ROOT", make_root(disk.parent / "fresh", ROOT_BYTES, dict.fromkeys(names, b"kept")))
    with open_editor(disk) as editor:
        editor.apply("ROOT", ENTRIES)
        tree = editor.tree("ROOT")
    assert {name: tree[name].sha256 for name in names} == dict.fromkeys(names, hashlib.sha256(b"kept").hexdigest())
    assert tree["/etc/extensions/demo.raw"].symlink == "/opt/extensions/demo/demo.raw"


@pytest.mark.parametrize("name", ["d", "d" * 250])
def test_folders_are_not_followed_down_for_ever(disk: Path, host: Path, work: Path, name: str) -> None:
    """A path that no system needs is refused before its likes fill the memory; a bake need not look there."""
    debugfs(disk, ROOT, *(step for _ in range(300 if name == "d" else 17) for step in (f"mkdir {name}", f"cd {name}")))
    with OfflineEditor(disk, work, 0) as editor:
        with pytest.raises(ImageError, match="nested deeper than any system needs"):
            editor.tree("ROOT")
        editor.apply("ROOT", ENTRIES)
        assert editor.read("ROOT", ENTRIES[0].path) == b"an extension"


@needs_loop
def test_the_helper_does_not_follow_them_either(disk: Path, host: Path, work: Path, helper: Helper) -> None:
    debugfs(disk, ROOT, *(step for _ in range(17) for step in (f"mkdir {'d' * 250}", f"cd {'d' * 250}")))
    with LoopEditor(disk, work, 0, helper) as editor, pytest.raises(ImageError, match="too large to list"):
        editor.tree("ROOT")


def test_folders_of_a_btrfs_are_not_restored_for_ever(disk: Path, host: Path, work: Path) -> None:
    put(disk, "old", "OEM", make_oem(work / "oem", LAYOUTS["old"]["OEM"][1] * SECTOR, {"/d" * 300: None}))
    with OfflineEditor(disk, work, 0) as editor, pytest.raises(ImageError, match=r"btrfs of OEM .* nested deeper"):
        editor.tree("OEM")


# Filesystems that are full, in use, damaged, unknown or none


def test_a_full_filesystem_is_said_to_be_full(open_editor: Open, disk: Path, host: Path) -> None:
    full = make_root(disk.parent / "full", 64 * MIB, {"/big": b"x" * (40 * MIB)}, "-J", "size=4")
    put(disk, "old", "ROOT", full)
    entry = Injection("/opt/x.raw", content=b"x" * (30 * MIB))
    refused(open_editor, disk, EnvironmentFault, r"^ROOT has too little space: \d+ bytes are needed", [entry])


def test_a_filesystem_without_inodes_is_said_to_have_none(open_editor: Open, disk: Path, host: Path) -> None:
    put(disk, "old", "ROOT", make_root(disk.parent / "few", 64 * MIB, {}, "-N", "32"))
    entries = [Injection(f"/{number}", content=b"") for number in range(40)]
    refused(open_editor, disk, EnvironmentFault, "^ROOT has too few free inodes", entries)


def test_a_dirty_journal_is_not_replayed(open_editor: Open, disk: Path, host: Path) -> None:
    debugfs(disk, ROOT, "feature needs_recovery")
    refused(open_editor, disk, ImageError, "^ROOT was in use and not shut down")


@pytest.mark.parametrize(
    ("at", "bit"),
    [(0x60, 1 << 30), (0x64, 1 << 30), (0x60, 0x100), (0x60, 0x10000), (0x64, 0x1000)],
    ids=["unknown incompatible", "unknown read-only", "multiple mounts", "encryption", "read-only for good"],
)
def test_ext4_with_features_nobody_expects(open_editor: Open, disk: Path, host: Path, at: int, bit: int) -> None:
    change_superblock(disk, at, bit)
    refused(open_editor, disk, ImageError, rf"^The ext4 of ROOT has features that cannot be edited here \(.*0x{bit:x}")


def change_superblock(disk: Path, at: int, bit: int) -> None:
    """Set a bit in a 32-bit field of ROOT's ext4 superblock, and make its checksum (at 0x3FC) right again."""
    with disk.open("r+b") as file:
        file.seek(ROOT + 1024)
        raw = bytearray(file.read(1024))
        struct.pack_into("<I", raw, at, struct.unpack_from("<I", raw, at)[0] | bit)
        struct.pack_into("<I", raw, 0x3FC, 0xFFFFFFFF ^ crc32c(bytes(raw[:0x3FC])))
        file.seek(ROOT + 1024)
        file.write(raw)


def xfs_superblock() -> bytes:
    """The fields by which XFS is known, big-endian: 4 KiB blocks, inodes of 512 bytes (xfs_format.h)."""
    raw = bytearray(512)
    fields: tuple[tuple[str, int, int], ...] = (
        (">I", 4, 4096), (">Q", 8, ROOT_BYTES // 4096), (">I", 80, 1), (">I", 84, ROOT_BYTES // 4096), (">I", 88, 1),
        (">H", 100, 0xB4A5), (">H", 102, 512), (">H", 104, 512), (">H", 106, 8),
        ("B", 120, 12), ("B", 121, 9), ("B", 122, 9), ("B", 123, 3), ("B", 124, 20), ("B", 127, 25),
    )  # fmt: skip
    raw[:4] = b"XFSB"
    for form, at, value in fields:
        struct.pack_into(form, raw, at, value)
    return bytes(raw)


@pytest.mark.parametrize(
    ("start", "name"),
    [(b"LUKS\xba\xbe\x00\x01", "crypto_LUKS"), (xfs_superblock(), "xfs"), (b"", "no known filesystem")],
)
def test_a_root_of_another_kind_is_named(open_editor: Open, disk: Path, host: Path, start: bytes, name: str) -> None:
    blank = disk.parent / "blank"
    blank.write_bytes(start)
    put(disk, "old", "ROOT", blank)
    refused(open_editor, disk, ImageError, f"^ROOT holds {name}; only ext4 and btrfs can be edited")


@pytest.mark.parametrize("where", [1024, 4096, 1 << 20])
def test_a_wiped_filesystem_is_refused(open_editor: Open, disk: Path, host: Path, where: int) -> None:
    with disk.open("r+b") as file:
        file.seek(ROOT + where)
        file.write(b"\xa5" * 8192)
    refused(open_editor, disk, ImageError, "ROOT")


@needs_loop
def test_a_btrfs_with_subvolumes_loses_none(disk: Path, host: Path, helper: Helper, work: Path) -> None:
    """The offline backend would make it anew without them, so it refuses; the kernel keeps them."""
    mount = work / "mnt"
    mount.mkdir()
    at, size = (value * SECTOR for value in LAYOUTS["old"]["OEM"])
    tool("mount", "-o", f"loop,offset={at},sizelimit={size}", disk, mount)
    try:
        tool("btrfs", "subvolume", "create", mount / "sub")
        (mount / "sub" / "file").write_text("kept")
    finally:
        tool("umount", mount)
    before = content_digest(disk)
    with (
        OfflineEditor(disk, work, 0) as editor,
        pytest.raises(ImageError, match="btrfs of OEM has subvolumes") as refusal,
    ):
        editor.apply("OEM", [Injection("/x", content=b"")])
    assert refusal.value.hint
    assert content_digest(disk) == before
    with LoopEditor(disk, work, 0, helper) as loop:
        loop.apply("OEM", [Injection("/x", content=b"new")])
        assert loop.read("OEM", "/x") == b"new"
        # What is behind a subvolume's border is left alone.
        with pytest.raises(BakeError):
            loop.apply("OEM", [Injection("/sub/y", content=b"")])


# Partition tables


def set_entry(number: int, at: int, value: int) -> Callable[[bytearray, bytearray], None]:
    """For `rewrite_table`: put a 64-bit value into the entry of a partition."""
    return lambda _, entries: struct.pack_into("<Q", entries, (number - 1) * 128 + at, value)


def set_header(at: int, form: str, value: int) -> Callable[[bytearray, bytearray], None]:
    return lambda header, _: struct.pack_into(form, header, at, value)


USR_A = LAYOUTS["old"]["USR-A"][0]
BROKEN_TABLES: dict[str, tuple[Callable[[Path], None], str]] = {
    "wrong header checksum": (lambda image: patch(image, SECTOR + 60, b"\xa5"), "fails the checksum"),
    "wrong entries checksum": (lambda image: patch(image, 2 * SECTOR + 40, b"\xa5"), "fail the checksum"),
    "backup only": (lambda image: patch(image, SECTOR, bytes(34 * SECTOR)), "disk.raw has no GPT"),
    "primary only": (lambda image: patch(image, DISK_BYTES["old"] - SECTOR, bytes(SECTOR)), "backup .* is missing"),
    "overlap": (lambda image: rewrite_table(image, set_entry(4, 32, USR_A + 8)), "'USR-B' overlaps 'USR-A'"),
    "beyond the end": (lambda image: rewrite_table(image, set_entry(9, 40, 1 << 40)), "'ROOT' reaches beyond"),
    "far beyond": (lambda image: rewrite_table(image, set_entry(9, 40, (1 << 64) - 1)), "'ROOT' reaches beyond"),
    "ends before it starts": (lambda image: rewrite_table(image, set_entry(9, 40, 5)), "'ROOT' reaches beyond"),
    "millions of entries": (lambda image: rewrite_table(image, set_header(80, "<I", 1 << 31)), "unusual form"),
    "entries of another size": (lambda image: rewrite_table(image, set_header(84, "<I", 256)), "unusual form"),
    "entries far away": (lambda image: rewrite_table(image, set_header(72, "<Q", 1 << 60)), "damaged|differ"),
    "alternate far away": (lambda image: rewrite_table(image, set_header(32, "<Q", 1 << 63)), "shorter than"),
    "cut short": (lambda image: image.open("r+b").truncate(DISK_BYTES["old"] // 2), "shorter than"),
    "empty": (lambda image: image.open("r+b").truncate(0), "disk.raw has no GPT"),
}


@pytest.mark.parametrize("case", BROKEN_TABLES)
def test_broken_partition_tables(open_editor: Open, disk: Path, host: Path, case: str) -> None:
    break_it, words = BROKEN_TABLES[case]
    break_it(disk)
    refused(open_editor, disk, ImageError, words)


def test_a_table_of_more_than_128_entries_is_read(open_editor: Open, disk: Path, work: Path, host: Path) -> None:
    """It is unusual but allowed; sgdisk makes one. Growing needs the usual 128 and says so."""
    tool("sgdisk", "--resize-table=192", "--move-main-table=2", disk)
    with open_editor(disk) as editor:
        editor.apply("ROOT", ENTRIES)
        assert editor.read("ROOT", ENTRIES[0].path) == b"an extension"
    before = content_digest(disk)
    try:
        grow_root(disk, ROOT_BYTES + MIB, DISK_BYTES["old"] + MIB, work)
    except ImageError:
        assert content_digest(disk) == before
