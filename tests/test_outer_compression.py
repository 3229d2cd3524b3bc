"""The compression around an image: other programs unpack it, and it is equal however often and wherever it is made."""

from __future__ import annotations

import bz2
import gzip
import io
import os
import random
import zlib
from pathlib import Path
from typing import IO, Any

import pytest
from disks import MIB, tool

from baker.bundles import bzip2
from baker.bundles.deflate import combine, prove_gzip, write_gzip
from baker.bundles.outer import compress
from baker.bundles.pieces import Member, zeros
from baker.bundles.proof import prove_content
from baker.console import Bar
from baker.errors import ImageError
from baker.sparse import content_digest

EPOCH = 1_700_000_000
SIZE = 5 * MIB + 3


def source(folder: Path, sparse: bool = True) -> Path:
    """A file with noise, text, long runs and zeros; with holes for the zeros, or without."""
    file = folder / "image.bin"
    noise = random.Random(3)
    with file.open("wb") as opened:
        opened.truncate(SIZE)
        for offset, content in (
            (0, noise.randbytes(800_000)), (2 * MIB, b"abcd" * 200_000), (3 * MIB, b"\xff" * 900_000),
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


def test_bzip2_is_one_stream(tmp_path: Path) -> None:
    original = source(tmp_path)
    content = original.read_bytes()
    decoder = bz2.BZ2Decompressor()
    assert decoder.decompress(compress(original, "bz2", 2, EPOCH).read_bytes()) == content
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


def prove(kind: str, file: IO[bytes], receipt: Any, pieces: list[bytes]) -> None:
    (prove_gzip if kind == "gz" else bzip2.prove_bzip2)(file, receipt, pieces, 1)


@pytest.mark.parametrize("kind", ["gz", "bz2"])
def test_damage_is_found_wherever_it_is(kind: str) -> None:
    pieces = [b"some text " * 100, zeros(1000), zeros(1000), random.Random(4).randbytes(500), zeros(77)]
    packed = io.BytesIO()
    receipt = (write_gzip if kind == "gz" else bzip2.write_bzip2)(packed, pieces, 2)
    data = packed.getvalue()
    prove(kind, io.BytesIO(data), receipt, pieces)
    unpack = gzip.decompress if kind == "gz" else bz2.decompress
    assert unpack(data) == b"".join(pieces)
    found = 0
    for position in range(len(data)):
        wrong = bytearray(data)
        wrong[position] ^= 1 << position % 8
        try:
            prove(kind, io.BytesIO(wrong), receipt, pieces)
        except (ValueError, OSError, zlib.error):
            found += 1
        else:
            # Both formats have a few bits that mean nothing.
            assert unpack(wrong) == b"".join(pieces)
    assert found > len(data) - 20
    for wrong in (data[:-1], data + b"x", data[:100], b""):
        with pytest.raises((ValueError, OSError, zlib.error)):
            prove(kind, io.BytesIO(wrong), receipt, pieces)
    for others in (pieces[:-1], [*pieces, b"x"], [*pieces[:-1], zeros(78)], [b"SOME TEXT " * 100, *pieces[1:]]):
        with pytest.raises((ValueError, OSError)):
            prove(kind, io.BytesIO(data), receipt, others)


@pytest.mark.parametrize("kind", ["gz", "bz2", "zip"])
def test_what_does_not_read_back_is_an_error_and_the_source_stays(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = source(tmp_path)
    digest = content_digest(original)
    # A disk that forgets: the file is cut while it is closed and opened again.
    opened = Path.open

    def forgetful(path: Path, mode: str = "r", *arguments: Any) -> Any:
        if path.suffix == f".{kind}" and mode == "rb":
            os.truncate(path, path.stat().st_size // 2)
        return opened(path, mode, *arguments)

    monkeypatch.setattr(Path, "open", forgetful)
    with pytest.raises(ImageError, match=rf"image\.bin\.{kind} cannot be read back"):
        compress(original, kind, 2, EPOCH)
    assert content_digest(original) == digest


def test_content_that_is_shorter_longer_or_other_is_found() -> None:
    prove_content("x", Member("x", b"abc"), [b"a", b"bc"])
    for wrong in ([b"ab"], [b"abcd"], [b"abC"], []):
        with pytest.raises(ImageError):
            prove_content("x", Member("x", b"abc"), wrong)
