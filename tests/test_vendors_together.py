"""Several vendors from one bake: each gets its own image, and one that fails does not take the others with it."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from cli import flatcar_bake
from tiny import RELEASE, TinyRelease, tiny_disk, tiny_release, tiny_sysext

from baker.disk import read_table
from baker.offline import OfflineEditor
from baker.run import run
from baker.sparse import file_sha256

MIB = 1 << 20
DISK = 168 * MIB
_QCOW2 = 'format = "qcow2"\noptions = { compat = "0.10" }\ncompress = true'
_RULE = '[[rule]]\nname = "small"\nmeasure = "file"\nat_most = "1 MiB"\nsays = "{} takes 1 MiB"\nsource = "us"'
# name: (file, [disk], further keys, further tables)
VENDORS = {
    "one": ("one.qcow2", _QCOW2, "", ""),
    "two": ("two.qcow2", _QCOW2, "", ""),
    "exact": ("exact.qcow2", f'{_QCOW2}\nsize = "200 MiB"', "", ""),
    "azured": ("azured.vhd", 'format = "vpc"\noptions = { subformat = "fixed" }\nalign = "64 MiB"', "", ""),
    "streamed": (
        "streamed.vmdk",
        'format = "vmdk"\noptions = { subformat = "streamOptimized", adapter_type = "lsilogic" }',
        "",
        "",
    ),
    "packed": ("packed.bin", 'format = "raw"', 'compress = "gz"', ""),
    "picky": ("picky.bin", 'format = "raw"', "", _RULE.format("Picky")),
    "choosy": ("choosy.bin", 'format = "raw"', "", _RULE.format("Choosy")),
}
GOOD = [name for name in VENDORS if name not in ("picky", "choosy")]
SIZES = {"exact": 200 * MIB, "azured": 192 * MIB}


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TinyRelease]:
    folder = tmp_path_factory.mktemp("together")
    with tiny_release(tiny_disk(folder / "disk"), folder / "release") as running:
        for name, (image, disk, keys, tables) in VENDORS.items():
            Path(running.env["FLATCAR_BAKE_VENDORS"], f"{name}.toml").write_text(
                f'summary = "{name}"\narches = ["x86-64"]\nlayout = "base"\nimage = "{image}"\n{keys}\n'
                f'[disk]\n{disk}\n[oem]\nid = "{name}"\nsysext = "tiny"\nlinux_append = "given"\n{tables}\n'
            )
        running.env["FLATCAR_BAKE_CACHE_DIR"] = str(folder / "cache")
        yield running


@pytest.fixture(scope="module")
def sysext(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_sysext(tmp_path_factory.mktemp("sysext"))


def result(folder: Path, name: str, work: Path) -> Path:
    """The raw disk of a vendor's finished file."""
    image, disk, keys, _ = VENDORS[name]
    raw = work / f"{name}.raw"
    file = folder / image
    if keys:
        (work / image).write_bytes(run(["gzip", "-dc", folder / f"{image}.gz"]).stdout)
        file = work / image
    run(["qemu-img", "convert", "-f", disk.split('"')[1], "-O", "raw", file, raw])
    return raw


def check(raw: Path, name: str, sysext: Path | None, work: Path, append: str = "given") -> None:
    """That a disk has the vendor's size, a sound partition table, its OEM content and the sysext."""
    assert raw.stat().st_size == SIZES.get(name, DISK)
    assert "No problems found" in run(["sgdisk", "-v", raw]).text
    run(["e2fsck", "-fn", f"{raw}?offset={read_table(raw).get('ROOT').offset}"])
    with OfflineEditor(raw, work, 0) as editor:
        grub = (editor.read("OEM", "/grub.cfg") or b"").decode()
        assert f'set oem_id="{name}"' in grub
        assert append in grub
        assert f"/sysext/oem-tiny-{RELEASE.version}.raw" in editor.tree("OEM", "/sysext")
        if sysext is not None:
            node = editor.tree("ROOT", "/opt/extensions")["/opt/extensions/tools/tools.raw"]
            assert node.sha256 == file_sha256(sysext)


def test_every_vendor_gets_its_own_image_from_one_bake(release: TinyRelease, sysext: Path, tmp_path: Path) -> None:
    words = ("-v", ",".join(GOOD[:4]), "-v", ",".join(GOOD[4:]), "--kernel-arg", "quiet", f"tools:{sysext}")
    outs = [tmp_path / "out", tmp_path / "again"]
    for out, jobs in zip(outs, ("3", "1"), strict=True):
        done = flatcar_bake(*words, "-j", jobs, "-o", out, env=release.env)
        assert done.returncode == 0, done.stderr
        assert all(f"{name} is done: " in done.stderr for name in GOOD)
    assert (outs[0] / "SHA256SUMS").read_bytes() == (outs[1] / "SHA256SUMS").read_bytes()
    for name in GOOD:
        check(result(outs[0], name, tmp_path), name, sysext, tmp_path, 'set linux_append="$linux_append quiet"')
    records = json.loads((outs[0] / "bake-manifest.json").read_text())["outputs"]
    assert {item["vendor"]: item["format"] for item in records if item["vendor"]} == {
        "one": "qcow2", "two": "qcow2", "exact": "qcow2", "azured": "vpc", "streamed": "vmdk", "packed": "raw.gz"
    }  # fmt: skip
    assert "failed" not in records


