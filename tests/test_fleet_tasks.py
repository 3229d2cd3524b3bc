"""A fleet's parts by themselves: tasks as data, files on their way, and what is refused."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import socket
from pathlib import Path

import fsspec
import pytest
from cli import flatcar_bake
from mirrors import Recorder
from sysexts import make_sysext

from baker import __version__
from baker.cli.fleet import check_options
from baker.errors import BakeError, EnvironmentFault, ImageError, NetworkError, UsageError, VerificationError
from baker.fleet import RecipeWords, bake_task, engine, recipe_task, run_tasks
from baker.fleet.answers import error_words, read_answer
from baker.fleet.engine import scheduler_address
from baker.fleet.holes import read_packed, write_packed
from baker.fleet.inputs import Input, target
from baker.fleet.storage import SCHEMES, Storage
from baker.fleet.tasks import read_order
from baker.lock import Lock, LockedFile, LockedSysext, LockedVendor
from baker.model import Arch, Channel, InstallTarget, Release
from baker.request import BakeRequest, InstallTo, SysextRequest
from baker.services import Settings
from baker.sparse import file_sha256

MIB = 1 << 20


def lock(path: Path) -> Lock:
    return Lock(
        path=path, made_by="1", arch=Arch.ARM64, epoch=7, install_to="x", updates=True, image="",
        release=Release("4593.2.5", Channel.LTS, Arch.ARM64, 3), compress="zst", kernel_args=("quiet",),
        files=(LockedFile("image", "a", "b"),), sysexts=(LockedSysext("n", "o", "f", "s", "c", "d"),),
        vendors=(LockedVendor("azure", "generic", "s", "w"),),
    )  # fmt: skip


def test_a_bake_arrives_as_it_was_asked_for(tmp_path: Path) -> None:
    """Every field: what is a file here is the same file there, and what is each machine's own stays at home."""
    here, there = tmp_path / "here", tmp_path / "there"
    (here / "vendors/deep").mkdir(parents=True)
    (here / "vendors/deep/mine.toml").write_text("x")
    (here / "vendors/link.toml").symlink_to("deep/mine.toml")
    for name in ("tools.raw", "tools.conf", "disk.bin", "bake.lock"):
        (here / name).write_text(name)
    request = BakeRequest(
        sysexts=(SysextRequest("tools", path=here / "tools.raw"), SysextRequest("far", url="https://x/", sha256="0")),
        vendors=("azure",), arch=Arch.ARM64, release="lts", install_to=InstallTo(InstallTarget.OEM, "/x", False),
        output_dir=here / "out", backend="offline", base="generic", image=here / "disk.bin", updates=True,
        allow=("a", "b"), jobs=3, keep_work=True, force=True, vendor_folders=(here / "vendors",),
        lock=lock(here / "bake.lock"), compress="zst", kernel_args=("quiet",), build=True,
    )  # fmt: skip
    settings = Settings(
        mirror="https://m/", fingerprint="F", signing_key=here / "disk.bin", cache_dir=here / "cache", cache_limit=1,
        recipes_lock=here / "not-yet.lock",
    )  # fmt: skip
    task = bake_task("azure", request, settings)
    order = read_order(task.text("file:///run"), there)

    assert (order.label, order.storage) == ("azure", "file:///run")
    assert isinstance(order.request, BakeRequest) and order.request.lock
    got = order.request
    assert got.sysexts[0].path and got.image and got.lock and order.settings.recipes_lock
    moved = {
        "sysexts": (dataclasses.replace(got.sysexts[0], path=here / "tools.raw"), got.sysexts[1]),
        "image": here / "disk.bin", "vendor_folders": (here / "vendors",), "output_dir": here / "out",
        "lock": dataclasses.replace(got.lock, path=here / "bake.lock"), "keep_work": True, "force": True,
    }  # fmt: skip
    assert dataclasses.replace(got, **moved) == request
    assert (got.keep_work, got.force, got.output_dir) == (False, False, Path())
    assert (order.settings.cache_dir, order.settings.cache_limit) == (None, Settings().cache_limit)
    assert order.settings.recipes_lock.name == "not-yet.lock"

    places = {target(item, there): item for item in order.inputs}
    assert {got.sysexts[0].path, got.sysexts[0].path.with_name("tools.conf"), got.image} <= set(places)
    folder = got.vendor_folders[0]
    assert places[folder / "link.toml"].link == "deep/mine.toml"
    assert places[folder / "deep/mine.toml"].sha256 == file_sha256(here / "vendors/deep/mine.toml")
    assert all(path.is_relative_to(there) for path in places)
    assert set(task.files) == {item.sha256 for item in order.inputs if item.sha256}


