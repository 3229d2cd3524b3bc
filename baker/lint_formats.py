"""Findings about files in the forms that people and CI services read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict

from baker.filelint import FileFinding
from baker.printable import printable

_GITHUB = {"error": "error", "warning": "warning", "note": "notice"}
_GITLAB = {"error": "critical", "warning": "minor", "note": "info"}


def as_text(findings: Iterable[FileFinding]) -> str:
    """`FILE:LINE: LEVEL: MESSAGE`, as compilers say it, with hints below; safe for a terminal."""
    lines = []
    for each in findings:
        lines.append(f"{each.path}:{each.line}: {each.level}: {each.message} [{each.code}]")
        lines += [f"  hint: {each.hint}"] if each.hint else []
    return "\n".join(map(printable, lines))


def as_json(findings: Iterable[FileFinding]) -> str:
    """A list of objects with the fields of `FileFinding`."""
    return json.dumps([asdict(each) for each in findings], indent=2)


def as_github(findings: Iterable[FileFinding]) -> str:
    """Workflow commands, which GitHub Actions shows as annotations beside the lines of a pull request."""
    lines = []
    for each in findings:
        text = f"{each.message} {each.hint}".strip()
        title = f"flatcar-bake: {each.code}"
        fields = f"file={_property(each.path)},line={each.line},title={_property(title)}"
        lines.append(f"::{_GITHUB[each.level]} {fields}::{_data(text)}")
    return "\n".join(lines)


def _data(text: str) -> str:
    """Escaped as GitHub's toolkit does it, so that no text can begin a command of its own."""
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")


def as_gitlab(findings: Iterable[FileFinding]) -> str:
    """A Code Quality report of GitLab, for `artifacts: reports: codequality`."""
    rows = []
    for each in findings:
        identity = "\0".join((each.path, each.code, each.message))
        rows.append(
            {
                "description": f"{each.message} {each.hint}".strip(),
                "check_name": each.code,
                "fingerprint": hashlib.sha256(identity.encode()).hexdigest(),
                "severity": _GITLAB[each.level],
                "location": {"path": each.path, "lines": {"begin": each.line}},
            }
        )
    return json.dumps(rows, indent=2)
