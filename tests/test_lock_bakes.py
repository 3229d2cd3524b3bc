"""A locked bake is made of what the lock names, however the world has moved on, and refuses everything else."""

import os
import shutil
from pathlib import Path

import pytest
from cli import flatcar_bake, release_environment

SYSEXT = "wasmtime@49.0.4"
FILE = "wasmtime-49.0.4-x86-64.raw"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, stand_in: Path) -> Path:
    """A project folder with a bake.toml and the lock of its first bake; its cache has everything."""
    folder = tmp_path_factory.mktemp("project")
    (folder / "bake.toml").write_text(
        f'vendors = ["qemu_uefi"]\nfetch = true\noutput_dir = "out"\nsysexts = ["{SYSEXT}"]\n'
    )
    done = flatcar_bake("--config", folder / "bake.toml", "--lock", env=environment(stand_in, folder))
    assert done.returncode == 0, done.stderr
    return folder


def environment(release: Path, folder: Path) -> dict[str, str]:
    return release_environment(release) | {
        "FLATCAR_BAKE_CACHE_DIR": str(folder / "cache"), "FLATCAR_BAKE_PROGRESS": "plain",
    }  # fmt: skip


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    """The project in a folder of its own, with the same cache."""
    for name in ("bake.toml", "bake.lock"):
        shutil.copy(folder / name, tmp_path)
    (tmp_path / "cache").symlink_to(folder / "cache")
    return tmp_path


def locked(copy: Path, stand_in: Path, *words: str | Path, **env: str) -> str:
    """What a locked bake of the project says on stderr as it is refused."""
    done = flatcar_bake("bake", *words, "--locked", env=environment(stand_in, copy) | env, cwd=copy)
    assert done.returncode == 3, done.stderr
    assert not list((copy / "out").glob("*")), "nothing may appear"
    assert "--lock" in done.stderr
    return done.stderr


def edit(copy: Path, old: str, new: str) -> None:
    text = (copy / "bake.lock").read_text()
    assert old in text
    (copy / "bake.lock").write_text(text.replace(old, new, 1))


def test_the_lock_lies_beside_bake_toml_and_names_everything(folder):
    text = (folder / "bake.lock").read_text()
    for word in (
        "[release]", 'channel = "stable"', 'kind = "image"', 'kind = "firmware"', f'file = "{FILE}"',
        'config = "wasmtime.conf"', 'base = "published"', "epoch = ",
    ):  # fmt: skip
        assert word in text
    assert str(folder) not in text


def test_a_locked_bake_gives_the_same_bytes_and_the_same_lock(copy, folder, stand_in):
    env = environment(stand_in, copy)
    done = flatcar_bake("bake", "--locked", env=env, cwd=copy)
    assert done.returncode == 0, done.stderr
    assert (copy / "out/SHA256SUMS").read_text() == (folder / "out/SHA256SUMS").read_text()
    again = flatcar_bake("bake", "--lock", "--lock-file", "second.lock", "--force", env=env, cwd=copy)
    assert again.returncode == 0, again.stderr
    assert (copy / "second.lock").read_bytes() == (copy / "bake.lock").read_bytes()


def test_the_server_and_the_bakery_may_have_moved_on(copy, folder, stand_in, tmp_path):
    """No current release, no feed, no list of the bakery: a lock needs the files it names and nothing else."""
    mirror = tmp_path / "mirror"
    (mirror / "stable/amd64-usr").mkdir(parents=True)
    version = next(stand_in.glob("stable/amd64-usr/[0-9]*"))
    (mirror / "stable/amd64-usr" / version.name).symlink_to(version)
    (mirror / "stable/amd64-usr/current").symlink_to("9999.0.0")
    bakery = mirror / "extensions"
    bakery.mkdir()
    for name in (FILE, "wasmtime.conf"):
        shutil.copy(stand_in / "extensions" / name, bakery)
    env = environment(stand_in, tmp_path) | {"FLATCAR_BAKE_CACHE_DIR": str(tmp_path / "cold")}
    env |= {"FLATCAR_BAKE_MIRROR": str(mirror), "FLATCAR_BAKE_BAKERY": str(bakery)}
    done = flatcar_bake("bake", "--locked", env=env, cwd=copy)
    assert done.returncode == 0, done.stderr
    image = "flatcar_production_qemu_uefi_image.img"
    sums = {line[66:]: line[:64] for line in (folder / "out/SHA256SUMS").read_text().splitlines()}
    assert {line[66:]: line[:64] for line in (copy / "out/SHA256SUMS").read_text().splitlines()}[image] == sums[image]


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (("--release", "beta"), r"the release: 4459.2.4 (stable) is locked, not beta"),
        (("--release", "4459.2.3"), "the release: 4459.2.4 (stable) is locked, not 4459.2.3"),
        (("-v", "generic"), "the vendors: qemu_uefi is locked, not generic"),
        (("--base", "generic"), "the base of qemu_uefi: published is locked, not generic"),
        (("--updates",), "updates: off is locked, not on"),
        (("--install-to", "oem:/sysext"), "not oem:/sysext/FILE"),
        (("--install-to", "root:/opt/extensions"), "root:/opt/extensions/NAME/FILE is locked"),
        (("--fetch", "wasmtime@1.0"), f"the version of wasmtime: {FILE} is locked, not 1.0"),
        (("--fetch", f"tools:{FILE}"), "the sysexts: wasmtime is locked, not tools"),
        (("--fetch", "wasmtime:wasmtime-2-x86-64.raw"), "not wasmtime-2-x86-64.raw"),
    ],
)
def test_another_bake_than_the_locked_one_is_refused(copy, stand_in, words, complaint):
    if any("wasmtime" in word for word in words):
        words = ("-v", "qemu_uefi", "-o", copy / "out", *words)
    assert complaint in locked(copy, stand_in, *words)


