"""Images that try to get out of the folder, to read from elsewhere or to fill the disk: nothing outside changes."""

from __future__ import annotations

import hashlib
import json
import os
import stat
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oci_images import Entry, add_image, entry, folder, hard, layer, link, put_blob, rootfs, write_index, write_layout

from baker.console import Console
from baker.errors import EnvironmentFault, ImageError, UsageError, VerificationError
from baker.model import Arch
from baker.oci.images import open_file
from baker.oci.pull import Wanted
from baker.oci.reference import ImageFile, parse_image
from baker.oci.rootfs import make_rootfs
from baker.oci.unpack import unpack
from baker.recipe.landing import Limits


def unpacked(image: Path, target: Path, devices: bool = True) -> None:
    make_rootfs(Wanted(parse_image(str(image)), Arch.X86_64), target, Console(), devices=devices)


Layers = list[list[Entry]]
DEVICE = {"type": tarfile.BLKTYPE, "devmajor": 7, "devminor": 201, "mode": 0o666}

REFUSED: dict[str, tuple[Layers, str]] = {
    "dots": ([[entry("../x", b"x")]], r"layer 1 .*the entry \.\./x has a name with `\.\.`"),
    "dots inside": ([[entry("a/../../x", b"x")]], r"a name with `\.\.`"),
    "whiteout of dots": ([[entry("a")], [entry(".wh...")]], "layer 2 .*whiteout of no name"),
    "whiteout of a dot": ([[entry("a")], [entry(".wh..")]], "whiteout of no name"),
    "whiteout of nothing": ([[entry("a")], [entry(".wh.")]], "whiteout of no name"),
    "whiteout by dots": ([[entry("a")], [entry("../.wh.victim")]], r"a name with `\.\.`"),
    "below a whiteout": ([[entry("a")], [entry(".wh.a/x", b"x")]], "lies below a whiteout"),
    "hard link out": ([[hard("a", "../victim/kept")]], r"a name with `\.\.`"),
    "hard link to a host file": ([[hard("a", "/etc/passwd")]], "is no file before it"),
    "hard link by a link": ([[link("d", "/etc"), hard("a", "d/passwd")]], "is no file before it"),
    "hard link to itself": ([[entry("a", b"x"), hard("a", "a")]], "a hard link to itself"),
    "hard link in place of its folder": ([[entry("a/b", b"x"), hard("a", "a/b")]], "a hard link to itself"),
    "hard link to a folder": ([[folder("a"), hard("b", "a")]], "is no file before it"),
    "circle": ([[link("a", "b"), link("b", "a"), entry("a/x", b"x")]], "leads in a circle of links"),
    "file and folder": ([[entry("a", b"x"), entry("a/b", b"x")]], "lies below something that is no folder"),
    "below a device": ([[entry("a", **DEVICE), entry("a/b", b"x")]], "lies below something that is no folder"),
    "unknown kind": ([[entry("a", type=b"Z")]], "is neither"),
    "empty link": ([[link("a", "")]], "a link to an impossible name"),
    "long link": ([[link("a", "x" * 5000)]], "a link to an impossible name"),
    "long name": ([[entry("n" * 300, b"x")]], "an impossible name"),
    "very deep": ([[entry("d/" * 3000 + "x", b"x")]], "lies more than 200 folders deep|an impossible name"),
    "deep by links": ([[link("l", "d/" * 150), entry("l/" + "e/" * 100 + "x")]], "lies more than 200 folders deep"),
    "no such owner": ([[entry("a", b"x", uid=-2)]], "which no system knows"),
}  # fmt: skip


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    """A folder beside the one that is unpacked to, with a file that must stay as it is."""
    place = tmp_path / "victim"
    place.mkdir()
    (place / "kept").write_text("kept")
    return place


@pytest.mark.parametrize("case", REFUSED)
def test_a_hostile_layer_is_refused_by_entry(tmp_path: Path, victim: Path, case: str) -> None:
    layers, message = REFUSED[case]
    layout = write_layout(tmp_path / "layout", *layers)
    with pytest.raises(ImageError, match=message):
        unpacked(layout, tmp_path / "root")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["layout", "victim"]
    assert (victim / "kept").read_text() == "kept"


