"""The result of booting an image: a value, JSON and JUnit XML."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from baker.guest import CommandResult
from baker.printable import printable

# What XML 1.0 allows; a console has everything else, too.
_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


@dataclass(frozen=True)
class Check:
    """One expectation; `failure` is a sentence when it does not hold."""

    name: str
    failure: str | None = None


@dataclass(frozen=True)
class BootReport:
    """What one boot of an image showed. Without `booted`, everything that the guest would tell is empty."""

    image: str
    firmware: str
    accelerator: str
    booted: bool
    seconds: float
    """From the start of QEMU to the guest's whole report, or to the end of the attempt."""
    boot_seconds: float
    """The guest's uptime when systemd had finished starting."""
    version: str
    kernel: str
    way: str
    """How the check came into the guest: `ignition`, `credential` or `edited copy`."""
    changes: tuple[str, ...]
    """What was changed in the throw-away copy of the image for this check."""
    sysexts: tuple[str, ...]
    failed_units: tuple[str, ...]
    commands: tuple[CommandResult, ...]
    checks: tuple[Check, ...]
    last_lines: tuple[str, ...]
    """The end of the console when the image did not boot."""

    @property
    def problems(self) -> tuple[str, ...]:
        """One sentence per expectation that does not hold."""
        return tuple(check.failure for check in self.checks if check.failure is not None)


def as_json(reports: Sequence[BootReport]) -> dict[str, Any]:
    """The reports for `--json`: {"ok": bool, "boots": [fields of BootReport and `problems`, …]}."""
    return {
        "ok": not any(report.problems for report in reports),
        "boots": [asdict(report) | {"problems": list(report.problems)} for report in reports],
    }


def render(report: BootReport) -> str:
    """A report as text for people: lines, the last without its end, with no control characters of the guest."""
    if not report.booted:
        lines = [f"{report.firmware}: did not boot ({report.seconds:.0f} s, {report.accelerator})"]
    else:
        lines = [
            f"{report.firmware}: booted in {report.seconds:.0f} s ({report.accelerator}, checked by {report.way})",
            f"  version  {report.version}, kernel {report.kernel}",
            f"  sysexts  {', '.join(report.sysexts) or 'none'}",
            f"  failed   {', '.join(report.failed_units) or 'no unit'}",
        ]
    lines += [f"  changed  {change} (in a copy, for this check)" for change in report.changes]
    for result in report.commands:
        lines.append(f"  $ {result.command}  → {result.status}")
        lines += [f"    {line}" for line in (result.stdout + result.stderr).rstrip().splitlines()]
    lines += [f"  ✗ {problem}" for problem in report.problems]
    lines += [f"  | {line}" for line in report.last_lines]
    return "\n".join(map(printable, lines))


def write_junit(reports: Sequence[BootReport], path: Path) -> None:
    """Write JUnit XML: a suite per firmware, a test case per expectation."""
    root = ElementTree.Element("testsuites", name="flatcar-bake boot")
    for report in reports:
        suite = ElementTree.SubElement(
            root, "testsuite", name=f"{report.image} ({report.firmware})", time=f"{report.seconds:.1f}",
            tests=str(len(report.checks)), failures=str(len(report.problems)), errors="0", skipped="0",
        )  # fmt: skip
        for check in report.checks:
            case = ElementTree.SubElement(
                suite, "testcase", name=_xml(check.name), classname=f"{report.image}.{report.firmware}",
            )  # fmt: skip
            if check.failure is not None:
                failure = ElementTree.SubElement(case, "failure", message=_xml(check.failure))
                failure.text = _xml("\n".join(report.last_lines))
    ElementTree.indent(root)
    ElementTree.ElementTree(root).write(path, encoding="utf-8", xml_declaration=True)


def _xml(text: str) -> str:
    return _NOT_XML.sub("�", text)
