"""Names and texts from images and servers reach the terminal as text, never as commands to it."""

from __future__ import annotations

import io
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest
from cli import flatcar_bake
from disks import make_disk
from hypothesis import given
from hypothesis import strategies as st

from baker.boot_report import BootReport, Check, render
from baker.console import PlainConsole
from baker.guest import CommandResult
from baker.printable import printable

ESCAPE = "\x1b]0;title\x07\x1b[31mred\x1b[2J"
STRANGE = f"{ESCAPE}\nerror: forged\r\u202e\udcff\x9b\u2028end"
SHOWN = r"\x1b]0;title\x07\x1b[31mred\x1b[2J\nerror: forged\r\u202e\xff\x9b\u2028end"


def test_everything_that_steers_a_terminal_is_spelt_out() -> None:
    assert printable(STRANGE) == SHOWN
    assert printable("plain – größe ✓ 日本") == "plain – größe ✓ 日本"


@given(st.text())
def test_what_is_printable_is_one_line_that_can_be_written_anywhere(text: str) -> None:
    shown = printable(text)
    assert shown.isprintable() or not shown
    shown.encode("utf-8")
    assert printable(shown) == shown


def test_lines_of_the_plain_console_stay_lines() -> None:
    stream = io.StringIO()
    console = PlainConsole(stream)
    console.note(STRANGE)
    console.warn(STRANGE)
    with console.step(STRANGE), console.bar(STRANGE, None):
        pass
    lines = stream.getvalue().splitlines()
    assert len(lines) == 6
    assert all(SHOWN in line for line in lines)


def test_the_live_console_passes_no_escapes_of_others() -> None:
    """On a terminal, where rich itself writes escapes, those of a name must not be among them."""
    program = (
        "from baker.console import RichConsole\n"
        f"c, text = RichConsole(), {STRANGE!r}\n"
        "c.note(text); c.warn(text)\n"
        "with c.step(text), c.bar(text, 9): pass\n"
        "c.close()\n"
    )
    ours, theirs = pty.openpty()
    subprocess.run(
        [sys.executable, "-c", program], stderr=theirs, check=True, env={"TERM": "xterm", "COLUMNS": "300"},
        cwd=Path(__file__).parent.parent,
    )  # fmt: skip
    os.close(theirs)
    output = b""
    try:
        while chunk := os.read(ours, 1 << 16):
            output += chunk
    except OSError:
        pass  # how Linux says that nobody writes any more
    os.close(ours)
    assert output.count(rb"\x1b]0;title\x07") >= 4
    for raw in (b"\x1b]0", b"\x1b[2J", b"\x07", "\u202e".encode(), "\x9b".encode()):
        assert raw not in output


@pytest.mark.parametrize("words", [("inspect", STRANGE), ("bake", f"{STRANGE}:x"), ("bake", "-c", STRANGE)])
def test_an_error_is_one_line(words: tuple[str, ...]) -> None:
    arguments = [word.encode("utf-8", "surrogateescape") for word in words]
    done = flatcar_bake(*arguments)  # type: ignore[arg-type]
    assert done.returncode == 2
    lines = done.stderr.splitlines()
    assert lines[0].startswith("error: ")
    assert not any(line.startswith("error: forged") for line in lines)
    assert "\x1b" not in done.stderr


def test_an_image_cannot_write_its_own_inspection(tmp_path: Path) -> None:
    name = f"/etc/extensions/a{ESCAPE}\nsysext      forged.raw"
    image = make_disk(
        tmp_path / "disk.raw", root_files={name: "/opt/\x1b[31m\n", "/etc/sysupdate.\x1b[1m.d/x.conf": b"x"}
    )
    done = flatcar_bake("inspect", image)
    assert done.returncode == 0, done.stderr
    assert r"\x1b]0;title\x07" in done.stdout
    assert "\x1b" not in done.stdout + done.stderr
    assert "\nsysext      forged" not in done.stdout


def test_a_guest_cannot_write_its_own_report() -> None:
    report = BootReport(
        "disk", "uefi", "tcg", True, 1.0, 1.0, STRANGE, STRANGE, "ignition", (STRANGE,), (STRANGE,), (STRANGE,),
        (CommandResult("cmd", 0, STRANGE, STRANGE),), (Check("x", STRANGE),), (STRANGE,),
    )  # fmt: skip
    assert all(line.isprintable() for line in render(report).split("\n"))
    assert "\nerror: forged" not in render(report)
