"""What a boot showed is judged and told rightly: as text, JSON, JUnit XML and exit code."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from pathlib import Path

import pytest

from baker.boot import BootRequest, judge, require_success
from baker.boot_report import BootReport, Check, as_json, render, write_junit
from baker.errors import BootError
from baker.guest import CommandResult, GuestReport

GUEST = GuestReport(
    way="ignition", version="4593.2.5", kernel="6.12.1", boot_seconds=9.5, state="running", jobs="",
    sysexts=("docker-flatcar", "wasmtime"),
    sysexts_found="docker-flatcar raw /etc/extensions/docker-flatcar.raw\nforeign raw /etc/extensions/foreign.raw",
    sysext_log="", failed_units=(), failures="", commands=(),
)  # fmt: skip
REPORT = BootReport(
    image="x.img", firmware="uefi", accelerator="tcg", booted=True, seconds=21.5, boot_seconds=9.5,
    version="4593.2.5", kernel="6.12.1", way="edited copy", changes=("platform azure set to qemu",),
    sysexts=("wasmtime",), failed_units=(), commands=(CommandResult("wasmtime --version", 0, "wasmtime 1\n", ""),),
    checks=(Check("boots"), Check("no unit failed")), last_lines=(),
)  # fmt: skip
LOST = replace(
    REPORT, booted=False, commands=(), last_lines=("grub\x1b rescue>",),
    checks=(Check("boots", "GRUB stopped at its prompt: \x00no such device."),),
)  # fmt: skip


def failures(guest: GuestReport, **expected: object) -> dict[str, str]:
    request = replace(BootRequest(Path("x.img")), **expected)
    return {check.name: check.failure for check in judge(request, guest) if check.failure is not None}


def test_a_good_boot_has_no_failures() -> None:
    assert failures(GUEST, expect_sysexts=("wasmtime",)) == {}
    assert failures(replace(GUEST, state="degraded")) == {}


def test_a_missing_sysext_says_why() -> None:
    found = failures(GUEST, expect_sysexts=("wasmtime", "foreign", "none"))
    assert "did not take it" in found["sysext foreign is merged"]
    assert "does not see an image of that name" in found["sysext none is merged"]
    assert "merged are: docker-flatcar, wasmtime" in found["sysext none is merged"]
    logged = replace(GUEST, sysext_log="Using extensions.\nFailed to read metadata for image x: No medium found\nEnd")
    assert failures(logged, expect_sysexts=("none",))["sysext none is merged"].endswith("x: No medium found")


def test_failed_units_and_their_allowance() -> None:
    guest = replace(GUEST, failed_units=("a.service",), failures="a.service: it broke")
    assert failures(guest) == {"no unit failed": "Units failed: a.service: it broke"}
    assert failures(guest, allow_failed_units=True) == {}


def test_a_system_that_does_not_settle_names_what_it_waits_for() -> None:
    guest = replace(GUEST, state="", jobs="12 slow.service start running\n13 multi-user.target start waiting")
    assert "12 slow.service start running; 13 multi" in failures(guest)["boots"]


def test_commands_must_end_with_0() -> None:
    results = (
        CommandResult("good", 0, "", "noise"), CommandResult("bad", 3, "", "first\nlast\n"),
        CommandResult("slow", 124, "", ""), CommandResult("lost", -1, "", ""),
    )  # fmt: skip
    assert failures(replace(GUEST, commands=results)) == {
        "command: bad": "`bad` ended with status 3: last",
        "command: slow": "`slow` did not end within 120 s.",
        "command: lost": "`lost` ended with status -1.",
    }


def test_failure_is_exit_code_7_and_names_the_firmware() -> None:
    require_success([REPORT, REPORT])
    with pytest.raises(BootError, match=r"uefi: GRUB stopped .* And 1 more of 4 checks failed") as caught:
        require_success([REPORT, LOST, LOST])
    assert caught.value.exit_code == 7


def test_text_for_people() -> None:
    assert render(REPORT).splitlines() == [
        "uefi: booted in 22 s (tcg, checked by edited copy)",
        "  version  4593.2.5, kernel 6.12.1",
        "  sysexts  wasmtime",
        "  failed   no unit",
        "  changed  platform azure set to qemu (in a copy, for this check)",
        "  $ wasmtime --version  → 0",
        "    wasmtime 1",
    ]
    assert render(LOST).splitlines()[0] == "uefi: did not boot (22 s, tcg)"
    assert render(LOST).splitlines()[-1] == r"  | grub\x1b rescue>"


def test_json_has_every_field_and_the_problems() -> None:
    data = json.loads(json.dumps(as_json([REPORT, LOST])))
    assert not data["ok"] and as_json([REPORT])["ok"]
    assert data["boots"][0]["commands"][0]["stdout"] == "wasmtime 1\n"
    assert data["boots"][1]["problems"] == ["GRUB stopped at its prompt: \x00no such device."]


def test_junit_is_xml_whatever_the_console_held(tmp_path: Path) -> None:
    write_junit([REPORT, LOST], tmp_path / "boot.xml")
    suites = ElementTree.parse(tmp_path / "boot.xml").getroot().findall("testsuite")
    assert [(suite.get("name"), suite.get("tests"), suite.get("failures")) for suite in suites] == [
        ("x.img (uefi)", "2", "0"), ("x.img (uefi)", "1", "1"),
    ]  # fmt: skip
    failure = suites[1].find("testcase/failure")
    assert failure is not None
    assert failure.get("message") == "GRUB stopped at its prompt: �no such device."
    assert failure.text == "grub� rescue>"