def escapes(victim: Path) -> dict[str, Layers]:
    """Layers that write to `victim`, or remove from it, unless everything stays in the folder."""
    up = "../" * 30 + str(victim).lstrip("/")
    return {
        "absolute link": [[link("d", str(victim)), entry("d/new", b"x")]],
        "link by dots": [[link("d", up), entry("d/new", b"x")]],
        "link of a lower layer": [[link("d", str(victim))], [entry("d/new", b"x"), entry("d/kept", b"x")]],
        "link to a link": [[link("a", str(victim)), link("b", "a"), entry("b/kept", b"x")]],
        "link over a link": [[link("d", "here"), link("d", str(victim)), entry("d/kept", b"x")]],
        "folder entry on a link": [[link("d", up)], [folder("d"), entry("d/kept", b"x")]],
        "file over a link": [[link("d", str(victim / "kept"))], [entry("d", b"x")]],
        "whiteout through a link": [[link("d", str(victim))], [entry("d/.wh.kept")]],
        "opaque through a link": [[link("d", up)], [entry("d/.wh..wh..opq")]],
        "opaque root": [[link("d", up), entry("e")], [entry(".wh..wh..opq")]],
        "whiteout of a link": [[link("d", str(victim))], [entry(".wh.d")]],
        "folder in place of a link": [[link("d", str(victim))], [folder("d", mode=0o777), entry("d/kept", b"x")]],
        "hard link to a link": [[link("a", str(victim / "kept")), hard("b", "a")], [entry("b", b"x")]],
        "modes by a link": [[link("d", str(victim / "kept")), entry("d", b"x", mode=0o4777, uid=1234)]],
        "absolute name": [[entry(str(victim / "kept"), b"x")]],
        "device in place of a link": [[link("d", str(victim / "kept"))], [entry("d", **DEVICE)]],
        "writing to a device": [[entry("d", **DEVICE)], [entry("d", b"x" * 4096)]],
        "root becomes a link": [[link(".", str(victim)), link("/", up), entry("x", b"x")]],
        "root becomes a file": [[entry("./", b""), entry("/", b"x")]],
    }


@pytest.mark.parametrize("case", escapes(Path("/x")))
def test_nothing_outside_changes(tmp_path: Path, victim: Path, case: str) -> None:
    before = (rootfs(victim), victim.stat().st_mtime_ns, (victim / "kept").stat().st_ctime_ns)
    layout = write_layout(tmp_path / "layout", *escapes(victim)[case])
    unpacked(layout, tmp_path / "root")
    assert (rootfs(victim), victim.stat().st_mtime_ns, (victim / "kept").stat().st_ctime_ns) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["layout", "root", "victim"]
    assert (tmp_path / "root").is_dir() and not (tmp_path / "root").is_symlink()


def test_the_folder_of_a_link_is_the_image_s_own(tmp_path: Path, victim: Path) -> None:
    unpacked(write_layout(tmp_path / "layout", *escapes(victim)["absolute link"]), tmp_path / "root")
    assert (tmp_path / "root" / str(victim).lstrip("/") / "new").read_text() == "x"
    assert os.readlink(tmp_path / "root/d") == str(victim)


def test_device_nodes_are_made_only_when_asked_for(tmp_path: Path) -> None:
    overlay = entry("deleted", type=tarfile.CHRTYPE, devmajor=0, devminor=0)
    layout = write_layout(tmp_path / "layout", [entry("disk", **DEVICE), overlay])
    unpacked(layout, tmp_path / "without", devices=False)
    assert not list((tmp_path / "without").iterdir())
    unpacked(layout, tmp_path / "with")
    assert [path.name for path in (tmp_path / "with").iterdir()] == ["disk"]
    assert stat.S_ISBLK((tmp_path / "with/disk").stat().st_mode)
    assert stat.S_IMODE((tmp_path / "with").stat().st_mode) == 0o700, "or everybody could open the disk"


