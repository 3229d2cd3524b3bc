"""The script that checks a guest says what happened, whatever the commands print, and is understood again."""

from __future__ import annotations

import base64
import json
import os
import re
import subprocess
import time
from pathlib import Path
from urllib.parse import unquote

import pytest

from baker import guest
from baker.errors import UsageError
from baker.guest import FrameCollector, GuestReport, parse_report, parse_status
from baker.run import run

MARK = "@flatcar-bake-0123abcd@"


def check_here(commands: tuple[str, ...], tmp_path: Path) -> GuestReport:
    """Run the check on this machine, with a file as its serial port."""
    port, folder = tmp_path / "port", tmp_path / "folder"
    script = guest.check_script(MARK, commands, settle_seconds=1)
    for inside, here in (("/dev/ttyS0", port), ("/dev/ttyAMA0", port), ("/run/flatcar-bake-check", folder)):
        script = script.replace(inside.encode(), os.fspath(here).encode())
    collector = FrameCollector(MARK)
    with subprocess.Popen(["bash", "-s"], stdin=subprocess.PIPE, env={"PATH": "/usr/bin:/bin"}) as process:
        assert process.stdin is not None
        process.stdin.write(script)
        process.stdin.close()
        deadline = time.monotonic() + 60
        while not collector.complete and time.monotonic() < deadline:
            time.sleep(0.1)
            for line in port.read_text().splitlines() if port.exists() else []:
                collector.feed(line)
        process.kill()
    return parse_report(collector.records(), commands)


def test_commands_come_back_with_status_and_output(tmp_path: Path) -> None:
    commands = (
        "true",
        "echo out; echo err >&2; exit 3",
        "cat; read -r x; echo \"$x\"",
        "printf '%s\\n' \"it's\" '$HOME' ';' \"$(printf 'two\\nlines')\"",
        "printf '\\000\\377\\r\\nx'; head -c 200000 /dev/zero | tr '\\0' a",
        "kill -9 $$",
        "no-such-program",
    )  # fmt: skip
    report = check_here(commands, tmp_path)
    results = {result.command: result for result in report.commands}
    assert [result.status for result in report.commands] == [0, 3, 0, 0, 0, 137, 127]
    assert (results[commands[1]].stdout, results[commands[1]].stderr) == ("out\n", "err\n")
    # Commands have no stdin: the script itself comes that way.
    assert results[commands[2]].stdout == "\n"
    assert results[commands[3]].stdout == "it's\n$HOME\n;\ntwo\nlines\n"
    assert results[commands[4]].stdout.startswith("\0�\r\nxaaa")
    assert len(results[commands[4]].stdout) == 64 * 1024
    assert "no-such-program" in results[commands[6]].stderr
    assert report.kernel == os.uname().release
    assert report.boot_seconds > 0
    assert report.sysexts == () and report.way == ""


def test_a_second_check_does_nothing(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    script = guest.check_script(MARK, ["touch ran"], 1)
    script = script.replace(b"/run/flatcar-bake-check", os.fspath(tmp_path / "folder").encode())
    run(["bash", "-s"], input=script)
    assert list((tmp_path / "folder").iterdir()) == []


def test_too_long_commands_are_refused() -> None:
    with pytest.raises(UsageError, match="8 KiB"):
        guest.check_script(MARK, ["x" * 5000, "y" * 5000], 1)


def test_the_unit_carries_the_script() -> None:
    script = guest.check_script(MARK, ["true"], 1)
    data = re.search(r"^StandardInputData=(\S+)$", guest.unit(script, "ignition"), re.MULTILINE)
    assert data is not None and base64.b64decode(data[1]) == script


def test_ignition_finds_nothing_wrong_with_the_config(tmp_path: Path) -> None:
    """The real validator, and the same config under Flatcar's key and upstream's."""
    entries = guest.fw_cfg(guest.check_script(MARK, ["echo 'ü' \"%s\""], 1))
    assert list(entries) == ["opt/org.flatcar-linux/config", "opt/com.coreos/config"]
    (config,) = set(entries.values())
    (tmp_path / "config.ign").write_bytes(config)
    assert run(["ignition-validate", tmp_path / "config.ign"]).stderr == ""
    source = json.loads(config)["storage"]["files"][0]["contents"]["source"]
    assert unquote(source.removeprefix("data:,")).startswith("[Unit]\n")


def test_firmware_strings_fit_the_tables() -> None:
    """QEMU's SMBIOS 2 tables end at 64 KiB; its fw_cfg names, at 55 characters."""
    script = guest.check_script(MARK, ["x" * 8000], 1)
    assert sum(map(len, guest.smbios_strings(script))) < 48 * 1024
    assert all(len(key) <= 55 for key in guest.fw_cfg(script))


TABLE = """\
HIERARCHY EXTENSIONS     SINCE
/opt      none           -
/usr      docker-flatcar Sun 2026-11-22 19:34:52 UTC
          wasmtime
"""
ROWS = [
    {"hierarchy": "/opt", "extensions": "none", "since": None},
    {"hierarchy": "/usr", "extensions": ["docker-flatcar", "wasmtime"], "since": 1795376092000000},
]


@pytest.mark.parametrize(("json_text", "table"), [(json.dumps(ROWS), ""), ("", TABLE), ("Unknown option", TABLE)])
def test_status_is_read_as_json_and_as_a_table(json_text: str, table: str) -> None:
    assert parse_status(json_text, table) == {"/opt": (), "/usr": ("docker-flatcar", "wasmtime")}


@pytest.mark.parametrize("text", ["", "null", "[1]", '[{"hierarchy": "/usr"}]', "{}", "\0"])
def test_nonsense_status_is_no_merged_sysext(text: str) -> None:
    assert not any(parse_status(text, "Unknown command status.").values())


def test_only_what_is_mounted_counts_as_merged() -> None:
    records = {"sysext-json": json.dumps(ROWS).encode(), "os-release": b'ID=flatcar\nVERSION_ID="4593.2.5"\n'}
    assert parse_report(records, ()).sysexts == ()
    assert parse_report(records, ()).version == "4593.2.5"
    records["overlays"] = b"33 25 0:28 / /usr ro,relatime shared:1 - overlay sysext ro,lowerdir=/a:/b\n"
    assert parse_report(records, ()).sysexts == ("docker-flatcar", "wasmtime")


def test_failed_units_are_listed() -> None:
    failed = b"a.service loaded failed failed A\nb@x.mount loaded failed failed B\n\n"
    assert parse_report({"failed": failed}, ()).failed_units == ("a.service", "b@x.mount")
