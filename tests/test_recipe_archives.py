"""Archives of upstream unpack to plain trees; what tries to get out, or to fill the disk, is named and refused."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import random
import stat
import subprocess
import tarfile
import zipfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from baker.errors import ImageError, UsageError
from baker.recipe.archives import extract
from baker.recipe.landing import Limits, stays_inside

Entry = tuple[str, dict[str, object], bytes]


def entry(name: str, data: bytes = b"", **fields: object) -> Entry:
    return name, fields, data


def tar(path: Path, *entries: Entry, form: int = tarfile.PAX_FORMAT) -> Path:
    """A tar with exactly these headers, however odd."""
    with tarfile.open(path, "w", format=form) as archive:
        for name, fields, data in entries:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            for field, value in fields.items():
                setattr(info, field, value)
            archive.addfile(info, io.BytesIO(data))
    return path


def zipped(path: Path, *entries: tuple[str, int, bytes]) -> Path:
    """A zip of (name, Unix mode, content)."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, mode, data in entries:
            info = zipfile.ZipInfo(name, (2026, 8, 1, 12, 0, 0))
            info.external_attr = mode << 16
            info.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(info, data)
    return path


def link(name: str, target: str) -> Entry:
    return entry(name, type=tarfile.SYMTYPE, linkname=target)


def hard(name: str, target: str) -> Entry:
    return entry(name, type=tarfile.LNKTYPE, linkname=target)


def tree(folder: Path) -> dict[str, str]:
    """Path → kind, mode and content of everything below a folder."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_symlink():
            found[name] = f"-> {os.readlink(path)}"
        else:
            content = "" if path.is_dir() else f" {path.read_bytes()[:20].decode()}"
            found[name] = f"{stat.S_IMODE(path.stat().st_mode):o}{content}"
    return found


LAYOUT = (
    entry("app-1.0", type=tarfile.DIRTYPE, mode=0o2775),
    entry("app-1.0/bin/app", b"program", mode=0o775),
    entry("./app-1.0/etc/conf", b"text", mode=0o600, mtime=1_600_000_000),
    link("app-1.0/bin/alias", "./app"),
    link("app-1.0/lib/up", "../bin/../etc/conf"),
    hard("app-1.0/bin/twin", "app-1.0/bin/app"),
)
UNPACKED = {
    "app-1.0": "755", "app-1.0/bin": "755", "app-1.0/bin/app": "755 program", "app-1.0/bin/alias": "-> ./app",
    "app-1.0/bin/twin": "755 program", "app-1.0/etc": "755", "app-1.0/etc/conf": "644 text",
    "app-1.0/lib": "755", "app-1.0/lib/up": "-> ../bin/../etc/conf",
}  # fmt: skip


def zstd(data: bytes) -> bytes:
    return subprocess.run(
        ["zstd", "-q", "-c", "--ultra", "--long=31"], input=data, check=True, capture_output=True
    ).stdout


PACKERS = {"gzip": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress, "zstd": zstd}


@pytest.mark.parametrize("pack", [bytes, *PACKERS.values()], ids=["none", *PACKERS])
@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT], ids=["pax", "gnu"])
def test_every_compression_gives_the_same_tree(tmp_path: Path, pack: Callable[[bytes], bytes], form: int) -> None:
    archive = tmp_path / "digest.file"
    archive.write_bytes(pack(tar(tmp_path / "plain", *LAYOUT, form=form).read_bytes()))
    old = os.umask(0o077)
    try:
        extract(archive, "tar", tmp_path / "out")
    finally:
        os.umask(old)
    assert tree(tmp_path / "out") == UNPACKED
    assert (tmp_path / "out/app-1.0/etc/conf").stat().st_mtime == 1_600_000_000


def test_leading_folders_are_dropped(tmp_path: Path) -> None:
    archive = tar(tmp_path / "a.tar", *LAYOUT, entry("README", b"beside"))
    extract(archive, "tar", tmp_path / "out", strip=1)
    assert tree(tmp_path / "out") == {
        name.removeprefix("app-1.0/"): what for name, what in UNPACKED.items() if name != "app-1.0"
    }


def test_git_and_gnu_tar_archives(tmp_path: Path) -> None:
    """A tag's tarball as GitHub makes it, and one with a sparse file and a very long name."""
    source = tmp_path / "source"
    (source / "deep" / ("n" * 200)).mkdir(parents=True)
    (source / "deep" / ("n" * 200) / "file").write_bytes(b"x")
    with (source / "sparse").open("wb") as file:
        file.truncate(3 << 20)
        file.seek(1 << 20)
        file.write(b"island")
    for words in (
        ["git", "-C", source, "init", "-q"], ["git", "-C", source, "add", "."],
        ["git", "-C", source, "-c", "user.name=x", "-c", "user.email=x@example", "commit", "-qm", "x"],
        ["git", "-C", source, "archive", "--prefix=p-1/", "-o", tmp_path / "git.tar.gz", "HEAD"],
        ["tar", "-C", source, "--exclude=.git", "-cSf", tmp_path / "gnu.tar", "."],
    ):  # fmt: skip
        subprocess.run(words, check=True)
    for archive, strip in (("git.tar.gz", 1), ("gnu.tar", 0)):
        extract(tmp_path / archive, "tar", tmp_path / f"out-{strip}", strip=strip)
        assert (tmp_path / f"out-{strip}/sparse").read_bytes() == (source / "sparse").read_bytes()
        assert (tmp_path / f"out-{strip}/deep" / ("n" * 200) / "file").read_bytes() == b"x"


