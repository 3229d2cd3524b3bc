"""The GitHub Action, the workflows, the GitLab template and the Containerfile: valid by the services' own schemas, and
their scripts do what they say when they are run as the services run them."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from cli import flatcar_bake, release_environment
from sysexts import make_sysext

from baker.recipe.load import load_recipes
from baker.run import ESSENTIAL, PACKAGES

ROOT = Path(__file__).parents[1]
ACTION, GITLAB, CONTAINERFILE = ROOT / "action.yml", ROOT / "docs/ci/gitlab.yml", ROOT / "scripts/Containerfile"
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))
BIN = Path(sys.executable).parent


def load(path: Path) -> dict[Any, Any]:
    document: dict[Any, Any] = yaml.safe_load(path.read_text())
    return document


def steps(path: Path) -> list[dict[str, Any]]:
    """All steps of a workflow or of an action."""
    document = load(path)
    jobs = document["jobs"].values() if "jobs" in document else [document["runs"]]
    return [step for job in jobs for step in job["steps"]]


@pytest.mark.parametrize(
    ("schema", "path"),
    [("github-actions", ACTION), ("gitlab-ci", GITLAB), *(("github-workflows", path) for path in WORKFLOWS)],
    ids=lambda value: value.name if isinstance(value, Path) else value,
)
def test_the_file_is_valid_by_the_schema_of_the_service(schema: str, path: Path) -> None:
    done = subprocess.run(
        [BIN / "check-jsonschema", "--builtin-schema", f"vendor.{schema}", path], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_an_auditor_of_workflows_finds_nothing_of_weight() -> None:
    done = subprocess.run(
        [BIN / "zizmor", "--offline", "--min-severity=medium", "--no-progress", ACTION, *WORKFLOWS],
        capture_output=True, text=True, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def scripts() -> Iterator[Any]:
    for path in (ACTION, *WORKFLOWS):
        for number, step in enumerate(steps(path)):
            if "run" in step:
                yield pytest.param(step["run"], id=f"{path.stem}-{number}")
    for name, job in load(GITLAB).items():
        if isinstance(job, dict) and "script" in job:
            yield pytest.param("\n".join(job["script"]), id=f"gitlab-{name}")


@pytest.mark.parametrize("script", list(scripts()))
def test_shellcheck_finds_nothing_in_a_script(script: str) -> None:
    # A service's expressions within a script would be a way in for whoever names a branch.
    assert "${{" not in script
    # GitLab's variable of several names is split on purpose.
    words = ["shellcheck", "--shell=bash", "--exclude=SC2086", "-"]
    done = subprocess.run(words, input=script, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_the_workflows_give_the_action_inputs_that_it_has() -> None:
    inputs = load(ACTION)["inputs"]
    used = [step for path in WORKFLOWS for step in steps(path) if step.get("uses") == "./"]
    assert used
    for step in used:
        assert set(step["with"]) <= set(inputs)


def run_action(
    folder: Path, stand_in: Path, **inputs: str
) -> tuple[subprocess.CompletedProcess[str], str]:  # fmt: skip
    """The action's last step as the runner runs it, with this checkout installed; and the output `result`."""
    (step,) = (step for step in steps(ACTION) if step.get("id") == "run")
    given = {name: entry.get("default", "") for name, entry in load(ACTION)["inputs"].items()} | inputs
    venv = folder / "venv/bin"
    venv.mkdir(parents=True)
    (venv / "flatcar-bake").symlink_to(BIN / "flatcar-bake")
    output = folder / "output"
    output.touch()
    variables = {
        name: re.sub(r"\$\{\{ inputs\.([a-z-]+) \}\}", lambda found: given[found[1]], str(value))
        for name, value in step["env"].items()
    }
    variables |= {"VENV": str(folder / "venv"), "FLATCAR_BAKE_CACHE_DIR": str(folder / "cache")}
    assert not any("${{" in value for value in variables.values())
    done = subprocess.run(
        ["bash", "--noprofile", "--norc", "-e", "-o", "pipefail", "-c", step["run"]],
        cwd=folder, capture_output=True, text=True,
        env={"PATH": os.environ["PATH"], "GITHUB_OUTPUT": str(output)} | release_environment(stand_in) | variables,
    )  # fmt: skip
    written = re.fullmatch(r"result<<(\w+)\n(.*)\n\1\n", output.read_text(), re.DOTALL)
    assert written, output.read_text()
    return done, written[2]


