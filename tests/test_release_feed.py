"""The real release feed is read, and versions, channels and LTS years come out as Flatcar publishes them."""

from __future__ import annotations

import json

import pytest
from flatcar_data import flatcar_data
from hypothesis import given
from hypothesis import strategies as st

from baker.errors import NetworkError, UsageError, VerificationError
from baker.model import Arch, Channel
from baker.release import LTS_YEARS, Feed, guess_channel, parse_version_txt, version_key

FEED = "releases.json"


@pytest.fixture(scope="module")
def raw() -> dict[str, dict[str, object]]:
    document: dict[str, dict[str, object]] = json.loads(flatcar_data(FEED))
    return document


@pytest.fixture(scope="module")
def feed() -> Feed:
    return Feed.parse(flatcar_data(FEED))


def test_every_release_of_the_feed_is_read(feed: Feed, raw: dict[str, dict[str, object]]) -> None:
    versions = {version for version in raw if not version.startswith("current")}
    assert set(feed.entries) == versions
    assert len(versions) == 540
    for version, entry in feed.entries.items():
        assert entry.version == version
        assert entry.channel == raw[version]["channel"]
        assert sorted(entry.architectures) == raw[version]["architectures"]
        assert entry.major_software == raw[version]["major_software"]
        assert entry.build_date > 1_500_000_000
    assert feed.entries["4593.2.5"].build_date == 1786636115  # date -d "2026-08-13 15:48:35 +0000" +%s


def test_the_guess_agrees_with_the_feed_wherever_it_claims_to_know(feed: Feed) -> None:
    silent = []
    for version, entry in feed.entries.items():
        try:
            guess = guess_channel(version)
        except UsageError:
            silent.append(version)
            continue
        assert guess is entry.channel, version
    assert all(version_key(version)[0] <= 2605 for version in silent)
    assert not any(feed.entries[version].channel is Channel.LTS for version in silent)


@pytest.mark.parametrize(
    ("version", "channel"),
    [
        ("9999.0.0", Channel.ALPHA), ("9999.1.0", Channel.BETA), ("9999.2.11", Channel.STABLE),
        ("9999.3.1", Channel.LTS), ("2605.12.1", Channel.LTS), ("2605.32.1", Channel.LTS), ("2466.99.0", Channel.EDGE),
        ("4790.0.0+nightly-20260801-2100", Channel.ALPHA),
    ],
)  # fmt: skip
def test_channels_follow_from_numbers(version: str, channel: Channel) -> None:
    assert guess_channel(version) is channel


@pytest.mark.parametrize(
    "version", ["1911.5.0", "9999.4.0", "4593.2", "4593.2.5.1", "v4593.2.5", "", "a.b.c", "１.0.0"]
)
def test_other_numbers_are_not_guessed(version: str) -> None:
    with pytest.raises(UsageError):
        guess_channel(version)


def test_versions_sort_by_number() -> None:
    versions = ["4593.2.10", "10000.0.0", "4593.2.9", "999.2.9", "4593.10.0", "4593.2.9+nightly-1"]
    assert sorted(versions, key=version_key) == [
        "999.2.9", "4593.2.9", "4593.2.9+nightly-1", "4593.2.10", "4593.10.0", "10000.0.0",
    ]  # fmt: skip


def test_the_latest_of_each_channel_is_what_the_feed_calls_current(
    feed: Feed, raw: dict[str, dict[str, object]]
) -> None:
    latest = {channel: feed.latest(channel, Arch.X86_64).version for channel in Channel}
    assert latest == {
        Channel.ALPHA: "4790.0.0", Channel.BETA: "4757.1.0", Channel.STABLE: "4593.2.5", Channel.LTS: "4081.3.10",
        Channel.EDGE: latest[Channel.EDGE],
    }  # fmt: skip
    assert latest[Channel.EDGE].split(".")[1] == "99"
    assert raw[latest[Channel.STABLE]]["release_date"] == raw["current"]["release_date"]


@pytest.mark.parametrize(("year", "major"), LTS_YEARS.items())
def test_each_lts_year_has_its_major_version(
    feed: Feed, raw: dict[str, dict[str, object]], year: int, major: int
) -> None:
    latest = feed.latest(Channel.LTS, Arch.X86_64, year)
    assert version_key(latest.version)[0] == major
    assert raw[latest.version]["release_date"] == raw[f"current-{year}"]["release_date"]


def test_arm64_came_later_than_amd64(feed: Feed) -> None:
    without = [entry for entry in feed.entries.values() if "arm64" not in entry.architectures]
    assert len(without) == 253 - 1  # current-2021 is one of those without, but no release
    with pytest.raises(UsageError, match="No lts-2021 release for arm64"):
        feed.latest(Channel.LTS, Arch.ARM64, 2021)
    assert feed.latest(Channel.LTS, Arch.ARM64, 2022).version.startswith("3033.")


