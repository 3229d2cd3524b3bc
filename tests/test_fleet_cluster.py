"""A real Dask cluster, each worker in a network namespace of its own, and a real S3 server between them."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from cli import flatcar_bake
from fleets import BUCKET, PATIENCE, Fleet, Worker, fleet
from mirrors import Recorder
from processes import mentions
from servers import Handler, MirrorServer, setting
from tiny import PACKED, VENDOR_IMAGE, TinyRelease, tiny_disk, tiny_release, tiny_sysext

from baker.fleet import RecipeWords, recipe_task, run_tasks
from baker.fleet.storage import Storage
from baker.model import Arch
from baker.services import Settings
from baker.sparse import file_sha256
from recipes import RECIPE, archive, program, write_recipe

_RULE = '[[rule]]\nname = "small"\nmeasure = "file"\nat_most = "1 MiB"\nsays = "It takes 1 MiB"\nsource = "us"\n'


@dataclass
class Site:
    """A fleet of three workers, and a release that its machines reach."""

    fleet: Fleet
    release: TinyRelease
    disk: Path
    sysext: Path
    folder: Path

    @property
    def env(self) -> dict[str, str]:
        """The environment of a client."""
        return {**self.release.env, **self.fleet.env, "FLATCAR_BAKE_PROGRESS": "plain",
                "FLATCAR_BAKE_CACHE_DIR": str(self.folder / "cache"),
                "FLATCAR_BAKE_EXECUTOR": self.fleet.executor, "FLATCAR_BAKE_STORAGE": self.fleet.storage}  # fmt: skip

    def packed(self) -> str:
        """The path of the release's image on its server."""
        return self.release.mirror.path(PACKED)

    def alone(self) -> dict[str, str]:
        """The same environment without the fleet."""
        return {name: value for name, value in self.env.items() if not name.endswith(("_EXECUTOR", "_STORAGE"))}

    def empty_caches(self) -> None:
        """Let every worker download again."""
        for worker in self.fleet.workers:
            for path in worker.folder.glob("cache/flatcar-bake/v*/*/*"):
                path.unlink()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("fleet")
    disk, sysext = tiny_disk(folder / "disk"), tiny_sysext(folder)
    with (
        fleet(folder / "machines", workers=3) as machines,
        tiny_release(disk, folder / "release", machines.network.address) as release,
    ):
        vendors = Path(release.env["FLATCAR_BAKE_VENDORS"])
        tiny = (vendors / "tiny.toml").read_text()
        (vendors / "other.toml").write_text(tiny.replace(VENDOR_IMAGE, "other.qcow2"))
        (vendors / "picky.toml").write_text(tiny.replace(VENDOR_IMAGE, "picky.qcow2") + _RULE)
        yield Site(machines, release, disk, sysext, folder)


def nothing_left(worker: Worker) -> None:
    """No process of a task, no work folder; a child that has just lost its parent may need a moment."""
    deadline = time.monotonic() + PATIENCE
    while found := [*children_of(worker), *worker.leftovers()]:
        assert time.monotonic() < deadline, found
        time.sleep(0.1)


def children_of(worker: Worker) -> list[str]:
    """The processes that carry out tasks on a machine."""
    return [line for line in mentions(str(worker.folder)) if "baker.fleet.child" in line]


def objects(site: Site, manifest: dict) -> set[str]:
    """The names in the bucket that belong to a run."""
    run = manifest["run"]
    urls = [item["url"] for task in manifest["tasks"] for item in task["outputs"]]
    assert all(url.startswith(f"{run}/outputs/") for url in urls)
    return {url.removeprefix(f"s3://{BUCKET}/") for url in (*urls, f"{run}/fleet-manifest.json")}


