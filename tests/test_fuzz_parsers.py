"""Whatever bytes arrive, every parser gives an answer or one of our errors, and soon.

The examples are the same in each run. FLATCAR_BAKE_FUZZ=N tries N random ones per test instead.
"""

from __future__ import annotations

import json
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from disks import SECTOR, make_oem, make_root
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from requests import Response
from sysexts import make_sysext

from baker import config, lock
from baker.btrfs_tree import _Tree, read_super
from baker.debugfs import Inode, _Output, _parse_dump
from baker.disk import DiskTable
from baker.e2fs import read_superblock
from baker.erofs import Damaged
from baker.errors import BakeError, ImageError, UsageError, VerificationError
from baker.extension_release import parse_release
from baker.formats.probe import image_info
from baker.gpt import read_gpt
from baker.guest import FrameCollector, parse_report
from baker.model import Arch, Partition
from baker.partial import Partial, total_size
from baker.qcow2 import read_qcow2
from baker.readers import Tree, make_node
from baker.recheck import recheck
from baker.release import Feed, parse_version_txt
from baker.request import parse_install_to, parse_sysext
from baker.run import run
from baker.serial import SerialReader
from baker.sysext import lint, read_sysext
from baker.sysupdate import lint_config, matches, parse_config
from baker.vendor_files import load_vendor
from baker.verify import normalize_fingerprint, parse_sha256sums, parse_status

RUNS = int(os.environ.get("FLATCAR_BAKE_FUZZ", "0"))


def fuzzing(examples: int) -> settings:
    """Settings for a test that runs `examples` times, each within two seconds."""
    return settings(
        max_examples=RUNS or examples, derandomize=not RUNS, deadline=None if RUNS else 2000, database=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )  # fmt: skip


TOKENS = [
    b"\n", b"\r\n", b"=", b'"', b"'", b"\\", b"\0", b"\xff", b"[", b"]" * 9, b"\x1b[2J", b"-1", b"9" * 30, b"9" * 5000,
    b"[" * 30_000, b'{"a":' * 30_000, b"..", b"/", b"\xe2\x80\xa8", b"https://[", b"%", b"@v", "²".encode(), b"\xb2",
    b"\\u0000", b"true", b"null", b"{}", b"[[x]]\n", b"a.b = 1\n",
]  # fmt: skip
BYTES = st.binary(max_size=12) | st.sampled_from(TOKENS)


@st.composite
def mutated(draw: st.DrawFn, seeds: list[bytes]) -> bytes:
    """One of the seeds with some bytes replaced, inserted, removed or repeated; sometimes noise."""
    data = draw(st.sampled_from([*seeds, b""]))
    for _ in range(draw(st.integers(0, 6))):
        at = draw(st.integers(0, len(data)))
        end = at + draw(st.integers(0, 40))
        new = draw(st.one_of(BYTES, st.just(data[at:end] * 2), st.just(b"")))
        data = data[:at] + new + data[end:]
    return data


def survives(parse: Callable[[], object]) -> None:
    """Nothing but an answer or one of our errors, whose message can be shown."""
    try:
        parse()
    except BakeError as error:
        assert error.message
        error.message.encode("utf-8", "surrogatepass")


# Text

OS_RELEASE = b"ID=flatcar\nVERSION_ID=\"4593.2.5\"\nNAME='a b'\nSYSEXT_LEVEL=1.0\n# x\nARCHITECTURE=x86-64\n"
VERSION_TXT = b"FLATCAR_BUILD=4593\nFLATCAR_VERSION=4593.2.5\nFLATCAR_VERSION_ID='4593.2.5'\nFLATCAR_BUILD_ID=\"\"\n"
ENTRY = {
    "channel": "stable", "architectures": ["amd64", "arm64"], "release_date": "2026-01-02 03:04:05 +0000",
    "major_software": {"kernel": ["6.12.1"]},
}  # fmt: skip
FEED = json.dumps({"4593.2.5": ENTRY, "current": {"channel": "x"}}).encode()
SUMS = b"1" * 64 + b"  a-1.0.raw\n" + b"2" * 64 + b" *b.raw\n"
TRANSFER = (
    b"[Transfer]\nVerify=false\n[Source]\nType=url-file\nPath=https://example.com/x/\nMatchPattern=x-@v-%a.raw\n"
    b"[Target]\nInstancesMax=3\nType=regular-file\nPath=/opt/extensions/x\nCurrentSymlink=/etc/extensions/x.raw\n"
)


