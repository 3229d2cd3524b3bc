"""What a sysext says about itself is read from every filesystem, without mounting, and by os-release(5)'s rules."""

from __future__ import annotations

import hashlib
import os
import struct
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sysexts import make_sysext, pack, write_tree

from baker.contents import open_contents, resolve
from baker.errors import ImageError, UsageError
from baker.extension_release import MAX_RELEASE_SIZE, parse_release, validate_name
from baker.run import run
from baker.sysext import read_sysext


@pytest.mark.parametrize("fs", ["squashfs", "erofs", "erofs-lz4", "erofs-chunks", "ext4", "ddi", "ddi-usr"])
def test_every_filesystem_gives_the_same_metadata(tmp_path: Path, fs: str) -> None:
    release = 'ID=flatcar\nVERSION_ID="4593.2.0"\nSYSEXT_LEVEL=1.0\nARCHITECTURE=arm64\nEXTENSION_RELOAD_MANAGER=1\n'
    image = make_sysext(tmp_path, "tool", release, fs=fs)

    sysext = read_sysext(image, "tool")

    assert (sysext.name, sysext.path, sysext.fs) == ("tool", image, fs.split("-")[0])
    assert (sysext.os_id, sysext.version_id, sysext.sysext_level) == ("flatcar", "4593.2.0", "1.0")
    assert (sysext.architecture, sysext.reload_manager) == ("arm64", True)
    assert sysext.size == image.stat().st_size
    assert sysext.sha256 == hashlib.sha256(image.read_bytes()).hexdigest()


@pytest.mark.parametrize("fs", ["squashfs", "erofs", "erofs-lz4", "erofs-chunks", "ext4"])
def test_the_listing_is_that_of_the_tree(tmp_path: Path, fs: str) -> None:
    tree = write_tree(
        tmp_path / "tree", "tool", files={"usr/bin/a tool": b"\x7fELF" + bytes(9000), "usr/share/empty": b""}
    )
    for number in range(300):  # more than one directory block
        (tree / "usr/share" / f"a file with a rather long name {number}").write_text(str(number))
    (tree / "usr/bin/link").symlink_to("a tool")
    (tree / "usr/bin/long").symlink_to(
        "../bin/" * 20 + "a tool"
    )  # ext4 keeps short links in the inode, longer ones not
    (tree / "usr/bin/set").write_bytes(b"x")
    (tree / "usr/bin/set").chmod(0o6751)
    os.mkfifo(tree / "usr/pipe")
    (tree / "usr/share").chmod(0o1777)

    with open_contents(pack(tree, tmp_path / "tool.raw", fs)) as opened:
        contents = opened.contents
        assert contents is not None
        found = dict(contents.nodes)
        for path in tree.rglob("*"):
            node = found.pop("/" + str(path.relative_to(tree)))
            status = path.lstat()
            assert node.mode == status.st_mode & 0o7777
            assert (node.uid, node.gid) == (0, 0)
            expected = "symlink" if path.is_symlink() else "directory" if path.is_dir() else "file"
            assert node.kind == ("other" if path.is_fifo() else expected)
            if node.kind == "file":
                assert node.size == status.st_size
            if node.kind == "symlink":
                assert contents.link(node.path) == os.readlink(path)
        assert not found


@pytest.mark.parametrize("fs", ["squashfs", "erofs", "ext4"])
def test_links_are_followed_inside_the_tree_only(tmp_path: Path, fs: str) -> None:
    tree = write_tree(tmp_path / "tree", "tool", release=None)
    folder = tree / "usr/lib/extension-release.d"
    folder.mkdir(parents=True)
    (tree / "usr/share/real").write_text("ID=_any\n")
    (folder / "extension-release.tool").symlink_to("/usr/lib/../../../../usr/share/link")
    (tree / "usr/share/link").symlink_to("real")
    (tree / "usr/share/loop").symlink_to("loop")
    (tree / "usr/share/host").symlink_to("/etc/passwd")
    image = pack(tree, tmp_path / "tool.raw", fs)

    assert read_sysext(image, "tool").os_id == "_any"
    with open_contents(image) as opened:
        assert opened.contents is not None
        assert resolve(opened.contents, "/usr/share/link") == "/usr/share/real"
        assert resolve(opened.contents, "/usr/share/loop") is None
        assert resolve(opened.contents, "/usr/share/host") is None


