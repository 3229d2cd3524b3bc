"""Machines without a disk: which way extensions come in for which release, and the memory that takes."""

from __future__ import annotations

from pathlib import Path

import pytest

from baker.config import load
from baker.diskless.options import parse_ram, parse_serial
from baker.diskless.routes import check_memory, choose_route, memory_needed
from baker.diskless.texts import kernel_arguments
from baker.errors import UsageError
from baker.model import Arch, Channel, Release
from baker.vendor_files import load_vendors


def release(word: str) -> Release:
    channel, version = word.split()
    return Release(version, Channel(channel), Arch.X86_64)


@pytest.mark.parametrize(
    ("word", "route"),
    [
        ("lts 3510.3.5", "oem"),
        ("alpha 3602.0.0", "oem"),
        ("alpha 3874.0.0", "usr"),
        ("alpha 3913.0.0", "oem"),
        ("beta 3815.1.0", "usr"),
        ("beta 3874.1.0", "oem"),
        ("stable 3815.2.0", "usr"),
        ("stable 3815.2.1", "oem"),
        ("lts 4081.3.10", "oem"),
        ("stable 4459.2.4", "oem"),
        ("alpha 4487.0.0", "usr"),
        ("beta 4515.1.0", "usr"),
        ("beta 4593.1.0", "usr"),
        ("stable 4593.2.0", "oem"),
        ("beta 4628.1.0", "oem"),
        ("alpha 4669.0.0", "oem"),
        ("beta 4757.1.0", "oem"),
    ],
)
def test_the_route_is_one_that_works_with_the_release(word: str, route: str) -> None:
    chosen = choose_route(release(word))
    assert chosen.name == route
    assert chosen.why


@pytest.mark.parametrize(
    ("word", "wanted", "said"),
    [
        ("alpha 4628.0.0", "auto", "alpha 4669.0.0 and later (beta 4628.1.0, stable 4593.2.0)"),
        ("alpha 4628.0.0", "usr", "alpha 4669.0.0"),
        ("beta 4593.1.0", "oem", "beta 4628.1.0"),
        ("alpha 3700.0.0", "auto", "alpha 3913.0.0"),
        ("stable 3760.2.0", "auto", "stable 3815.2.1"),
        ("stable 3760.2.0", "oem", "stable 3815.2.1"),
        ("beta 4757.1.0", "usr", "--pxe-route oem"),
        ("lts 3510.3.5", "usr", "--pxe-route oem"),
    ],
)
def test_what_loses_the_extensions_is_refused_naming_what_works(word: str, wanted: str, said: str) -> None:
    with pytest.raises(UsageError) as raised:
        choose_route(release(word), wanted)
    assert word.split()[1] in raised.value.message
    assert said in (raised.value.hint or "")


def test_memory_is_twice_what_is_loaded_and_some() -> None:
    mib = 1 << 20
    assert memory_needed([450 * mib, 50 * mib]) == 1536 * mib
    assert memory_needed([1]) % (64 * mib) == 0
    check_memory(1536 * mib, 1536 * mib, "pxe")
    check_memory(1536 * mib, 0, "pxe")
    with pytest.raises(UsageError, match="pxe needs 1536 MiB of memory to start, more than the 1535 MiB"):
        check_memory(1536 * mib, 1535 * mib, "pxe")


@pytest.mark.parametrize(("word", "mib"), [("4G", 4096), ("3072M", 3072), ("2 GiB", 2048), ("512", 512), (None, 0)])
def test_amounts_of_memory_are_understood(word: str | None, mib: int) -> None:
    assert parse_ram(word) == mib << 20


@pytest.mark.parametrize("word", ["", "0", "4T", "-1G", "4GB", "1.5G"])
def test_other_words_are_no_amount_of_memory(word: str) -> None:
    with pytest.raises(UsageError, match="no amount of memory"):
        parse_ram(word)


def test_a_bake_toml_says_the_same(tmp_path: Path) -> None:
    path = tmp_path / "bake.toml"
    path.write_text('pxe_route = "usr"\npxe_split = true\nram = "4G"\nserial = "ttyS1"\n')
    file = load(path)
    assert (file.pxe_route, file.pxe_split, file.ram, file.serial) == ("usr", True, "4G", "ttyS1")
    path.write_text('pxe_route = "rom"\n')
    with pytest.raises(UsageError, match="pxe_route must be one of auto, oem, usr"):
        load(path)


def test_a_serial_console_takes_the_place_of_the_vendors() -> None:
    diskless = load_vendors()["pxe"].diskless
    assert diskless is not None
    for serial, expected in (
        ("", ("console=tty0", "console=ttyS0,115200n8")),
        ("ttyS1,57600n8", ("console=tty0", "console=ttyS1,57600n8")),
        ("none", ("console=tty0",)),
    ):
        args = kernel_arguments(diskless, Arch.X86_64, parse_serial(serial), ["quiet"])
        assert args == (*expected, "flatcar.first_boot=1", "quiet")
    with pytest.raises(UsageError, match="no serial console"):
        parse_serial("ttyS0 rd.break")