def test_a_recipe_build_arrives_as_it_was_asked_for(tmp_path: Path) -> None:
    words = RecipeWords("k", "latest", Arch.ARM64, "v", {"a": "b"}, {"C": "d"}, "k8s", "erofs", "zstd", 5, "https://b")
    assert read_order(recipe_task("k", words, Settings()).text("x"), tmp_path).request == words


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"flatcar_bake": "0.0.1"}, "the task comes from 0.0.1"),
        ({"request": {"name": "k"}}, "has no whole RecipeWords"),
        ({"request": {"name": "k", "version": 1, "arch": "arm64"}}, "says 1 where a str belongs"),
        ({"request": {"name": "k", "version": "1", "arch": "vax"}}, "says 'vax' where a Arch belongs"),
        ({"request": {"name": "k", "version": "1", "arch": "arm64", "x": 1}}, "unknown RecipeWords.x"),
    ],
)
def test_a_task_that_is_none_is_refused(tmp_path: Path, change: dict[str, object], says: str) -> None:
    values = json.loads(recipe_task("k", RecipeWords("k", "1", Arch.ARM64), Settings()).text("x"))
    assert values["flatcar_bake"] == __version__
    with pytest.raises(BakeError, match=says):
        read_order(json.dumps(values | change), tmp_path)


@pytest.mark.parametrize("name", ["../x", "/etc/x", "a/../../x", "", "a\0b"])
def test_no_input_leads_out_of_the_work_folder(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError):
        target(Input(0, name), tmp_path / "inputs")
    assert not list(tmp_path.rglob("x"))


@pytest.mark.parametrize("label", ["../x", "a/b", "", ".hidden", "-v"])
def test_no_label_leads_out_of_the_output_folder(label: str) -> None:
    with pytest.raises(UsageError, match="cannot be the name of a task"):
        recipe_task(label, RecipeWords("k", "1", Arch.ARM64), Settings())


@pytest.mark.parametrize("name", ["../x", "a/b", "", ".bashrc"])
def test_no_result_leads_out_of_the_output_folder(name: str) -> None:
    outputs = [{"file": name, "size": 1, "sha256": "0" * 64}]
    answer = {"outputs": outputs, "record": {}, "pins": {}, "seconds": 1, "worker": "w"}
    with pytest.raises(EnvironmentFault, match="answered what no worker"):
        read_answer("k", "recipe", json.dumps(answer))


def test_a_failure_keeps_its_kind_on_the_way() -> None:
    with pytest.raises(ImageError) as error:
        read_answer("k", "bake", json.dumps(error_words(ImageError("It is damaged.", "Get another."))))
    assert (error.value.message, error.value.hint, error.value.exit_code) == ("It is damaged.", "Get another.", 6)


def test_a_sparse_file_travels_without_its_holes(tmp_path: Path) -> None:
    source = tmp_path / "disk"
    with source.open("wb") as file:
        file.truncate(64 * MIB)
        os.pwrite(file.fileno(), os.urandom(MIB), 20 * MIB)
        os.pwrite(file.fileno(), b"end", 64 * MIB - 3)
    stream = io.BytesIO()
    write_packed(source, stream)
    assert len(stream.getvalue()) < 2 * MIB
    stream.seek(0)
    read_packed(stream, tmp_path / "again", 64 * MIB)
    assert file_sha256(tmp_path / "again") == file_sha256(source)
    assert (tmp_path / "again").stat().st_blocks * 512 < 2 * MIB


@pytest.mark.parametrize(
    "header",
    [b"{}", b"nonsense", b"[" * 100_000, b'{"size": 9, "extents": []}', b'{"size": 10, "extents": [[-1, 2]]}',
     b'{"size": 10, "extents": [[9, 2]]}', b'{"size": 10, "extents": [[4, 2], [0, 2]]}',
     b'{"size": 10, "extents": [[0, 0]]}'],
)  # fmt: skip
def test_what_is_no_such_file_is_refused(tmp_path: Path, header: bytes) -> None:
    stream = io.BytesIO(len(header).to_bytes(8, "big") + header + b"data")
    with pytest.raises(VerificationError, match="is something else"):
        read_packed(stream, tmp_path / "x", 10)
    assert not (tmp_path / "x").exists()


def test_what_was_changed_in_the_storage_is_refused(tmp_path: Path) -> None:
    storage = Storage(f"{tmp_path}/shared")
    (tmp_path / "file").write_text("right")
    digest = file_sha256(tmp_path / "file")
    storage.put_input(tmp_path / "file", digest)
    storage.get_input(tmp_path / "copy", digest, 5)
    assert (tmp_path / "copy").read_text() == "right"
    (tmp_path / "shared/inputs" / digest).write_text("wrong")
    with pytest.raises(VerificationError, match="is not what was stored"):
        storage.get_input(tmp_path / "again", digest, 5)
    assert not (tmp_path / "again").exists()


