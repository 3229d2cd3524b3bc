"""Reading a guest's serial console as it comes: phases, signs of failure, and the frames of the check's report."""

from __future__ import annotations

import codecs
import os
import re
import select
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import IO

from baker.guest import FrameCollector

_ESCAPES = re.compile(r"\x1b(?:\[[0-9;?=]*[ -/]*[@-~]|[()][0-9A-Za-z]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[=>78cDEHMZ])")
_CURSOR = re.compile(r"\x1b\[[0-9]*;[0-9]*H")
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")
_LONGEST_LINE = 16 * 1024
_AFTER_FAILURE = 2.0
"""Seconds to go on reading after a sign of failure: what follows it explains it."""

FIRMWARE, KERNEL, SYSTEMD, CHECK = "firmware", "kernel", "systemd", "check"
_PHASES = (FIRMWARE, KERNEL, SYSTEMD, CHECK)
# The first line of a phase. A kernel line has a timestamp, or is the last thing that GRUB or the EFI stub says.
_PHASE_SIGNS = {
    KERNEL: re.compile(r"^\[ +[0-9]+\.[0-9]{6}\] |Booting a command list|EFI stub: "),
    SYSTEMD: re.compile(r"systemd\[1\]: |\[ {1,2}OK {1,2}\] "),
}


@dataclass(frozen=True)
class _Sign:
    """Text that means that this boot has failed. A group of the pattern is quoted in the failure."""

    pattern: re.Pattern[str]
    sentence: str
    before_kernel: bool = False
    """Only the firmware and GRUB mean it; later it is just text."""
    prompt: bool = False
    """No line end follows, for it waits for somebody to type."""


_SIGNS = (
    _Sign(
        re.compile(r"grub rescue>\s*$"),
        "GRUB found neither its modules nor its configuration and stopped at its prompt",
        before_kernel=True,
        prompt=True,
    ),
    _Sign(re.compile(r"grub>\s*$"), "GRUB stopped at its prompt", before_kernel=True, prompt=True),
    _Sign(re.compile(r"you need to load the kernel first"), "GRUB could not load the kernel", before_kernel=True),
    _Sign(
        re.compile(r"No bootable (?:device|option)|UEFI Interactive Shell|Boot failed: not a bootable disk"),
        "The firmware found nothing to boot",
        before_kernel=True,
    ),
    _Sign(re.compile(r"Kernel panic - not syncing: (.*)"), "The kernel panicked"),
    _Sign(re.compile(r"Ignition failed: (.*)"), "Ignition failed"),
    _Sign(
        re.compile(r"(?:You are in|Entering) emergency mode|for emergency shell"),
        "The system stopped in emergency mode",
        prompt=True,
    ),
)

_COMPLAINTS = ("error: ", "BdsDxe: failed to load ")


def clean(text: str) -> str:
    """Console text without terminal escapes and control characters."""
    return _CONTROLS.sub("", _ESCAPES.sub("", text))


class SerialReader:
    """Takes the console's bytes in pieces of any size.

    `phase` is the last of firmware, kernel, systemd, check that was seen to begin; `failure` a sentence once the
    console shows that this boot cannot succeed; `frames` collects the report.
    """

    def __init__(self, mark: str) -> None:
        self.frames = FrameCollector(mark)
        self.phase = ""
        self.failure: str | None = None
        self._mark = mark
        self._partial = ""
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._lines: deque[str] = deque(maxlen=200)

    def feed(self, data: bytes) -> None:
        """The next bytes of the console."""
        if data and not self.phase:
            self.phase = FIRMWARE
        # Firmware and GRUB start a line by moving the cursor, too.
        text = _CURSOR.sub("\n", self._partial + self._decoder.decode(data))
        *lines, rest = text.split("\n")
        for line in lines:
            self._line(clean(line))
        self._partial = rest[-_LONGEST_LINE:]
        # What has come of a line may be a prompt, which never ends.
        self._look_for_failure(clean(self._partial), ended=False)

    def last_lines(self, count: int = 20) -> list[str]:
        """The last lines on the console that say something, without the check's frames."""
        lines = [*self._lines, clean(self._partial).rstrip()]
        return [line for line in lines if line.strip()][-count:]

    def _line(self, line: str) -> None:
        if self._mark in line:
            self.phase = CHECK
            self.frames.feed(line)
            return
        self._lines.append(line.rstrip())
        later = _PHASES[_PHASES.index(self.phase) + 1 :]
        for phase in later:
            if phase in _PHASE_SIGNS and _PHASE_SIGNS[phase].search(line):
                self.phase = phase
        self._look_for_failure(line, ended=True)

    def _look_for_failure(self, line: str, ended: bool) -> None:
        if self.failure is not None:
            return
        for sign in _SIGNS:
            if (sign.before_kernel and self.phase != FIRMWARE) or not (ended or sign.prompt):
                continue
            found = sign.pattern.search(line)
            if found is not None:
                detail = found[1].strip() if sign.pattern.groups else self._complaint(line)
                self.failure = f"{sign.sentence}: {detail}" if detail else f"{sign.sentence}."
                return

    def _complaint(self, line: str) -> str:
        """What the firmware or GRUB last complained of before `line`.

        Complaints may be harmless, so that they explain a failure but are no sign of one.
        """
        if self.phase != FIRMWARE:
            return ""
        said = (text for text in reversed(self._lines) if text.startswith(_COMPLAINTS) and text != line.rstrip())
        return next(said, "").removeprefix("error: ")


def watch(
    stream: IO[bytes], reader: SerialReader, timeout: float, copy: IO[bytes] | None, on_phase: Callable[[str], None]
) -> bool:
    """Feed `reader` from a live console until the report is complete, the boot has failed or `timeout` seconds passed.

    Everything read also goes to `copy`. `on_phase` is called as each phase begins. False when the console ended, as
    it does when the guest restarts or powers off.
    """
    deadline = time.monotonic() + timeout
    phase, failed = reader.phase, False
    while not reader.frames.complete and (left := deadline - time.monotonic()) > 0:
        if not select.select([stream], [], [], left)[0]:
            break
        data = os.read(stream.fileno(), 1 << 16)
        if not data:
            return False
        if copy is not None:
            copy.write(data)
        reader.feed(data)
        if reader.phase != phase:
            phase = reader.phase
            on_phase(phase)
        if reader.failure is not None and not failed:
            failed, deadline = True, min(deadline, time.monotonic() + _AFTER_FAILURE)
    return True
