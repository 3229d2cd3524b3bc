"""sysext inspect and lint: units and what starts them, programs and what they need, and the commands themselves."""

from __future__ import annotations

import json
import shutil
import struct
import sys
from pathlib import Path

import pytest
from cli import flatcar_bake
from hypothesis import given, settings
from hypothesis import strategies as st
from sysexts import RELEASE, make_sysext, pack, write_tree

from baker.erofs import Unsupported
from baker.model import Arch
from baker.survey.elf import Elf, read_elf
from baker.survey.report import lint_image, own_name, render, report
from baker.survey.units import parse_unit

SYSTEM = "usr/lib/systemd/system"
RELOADING = RELEASE + "EXTENSION_RELOAD_MANAGER=1\n"
PYTHON = Path(sys.executable).resolve()


def elf(machine: int) -> bytes:
    """The header of an ELF program without any segment, see elf(5)."""
    return b"\x7fELF\x02\x01\x01" + bytes(9) + struct.pack("<HH", 2, machine) + bytes(100)


def codes(image: Path, arch: Arch | None = None, name: str = "tool") -> list[str]:
    return [finding.code for finding in lint_image(image, name, arch, None)]


def with_units(folder: Path, files: dict[str, str], fs: str = "squashfs") -> Path:
    content: dict[str, str | bytes] = {"usr/bin/tool": elf(62)}
    content |= {f"{SYSTEM}/{name}": text for name, text in files.items()}
    return make_sysext(folder, "tool", RELOADING, content, fs)


@pytest.mark.parametrize("fs", ["squashfs", "erofs-lz4", "ext4", "btrfs", "ddi"])
def test_units_and_what_starts_them_are_found_in_every_format(tmp_path: Path, fs: str) -> None:
    image = with_units(tmp_path, {
        "a.service": "[Service]\nExecStart=/usr/bin/tool\n",
        "a.socket": "[Socket]\nListenStream=/run/a\n",
        "b.timer": "[Timer]\nOnBootSec=1\nUnit=a.service\n",
        "c.service": "[Unit]\nUpholds=a.service \\\n  b.timer\n[Install]\nWantedBy=multi-user.target\n",
        "sockets.target.d/10-a-socket.conf": "[Unit]\nUpholds=a.socket\n",
    }, fs)  # fmt: skip
    found = report(image, "tool")
    assert {unit.name: set(unit.started_by) for unit in found.units} == {
        "a.service": {"activated by a.socket", "activated by b.timer", "upheld by c.service"},
        "a.socket": {"upheld by sockets.target"},
        "b.timer": {"upheld by c.service"},
        "c.service": set(),
    }
    assert found.drop_ins == (f"/{SYSTEM}/sockets.target.d/10-a-socket.conf",)
    assert "c.service: not started by itself" in render(found)
    assert codes(image) == []


def test_links_start_units_too_and_masked_units_are_none(tmp_path: Path) -> None:
    tree = write_tree(tmp_path / "tree", "tool", RELOADING, {f"{SYSTEM}/a.service": "[Service]\n"})
    for folder in ("multi-user.target.wants", "basic.target.upholds"):
        (tree / SYSTEM / folder).mkdir()
        (tree / SYSTEM / folder / "a.service").symlink_to("../a.service")
    (tree / SYSTEM / "masked.service").symlink_to("/dev/null")
    (unit,) = report(pack(tree, tmp_path / "tool.raw"), "tool").units
    assert set(unit.started_by) == {"wanted by multi-user.target", "upheld by basic.target"}