def test_a_zip_keeps_what_may_be_executed(tmp_path: Path) -> None:
    archive = zipped(
        tmp_path / "a.zip", ("bin/", 0o40755, b""), ("bin/consul", 0o100755, b"program"), ("LICENSE.txt", 0, b"text"),
        ("bin/alias", 0o120777, b"consul"),
    )  # fmt: skip
    extract(archive, "zip", tmp_path / "out")
    assert tree(tmp_path / "out") == {
        "bin": "755", "bin/consul": "755 program", "LICENSE.txt": "644 text", "bin/alias": "-> consul"
    }  # fmt: skip
    assert (tmp_path / "out/bin/consul").stat().st_mtime == 1_785_585_600


@pytest.mark.parametrize("compression", ["none", "gzip", "xz", "zstd"])
def test_a_debian_package(tmp_path: Path, compression: str) -> None:
    root = tmp_path / "root"
    (root / "DEBIAN").mkdir(parents=True)
    (root / "usr/bin").mkdir(parents=True)
    (root / "usr/bin/tool").write_bytes(b"odd")
    (root / "usr/bin/tool").chmod(0o755)
    (root / "DEBIAN/control").write_text("Package: x\nVersion: 1\nArchitecture: all\nMaintainer: x\nDescription: x\n")
    subprocess.run(["dpkg-deb", f"-Z{compression}", "-b", root, tmp_path / "x.deb"], check=True, capture_output=True)
    extract(tmp_path / "x.deb", "deb", tmp_path / "out")
    assert tree(tmp_path / "out") == {"usr": "755", "usr/bin": "755", "usr/bin/tool": "755 odd"}


def test_a_bare_file_gets_its_name(tmp_path: Path) -> None:
    (tmp_path / "0123.file").write_bytes(b"program")
    extract(tmp_path / "0123.file", "file", tmp_path / "out", name="kubectl")
    assert tree(tmp_path / "out") == {"kubectl": "644 program"}


