"""qcow2 written and read natively: QEMU finds the same disk in it, and equal input gives equal bytes."""

import os
import random
import struct
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from baker.errors import ImageError
from baker.qcow2 import CLUSTER, read_qcow2, write_qcow2
from baker.run import CommandFailed, run
from baker.sparse import content_digest, file_sha256

NOISE = random.Random(1).randbytes(64 * CLUSTER)
TEXT = b"".join(b"line %d of what compresses well\n" % number for number in range(200_000))


def disk(path: Path, size: int, *pieces: tuple[int, bytes]) -> Path:
    """A sparse raw disk with some data at some places."""
    with path.open("xb") as file:
        file.truncate(size)
        for offset, data in pieces:
            os.pwrite(file.fileno(), data, offset)
    return path


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """600 MiB and a sector, more than one L2 table maps, with data that shrinks, and that does not, at odd places."""
    size = (600 << 20) + 512
    return disk(
        tmp_path / "disk.raw", size, (0, b"boot"), (CLUSTER - 3, NOISE), (100 << 20, TEXT),
        (300 << 20, TEXT[: 5 * CLUSTER] + NOISE[: 5 * CLUSTER + 17]), (size - 512, b"x" * 512),
    )  # fmt: skip


def same_for_qemu(raw: Path, image: Path) -> bool:
    """Whether QEMU finds the image sound and its disk equal to the raw one."""
    run(["qemu-img", "check", "-f", "qcow2", image])
    return run(["qemu-img", "compare", "-f", "raw", "-F", "qcow2", raw, image], ok=(0, 1)).status == 0


def unpacked(image: Path, target: Path, jobs: int = 2) -> Path:
    found = read_qcow2(image)
    assert found is not None
    disk(target, found.size)
    found.unpack(target, [range(len(found.entries))], jobs)
    return target


def test_qemu_reads_what_we_write(raw: Path, tmp_path: Path) -> None:
    target = tmp_path / "disk.img"
    write_qcow2(raw, target, jobs=2)
    assert same_for_qemu(raw, target)
    assert "compat: 0.10" in run(["qemu-img", "info", target]).text
    assert target.stat().st_size < raw.stat().st_blocks * 512


@pytest.mark.parametrize("options", [["-c"], []], ids=["compressed", "plain"])
def test_we_read_what_qemu_writes(raw: Path, tmp_path: Path, options: list[str]) -> None:
    image = tmp_path / "qemu.img"
    run(["qemu-img", "convert", *options, "-O", "qcow2", "-o", "compat=0.10", raw, image])
    assert content_digest(unpacked(image, tmp_path / "again.raw")) == content_digest(raw)


def test_we_read_what_we_write(raw: Path, tmp_path: Path) -> None:
    write_qcow2(raw, tmp_path / "disk.img", jobs=2)
    assert content_digest(unpacked(tmp_path / "disk.img", tmp_path / "again.raw")) == content_digest(raw)


def test_the_bytes_do_not_depend_on_the_number_of_jobs(raw: Path, tmp_path: Path) -> None:
    digests = set()
    for jobs in (1, 2, 7):
        write_qcow2(raw, tmp_path / f"{jobs}.img", jobs)
        digests.add(file_sha256(tmp_path / f"{jobs}.img"))
    assert len(digests) == 1


def test_the_bytes_do_not_depend_on_how_sparse_the_disk_is(tmp_path: Path) -> None:
    sparse = disk(tmp_path / "sparse.raw", 64 * CLUSTER, (9 * CLUSTER, TEXT[:CLUSTER]))
    dense = tmp_path / "dense.raw"
    dense.write_bytes(sparse.read_bytes())
    write_qcow2(sparse, tmp_path / "one.img", jobs=2)
    write_qcow2(dense, tmp_path / "two.img", jobs=2)
    assert (tmp_path / "one.img").read_bytes() == (tmp_path / "two.img").read_bytes()


@pytest.mark.parametrize("gib", [0, 30, 1000], ids=lambda gib: f"{gib}GiB")
def test_empty_and_large_disks(tmp_path: Path, gib: int) -> None:
    """30 GiB is Flatcar's largest layout."""
    size = (gib << 30) + CLUSTER
    raw = disk(tmp_path / "disk.raw", size, *([(size - 100, b"end")] if gib else []))
    write_qcow2(raw, tmp_path / "disk.img", jobs=2)
    assert same_for_qemu(raw, tmp_path / "disk.img")


def test_more_data_than_one_block_of_reference_counts_covers(tmp_path: Path) -> None:
    """One block counts 32768 clusters, 2 GiB of file; incompressible data fills them fastest."""
    size = 33_000 * CLUSTER
    raw = disk(tmp_path / "disk.raw", size, *((at * CLUSTER, NOISE) for at in range(0, 33_000 - 64, 64)))
    write_qcow2(raw, tmp_path / "disk.img", jobs=2)
    assert (tmp_path / "disk.img").stat().st_size > 2 << 30
    assert same_for_qemu(raw, tmp_path / "disk.img")


def test_an_existing_file_is_never_overwritten(raw: Path, tmp_path: Path) -> None:
    (tmp_path / "disk.img").write_bytes(b"mine")
    with pytest.raises(FileExistsError):
        write_qcow2(raw, tmp_path / "disk.img", jobs=2)


PIECE = st.tuples(
    st.integers(0, 40 * CLUSTER), st.integers(1, 3 * CLUSTER), st.sampled_from([NOISE, TEXT, bytes(1 << 20)])
)


