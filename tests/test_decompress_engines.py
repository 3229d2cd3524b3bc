"""Every decoder gives the same bytes, sparse, and refuses what is cut short, corrupt or too big."""

from __future__ import annotations

import bz2
import errno
import gzip
import importlib.util
import os
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from processes import children

from baker.decompress import open_decoder
from baker.errors import EnvironmentFault, ImageError
from baker.run import find

RAW = os.urandom(1_500_000) + bytes(6 << 20) + b"in the middle" + bytes(3 << 20) + os.urandom(70_000) + bytes(100_000)
ENGINES = ["lbzip2", "indexed_bzip2", "bz2", "gz"]
BZ2_ENGINES = ENGINES[:3]

Unpack = Callable[..., bytes]


def use(engine: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Make this machine one whose best decoder is `engine`."""
    if engine in ("indexed_bzip2", "bz2"):
        monkeypatch.setenv("PATH", str(tmp_path))
        assert find("lbzip2") is None
    else:
        assert find("lbzip2"), "these tests need lbzip2"
    if engine == "bz2":
        monkeypatch.setitem(sys.modules, "indexed_bzip2", None)
    assert engine != "indexed_bzip2" or importlib.util.find_spec("indexed_bzip2"), "it is needed for these tests"


@cache
def pack(engine: str, data: bytes) -> bytes:
    return gzip.compress(data, 6) if engine == "gz" else bz2.compress(data)


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    use(request.param, monkeypatch, tmp_path)
    return str(request.param)


@pytest.fixture
def unpack(engine: str, tmp_path: Path) -> Unpack:
    def unpack(packed: bytes, chunk: int = 100_000, limit: int = 1 << 30) -> bytes:
        source, target = tmp_path / "source", tmp_path / "target"
        source.write_bytes(packed)
        name = "image.bin.gz" if engine == "gz" else "image.bin.bz2"
        with target.open("wb") as file, open_decoder(name, file.fileno(), source, limit) as decoder:
            for start in range(0, len(packed), chunk):
                decoder.write(packed[start : start + chunk])
            assert decoder.finish() == target.stat().st_size
        return target.read_bytes()

    return unpack


@pytest.mark.parametrize("chunk", [4_001, 1 << 20])
def test_the_bytes_come_out_and_zeros_take_no_space(unpack: Unpack, engine: str, tmp_path: Path, chunk: int) -> None:
    assert unpack(pack(engine, RAW), chunk) == RAW
    assert (tmp_path / "target").stat().st_blocks * 512 < 2_000_000


def test_single_bytes_are_enough(unpack: Unpack, engine: str) -> None:
    assert unpack(pack(engine, b"hello"), 1) == b"hello"


def test_several_streams_in_a_row_are_one_file(unpack: Unpack, engine: str) -> None:
    for chunk in (1, 7, 1000):
        assert unpack(pack(engine, b"one") + pack(engine, b"two") + pack(engine, b"three"), chunk) == b"onetwothree"


@pytest.mark.parametrize("garbage", [b"\0" * 600, b"x", b"trailing garbage", b"B", b"BZ", b"\x1f"])
def test_what_follows_a_complete_stream_is_ignored_as_bzip2_and_gzip_do(
    unpack: Unpack, engine: str, garbage: bytes
) -> None:
    for chunk in (1, 1000):
        assert unpack(pack(engine, b"content") + garbage, chunk) == b"content"


def test_much_garbage_is_ignored_too(unpack: Unpack, engine: str) -> None:
    assert unpack(pack(engine, RAW) + b"x" * 20_000_000, 1 << 18) == RAW


@pytest.mark.parametrize("keep", [0.0, 0.3, 0.9, 0.999999])
def test_a_file_that_is_cut_short_is_refused(unpack: Unpack, engine: str, keep: float) -> None:
    packed = pack(engine, RAW)
    with pytest.raises(ImageError, match=r"image\.bin\.(bz2|gz) is not an intact compressed file"):
        unpack(packed[: int(len(packed) * keep)])


@pytest.mark.parametrize("data", [b"x", b"<html>", bytes(range(200)), b"BZh9" + bytes(500), b"\x1f\x8b" + bytes(500)])
def test_what_is_not_compressed_at_all_is_refused(unpack: Unpack, data: bytes) -> None:
    with pytest.raises(ImageError):
        unpack(data)


@pytest.mark.parametrize("where", [0.3, 0.6])
def test_a_flipped_bit_is_noticed(unpack: Unpack, engine: str, where: float) -> None:
    packed = bytearray(pack(engine, RAW))
    packed[int(len(packed) * where)] ^= 0x10
    with pytest.raises(ImageError):
        unpack(bytes(packed))


def test_a_bomb_is_stopped_long_before_it_has_unpacked(unpack: Unpack, engine: str, tmp_path: Path) -> None:
    bomb = pack(engine, bytes(30 << 20))
    assert len(bomb) < 100_000
    with pytest.raises(ImageError, match="unpacks to more than 1000000 bytes"):
        unpack(bomb, limit=1_000_000)
    assert (tmp_path / "target").stat().st_size == 0
    assert unpack(pack(engine, bytes(1_000_000)), limit=1_000_000) == bytes(1_000_000)


def test_memory_stays_bounded_however_much_comes_out(engine: str, tmp_path: Path) -> None:
    if engine == "indexed_bzip2":
        return  # its own buffers are several blocks per core, outside of our control
    bomb = tmp_path / "bomb"
    bomb.write_bytes(pack(engine, bytes(60 << 20)))
    code = f"""
import resource, sys
from pathlib import Path
if {engine == "bz2"}: sys.modules["indexed_bzip2"] = None
from baker.decompress import open_decoder
data = Path({str(bomb)!r}).read_bytes()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
with open({str(tmp_path / "out")!r}, "wb") as file:
    with open_decoder({"x.gz" if engine == "gz" else "x.bz2"!r}, file.fileno(), Path(), 1 << 30) as decoder:
        decoder.write(data)
        assert decoder.finish() == 60 << 20
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    root = Path(__file__).resolve().parents[1]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, check=True, capture_output=True, text=True)
    assert int(done.stdout) < 25_000, "kilobytes"


