"""The offline and the loop backend do the same: equal trees, equal refusals, for both layouts and filesystems."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from disks import MIB, make_disk
from loops import needs_loop

from baker.disk import check_filesystems, read_table
from baker.errors import BakeError
from baker.helper_client import Helper, identity
from baker.inject import Editor
from baker.model import Injection
from baker.offline import OfflineEditor
from baker.privilege import LoopEditor
from baker.sparse import clone, content_digest, punch

pytestmark = needs_loop

EPOCH = 1_700_000_000
Open = Callable[[Path], AbstractContextManager[Editor]]
ROOT_FILES = {
    "/etc/machine-info": b"PRETTY_HOSTNAME=demo\n",
    "/etc/extensions/old.raw": "/opt/extensions/old/old.raw",
    "/opt/extensions/old/old.raw": b"an old extension\n" * 1000,
    "/etc/a name with spaces": b"",
}
OEM_FILES = {"/oem-release": b"ID=demo\n", "/sysext/kept.raw": bytes(range(256)) * 500}


@pytest.fixture(scope="module", params=["old", "new"])
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(request.param)
    return make_disk(folder / "disk.raw", request.param, root_files=ROOT_FILES, oem_files=OEM_FILES)


@pytest.fixture(scope="module")
def helper() -> Iterator[Helper]:
    with Helper() as helper:
        yield helper


@pytest.fixture
def pair(base: Path, tmp_path: Path, helper: Helper) -> tuple[Editor, Editor, Path, Path]:
    """The two editors, not yet entered, and their disks."""
    for name in ("offline", "loop"):
        clone(base, tmp_path / name)
    offline, loop = tmp_path / "offline", tmp_path / "loop"
    return OfflineEditor(offline, tmp_path, EPOCH), LoopEditor(loop, tmp_path, EPOCH, helper), offline, loop


def injections(folder: Path) -> list[Injection]:
    """Files of every awkward size, links, directories, owners and modes; some replace what is there."""
    large, sparse = folder / "large.raw", folder / "sparse.raw"
    large.write_bytes(hashlib.sha256(b"seed").digest() * (20 * MIB // 32) + b"end")
    with sparse.open("wb") as file:
        file.seek(3 * MIB)
        file.write(b"data behind a hole")
        file.truncate(5 * MIB + 1)
    return [
        Injection("/opt/extensions/demo/demo-1-x86-64.raw", source=large, mode=0o640, uid=1000, gid=70_000),
        Injection("/etc/extensions/demo.raw", symlink="/opt/extensions/demo/demo-1-x86-64.raw"),
        Injection("/opt/extensions/demo/sparse.raw", source=sparse),
        Injection("/etc/sysupdate.demo.d/demo.conf", content=b"[Transfer]\nVerify=false\n", mode=0o600),
        Injection("/etc/empty", content=b"", mode=0o444),
        Injection("/etc/one-block", content=b"x" * 4096),
        Injection("/etc/one-block-and-a-byte", content=b"x" * 4097),
        Injection("/etc/name with spaces/and ünïcode", content="größe".encode()),
        Injection("/etc/long-link", symlink="/" + "long/" * 60 + "end"),
        Injection("/etc/docker-flatcar.raw", symlink="/dev/null", uid=5, gid=6),
        Injection("/var/lib/demo", mode=0o1770, uid=500, gid=501),
        Injection("/var/lib/demo/inside", content=b"inside", mode=0),
        Injection("/etc/" + "n" * 255, content=b"long name"),
    ]


@pytest.mark.parametrize("label", ["ROOT", "OEM"])
def test_both_give_the_same_tree(pair: tuple[Editor, Editor, Path, Path], tmp_path: Path, label: str) -> None:
    offline, loop, *disks = pair
    entries = injections(tmp_path)
    if label == "ROOT":
        entries += [
            Injection("/etc/machine-info", content=b"replaced", mode=0o600, replace=True),
            Injection("/etc/extensions/old.raw", symlink="/dev/null", replace=True),
            Injection("/opt/extensions/old/old.raw", symlink="../demo/demo.raw", replace=True),
        ]
    else:
        entries += [Injection("/sysext/kept.raw", content=b"replaced", replace=True)]
    with offline, loop:
        for editor in (offline, loop):
            editor.apply(label, entries)
        trees = [editor.tree(label) for editor in (offline, loop)]
        assert trees[0] == trees[1]
        assert list(trees[0]) == list(trees[1])
        for entry in entries:
            assert trees[0][entry.path].mode == (0o777 if entry.symlink else entry.mode)
    for disk in disks:
        check_filesystems(disk, read_table(disk), [label], tmp_path)


@pytest.mark.parametrize("label", ["ROOT", "OEM"])
def test_both_write_the_same_times(
    pair: tuple[Editor, Editor, Path, Path], helper: Helper, tmp_path: Path, label: str
) -> None:
    """`Node` has no times, so the kernel is asked for those of both results."""
    offline, loop, *disks = pair
    times = []
    with offline, loop:
        for editor in (offline, loop):
            editor.apply(label, injections(tmp_path))
    for disk in disks:
        with helper.mounted(disk, identity(disk.stat()), read_table(disk).get(label), readonly=True):
            nodes = helper.request("list", path="/", deep=True)["nodes"]
            # mkfs.btrfs gives the root directory the time it runs at.
            times.append({node["path"]: node["mtime"] for node in nodes if (label, node["path"]) != ("OEM", "/")})
    assert times[0] == times[1]
    assert times[1]["/etc/extensions/demo.raw"] == times[1]["/opt/extensions/demo"] == EPOCH


@pytest.mark.parametrize("label", ["ROOT", "OEM"])
def test_both_leave_the_rest_of_the_disk_alone(
    pair: tuple[Editor, Editor, Path, Path], base: Path, tmp_path: Path, label: str
) -> None:
    offline, loop, *disks = pair
    with offline, loop:
        for editor in (offline, loop):
            editor.apply(label, injections(tmp_path))
    clone(base, tmp_path / "untouched")
    partition = read_table(base).get(label)
    digests = set()
    for disk in (*disks, tmp_path / "untouched"):
        assert read_table(disk) == read_table(base)
        with disk.open("r+b") as file:
            punch(file.fileno(), partition.offset, partition.size)
        digests.add(content_digest(disk))
    assert len(digests) == 1


REFUSED = {
    "exists": [Injection("/etc/fine", content=b""), Injection("/etc/machine-info", content=b"")],
    "directory": [Injection("/etc/fine", content=b""), Injection("/etc", content=b"", replace=True)],
    "directory over a file": [Injection("/etc/machine-info")],
    "below a link": [Injection("/etc/extensions/old.raw/file", content=b"")],
    "below a file": [Injection("/etc/machine-info/file", content=b"")],
    "not plain": [Injection("/etc/../file", content=b"")],
    "twice": [Injection("/etc/file", content=b""), Injection("/etc/file", content=b"")],
    "too large": [Injection("/etc/fine", content=b""), Injection("/large.raw", source=Path("large.raw"))],
}


@pytest.mark.parametrize("case", REFUSED)
def test_both_refuse_the_same_with_the_same_words(
    pair: tuple[Editor, Editor, Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    offline, loop, *disks = pair
    monkeypatch.chdir(tmp_path)
    with (tmp_path / "large.raw").open("wb") as file:
        file.truncate(8 << 30)
    before = [content_digest(disk) for disk in disks]
    refusals = []
    with offline, loop:
        for editor in (offline, loop):
            with pytest.raises(BakeError) as refusal:
                editor.apply("ROOT", REFUSED[case])
            numbers = re.sub(r"\d+ are free", "N are free", refusal.value.message)
            refusals.append((refusal.type, numbers, refusal.value.hint))
    assert refusals[0] == refusals[1]
    assert [content_digest(disk) for disk in disks] == before


@pytest.mark.parametrize("label", ["ROOT", "OEM"])
def test_both_see_the_same(pair: tuple[Editor, Editor, Path, Path], label: str) -> None:
    offline, loop, *_ = pair
    with offline, loop:
        for path in ("/", "/etc", "/etc/machine-info", "/etc/extensions/old.raw", "/sysext", "/none", "/none/below"):
            assert offline.tree(label, path) == loop.tree(label, path), path
            assert offline.read(label, path) == loop.read(label, path), path
        assert (
            offline.read("OEM", "/sysext/kept.raw", 10) == loop.read("OEM", "/sysext/kept.raw", 10) == bytes(range(10))
        )
        space = [editor.free_bytes(label) for editor in (offline, loop)]
    # On btrfs the offline backend must leave room for what mkfs.btrfs needs besides the content.
    assert space[0] == space[1] if label == "ROOT" else 0 < space[0] < space[1]
    for absent in ("USR-A", "OEM-CONFIG", "NONE"):
        messages = []
        with offline, loop:
            for editor in (offline, loop):
                with pytest.raises(BakeError) as refusal:
                    editor.tree(absent)
                messages.append((refusal.type, refusal.value.message, refusal.value.hint))
        assert messages[0] == messages[1]