@pytest.mark.parametrize("fs", ["squashfs", "erofs", "erofs-lz4", "erofs-chunks", "ext4", "ddi-usr"])
def test_a_large_file_is_read_as_far_as_asked(tmp_path: Path, fs: str) -> None:
    content = (os.urandom(5000) + bytes(95_000)) * 12 + b"the end"  # compressible, with holes for erofs-chunks
    image = make_sysext(tmp_path, "tool", files={"usr/bin/tool": content}, fs=fs)
    with open_contents(image) as opened:
        assert opened.contents is not None
        for limit in (20, 4096, 1_000_000, 9_000_000):
            assert opened.contents.read("/usr/bin/tool", limit) == content[:limit]


def test_a_compressed_release_file_of_an_erofs_is_read(tmp_path: Path) -> None:
    image = make_sysext(tmp_path, "tool", "# " + "x" * 20_000 + "\nID=flatcar\n", fs="erofs-lz4")
    assert read_sysext(image, "tool").os_id == "flatcar"


def test_a_filesystem_we_cannot_read_is_named(tmp_path: Path) -> None:
    image = make_sysext(tmp_path, "tool", fs="ddi")
    run(["sfdisk", "--quiet", "--part-type", image, "1", "0657fd6d-a4ab-43c4-84e5-0933c84b4f4f"])  # swap
    sysext = read_sysext(image, "tool")
    assert (sysext.fs, sysext.os_id) == ("ddi", "")


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"", "is empty"),
        (b"\x1f\x8b" + bytes(2000), "compressed by gzip"),
        (b"<!DOCTYPE html><html>404", "HTML page"),
        (b"\x7fELF" + bytes(2000), "a program"),
        (b"garbage!" * 100_000, "no filesystem we know"),
    ],
)
def test_what_is_not_a_sysext_is_refused_by_what_it_is(tmp_path: Path, data: bytes, what: str) -> None:
    image = tmp_path / "tool.raw"
    image.write_bytes(data)
    with pytest.raises(ImageError, match=rf"tool\.raw is not a sysext: it .*{what}"):
        read_sysext(image, "tool")


def test_a_folder_or_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is a folder"):
        read_sysext(tmp_path, "tool")
    with pytest.raises(UsageError, match="does not exist"):
        read_sysext(tmp_path / "none.raw", "tool")


@pytest.mark.parametrize("fs", ["squashfs", "erofs"])
def test_a_truncated_image_is_refused(tmp_path: Path, fs: str) -> None:
    image = make_sysext(tmp_path, "tool", files={"usr/bin/tool": os.urandom(200_000)}, fs=fs)
    os.truncate(image, 100_000)
    with pytest.raises(ImageError, match=r"tool\.raw is cut short"):
        read_sysext(image, "tool")


@pytest.mark.parametrize("fs", ["squashfs", "erofs", "ext4"])
def test_garbage_behind_the_magic_is_refused(tmp_path: Path, fs: str) -> None:
    image = make_sysext(tmp_path, "tool", fs=fs)
    data = bytearray(image.read_bytes())
    keep = {"squashfs": (0, 96), "erofs": (1024, 1024 + 128), "ext4": (1024, 2048)}[fs]
    image.write_bytes(bytes(keep[0]) + data[slice(*keep)] + b"\xa5" * (len(data) - keep[1]))
    with pytest.raises(ImageError, match=r"tool\.raw "):
        read_sysext(image, "tool")


def test_a_huge_inode_count_is_refused_before_it_is_listed(tmp_path: Path) -> None:
    image = make_sysext(tmp_path, "tool")
    data = bytearray(image.read_bytes())
    struct.pack_into("<I", data, 4, 0x7FFFFFFF)
    image.write_bytes(data)
    with pytest.raises(ImageError, match="more than 500000 files"):
        read_sysext(image, "tool")


def test_a_line_break_in_a_name_forges_no_entry(tmp_path: Path) -> None:
    tree = write_tree(tmp_path / "tree", "tool")
    (tree / "usr/share/a\nb").write_text("")
    for fs in ("ext4", "erofs"):
        with open_contents(pack(tree, tmp_path / f"{fs}.raw", fs)) as opened:
            assert opened.contents is not None
            assert "/usr/share/a\nb" in opened.contents.nodes
    with pytest.raises(ImageError, match="line break"):
        read_sysext(pack(tree, tmp_path / "squashfs.raw"), "tool")


