"""The wheel installs into an environment of its own and works there: with its catalogues, without the checkout."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path
from zipfile import ZipFile

import pytest

ROOT = Path(__file__).parents[1]
NOT_SOURCE = (".*", "*.egg-info", "__pycache__", "build", "dist", "docs", "tests", "scripts")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built from a copy of the sources: setuptools leaves files beside them."""
    folder = tmp_path_factory.mktemp("wheel")
    shutil.copytree(ROOT, folder / "source", ignore=shutil.ignore_patterns(*NOT_SOURCE))
    build = [sys.executable, "-m", "build", "--wheel", "--outdir", str(folder), str(folder / "source")]
    # With the setuptools at hand if that will do; else build fetches the one that pyproject.toml wants.
    if subprocess.run([*build, "--no-isolation"], capture_output=True).returncode:
        done = subprocess.run(build, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bin folder of a new environment with the wheel; it borrows the dependencies of the present one."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False)
    python = folder / "bin/python"
    install = ["-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps", "--no-index", str(wheel)]
    subprocess.run([sys.executable, *install], check=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    # A path in a .pth is searched, but .pth files there are not: an editable install in it stays out of sight.
    (packages / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder / "bin"


def run(command: Path, *words: str) -> str:
    """What a program of the new environment prints, started outside the checkout."""
    done = subprocess.run(
        [command, *words], capture_output=True, text=True, cwd=command.parent, env={"PATH": "/usr/bin"}
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_wheel_has_the_catalogues_and_no_tests(wheel: Path) -> None:
    names = ZipFile(wheel).namelist()
    for vendor in (ROOT / "vendors").glob("*.toml"):
        assert f"baker/_vendors/{vendor.name}" in names
    for recipe in (ROOT / "recipes").rglob("recipe.toml"):
        assert f"baker/_recipes/{recipe.relative_to(ROOT / 'recipes')}" in names
    assert all(name.startswith(("baker/", "flatcar_bake-")) for name in names)


def test_the_installed_program_knows_the_vendors(installed: Path) -> None:
    text = run(installed / "flatcar-bake", "vendors")
    assert "qemu_uefi" in text
    assert "generic" in text


def test_it_runs_from_the_wheel_and_not_from_the_checkout(installed: Path) -> None:
    paths = run(installed / "python", "-c", "import baker, json; print(json.dumps(list(baker.__path__)))")
    assert all(Path(path).is_relative_to(installed.parent) for path in json.loads(paths))


def test_its_version_is_the_wheels(installed: Path, wheel: Path) -> None:
    assert run(installed / "flatcar-bake", "--version").split()[-1] == wheel.name.split("-")[1]