@settings(max_examples=25, deadline=None)
@given(st.lists(PIECE, max_size=6), st.lists(PIECE, max_size=4), st.integers(0, 12 * CLUSTER // 512))
def test_any_edit_of_any_disk(
    tmp_path_factory: pytest.TempPathFactory,
    before: list[tuple[int, int, bytes]],
    after: list[tuple[int, int, bytes]],
    growth: int,
) -> None:
    """An image written anew over a base holds the edited disk, however the two overlap and whether it grew."""
    folder = tmp_path_factory.mktemp("edit")
    raw = disk(folder / "disk.raw", 44 * CLUSTER, *((at, data[:length]) for at, length, data in before))
    write_qcow2(raw, folder / "base.img", jobs=2)
    base = read_qcow2(folder / "base.img")
    assert base is not None
    with raw.open("r+b") as file:
        file.truncate(44 * CLUSTER + growth * 512)
        for at, length, data in after:
            os.pwrite(file.fileno(), data[:length], at)
    write_qcow2(raw, folder / "new.img", 2, base)
    assert same_for_qemu(raw, folder / "new.img")


def test_kept_clusters_come_from_the_base_and_the_rest_from_the_disk(tmp_path: Path) -> None:
    old = disk(tmp_path / "old.raw", 20 * CLUSTER, (0, TEXT[: 20 * CLUSTER]))
    run(["qemu-img", "convert", "-c", "-O", "qcow2", "-o", "compat=0.10", old, tmp_path / "base.img"])
    base = read_qcow2(tmp_path / "base.img")
    assert base is not None
    new = disk(tmp_path / "new.raw", 20 * CLUSTER, (2 * CLUSTER, NOISE[:CLUSTER]))
    write_qcow2(new, tmp_path / "new.img", 2, base, kept=[range(5, 9)])
    expected = bytearray(20 * CLUSTER)
    expected[2 * CLUSTER : 3 * CLUSTER] = NOISE[:CLUSTER]
    expected[5 * CLUSTER : 9 * CLUSTER] = old.read_bytes()[5 * CLUSTER : 9 * CLUSTER]
    (tmp_path / "expected.raw").write_bytes(expected)
    assert same_for_qemu(tmp_path / "expected.raw", tmp_path / "new.img")


def test_what_did_not_change_is_not_written_again(raw: Path, tmp_path: Path) -> None:
    write_qcow2(raw, tmp_path / "base.img", jobs=2)
    base = read_qcow2(tmp_path / "base.img")
    assert base is not None
    with raw.open("r+b") as file:
        file.seek(200 << 20)
        file.write(NOISE[:CLUSTER])
    write_qcow2(raw, tmp_path / "new.img", 2, base)
    grown = (tmp_path / "new.img").stat().st_size - (tmp_path / "base.img").stat().st_size
    assert grown <= 8 * CLUSTER  # the cluster, two L2 tables, L1, reference counts
    assert same_for_qemu(raw, tmp_path / "new.img")


def image_options(*options: str) -> list[str]:
    return ["-O", "qcow2", "-o", ",".join(options)]


@pytest.mark.parametrize(
    "options", [image_options("compat=1.1"), image_options("compat=0.10", "cluster_size=4096"), ["-O", "vmdk"]],
    ids=["version 3", "small clusters", "vmdk"],
)  # fmt: skip
def test_images_of_another_kind_are_left_to_qemu(raw: Path, tmp_path: Path, options: list[str]) -> None:
    run(["qemu-img", "convert", *options, raw, tmp_path / "image"])
    assert read_qcow2(tmp_path / "image") is None


def test_images_with_snapshots_or_backing_files_are_left_to_qemu(raw: Path, tmp_path: Path) -> None:
    image = tmp_path / "image"
    write_qcow2(raw, image, jobs=2)
    run(
        ["qemu-img", "create", "-q", "-f", "qcow2", "-o", "compat=0.10", "-b", image, "-F", "qcow2", tmp_path / "over"]
    )
    assert read_qcow2(tmp_path / "over") is None
    run(["qemu-img", "snapshot", "-c", "one", image])
    assert read_qcow2(image) is None


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_damaged_tables_never_crash_the_reader(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Random damage of header and tables: an image, none, or a clear error; nothing else."""
    folder = tmp_path_factory.mktemp("damage")
    raw = disk(folder / "disk.raw", 40 * CLUSTER, (0, TEXT[: 4 * CLUSTER]), (20 * CLUSTER, NOISE[: 2 * CLUSTER]))
    write_qcow2(raw, folder / "image", jobs=1)
    length = (folder / "image").stat().st_size
    with (folder / "image").open("r+b") as file:
        for _ in range(data.draw(st.integers(1, 4))):
            at = data.draw(st.one_of(st.integers(0, 71), st.integers(0, length - 8)))
            os.pwrite(file.fileno(), struct.pack(">Q", data.draw(st.integers(0, (1 << 64) - 1))), at)
        if data.draw(st.booleans()):
            file.truncate(data.draw(st.integers(0, length)))
    found = read_qcow2(folder / "image")
    if found is not None and found.size <= 1 << 30:
        disk(folder / "out.raw", found.size)
        try:
            found.unpack(folder / "out.raw", [range(len(found.entries))], jobs=1)
            write_qcow2(folder / "out.raw", folder / "new.img", 1, found)
        except ImageError:
            pass


def test_a_cut_off_image_is_no_image(raw: Path, tmp_path: Path) -> None:
    write_qcow2(raw, tmp_path / "image", jobs=2)
    os.truncate(tmp_path / "image", (tmp_path / "image").stat().st_size // 2)
    found = read_qcow2(tmp_path / "image")
    with pytest.raises(CommandFailed):
        run(["qemu-img", "check", "-f", "qcow2", tmp_path / "image"])
    assert found is None