@fuzzing(400)
@given(mutated([OS_RELEASE]))
def test_release_files(data: bytes) -> None:
    survives(lambda: parse_release(data))


@fuzzing(400)
@given(mutated([VERSION_TXT]))
def test_version_txt(data: bytes) -> None:
    survives(lambda: parse_version_txt(data))


@fuzzing(400)
@given(mutated([FEED]))
def test_the_feed(data: bytes) -> None:
    survives(lambda: Feed.parse(data))


@fuzzing(400)
@given(mutated([SUMS]))
def test_lists_of_digests(data: bytes) -> None:
    survives(lambda: parse_sha256sums(data))


@fuzzing(500)
@given(mutated([TRANSFER, TRANSFER.replace(b"example.com", b"[::1]")]))
def test_transfer_configs(data: bytes) -> None:
    survives(lambda: parse_config(data))
    verdict = lint_config(data, "x")
    if not verdict:  # then it may do no harm
        made = parse_config(data)
        assert made.source_path.startswith("https://")
        assert made.target_path.strip("/").startswith("opt/extensions/x")
        assert ".." not in made.target_path.split("/")


@fuzzing(300)
@given(st.text(), st.text())
def test_match_patterns(pattern: str, name: str) -> None:
    found = matches(pattern, name, Arch.X86_64)
    assert found is None or (found in name and "/" not in found)


@fuzzing(300)
@given(st.text() | mutated([b"x:y.raw", b"x@1.0", b"x:https://h/p#sha256=00"]).map(os.fsdecode))
def test_words_of_the_command_line(word: str) -> None:
    survives(lambda: parse_sysext(word, True))
    survives(lambda: parse_install_to(word))
    survives(lambda: parse_install_to(f"root:/{word}"))
    survives(lambda: normalize_fingerprint(word))


PRIMARY, SUBKEY, OTHER = "A" * 40, "B" * 40, "C" * 40
STATUS_LINES = [
    "[GNUPG:] NEWSIG", f"[GNUPG:] GOODSIG {SUBKEY[-16:]} Me <me@x>", f"[GNUPG:] EXPKEYSIG {SUBKEY[-16:]} Me",
    f"[GNUPG:] BADSIG {SUBKEY[-16:]} Me", f"[GNUPG:] REVKEYSIG {SUBKEY[-16:]} Me", f"[GNUPG:] ERRSIG {SUBKEY} 1 10 00",
    f"[GNUPG:] VALIDSIG {SUBKEY} 2026-01-02 1767312000 0 4 0 22 10 00 {PRIMARY}",
    f"[GNUPG:] VALIDSIG {OTHER} 2026-01-02 1767312000 0 4 0 22 10 00 {OTHER}",
    f"[GNUPG:] VALIDSIG {SUBKEY} 2026-01-02 1767312000 0 4 0 22 2 00 {PRIMARY}", "[GNUPG:] PLAINTEXT 62 0 x",
    "[GNUPG:] ", "[GNUPG:]", "gpg: noise", "[GNUPG:] TRUST_ULTIMATE", "[GNUPG:] KEYEXPIRED 0", "[GNUPG:] EXPSIG x",
]  # fmt: skip


@fuzzing(600)
@given(st.lists(st.sampled_from(STATUS_LINES) | st.text(max_size=8), max_size=8), st.sampled_from("\n\r\x0b\u2028\0"))
def test_what_gpg_says_is_believed_only_when_all_of_it_fits(lines: list[str], glue: str) -> None:
    status = "".join(f"{line}\n" for line in lines).replace("noise\n", f"noise{glue}")
    try:
        signer = parse_status(status)
    except VerificationError:
        return
    real = [line.split(" ") for line in status.split("\n") if line.startswith("[GNUPG:] ")]
    words = [line[1] for line in real]
    assert words.count("GOODSIG") + words.count("EXPKEYSIG") == 1
    assert words.count("VALIDSIG") == 1
    assert not {"BADSIG", "REVKEYSIG", "ERRSIG", "EXPSIG", "PLAINTEXT"} & set(words)
    assert signer.primary in (PRIMARY, OTHER)
    assert signer.expired == ("EXPKEYSIG" in words)


