"""However a bake is ended, at whatever moment, nothing is left running, mounted or half done, and the next one works.

FLATCAR_BAKE_KILLS sets how many strikes there are, FLATCAR_BAKE_SEED repeats those of another run.
"""

from __future__ import annotations

import os
import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from kills import Ground
from loops import needs_loop
from tiny import BOTH_VENDORS, tiny_disk, tiny_release, tiny_sysext

pytestmark = [needs_loop, pytest.mark.long]

KILLS = int(os.environ.get("FLATCAR_BAKE_KILLS", "104"))
SEED = int(os.environ.get("FLATCAR_BAKE_SEED", random.SystemRandom().randrange(1 << 32)))


@pytest.mark.parametrize("backend", ["offline", "loop"])
def test_a_bake_that_is_struck_anywhere_leaves_nothing_and_works_again(backend: str, tmp_path: Path) -> None:
    print(f"FLATCAR_BAKE_SEED={SEED}")
    disk, sysext = tiny_disk(tmp_path / "disk"), tiny_sysext(tmp_path)
    with tiny_release(disk, tmp_path / "release") as release, ThreadPoolExecutor(2) as pool:
        image = Ground(tmp_path / "image", ["--image", disk, f"tools:{sysext}"], {}, backend)
        vendors = Ground(tmp_path / "vendors", [*BOTH_VENDORS, "-j", "2", f"tools:{sysext}"], release.env, backend)
        lanes = [
            pool.submit(strike_often, ground, random.Random(f"{SEED} {backend} {number}"), KILLS // 4)
            for number, ground in enumerate((image, vendors))
        ]
        for lane in lanes:
            lane.result()


def strike_often(ground: Ground, dice: random.Random, count: int) -> None:
    """Strike a bake until `count` signals have found somebody."""
    ground.rehearse()
    hits = 0
    while hits < count:
        if dice.random() < 0.5:
            ground.empty_cache()
        strike = ground.choose(dice)
        outcome = ground.strike(strike)
        try:
            ground.check(strike, outcome)
            if dice.random() < 0.3:
                ground.cleanup(strike)
            ground.again()
        except AssertionError as error:
            error.add_note(f"after {strike}, which hit {outcome.hit!r}, with status {outcome.status}:")
            error.add_note(outcome.stderr)
            raise
        ground.clear()
        hits += bool(outcome.hit)
