"""The command line as a first-class citizen: help, default command, environment, completion, interruption."""

import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
from cli import flatcar_bake, release_environment
from sysexts import make_sysext

from baker.cli import with_default_command
from baker.cli.app import COMMANDS, build


def options() -> Iterator[tuple[str, typer.main.TyperCommand, typer.core.TyperOption]]:
    group = typer.main.get_command(build())
    for name, command in group.commands.items():  # type: ignore[attr-defined]
        for one in getattr(command, "commands", {"": command}).values():
            for parameter in one.params:
                if isinstance(parameter, typer.core.TyperOption):
                    yield name, one, parameter


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_has_help_that_starts_with_its_summary(name: str) -> None:
    done = flatcar_bake(name, "--help")
    assert done.returncode == 0 and not done.stderr
    assert COMMANDS[name][2] in " ".join(done.stdout.split())


def test_the_overview_lists_every_command_and_an_example() -> None:
    done = flatcar_bake("--help")
    assert all(f"  {name} " in done.stdout for name in COMMANDS)
    assert "--fetch --vendor qemu_uefi" in done.stdout
    assert "…" not in done.stdout.split("Commands:")[1] and "..." not in done.stdout.split("Commands:")[1]


def test_without_any_word_the_overview_is_shown() -> None:
    assert flatcar_bake().stdout == flatcar_bake("--help").stdout


def test_bake_is_the_default_command() -> None:
    assert with_default_command(["w:w.raw"]) == ["bake", "w:w.raw"]
    assert with_default_command(["--vendor", "inspect", "w:w.raw"]) == ["bake", "--vendor", "inspect", "w:w.raw"]
    assert with_default_command(["inspect", "x"]) == ["inspect", "x"]
    assert with_default_command(["--version"]) == ["--version"]
    assert flatcar_bake("w:no.raw").stderr == flatcar_bake("bake", "w:no.raw").stderr


def test_the_version_is_told() -> None:
    assert flatcar_bake("--version").stdout.startswith("flatcar-bake 0.")


def test_help_costs_less_than_a_tenth_of_a_second_of_cpu() -> None:
    """The best of five: a busy machine makes a process slower, never faster."""
    costs = []
    for _ in range(5):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert flatcar_bake("--help").returncode == 0
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        costs.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    # 0.1 s is meant for an idle machine; twice that still catches an import of rich, requests or parted at start-up.
    assert min(costs) < 0.2, costs


def test_help_imports_nothing_heavy() -> None:
    program = (
        "import sys\nsys.argv = ['flatcar-bake', '--help']\nfrom baker.cli import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "print([name for name in ('rich', 'requests', 'parted', 'baker.store', 'ssl') if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_every_option_of_the_bake_has_its_environment_variable() -> None:
    for name, _, option in options():
        if name == "bake" and "--help" not in option.opts:
            expected = "FLATCAR_BAKE_" + max(option.opts, key=len).lstrip("-").replace("-", "_").upper()
            variables = option.envvar if isinstance(option.envvar, list) else [option.envvar]
            assert expected in variables, option.opts


def test_an_environment_variable_counts_and_an_option_wins_over_it(stand_in: Path, tmp_path: Path) -> None:
    sysext = make_sysext(tmp_path, "tools")
    env = release_environment(stand_in) | {
        "FLATCAR_BAKE_VENDOR": "qemu_uefi",
        "FLATCAR_BAKE_CACHE_DIR": str(tmp_path / "cache"),
    }
    plan = ("--plan", "-o", tmp_path / "out", f"tools:{sysext}")
    assert "vendor     qemu_uefi" in flatcar_bake(*plan, env=env).stdout
    assert "vendor     generic" in flatcar_bake("--vendor", "generic", *plan, env=env).stdout


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shell_completion_exists(shell: str) -> None:
    assert "_FLATCAR_BAKE_COMPLETE" in flatcar_bake(env={"_FLATCAR_BAKE_COMPLETE": f"source_{shell}"}).stdout


def test_completion_offers_commands_and_options() -> None:
    env = {"_FLATCAR_BAKE_COMPLETE": "complete_bash", "COMP_WORDS": "flatcar-bake bake --ven", "COMP_CWORD": "2"}
    assert "--vendor" in flatcar_bake(env=env).stdout.split()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_bake_leaves_nothing_and_says_so(
    stand_in: Path, tmp_path: Path, number: signal.Signals
) -> None:
    sysext = make_sysext(tmp_path, "tools")
    out = tmp_path / "out"
    env = {**os.environ, **release_environment(stand_in), "FLATCAR_BAKE_CACHE_DIR": str(tmp_path / "cache")}
    process = subprocess.Popen(
        [sys.executable, "-m", "baker", "-v", "qemu_uefi", "--base", "generic", "-o", out, f"tools:{sysext}"],
        env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while not (out.is_dir() and any(out.glob(".flatcar-bake-*/pid.lock"))):
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.02)
    process.send_signal(number)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 128 + number, stderr
    assert "cleaned up" in stderr and "Traceback" not in stderr and not stdout
    assert not list(out.iterdir())


def test_a_closed_pipe_is_no_crash() -> None:
    done = subprocess.run(f"{sys.executable} -m baker vendors | head -c 1", shell=True, capture_output=True, text=True)
    assert "Traceback" not in done.stderr and "BrokenPipe" not in done.stderr
