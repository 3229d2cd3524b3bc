"""NAME@VERSION in a bake: from the bakery where it has it, else built from its recipe, and locked all the same."""

import hashlib
import json
import shutil
from pathlib import Path

import jsonschema
import pytest
from cli import flatcar_bake, release_environment
from spdx_tools.spdx.parser.parse_anything import parse_file
from spdx_tools.spdx.validation.document_validator import validate_full_spdx_document

from recipes import RECIPE, UNIT, UNIT_PATH, archive, program, write_recipe

PARAMETER = """
[param.level]
default = "latest"
source = { type = "text", url = "https://up.example/level" }
[[generate]]
path = "/usr/share/tool/level"
content = "{p.level}\\n"
"""
SCHEMA = "docs/bake-manifest.schema.json"


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, stand_in: Path) -> Path:
    """A bake.toml with a sysext of a recipe in it, baked and locked; upstream is the folder `up`."""
    folder = tmp_path_factory.mktemp("project")
    write_recipe(folder / "recipes", RECIPE + PARAMETER, {UNIT_PATH: UNIT})
    up = folder / "up/v1.2.3"
    up.mkdir(parents=True)
    data = archive({"tool": program()})
    (up / "tool-amd64.tar.gz").write_bytes(data)
    (up / "tool-amd64.tar.gz.sha256").write_text(f"{hashlib.sha256(data).hexdigest()}  tool-amd64.tar.gz\n")
    (folder / "up/level").write_text("v1.0.0\n")
    (folder / "bake.toml").write_text(
        'vendors = ["qemu_uefi"]\noutput_dir = "out"\nsysexts = ["tool@1.2.3"]\nrecipes = ["recipes"]\n'
        f'mirror_urls = ["https://up.example/={folder}/up/"]\n'
    )
    done = bake(folder, stand_in, "--lock")
    assert done.returncode == 0, done.stderr
    return folder


def bake(folder, stand_in, *words):
    env = release_environment(stand_in) | {
        "FLATCAR_BAKE_CACHE_DIR": str(folder / "cache"), "FLATCAR_BAKE_PROGRESS": "plain",
    }  # fmt: skip
    return flatcar_bake("bake", *words, env=env, cwd=folder)


@pytest.fixture
def copy(project: Path, tmp_path: Path) -> Path:
    """The project in another folder, without what was baked."""
    for name in ("recipes", "up"):
        shutil.copytree(project / name, tmp_path / name)
    text = (project / "bake.toml").read_text().replace(str(project), str(tmp_path))
    (tmp_path / "bake.toml").write_text(text)
    shutil.copy(project / "bake.lock", tmp_path)
    shutil.copytree(project / "cache", tmp_path / "cache", copy_function=shutil.copy2)
    for kept in (tmp_path / "cache").rglob("index/*.json"):  # forget the extension, and not the image
        if "tool" in kept.read_text():
            kept.unlink()
    return tmp_path


def test_the_records_tell_what_the_sysext_was_made_of(project):
    manifest = json.loads((project / "out/bake-manifest.json").read_text())
    jsonschema.validate(manifest, json.loads((Path(__file__).parent.parent / SCHEMA).read_text()))
    (sysext,) = manifest["sysexts"]
    assert sysext["origin"] == "recipe" and sysext["file"] == "tool-v1.2.3-x86-64.raw"
    assert sysext["installed"] == "ROOT:/opt/extensions/tool/tool-v1.2.3-x86-64.raw"
    assert sysext["built"]["choices"] == {"p.level": "v1.0.0"}
    (source,) = [item for item in manifest["inputs"] if item["kind"] == "recipe source"]
    assert source["url"] == "https://up.example/v1.2.3/tool-amd64.tar.gz"
    assert source["trust"] == "upstream checksum"
    document = project / "out/bake-sbom.spdx.json"
    assert not validate_full_spdx_document(parse_file(str(document)))
    sbom = json.loads(document.read_text())
    made = [each for each in sbom["relationships"] if each["relationshipType"] == "GENERATED_FROM"]
    assert ("SPDXRef-sysext-tool", "SPDXRef-source-tool-3a-release") in {
        (each["spdxElementId"], each["relatedSpdxElement"]) for each in made
    }


def test_a_locked_bake_builds_the_same_again(copy, project, stand_in):
    """Upstream has a new default by now; the lock says which was used."""
    (copy / "up/level").write_text("v2.0.0\n")
    done = bake(copy, stand_in, "--locked")
    assert done.returncode == 0, done.stderr
    assert "Pack tool-v1.2.3-x86-64.raw" in done.stderr, "it is really built again"
    sums = [(folder / "out/SHA256SUMS").read_text() for folder in (copy, project)]
    assert sums[0] == sums[1]


def test_a_recipe_that_changed_is_no_longer_what_was_locked(copy, stand_in):
    (copy / "recipes/tool/files" / UNIT_PATH).write_text(UNIT + "# changed\n")
    done = bake(copy, stand_in, "--locked")
    assert done.returncode == 3, done.stderr
    assert "tool-v1.2.3-x86-64.raw was built again, and is not what bake.lock says" in done.stderr
    assert not list((copy / "out").glob("*"))


@pytest.mark.parametrize(
    ("words", "origin", "why"),
    [
        (("wasmtime@49.0.4",), "bakery", ""),
        (("wasmtime@48.0.0",), "recipe", "the bakery does not have it"),
        (("--build", "wasmtime@49.0.4"), "recipe", "asked for by --build"),
    ],
)
def test_the_plan_says_where_a_version_comes_from_and_why(words, origin, why, stand_in, tmp_path):
    done = bake(tmp_path, stand_in, "-v", "qemu_uefi", "--plan", "--json", *words)
    assert done.returncode == 0, done.stderr
    (sysext,) = json.loads(done.stdout)["sysexts"]
    assert (sysext["origin"], sysext["why"]) == (origin, why)
    if why:
        assert sysext["recipe"]["version"].startswith("v4") and sysext["sha256"] == ""
        said = bake(tmp_path, stand_in, "-v", "qemu_uefi", "--plan", *words).stdout
        assert f"built from its recipe: {why}" in said


def test_what_neither_the_bakery_nor_a_recipe_has(stand_in, tmp_path):
    done = bake(tmp_path, stand_in, "-v", "qemu_uefi", "nothing-like-it@1.0", "--plan")
    assert done.returncode == 2 and "The bakery has no nothing-like-it 1.0" in done.stderr
    done = bake(tmp_path, stand_in, "-v", "qemu_uefi", "--build", "nothing-like-it@1.0", "--plan")
    assert done.returncode == 2 and "There is no recipe 'nothing-like-it'" in done.stderr
