"""The report: goals and whether they are met, and every number, as Markdown."""

from __future__ import annotations

import datetime
import math
import os
import platform
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from baker.run import run
from benchmarks.fixture import Fixture
from benchmarks.measure import Case
from benchmarks.prose import CURVES, GOALS, HOW, Goal

DEFAULT = Path(__file__).resolve().parent.parent.parent / "docs/performance.md"


@dataclass
class Results:
    """All cases by name, and curves: the cases of a growing number."""

    cases: dict[str, Case] = field(default_factory=dict)
    curves: dict[str, dict[int, Case]] = field(default_factory=dict)
    minutes: float = 0


def render(results: Results, fixture: Fixture) -> str:
    """The whole report."""
    parts = [
        "# Performance",
        "Written by `scripts/bench`; do not edit it by hand.",
        _machine(fixture, results.minutes),
        HOW,
        "## Goals",
        _goals(results.cases),
        "## Every case",
        _cases(results.cases),
        "## How cost grows",
        *(_curve(name, curve) for name, curve in results.curves.items()),
    ]
    return "\n\n".join(parts) + "\n"


def _machine(fixture: Fixture, minutes: float) -> str:
    cpu = re.search(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text())
    memory = re.search(r"MemTotal: +(\d+)", Path("/proc/meminfo").read_text())
    filesystem = run(["stat", "--file-system", "--format=%T", fixture.folder]).text.strip()
    data, size = fixture.generic_raw.stat().st_blocks * 512, fixture.generic_raw.stat().st_size
    return "\n".join([
        f"- {datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M} UTC, {minutes:.0f} minutes",
        f"- {cpu[1] if cpu else platform.machine()}, {len(os.sched_getaffinity(0))} cores, "
        f"{int(memory[1]) / 1e6 if memory else 0:.0f} GB of memory, {filesystem}, Linux {platform.release()}",
        f"- {run(['qemu-img', '--version']).text.splitlines()[0]}, Python {platform.python_version()}",
        f"- release: generic image of {size / 1e6:.0f} MB with {data / 1e6:.0f} MB of data, "
        f"{fixture.compressed.stat().st_size / 1e6:.0f} MB as bz2; sysext of 60 MB that does not compress",
    ])  # fmt: skip


def _goals(cases: Mapping[str, Case]) -> str:
    rows = ((goal.what, f"{goal.sign} {goal.limit:g}{goal.unit}", *_verdict(goal, cases)) for goal in GOALS)
    missed = [f"**Missed: {goal.what}.** {goal.reason}" for goal in GOALS if _met(goal, cases) is False]
    return "\n\n".join(["\n".join(_table(("goal", "wanted", "measured", ""), rows)), *missed])


def _met(goal: Goal, cases: Mapping[str, Case]) -> bool | None:
    """Whether a goal is met; None when it was not measured."""
    try:
        value = goal.value(cases)
    except KeyError:
        return None
    return value <= goal.limit if goal.sign == "≤" else value >= goal.limit


def _verdict(goal: Goal, cases: Mapping[str, Case]) -> tuple[str, str]:
    met = _met(goal, cases)
    if met is None:
        return "not measured", goal.reason
    return f"{goal.value(cases):.3g}{goal.unit}", "met" if met else "**missed**"


def _cases(cases: Mapping[str, Case]) -> str:
    base = {"generic": cases["pipeline generic"].seconds, "qemu_uefi": cases["pipeline qemu_uefi"].seconds}
    rows = []
    for name, case in cases.items():
        low, high = case.spread
        kind = next((kind for kind in base if kind in name), None)
        rows.append((
            name, f"{case.seconds:.2f}", f"{low:.2f} to {high:.2f}", str(len(case.runs)),
            f"{case.seconds / base[kind]:.3f}" if kind else "", f"{case.cpu:.1f}" if case.cpu else "",
            _mega(case.memory), _mega(case.disk),
        ))  # fmt: skip
    return "\n".join(
        _table(("case", "seconds", "range", "runs", "of the pipeline", "CPU s", "memory MB", "disk MB"), rows)
    )


def _mega(size: int) -> str:
    return f"{size / 1e6:.0f}" if size > 0 else ""


def _curve(name: str, curve: Mapping[int, Case]) -> str:
    rows = []
    previous: tuple[int, float] | None = None
    for number, case in curve.items():
        local = f"{_slope(previous, (number, case.seconds)):.2f}" if previous else ""
        rows.append(
            (str(number), f"{case.seconds:.2f}", local, f"{case.cpu:.1f}", _mega(case.memory), _mega(case.disk))
        )
        previous = number, case.seconds
    points = [(number, case.seconds) for number, case in curve.items()]
    title, unit = CURVES[name]
    table = _table((unit, "seconds", "exponent since the row before", "CPU s", "memory MB", "disk MB"), rows)
    runs = max(len(case.runs) for case in curve.values())
    title += f" Runs: {runs}."
    return "\n".join([f"**{title}** From first to last: exponent {_slope(points[0], points[-1]):.2f}.", "", *table])


def _slope(one: tuple[int, float], two: tuple[int, float]) -> float:
    """The exponent e for which time grows as number ** e between two points."""
    return math.log(two[1] / one[1]) / math.log(two[0] / one[0])


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = [head, ["---"] * len(head), *rows]
    return [f"| {' | '.join(line)} |" for line in lines]
