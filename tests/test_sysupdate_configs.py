"""Transfer configs are read as systemd does, and one that nobody vouches for can do no harm."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baker.errors import ImageError
from baker.model import Arch
from baker.sysupdate import lint_config, matches, parse_config

GOOD = """\
[Transfer]
Verify=false

[Source]
Type=url-file
Path=https://extensions.flatcar.org/extensions/wasmtime/
MatchPattern=wasmtime-@v-%a.raw

[Target]
InstancesMax=3
Type=regular-file
Path=/opt/extensions/wasmtime
CurrentSymlink=/etc/extensions/wasmtime.raw
"""


def problem(old: str, new: str) -> str:
    assert old in GOOD
    return lint_config(GOOD.replace(old, new).encode(), "wasmtime")


def test_a_bakery_config_is_understood() -> None:
    config = parse_config(GOOD.encode())
    assert config.source_type == "url-file"
    assert config.source_path == "https://extensions.flatcar.org/extensions/wasmtime/"
    assert config.source_patterns == config.target_patterns == ("wasmtime-@v-%a.raw",)
    assert config.target_path == "/opt/extensions/wasmtime"
    assert config.current_symlink == "/etc/extensions/wasmtime.raw"
    assert lint_config(GOOD.encode(), "wasmtime") == ""


def test_keys_repeat_continue_and_reset_as_in_systemd() -> None:
    text = (
        "# a comment\n; another\n[Source]\nMatchPattern=lost-@v.raw\nMatchPattern=\n"
        "MatchPattern=a-@v.raw \\\n  b-@v.raw\n"
        "MatchPattern = c-@v.raw\nPath=https://old\nPath=https://new\n[Target]\nPath=/x\n"
    )
    config = parse_config(text.encode())
    assert config.source_patterns == ("a-@v.raw", "b-@v.raw", "c-@v.raw")
    assert config.source_path == "https://new"
    assert config.target_type == "regular-file"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("Path=/opt/extensions/wasmtime", "Path=/opt/extensions/wasmtime/"),
        ("Path=/opt/extensions/wasmtime", "Path=//opt/./extensions/wasmtime/old"),
        ("CurrentSymlink=/etc/extensions/", "CurrentSymlink=/etc//extensions/./"),
        ("Type=regular-file\n", ""),
        ("InstancesMax=3\n", "PathRelativeTo=root\nMode=0644\n"),
        ("wasmtime-@v-%a.raw", "wasmtime-v1.30.@v-%a.raw"),
        ("\n", "\r\n"),
    ],
)
def test_harmless_variations_pass(old: str, new: str) -> None:
    assert problem(old, new) == ""


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        ("https://", "http://", "https"),
        ("https://", "file:///", "https"),
        ("https://", "https://user:password@", "https"),
        ("Type=url-file", "Type=regular-file", "source is of the type"),
        ("Type=url-file\n", "", "source is of the type"),
        ("Path=/opt/extensions/wasmtime", "Path=/usr/bin", "writes to '/usr/bin'"),
        ("Path=/opt/extensions/wasmtime", "Path=/opt/extensions/other", "writes to"),
        ("Path=/opt/extensions/wasmtime", "Path=/opt/extensions/wasmtimes", "writes to"),
        ("Path=/opt/extensions/wasmtime", "Path=/opt/extensions/wasmtime/../../../etc", "writes to"),
        ("Path=/opt/extensions/wasmtime", "Path=opt/extensions/wasmtime", "writes to"),
        ("Path=/opt/extensions/wasmtime\n", "", "writes to"),
        ("Type=regular-file", "Type=partition", "target is of the type"),
        ("InstancesMax=3", "PathRelativeTo=esp", "relative to"),
        ("/etc/extensions/wasmtime.raw", "/etc/extensions/other.raw", "links"),
        ("/etc/extensions/wasmtime.raw", "../../etc/extensions/wasmtime.raw", "links"),
        ("CurrentSymlink=/etc/extensions/wasmtime.raw\n", "", "links ''"),
        ("wasmtime-@v-%a.raw", "../@v.raw", "MatchPattern"),
        ("wasmtime-@v-%a.raw", "wasmtime.raw", "MatchPattern"),
        ("wasmtime-@v-%a.raw", "@v-@v.raw", "MatchPattern"),
        ("wasmtime-@v-%a.raw", "%H-@v.raw", "MatchPattern"),
        ("MatchPattern=wasmtime-@v-%a.raw\n", "", "no MatchPattern"),
        ("Verify=false", "ExecStart=/bin/sh", "unknown key 'ExecStart'"),
        ("[Transfer]", "[Service]", "unknown section 'Service'"),
        ("[Transfer]", "Verify=no\n[Transfer]", "no setting"),
        ("Verify=false", "Verify", "no setting"),
        ("Verify=false", "Verify=\x1b[31m", "control characters"),
    ],
)  # fmt: skip
def test_what_a_config_must_not_do_is_named(old: str, new: str, why: str) -> None:
    found = problem(old, new)
    assert why in found
    assert found.startswith(("it ", "its "))


@pytest.mark.parametrize("data", [b"\xff\xfe", b"#" * 70_000])
def test_what_is_no_config_is_refused(data: bytes) -> None:
    with pytest.raises(ImageError):
        parse_config(data)


@given(st.binary(max_size=300))
def test_any_bytes_give_an_answer(data: bytes) -> None:
    assert lint_config(data, "wasmtime") != ""


@pytest.mark.parametrize(
    ("pattern", "file", "version"),
    [
        ("wasmtime-@v-%a.raw", "wasmtime-24.0.0-x86-64.raw", "24.0.0"),
        ("wasmtime-@v-%a.raw", "wasmtime-24.0.0-rc.1-x86-64.raw", "24.0.0-rc.1"),
        ("wasmtime-@v-%a.raw", "wasmtime-24.0.0-arm64.raw", None),
        ("wasmtime-@v-%a.raw", "wasmtime.raw", None),
        ("wasmtime-@v-%a.raw", "wasmtime--x86-64.raw", None),
        ("wasmtime-@v-%a.raw", "wasmtime-1-x86-64.raw-x86-64.raw", None),
        ("wasmtime-@v-%a.raw", "wasmtime-2 4-x86-64.raw", None),
        ("kubernetes-v1.30.@v-%a.raw", "kubernetes-v1.30.4-x86-64.raw", "4"),
        ("kubernetes-v1.30.@v-%a.raw", "kubernetes-v1.31.0-x86-64.raw", None),
        ("@v", "1.2.3", "1.2.3"),
        ("100%%-@v", "100%-1", "1"),
        ("no-version.raw", "no-version.raw", None),
        ("%v-@v.raw", "6.1-1.raw", None),
    ],
)  # fmt: skip
def test_file_names_match_as_in_systemd(pattern: str, file: str, version: str | None) -> None:
    assert matches(pattern, file, Arch.X86_64) == version