HOSTILE = {
    "absolute": ([entry("/etc/passwd", b"x")], "the entry /etc/passwd has an absolute name"),
    "dots": ([entry("a/../../x", b"x")], r"the entry a/\.\./\.\./x has a name with"),
    "link out": ([link("a/b", "../../x")], r"the entry a/b is a link to \.\./\.\./x, which leads out"),
    "absolute link": ([link("a", "/etc/passwd")], "the entry a is a link to /etc/passwd, which leads out"),
    "out by two links": ([link("x/y/d", "../.."), link("x/y/e", "d/..")], r"the entry x/y/e is a link to d/\.\."),
    "circle": ([link("a", "b"), link("b", "a")], "the entry a is a link to b, which leads .* in a circle"),
    "file through a link": ([link("d", "."), entry("d/x", b"x")], "the entry d is in it twice, or once as a folder"),
    "file over a link": ([link("d", "e"), entry("d", b"x")], "the entry d is in it twice"),
    "link over a file": ([entry("d", b"x"), link("d", "e")], "the entry d is in it twice"),
    "two links": ([link("d", "e"), link("d", "f")], "the entry d is in it twice"),
    "hard link out": ([hard("a", "../../etc/passwd")], r"the entry \.\./\.\./etc/passwd has a name with"),
    "absolute hard link": ([hard("a", "/etc/passwd")], "the entry /etc/passwd has an absolute name"),
    "hard link to nothing": ([hard("a", "b"), entry("b", b"x")], "the entry a is a hard link to b, which does not"),
    "hard link to a link": ([link("l", "b"), hard("a", "l"), entry("b")], "the entry a is a hard link to the symb"),
    "hard link to itself": ([hard("a", "a")], "the entry a is a hard link to a, which does not"),
    "setuid": ([entry("su", b"x", mode=0o4755)], "the entry su is setuid or setgid"),
    "setgid": ([entry("sg", b"x", mode=0o2755)], "the entry sg is setuid or setgid"),
    "device": ([entry("sda", type=tarfile.BLKTYPE, devmajor=8)], "the entry sda is neither"),
    "character device": ([entry("null", type=tarfile.CHRTYPE, devmajor=1, devminor=3)], "the entry null is neither"),
    "fifo": ([entry("pipe", type=tarfile.FIFOTYPE)], "the entry pipe is neither"),
    "unknown kind": ([entry("odd", type=b"Z")], "the entry odd is neither"),
    "newline": ([entry("a\nb", b"x")], r"the entry 'a\\nb' has a name that is no plain text"),
    "escape sequence": ([entry("a\x1b[2Jb", b"x")], r"the entry 'a\\x1b\[2Jb' has a name that is no plain text"),
    "not UTF-8": ([entry("a\udcff", b"x")], r"the entry 'a\\udcff' has a name that is no plain text"),
    "odd link": ([link("a", "b\n")], "the entry a is a link to 'b"),
    "twice": ([entry("a", b"1"), entry("./a", b"2")], r"the entry \./a is in it twice"),
    "file and folder": ([entry("a", b"1"), entry("a/b", b"2")], "the entry a/b is in it twice, or once as a folder"),
    "long component": ([entry("n" * 300, b"x")], "has an impossible name"),
    "very deep": ([entry("d/" * 4000 + "x", b"x")], "lies more than 200 folders deep"),
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_tar_is_refused_by_entry(tmp_path: Path, case: str) -> None:
    entries, message = HOSTILE[case]
    (tmp_path / "inner").mkdir()
    form = tarfile.GNU_FORMAT if case == "not UTF-8" else tarfile.PAX_FORMAT
    archive = tar(tmp_path / "app.tar", *entries, form=form)
    with pytest.raises(ImageError, match=f"^app.tar: .*{message}"):
        extract(archive, "tar", tmp_path / "inner/out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["app.tar", "inner"]
    assert [path.name for path in (tmp_path / "inner").iterdir()] == ["out"]


def test_names_that_differ_in_case_are_two_files(tmp_path: Path) -> None:
    extract(tar(tmp_path / "a.tar", entry("a", b"1"), entry("A", b"2")), "tar", tmp_path / "out")
    assert tree(tmp_path / "out") == {"A": "644 2", "a": "644 1"}


@pytest.mark.parametrize(
    ("name", "mode", "data", "message"),
    [
        ("../x", 0o100644, b"x", r"the entry \.\./x has a name with"),
        ("/x", 0o100644, b"x", "absolute"),
        ("x", 0o120777, b"../../etc/passwd", "leads out"),
        ("x", 0o104755, b"x", "setuid"),
        ("x", 0o20644, b"x", "neither"),
        ("a\x07", 0o100644, b"x", "no plain text"),
    ],
)
def test_a_hostile_zip_is_refused_by_entry(tmp_path: Path, name: str, mode: int, data: bytes, message: str) -> None:
    with pytest.raises(ImageError, match=f"^app.zip: .*{message}"):
        extract(zipped(tmp_path / "app.zip", (name, mode, data)), "zip", tmp_path / "out")
    assert not (tmp_path / "x").exists()


def test_a_folder_with_something_in_it_is_left_alone(tmp_path: Path) -> None:
    archive = tar(tmp_path / "a.tar", entry("x", b"new"))
    (tmp_path / "out").mkdir()
    (tmp_path / "out/x").symlink_to(tmp_path / "victim")
    with pytest.raises(UsageError, match="not empty"):
        extract(archive, "tar", tmp_path / "out")


def test_bombs(tmp_path: Path) -> None:
    """A few kilobytes that unpack to more than a gigabyte: the disk gets no more than the limit."""
    zeros = subprocess.run(
        "{ printf ''; head -c 1200M /dev/zero; } | zstd -q -3 -c", shell=True, check=True, capture_output=True
    ).stdout
    header = tarfile.TarInfo("zeros")
    header.size = 1200 << 20
    bomb = tmp_path / "bomb.tar.zst"
    bomb.write_bytes(zstd(header.tobuf()) + zeros)
    with pytest.raises(ImageError, match="the entry zeros makes it unpack to more than 100000000 bytes"):
        extract(bomb, "tar", tmp_path / "out", limits=Limits(floor=100_000_000))
    assert sum(path.stat().st_size for path in (tmp_path / "out").rglob("*")) <= 100_000_000
    packed = zipped(tmp_path / "bomb.zip", *((f"z{number}", 0o100644, bytes(1_000_000)) for number in range(20)))
    with pytest.raises(ImageError, match="the entry z9 makes it unpack to more than 9000000 bytes"):
        extract(packed, "zip", tmp_path / "zip", limits=Limits(floor=9_000_000))
    many = tar(tmp_path / "many.tar", *(entry(f"f{number}") for number in range(1001)))
    with pytest.raises(ImageError, match="the entry f1000 is one of too many"):
        extract(many, "tar", tmp_path / "many", limits=Limits(entries=1000))


def test_a_header_of_gigabytes_costs_no_memory(tmp_path: Path) -> None:
    header = tarfile.TarInfo("pax")
    header.type, header.size = tarfile.XHDTYPE, 8_000_000_000
    archive = tmp_path / "a.tar"
    archive.write_bytes(header.tobuf(tarfile.USTAR_FORMAT) + bytes(1 << 20))
    with pytest.raises(ImageError, match="a header in it is too large"):
        extract(archive, "tar", tmp_path / "out")


@cache
def plain_tar() -> bytes:
    noise = random.Random(1)
    with io.BytesIO() as buffer:
        with tarfile.open(fileobj=buffer, mode="w") as archive:
            for name in ("a", "b", "c"):
                info = tarfile.TarInfo(name)
                info.size = 400_000
                archive.addfile(info, io.BytesIO(noise.randbytes(400_000)))
        return buffer.getvalue()


def flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


DAMAGED: dict[str, tuple[str, Callable[[], bytes]]] = {
    "header": ("tar", lambda: flipped(plain_tar(), plain_tar().index(b"b\0", 400_000))),
    "cut": ("tar", lambda: plain_tar()[:700_000]),
    "no archive": ("tar", lambda: b"not found" * 100),
    "empty": ("tar", bytes),
    "no zip": ("zip", lambda: b"not found" * 100),
    "no deb": ("deb", plain_tar),
    "short deb": ("deb", lambda: b"!<arch>\ndebian-binary   0           0     0     100644  4         `\n2.0\n"),
    "odd deb": ("deb", lambda: b"!<arch>\ndebian-binary   0           0     0     100644  x         `\n2.0\n"),
}
for word, packer in PACKERS.items():
    DAMAGED[f"{word} cut"] = ("tar", lambda packer=packer: packer(plain_tar())[:-50_000])
    DAMAGED[f"{word} flipped"] = ("tar", lambda packer=packer: flipped(packer(plain_tar()), 600_000))
    DAMAGED[f"{word} without its end"] = ("tar", lambda packer=packer: packer(plain_tar())[:-2])
    DAMAGED[f"{word} of nonsense"] = ("tar", lambda packer=packer: packer(b"nonsense" * 1000))


@pytest.mark.parametrize("case", DAMAGED)
def test_a_damaged_archive_is_named(tmp_path: Path, case: str) -> None:
    kind, make = DAMAGED[case]
    archive = tmp_path / "0123.file"
    archive.write_bytes(make())
    with pytest.raises(ImageError, match=r"app-1\.0"):
        extract(archive, kind, tmp_path / "out", name="app-1.0.tar")


def test_an_encrypted_zip_is_no_crash(tmp_path: Path) -> None:
    data = bytearray(zipped(tmp_path / "a.zip", ("x", 0o100644, b"secret")).read_bytes())
    data[6] |= 1
    data[data.index(b"PK\1\2") + 8] |= 1
    (tmp_path / "a.zip").write_bytes(data)
    with pytest.raises(ImageError, match=r"a\.zip is no intact zip archive"):
        extract(tmp_path / "a.zip", "zip", tmp_path / "out")


NAMES = st.lists(st.sampled_from(["a", "b", "c", "..", "."]), min_size=1, max_size=4).map("/".join)


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(NAMES.filter(lambda name: not {"..", "."} & set(name.split("/"))), NAMES, max_size=5))
def test_links_are_judged_as_the_kernel_follows_them(
    tmp_path_factory: pytest.TempPathFactory, links: dict[str, str]
) -> None:
    """Whatever is accepted cannot be followed out of the tree on a real filesystem."""
    if any(other.startswith(f"{name}/") for name in links for other in links):
        return  # a name below a link; the landing refuses that on its own
    if not all(stays_inside(name, links) for name in links):
        return
    root = tmp_path_factory.mktemp("links") / "x" / "root"
    root.mkdir(parents=True)
    for name, target in links.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).symlink_to(target)
    for name in links:
        assert Path(os.path.realpath(root / name)).is_relative_to(root), (name, links)
