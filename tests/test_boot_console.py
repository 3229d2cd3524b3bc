"""The serial console is read rightly however it is cut, coloured or garbled."""

from __future__ import annotations

import hashlib
import os
import random
import subprocess
import time
from base64 import b64encode
from pathlib import Path

import pytest

from baker.errors import BootError
from baker.guest import FrameCollector
from baker.serial import SerialReader, clean, watch

MARK = "@flatcar-bake-0123abcd@"


def frames(text: str, width: int = 40) -> list[str]:
    """Frames as the guest sends them."""
    chunks = [text[at : at + width] for at in range(0, len(text), width)]
    lines = []
    for number, chunk in enumerate(chunks, 1):
        place = f"{number}/{len(chunks)}"
        lines.append(f"{MARK} {place} {hashlib.sha256(f'{place} {chunk}'.encode()).hexdigest()[:8]} {chunk}")
    return lines


def report(**records: bytes) -> str:
    return "".join(f"{name}:{b64encode(content).decode()};" for name, content in records.items())


CONTENT = {"kernel": b"6.1.0", "state": b"running\n", "noise": bytes(range(256)) * 4, "empty": b""}


def test_a_report_arrives_in_any_pieces() -> None:
    data = ("\r\n" + "\r\n\r\n".join(frames(report(**CONTENT))) + "\r\n").encode()
    for size in (1, 7, 64, len(data)):
        reader = SerialReader(MARK)
        for at in range(0, len(data), size):
            reader.feed(data[at : at + size])
        assert reader.phase == "check"
        assert reader.frames.records() == CONTENT


def test_garbled_rounds_add_up_to_the_exact_report() -> None:
    """Kernel messages break lines, bytes are lost or changed: frames are missing then, never wrong."""
    dice = random.Random(1)
    for _ in range(20):
        collector = FrameCollector(MARK)
        rounds = 0
        while not collector.complete:
            rounds += 1
            assert rounds < 200
            for frame in frames(report(**CONTENT)):
                line, at = frame, dice.randrange(len(frame))
                match dice.randrange(5):
                    case 0:
                        line = frame[:at] + "[   12.345678] audit: type=1130"
                    case 1:
                        line = frame[:at] + frame[at + 1 :]
                    case 2:
                        line = frame[:at] + dice.choice("Zz/9 ") + frame[at + 1 :]
                    case 3:
                        line = "[  OK  ] Started foo.service." + frame
                collector.feed(line)
        assert collector.records() == CONTENT


def test_frames_of_another_check_are_ignored() -> None:
    collector = FrameCollector("@flatcar-bake-ffffffff@")
    assert not any(collector.feed(frame) for frame in frames(report(**CONTENT)))
    assert not collector.complete


@pytest.mark.parametrize("text", ["kernel", "kernel:abc;", "kernel:YQ==;state"])
def test_frames_that_hold_no_report_are_refused(text: str) -> None:
    collector = FrameCollector(MARK)
    for frame in frames(text):
        assert collector.feed(frame)
    with pytest.raises(BootError, match="garbled"):
        collector.records()


def test_numbers_beyond_the_total_do_not_complete_a_report() -> None:
    collector = FrameCollector(MARK)
    for place in ("2/1", "0/1", "99999/99999"):
        digest = hashlib.sha256(f"{place} AAAA".encode()).hexdigest()[:8]
        assert not collector.feed(f"{MARK} {place} {digest} AAAA")
    assert not collector.complete


def test_terminal_escapes_are_removed() -> None:
    assert clean("\x1b[0;1;32m  OK  \x1b[0m\x1b[2J\x1b(B\x1b]0;title\x07\x00\x08 done\r") == "  OK   done"


@pytest.mark.parametrize(
    ("console", "failure"),
    [
        ("\x1b[2J\x1b[01;01HBdsDxe: failed to load Boot0001 \"UEFI Misc Device\": Not Found\r\n"
         "BdsDxe: starting Boot0002\r\n\x1b[2J\x1b[01;01H\x1b[01;01HUEFI Interactive Shell v2.2\r\n",
         "The firmware found nothing to boot: BdsDxe: failed to load Boot0001 \"UEFI Misc Device\": Not Found"),
        ("\x1b[0merror: no such device: EFI-SYSTEM.\x1b[01;01H\x1b[2J\x1b[02;24HGNU GRUB  version 2.06\r\n\r\ngrub> ",
         "GRUB stopped at its prompt: no such device: EFI-SYSTEM."),
        ("error: no such partition.\r\nEntering rescue mode...\r\ngrub rescue> ",
         "GRUB found neither its modules nor its configuration and stopped at its prompt: no such partition."),
        ("\x1b[2Jerror: file `/flatcar/vmlinuz-a' not found.\r\nerror: you need to load the kernel first.\r\n",
         "GRUB could not load the kernel: file `/flatcar/vmlinuz-a' not found."),
        ("Booting from Hard Disk...\r\nBoot failed: not a bootable disk\r\n\r\nNo bootable device.\r\n",
         "The firmware found nothing to boot."),
        ("BdsDxe: No bootable option or device was found.\r\n", "The firmware found nothing to boot."),
        ("[    1.500000] Kernel panic - not syncing: VFS: Unable to mount root fs on unknown-block(0,0)\r\n",
         "The kernel panicked: VFS: Unable to mount root fs on unknown-block(0,0)"),
        ("[   14.1] ignition[700]: CRITICAL : Ignition failed: failed to create files: no space left\r\n",
         "Ignition failed: failed to create files: no space left"),
        ("You are in emergency mode. After logging in, type ...\r\n", "The system stopped in emergency mode."),
        ("Press Enter for emergency shell or wait 5 minutes for reboot.\r\n",
         "The system stopped in emergency mode."),
    ],
)  # fmt: skip
def test_failures_are_named(console: str, failure: str) -> None:
    reader = SerialReader(MARK)
    for byte in console.encode():
        reader.feed(bytes([byte]))
    assert reader.failure == failure


