"""Whether a sysext may be baked: the lint's findings, weighed against what the user allowed."""

from __future__ import annotations

from collections.abc import Collection

from baker.console import Console
from baker.errors import ImageError
from baker.model import Arch, Sysext
from baker.sysext import lint


def admit(
    sysext: Sysext, arch: Arch, version: str | None, allow: Collection[str], console: Console
) -> tuple[str, ...]:
    """Let a sysext in, or refuse it with the first fatal finding; returns the codes of all findings.

    `version` is the release it will run on, None where that is not known yet. `allow` holds codes of findings that
    the user takes upon himself.
    """
    findings = lint(sysext, arch, version)
    for finding in findings:
        if finding.fatal and finding.code not in allow:
            raise ImageError(
                finding.message, f"{finding.hint} To bake it all the same: --allow {finding.code}".strip()
            )
    for finding in findings:
        say = console.warn if finding.fatal else console.note
        say(finding.message)
    return tuple(finding.code for finding in findings)