# TOML and JSON of the user's own

BAKE_TOML = (
    b'release = "lts"\nvendors = ["generic", "qemu_uefi"]\njobs = 2\nsysexts = ["a@1", "b:./b.raw"]\nfetch = true\n'
)
BAKE_TABLES = b'[[sysexts]]\nname = "x"\nurl = "https://h/x"\nsha256 = "00"\n[[sysexts]]\nname = "y"\nfile = "y.raw"\n'
VENDOR = (
    b'summary = "x"\narches = ["x86-64"]\nlayout = "vm"\nimage = "x.img"\n[disk]\nformat = "qcow2"\ncompress = true\n'
    b'[disk.options]\ncompat = "0.10"\n[oem]\nid = "x"\nsysext = "x"\n[published]\nfiles = ["a"]\n'
    b'[[file]]\nname = "f"\nfirmware = "code"\nmode = "0755"\n'
)
LOCK = (
    b'format = 1\nmade_by = "1"\narch = "x86-64"\nepoch = 1\ninstall_to = "root:/x"\nupdates = true\n'
    b'[release]\nversion = "1.2.3"\nchannel = "stable"\nbuild_date = 1\n'
    b'[[files]]\nkind = "disk"\nname = "n"\nsha256 = "00"\n'
    b'[[sysexts]]\nname = "x"\norigin = "url"\nfile = "f"\nsha256 = "00"\nconfig = ""\nconfig_sha256 = ""\n'
)
MANIFEST = json.dumps({"outputs": [{"file": "a.img", "size": 3, "sha256": "0" * 64}]}).encode()


@pytest.mark.parametrize(
    ("seeds", "load"),
    [
        ([BAKE_TOML, BAKE_TABLES], config.load), ([VENDOR], load_vendor), ([LOCK], lock.Lock.load),
        ([MANIFEST], recheck),
    ],
    ids=["bake.toml", "vendor", "bake.lock", "manifest"],
)  # fmt: skip
def test_files_of_settings(seeds: list[bytes], load: Callable[[Path], object], tmp_path: Path) -> None:
    file = tmp_path / "file.toml"
    file.write_bytes(seeds[0])
    load(file)  # so that the seed is worth mutating

    @fuzzing(300)
    @given(mutated(seeds))
    def attempt(data: bytes) -> None:
        file.write_bytes(data)
        survives(lambda: load(file))

    attempt()


# The guest of a boot check

REPORT = {
    "way": b"ignition", "uptime": b"12.5", "os-release": OS_RELEASE, "kernel": b"6.12", "state": b"running",
    "overlays": b"1 2 0:3 / /usr rw - overlay overlay rw", "failed": b"a.service loaded failed failed A",
    "sysext-json": b'[{"hierarchy": "/usr", "extensions": ["x"], "since": 1}]',
    "sysext-text": b"HIERARCHY EXTENSIONS SINCE\n/usr      x          today\n          y\n/opt      none       -\n",
    "run.0.status": b"0", "run.0.stdout": b"out",
}  # fmt: skip


@fuzzing(500)
@given(st.sampled_from(sorted(REPORT)), st.data())
def test_reports_of_a_guest(name: str, data: st.DataObject) -> None:
    records = REPORT | {name: data.draw(mutated([REPORT[name]]))}
    if data.draw(st.booleans()):
        del records["sysext-json"]
    report = parse_report(records, ["cmd"])
    assert all(isinstance(name, str) for name in report.sysexts)


@fuzzing(150)
@given(st.lists(mutated([b"mark 1/2 0123abcd d2F5:aWdu;", b"mark 2/2 00000000", b"[    0.1] Linux\n", b"grub> "])))
def test_the_console_of_a_guest(pieces: list[bytes]) -> None:
    reader = SerialReader("mark")
    for piece in pieces:
        reader.feed(piece)
    survives(reader.frames.records)
    assert all(line.strip() for line in reader.last_lines())


def test_a_frame_cannot_ask_for_memory_without_end() -> None:
    collector = FrameCollector("mark")
    assert not collector.feed("mark 1/99999 00000000 ")


# Servers


