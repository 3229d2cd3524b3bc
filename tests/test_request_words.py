"""The words of the command line become checked data, or a sentence that says what is wrong."""

from pathlib import Path

import pytest

from baker.errors import UsageError
from baker.model import InstallTarget
from baker.request import parse_install_to, parse_sysext, parse_sysexts


def test_a_file_may_be_any_path_or_url_and_names_may_carry_a_plus() -> None:
    assert parse_sysext("w:/a/b c/w.raw", fetch=False).path == Path("/a/b c/w.raw")
    assert parse_sysext("w:w.raw", fetch=False).path == Path("w.raw")
    k3s = parse_sysext("k3s:k3s-v1.29.2+k3s1-x86-64.raw", fetch=True)
    assert (k3s.bakery_file, k3s.path) == ("k3s-v1.29.2+k3s1-x86-64.raw", None)
    pinned = parse_sysext(f"w:https://example.com/w-1.raw#sha256={'A' * 64}", fetch=False)
    assert (pinned.url, pinned.sha256) == ("https://example.com/w-1.raw", "a" * 64)


def test_fetch_keeps_a_path_with_a_folder_local() -> None:
    assert parse_sysext("w:./w.raw", fetch=True).path == Path("./w.raw")
    assert parse_sysext("w:w.raw", fetch=True).path is None


def test_name_at_version_means_the_bakery() -> None:
    assert parse_sysext("docker@28.0.4", fetch=False).version == "28.0.4"


@pytest.mark.parametrize(
    "word", ["wasmtime.raw", "w:", ":w.raw", "a/b:w.raw", "../x:w.raw", "w@", "-w:w.raw", ".w:w.raw", "a b:w.raw"]
)
def test_a_word_that_names_nothing_is_refused(word: str) -> None:
    with pytest.raises(UsageError):
        parse_sysext(word, fetch=False)


def test_a_short_digest_is_refused() -> None:
    with pytest.raises(UsageError, match="64 hexadecimal digits"):
        parse_sysext("w:https://example.com/w.raw#sha256=abc", fetch=False)


def test_the_same_name_twice_is_an_error() -> None:
    with pytest.raises(UsageError, match="w is given twice"):
        parse_sysexts(("w:a.raw", "w:b.raw"), fetch=False)


def test_nothing_to_bake_is_an_error_with_an_example() -> None:
    with pytest.raises(UsageError) as caught:
        parse_sysexts((), fetch=False)
    assert "--fetch wasmtime:" in str(caught.value.hint)


def test_the_default_place_is_a_folder_per_sysext_on_root() -> None:
    assert parse_install_to(None).path("w", "w-1.raw") == "/opt/extensions/w/w-1.raw"


def test_the_old_scripts_flat_layout_works_as_asked() -> None:
    place = parse_install_to("root:/opt/extensions/")
    assert (place.target, place.path("w", "w-1.raw")) == (InstallTarget.ROOT, "/opt/extensions/w-1.raw")


def test_oem_is_a_place_too() -> None:
    place = parse_install_to("oem:/sysext")
    assert (place.target, place.path("w", "w-1.raw")) == (InstallTarget.OEM, "/sysext/w-1.raw")


@pytest.mark.parametrize(
    "word", ["usr:/x", "root:opt", "root:/opt/../etc", "/opt", "root:/usr/local", 'root:/a"b', "root:/a b", "root:/"]
)
def test_places_that_cannot_work_are_refused(word: str) -> None:
    with pytest.raises(UsageError):
        parse_install_to(word)