@pytest.mark.parametrize(
    ("files", "code", "what"),
    [
        ({"multi-user.target.d/bird.service": "[Unit]\n"}, "ignored-unit", "bird.conf"),
        ({"a.srevice": "[Service]\n"}, "ignored-unit", ".service"),
        ({"multi-user.target.d/10-a.conf": "[Unit]\nUpholds=a.service\n"}, "missing-unit", "a.service"),
        ({"a.service": "[Service]\nExecStart=/usr/sbin/toold --x\n"}, "missing-program", "/usr/sbin/toold"),
        ({"a.service.d/10-a.conf": "[Service]\nExecStartPre=+/bin/toold\n"}, "missing-program", "/bin/toold"),
        ({"a.service": "[Service]\nExecStart=/usr/share/tool/hello.txt\n"}, "not-executable", "chmod 0755"),
        # Programs of the system, of the user, forgiven ones, another place of ours, and what cannot be known.
        ({"a.service": "[Service]\nExecStartPre=/usr/bin/mkdir -p /x\nExecStart=/opt/bin/mine\n"}, "", ""),
        ({"a.service": "[Service]\nExecStart=-/usr/bin/gone\nExecStop=/usr/bin/$W\nExecReload=/bin/kill x\n"}, "", ""),
        ({"a.service": "[Service]\nExecStart=/usr/sbin/tool\nExecStart=tool\n"}, "", ""),
        ({"multi-user.target.d/10-a.conf": "[Unit]\nUpholds=docker.service systemd-networkd.service\n"}, "", ""),
    ],
)  # fmt: skip
def test_units_that_would_not_work_are_found(tmp_path: Path, files: dict[str, str], code: str, what: str) -> None:
    findings = lint_image(with_units(tmp_path, files), "tool", None, None)
    assert [finding.code for finding in findings] == ([code] if code else [])
    for finding in findings:
        assert not finding.fatal
        assert what in finding.message + finding.hint


def test_programs_of_another_machine_are_found_although_an_architecture_is_declared(tmp_path: Path) -> None:
    files: dict[str, str | bytes] = {"usr/bin/tool": elf(62), "usr/bin/foreign": elf(183), "usr/bin/bpf": elf(247)}
    assert codes(make_sysext(tmp_path, "tool", files=files)) == ["wrong-machine"]


def test_a_real_program_tells_what_it_needs_of_the_system(tmp_path: Path) -> None:
    tree = write_tree(tmp_path / "tree", "tool", files={"usr/bin/static": elf(62)})
    shutil.copy(PYTHON, tree / "usr/bin/python3")
    (tree / "usr/lib64").mkdir()
    (tree / "usr/lib64/libexpat.so.1").touch()
    found = report(pack(tree, tmp_path / "tool.raw"), "tool")
    static, = (program for program in found.programs if program.path == "/usr/bin/static")  # fmt: skip
    dynamic, = (program for program in found.programs if program.path == "/usr/bin/python3")  # fmt: skip
    assert static.static and static.from_os == ()
    assert not dynamic.static and dynamic.arch == "x86-64"
    assert "/lib64/ld-linux-x86-64.so.2" in dynamic.from_os and "libc.so.6" in dynamic.from_os
    assert "libexpat.so.1" not in found.from_os


def test_the_elf_reader_agrees_with_the_dynamic_linker() -> None:
    data = PYTHON.read_bytes()
    found = read_elf(lambda limit: data[:limit])
    assert found is not None and found.interpreter == "/lib64/ld-linux-x86-64.so.2"
    assert "libc.so.6" in found.needed


@given(at=st.integers(0, 4095), value=st.integers(0, 255), cut=st.integers(0, 60_000))
@settings(max_examples=200, deadline=None)
def test_damaged_elf_files_are_no_crash(at: int, value: int, cut: int) -> None:
    data = bytearray(PYTHON.read_bytes()[:60_000])
    data[at % 700] = value
    try:
        found = read_elf(lambda limit: bytes(data[: min(limit, cut)]))
    except Unsupported:
        return
    assert found is None or isinstance(found, Elf)


def test_a_program_that_points_far_outside_is_passed_over(tmp_path: Path) -> None:
    header = bytearray(PYTHON.read_bytes()[:4096])
    for number in range(header[56]):  # e_phnum program headers of 56 bytes behind the header; offset 8 is p_offset
        struct.pack_into("<Q", header, 64 + 56 * number + 8, 2**63)
    image = make_sysext(tmp_path, "tool", files={"usr/bin/tool": bytes(header)}, fs="ext4")
    assert report(image, "tool").programs == ()


@given(st.text(max_size=300))
@settings(max_examples=200, deadline=None)
def test_any_text_is_a_unit_of_some_settings(text: str) -> None:
    for (section, key), values in parse_unit(text).items():
        assert section and isinstance(key, str) and values


@pytest.mark.parametrize(
    ("release", "file", "name"),
    [("tool", "tool-1.2-x86-64.raw", "tool"), ("tool", "other.raw", "tool"), (None, "some file.raw", "some_file")],
)
def test_a_sysext_is_called_what_it_calls_itself(tmp_path: Path, release: str | None, file: str, name: str) -> None:
    image = make_sysext(tmp_path, "tool", RELEASE if release else None, file_name=file)
    assert own_name(image) == name