@fuzzing(300)
@given(
    st.sampled_from([200, 206, 416]),
    st.lists(mutated([b"bytes 3-9/10", b"bytes */10", b"10"]), min_size=3, max_size=3),
)
def test_headers_of_a_server(status: int, values: list[bytes]) -> None:
    response = Response()
    response.status_code = status
    names = ("Content-Range", "Content-Length", "ETag")
    response.headers.update({name: value.decode("latin-1") for name, value in zip(names, values, strict=True)})
    size = total_size(response)
    assert size is None or size >= 0


# Images


def gpt_image(tmp_path: Path) -> Path:
    """A small disk with a real table by sfdisk."""
    image = tmp_path / "gpt.img"
    with image.open("wb") as file:
        file.truncate(2 << 20)
    table = b'label: gpt\nstart=40, size=100, name="ROOT"\nstart=200, size=64, name="OEM"\n'
    run(["sfdisk", "--quiet", image], input=table)
    return image


def fix_checksums(data: bytearray, header_at: int) -> None:
    """Make a header's checksums right, if it has entries to be summed up."""
    at, count, size = struct.unpack_from("<QII", data, header_at + 72)
    length = min(count * size, 1 << 20)
    struct.pack_into("<I", data, header_at + 88, zlib.crc32(data[at * SECTOR : at * SECTOR + length]))
    struct.pack_into("<I", data, header_at + 16, 0)
    struct.pack_into("<I", data, header_at + 16, zlib.crc32(data[header_at : header_at + 92]))


def test_partition_tables(tmp_path: Path) -> None:
    image = gpt_image(tmp_path)
    sound = image.read_bytes()
    end = len(sound)
    # Fields of both headers, and of both copies of the first entries.
    places = [*range(SECTOR, SECTOR + 92), *range(end - SECTOR, end - SECTOR + 92)]
    places += [*range(1024, 1024 + 300), *range(end - 33 * SECTOR, end - 33 * SECTOR + 300)]
    numbers = st.sampled_from([0, 1, 33, 1 << 31, 1 << 32, 1 << 55, 1 << 63, (1 << 64) - 1]) | st.integers(0, 5000)

    @fuzzing(500)
    @given(
        st.lists(st.tuples(st.sampled_from(places), numbers, st.sampled_from([1, 2, 4, 8])), max_size=5),
        st.booleans(),
        st.integers(0, 3000) | st.none(),
    )
    def attempt(changes: list[tuple[int, int, int]], both: bool, cut: int | None) -> None:
        data = bytearray(sound)
        for at, value, width in changes:
            data[at : at + width] = (value % (1 << 8 * width)).to_bytes(width, "little")
        if both:
            for header in (SECTOR, end - SECTOR):
                fix_checksums(data, header)
        image.write_bytes(data[: end - cut] if cut else data)
        try:
            table = read_gpt(image)
        except ImageError:
            return
        assert isinstance(table, DiskTable)
        assert all(0 < part.offset < part.offset + part.size <= table.size for part in table.partitions)

    attempt()


def fuzz_image(image: Path, look: Callable[[Path], object], examples: int, places: st.SearchStrategy[int]) -> None:
    """Look at an image whose bytes are overwritten here and there."""
    sound = image.read_bytes()
    copy = image.with_name("fuzzed.raw")

    @fuzzing(examples)
    @given(st.lists(st.tuples(places, BYTES), min_size=1, max_size=4), st.integers(0, len(sound)) | st.none())
    def attempt(changes: list[tuple[int, bytes]], cut: int | None) -> None:
        data = bytearray(sound)
        for at, new in changes:
            data[at % len(data) : at % len(data) + min(len(new), 64)] = new[:64]
        copy.write_bytes(data[:cut])
        survives(lambda: look(copy))

    attempt()


def sysext(path: Path) -> object:
    return lint(read_sysext(path, "tool"), Arch.X86_64, "4593.2.5")


@pytest.mark.parametrize(("fs", "examples"), [("erofs", 250), ("squashfs", 120), ("ext4", 25), ("ddi", 80)])
def test_sysexts(tmp_path: Path, fs: str, examples: int) -> None:
    image = make_sysext(
        tmp_path, "tool", fs=fs, files={"usr/bin/tool": b"\x7fELF" + bytes(200), "usr/lib/x": "y" * 9000}
    )
    sysext(image)
    size = image.stat().st_size
    fuzz_image(image, sysext, examples, st.integers(0, 4096) | st.integers(0, size - 1))


