"""`flatcar-bake lint`: what a pull request breaks in a bake.toml is said with its line, before anything is baked."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from cli import flatcar_bake, release_environment
from sysexts import RELEASE, make_sysext

from baker.filelint import FileFinding, exit_code
from baker.lint_formats import as_github, as_gitlab, as_text

GOOD = 'release = "stable"\nvendors = ["generic", "qemu_uefi"]\nsysexts = [\n  "tools:tools.raw",\n]\n'


def lint(
    stand_in: Path, folder: Path, text: str, *words: str, env: dict[str, str] | None = None
) -> tuple[int, list[FileFinding]]:
    """The status and the findings of `flatcar-bake lint --json` for a bake.toml in `folder`."""
    (folder / "bake.toml").write_text(text)
    done = flatcar_bake(
        "lint", "--json", "--cache-dir", folder / "cache", *words, cwd=folder,
        env=release_environment(stand_in) | (env or {}),
    )  # fmt: skip
    assert done.stdout, done.stderr
    return done.returncode, [FileFinding(**each) for each in json.loads(done.stdout)]


def test_a_file_that_can_be_baked_has_no_findings(stand_in: Path, tmp_path: Path) -> None:
    make_sysext(tmp_path, "tools")
    text = GOOD.replace("\n]", '\n  "wasmtime@49.0.4",\n]')
    assert lint(stand_in, tmp_path, text, "--strict") == (0, [])
    assert not list(tmp_path.glob("flatcar*")), "a lint writes nothing"
    images = [path for path in (tmp_path / "cache").rglob("*") if path.is_file() and path.stat().st_size > 5_000_000]
    assert not images, "a lint downloads no image"


def test_all_that_is_wrong_is_said_at_once_each_with_its_line(stand_in: Path, tmp_path: Path) -> None:
    make_sysext(tmp_path, "arm", release=RELEASE.replace("x86-64", "arm64"))
    make_sysext(tmp_path, "unnamed", release=None)
    text = (
        'release = "stable"\nvendors = ["qemu_ufi"]\nsysexts = [\n  "arm:arm.raw",\n  "unnamed:unnamed.raw",\n'
        '  "missing:./missing.raw",\n  "nothing",\n  "hello@9",\n]\n'
    )
    status, found = lint(stand_in, tmp_path, text)
    assert [(each.line, each.level) for each in found if each.level == "error"] == [
        (2, "error"), (4, "error"), (5, "error"), (6, "error"), (7, "error"), (8, "error"),
    ]  # fmt: skip
    by_line = {each.line: each for each in found}
    assert by_line[2].hint.startswith("Did you mean qemu_uefi")
    assert "arm64" in by_line[4].message and "allow = [" in by_line[4].hint
    assert (by_line[5].kind, by_line[6].kind) == ("image", "usage")
    assert status == 2
    assert all(each.path == "bake.toml" for each in found)


def test_when_no_sysext_can_be_understood_that_is_all_that_is_said_of_them(stand_in: Path, tmp_path: Path) -> None:
    status, found = lint(stand_in, tmp_path, 'sysexts = ["nothing"]\nvendors = ["genric"]\n')
    assert status == 2 and [(each.line, each.level) for each in found] == [(1, "error"), (2, "error")]
    assert "'nothing'" in found[0].message and "'genric'" in found[1].message


WRONG = {
    "syntax": ('vendors = ["generic"\nx = 1\n', 2, "usage"),
    "unknown key": ('release = "stable"\nvendor = "generic"\n', 2, "usage"),
    "wrong type": ('release = "stable"\n\nfetch = "yes"\n', 3, "usage"),
    "no such release": ('vendors = ["generic"]\nrelease = "4593.2.9"\nsysexts = ["hello@1.0.0+b1"]\n', 2, "usage"),
    "no mirror": ('sysexts = ["hello@1.0.0+b1"]\nmirror = "nowhere"\n', 2, "network"),
    "no such channel": ('vendors = ["generic"]\nrelease = "stabel"\nsysexts = ["hello@1.0.0+b1"]\n', 2, "usage"),
    "install_to": ('sysexts = ["hello@1.0.0+b1"]\ninstall_to = "root:/usr/x"\n', 2, "usage"),
    "kernel argument": ('sysexts = ["hello@1.0.0+b1"]\nkernel_args = ["quiet", "a\\"b"]\n', 2, "usage"),
    "nothing": ("", 1, "usage"),
    "other key": ('sysexts = ["hello@1.0.0+b1"]\nfingerprint = "ABCD"\n', 2, "usage"),
    "another key": ('sysexts = ["hello@1.0.0+b1"]\nfingerprint = "' + 40 * "F" + '"\n', 2, "verification"),
}


@pytest.mark.parametrize("case", WRONG)
def test_the_exit_code_and_the_line_are_those_of_the_mistake(case: str, stand_in: Path, tmp_path: Path) -> None:
    text, line, kind = WRONG[case]
    # The file's own say counts where there is no variable.
    variable = {"other key": "FINGERPRINT", "another key": "FINGERPRINT", "no mirror": "MIRROR"}.get(case)
    status, found = lint(stand_in, tmp_path, text, env={f"FLATCAR_BAKE_{variable}": ""})
    errors = [(each.line, each.kind) for each in found if each.level == "error"]
    assert errors == [(line, kind)], found
    assert status == {"usage": 2, "verification": 3, "network": 5}[kind]


def test_an_allowed_finding_is_a_warning_which_strict_minds(stand_in: Path, tmp_path: Path) -> None:
    make_sysext(tmp_path, "tools", release=RELEASE.replace("x86-64", "arm64"))
    status, found = lint(stand_in, tmp_path, GOOD)
    (error,) = (each for each in found if each.level == "error")
    assert status == 6 and error.line == 4
    allowed = GOOD + f'allow = ["{error.code}"]\n'
    status, found = lint(stand_in, tmp_path, allowed)
    assert status == 0 and {each.level for each in found} == {"warning"}
    assert lint(stand_in, tmp_path, allowed, "--strict")[0] == 6


def test_offline_asks_no_server(tmp_path: Path) -> None:
    make_sysext(tmp_path, "tools")
    (tmp_path / "bake.toml").write_text(GOOD.replace("\n]", '\n  "wasmtime@49.0.4",\n]'))
    words = ("lint", "--offline", "--mirror", "http://127.0.0.1:9", "--bakery", "http://127.0.0.1:9")
    done = flatcar_bake(*words, "--cache-dir", tmp_path / "cache", cwd=tmp_path)
    assert done.returncode == 0, done.stdout
    (tmp_path / "no.toml").write_text(GOOD.replace("generic", "genric"))
    assert "no.toml:2: error: There is no vendor" in flatcar_bake(*words, "no.toml", cwd=tmp_path).stdout
    assert "bake.toml:5: note: wasmtime was not looked for: offline. [not-checked]" in done.stdout


def test_a_lock_that_no_longer_fits_its_file_is_found(stand_in: Path, tmp_path: Path) -> None:
    make_sysext(tmp_path, "tools")
    text = 'release = "stable"\nvendors = ["qemu_uefi"]\noutput_dir = "out"\nsysexts = ["tools:tools.raw"]\n'
    (tmp_path / "bake.toml").write_text(text)
    env = release_environment(stand_in) | {"FLATCAR_BAKE_CACHE_DIR": str(tmp_path / "cache")}
    done = flatcar_bake("--lock", cwd=tmp_path, env=env)
    assert done.returncode == 0, done.stderr
    assert lint(stand_in, tmp_path, text) == (0, [])
    make_sysext(tmp_path, "tools", files={"usr/share/tools/more": "more\n"})
    status, (error,) = lint(stand_in, tmp_path, text)
    assert status == 3 and (error.path, error.code, error.kind) == ("bake.lock", "lock", "verification")
    status, (error,) = lint(stand_in, tmp_path, text.replace("qemu_uefi", "generic"))
    assert (error.path, error.code) == ("bake.lock", "lock") and "--lock instead of --locked" in error.hint


FINDING = FileFinding("error", "usage", "a,b:c", "100% wrong\n::set-output x::y", "Try\rthis.", "a,b:c.toml", 3)


def test_an_annotation_cannot_begin_another_command() -> None:
    text = as_github([FINDING])
    assert text == (
        "::error file=a%2Cb%3Ac.toml,line=3,title=flatcar-bake%3A a%2Cb%3Ac::"
        "100%25 wrong%0A::set-output x::y Try%0Dthis."
    )
    assert as_text([FINDING]).count("\n") == 1 and "\r" not in as_text([FINDING])


def test_a_report_for_gitlab_has_what_code_quality_needs() -> None:
    rows = json.loads(as_gitlab([FINDING, FINDING]))
    assert rows[0]["location"] == {"path": "a,b:c.toml", "lines": {"begin": 3}}
    assert rows[0]["severity"] == "critical" and re.fullmatch("[0-9a-f]{64}", rows[0]["fingerprint"])
    assert rows[0]["fingerprint"] == rows[1]["fingerprint"]


def test_the_first_error_decides_the_exit_code() -> None:
    def finding(level: str, kind: str) -> FileFinding:
        return FileFinding(level, kind, "x", "x", "", "bake.toml")

    assert exit_code([], True) == 0
    assert exit_code([finding("note", "image"), finding("warning", "image")], False) == 0
    assert exit_code([finding("warning", "usage"), finding("error", "network")], True) == 5
    assert exit_code([finding("error", "verification"), finding("error", "network")], False) == 3


def test_the_action_runs_it_for_several_files(stand_in: Path, tmp_path: Path) -> None:
    make_sysext(tmp_path, "tools")
    for name, text in (("a", GOOD), ("b", GOOD.replace("generic", "genric"))):
        (tmp_path / f"{name}.toml").write_text(text)
    done = flatcar_bake(
        "lint", "a.toml", "b.toml", "--format", "github", "--cache-dir", tmp_path / "cache", cwd=tmp_path,
        env=release_environment(stand_in),
    )  # fmt: skip
    assert done.returncode == 2
    (line,) = done.stdout.splitlines()
    assert line.startswith("::error file=b.toml,line=2,title=flatcar-bake%3A usage::There is no vendor 'genric'.")