def test_a_worker_killed_in_mid_bake_loses_nothing(site: Site, tmp_path: Path) -> None:
    """The worker that asks for the image first dies of SIGKILL in the middle of that download."""
    killed: list[Worker] = []

    def kill(handler: Handler) -> bool:
        if not killed:
            killed.extend(item for item in site.fleet.workers if item.address == handler.client_address[0])
            handler.cut = 1 << 20
            killed[0].kill()
        return False

    before = set(site.fleet.stored())
    site.release.server.on(site.packed(), kill)
    words = ["-v", "tiny,other", f"tools:{site.sysext}"]
    done = flatcar_bake(*words, "-o", tmp_path / "out", "--json", env=site.env)
    site.release.server.faults.clear()

    assert done.returncode == 0, done.stderr
    assert len(killed) == 1 and killed[0].process.wait(PATIENCE) == -signal.SIGKILL
    begun = re.findall(r"(\w+): begun (again )?on (w\d)", done.stderr)
    (again,) = [item for item in begun if item[1]]
    assert again[2] != killed[0].name and (again[0], "", killed[0].name) in begun
    manifest = json.loads(done.stdout)
    assert {task["task"] for task in manifest["tasks"]} == {"tiny", "other"} and not manifest["failed"]
    assert killed[0].name not in {task["worker"] for task in manifest["tasks"]}
    assert set(site.fleet.stored()) - before == objects(site, manifest), "leftovers in the storage"
    for worker in site.fleet.workers:
        nothing_left(worker)
    site.fleet.workers.remove(killed[0])

    for name in ("tiny", "other"):
        assert flatcar_bake("verify", tmp_path / "out" / name).returncode == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["other", "tiny"]
    here = flatcar_bake("-v", "tiny", f"tools:{site.sysext}", "-o", tmp_path / "here", env=site.alone())
    assert here.returncode == 0, here.stderr
    assert file_sha256(tmp_path / "here" / VENDOR_IMAGE) == file_sha256(tmp_path / "out/tiny" / VENDOR_IMAGE)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_client_that_ends_takes_its_tasks_back(site: Site, tmp_path: Path, number: signal.Signals) -> None:
    before = set(site.fleet.stored())
    site.empty_caches()
    server = site.release.server
    server.on(site.packed(), setting(stall=1000))
    asked = len(server.requests(site.packed()))
    clean = {name: value for name, value in os.environ.items() if not name.startswith("FLATCAR_BAKE_")}
    argv = [sys.executable, "-m", "baker", "-v", "tiny,other", f"tools:{site.sysext}", "-o", str(tmp_path / "out")]
    with subprocess.Popen(
        argv, env=clean | site.env, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as bake:
        deadline = time.monotonic() + PATIENCE
        while len(server.requests(site.packed())) == asked:
            assert bake.poll() is None and time.monotonic() < deadline, bake.communicate()
            time.sleep(0.05)
        bake.send_signal(number)
        stdout, stderr = bake.communicate(timeout=PATIENCE)
    for worker in site.fleet.workers:
        nothing_left(worker)
    server.released.set()
    server.faults.clear()
    server.released.clear()
    assert not stdout and not (tmp_path / "out").exists()
    left = {name.split("/")[3] for name in set(site.fleet.stored()) - before}
    if number is signal.SIGKILL:
        assert left == {"inputs"}, "a run without a manifest is none"
    else:
        assert bake.returncode == 130, stderr
        assert "cancelling" in stderr and "cleaned up" in stderr and "Traceback" not in stderr
        assert not left


def test_a_conversion_keeps_what_succeeds_and_says_what_fails(site: Site) -> None:
    before = set(site.fleet.stored())
    done = flatcar_bake("convert", site.disk, "-v", "tiny,picky", "--json", env=site.env)
    assert done.returncode == 6, done.stderr
    assert "1 of 2 vendors failed: picky: " in done.stderr and "Complete are: tiny." in done.stderr
    manifest = json.loads(done.stdout)
    assert [task["task"] for task in manifest["tasks"]] == ["tiny"]
    assert [(item["task"], item["kind"]) for item in manifest["failed"]] == [("picky", "image")]
    assert objects(site, manifest) == set(site.fleet.stored()) - before
    here = flatcar_bake("convert", site.disk, "-v", "tiny", "--plan", "--json", env=site.alone())
    assert manifest["tasks"][0]["record"]["plan_id"] == json.loads(here.stdout)["id"], "it is not the same image"


@contextmanager
def upstream(folder: Path, site: Site) -> Iterator[tuple[Path, str]]:
    """What the recipe `tool` downloads, in two versions, on a server: its folder of recipes, and the rule for it."""
    text = RECIPE.replace('{ type = "sha256sum-file", url = "{url}.sha256" }', '{ type = "none", missing = "lock" }')
    write_recipe(folder / "recipes", text)
    with MirrorServer(folder / "up", host=site.fleet.network.address) as up:
        for go, arch in (("amd64", Arch.X86_64), ("arm64", Arch.ARM64)):
            for version in ("v1.2.3", "v1.2.4"):
                path = up.folder / version / f"tool-{go}.tar.gz"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(archive({"tool": program(arch), "version": version}))
        yield folder / "recipes", f"https://up.example/={up.url}/"


def test_recipes_are_built_side_by_side_and_their_pins_come_home(site: Site, tmp_path: Path) -> None:
    """Shared file systems do as well as object stores: the namespaces share ours."""
    with upstream(tmp_path, site) as (home, rule):
        lock = tmp_path / "recipes.lock"
        settings = Settings(recipe_folders=(home,), mirror_urls=(rule,), recipes_lock=lock)
        wanted = [RecipeWords("tool", version, arch) for version in ("1.2.3", "1.2.4", "9") for arch in Arch]
        tasks = [recipe_task(f"tool-{words.version}-{words.arch}", words, settings) for words in wanted]
        console = Recorder()
        batch = run_tasks(tasks, site.fleet.executor, f"file://{tmp_path}/storage", console)
    assert [item.label for item in batch.failures] == ["tool-9-x86-64", "tool-9-arm64"]
    assert [item.outputs[0].file for item in batch.answers] == [
        f"tool-v{words.version}-{words.arch}.raw" for words in wanted if words.version != "9"
    ]
    assert len({item.worker for item in batch.answers}) > 1, "one worker did all the work"
    addresses = [url for item in batch.answers for url in item.pins]
    assert len(addresses) == 4 and all(url.startswith("https://up.example/v1.2.") for url in addresses)
    for item in batch.answers:
        (output,) = item.outputs
        batch.storage.get(output.name, tmp_path / output.file, output.sha256)
    files = {path.relative_to(tmp_path / "storage").parts[2] for path in (tmp_path / "storage").rglob("*.*")}
    assert files == {"outputs", "fleet-manifest.json"}
    assert json.loads((Path(batch.storage.url.removeprefix("file://")) / "fleet-manifest.json").read_text())["run"]
    assert isinstance(batch.storage, Storage)


def test_a_release_built_by_a_fleet_is_that_of_one_machine(site: Site, tmp_path: Path) -> None:
    items = [word for version in ("1.2.3", "1.2.4", "9.9.9") for word in ("--add", f"tool@{version}")]
    with upstream(tmp_path, site) as (home, rule):

        def build(name: str, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
            own = ("--recipes-lock", tmp_path / f"{name}.lock", "-o", tmp_path / name, "--recipes", home)
            return flatcar_bake("release", "build", *items, *own, "--mirror-url", rule, "--json", env=env)

        first, alone = build("first", site.env), build("alone", site.alone())
        again = build("first", site.env)
    assert first.returncode == alone.returncode == again.returncode == 5, first.stderr + alone.stderr + again.stderr
    assert "2 of 6 failed" in first.stderr and "tool-v1.2.4-arm64.raw is done" in first.stderr
    images = [f"tool-v{version}-{arch}.raw" for version in ("1.2.3", "1.2.4") for arch in Arch]
    told = json.loads(first.stdout)
    assert sorted(record["arch"] for record in told["built"]) == ["arm64", "arm64", "x86-64", "x86-64"]
    assert json.loads(again.stdout)["built"] == [] and sorted(json.loads(again.stdout)["skipped"]) == sorted(images)
    files = [
        {str(path.relative_to(folder)): file_sha256(path) for path in folder.rglob("*") if path.is_file()}
        for folder in (tmp_path / "first", tmp_path / "alone")
    ]
    assert files[0] == files[1] and {f"tool/{name}" for name in images} < set(files[0])
    locks = [(tmp_path / f"{name}.lock").read_text() for name in ("first", "alone")]
    assert locks[0] == locks[1] and locks[0].count("https://up.example/") == 4, "pins do not come home"