def test_one_that_fails_is_told_and_the_others_are_kept(release: TinyRelease, sysext: Path, tmp_path: Path) -> None:
    out, lock = tmp_path / "out", tmp_path / "bake.lock"
    done = flatcar_bake(
        "-v", "one,picky,packed", "-o", out, f"tools:{sysext}", "--lock", "--lock-file", lock, env=release.env
    )
    assert done.returncode == 6, done.stderr
    assert "1 of 3 vendors failed: picky: Picky takes 1 MiB" in done.stderr
    assert "Complete are: one, packed." in done.stderr
    assert {path.name for path in out.iterdir()} == {
        "one.qcow2", "packed.bin.gz", "bake-manifest.json", "bake-sbom.spdx.json", "SHA256SUMS"
    }  # fmt: skip
    manifest = json.loads((out / "bake-manifest.json").read_text())
    assert [(item["vendor"], item["kind"]) for item in manifest["failed"]] == [("picky", "image")]
    assert flatcar_bake("verify", out / "bake-manifest.json").returncode == 0
    assert not lock.exists()


@pytest.mark.parametrize("names", ["picky", "picky,choosy"])
def test_when_all_fail_nothing_is_published(names: str, release: TinyRelease, sysext: Path, tmp_path: Path) -> None:
    done = flatcar_bake("-v", names, "-o", tmp_path / "out", f"tools:{sysext}", env=release.env)
    assert done.returncode == 6, done.stderr
    assert "error: picky: Picky takes 1 MiB" in done.stderr
    assert list((tmp_path / "out").iterdir()) == []


def test_names_are_settled_before_any_work(release: TinyRelease, sysext: Path, tmp_path: Path) -> None:
    folder = tmp_path / "vendors"
    folder.mkdir()
    twin = (Path(release.env["FLATCAR_BAKE_VENDORS"]) / "one.toml").read_text()
    (folder / "twin.toml").write_text(twin)
    env = release.env | {"FLATCAR_BAKE_VENDORS": f"{release.env['FLATCAR_BAKE_VENDORS']}:{folder}"}
    for names, sentence in (("one,twin", "both write one.qcow2"), ("one,,two", "name is missing")):
        done = flatcar_bake("-v", names, "-o", tmp_path / "out", f"tools:{sysext}", env=env)
        assert (done.returncode, sentence in done.stderr) == (2, True), done.stderr
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def baked(release: TinyRelease, sysext: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The image of `one`, baked earlier."""
    out = tmp_path_factory.mktemp("baked") / "out"
    done = flatcar_bake("-v", "one", "-o", out, f"tools:{sysext}", env=release.env)
    assert done.returncode == 0, done.stderr
    return out / "one.qcow2"


def test_an_image_baked_earlier_becomes_that_of_other_vendors(
    release: TinyRelease, sysext: Path, baked: Path, tmp_path: Path
) -> None:
    done = flatcar_bake(
        "convert", baked, "-v", "two,streamed,exact", "--release", RELEASE.version, "--kernel-arg", "a=b", "--json",
        "-o", tmp_path / "out", env=release.env,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["sysexts"] == []
    for name in ("two", "streamed", "exact"):
        check(result(tmp_path / "out", name, tmp_path), name, sysext, tmp_path, 'set linux_append="$linux_append a=b"')


def test_a_conversion_without_release_keeps_the_oem_partition_and_says_so(
    release: TinyRelease, sysext: Path, baked: Path, tmp_path: Path
) -> None:
    done = flatcar_bake("convert", baked, "-v", "packed", "-v", "one", "-o", tmp_path / "out", env=release.env)
    assert done.returncode == 0, done.stderr
    assert "is that of one, and packed needs that of packed" in done.stderr
    assert "and one needs" not in done.stderr
    check(result(tmp_path / "out", "one", tmp_path), "one", sysext, tmp_path)
    with_other = result(tmp_path / "out", "packed", tmp_path)
    check(with_other, "one", sysext, tmp_path)
    refused = flatcar_bake("convert", baked, "-o", tmp_path / "out")
    assert (refused.returncode, "No vendor was given" in refused.stderr) == (2, True)
