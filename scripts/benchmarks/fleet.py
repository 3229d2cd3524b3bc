#!/usr/bin/env python3
"""How a fleet scales from 1 to 4 workers on this one machine; prints the rows of the table in docs/fleet.md.

Run it as root in the project's virtual environment. The fleet is that of the tests: a namespace for each worker, and
SeaweedFS. Two kinds of work:

- link: recipe builds whose time is a download, over a link of LINK to each machine (tc tbf on its side of the bridge)
- cpu: bakes for eight vendors, of a small release, with nothing limited but the processors that all workers share

Of several rounds the fastest counts: other work on the machine only makes it slower.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "scripts"), str(ROOT)]

from fleets import Fleet, fleet  # noqa: E402 - found only with the path set above
from mirrors import Recorder  # noqa: E402
from servers import MirrorServer  # noqa: E402
from tiny import VENDOR_IMAGE, TinyRelease, tiny_disk, tiny_release, tiny_sysext  # noqa: E402

from baker.fleet import RecipeWords, Task, bake_task, recipe_task, run_tasks  # noqa: E402
from baker.model import Arch  # noqa: E402
from baker.request import BakeRequest, SysextRequest  # noqa: E402
from baker.run import run  # noqa: E402
from baker.services import Settings  # noqa: E402
from recipes import RECIPE, archive, write_recipe  # noqa: E402

LINK = "4mbit"
MEGABYTES = 8
STEPS = (1, 2, 4)
TASKS = 8


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("kind", choices=["link", "cpu"])
    parser.add_argument("--rounds", type=int, default=2, help="how often each step is taken (default: 2)")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with fleet(folder / "fleet", workers=0) as machines:
            seconds = {"link": link, "cpu": cpu}[given.kind](machines, folder, given.rounds)
        print(row(given.kind, seconds), flush=True)
    return 0


def row(kind: str, seconds: Sequence[float]) -> str:
    cells = " | ".join(f"{value:.1f} s ({seconds[0] / value:.2f} ×)" for value in seconds)
    return f"| {kind} | {cells} |  <!-- load average {os.getloadavg()[1]:.1f} -->"


def grow(machines: Fleet, count: int, rate: str = "") -> None:
    """Add workers until there are `count`."""
    while len(machines.workers) < count:
        worker = machines.add_worker()
        outer = f"{machines.network.name}o{worker.address.rpartition('.')[2]}"
        if rate:
            run(["tc", "qdisc", "add", "dev", outer, "root", "tbf", "rate", rate, "burst", "64kb", "latency", "400ms"])


def measure(machines: Fleet, tasks: list[Task]) -> float:
    """The seconds that all tasks take, from the first upload to the manifest."""
    began = time.monotonic()
    batch = run_tasks(tasks, machines.executor, machines.storage, Recorder())
    if batch.failures:
        raise batch.failures[0].error
    return time.monotonic() - began


def link(machines: Fleet, folder: Path, rounds: int) -> list[float]:
    """Builds of one recipe in as many versions as there are tasks, new ones for each step."""
    home = folder / "recipes"
    write_recipe(
        home,
        RECIPE.replace('{ type = "sha256sum-file", url = "{url}.sha256" }', '{ type = "none", missing = "lock" }'),
    )
    os.environ.update(machines.env)
    found = []
    with MirrorServer(folder / "up", host=machines.network.address) as up:
        settings = Settings(
            recipe_folders=(home,),
            mirror_urls=(f"https://up.example/={up.url}/",),
            recipes_lock=folder / "recipes.lock",
        )
        for step in STEPS:
            grow(machines, step, LINK)
            batches = [list(_builds(up, f"{step}.{number}", settings)) for number in range(rounds)]
            found.append(min(measure(machines, tasks) for tasks in batches))
    return found


def _builds(up: MirrorServer, start: str, settings: Settings) -> Iterator[Task]:
    for number in range(TASKS):
        version = f"{start}.{number}"
        path = up.folder / f"v{version}" / "tool-amd64.tar.gz"
        path.parent.mkdir(parents=True)
        data = random.Random(version).randbytes(MEGABYTES << 20)
        path.write_bytes(archive({"tool": b"#!/bin/sh\n" + data}))
        yield recipe_task(f"tool-{version}", RecipeWords("tool", version, Arch.X86_64), settings)


def cpu(machines: Fleet, folder: Path, rounds: int) -> list[float]:
    """Bakes for as many vendors as there are tasks; every worker begins with an empty cache in each step."""
    disk, sysext = tiny_disk(folder / "disk"), tiny_sysext(folder)
    os.environ.update(machines.env)
    found = []
    with tiny_release(disk, folder / "release", machines.network.address) as release:
        tasks = list(_bakes(release, sysext))
        for step in STEPS:
            grow(machines, step)
            taken = []
            for _ in range(rounds):
                for path in machines.folder.glob("w*/cache/flatcar-bake/v*/*/*"):
                    path.unlink()
                taken.append(measure(machines, tasks))
            found.append(min(taken))
    return found


def _bakes(release: TinyRelease, sysext: Path) -> list[Task]:
    vendors = Path(release.env["FLATCAR_BAKE_VENDORS"])
    text = (vendors / "tiny.toml").read_text()
    names = [f"tiny{number}" for number in range(TASKS)]
    for name in names:
        (vendors / f"{name}.toml").write_text(text.replace(VENDOR_IMAGE, f"{name}.qcow2"))
    settings = Settings(
        mirror=release.env["FLATCAR_BAKE_MIRROR"], signing_key=Path(release.env["FLATCAR_BAKE_SIGNING_KEY"]),
        fingerprint=release.env["FLATCAR_BAKE_FINGERPRINT"], vendor_folders=(vendors,),
    )  # fmt: skip
    request = BakeRequest(sysexts=(SysextRequest("tools", path=sysext),))
    return [bake_task(name, BakeRequest(sysexts=request.sysexts, vendors=(name,)), settings) for name in names]


if __name__ == "__main__":
    sys.exit(main())
