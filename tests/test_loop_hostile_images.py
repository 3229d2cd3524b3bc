"""What the loop backend and its helper make of hostile images; tests/test_hostile_images.py has those for both."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from disks import make_disk, offset
from loops import Talk, assert_nothing_left, debugfs, make_ext4, mounting, needs_loop, writing

from baker.errors import BakeError, EnvironmentFault, ImageError, UsageError
from baker.model import Injection
from baker.privilege import Helper, LoopEditor
from baker.sparse import clone, content_digest

pytestmark = needs_loop


@pytest.fixture(scope="module")
def helper() -> Iterator[Helper]:
    with Helper() as helper:
        yield helper


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_disk(tmp_path_factory.mktemp("base") / "disk.raw")


@pytest.fixture
def disk(base: Path, tmp_path: Path) -> Path:
    clone(base, tmp_path / "disk.raw")
    return tmp_path / "disk.raw"


@pytest.fixture
def host(tmp_path: Path) -> Path:
    """A folder of the host, which must stay as it is."""
    folder = tmp_path / "host"
    (folder / "extensions").mkdir(parents=True)
    (folder / "secret").write_text("of the host")
    return folder


def test_looking_follows_no_link_either(helper: Helper, disk: Path, host: Path) -> None:
    debugfs(disk, offset("old", "ROOT"), f"symlink etc {host}", f"symlink file {host}/secret")
    with LoopEditor(disk, disk.parent, 0, helper) as editor:
        assert editor.read("ROOT", "/etc/secret") is None
        assert editor.read("ROOT", "/file") is None
        assert editor.tree("ROOT", "/etc/extensions") == {}
        assert editor.tree("ROOT", "/etc/secret") == {}
        (node,) = editor.tree("ROOT", "/etc").values()
    assert (node.kind, node.symlink) == ("symlink", str(host))


def test_replacing_a_link_to_the_host_replaces_the_link(helper: Helper, disk: Path, host: Path) -> None:
    debugfs(disk, offset("old", "ROOT"), f"symlink file {host}/secret")
    with LoopEditor(disk, disk.parent, 0, helper) as editor:
        with pytest.raises(UsageError, match="exists already"):
            editor.apply("ROOT", [Injection("/file", content=b"mine")])
        editor.apply("ROOT", [Injection("/file", content=b"mine", replace=True)])
        assert editor.read("ROOT", "/file") == b"mine"
    assert (host / "secret").read_text() == "of the host"


def test_the_helper_refuses_on_its_own_account(tmp_path: Path, host: Path) -> None:
    """The rules of the editor are not what keeps root inside the image."""
    image = make_ext4(tmp_path / "image")
    debugfs(image, 0, f"symlink etc {host}", f"symlink file {host}/secret", "mknod tty c 5 0", "mknod pipe p")
    with Talk() as talk:
        talk.ask(mounting(image))
        for path in ("/etc/new", "/etc/extensions/new", "/tty/new", "/pipe/new"):
            assert talk.ask(writing(path, 1), b"x")["error"] == "not-directory"
        for path in ("/file", "/tty", "/pipe"):
            assert talk.ask(writing(path, 1), b"x")["error"] == "exists"
            assert talk.ask({"op": "read", "path": path, "limit": 9})["error"] == "absent"
        for path in ("/tty", "/pipe"):
            assert talk.ask(writing(path, 1, replace=True), b"x")["error"] == "exists"
        assert talk.ask({"op": "read", "path": "/etc/secret", "limit": 9})["error"] == "not-directory"
        kinds = {node["path"]: node["kind"] for node in talk.ask({"op": "list", "path": "/", "deep": True})["nodes"]}
    assert kinds == {
        "/": "directory", "/etc": "symlink", "/file": "symlink", "/tty": "other", "/pipe": "other",
        "/lost+found": "directory",
    }  # fmt: skip
    assert sorted(path.name for path in host.rglob("*")) == ["extensions", "secret"]


def test_a_damaged_filesystem_is_not_even_mounted(helper: Helper, disk: Path) -> None:
    debugfs(disk, offset("old", "ROOT"), "mkdir opt", "mkdir opt/a", "ln opt opt/a/again")
    with LoopEditor(disk, disk.parent, 0, helper) as editor, pytest.raises(ImageError, match="is damaged"):
        editor.tree("ROOT")
    assert_nothing_left(disk)


def test_the_helper_does_not_walk_in_circles(tmp_path: Path) -> None:
    image = make_ext4(tmp_path / "image")
    debugfs(image, 0, "mkdir opt", "mkdir opt/a", "ln opt opt/a/again")
    with Talk() as talk:
        talk.ask(mounting(image))
        assert talk.ask({"op": "list", "path": "/", "deep": True})["error"] == "io"
        assert talk.ask(writing("/opt/a/again/a/file", 1), b"x")["error"] == "not-directory"


def test_strange_names_are_shown_as_they_are(helper: Helper, tmp_path: Path) -> None:
    names = ["/new\nline", "/not-utf8-\udcff", '/quo"te', "/-dash"]
    disk = make_disk(tmp_path / "disk.raw", root_files=dict.fromkeys(names, b"x"))
    with LoopEditor(disk, tmp_path, 0, helper) as editor:
        assert set(names) <= set(editor.tree("ROOT"))


def test_a_partition_without_a_filesystem_is_an_image_error(helper: Helper, disk: Path) -> None:
    with LoopEditor(disk, disk.parent, 0, helper) as editor:
        for label in ("OEM-CONFIG", "EFI-SYSTEM", "NONE"):
            with pytest.raises(ImageError, match=label):
                editor.tree(label)


def test_too_little_space_is_said_before_anything_is_written(helper: Helper, disk: Path, tmp_path: Path) -> None:
    large = tmp_path / "large.raw"
    large.touch()
    before = content_digest(disk)
    with LoopEditor(disk, disk.parent, 0, helper) as editor:
        for label in ("ROOT", "OEM"):
            large.open("r+b").truncate(editor.free_bytes(label) + 1)
            with pytest.raises(EnvironmentFault, match="too little space"):
                editor.apply(label, [Injection("/large.raw", source=large)])
    assert content_digest(disk) == before


def test_a_swapped_image_is_refused(helper: Helper, disk: Path, base: Path) -> None:
    with LoopEditor(disk, disk.parent, 0, helper) as editor:
        editor.tree("ROOT")
        disk.unlink()
        clone(base, disk)
        with pytest.raises(ImageError, match="replaced"):
            editor.tree("ROOT")


@pytest.mark.parametrize("mode", [0o4755, 0o2755])
def test_nothing_setuid_is_ever_written(helper: Helper, disk: Path, mode: int) -> None:
    with LoopEditor(disk, disk.parent, 0, helper) as editor:
        with pytest.raises(BakeError):
            editor.apply("ROOT", [Injection("/etc/program", mode=mode, content=b"#!/bin/sh\n")])
        assert editor.read("ROOT", "/etc/program") is None
