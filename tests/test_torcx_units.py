"""Units lose torcx and nothing else."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torcxes import WEBD

from baker.survey.units import parse_unit
from baker.torcx.unitfile import UnitText, unquoted, words_of
from baker.torcx.units import Places, image_names, without_torcx

PLACES = Places(lambda path: f"/usr{path}" if path != "/" else "/usr", ("docker", "web.d"), "/usr")


def converted(*lines: str) -> list[str]:
    return without_torcx("\n".join(lines) + "\n", PLACES).text.splitlines()


def test_a_whole_unit() -> None:
    result = without_torcx(WEBD, Places(PLACES.where, image_names(WEBD), "/usr"))
    assert result.text == (
        "[Unit]\n"
        "Description=Web daemon out of torcx\n"
        "# torcx has to have unpacked it\n"
        "After=network-online.target webd.socket\n"
        "Requires=webd.socket\n"
        "\n"
        "[Service]\n"
        "Environment=TORCX_BINDIR=/usr/bin TORCX_UNPACKDIR=/usr TORCX_IMAGEDIR=\n"
        'Environment="GREETING=hello world" OTHER=x\n'
        "Type=exec\n"
        """ExecStartPre=-/bin/sh -c 'echo "$$TORCX_BINDIR" $${TORCX_UNPACKDIR}$${TORCX_IMAGEDIR}/share'\n"""
        "ExecStart=/usr/bin/env PATH=/usr/bin:${PATH} /usr/bin/busybox httpd -f -p 127.0.0.1:8077  "
        "-h /usr/share/www $OPTS\n"
        "ExecReload=/sbin/webctl kill -HUP $MAINPID\n"
        "\n"
        "[Install]\n"
        "WantedBy=multi-user.target\n"
    )
    assert result.left == []
    assert image_names(WEBD) == ["webd"]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("ExecStart=${TORCX_BINDIR}/x", "ExecStart=/usr/bin/x"),
        ("ExecStart=$TORCX_BINDIR/x", "ExecStart=/usr/bin/x"),
        ("ExecStart=/run/torcx/bin/x", "ExecStart=/usr/bin/x"),
        ("ExecStart=/var/run/torcx/bin/x", "ExecStart=/usr/bin/x"),
        ("ExecStart=/x --path=${TORCX_BINDIR}:/y", "ExecStart=/x --path=/usr/bin:/y"),
        ("ExecStart=/x ${TORCX_UNPACKDIR}${TORCX_IMAGEDIR}/lib/y z", "ExecStart=/x /usr/lib/y z"),
        ("ExecStart=/x '${TORCX_UNPACKDIR}/docker/lib/y'", "ExecStart=/x '/usr/lib/y'"),
        ("ExecStart=/x ${TORCX_UNPACKDIR}/web.d/lib", "ExecStart=/x /usr/lib"),
        ("ExecStart=/x /run/torcx/unpack/docker/lib", "ExecStart=/x /usr/lib"),
        ("ExecStart=/x ${TORCX_UNPACKDIR}${TORCX_IMAGEDIR}", "ExecStart=/x /usr"),
        ("ListenStream=/run/docker.sock", "ListenStream=/run/docker.sock"),
        ("ExecStart=/x $$TORCX_BINDIR ${TORCX_BINDIRECTORY}", "ExecStart=/x $$TORCX_BINDIR ${TORCX_BINDIRECTORY}"),
        ("ExecStart=/x /run/torcx/unpack/dockerd/lib", "ExecStart=/x /run/torcx/unpack/dockerd/lib"),
        ("ExecStart=/x /srv/run/metadata", "ExecStart=/x /srv/run/metadata"),
    ],
)
def test_paths_of_torcx_become_those_of_the_sysext(before: str, after: str) -> None:
    assert converted("[Service]", before) == ["[Service]", after]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (["After=torcx.target"], []),
        (["Requires = torcx.target"], []),
        (["After=a.service torcx.target b.service"], ["After=a.service b.service"]),
        (["Wants=torcx-profile-populate.service x.service"], ["Wants=x.service"]),
        (["After="], ["After="]),
        (["After=a.service \\", "  torcx.target \\", "# no", "  b.service"], ["After=a.service b.service"]),
        (["After=a.service \\", "  b.service"], ["After=a.service \\", "  b.service"]),
        (["ConditionPathExists=|!/run/metadata/torcx"], []),
        (["RequiresMountsFor=/run/torcx/unpack"], []),
        (["ConditionPathExists=/run/torcxes"], ["ConditionPathExists=/run/torcxes"]),
        (["Description=After=torcx.target"], ["Description=After=torcx.target"]),
        (["# After=torcx.target"], ["# After=torcx.target"]),
        (["After=mytorcx.target"], ["After=mytorcx.target"]),
    ],
)
def test_nothing_waits_for_torcx(before: list[str], after: list[str]) -> None:
    assert converted("[Unit]", *before) == ["[Unit]", *after]


VARIABLES = "Environment=TORCX_BINDIR=/usr/bin TORCX_UNPACKDIR=/usr TORCX_IMAGEDIR="


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (["EnvironmentFile=/run/metadata/torcx"], [VARIABLES]),
        (["EnvironmentFile=-/run/metadata/torcx", "Environment=TORCX_IMAGEDIR=/docker"], [VARIABLES]),
        (["Environment=TORCX_IMAGEDIR=/docker A=1", "EnvironmentFile=/run/metadata/torcx"],
         ["Environment=A=1", VARIABLES]),
        (["EnvironmentFile=/run/metadata/torcx", "EnvironmentFile=/etc/default/x"],
         [VARIABLES, "EnvironmentFile=/etc/default/x"]),
        (['Environment="TORCX_IMAGEDIR=/docker" "B=a b"'], ['Environment="B=a b"', VARIABLES]),
        (["EnvironmentFile=/run/metadata/torcx-more"], ["EnvironmentFile=/run/metadata/torcx-more"]),
    ],
)  # fmt: skip
def test_programs_still_find_the_variables(before: list[str], after: list[str]) -> None:
    assert converted("[Service]", *before) == ["[Service]", *after]


def test_what_still_relies_on_torcx_is_told() -> None:
    unit = "[Service]\nExecStart=/x ${TORCX_PROFILE_PATH}\nExecStop=/y $$TORCX_BINDIR\n"
    assert without_torcx(unit, PLACES).left == ["ExecStart=/x ${TORCX_PROFILE_PATH}", "ExecStop=/y $$TORCX_BINDIR"]
    with_file = unit.replace("[Service]\n", "[Service]\nEnvironmentFile=/run/metadata/torcx\n")
    assert without_torcx(with_file, PLACES).left == ["ExecStart=/x ${TORCX_PROFILE_PATH}"]


LINES = st.lists(st.text("[]=#;\\ \t\r\"'$aA.\n", max_size=12), max_size=8).map("\n".join)


@given(LINES)
def test_any_text_comes_back_as_it_is(text: str) -> None:
    assert str(UnitText(text)) == text
    without_torcx(text, PLACES)


@given(LINES)
def test_settings_are_those_that_our_other_parser_finds(text: str) -> None:
    text = re.sub(r"\\\s*$", "", text.replace("\r", ""))
    found: dict[tuple[str, str], list[str]] = {}
    for line in UnitText(text).assignments:
        found.setdefault((line.section, line.key), []).append(" ".join(line.value.split()))
    wanted = {key: [" ".join(value.split()) for value in values] for key, values in parse_unit(text).items() if key[1]}
    assert found == wanted


def test_words_and_quotes() -> None:
    assert words_of("""A=1 "B=a b" 'C=d "e"' F=\\x g\\ h""") == ["A=1", '"B=a b"', "'C=d \"e\"'", "F=\\x", "g\\ h"]
    assert [unquoted(word) for word in ('"B=a b"', "g\\ h", "'x'")] == ["B=a b", "g h", "x"]