def test_what_looks_like_a_failure_but_is_none() -> None:
    """GRUB says harmless errors; a prompt of GRUB in some log of the running system is just text."""
    reader = SerialReader(MARK)
    reader.feed(b"error: file `/boot/grub/unicode.pf2' not found.\r\nMenu: press c for grub> and more\r\n")
    reader.feed(
        b"[    0.000000] Linux version 6.1.0\r\n[  OK  ] Finished foo.\r\nlog: grub>\r\nNo bootable device\r\n"
    )
    assert reader.failure is None
    assert reader.phase == "systemd"


def test_phases_follow_each_other() -> None:
    reader = SerialReader(MARK)
    seen = [reader.phase]
    for line in (b"SeaBIOS\n", b"[    0.000000] Linux\n", b"[    4.5] x\n[  OK  ] Reached target.\n", MARK.encode()):
        reader.feed(line + b"\n")
        seen.append(reader.phase)
    assert seen == ["", "firmware", "kernel", "systemd", "check"]


def test_endless_lines_and_bad_utf8_are_bounded() -> None:
    reader = SerialReader(MARK)
    for _ in range(200):
        reader.feed(b"\xff\xc3" * 8192)
    reader.feed("ü\n".encode()[:1])
    reader.feed("ü\n".encode()[1:])
    assert len(reader.last_lines()[-1]) < 20_000
    assert reader.last_lines()[-1].endswith("ü")


def test_last_lines_are_what_people_want_to_see() -> None:
    reader = SerialReader(MARK)
    reader.feed(b"".join(b"line %d\r\n\r\n" % number for number in range(300)) + MARK.encode() + b" start\r\n# ")
    assert reader.last_lines(3) == ["line 298", "line 299", "#"]


def _watch_shell(script: str, timeout: float, copy: Path) -> tuple[bool, SerialReader, float, list[str]]:
    reader, phases = SerialReader(MARK), list[str]()
    started = time.monotonic()
    with (
        subprocess.Popen(["sh", "-c", script], stdout=subprocess.PIPE) as process,
        copy.open("wb", buffering=0) as file,
    ):
        assert process.stdout is not None
        running = watch(process.stdout, reader, timeout, file, phases.append)
        process.kill()
    return running, reader, time.monotonic() - started, phases


def test_watching_ends_with_the_report(tmp_path: Path) -> None:
    lines = "\n".join(frames(report(**CONTENT)))
    running, reader, seconds, phases = _watch_shell(
        f"echo hello; echo '{lines}'; exec sleep 60", 30, tmp_path / "copy"
    )
    assert running and reader.frames.complete and seconds < 10
    assert phases[-1] == "check"
    assert (tmp_path / "copy").read_bytes().startswith(b"hello\n")


def test_watching_ends_soon_after_a_failure_with_what_follows_it(tmp_path: Path) -> None:
    script = "echo 'Kernel panic - not syncing: x'; sleep 0.5; echo 'Call Trace:'; exec sleep 60"
    running, reader, seconds, _ = _watch_shell(script, 30, tmp_path / "copy")
    assert running and reader.failure == "The kernel panicked: x" and seconds < 10
    assert reader.last_lines()[-1] == "Call Trace:"


def test_watching_ends_at_the_timeout_and_with_the_console(tmp_path: Path) -> None:
    running, reader, seconds, _ = _watch_shell("while echo busy; do sleep 0.1; done", 1, tmp_path / "copy")
    assert running and reader.failure is None and 0.9 < seconds < 10
    running, reader, seconds, _ = _watch_shell("echo bye", 30, tmp_path / "copy")
    assert not running and seconds < 10 and os.path.getsize(tmp_path / "copy") == 4
