"""Sparse files: holes stay holes, data stays data, and digests do not depend on how sparse a file is."""

import hashlib
import os
from pathlib import Path

import pytest

from baker.sparse import (
    BLOCK,
    LeadingDigest,
    SparseWriter,
    clone,
    content_digest,
    copy_extents,
    data_extents,
    file_sha256,
    punch,
)

PIECES = [
    b"",
    b"x",
    bytes(BLOCK),
    bytes(3 * BLOCK) + b"end",
    b"start" + bytes(2 * BLOCK),
    os.urandom(BLOCK) + bytes(2 * BLOCK) + os.urandom(BLOCK),
    bytes(BLOCK - 1) + b"y" + bytes(5 * BLOCK),
]


@pytest.mark.parametrize("data", PIECES, ids=range(len(PIECES)))
@pytest.mark.parametrize("chunk", [1000, BLOCK, 3 * BLOCK + 17])
def test_what_is_written_is_what_is_read_however_it_is_cut(tmp_path: Path, data: bytes, chunk: int) -> None:
    path = tmp_path / "out"
    with path.open("w+b") as file:
        writer = SparseWriter(file.fileno())
        for start in range(0, len(data), chunk):
            writer.write(data[start : start + chunk])
        assert writer.finish() == len(data)
    assert path.read_bytes() == data


def test_zeros_take_no_space(tmp_path: Path) -> None:
    path = tmp_path / "out"
    with path.open("w+b") as file:
        writer = SparseWriter(file.fileno())
        writer.write(b"a" + bytes(64 * BLOCK) + b"b")
        writer.finish()
        assert sum(length for _, length in data_extents(file.fileno())) <= 2 * BLOCK


def test_a_clone_is_equal_and_as_sparse(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    with one.open("wb") as file:
        file.truncate(100 << 20)
        os.pwrite(file.fileno(), b"data", 50 << 20)
    clone(one, two)
    assert one.read_bytes() == two.read_bytes()
    assert two.stat().st_blocks * 512 < 1 << 20


def test_a_clone_never_overwrites(tmp_path: Path) -> None:
    (tmp_path / "one").write_bytes(b"1")
    (tmp_path / "two").write_bytes(b"2")
    with pytest.raises(FileExistsError):
        clone(tmp_path / "one", tmp_path / "two")


def test_a_punched_range_reads_as_zeros_and_the_rest_stays(tmp_path: Path) -> None:
    path = tmp_path / "file"
    data = os.urandom(4 * BLOCK)
    path.write_bytes(data)
    with path.open("r+b") as file:
        punch(file.fileno(), BLOCK + 5, 2 * BLOCK)
    assert path.read_bytes() == data[: BLOCK + 5] + bytes(2 * BLOCK) + data[3 * BLOCK + 5 :]


def test_extents_are_copied_to_another_offset(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(bytes(BLOCK) + b"payload" + bytes(BLOCK))
    with target.open("wb") as file:
        file.truncate(8 * BLOCK)
    with source.open("rb") as old, target.open("r+b") as new:
        copy_extents(old.fileno(), new.fileno(), BLOCK, 3 * BLOCK, 7)
    assert target.read_bytes()[3 * BLOCK : 3 * BLOCK + 7] == b"payload"


def test_digests_see_content_and_not_sparseness(tmp_path: Path) -> None:
    data = bytes(5 * BLOCK) + os.urandom(100) + bytes(3 * BLOCK + 11)
    dense, sparse = tmp_path / "dense", tmp_path / "sparse"
    dense.write_bytes(data)
    with sparse.open("w+b") as file:
        writer = SparseWriter(file.fileno())
        writer.write(data)
        writer.finish()
    assert content_digest(dense) == content_digest(sparse)
    assert file_sha256(dense) == file_sha256(sparse) == hashlib.sha256(data).hexdigest()


def test_a_digest_can_begin_before_the_file_is_finished(tmp_path: Path) -> None:
    source, made = tmp_path / "source", tmp_path / "made"
    beginning = os.urandom(100) + bytes(3 * BLOCK) + os.urandom(BLOCK)
    source.write_bytes(beginning + b"the source's own rest")
    leading = LeadingDigest(source, len(beginning))
    for rest in (b"", b"an edited rest", bytes(2 * BLOCK) + b"end"):
        made.write_bytes(beginning + rest)
        assert leading.complete(made) == file_sha256(made)
    made.write_bytes(b"x" + beginning[1:])
    assert leading.complete(made) != file_sha256(made)


def test_a_source_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "made").write_bytes(b"abc")
    with pytest.raises(FileNotFoundError):
        LeadingDigest(tmp_path / "none", 2).complete(tmp_path / "made")


def test_digests_differ_when_data_moves_or_the_size_changes(tmp_path: Path) -> None:
    digests = set()
    for number, data in enumerate([b"x" + bytes(BLOCK), bytes(BLOCK) + b"x", b"x" + bytes(BLOCK + 1), b"x"]):
        path = tmp_path / str(number)
        path.write_bytes(data)
        digests.add(content_digest(path))
    assert len(digests) == 4