def test_an_unknown_lts_year_has_no_release(feed: Feed) -> None:
    with pytest.raises(UsageError, match="lts-1999"):
        feed.latest(Channel.LTS, Arch.X86_64, 1999)


GOOD = {"channel": "stable", "architectures": ["amd64"], "release_date": "2026-01-01 00:00:00 +0000"}


def test_what_a_later_feed_may_bring_is_skipped() -> None:
    document = {
        "1.2.3": {**GOOD, "new_field": {"a": [1]}, "major_software": {"kernel": ["6.1"], "odd": "text"}},
        "1.2.4": {**GOOD, "channel": "experimental"},
        "current-2099": {"whatever": 1},
        "a note": "text",
        "1.2.5": {**GOOD, "release_date": "soon"},
    }
    feed = Feed.parse(json.dumps(document).encode())
    assert set(feed.entries) == {"1.2.3", "1.2.5"}
    assert feed.entries["1.2.3"].major_software == {"kernel": ["6.1"]}
    assert feed.entries["1.2.5"].build_date == 0


@pytest.mark.parametrize(
    "data",
    [
        b"", b"<html>", b"[]", b"3", b"\xff\xfe", b"[" * 100_000,
        b'{"1.2.3": []}', b'{"1.2.3": {}}', b'{"1.2.3": {"channel": 1, "architectures": []}}',
        b'{"1.2.3": {"channel": "stable", "architectures": "amd64"}}',
        b'{"1.2.3": {"channel": ["stable"], "architectures": [1]}}',
    ],
)  # fmt: skip
def test_what_is_no_feed_is_a_network_error(data: bytes) -> None:
    with pytest.raises(NetworkError, match="release feed"):
        Feed.parse(data)


def test_version_txt_is_parsed_and_unquoted() -> None:
    text = b"""# made by a build
FLATCAR_BUILD=4593
FLATCAR_VERSION=4593.2.5
FLATCAR_VERSION_ID='4593.2.5'
FLATCAR_BUILD_ID="2026-08-13-1548"
FLATCAR_PATCH=""

FLATCAR_SDK_VERSION="4593.0.0+nightly-20260101-2100"
"""
    assert parse_version_txt(text) == {
        "FLATCAR_BUILD": "4593", "FLATCAR_VERSION": "4593.2.5", "FLATCAR_VERSION_ID": "4593.2.5",
        "FLATCAR_BUILD_ID": "2026-08-13-1548", "FLATCAR_PATCH": "",
        "FLATCAR_SDK_VERSION": "4593.0.0+nightly-20260101-2100",
    }  # fmt: skip


@pytest.mark.parametrize(
    "line",
    [
        b"A=$(reboot)", b"A=`reboot`",
        b'A="$HOME"', b"A=b c", b"A=b; reboot", b'A="b', b"A=b'", b'A="b"c', b"reboot",
        b"export A=b", b"a=b",
        b" A=b", b"A=b\r", b'A="b\x1b[2J"', b'A="b\x00"', b'A="b\tc"', b'A="\\n"', b"A=\xc3\xa9",
        b'A="\xc2\x85"', b"FLATCAR_VERSION=4593.2.6", b"A=b\x0bB=c", b"A=b\x0cB=c",
    ],
)  # fmt: skip
def test_hostile_lines_of_version_txt_are_refused(line: bytes) -> None:
    with pytest.raises(VerificationError):
        parse_version_txt(b"FLATCAR_VERSION=4593.2.5\n" + line + b"\n")


@pytest.mark.parametrize("text", [b"", b"FLATCAR_BUILD=1\n", b"FLATCAR_VERSION=../../etc\n", b"FLATCAR_VERSION=\n"])
def test_version_txt_needs_a_version(text: bytes) -> None:
    with pytest.raises(VerificationError, match="FLATCAR_VERSION"):
        parse_version_txt(text)


@given(st.binary(max_size=300) | st.text().map(str.encode))
def test_noise_in_version_txt_never_escapes(data: bytes) -> None:
    try:
        settings = parse_version_txt(b"FLATCAR_VERSION=1.2.3\n" + data)
    except VerificationError:
        return
    assert all(value.isprintable() and value.isascii() for value in settings.values())


@given(st.recursive(st.none() | st.text() | st.integers(), lambda x: st.lists(x) | st.dictionaries(st.text(), x)))
def test_any_json_is_a_feed_or_a_network_error(document: object) -> None:
    for value in (document, {"1.2.3": document}, {"1.2.3": {**GOOD, "release_date": document}}):
        try:
            Feed.parse(json.dumps(value).encode())
        except NetworkError:
            pass