def test_the_action_bakes_and_says_what_it_wrote(stand_in: Path, tmp_path: Path) -> None:
    make_sysext(tmp_path, "tools")
    (tmp_path / "bake.toml").write_text('vendors = ["qemu_uefi"]\nsysexts = ["tools:tools.raw"]\n')
    done, result = run_action(tmp_path, stand_in, arguments="--output-dir\nout of this\n")
    assert done.returncode == 0, done.stderr
    image = "out of this/flatcar_production_qemu_uefi_image.img"
    assert result.splitlines()[0] == image and (tmp_path / image).is_file()


def test_the_action_annotates_and_fails(stand_in: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.toml").write_text('vendors = ["genric"]\nsysexts = ["wasmtime@49.0.4"]\n')
    done, result = run_action(tmp_path, stand_in, command="lint", config="a.toml b.toml")
    assert done.returncode == 2
    assert [line.partition(",")[0] for line in done.stdout.splitlines()] == [
        "::error file=a.toml", "::error file=b.toml",
    ]  # fmt: skip
    assert result == done.stdout.rstrip("\n")


def run_gitlab(job: str, folder: Path, stand_in: Path) -> subprocess.CompletedProcess[str]:
    document = load(GITLAB)
    variables = {**document["variables"], **document[".flatcar-bake"]["variables"]}
    env = {name: value.replace("$CI_PROJECT_DIR", str(folder)) for name, value in variables.items()}
    return subprocess.run(
        ["bash", "-e", "-o", "pipefail", "-c", "\n".join(document[job]["script"])],
        cwd=folder, capture_output=True, text=True,
        env={"PATH": f"{BIN}:{os.environ['PATH']}"} | release_environment(stand_in) | env,
    )  # fmt: skip


def test_the_jobs_of_the_gitlab_template_lint_and_bake(stand_in: Path, tmp_path: Path) -> None:
    make_sysext(tmp_path, "tools")
    good = 'vendors = ["qemu_uefi"]\nsysexts = ["tools:tools.raw"]\n'
    (tmp_path / "bake.toml").write_text(good.replace("qemu_uefi", "qemu_ufi"))
    done = run_gitlab("flatcar-bake-lint", tmp_path, stand_in)
    assert done.returncode == 2 and "bake.toml:1: error: There is no vendor 'qemu_ufi'" in done.stdout
    (report,) = json.loads((tmp_path / "gl-code-quality-report.json").read_text())
    assert report["location"] == {"path": "bake.toml", "lines": {"begin": 1}}
    (tmp_path / "bake.toml").write_text(good)
    assert run_gitlab("flatcar-bake-lint", tmp_path, stand_in).returncode == 0
    done = run_gitlab("flatcar-bake", tmp_path, stand_in)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out/bake/flatcar_production_qemu_uefi_image.img").is_file()


def test_container_and_action_bring_every_program_that_a_bake_needs() -> None:
    known = {
        line.partition("#")[0].strip() for line in (ROOT / "scripts/system-packages.txt").read_text().splitlines()
    }
    last = CONTAINERFILE.read_text().rpartition("\nFROM ")[2]
    (install,) = (step["run"] for step in steps(ACTION) if step["name"] == "Install the packages")
    wanted = {PACKAGES[program] for program in ESSENTIAL} | {"lbzip2", "xz-utils", "zstd", "dosfstools", "mtools"}
    for text in (last, install):
        words = text.partition("--no-install-recommends")[2].partition("&&")[0].replace('"${more[@]}"', "")
        packages = set(re.findall(r"[a-z][a-z0-9.+-]+", words))
        # Runners and Debian's base image have util-linux.
        assert wanted - {"util-linux"} <= packages
        assert packages <= known | {"libparted2", "libparted-fs-resize0"}


def test_the_weekly_list_has_every_recipe_that_can_be_built() -> None:
    text = (ROOT / ".github/extensions.txt").read_text()
    listed = [line.split() for line in text.splitlines() if line and not line.startswith("#")]
    assert all(version == "latest" for _, version in listed)
    recipes = load_recipes()
    required = {recipe.name for recipe in recipes.values() if any(each.required for each in recipe.parameters)}
    rootfs = {recipe.name for recipe in recipes.values() if recipe.rootfs}
    assert {name for name, _ in listed} == set(recipes) - required - rootfs


def test_the_weekly_workflow_uses_options_that_there_are() -> None:
    (path,) = (path for path in WORKFLOWS if path.stem == "extensions")
    for command in ("matrix", "build", "metadata"):
        words = [step.get("run") or "release " + step.get("with", {}).get("arguments", "") for step in steps(path)]
        (text,) = (text for text in words if f"release {command}" in text)
        used = set(re.findall(r"(?<![\w-])--(?:add|arch|output-dir|flat|url|sign|previous)\b", text))
        assert used
        shown = flatcar_bake("release", command, "--help").stdout
        assert all(re.search(rf"{option}\b", shown) for option in used)