def test_an_erofs_name_with_a_slash_is_refused(tmp_path: Path) -> None:
    image = make_sysext(tmp_path, "tool", files={"usr/share/XXetcXX": "x"}, fs="erofs")
    image.write_bytes(image.read_bytes().replace(b"XXetcXX", b"../etc/"))
    with pytest.raises(ImageError, match="damaged"):
        read_sysext(image, "tool")


@given(st.binary(max_size=400))
def test_a_damaged_erofs_ends_in_an_answer(tmp_path_factory: pytest.TempPathFactory, junk: bytes) -> None:
    """Whatever is written over the metadata, the reader neither hangs nor fails in another way."""
    folder = tmp_path_factory.getbasetemp()
    image = folder / "fuzzed.raw"
    if not (folder / "sound.raw").exists():
        make_sysext(folder, "sound", files={f"usr/share/{n}": str(n) for n in range(30)}, fs="erofs")
    data = bytearray((folder / "sound.raw").read_bytes())
    at = 1024 + (sum(junk) * 31 + len(junk)) % (len(data) - 1500)
    data[at : at + len(junk)] = junk[: len(data) - at]
    image.write_bytes(data)
    try:
        with open_contents(image) as opened:
            assert opened.contents is None or opened.contents.nodes is not None
    except ImageError:
        pass


def test_release_files_are_unquoted_as_a_shell_would() -> None:
    text = (
        '# comment\n\nID=flatcar\nNAME="a \\"b\\" \\$c \\\\d\\`"\nX=\'single $x \\\'\nPLAIN=a\\ b\nEMPTY=\n'
        "  PADDED=yes  \r\nno assignment\nbad-key=1\nID=last\n"
    )
    assert parse_release(text.encode()) == {
        "ID": "last", "NAME": 'a "b" $c \\d`', "X": "single $x \\", "PLAIN": "a b", "EMPTY": "", "PADDED": "yes",
    }  # fmt: skip


def test_release_files_agree_with_the_shell() -> None:
    text = 'A="x \\"y\\" z"\nB=\'l $HOME\'\nC=plain\nD="\\$q \\n"\n'
    shell = subprocess.run(
        ["sh", "-c", f'{text}\nprintf "%s\\0" "$A" "$B" "$C" "$D"'], capture_output=True, check=True
    )
    assert list(parse_release(text.encode()).values()) == shell.stdout.decode().split("\0")[:-1]


@pytest.mark.parametrize(
    "data", [b'ID="flatcar', b"ID='x", b"ID=\xff\xfe", b"ID=a\0b", b"# " + b"x" * MAX_RELEASE_SIZE]
)
def test_release_files_that_are_none_are_refused(data: bytes) -> None:
    with pytest.raises(ImageError):
        parse_release(data)


@given(st.binary(max_size=200))
def test_any_release_file_gives_fields_or_an_error(data: bytes) -> None:
    try:
        fields = parse_release(data)
    except ImageError:
        return
    assert all(isinstance(value, str) for value in fields.values())


def test_a_huge_release_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"tool\.raw: .*larger than"):
        read_sysext(make_sysext(tmp_path, "tool", "#" * 5_000_000), "tool")


@pytest.mark.parametrize("name", ["wasmtime", "kubernetes-v1.30", "a", "c++", "x@1", "_x", "0"])
def test_good_names_pass(name: str) -> None:
    assert validate_name(name) == name


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", ".hidden", "-x", "a/b", "a b", "ü", "a\n", "x" * 300, "a%b", "tool.raw", "../x.raw", ".raw"],
)
def test_bad_names_are_refused(name: str) -> None:
    with pytest.raises(UsageError):
        validate_name(name)


@pytest.mark.parametrize("fs", ["squashfs", "erofs-lz4", "ext4"])
def test_odd_file_names_are_no_options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fs: str) -> None:
    monkeypatch.chdir(tmp_path)
    make_sysext(tmp_path, "tool", "# " + "x" * 9000 + "\nID=_any\n", fs=fs).rename("-d ?x=1*")
    assert read_sysext(Path("-d ?x=1*"), "tool").os_id == "_any"
