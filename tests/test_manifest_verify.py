"""`flatcar-bake verify` tells every way in which the files of a bake can differ from its manifest."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cli import flatcar_bake
from hypothesis import given
from hypothesis import strategies as st

from baker.errors import BakeError
from baker.manifest import BakeManifest, write_records
from baker.model import Artifact
from baker.recheck import recheck
from baker.sparse import file_sha256


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """An output folder as a bake leaves it, with small files for images."""
    folder = tmp_path / "out"
    folder.mkdir()
    artifacts = []
    for name in ("image.img", "launch.sh", "bake-sbom.spdx.json"):
        path = folder / name
        path.write_text(f"the content of {name}\n")
        artifacts.append(Artifact(path, "raw", path.stat().st_size, file_sha256(path), "generic"))
    write_records(
        folder,
        BakeManifest(
            plan_id="0" * 64, version="1.2.3", channel="stable", arch="x86-64", install_to="root:/opt/extensions",
            backend="offline", epoch=0, inputs=(), sysexts=(), decisions=(), outputs=tuple(artifacts),
        ),
    )  # fmt: skip
    return folder


def change_manifest(out: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Edit the manifest, and SHA256SUMS with it, as a forger would."""
    path = out / "bake-manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))
    sums = [f"{item['sha256']}  {item['file']}\n" for item in manifest["outputs"]]
    (out / "SHA256SUMS").write_text("".join([*sums, f"{file_sha256(path)}  bake-manifest.json\n"]))


def test_an_untouched_bake_is_fine(out):
    for words in ((out / "bake-manifest.json",), (out,)):
        done = flatcar_bake("verify", *words)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.splitlines() == [
            "image.img: ok", "launch.sh: ok", "bake-sbom.spdx.json: ok", "bake-manifest.json: ok", "SHA256SUMS: ok",
        ]  # fmt: skip
    assert flatcar_bake("verify", cwd=out).returncode == 0
    found = json.loads(flatcar_bake("verify", "--json", cwd=out).stdout)
    assert found["ok"] and [item["problem"] for item in found["files"]] == [""] * 5


def test_a_moved_bake_is_fine(out, tmp_path):
    out.rename(tmp_path / "elsewhere")
    assert flatcar_bake("verify", tmp_path / "elsewhere").returncode == 0


def swap_byte(path: Path) -> None:
    path.write_text(path.read_text().replace("content", "context"))


@pytest.mark.parametrize(
    ("damage", "said", "blamed"),
    [
        (lambda out: swap_byte(out / "image.img"), "image.img: has the sha256", "image.img"),
        (lambda out: (out / "image.img").write_text("x"), "image.img: has 1 bytes instead of 25", "image.img"),
        (lambda out: (out / "launch.sh").unlink(), "launch.sh: missing", "launch.sh"),
        (lambda out: swap_byte(out / "bake-sbom.spdx.json"), "has the sha256", "bake-sbom.spdx.json"),
        (lambda out: (out / "SHA256SUMS").unlink(), "SHA256SUMS: missing", "SHA256SUMS"),
        (lambda out: (out / "bake-manifest.json").write_text((out / "bake-manifest.json").read_text() + " "),
         "bake-manifest.json: has the sha256", "bake-manifest.json"),
        (lambda out: (out / "SHA256SUMS").write_text("0" * 64 + "  bake-manifest.json\n"),
         "does not list the same files", "bake-manifest.json, SHA256SUMS"),
        (lambda out: (out / "SHA256SUMS").write_text(""), "is not listed in SHA256SUMS", "bake-manifest.json"),
    ],
)  # fmt: skip
def test_what_changed_is_named(out, damage, said, blamed):
    damage(out)
    done = flatcar_bake("verify", out)
    assert done.returncode == 3
    assert said in done.stdout
    assert f"files are not as they were baked: {blamed}" in done.stderr
    found = json.loads(flatcar_bake("verify", "--json", out).stdout)
    assert not found["ok"]
    assert ", ".join(item["file"] for item in found["files"] if item["problem"]).startswith(blamed)


def test_what_is_no_regular_file_is_not_read(out, tmp_path):
    shutil.copy(out / "image.img", tmp_path / "same")
    (out / "image.img").unlink()
    (out / "image.img").symlink_to(tmp_path / "same")
    (out / "launch.sh").unlink()
    os.mkfifo(out / "launch.sh")
    done = flatcar_bake("verify", out)
    assert done.returncode == 3
    assert "image.img: not a regular file" in done.stdout and "launch.sh: not a regular file" in done.stdout


@pytest.mark.parametrize(
    "name", ["../secret", "/etc/passwd", "..", ".", "", "a/b", "SHA256SUMS", "bake-manifest.json", "a\nb", "\x1b[2J"]
)
def test_names_that_lead_elsewhere_are_refused(out, name):
    (out.parent / "secret").write_text("s")
    change_manifest(out, lambda manifest: manifest["outputs"][0].update(file=name))
    done = flatcar_bake("verify", out)
    assert done.returncode == 3
    assert "is not the manifest of a bake" in done.stderr
    assert done.stdout == "" and "\x1b" not in done.stderr


@pytest.mark.parametrize(
    "change",
    [
        lambda manifest: manifest.pop("outputs"),
        lambda manifest: manifest.update(outputs=[]),
        lambda manifest: manifest.update(outputs=manifest["outputs"] * 2),
        lambda manifest: manifest["outputs"][0].update(sha256="12"),
        lambda manifest: manifest["outputs"][0].update(size="many"),
        lambda manifest: manifest["outputs"][0].update(size=float("inf")),
    ],
)
def test_what_no_bake_wrote_is_refused(out, change):
    path = out / "bake-manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))
    done = flatcar_bake("verify", path)
    assert done.returncode == 3
    assert "is not the manifest of a bake" in done.stderr


def test_a_missing_manifest_is_a_mistake_of_the_user(tmp_path):
    done = flatcar_bake("verify", tmp_path)
    assert done.returncode == 2
    assert f"Cannot read the manifest {tmp_path}/bake-manifest.json" in done.stderr


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["outputs", "file", "size", "sha256"]), inner),
)


@given(st.binary() | json_values.map(lambda value: json.dumps(value).encode()))
def test_any_manifest_is_judged_without_a_crash(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("any") / "bake-manifest.json"
    path.write_bytes(data)
    with pytest.raises(BakeError):
        recheck(path)