def test_inspect_tells_people_and_programs(tmp_path: Path) -> None:
    image = with_units(tmp_path, {"a.service": "[Service]\nExecStart=/usr/bin/tool\n"})
    shown = flatcar_bake("sysext", "inspect", image)
    assert shown.returncode == 0 and not shown.stderr
    for text in ("name          tool", "flatcar level 1.0, x86-64", "a.service: not started by itself", "static"):
        assert text in shown.stdout
    data = json.loads(flatcar_bake("sysext", "inspect", "--json", image).stdout)
    assert data["name"] == "tool" and data["files"] == 4 and data["from_os"] == []
    assert data["programs"] == [{"path": "/usr/bin/tool", "arch": "x86-64", "static": True, "from_os": []}]


def test_lint_ends_with_status_6_only_for_what_is_fatal(tmp_path: Path) -> None:
    good = make_sysext(tmp_path, "good", files={"etc/x": ""})
    bad = make_sysext(tmp_path, "bad", "ID=debian\n")
    done = flatcar_bake("sysext", "lint", good)
    assert done.returncode == 0 and "note   foreign-path" in done.stdout
    done = flatcar_bake("sysext", "lint", good, bad, f"renamed:{good}")
    assert done.returncode == 6 and "2 of 3 sysexts would not work: bad, renamed" in done.stderr
    assert "fatal  id-mismatch" in done.stdout and "fatal  name-mismatch" in done.stdout
    data = json.loads(flatcar_bake("sysext", "lint", "--json", good, bad).stdout)
    assert [(one["name"], one["ok"]) for one in data] == [("good", True), ("bad", False)]
    assert flatcar_bake("sysext", "lint", "--arch", "aarch64", good).returncode == 6
    assert flatcar_bake("sysext", "lint", "--release", "3139.2.0", good).returncode == 6
    assert flatcar_bake("sysext", "lint", tmp_path / "none.raw").returncode == 2


def test_pack_takes_the_old_environment_and_options_win_over_it(tmp_path: Path) -> None:
    write_tree(tmp_path / "my-tools", "my-tools", None)
    env = {"OS": "flatcar", "ARCH": "aarch64", "RELOAD": "1", "FORMAT": "ext2", "SOURCE_DATE_EPOCH": "1600000000"}
    done = flatcar_bake("sysext", "pack", "my-tools", "--sysupdate", "--progress", "plain", env=env, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["my-tools.raw", "my-tools.conf"]
    assert "CurrentSymlink=/etc/extensions/my-tools.raw" in (tmp_path / "my-tools.conf").read_text()
    data = json.loads(flatcar_bake("sysext", "inspect", "--json", tmp_path / "my-tools.raw").stdout)
    assert (data["os_id"], data["sysext_level"], data["architecture"]) == ("flatcar", "1.0", "arm64")
    assert data["reload_manager"] and data["fs"] == "ext4"
    options = ("--os", "_any", "--arch", "x86-64", "--no-reload", "--format", "squashfs", "--force", "--json")
    done = flatcar_bake("sysext", "pack", "my-tools", *options, env=env, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["files"][0]["path"] == "my-tools.raw"
    data = json.loads(flatcar_bake("sysext", "inspect", "--json", tmp_path / "my-tools.raw").stdout)
    assert (data["os_id"], data["sysext_level"], data["architecture"]) == ("_any", "", "x86-64")
    assert not data["reload_manager"] and data["fs"] == "squashfs"


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (("--arch", "amd46"), "Did you mean amd64"),
        (("--format", "squash"), "Did you mean squashfs"),
        (("--sign", "key.pem"), "KEY,CERT"),
        (("--sysupdate-url", "http://example.org"), "no update config"),
        (("--output", "no/such/folder.raw"), "no folder"),
    ],
)
def test_pack_explains_what_it_does_not_take(tmp_path: Path, words: tuple[str, ...], what: str) -> None:
    write_tree(tmp_path / "my-tools", "my-tools", None)
    done = flatcar_bake("sysext", "pack", "my-tools", *words, cwd=tmp_path)
    assert done.returncode == 2 and what in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["my-tools"]


def test_completion_offers_formats() -> None:
    words = "flatcar-bake sysext pack --format s"
    env = {"_FLATCAR_BAKE_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": "4"}
    assert flatcar_bake(env=env).stdout.split() == ["squashfs"]
