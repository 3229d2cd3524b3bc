"""The same content packs to the same bytes, whoever packs it, wherever, whenever; and the kernel finds just that."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from cli import flatcar_bake
from packs import AS_NOBODY, FORMATS, NOBODY, expected_tree, mounted_tree, snapshot, write_folder

from baker.model import Arch
from baker.pack import pack
from baker.packing.options import COMPRESSIONS, PackOptions
from baker.run import run
from baker.sparse import file_sha256

EPOCH = 1_700_000_000
OPTIONS = PackOptions("tool", Arch.X86_64, epoch=EPOCH, reload=True)
RELEASE = "usr/lib/extension-release.d/extension-release.tool"

CHECKS = {
    "squashfs": ["unsquashfs", "-q", "-n", "-d", "{out}"],
    "erofs": ["fsck.erofs"],
    "ext4": ["e2fsck", "-fn"],
    "ext2": ["e2fsck", "-fn"],
    "btrfs": ["btrfs", "check"],
}


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Path]]:
    """A folder, and an image of it in each format."""
    folder = tmp_path_factory.mktemp("packed")
    tree = write_folder(folder / "tool")
    images = {}
    for name in FORMATS:
        images[name] = folder / f"{name}.raw"
        pack(tree, images[name], replace(OPTIONS, format=name))
    return tree, images


@pytest.fixture(scope="module")
def elsewhere(packed: object) -> Iterator[Path]:
    """The same folder made by nobody, with other habits, and seconds later."""
    time.sleep(2)
    with tempfile.TemporaryDirectory(prefix="flatcar-bake-nobody-") as name:
        folder = Path(name) / "a" / "much longer path"
        write_folder(folder / "tree", other=True)
        for path in [Path(name), *Path(name).rglob("*")]:
            os.chown(path, NOBODY, NOBODY, follow_symlinks=False)
        yield folder


@pytest.mark.parametrize("name", FORMATS)
def test_another_user_time_folder_order_umask_and_processor_count_give_the_same_bytes(
    packed: tuple[Path, dict[str, Path]], elsewhere: Path, name: str
) -> None:
    before = snapshot(elsewhere / "tree")
    done = flatcar_bake(
        "sysext", "pack", elsewhere / "tree", "--name", "tool", "-a", "amd64", "--reload", "--format", name,
        "-o", elsewhere / f"{name}.raw", cwd=elsewhere, prefix=("taskset", "-c", "0", *AS_NOBODY),
        env={
            "HOME": str(elsewhere), "TMPDIR": str(elsewhere), "TZ": "Asia/Kathmandu", "LANG": "de_DE.UTF-8",
            "SOURCE_DATE_EPOCH": str(EPOCH), "PYTHONPATH": str(Path(__file__).resolve().parents[1]),
        },
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert file_sha256(elsewhere / f"{name}.raw") == file_sha256(packed[1][name])
    assert snapshot(elsewhere / "tree") == before


@pytest.mark.parametrize("name", FORMATS)
def test_the_kernel_finds_the_folder_in_the_image(
    packed: tuple[Path, dict[str, Path]], tmp_path: Path, name: str
) -> None:
    tree, images = packed
    found = mounted_tree(images[name], tmp_path / "mnt")
    release = b"ID=_any\nARCHITECTURE=x86-64\nEXTENSION_RELOAD_MANAGER=1\n"
    assert found == expected_tree(tree, EPOCH, {RELEASE: release})


@pytest.mark.parametrize("name", FORMATS)
def test_the_filesystems_own_checker_is_content(
    packed: tuple[Path, dict[str, Path]], tmp_path: Path, name: str
) -> None:
    run([word.format(out=tmp_path / "out") for word in CHECKS[name]] + [os.fspath(packed[1][name])])


@pytest.mark.parametrize("name", FORMATS)
def test_a_folder_of_our_own_gives_the_same_bytes(
    packed: tuple[Path, dict[str, Path]], tmp_path: Path, name: str
) -> None:
    tree = write_folder(tmp_path / "tree", other=True)
    pack(tree, tmp_path / "tool.raw", replace(OPTIONS, format=name), own=True)
    assert file_sha256(tmp_path / "tool.raw") == file_sha256(packed[1][name])


@pytest.mark.parametrize(
    ("name", "compression"), [(name, word) for name, words in COMPRESSIONS.items() for word in words[1:]]
)
def test_every_compression_is_reproducible_and_readable(tmp_path: Path, name: str, compression: str) -> None:
    sums = set()
    for other in (False, True):
        tree = tmp_path / str(other)
        (tree / "usr/share").mkdir(parents=True)
        (tree / "usr/share/text").write_bytes(b"flatcar " * 50_000)
        os.utime(tree / "usr/share/text", (1, 1) if other else None)
        image = tmp_path / f"{other}.raw"
        pack(tree, image, replace(OPTIONS, format=name, compression=compression))
        sums.add(file_sha256(image))
    assert len(sums) == 1
    run([word.format(out=tmp_path / "out") for word in CHECKS[name]] + [os.fspath(image)])


def test_images_of_one_format_can_be_mounted_side_by_side(tmp_path: Path) -> None:
    """btrfs refuses a second filesystem with the same id."""
    ids = set()
    for name in ("one", "two"):
        tree = tmp_path / name
        (tree / "usr").mkdir(parents=True)
        (tree / "usr/file").write_text("same")
        pack(tree, tmp_path / f"{name}.raw", replace(OPTIONS, name=name, format="btrfs"))
        ids.add(run(["blkid", "-p", "-o", "value", "-s", "UUID", tmp_path / f"{name}.raw"]).text)
    assert len(ids) == 2


_MERGE = """
mount --make-rshared /
mount -t tmpfs tmpfs /run
systemd-sysext --root="$1" merge
cat "$1/usr/bin/tool"
systemd-sysext --root="$1" unmerge
"""


@pytest.mark.parametrize("name", FORMATS)
def test_systemd_merges_it(packed: tuple[Path, dict[str, Path]], tmp_path: Path, name: str) -> None:
    """In a mount namespace of its own, over a system that is just an os-release file."""
    for folder in ("usr/lib", "opt", "etc/extensions"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "usr/lib/os-release").write_text("ID=flatcar\nVERSION_ID=4593.2.5\nSYSEXT_LEVEL=1.0\n")
    (tmp_path / "etc/os-release").symlink_to("../usr/lib/os-release")
    shutil.copy(packed[1][name], tmp_path / "etc/extensions/tool.raw")
    done = run(["unshare", "--mount", "sh", "-euc", _MERGE, "sh", tmp_path])
    assert done.text == "#!/bin/sh\n"
    assert "Using extensions 'tool'" in done.stderr