@pytest.mark.parametrize("name", ["d", "d" * 250])
def test_trees_of_sysexts_are_not_too_deep(name: str) -> None:
    """Half a million folders, each in the other, would be a hundred gigabytes of paths."""
    tree, path = Tree(), ""
    with pytest.raises(Damaged, match="nests folders deeper"):
        while len(path) < 5000:
            path += f"/{name}"
            tree.add(make_node(path, 0o40755, 0, 0, 0))
    assert 500 < len(path) < 4500


def test_superblocks(tmp_path: Path) -> None:
    ext4 = make_root(tmp_path / "root", 4 << 20, {})
    fuzz_image(
        ext4, lambda path: read_superblock(path, Partition("ROOT", 1, "", "", 0, 0, 4 << 20, "ext4")), 200,
        st.integers(1024, 2047),
    )  # fmt: skip
    blocks = (tmp_path / "start").write_bytes
    oem = make_oem(tmp_path / "oem", 32 << 20, {})
    with oem.open("rb") as file:
        blocks(file.read((64 << 10) + 4096))
    fuzz_image(tmp_path / "start", read_super, 150, st.integers(64 << 10, (64 << 10) + 4095))


def test_qcow2(tmp_path: Path) -> None:
    image = tmp_path / "image.qcow2"
    run(["qemu-img", "create", "-q", "-f", "qcow2", "-o", "compat=0.10", image, "1M"])
    fuzz_image(image, read_qcow2, 300, st.integers(0, 100) | st.integers(0, 1 << 18))
    fuzz_image(image, image_info, 60, st.integers(0, 110))


# What tools print, had a name in an image got through


def output(data: bytes) -> _Output:
    return _Output(data, "ROOT")


LISTING = b"debugfs: ls -p <2>\n/2/040755/0/0/./4096/\n/11/100644/0/0/a name/12/\n/12/120777/0/0/x\ny/5/\n\n"


@fuzzing(500)
@given(mutated([LISTING]))
def test_listings_of_debugfs(data: bytes) -> None:
    survives(lambda: output(data).entries("ls -p <2>"))
    survives(lambda: output(data).until("ls -p <2>", "stat <2>"))


DUMP = (
    b"0000  a481 0000 0c00 0000 1234 5678 9abc def0  ........\n*\n0100  0000 0000 0000 0000 0000 0000 0000 0000  .\n"
)


@fuzzing(500)
@given(mutated([DUMP]))
def test_dumps_of_debugfs(data: bytes) -> None:
    raw = _parse_dump(data)
    assert len(raw) == 256
    Inode.parse(1, raw)


def test_trees_of_btrfs(tmp_path: Path) -> None:
    oem = make_oem(tmp_path / "oem", 32 << 20, {"/a/b": b"c", "/l": "a"})
    dump = run(["btrfs", "inspect-internal", "dump-tree", "-t", "5", oem]).stdout
    assert set(dict(_Tree(dump).walk())) == {"/", "/a", "/a/b", "/grub.cfg", "/l"}

    @fuzzing(300)
    @given(mutated([dump]))
    def attempt(data: bytes) -> None:
        try:
            found = dict(_Tree(data).walk())
        except ValueError:  # what `scan` turns into an ImageError
            return
        assert all(".." not in path.split("/") for path in found)

    attempt()


def test_what_the_fuzzers_found_stays_fixed(tmp_path: Path) -> None:
    assert lint_config(TRANSFER.replace(b"https://example.com/x/", b"https://[/"), "x")
    deep = tmp_path / "deep.toml"
    for text in (b"a = " + b"[" * 5000 + b"]" * 5000, b"jobs = " + b"9" * 5000, b'image = "a\\u0000b"'):
        deep.write_bytes(text)
        with pytest.raises(UsageError):
            config.load(deep)
    with pytest.raises(UsageError):
        parse_sysext("x:a\0b", False)
    report = parse_report(REPORT | {"sysext-json": b"[" * 60_000}, [])
    assert report.sysexts == ("x", "y")
    response = Response()
    response.headers["Content-Range"] = "bytes ²-3/²"
    assert total_size(response) is None
    assert Partial(tmp_path / "part", "https://h/x").size == 0
