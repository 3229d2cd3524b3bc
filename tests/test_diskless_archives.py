"""Machines without a disk: cpio archives as cpio(1) reads them, and files added to a squashfs as three others do."""

from __future__ import annotations

import gzip
import hashlib
import os
import random
import subprocess
from pathlib import Path

import pytest
from disks import tool

from baker.diskless import cpio, squashfs
from baker.diskless.content import check_usr
from baker.errors import ImageError
from baker.model import Injection

CURRENT = "stable/amd64-usr/current/flatcar_production_pxe_image.cpio.gz"
EPOCH = 1_700_000_000


def noise(size: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(size)


def pack(target: Path, files: list[Injection]) -> None:
    with target.open("wb") as file:
        cpio.pack(file, files, EPOCH)


def test_cpio_and_gunzip_read_what_is_packed(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(noise(200_001))
    files = [
        Injection("/usr/share/oem/sysext/a.raw", source=source, mode=0o640),
        Injection("/usr/share/oem/empty", content=b""),
        Injection("/usr/share/oem/link", symlink="/somewhere/else"),
    ]
    packed = tmp_path / "packed.gz"
    pack(packed, files)
    (tmp_path / "out").mkdir()
    subprocess.run(["cpio", "-idm", "--quiet"], input=tool("gunzip", "-c", packed), cwd=tmp_path / "out", check=True)
    oem = tmp_path / "out/usr/share/oem"
    assert (oem / "sysext/a.raw").read_bytes() == source.read_bytes()
    assert (oem / "sysext/a.raw").stat().st_mode & 0o7777 == 0o640
    assert (oem / "sysext/a.raw").stat().st_mtime == EPOCH
    assert (oem / "sysext").stat().st_mode & 0o7777 == 0o755
    assert (oem / "empty").read_bytes() == b""
    assert (oem / "link").readlink() == Path("/somewhere/else")

    again = tmp_path / "again.gz"
    pack(again, list(reversed(files)))
    assert again.read_bytes() == packed.read_bytes()


def test_only_one_file_of_a_release_changes(stand_in: Path, tmp_path: Path) -> None:
    """The stand-in's cpio is two archives in a row, as an appended one makes of Flatcar's."""
    published, usr, new = stand_in / CURRENT, tmp_path / "usr.squashfs", tmp_path / "new.cpio.gz"
    cpio.extract(published, "usr.squashfs", usr)
    with new.open("wb") as file:
        cpio.replace(published, "usr.squashfs", usr, file)
    before = gzip.decompress(published.read_bytes())
    assert tool("gunzip", "-c", new) == before

    usr.write_bytes(b"another one")
    with new.open("wb") as file:
        cpio.replace(published, "usr.squashfs", usr, file)
    cpio.extract(new, "usr.squashfs", tmp_path / "read")
    assert (tmp_path / "read").read_bytes() == b"another one"
    # What follows, here the second archive with the initrd, is as it was.
    assert gzip.decompress(new.read_bytes())[-(4 << 20) :] == before[-(4 << 20) :]


@pytest.mark.parametrize(
    "content", [b"", b"no gzip", gzip.compress(b"no cpio at all"), gzip.compress(bytes(4096))],
    ids=["empty", "no gzip", "no cpio", "zeros"],
)  # fmt: skip
def test_other_files_are_no_archive(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.gz").write_bytes(content)
    with pytest.raises(ImageError, match=r"x\.gz"):
        cpio.extract(tmp_path / "x.gz", "usr.squashfs", tmp_path / "out")


def test_an_archive_that_is_cut_short_is_an_error(tmp_path: Path) -> None:
    source, packed = tmp_path / "usr.squashfs", tmp_path / "packed.gz"
    source.write_bytes(noise(300_000))
    pack(packed, [Injection("/usr.squashfs", source=source)])
    whole = packed.read_bytes()
    for size in (12, 100, 65_000, len(whole) - 300):
        packed.write_bytes(whole[:size])
        with pytest.raises(ImageError):
            cpio.extract(packed, "usr.squashfs", tmp_path / "out")


def test_a_forged_archive_is_read_or_refused(tmp_path: Path) -> None:
    source, packed, forged = tmp_path / "usr.squashfs", tmp_path / "packed.gz", tmp_path / "forged.gz"
    source.write_bytes(noise(2000))
    pack(packed, [Injection("/usr.squashfs", source=source), Injection("/etc/x", content=b"x")])
    whole = gzip.decompress(packed.read_bytes())
    rng = random.Random(3)
    for _ in range(300):
        content = bytearray(whole)
        for _ in range(rng.randrange(1, 5)):
            content[rng.randrange(400)] = rng.choice(b"0123456789ABCDEFabcdef\x00\xff/.-")
        forged.write_bytes(gzip.compress(bytes(content), 0))
        try:
            cpio.extract(forged, "usr.squashfs", tmp_path / "out")
        except ImageError:
            continue
        assert (tmp_path / "out").stat().st_size <= len(whole)


# Files added to a squashfs


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What Flatcar's /usr has of everything: many files, owners, attributes, a built-in sysext."""
    tree = tmp_path_factory.mktemp("usr")
    (tree / "share/flatcar/etc/extensions").mkdir(parents=True)
    (tree / "share/flatcar/sysext").mkdir()
    (tree / "share/flatcar/etc/extensions/docker-flatcar.raw").symlink_to("/usr/share/flatcar/sysext/docker.raw")
    (tree / "share/many").mkdir()
    for number in range(1500):
        (tree / f"share/many/{number}").write_bytes(noise(number, number))
    (tree / "big").write_bytes(noise(500_000))
    (tree / "hard").hardlink_to(tree / "big")
    (tree / "setuid").touch(0o644)
    (tree / "setuid").chmod(0o4755)
    os.setxattr(tree / "big", "user.note", b"kept")
    os.chown(tree / "share/many/7", 0, 42)
    return tree


def make_usr(tree: Path, folder: Path, *options: str) -> Path:
    """A squashfs of the tree."""
    image = folder / "before.squashfs"
    tool("mksquashfs", tree, image, "-quiet", "-no-progress", *options)
    return image


def additions(folder: Path) -> list[Injection]:
    source = folder / "tools.raw"
    source.write_bytes(noise(700_001))
    return [
        Injection("/share/flatcar/sysext/tools.raw", source=source),
        Injection("/share/flatcar/etc/extensions/tools.raw", symlink="/usr/share/flatcar/sysext/tools.raw"),
        Injection("/share/flatcar/etc/extensions/docker-flatcar.raw", symlink="/dev/null", replace=True),
        Injection("/new/folder/text", content=b"hello"),
    ]


def listing(image: Path) -> dict[str, str]:
    """What unsquashfs says of every path."""
    lines = tool("unsquashfs", "-UTC", "-lln", image).decode().splitlines()
    return {line.partition("squashfs-root")[2].partition(" -> ")[0]: line for line in lines if "squashfs-root" in line}


def digests(folder: Path) -> dict[str, str]:
    """The sha256 of every regular file below a folder."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*") if path.is_file() and not path.is_symlink()
    }  # fmt: skip


@pytest.mark.parametrize(
    "options",
    [
        ["-comp", "gzip"],
        ["-comp", "zstd", "-b", "1M"],
        ["-comp", "xz", "-Xbcj", "x86"],
        ["-comp", "gzip", "-no-fragments", "-no-xattrs", "-no-exports", "-noI"],
    ],
    ids=" ".join,
)
def test_everything_that_is_there_stays_as_it_is(options: list[str], tree: Path, tmp_path: Path) -> None:
    before, after = make_usr(tree, tmp_path, *options), tmp_path / "after.squashfs"
    added = additions(tmp_path)
    squashfs.add_files(before, after, added, EPOCH)
    check_usr(before, after, added)

    old, new = listing(before), listing(after)
    for item in added:
        assert item.path in new
        old.pop(item.path, None)
    folders = {str(parent).rstrip("/") for item in added for parent in Path(item.path).parents}
    assert {path: line for path, line in new.items() if path in old and path not in folders} == {
        path: line for path, line in old.items() if path not in folders
    }
    for folder in folders & old.keys():
        assert new[folder].split()[:2] == old[folder].split()[:2], "mode or owner of a folder changed"

    tool("unsquashfs", "-quiet", "-no-progress", "-d", tmp_path / "old", before)
    tool("unsquashfs", "-quiet", "-no-progress", "-d", tmp_path / "new", after)
    was, now = digests(tmp_path / "old"), digests(tmp_path / "new")
    assert {name: now.get(name) for name in was} == was
    assert now.keys() - was.keys() == {"share/flatcar/sysext/tools.raw", "new/folder/text"}
    assert (tmp_path / "new/share/flatcar/sysext/tools.raw").read_bytes() == noise(700_001)
    assert (tmp_path / "new/share/flatcar/etc/extensions/docker-flatcar.raw").readlink() == Path("/dev/null")
    if "-no-xattrs" not in options:
        assert os.getxattr(tmp_path / "new/big", "user.note") == b"kept"
    # mksquashfs reads all tables before it appends, in another way than unsquashfs.
    (tmp_path / "more").write_text("more")
    tool("mksquashfs", tmp_path / "more", after, "-quiet", "-no-progress", "-no-recovery")


def test_the_kernel_reads_the_result(tree: Path, tmp_path: Path) -> None:
    before, after, mounted = (
        make_usr(tree, tmp_path, "-comp", "zstd"),
        tmp_path / "after.squashfs",
        tmp_path / "mounted",
    )
    squashfs.add_files(before, after, additions(tmp_path), EPOCH)
    mounted.mkdir()
    tool("mount", "-o", "loop,ro", after, mounted)
    try:
        assert (mounted / "share/flatcar/sysext/tools.raw").read_bytes() == noise(700_001)
        assert (mounted / "share/many/1499").read_bytes() == noise(1499, 1499)
        assert (mounted / "share/many/7").stat().st_gid == 42
        assert (mounted / "setuid").stat().st_mode & 0o7777 == 0o4755
        assert sorted(path.name for path in (mounted / "share/flatcar/etc/extensions").iterdir()) == [
            "docker-flatcar.raw", "tools.raw",
        ]  # fmt: skip
    finally:
        tool("umount", mounted)


def test_equal_additions_give_equal_bytes(tree: Path, tmp_path: Path) -> None:
    before, added = make_usr(tree, tmp_path, "-comp", "zstd"), additions(tmp_path)
    for name, files in (("one", added), ("two", list(reversed(added)))):
        squashfs.add_files(before, tmp_path / name, files, EPOCH)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("/big", "is in /usr already"),
        ("/share/flatcar", "is in /usr already"),
        ("/big/below", "a folder on the way to it is none"),
        ("/share/flatcar/etc/extensions/docker-flatcar.raw/x", "a folder on the way to it is none"),
    ],
)
def test_what_is_there_is_not_replaced(path: str, said: str, tree: Path, tmp_path: Path) -> None:
    before = make_usr(tree, tmp_path, "-comp", "gzip")
    with pytest.raises(ImageError, match=said):
        squashfs.add_files(before, tmp_path / "after", [Injection(path, content=b"new")], EPOCH)


def test_a_damaged_squashfs_is_an_image_error_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "tree/share").mkdir(parents=True)
    (tmp_path / "tree/share/file").write_bytes(noise(3000))
    image = tmp_path / "small.squashfs"
    tool("mksquashfs", tmp_path / "tree", image, "-quiet", "-no-progress", "-noI")
    whole = image.read_bytes()
    rng = random.Random(7)
    damaged = tmp_path / "damaged"
    refused = 0
    for _ in range(300):
        content = bytearray(whole[: rng.choice([len(whole), rng.randrange(len(whole))])])
        for _ in range(rng.randrange(1, 4)):
            if content:
                content[rng.randrange(len(content))] = rng.randrange(256)
        damaged.write_bytes(content)
        try:
            squashfs.add_files(damaged, tmp_path / "after", [Injection("/share/new", content=b"new")], EPOCH)
        except ImageError:
            refused += 1
    assert refused > 50


def test_a_result_that_differs_elsewhere_is_refused(tree: Path, tmp_path: Path) -> None:
    before = make_usr(tree, tmp_path, "-comp", "gzip")
    added = additions(tmp_path)
    after = tmp_path / "after"
    squashfs.add_files(before, after, added, EPOCH)
    with pytest.raises(ImageError, match="/new of /usr appeared or is gone"):
        check_usr(before, after, added[:3])
    with pytest.raises(ImageError, match="was not written"):
        check_usr(before, before, added)
