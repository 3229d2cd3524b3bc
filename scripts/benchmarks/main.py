"""bench: measure flatcar-bake against the shell pipeline it replaces, and write docs/performance.md.

All numbers of a report come from one run on one machine, so their ratios hold; the seconds are that machine's. The
release is the stand-in release, filled with noise to a real one's size, on an HTTP server on this machine. Every
result is checked. Root is needed: the pipeline and the loop backend mount. The default takes about ten minutes, after
the fixture was built once; --quick about three.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from standin.http_server import FolderServer

from baker.console import PlainConsole
from baker.errors import BakeError
from baker.run import find
from benchmarks import cases, recipes, report
from benchmarks.fixture import prepare
from benchmarks.measure import Case, Failed

_TOOLS = ("curl", "gpg", "bunzip2", "losetup", "mount", "sfdisk", "e2fsck", "resize2fs", "qemu-img", "lbzip2")
Key = TypeVar("Key", str, int)

_TABLES: dict[str, Callable[[cases.Bench], dict[str, Case]]] = {
    "pipeline": cases.pipeline,
    "floor": cases.floor,
    "cold": cases.cold,
    "warm": cases.warm,
    "digest": cases.digest,
    "encoders": cases.encoders,
    "backends": cases.backends,
    "together": cases.together,
    "recipe": recipes.recipe,
}
_CURVES: dict[str, Callable[[cases.Bench], dict[int, Case]]] = {
    "sizes": cases.sizes,
    "counts": cases.counts,
    "vendors": cases.vendors,
    "jobs": cases.jobs,
}


def arguments() -> argparse.Namespace:
    """The command line, parsed."""
    summary, _, details = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(prog="bench", description=summary, epilog=details)
    parser.add_argument(
        "cases", nargs="*", metavar="CASE", help=f"what to measure, default all: {', '.join((*_TABLES, *_CURVES))}"
    )
    parser.add_argument("--quick", action="store_true", help="one run of each instead of several")
    parser.add_argument("--runs", type=int, default=3, help="runs of the main cases [3]")
    parser.add_argument("--work", type=Path, help="the folder for the fixture and all runs, kept [in the temp folder]")
    parser.add_argument("--output", type=Path, default=report.DEFAULT, help="the report [docs/performance.md]")
    options = parser.parse_args()
    unknown = [name for name in options.cases if name not in _TABLES and name not in _CURVES]
    if unknown:
        parser.error(f"there is no case {', '.join(unknown)}")
    return options


def main() -> int:
    """Run bench; returns its exit status. A report is written only when all cases were measured."""
    options = arguments()
    if os.geteuid() != 0:
        print("bench: run it as root: the pipeline it compares with mounts loop devices", file=sys.stderr)
        return 4
    missing = [tool for tool in _TOOLS if find(tool) is None]
    if missing:
        print(f"bench: the pipeline to compare with needs {', '.join(missing)}", file=sys.stderr)
        return 4
    root = (options.work or Path(tempfile.gettempdir()) / "flatcar-bake-bench").resolve()
    fixture = prepare(root / "fixture", PlainConsole())
    (root / "work").mkdir(exist_ok=True)
    begin = time.monotonic()
    with FolderServer(fixture.release) as server:
        bench = cases.Bench(fixture, server.url, root / "work", 1 if options.quick else options.runs)
        try:
            results = _measure(bench, options.cases)
        except (Failed, BakeError) as failure:
            print(f"bench: {failure}", file=sys.stderr)
            return 1
    results.minutes = (time.monotonic() - begin) / 60
    if options.cases:
        print("bench: no report, because not all cases were measured", file=sys.stderr)
    else:
        options.output.write_text(report.render(results, fixture), encoding="utf-8")
    return 0


def _measure(bench: cases.Bench, wanted: list[str]) -> report.Results:
    results = report.Results()
    for name, table in _TABLES.items():
        if not wanted or name in wanted:
            results.cases |= _shown(name, table(bench))
    for name, curve in _CURVES.items():
        if not wanted or name in wanted:
            results.curves[name] = _shown(name, curve(bench))
    return results


def _shown(title: str, made: dict[Key, Case]) -> dict[Key, Case]:
    for key, case in made.items():
        low, high = case.spread
        print(
            f"{title:9} {key!s:45} {case.seconds:7.2f} s ({low:.2f} to {high:.2f})  cpu {case.cpu:6.1f}  "
            f"memory {case.memory / 1e6:5.0f} MB  disk {case.disk / 1e6:5.0f} MB",
            flush=True,
        )
    return made
