"""bake-manifest.json keeps its published schema, and the SBOM is SPDX to a judge that is not us."""

import json
from datetime import UTC
from pathlib import Path

import jsonschema
import pytest
from cli import flatcar_bake, release_environment
from spdx_tools.spdx.model import RelationshipType
from spdx_tools.spdx.parser.parse_anything import parse_file
from spdx_tools.spdx.validation.document_validator import validate_full_spdx_document
from standin.http_server import FolderServer

from baker.sparse import file_sha256

SCHEMA = json.loads((Path(__file__).parent.parent / "docs/bake-manifest.schema.json").read_text())
IMAGE = "flatcar_production_qemu_uefi_image.img"
WASMTIME = "wasmtime-49.0.4-x86-64.raw"


def bake(stand_in: Path, folder: Path, *words: str | Path) -> Path:
    env = release_environment(stand_in) | {"FLATCAR_BAKE_CACHE_DIR": str(folder / "cache")}
    done = flatcar_bake("-v", "qemu_uefi", "--quiet", "-o", folder / "out", *words, env=env)
    assert done.returncode == 0, done.stderr
    return folder / "out"


@pytest.fixture(scope="module")
def out(stand_in: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bake with a sysext of the bakery and a local one, from the generic image."""
    hello = next((stand_in / "extensions").glob("hello-*-x86-64.raw"))
    folder = tmp_path_factory.mktemp("bake")
    return bake(stand_in, folder, "--base", "generic", "--fetch", "wasmtime@49.0.4", f"hello:{hello}")


def test_the_schema_is_a_schema():
    jsonschema.Draft202012Validator.check_schema(SCHEMA)


def test_the_manifest_keeps_its_schema(out):
    jsonschema.validate(json.loads((out / "bake-manifest.json").read_text()), SCHEMA)


def test_the_schema_refuses_what_no_bake_writes(out):
    good = json.loads((out / "bake-manifest.json").read_text())
    for change in (
        {"schema": 2}, {"more": 1}, {"outputs": []}, {"backend": "magic"},
        {"outputs": [good["outputs"][0] | {"file": "../x"}]}, {"inputs": [good["inputs"][0] | {"sha256": "0"}]},
    ):  # fmt: skip
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(good | change, SCHEMA)


def test_a_manifest_of_an_image_of_ones_own_keeps_it_too(out, stand_in, tmp_path):
    hello = next((stand_in / "extensions").glob("hello-*-x86-64.raw"))
    second = bake(stand_in, tmp_path, "--image", out / IMAGE, "--force", f"hello:{hello}")
    manifest = json.loads((second / "bake-manifest.json").read_text())
    jsonschema.validate(manifest, SCHEMA)
    assert manifest["release"]["channel"] == ""
    assert validate_full_spdx_document(parse_file(str(second / "bake-sbom.spdx.json"))) == []


def test_the_sbom_is_valid_and_complete(out, stand_in):
    document = parse_file(str(out / "bake-sbom.spdx.json"))
    assert validate_full_spdx_document(document) == []
    manifest = json.loads((out / "bake-manifest.json").read_text())
    packages = {package.spdx_id: package for package in document.packages}
    digests = {package.name: package.checksums[0].value for package in document.packages if package.checksums}
    for record in (*manifest["inputs"], *manifest["outputs"]):
        name = record.get("file", record.get("name"))
        if record.get("kind") != "sysext" and name != "bake-sbom.spdx.json":
            assert digests[name] == record["sha256"]
    sysext = packages["SPDXRef-sysext-wasmtime"]
    assert (sysext.version, sysext.file_name) == ("49.0.4", WASMTIME)
    assert digests["wasmtime"] == file_sha256(stand_in / "extensions" / WASMTIME)
    assert packages["SPDXRef-release"].version == manifest["release"]["version"]
    (image,) = (part for part, package in packages.items() if package.name == IMAGE)
    related = {
        (relation.relationship_type, relation.related_spdx_element_id)
        for relation in document.relationships
        if relation.spdx_element_id == image
    }
    assert related == {
        (RelationshipType.GENERATED_FROM, "SPDXRef-release"),
        (RelationshipType.CONTAINS, "SPDXRef-sysext-wasmtime"),
        (RelationshipType.CONTAINS, "SPDXRef-sysext-hello"),
    }
    assert manifest["plan_id"] in document.creation_info.document_namespace
    # spdx-tools gives the time, which is UTC, without saying so.
    assert document.creation_info.created.replace(tzinfo=UTC).timestamp() == manifest["source_date_epoch"]


def test_neither_names_a_folder_of_this_machine(out, stand_in):
    manifest = json.loads((out / "bake-manifest.json").read_text())
    for record in manifest["inputs"]:
        record["url"] = ""
    assert str(out.parent) not in json.dumps(manifest) and str(stand_in) not in json.dumps(manifest)
    sbom = (out / "bake-sbom.spdx.json").read_text()
    assert str(out.parent) not in sbom and str(stand_in) not in sbom


def test_downloads_are_located_by_their_url(out, stand_in, tmp_path):
    with FolderServer(stand_in) as server:
        made = bake(stand_in, tmp_path, "--fetch", "--bakery", f"{server.url}/extensions", "wasmtime@49.0.4")
        wanted = f"{server.url}/extensions/{WASMTIME}"
    document = json.loads((made / "bake-sbom.spdx.json").read_text())
    (sysext,) = (package for package in document["packages"] if package["name"] == "wasmtime")
    assert sysext["downloadLocation"] == wanted
    # spdx-tools wants a name for a host, as public servers have it.
    public = tmp_path / "public.spdx.json"
    public.write_text((made / "bake-sbom.spdx.json").read_text().replace(server.url, "https://mirror.example.org"))
    assert validate_full_spdx_document(parse_file(str(public))) == []


def test_the_records_list_each_other(out):
    manifest = json.loads((out / "bake-manifest.json").read_text())
    sums = {line[66:]: line[:64] for line in (out / "SHA256SUMS").read_text().splitlines()}
    assert sums.keys() == {item["file"] for item in manifest["outputs"]} | {"bake-manifest.json"}
    assert sums["bake-sbom.spdx.json"] == file_sha256(out / "bake-sbom.spdx.json")
    done = flatcar_bake("verify", out / "bake-manifest.json")
    assert done.returncode == 0, done.stderr
    assert all(line.endswith(": ok") for line in done.stdout.splitlines())
