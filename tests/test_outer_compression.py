"""The compression around an image: other programs unpack it, and it is equal however often and wherever it is made."""

from __future__ import annotations

import bz2
import gzip
import os
import random
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from disks import MIB, tool

from baker.bundles import bzip2
from baker.bundles.deflate import combine, write_gzip
from baker.bundles.outer import compress
from baker.bundles.pieces import Member
from baker.bundles.proof import prove_content
from baker.console import Bar
from baker.errors import ImageError
from baker.sparse import content_digest

EPOCH = 1_700_000_000
SIZE = 9 * MIB + 3


def source(folder: Path, sparse: bool = True) -> Path:
    """A file with noise, text, long runs and zeros; with holes for the zeros, or without."""
    file = folder / "image.bin"
    noise = random.Random(3)
    with file.open("wb") as opened:
        opened.truncate(SIZE)
        for offset, content in (
            (0, noise.randbytes(1_500_000)), (4 * MIB, b"abcd" * 300_000), (6 * MIB, b"\xff" * 900_000),
            (SIZE - 1, b"\n"),
        ):  # fmt: skip
            opened.seek(offset)
            opened.write(content)
    if not sparse:
        file.write_bytes(file.read_bytes())
    return file


UNPACKERS: dict[str, list[list[str]]] = {
    "gz": [["gzip", "-dc"]],
    "bz2": [["bzip2", "-dc"], ["lbzip2", "-dc"]],
    "zip": [["unzip", "-p"]],
    "zst": [["zstd", "-dcq"]],
}


@pytest.mark.parametrize("kind", sorted(UNPACKERS))
def test_other_programs_unpack_it(kind: str, tmp_path: Path) -> None:
    original = source(tmp_path)
    content = original.read_bytes()
    packed = compress(original, kind, 2, EPOCH)
    assert packed == tmp_path / f"image.bin.{kind}"
    assert list(tmp_path.iterdir()) == [packed]
    for argv in UNPACKERS[kind]:
        assert tool(*argv, packed) == content
    assert packed.stat().st_size < 2_000_000


@pytest.mark.parametrize("kind", sorted(UNPACKERS))
def test_it_does_not_depend_on_threads_or_holes(kind: str, tmp_path: Path) -> None:
    results = []
    for number, (jobs, sparse) in enumerate([(1, True), (3, True), (2, False)]):
        folder = tmp_path / str(number)
        folder.mkdir()
        results.append(compress(source(folder, sparse), kind, jobs, EPOCH).read_bytes())
    assert results[0] == results[1] == results[2]


@pytest.mark.parametrize("kind", ["", "none"])
def test_none_leaves_the_file_alone(kind: str, tmp_path: Path) -> None:
    file = source(tmp_path)
    digest = content_digest(file)
    assert compress(file, kind, 2, EPOCH) == file
    assert content_digest(file) == digest


@pytest.mark.parametrize("kind", sorted(UNPACKERS))
def test_an_empty_file_can_be_packed(kind: str, tmp_path: Path) -> None:
    file = tmp_path / "empty"
    file.touch()
    assert tool(*UNPACKERS[kind][0], compress(file, kind, 1, EPOCH)) == b""


@pytest.mark.parametrize("kind", sorted(UNPACKERS))
def test_a_bar_counts_the_bytes_of_the_source(kind: str, tmp_path: Path) -> None:
    class Counter(Bar):
        done = 0

        def advance(self, count: int) -> None:
            self.done += count

    bar = Counter()
    compress(source(tmp_path), kind, 2, EPOCH, bar)
    assert bar.done == SIZE


def test_bzip2_is_one_stream_and_proven_without_lbzip2_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The standard library is what proves it where lbzip2 is not installed.
    monkeypatch.setattr("baker.bundles.outer.find", lambda program: None)
    original = source(tmp_path)
    content = original.read_bytes()
    packed = compress(original, "bz2", 2, EPOCH)
    decoder = bz2.BZ2Decompressor()
    assert decoder.decompress(packed.read_bytes()) == content
    assert decoder.eof and decoder.unused_data == b""


@pytest.mark.parametrize(
    "piece",
    [
        b"a", b"aaaa", b"a" * bzip2.PIECE, (b"aaaab" * bzip2.PIECE)[: bzip2.PIECE], bytes(bzip2.PIECE),
        random.Random(9).randbytes(bzip2.PIECE),
    ],
    ids=["one byte", "a run", "one long run", "runs of four", "zeros", "noise"],
)  # fmt: skip
def test_the_largest_piece_is_a_single_block(piece: bytes, tmp_path: Path) -> None:
    target = tmp_path / "x.bz2"
    with target.open("wb") as file:
        bzip2.write_bzip2(file, [piece, piece[:1000], piece], 1)
    assert tool("bzip2", "-dc", target) == piece + piece[:1000] + piece


@pytest.mark.parametrize("length", [0, 1, 255, 65536, 5_000_001])
def test_check_sums_combine(length: int) -> None:
    noise = random.Random(length)
    first, second = noise.randbytes(1000), noise.randbytes(length)
    assert combine(zlib.crc32(first), zlib.crc32(second), length) == zlib.crc32(first + second)


def damaged(change: Callable[[bytearray], None]) -> Callable[..., None]:
    """A writer of gzip whose result is not what it should be."""

    def write(*arguments: object) -> None:
        write_gzip(*arguments)  # type: ignore[arg-type]
        file = arguments[0]
        file.flush()  # type: ignore[attr-defined]
        path = Path(os.readlink(f"/proc/self/fd/{file.fileno()}"))  # type: ignore[attr-defined]
        data = bytearray(path.read_bytes())
        change(data)
        path.write_bytes(data)

    return write


def flip_trailer(data: bytearray) -> None:
    data[-6] ^= 1


def cut(data: bytearray) -> None:
    del data[-100:]


def replace(data: bytearray) -> None:
    data[:] = gzip.compress(b"something else")


@pytest.mark.parametrize("change", [flip_trailer, cut, replace])
def test_a_damaged_result_is_found_and_the_source_stays(
    change: Callable[[bytearray], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(compress.__globals__["_WRITERS"], "gz", (damaged(change), MIB))
    original = source(tmp_path)
    digest = content_digest(original)
    with pytest.raises(ImageError, match=r"image\.bin\.gz"):
        compress(original, "gz", 2, EPOCH)
    assert content_digest(original) == digest


def test_content_that_is_shorter_longer_or_other_is_found() -> None:
    prove_content("x", Member("x", b"abc"), [b"a", b"bc"])
    for wrong in ([b"ab"], [b"abcd"], [b"abC"], []):
        with pytest.raises(ImageError):
            prove_content("x", Member("x", b"abc"), wrong)