def test_a_full_disk_is_no_corrupt_image(engine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packed = pack(engine, RAW)
    (tmp_path / "source").write_bytes(packed)
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        with (tmp_path / "target").open("wb") as file:
            resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, limit[1]))
            with (
                pytest.raises(OSError) as caught,
                open_decoder(
                    "x.gz" if engine == "gz" else "x.bz2", file.fileno(), tmp_path / "source", 1 << 30
                ) as decoder,
            ):
                decoder.write(packed)
                decoder.finish()
        assert caught.value.errno == errno.EFBIG
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, ignored)


def test_nothing_runs_on_when_work_is_given_up(engine: str, tmp_path: Path) -> None:
    packed = pack(engine, RAW)
    with (
        (tmp_path / "target").open("wb") as file,
        pytest.raises(KeyboardInterrupt),
        open_decoder("x.gz" if engine == "gz" else "x.bz2", file.fileno(), tmp_path / "source", 1 << 30) as decoder,
    ):
        decoder.write(packed[: len(packed) // 2])
        raise KeyboardInterrupt
    assert [thread.name for thread in threading.enumerate() if "lbzip2" in thread.name] == []
    assert "lbzip2" not in children().values()


def test_a_killed_lbzip2_is_no_corrupt_image(tmp_path: Path) -> None:
    with (
        (tmp_path / "target").open("wb") as file,
        pytest.raises(EnvironmentFault, match="killed by signal 9"),
        open_decoder("x.bz2", file.fileno(), Path(), 1 << 30) as decoder,
    ):
        decoder.write(bz2.compress(RAW)[:500_000])
        (pid,) = [pid for pid, name in children().items() if name == "lbzip2"]
        os.kill(pid, signal.SIGKILL)
        decoder.finish()


def test_a_plain_file_is_kept_as_it_is_but_sparse(tmp_path: Path) -> None:
    for name in ("image.bin", "flatcar_production_qemu_uefi_image.img"):
        target = tmp_path / name
        with target.open("wb") as file, open_decoder(name, file.fileno(), Path(), 1 << 30) as decoder:
            decoder.write(RAW[:5])
            decoder.write(RAW[5:])
            assert decoder.finish() == len(RAW)
        assert target.read_bytes() == RAW
        assert target.stat().st_blocks * 512 < 2_000_000
        with (
            target.open("wb") as file,
            open_decoder(name, file.fileno(), Path(), limit=10) as decoder,
            pytest.raises(ImageError, match="more than 10 bytes"),
        ):
            decoder.write(RAW)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.binary(max_size=3000) | st.integers(1, 200_000).map(bytes), min_size=1, max_size=4),
    st.integers(1, 5000), st.sampled_from(["gz", "bz2"]),
)  # fmt: skip
def test_any_content_in_any_pieces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, streams: list[bytes], chunk: int, kind: str
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setitem(sys.modules, "indexed_bzip2", None)
    packed = b"".join(pack(kind, data) for data in streams)
    target = tmp_path / "target"
    with target.open("wb") as file, open_decoder(f"x.{kind}", file.fileno(), Path(), 1 << 30) as decoder:
        for start in range(0, len(packed), chunk):
            decoder.write(packed[start : start + chunk])
        decoder.finish()
    assert target.read_bytes() == b"".join(streams)
