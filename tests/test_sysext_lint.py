"""The lint refuses what Flatcar would ignore or break on, and mentions what is only worth knowing."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest
from sysexts import RELEASE, make_sysext, pack, write_tree

from baker.errors import ImageError
from baker.model import Arch
from baker.run import run
from baker.sysext import Finding, builtins_replaced, conflicting_builtins, lint, read_sysext

VERSION = "4593.2.0"


def findings(
    image: Path, name: str = "tool", arch: Arch = Arch.X86_64, version: str | None = VERSION
) -> list[Finding]:
    return lint(read_sysext(image, name), arch, version)


def codes(image: Path, name: str = "tool", arch: Arch = Arch.X86_64, version: str | None = VERSION) -> dict[str, bool]:
    """The code of each finding, and whether it is fatal."""
    return {finding.code: finding.fatal for finding in findings(image, name, arch, version)}


def elf(machine: int) -> bytes:
    """The beginning of an ELF program for a machine, see elf(5)."""
    return b"\x7fELF\x02\x01\x01" + bytes(9) + struct.pack("<HH", 2, machine) + bytes(100)


@pytest.mark.parametrize("fs", ["squashfs", "erofs", "ext4", "btrfs", "ddi"])
def test_a_good_sysext_has_no_findings(tmp_path: Path, fs: str) -> None:
    assert findings(make_sysext(tmp_path, "tool", files={"usr/bin/tool": elf(62)}, fs=fs)) == []


@pytest.mark.parametrize(
    ("release", "expected"),
    [
        ("ID=_any\n", {}),
        ("ID=_any\nARCHITECTURE=_any\n", {}),
        ('ID="flatcar"\nSYSEXT_LEVEL="1.0"\n', {}),
        ("ID=flatcar\nSYSEXT_LEVEL=1.0\nVERSION_ID=9999.0.0\n", {}),
        (f"ID=flatcar\nVERSION_ID={VERSION}\n", {"version-tied": False}),
        ("ID=flatcar\nVERSION_ID=9999.0.0\n", {"version-mismatch": True}),
        ("ID=flatcar\n", {"level-mismatch": True}),
        ("ID=flatcar\nSYSEXT_LEVEL=2\n", {"level-mismatch": True}),
        (f"ID=flatcar\nSYSEXT_LEVEL=2\nVERSION_ID={VERSION}\n", {"level-mismatch": True}),
        ("ID=debian\nVERSION_ID=12\n", {"id-mismatch": True}),
        ("ID=Flatcar\nSYSEXT_LEVEL=1.0\n", {"id-mismatch": True}),
        ("SYSEXT_LEVEL=1.0\n", {"missing-id": True}),
        ("", {"missing-id": True}),
        ("ID=_any\nARCHITECTURE=arm64\n", {"arch-mismatch": True}),
        ("ID=_any\nARCHITECTURE=amd64\n", {"arch-mismatch": True}),
        ("ID=_any\nSYSEXT_SCOPE=initrd\n", {"scope-mismatch": True}),
        ("ID=_any\nSYSEXT_SCOPE='system portable'\n", {}),
    ],
)
def test_the_release_file_decides_whether_systemd_takes_it(
    tmp_path: Path, release: str, expected: dict[str, bool]
) -> None:
    assert codes(make_sysext(tmp_path, "tool", release)) == expected


def test_without_a_known_release_a_version_is_only_mentioned(tmp_path: Path) -> None:
    image = make_sysext(tmp_path, "tool", "ID=flatcar\nVERSION_ID=9999.0.0\n")
    assert codes(image, version=None) == {"version-tied": False}


def test_a_missing_release_file_is_fatal_and_says_what_happens(tmp_path: Path) -> None:
    (finding,) = findings(make_sysext(tmp_path, "tool", release=None))
    assert (finding.code, finding.fatal) == ("missing-release", True)
    assert "extension-release.tool" in finding.message
    assert "no extension at all" in finding.message


def test_another_name_is_fatal_and_offered(tmp_path: Path) -> None:
    image = make_sysext(tmp_path, "docker_compose")
    (finding,) = findings(image, "docker-compose")
    assert (finding.code, finding.fatal) == ("name-mismatch", True)
    assert "'docker_compose'" in finding.message
    assert "docker_compose:FILE" in finding.hint


@pytest.mark.parametrize(("machine", "arch"), [(62, Arch.X86_64), (183, Arch.ARM64)])
@pytest.mark.parametrize("fs", ["squashfs", "erofs", "ext4"])
def test_programs_tell_the_architecture_where_nothing_else_does(
    tmp_path: Path, machine: int, arch: Arch, fs: str
) -> None:
    files: dict[str, str | bytes] = {"usr/bin/script": "#!/bin/sh\n", "usr/bin/tool": elf(machine)}
    image = make_sysext(tmp_path, "tool", "ID=_any\n", files, fs)
    other = Arch.ARM64 if arch is Arch.X86_64 else Arch.X86_64
    assert codes(image, arch=arch) == {}
    assert codes(image, arch=other) == {"arch-mismatch": True}


def test_a_declared_architecture_needs_no_look_at_programs(tmp_path: Path) -> None:
    assert codes(make_sysext(tmp_path, "tool", files={"usr/bin/tool": elf(183)})) == {}


@pytest.mark.parametrize(
    ("path", "code", "fatal"),
    [
        ("etc/tool.conf", "foreign-path", False),
        ("opt/tool/data", "opt-read-only", False),
        ("usr/lib/os-release", "os-release", True),
        ("usr/sbin/tool", "usr-merge", True),
        ("usr/lib/systemd/system/tool.service", "no-reload", False),
        ("usr/bin/dockerd", "docker-conflict", False),
        ("usr/bin/containerd", "containerd-conflict", False),
    ],
)
def test_paths_with_consequences_are_found(tmp_path: Path, path: str, code: str, fatal: bool) -> None:
    assert codes(make_sysext(tmp_path, "tool", files={path: "x"})) == {code: fatal}


def test_units_with_a_reload_are_fine(tmp_path: Path) -> None:
    files: dict[str, str | bytes] = {"usr/lib/systemd/system/tool.service": "[Service]\n"}
    assert codes(make_sysext(tmp_path, "tool", RELEASE + "EXTENSION_RELOAD_MANAGER=1\n", files)) == {}


def test_sbin_follows_the_release(tmp_path: Path) -> None:
    """usr/sbin is a folder before 4116 and a link to bin from then on; either replaces the other."""
    folder = make_sysext(tmp_path, "folder", files={"usr/sbin/tool": "x"})
    assert codes(folder, "folder", version="3975.2.0") == {"usr-merge": False}
    assert codes(folder, "folder", version="4116.0.0") == {"usr-merge": True}
    assert codes(folder, "folder", version=None) == {"usr-merge": True}
    tree = write_tree(tmp_path / "tree", "link")
    (tree / "usr/sbin").symlink_to("bin")
    link = pack(tree, tmp_path / "link.raw")
    assert codes(link, "link", version="3975.2.0") == {"usr-merge": True}
    assert codes(link, "link", version="4116.0.0") == {}


@pytest.mark.parametrize("folder", ["usr/bin", "usr/lib64", "usr/lib/systemd"])
def test_a_system_folder_must_stay_a_folder(tmp_path: Path, folder: str) -> None:
    tree = write_tree(tmp_path / "tree", "tool")
    (tree / folder).symlink_to("elsewhere")
    assert codes(pack(tree, tmp_path / "tool.raw")) == {"usr-merge": True}


def test_owners_and_groups_must_be_root(tmp_path: Path) -> None:
    tree = write_tree(tmp_path / "tree", "tool")
    os.chown(tree / "usr/share/tool/hello.txt", 0, 998)
    assert codes(pack(tree, tmp_path / "group.raw", root_owned=False)) == {"group": False}
    os.chown(tree / "usr/share/tool/hello.txt", 1000, 1000)
    (finding,) = findings(pack(tree, tmp_path / "owner.raw", root_owned=False))
    assert (finding.code, finding.fatal) == ("owner", True)
    assert "user 1000" in finding.message
    assert "hello.txt" in finding.message


def test_modes_that_open_or_close_the_system_are_found(tmp_path: Path) -> None:
    tree = write_tree(tmp_path / "tree", "tool", files={"usr/bin/tool": "x"})
    (tree / "usr/bin/tool").chmod(0o4755)
    assert codes(pack(tree, tmp_path / "setuid.raw")) == {"setuid": False}
    (tree / "usr/bin/tool").chmod(0o666)
    assert codes(pack(tree, tmp_path / "writable.raw")) == {"world-writable": False}
    (tree / "usr/bin/tool").chmod(0o700)
    (tree / "usr/bin").chmod(0o700)
    assert codes(pack(tree, tmp_path / "closed.raw")) == {"closed-folder": True}


def test_device_nodes_and_pipes_are_refused(tmp_path: Path) -> None:
    tree = write_tree(tmp_path / "tree", "tool")
    os.mkfifo(tree / "usr/share/pipe")
    assert codes(pack(tree, tmp_path / "pipe.raw")) == {"device-node": True}
    os.mknod(tree / "usr/share/whiteout", 0o020644, os.makedev(0, 0))
    assert codes(pack(tree, tmp_path / "device.raw", "erofs")) == {"device-node": True}


def test_strange_names_cannot_write_to_the_terminal(tmp_path: Path) -> None:
    image = make_sysext(tmp_path, "tool", files={"\x1b[31mevil/file": "x"})
    (finding,) = findings(image)
    assert finding.code == "foreign-path"
    assert "\x1b" not in finding.message


def test_releases_that_cannot_take_it_are_named(tmp_path: Path) -> None:
    squashfs = make_sysext(tmp_path, "tool")
    assert codes(squashfs, version="3139.2.0") == {"release-too-old": True}
    assert codes(squashfs, version="3185.0.0") == {}
    erofs = make_sysext(tmp_path, "eros", fs="erofs")
    assert codes(erofs, "eros", version="4230.2.1") == {"no-erofs": True}
    assert codes(erofs, "eros", version="4284.0.0+nightly-20250325-2100") == {}


def test_zstd_is_for_releases_whose_kernel_reads_it(tmp_path: Path) -> None:
    image = tmp_path / "tool.raw"
    run(["mksquashfs", write_tree(tmp_path / "tree", "tool"), image, "-all-root", "-comp", "zstd", "-quiet"])
    for version in ("3510.3.6", "3602.2.1", "3745.1.0"):
        assert codes(image, version=version) == {"no-zstd": True}
    for version in ("3602.2.2", "3602.2.10", "3760.1.1", "4593.2.5", None):
        assert codes(image, version=version) == {}


def test_what_cannot_be_looked_into_is_said_to_be_unchecked(tmp_path: Path) -> None:
    image = make_sysext(tmp_path, "tool", fs="ddi")
    run(["sfdisk", "--quiet", "--part-type", image, "1", "0657fd6d-a4ab-43c4-84e5-0933c84b4f4f"])  # swap
    (finding,) = findings(image)
    assert (finding.code, finding.fatal) == ("unchecked", False)
    assert "no partition of the type root or usr" in finding.message


def test_a_btrfs_with_a_subvolume_is_unchecked_and_a_damaged_one_refused(tmp_path: Path) -> None:
    image = make_sysext(tmp_path, "tool", fs="btrfs")
    os.truncate(image, 256 << 20)
    (folder := tmp_path / "mnt").mkdir()
    run(["mount", "-o", "loop", image, folder])
    try:
        run(["btrfs", "filesystem", "resize", "max", folder])
        run(["btrfs", "subvolume", "create", folder / "usr/sub"])
    finally:
        run(["umount", folder])
    (finding,) = findings(image)
    assert (finding.code, finding.fatal) == ("unchecked", False) and "subvolumes" in finding.message
    os.truncate(image, 1 << 20)
    with pytest.raises(ImageError, match="cut short"):
        findings(image)
    os.truncate(image, 256 << 20)
    with pytest.raises(ImageError, match="is damaged"):
        findings(image)


def test_replaced_builtins_depend_on_the_release(tmp_path: Path) -> None:
    image = make_sysext(tmp_path, "docker", files={"usr/bin/dockerd": "x", "usr/bin/containerd": "x"})
    assert builtins_replaced(image, VERSION) == {"docker-flatcar", "containerd-flatcar"}
    assert builtins_replaced(image, None) == {"docker-flatcar", "containerd-flatcar"}
    assert builtins_replaced(image, "3760.2.0") == set()
    assert conflicting_builtins(["/usr/bin/docker", "/usr/bin/containerd"]) == {"containerd-flatcar"}


@pytest.mark.parametrize("release", [None, "ID=debian\n", "ID=flatcar\n"])
def test_messages_are_sentences_that_name_the_sysext(tmp_path: Path, release: str | None) -> None:
    for finding in findings(make_sysext(tmp_path, "tool", release, files={"etc/x": "", "usr/sbin/y": ""})):
        assert "tool" in finding.message
        assert finding.message.endswith(".")
        assert finding.message[0].isupper()
