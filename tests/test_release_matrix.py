"""A release spread over CI jobs: the matrix says what to build, `release metadata` puts it together again."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from cli import flatcar_bake
from mirrors import Recorder
from release_sites import Workshop, images
from servers import MirrorServer
from upstream import Upstream

from baker.errors import UsageError
from baker.model import Arch
from baker.recipe.load import load_recipes
from baker.releasing.index import Contents, write_index
from baker.releasing.items import Item
from baker.releasing.layout import Layout
from baker.releasing.matrix import render_matrix
from baker.services import Services, Settings
from baker.sources import find_config
from baker.verify import parse_sha256sums

URL = "https://sysexts.example"


def items(count: int) -> list[Item]:
    return [Item("tool", f"v1.{number}.0", Arch.X86_64) for number in range(count)]


def test_a_matrix_for_github_is_one_line_of_jobs() -> None:
    text = render_matrix([Item("tool", "v1.2.3", Arch.ARM64, (("level", "3"),))], "github")
    assert json.loads(text) == {"include": [
        {"name": "tool", "version": "v1.2.3", "arch": "arm64", "item": "tool@v1.2.3 level=3",
         "file": "tool-v1.2.3-arm64.raw"}
    ]} and "\n" not in text  # fmt: skip
    with pytest.raises(UsageError, match="257 jobs"):
        render_matrix(items(257), "github")


@pytest.mark.parametrize(("count", "jobs"), [(0, 1), (1, 1), (200, 1), (401, 3)])
def test_a_pipeline_for_gitlab_is_valid_by_gitlabs_schema(count: int, jobs: int, tmp_path: Path) -> None:
    path = tmp_path / "child-pipeline.yml"
    path.write_text(render_matrix(items(count), "gitlab"))
    argv = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.gitlab-ci", path]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    pipeline = json.loads(path.read_text())
    assert len(pipeline) == 1 + jobs
    entries = [entry for job in pipeline.values() if "parallel" in job for entry in job["parallel"]["matrix"]]
    assert len(entries) == count
    path.write_text(path.read_text().replace('"parallel"', '"paralel"', 1).replace('"script"', '"scirpt"', 1))
    assert subprocess.run(argv, capture_output=True, check=False).returncode != 0


def test_the_workflow_in_the_manual_is_valid(tmp_path: Path) -> None:
    manual = (Path(__file__).parent.parent / "docs/publish.md").read_text()
    path = tmp_path / "workflow.yml"
    path.write_text(manual.split("```yaml\n")[1].split("```")[0])
    argv = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.github-workflows", path]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_kubernetes_and_crio_are_looked_up_minor_by_minor(upstream: Upstream, tmp_path: Path) -> None:
    for name in ("kubernetes", "crio"):
        upstream.add(name, Arch.X86_64)
    done = flatcar_bake(
        "release", "matrix", "--add", "kubernetes@latest", "--add", "crio@latest", "-a", "x86-64", "--format", "json",
        env={"FLATCAR_BAKE_CACHE_DIR": str(tmp_path), "FLATCAR_BAKE_MIRROR_URL": " ".join(
            "=".join(rule) for rule in upstream.rewrites)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found: dict[str, list[str]] = {}
    for entry in json.loads(done.stdout):
        found.setdefault(entry["name"], []).append(entry["version"])
    minors = [version.rsplit(".", 1)[0] for version in found["kubernetes"]]
    assert minors[:2] == ["v1.37", "v1.36"] and all(version.endswith(".1") for version in found["kubernetes"])
    assert {version.rsplit(".", 1)[0] for version in found["crio"]} <= set(minors) and len(found["crio"]) > 1


def test_every_minor_has_its_config(tmp_path: Path) -> None:
    recipes = load_recipes(())
    layout = Layout(tmp_path, False, frozenset(recipes))
    names = ("kubernetes-v1.31.4", "kubernetes-v1.30.8", "crio-v1.31.1", "containerd-2.1.9", "wasmtime-v24.0.0",
             "my-own-1.0")  # fmt: skip
    contents = Contents({f"{name}-x86-64.raw": "0" * 64 for name in names})
    write_index(layout, contents, recipes, URL, None, Recorder())
    assert sorted(path.name for path in tmp_path.glob("*.conf")) == [
        "containerd-2.1.conf", "containerd.conf", "crio-v1.31.conf", "crio.conf", "kubernetes-v1.30.conf",
        "kubernetes-v1.31.conf", "kubernetes.conf", "my-own.conf", "noop.conf", "wasmtime.conf",
    ]  # fmt: skip


def test_a_machine_stays_with_its_minor_version(tmp_path: Path) -> None:
    for name in ("kubernetes.conf", "kubernetes-v1.31.conf", "containerd-2.1.conf", "wasmtime.conf"):
        (tmp_path / name).touch()
    with Services(Settings(bakery=str(tmp_path)), Recorder()) as services:
        for name, file, config in (
            ("kubernetes", "kubernetes-v1.31.4-x86-64.raw", "kubernetes-v1.31.conf"),
            ("kubernetes", "kubernetes-v1.30.8-x86-64.raw", "kubernetes.conf"),
            ("containerd", "containerd-2.1.9-arm64.raw", "containerd-2.1.conf"),
            ("wasmtime", "wasmtime-v24.0.0-arm64.raw", "wasmtime.conf"),
            ("docker", "docker-28.0.4-x86-64.raw", ""),
        ):
            assert find_config(name, file, services) == config


def test_versions_that_sysupdate_would_put_in_the_wrong_order_are_told(tmp_path: Path) -> None:
    console = Recorder()
    contents = Contents({f"tool-{version}-x86-64.raw": "0" * 64 for version in ("v1.0.0", "0.9.0", "v1.1.0-rc.1")})
    write_index(Layout(tmp_path, True, frozenset({"tool"})), contents, load_recipes(()), URL, None, console)
    assert any("tool v1.1.0-rc.1 is a pre-release" in text for text in console.warnings)
    assert any("both with and without a v" in text for text in console.warnings)


def test_jobs_of_a_matrix_merge_into_what_one_build_makes(tmp_path: Path) -> None:
    shop = Workshop(tmp_path)
    lines = "tool latest\nold_tool-1.2.3\n"
    shop.build(lines, "--url", URL, out="whole")
    done = shop.run("matrix", "versions.txt")
    assert done.returncode == 0, done.stderr
    for number, job in enumerate(json.loads(done.stdout)["include"]):
        words = ("--add", job["item"], "--arch", job["arch"], "-o", f"parts/{number}")
        built = shop.run("build", *words, env={"FLATCAR_BAKE_CACHE_DIR": str(tmp_path / f"cache{number}")})
        assert built.returncode == 0, built.stderr
        assert "no sysupdate configs were written" in built.stderr
    parts = sorted(str(path) for path in (tmp_path / "parts").iterdir())
    done = shop.run("metadata", *parts, "-o", "merged", "--url", URL)
    assert done.returncode == 0, done.stderr
    assert shop.files("merged") == shop.files("whole")
    for name in ("SHA256SUMS", "tool/SHA256SUMS", "tool.conf", "Release.md"):
        assert (tmp_path / "merged" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    # The next time there is nothing to build.
    with MirrorServer(tmp_path / "merged") as server:
        assert json.loads(shop.run("matrix", "versions.txt", "--previous", server.url).stdout) == {"include": []}


def test_published_parts_are_listed_without_their_files(tmp_path: Path) -> None:
    shop = Workshop(tmp_path)
    shop.build("tool 1.2.3\n", "--flat", out="part")
    shop.build("tool 1.3.0\n", "--flat", out="earlier")
    with MirrorServer(tmp_path / "part") as part, MirrorServer(tmp_path / "earlier") as earlier:
        done = shop.run("metadata", part.url, "--previous", earlier.url, "-o", "index", "--url", URL)
    assert done.returncode == 0, done.stderr
    assert not [name for name in shop.files("index") if name.endswith(".raw")]
    assert set(images("v1.2.3", "v1.3.0")) < set(parse_sha256sums((tmp_path / "index/tool/SHA256SUMS").read_bytes()))


def test_a_version_that_is_not_the_same_everywhere_is_refused(tmp_path: Path) -> None:
    shop = Workshop(tmp_path)
    shop.build("tool 1.2.3\n", "-a", "x86-64", out="one")
    shutil.copytree(tmp_path / "one", tmp_path / "damaged")
    image = tmp_path / "damaged/tool/tool-v1.2.3-x86-64.raw"
    image.write_bytes(image.read_bytes() + b"x")
    done = shop.run("metadata", "damaged", "-o", "merged")
    assert done.returncode == 3 and "is not what" in done.stderr
    (tmp_path / "damaged/tool/SHA256SUMS").unlink()
    done = shop.run("metadata", "one", "damaged", "-o", "merged")
    assert done.returncode == 3 and "is not what the release has under that name already" in done.stderr
    assert shop.run("metadata", "nowhere", "-o", "merged").returncode == 2


def test_what_cannot_be_looked_up_stays_a_job(tmp_path: Path) -> None:
    shop = Workshop(tmp_path)
    (tmp_path / "up/versions").unlink()
    done = shop.run("matrix", "--add", "tool@latest", "-a", "arm64", "--format", "json")
    assert done.returncode == 0 and "tool latest: There is no file" in done.stderr
    assert [entry["item"] for entry in json.loads(done.stdout)] == ["tool@latest"]
