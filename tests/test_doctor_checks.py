"""`doctor` tries what a bake needs, and names package and consequence of what is missing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from baker import landlock
from baker.doctor import Check, check, render
from baker.run import PACKAGES


@pytest.fixture(scope="module")
def checks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Check]:
    return {item.name: item for item in check(tmp_path_factory.mktemp("cache") / "not/yet/there")}


def test_every_program_is_looked_for(checks: dict[str, Check]) -> None:
    assert set(PACKAGES) <= set(checks)
    assert checks["qemu-img"].ok
    assert "from qemu-utils" in checks["qemu-img"].detail


def test_a_bake_works_on_this_machine(checks: dict[str, Check]) -> None:
    assert [item.name for item in checks.values() if item.essential and not item.ok] == []


def test_both_backends_work_on_this_machine(checks: dict[str, Check]) -> None:
    assert (checks["offline backend"].ok, checks["loop backend"].ok) == (True, True)


def test_containment_is_told_as_it_is(checks: dict[str, Check]) -> None:
    assert checks["Landlock"].ok == bool(landlock.version())


def test_the_folder_of_the_cache_need_not_exist(checks: dict[str, Check]) -> None:
    assert "GiB free for" in checks["space for the cache"].detail


def test_the_result_is_json_and_text(checks: dict[str, Check]) -> None:
    assert json.loads(json.dumps([item.as_dict() for item in checks.values()]))[0]["name"] in checks
    text = render(checks.values())
    assert all(name in text for name in checks)
    missing = Check("gpg", False, "verifies signatures", "apt-get install gnupg", essential=True)
    assert render([missing]).splitlines()[0].startswith("MISSING  gpg ")
    assert "apt-get install gnupg" in render([missing])


def test_what_is_missing_is_told_with_its_package(tmp_path: Path) -> None:
    """Without /usr/bin in PATH most programs are out of reach; those of the sbin folders are always found."""
    script = "import json, sys; from pathlib import Path; from baker.doctor import check\n" + (
        "print(json.dumps([item.as_dict() for item in check(Path(sys.argv[1]))]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, tmp_path],
        env={**os.environ, "PATH": str(tmp_path), "PYTHONPATH": str(Path(__file__).parents[1])},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    found = {item["name"]: item for item in json.loads(done.stdout)}
    assert (found["gpg"]["ok"], found["gpg"]["essential"]) == (False, True)
    assert found["gpg"]["hint"] == "On Debian: apt-get install gnupg"
    assert found["debugfs"]["ok"]
    assert not found["offline backend"]["ok"]
    assert "btrfs" in found["offline backend"]["detail"]