def test_a_file_has_its_name_in_the_storage_only_when_it_is_whole(tmp_path: Path) -> None:
    storage = Storage(f"file://{tmp_path}/shared")
    with pytest.raises(NetworkError, match="did not do as asked"):
        storage.put(tmp_path / "missing", "outputs/x/y")
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    storage.put_text("1", "runs/1/kept")
    storage.put_text("1", "runs/1/inputs/gone")
    storage.folder("runs/1").remove_except({"kept"})
    assert [path.name for path in (tmp_path / "shared/runs").rglob("*")] == ["1", "kept"]


def test_addresses() -> None:
    assert scheduler_address("dask://10.0.0.1:8786") == "tcp://10.0.0.1:8786"
    assert scheduler_address("dask+tls://[fd00::1]:1") == "tls://[fd00::1]:1"
    for word in ("dask://host", "tcp://host:1", "dask://host:x", "dask://u@host:1", "host:8786", "dask://h:1/x"):
        with pytest.raises(UsageError, match="names no cluster"):
            scheduler_address(word)
    with pytest.raises(UsageError, match="Shared storage cannot be at"):
        Storage("ftp://host/x")
    with pytest.raises(UsageError, match="user name or password"):
        Storage("s3://key:secret@bucket/x")


@pytest.mark.parametrize(("scheme", "package"), [item for item in SCHEMES.items() if item[1]])
def test_the_package_that_a_hint_names_reaches_that_storage(scheme: str, package: str) -> None:
    assert fsspec.get_filesystem_class(scheme).__module__.split(".")[0] == package


def test_no_scheduler_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "_CONNECT", 1)
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    task = recipe_task("k", RecipeWords("k", "1", Arch.ARM64), Settings())
    with pytest.raises(NetworkError, match=f"No Dask scheduler answers at dask://127.0.0.1:{port}") as error:
        run_tasks([task], f"dask://127.0.0.1:{port}", f"{tmp_path}/shared", Recorder())
    assert error.value.hint and "dask scheduler" in error.value.hint
    assert not list(tmp_path.iterdir())


def test_a_mirror_that_workers_cannot_see(tmp_path: Path) -> None:
    task = recipe_task("k", RecipeWords("k", "1", Arch.ARM64), Settings(mirror=str(tmp_path)))
    with pytest.raises(UsageError, match="Workers cannot see the folder"):
        run_tasks([task], "dask://127.0.0.1:1", "s3://bucket/x", Recorder())


def test_half_of_a_fleet_is_none() -> None:
    assert not check_options(None, None, {"--lock": True})
    assert check_options("dask://h:1", "/x", {"--lock": False})
    for executor, storage in (("dask://h:1", None), (None, "/x")):
        with pytest.raises(UsageError, match="--executor and --storage go together"):
            check_options(executor, storage, {})
    with pytest.raises(UsageError, match="--lock does not go with --executor"):
        check_options("dask://h:1", "/x", {"--lock": True})


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["bake", "--plan", "tools:FILE"], "--plan does not go with --executor"),
        (["bake", "-v", "azur", "tools:FILE"], "Did you mean azure"),
        (["convert", "FILE", "-v", "azur"], "Did you mean azure"),
        (["recipe", "build", "dokcer", "1"], "Did you mean docker"),
    ],
)
def test_words_that_make_no_sense_are_told_before_anything_begins(tmp_path: Path, words: list[str], says: str) -> None:
    sysext = make_sysext(tmp_path, "tools")
    env = {"FLATCAR_BAKE_EXECUTOR": "dask://h:1", "FLATCAR_BAKE_STORAGE": str(tmp_path / "x"),
           "FLATCAR_BAKE_CACHE_DIR": str(tmp_path / "cache")}  # fmt: skip
    done = flatcar_bake(*(word.replace("FILE", str(sysext)) for word in words), env=env)
    assert done.returncode == 2 and says in done.stderr and not done.stdout
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("module", ["distributed", "fsspec"])
def test_without_the_extra_a_hint_says_how_to_get_it(tmp_path: Path, module: str) -> None:
    (tmp_path / "blocked" / module).mkdir(parents=True)
    (tmp_path / "blocked" / module / "__init__.py").write_text("raise ModuleNotFoundError('as if not installed')")
    sysext = make_sysext(tmp_path, "tools")
    env = {"PYTHONPATH": str(tmp_path / "blocked"), "FLATCAR_BAKE_CACHE_DIR": str(tmp_path / "cache")}
    words = ("--executor", "dask://127.0.0.1:1", "--storage", tmp_path / "x", f"tools:{sysext}")
    done = flatcar_bake(*words, env=env)
    assert done.returncode == 4 and "is not installed" in done.stderr
    assert "pip install 'flatcar-bake[fleet]'" in done.stderr