NAMES = st.lists(st.sampled_from(["a", "b", "c", ".wh.a", ".wh..wh..opq"]), min_size=1, max_size=3).map("/".join)
TARGETS = st.lists(st.sampled_from(["a", "b", "..", ".", ""]), min_size=1, max_size=4).map("/".join)
ENTRIES = st.one_of(
    st.builds(entry, NAMES, st.just(b"x")),
    st.builds(folder, NAMES),
    st.builds(link, NAMES, TARGETS),
    st.builds(hard, NAMES, NAMES),
)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.lists(ENTRIES, max_size=5), min_size=1, max_size=3))
def test_any_layers_stay_inside(tmp_path_factory: pytest.TempPathFactory, layers: Layers) -> None:
    """Whatever they say, they give a tree or an error of ours, and leave everything beside it alone."""
    around = tmp_path_factory.mktemp("around")
    inner = around / "a" / "b"
    inner.mkdir(parents=True)
    (around / "c").write_text("c")
    write_layout(inner / "layout", *layers)
    before = {name: facts for name, facts in rootfs(around).items() if name != "a/b"}
    try:
        unpacked(inner / "layout", inner / "root")
        (inner / "root").rename(inner / "done")
        kept = inner / "done"
        # The model knows exactly what is on the disk: what it says is a folder is one.
        assert not any(path.name.startswith(".wh.") for path in kept.rglob("*"))
    except ImageError:
        assert not (inner / "root").exists()
    after = {name: facts for name, facts in rootfs(around).items() if name != "a/b" and "a/b/done" not in name}
    assert after == before


def test_bombs(tmp_path: Path) -> None:
    def small(layout: Path, name: str, limits: Limits) -> None:
        image = open_file(ImageFile(layout, "", ""), Arch.X86_64, tmp_path)
        unpack(image, "bomb", tmp_path / name, Console(), limits=limits)

    layers = [[entry("a", bytes(600_000))], [entry("a", bytes(600_000))]]
    layout = write_layout(tmp_path / "large", *layers)
    with pytest.raises(ImageError, match="layer 2 of bomb: the entry a makes it unpack to more than 1000000 bytes"):
        small(layout, "large-root", Limits(floor=1_000_000))
    layout = write_layout(tmp_path / "many", [entry(f"{number}") for number in range(11)])
    with pytest.raises(ImageError, match="the entry 10 is one of too many"):
        small(layout, "many-root", Limits(entries=10))


def rewritten(layout: Path, change: Callable[[dict[str, object]], None]) -> None:
    """Change the manifest of a layout's only image, with a true digest."""
    index = json.loads((layout / "index.json").read_text())
    row = index["manifests"][0]
    manifest = json.loads((layout / "blobs" / row["digest"].replace(":", "/")).read_text())
    change(manifest)
    write_index(layout, row | put_blob(layout, json.dumps(manifest).encode()))