def test_another_time_is_refused(copy, stand_in):
    assert "SOURCE_DATE_EPOCH" in locked(copy, stand_in, SOURCE_DATE_EPOCH="5")


def test_a_well_signed_file_with_another_digest_is_refused(copy, stand_in):
    text = (copy / "bake.lock").read_text()
    digest = text.partition('kind = "image"')[2].partition('sha256 = "')[2][:64]
    edit(copy, digest, "0" * 64)
    said = locked(copy, stand_in)
    assert f"the image flatcar_production_qemu_uefi_image.img: {'0' * 64} is locked, not {digest}" in said


def test_a_file_that_is_not_in_the_lock_is_refused(copy, stand_in):
    edit(copy, 'kind = "image"', 'kind = "picture"')
    assert "the image flatcar_production_qemu_uefi_image.img: no such file is locked" in locked(copy, stand_in)


@pytest.mark.parametrize("key", ["sha256", "config_sha256"])
def test_another_sysext_or_config_is_refused(copy, stand_in, key):
    text = (copy / "bake.lock").read_text()
    digest = text.partition("[[sysexts]]")[2].partition(f'\n{key} = "')[2][:64]
    edit(copy, digest, "1" * 64)
    done = flatcar_bake("bake", "--locked", env=environment(stand_in, copy), cwd=copy)
    assert done.returncode == 3, done.stderr
    assert "1" * 64 in done.stderr


def test_local_sysexts_and_their_configs_are_pinned(copy, stand_in):
    local = copy / FILE
    shutil.copy(stand_in / "extensions" / FILE, local)
    shutil.copy(stand_in / "extensions/wasmtime.conf", copy)
    words = ("-v", "qemu_uefi", "-o", copy / "out", f"wasmtime:{local}")
    env = environment(stand_in, copy)
    assert "the origin of wasmtime: bakery is locked, not local" in locked(copy, stand_in, *words)
    done = flatcar_bake(*words, "--lock", env=env, cwd=copy)
    assert done.returncode == 0, done.stderr
    shutil.rmtree(copy / "out")
    (copy / "wasmtime.conf").write_text((copy / "wasmtime.conf").read_text() + "# changed\n")
    assert "the sha256 of wasmtime.conf" in locked(copy, stand_in, *words)
    (copy / "wasmtime.conf").unlink()
    assert "the config of wasmtime: wasmtime.conf is locked, not none" in locked(copy, stand_in, *words)
    with local.open("ab") as file:
        file.write(b"\0" * 4096)
    assert f"the sha256 of {FILE}" in locked(copy, stand_in, *words)


def test_an_image_of_the_users_own_is_pinned(folder, copy, stand_in):
    own = copy / "own.img"
    os.link(folder / "out/flatcar_production_qemu_uefi_image.img", own)
    hello = next((stand_in / "extensions").glob("hello-*-x86-64.raw"))
    words = ("--image", own, "-v", "qemu_uefi", "-o", copy / "out", f"hello:{hello}")
    env = environment(stand_in, copy)
    done = flatcar_bake(*words, "--lock", env=env, cwd=copy)
    assert done.returncode == 0, done.stderr
    assert "[release]" not in (copy / "bake.lock").read_text()
    again = flatcar_bake(*words, "--locked", "--force", env=env, cwd=copy)
    assert again.returncode == 0, again.stderr
    shutil.rmtree(copy / "out")
    own.unlink()
    shutil.copy(folder / "out/flatcar_production_qemu_uefi_efi_vars.qcow2", own)
    assert "the image: " in locked(copy, stand_in, *words)


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("format = 1", "format = 2", "format 2"),
        ("format = 1", "format = ", "not valid TOML"),
        ('arch = "x86-64"', 'arch = "sparc"', "'sparc' is no arch"),
        ('channel = "stable"', 'channel = "stabel"', "'stabel' is no channel"),
        ("epoch = ", "epoch = 0\nepok = ", "unknown key 'epok'"),
        ("updates = false", "", "lacks the key 'updates'"),
        ('kind = "image"', "kind = 1", "kind must be a str"),
    ],
)
def test_a_damaged_lock_is_explained(copy, stand_in, old, new, complaint):
    edit(copy, old, new)
    done = flatcar_bake("bake", "--locked", env=environment(stand_in, copy), cwd=copy)
    assert done.returncode == 2, done.stderr
    assert complaint in done.stderr and "bake.lock" in done.stderr


def test_lock_goes_neither_with_locked_nor_with_plan(copy, stand_in):
    for word in ("--locked", "--plan"):
        done = flatcar_bake("bake", "--lock", word, env=environment(stand_in, copy), cwd=copy)
        assert done.returncode == 2 and "does not go with --locked or --plan" in done.stderr


def test_a_missing_lock_is_said(copy, stand_in):
    (copy / "bake.lock").unlink()
    done = flatcar_bake("bake", "--locked", env=environment(stand_in, copy), cwd=copy)
    assert done.returncode == 2 and "bake.lock" in done.stderr


def test_a_bake_that_fails_writes_no_lock(copy, stand_in):
    (copy / "bake.lock").unlink()
    done = flatcar_bake("bake", "--lock", "--fetch", "-o", "out", "none@1", env=environment(stand_in, copy), cwd=copy)
    assert done.returncode == 2
    assert not (copy / "bake.lock").exists()
