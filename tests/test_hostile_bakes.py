"""Whole bakes and inspections of hostile images by the command line: one error, its exit code, nothing written."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from cli import flatcar_bake
from disks import make_disk, offset
from loops import debugfs
from sysexts import make_sysext

from baker.run import run
from baker.sparse import clone, content_digest

ROOT = offset("old", "ROOT")
ATTACKS: dict[str, tuple[Callable[[Path, Path], None], int, str]] = {
    "etc leads to the host": (
        lambda image, host: debugfs(image, ROOT, f"symlink etc {host}"), 6, "/etc, the parent of /etc/extensions",
    ),
    "opt leads up": (
        lambda image, host: debugfs(image, ROOT, f"symlink opt ../../../../../..{host}"), 6, "/opt, the parent of",
    ),
    "dirty journal": (
        lambda image, host: debugfs(image, ROOT, "feature needs_recovery"), 6, "ROOT was in use and not shut down",
    ),
    "cut short": (
        lambda image, host: image.open("r+b").truncate(1 << 30), 6, "shorter than its partition table says",
    ),
    "no disk at all": (lambda image, host: image.write_bytes(b"\x1b[2J" * 1000) and None, 6, "has no GPT"),
}  # fmt: skip


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_disk(tmp_path_factory.mktemp("base") / "disk.raw")


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("qcow2", [False, True])
def test_a_bake_ends_with_one_error(base: Path, tmp_path: Path, attack: str, qcow2: bool) -> None:
    craft, code, words = ATTACKS[attack]
    host, out, image = tmp_path / "host", tmp_path / "out", tmp_path / "disk.raw"
    (host / "extensions").mkdir(parents=True)
    clone(base, image)
    craft(image, host)
    if qcow2:
        run(["qemu-img", "convert", "-O", "qcow2", image, tmp_path / "disk.qcow2"])
        image = tmp_path / "disk.qcow2"
    before = content_digest(image)
    words_of_it = ["--image", image, "-o", out, f"tool:{make_sysext(tmp_path, 'tool')}"]
    done = flatcar_bake("bake", *words_of_it, env={"FLATCAR_BAKE_CACHE_DIR": str(tmp_path / "cache")})
    assert done.returncode == code, done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert words in errors[0]
    assert "Traceback" not in done.stderr
    assert "\x1b" not in done.stderr
    assert content_digest(image) == before
    assert not out.exists() or list(out.iterdir()) == []
    assert [path.name for path in host.rglob("*")] == ["extensions"]


@pytest.mark.parametrize("attack", ["etc leads to the host", "opt leads up", "dirty journal"])
def test_an_inspection_says_what_it_could_not_read(base: Path, tmp_path: Path, attack: str) -> None:
    host, image = tmp_path / "host", tmp_path / "disk.raw"
    (host / "extensions").mkdir(parents=True)
    (host / "extensions" / "secret.raw").write_text("of the host")
    clone(base, image)
    ATTACKS[attack][0](image, host)
    done = flatcar_bake("inspect", "--json", image)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert "secret" not in done.stdout
    assert found["problems"]
    assert found["sysexts"] == []


def test_a_disk_image_cannot_name_files_of_the_host(tmp_path: Path) -> None:
    """Backing files, external data and extents would be read with our rights, and end up in the result."""
    secret = tmp_path / "secret"
    secret.write_bytes(bytes(1 << 20))
    images = {
        "backing": ["-f", "qcow2", "-b", secret, "-F", "raw"],
        "data": ["-f", "qcow2", "-o", f"data_file={secret}"],
    }
    for name, options in images.items():
        run(["qemu-img", "create", "-q", *options, tmp_path / name, *([] if name == "backing" else ["1M"])])
    run(["qemu-img", "create", "-q", "-f", "vmdk", "-o", "subformat=monolithicFlat", tmp_path / "x.vmdk", "1M"])
    for name in (*images, "x.vmdk"):
        for command in ("inspect", "boot"):
            done = flatcar_bake(command, tmp_path / name)
            assert (done.returncode, "refers to another file" in done.stderr) == (6, True), done.stderr