def broken_layouts(layout: Path) -> dict[str, Callable[[], None]]:
    """Ways to break a layout with one layer."""
    index = json.loads((layout / "index.json").read_text())
    row = index["manifests"][0]
    manifest = json.loads((layout / "blobs" / row["digest"].replace(":", "/")).read_text())
    blob = layout / "blobs" / manifest["layers"][0]["digest"].replace(":", "/")
    away = layout.parent / "away"
    config = layout / "blobs" / manifest["config"]["digest"].replace(":", "/")

    def lie(diff_ids: object) -> None:
        said = json.loads(config.read_text())
        said["rootfs"]["diff_ids"] = diff_ids
        rewritten(layout, lambda manifest: manifest.update(
            config=manifest["config"] | put_blob(layout, json.dumps(said).encode())  # type: ignore[operator]
        ))  # fmt: skip

    def layers(*rows: dict[str, str]) -> None:
        rewritten(layout, lambda manifest: manifest.update(layers=list(rows)))

    return {
        "layer": lambda: void(blob.write_bytes(blob.read_bytes()[:-1] + b"x")),
        "layer cut": lambda: os.truncate(blob, 50),
        "config": lambda: void(config.write_bytes(config.read_bytes() + b" ")),
        "manifest": lambda: void((layout / "blobs" / row["digest"].replace(":", "/")).write_text("{}")),
        "diff id": lambda: lie([f"sha256:{'0' * 64}"]),
        "no diff ids": lambda: lie([]),
        "odd diff ids": lambda: lie([7]),
        "missing layer": blob.unlink,
        "layer is a link out": lambda: void((blob.rename(away), blob.symlink_to(away))),
        "layer is a folder": lambda: void((blob.unlink(), blob.mkdir())),
        "layer is a pipe": lambda: void((blob.unlink(), os.mkfifo(blob))),
        "digest by dots": lambda: layers({"digest": "sha256:../../../../etc/passwd"}),
        "odd digest": lambda: layers({"digest": "md5:0"}),
        "encrypted": lambda: layers(manifest["layers"][0] | {
            "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip+encrypted"}),
        "no layers": lambda: layers(),
        "index is no JSON": lambda: void((layout / "index.json").write_text("{")),
        "deep JSON": lambda: void((layout / "index.json").write_text("[" * 100_000)),
        "index is a list": lambda: void((layout / "index.json").write_text("[]")),
        "large index": lambda: os.truncate(layout / "index.json", 5 << 20),
        "index of itself": lambda: void(write_index(layout, row | {
            "mediaType": "application/vnd.oci.image.index.v1+json"})),
        "another system": lambda: void(write_index(layout, add_image(layout, [layer(entry("x"))], os="windows"))),
        "another machine": lambda: void(write_index(layout, add_image(layout, [layer(entry("x"))], arch="s390x"))),
    }  # fmt: skip


def void(_: object) -> None:
    """For lambdas."""


@pytest.mark.parametrize("case", [
    "layer", "layer cut", "config", "manifest", "diff id", "no diff ids", "odd diff ids", "missing layer",
    "layer is a link out", "layer is a folder", "layer is a pipe", "digest by dots", "odd digest", "encrypted",
    "no layers", "index is no JSON", "deep JSON", "index is a list", "large index", "index of itself",
    "another system", "another machine",
])  # fmt: skip
def test_a_broken_layout_gives_nothing(tmp_path: Path, case: str) -> None:
    layout = write_layout(tmp_path / "layout", [entry("x", b"content" * 100)])
    broken_layouts(layout)[case]()
    with pytest.raises((ImageError, VerificationError, UsageError)):
        unpacked(layout, tmp_path / "root")
    assert not (tmp_path / "root").exists() and not list(tmp_path.glob(".flatcar*"))


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "link", "missing", "."])
def test_a_saved_image_names_only_files_of_its_own(tmp_path: Path, name: str) -> None:
    data = layer(entry("x", b"x"))
    config = {"architecture": "amd64", "os": "linux",
              "rootfs": {"diff_ids": [f"sha256:{hashlib.sha256(data).hexdigest()}"]}}  # fmt: skip
    (tmp_path / "secret").write_bytes(data)
    archive = tmp_path / "image.tar"
    listed = json.dumps([{"Config": "config.json", "RepoTags": ["a:1"], "Layers": [name]}]).encode()
    archive.write_bytes(layer(
        entry("manifest.json", listed), entry("config.json", json.dumps(config).encode()), entry("layer.tar", data),
    ))  # fmt: skip
    with pytest.raises(ImageError, match=r"lies outside|lacks|is no file"):
        unpacked(archive, tmp_path / "root")
    assert not (tmp_path / "root").exists()


def test_a_full_disk_is_named(tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    layout = write_layout(tmp_path / "layout", [entry("x", os.urandom(3 << 20))])
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "none", small], check=True)
    try:
        with pytest.raises(EnvironmentFault, match="No space left"):
            unpacked(layout, small / "root")
        assert not list(small.iterdir())
    finally:
        subprocess.run(["umount", small], check=True)
