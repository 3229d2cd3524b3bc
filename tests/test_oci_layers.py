"""Layers become the tree that they describe: by umoci's judgement, and by the rules of the image-spec."""

from __future__ import annotations

import os
import stat
import subprocess
import tarfile
import tempfile
from pathlib import Path

import pytest
from cli import flatcar_bake
from hypothesis import given, settings
from hypothesis import strategies as st
from oci_images import (
    CAPABILITY,
    Entry,
    add_image,
    add_index,
    by_umoci,
    entry,
    folder,
    hard,
    layer,
    link,
    make_rich_image,
    rootfs,
    write_index,
    write_layout,
)
from packs import AS_NOBODY, NOBODY

from baker.console import Console
from baker.contents import open_contents
from baker.errors import ImageError, UsageError
from baker.model import Arch
from baker.oci.pull import Wanted
from baker.oci.reference import ImageName, image_arch, parse_image
from baker.oci.rootfs import Rootfs, make_rootfs


def unpacked(image: Path | str, target: Path, devices: bool = False) -> Rootfs:
    return make_rootfs(Wanted(parse_image(str(image)), Arch.X86_64), target, Console(), devices=devices)


@pytest.mark.parametrize("tag", ["lower", "upper"])
def test_an_image_made_by_umoci_is_what_umoci_unpacks(tmp_path: Path, tag: str) -> None:
    layout = make_rich_image(tmp_path)
    made = unpacked(f"oci:{layout}:{tag}", tmp_path / "root", devices=True)
    wanted = by_umoci(layout, tag, tmp_path / "judge")
    assert rootfs(tmp_path / "root") == wanted
    assert made.paths == len(wanted) and not made.left_out.devices
    assert stat.S_IMODE((tmp_path / "root").stat().st_mode) == 0o700
    assert len(wanted) > 25 and ("gone" in wanted) == (tag == "lower")


@pytest.mark.parametrize("kind", ["oci-archive", "docker-archive"])
def test_archives_hold_the_same_tree(tmp_path: Path, kind: str) -> None:
    layout = make_rich_image(tmp_path)
    archive = tmp_path / "image.tar"
    copied = ["skopeo", "copy", "--quiet", f"oci:{layout}:upper", f"{kind}:{archive}:docker.io/library/mine:1"]
    subprocess.run(copied, check=True)
    unpacked(f"oci:{layout}:upper", tmp_path / "root")
    unpacked(archive, tmp_path / "found")
    unpacked(f"{kind}:{archive}:mine:1", tmp_path / "named")
    wanted = rootfs(tmp_path / "root")
    assert rootfs(tmp_path / "found") == wanted and rootfs(tmp_path / "named") == wanted
    with pytest.raises(UsageError, match="no image 'other:1'"):
        unpacked(f"{kind}:{archive}:other:1", tmp_path / "other")


@pytest.mark.parametrize("packing", ["tar", "tar+gzip", "tar+zstd"])
def test_every_compression_of_layers(tmp_path: Path, packing: str) -> None:
    layout = write_layout(
        tmp_path / "layout", [folder("a"), entry("a/x", b"1")], [entry("a/y", b"2")], packing=packing
    )
    unpacked(layout, tmp_path / "root")
    assert texts(tmp_path / "root") == {"a": "/", "a/x": "1", "a/y": "2"}


def texts(root: Path) -> dict[str, str]:
    """Path → content, `-> target` or `/` for a folder."""
    found = {}
    for path in sorted(root.rglob("*")):
        text = f"-> {os.readlink(path)}" if path.is_symlink() else "/" if path.is_dir() else path.read_text()
        found[str(path.relative_to(root))] = text
    return found


BELOW = [folder("d"), entry("d/x", b"1"), entry("d/y", b"2"), folder("d/e"), entry("d/e/z", b"3"), link("l", "d")]
BELOW_TEXTS = {"d": "/", "d/x": "1", "d/y": "2", "d/e": "/", "d/e/z": "3", "l": "-> d"}

CASES: dict[str, tuple[list[Entry], dict[str, str | None]]] = {
    "whiteout of a file": ([entry("d/.wh.x")], {"d/x": None}),
    "whiteout of a folder": ([entry("d/.wh.e")], {"d/e": None, "d/e/z": None}),
    "whiteout of a link leaves what it leads to": ([entry(".wh.l")], {"l": None}),
    "whiteout by way of a link": ([entry("l/.wh.x")], {"d/x": None}),
    "whiteout of nothing": ([entry("d/.wh.no"), entry("no/.wh.no")], {}),
    "whiteout before what is new": ([entry(".wh.d"), entry("d/n", b"n")],
                                    {"d/x": None, "d/y": None, "d/e": None, "d/e/z": None, "d/n": "n"}),
    "whiteout behind what is new": ([entry("d/n", b"n"), entry(".wh.d")],
                                    {"d/x": None, "d/y": None, "d/e": None, "d/e/z": None, "d/n": "n"}),
    "opaque": ([folder("d"), entry("d/.wh..wh..opq"), entry("d/n", b"n")],
               {"d/x": None, "d/y": None, "d/e": None, "d/e/z": None, "d/n": "n"}),
    "opaque at the end": ([folder("d"), folder("d/e"), entry("d/n", b"n"), entry("d/.wh..wh..opq")],
                          {"d/x": None, "d/y": None, "d/e/z": None, "d/n": "n"}),
    "opaque root": ([entry(".wh..wh..opq"), entry("n", b"n")], dict.fromkeys(BELOW_TEXTS, None) | {"n": "n"}),
    "aufs": ([folder(".wh..wh.plnk"), entry(".wh..wh.plnk/1.2", b"x"), entry(".wh..wh.aufs")], {}),
    "file in place of a folder": ([entry("d/e", b"f")], {"d/e": "f", "d/e/z": None}),
    "folder in place of a file": ([entry("d/x/n", b"n")], {"d/x": "/", "d/x/n": "n"}),
    "folder in place of a link": ([folder("l"), entry("l/n", b"n")], {"l": "/", "l/n": "n"}),
    "through a link of a lower layer": ([entry("l/n", b"n")], {"d/n": "n"}),
    "over a file through a link": ([entry("l/x", b"new")], {"d/x": "new"}),
    "link in place of a file": ([link("d/x", "y")], {"d/x": "-> y"}),
    "the same file twice": ([entry("d/x", b"first"), entry("./d/x", b"second")], {"d/x": "second"}),
    "absolute names": ([entry("/d/x", b"new")], {"d/x": "new"}),
    "hard link to a lower layer": ([hard("n", "d/x")], {"n": "1"}),
    "hard link to a link": ([hard("n", "l")], {"n": "-> d"}),
    "hard link by way of a link": ([hard("n", "l/x")], {"n": "1"}),
    "hard link and whiteout of its first name": ([hard("n", "d/x"), entry("d/.wh.x")], {"n": "1", "d/x": None}),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_what_a_layer_does_to_those_below(tmp_path: Path, case: str) -> None:
    above, changes = CASES[case]
    unpacked(write_layout(tmp_path / "layout", BELOW, above), tmp_path / "root")
    wanted = {path: text for path, text in (BELOW_TEXTS | changes).items() if text is not None}
    assert texts(tmp_path / "root") == wanted


NAMES = st.sampled_from(["a", "b", "c", "a/b", "a/c", "b/c", "a/b/c"])


def whiteout(name: str) -> Entry:
    above, slash, last = name.rpartition("/")
    return entry(f"{above}{slash}.wh.{last}")


ENTRIES = st.one_of(
    st.builds(entry, NAMES, st.sampled_from([b"1", b"22"])),
    st.builds(lambda name, mode: folder(name, mode), NAMES, st.sampled_from([0o755, 0o700])),
    st.builds(link, NAMES, st.sampled_from(["a", "../b", "/a/b", "c", "/nowhere"])),
    st.builds(whiteout, NAMES),
    st.builds(lambda name: entry(f"{name}/.wh..wh..opq"), NAMES),
    st.builds(hard, NAMES, NAMES),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(ENTRIES, min_size=1, max_size=4), min_size=1, max_size=3))
def test_random_layers_are_what_umoci_makes_of_them(
    tmp_path_factory: pytest.TempPathFactory, layers: list[list[Entry]]
) -> None:
    """Where both accept them: each refuses some that no image has, such as a file and something below it."""
    place = tmp_path_factory.mktemp("random")
    layout = write_layout(place / "layout", *layers)
    judge = subprocess.run(["umoci", "unpack", "--image", f"{layout}:1", place / "judge"], capture_output=True)
    try:
        unpacked(layout, place / "root")
    except ImageError:
        return
    if not judge.returncode:
        assert modes(place / "root") == modes(place / "judge/rootfs")


def modes(root: Path) -> dict[str, tuple[object, object]]:
    """Path → mode with type, and content. Times of folders depend on the order in which things are removed."""
    return {path: (facts[0], facts[5]) for path, facts in rootfs(root).items()}


def test_a_written_file_does_not_change_its_other_names(tmp_path: Path) -> None:
    """A new layer's file is a new file, also where the old one has another name."""
    layout = write_layout(tmp_path / "layout", [entry("a", b"old"), hard("b", "a")], [entry("a", b"new")])
    unpacked(layout, tmp_path / "root")
    assert texts(tmp_path / "root") == {"a": "new", "b": "old"}


def test_attributes_that_mean_something_elsewhere_are_left_out(tmp_path: Path) -> None:
    headers = {
        "SCHILY.xattr.trusted.overlay.opaque": "y", "SCHILY.xattr.security.selinux": "label",
        "SCHILY.xattr.user.note": "kept",
    }  # fmt: skip
    layout = write_layout(tmp_path / "layout", [entry("x", b"x", pax_headers=headers)])
    unpacked(layout, tmp_path / "root")
    assert os.listxattr(tmp_path / "root/x") == ["user.note"]


def test_one_image_is_chosen_by_architecture_and_name(tmp_path: Path) -> None:
    root = tmp_path / "layout"
    rows = []
    for arch in ("amd64", "arm64"):
        row = add_image(root, [layer(entry("arch", arch.encode()))], arch=arch)
        rows.append(row | {"platform": {"os": "linux", "architecture": arch}})
    rows.append(add_image(root, [layer(entry("x"))]) | {"platform": {"os": "unknown", "architecture": "unknown"}})
    for number, listed in enumerate((rows, [add_index(root, *rows)])):
        write_index(root, *listed)
        for arch, word in ((Arch.X86_64, "amd64"), (Arch.ARM64, "arm64")):
            make_rootfs(Wanted(parse_image(str(root)), arch), tmp_path / f"{word}-{number}", Console())
            assert texts(tmp_path / f"{word}-{number}") == {"arch": word}
    write_index(root, rows[0])
    with pytest.raises(UsageError, match="has no image for arm64") as caught:
        make_rootfs(Wanted(parse_image(str(root)), Arch.ARM64), tmp_path / "none", Console())
    assert caught.value.hint == "It has amd64."
    named = [
        add_image(root, [layer(entry(name))]) | {"annotations": {"org.opencontainers.image.ref.name": name}}
        for name in ("one", "two")
    ]
    write_index(root, *named)
    unpacked(f"oci:{root}:two", tmp_path / "two")
    assert texts(tmp_path / "two") == {"two": ""}
    with pytest.raises(UsageError, match="holds 2 images") as caught:
        unpacked(root, tmp_path / "both")
    assert "It has one, two." in (caught.value.hint or "")
    assert not (tmp_path / "none").exists() and not (tmp_path / "both").exists()


def test_an_ordinary_user_unpacks_a_layout(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Everything is theirs, can be read and removed; what only root can do is told."""
    made = make_rich_image(tmp_path_factory.mktemp("image"))
    with tempfile.TemporaryDirectory(prefix="flatcar-bake-nobody-") as name:
        home = Path(name)
        subprocess.run(["cp", "-r", made, home / "layout"], check=True)
        subprocess.run(["chown", "-R", f"{NOBODY}:{NOBODY}", home], check=True)
        env = {"HOME": name, "TMPDIR": name, "PYTHONPATH": str(Path(__file__).resolve().parents[1])}
        words = ("oci-rootfs", "oci:layout:lower", "root")
        done = flatcar_bake(*words, cwd=home, env=env, prefix=AS_NOBODY)
        assert done.returncode == 0, done.stderr
        assert done.stdout == f"{home}/root\n"
        assert "left out (--devices makes them): /dev/loop, /dev/null" in done.stderr
        assert "lack their capabilities, which only root can give: /usr/bin/ping" in done.stderr
        wanted = {path: facts for path, facts in by_umoci(made, "lower", home / "judge").items()
                  if path not in ("dev/null", "dev/loop")}  # fmt: skip
        found = rootfs(home / "root")
        assert found.keys() == wanted.keys()
        assert {facts[1:3] for facts in found.values()} == {(NOBODY, NOBODY)}
        for path, (mode, _, _, modified, _, content, _, first) in wanted.items():
            ours = 0o700 if str(mode).startswith("0o4") else 0o400
            mode = mode if str(mode).startswith("0o12") else oct(int(str(mode), 8) | ours)
            if path == "dev/initctl":
                mode = "0o10640"
            assert found[path][0] == mode and found[path][3] == modified, path
            assert (found[path][5], found[path][6], found[path][7]) == (content, (), first), path
        refused = flatcar_bake(*words, "--devices", "--force", cwd=home, env=env, prefix=AS_NOBODY)
        assert refused.returncode == 2 and "Only root can make device nodes" in refused.stderr
        again = flatcar_bake(*words, cwd=home, env=env, prefix=AS_NOBODY)
        assert again.returncode == 2 and "is not empty" in again.stderr
        forced = flatcar_bake(*words, "--force", cwd=home, env=env, prefix=AS_NOBODY)
        assert forced.returncode == 0 and rootfs(home / "root") == found
        assert sorted(path.name for path in home.iterdir()) == ["judge", "layout", "root"]
        subprocess.run([*AS_NOBODY, "rm", "-r", home / "root"], check=True)


def test_only_a_folder_of_its_own_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layout = write_layout(tmp_path / "layout", [entry("x")])
    wanted = Wanted(parse_image(str(layout)), Arch.X86_64)
    (tmp_path / "inner").mkdir()
    (tmp_path / "file").touch()
    monkeypatch.chdir(tmp_path / "inner")
    for place in (Path("/"), Path.home(), Path("/proc"), tmp_path, Path()):
        with pytest.raises(UsageError, match="cannot be replaced"):
            make_rootfs(wanted, place, Console(), force=True)
    for place, why in ((tmp_path / "file", "is no folder"), (tmp_path / "no/where", "There is no folder")):
        with pytest.raises(UsageError, match=why):
            make_rootfs(wanted, place, Console(), force=True)
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to("empty")
    make_rootfs(wanted, tmp_path / "link", Console())
    assert texts(tmp_path / "empty") == {"x": ""}


@pytest.mark.parametrize(
    ("word", "registry", "full"),
    [
        ("alpine", "", "docker.io/library/alpine:latest"),
        ("alpine:3.20", "", "docker.io/library/alpine:3.20"),
        ("x/y", "ghcr.io", "ghcr.io/x/y:latest"),
        ("x/y", "mirror.example:5000/all/", "mirror.example:5000/all/x/y:latest"),
        ("quay.io/x/y:1", "ghcr.io", "quay.io/x/y:1"),
        ("docker://quay.io/x/y:1", "", "quay.io/x/y:1"),
        ("localhost/mine", "", "localhost/mine:latest"),
        ("localhost:5000/a/b/c", "", "localhost:5000/a/b/c:latest"),
        (f"alpine:3@sha256:{'0' * 64}", "", f"docker.io/library/alpine:3@sha256:{'0' * 64}"),
    ],
)
def test_names_of_images(word: str, registry: str, full: str) -> None:
    name = parse_image(word, registry)
    assert isinstance(name, ImageName) and str(name) == full


@pytest.mark.parametrize("word", ["", "-v", "Alpine", "a b", "a@sha256:1", "a:", "x/../y", "$(id)", "-x.example/y"])
def test_what_is_no_name_of_an_image(word: str) -> None:
    with pytest.raises(UsageError, match="no name of an image"):
        parse_image(word)


def test_words_for_architectures() -> None:
    assert [image_arch(word) for word in ("", "amd64", "arm64", "arm64v8", "aarch64")] == [
        Arch.X86_64, Arch.X86_64, Arch.ARM64, Arch.ARM64, Arch.ARM64,
    ]  # fmt: skip
    with pytest.raises(UsageError, match="no architecture 'armv7'"):
        image_arch("armv7")


def test_an_image_of_a_sysext_is_packed(tmp_path: Path) -> None:
    unit = b"[Service]\nExecStart=/usr/bin/tool\n"
    layers = [
        [folder("usr"), folder("usr/bin"), entry("usr/bin/tool", b"#!/bin/sh\n", mode=0o755, uid=1000), folder("dev")],
        [entry("usr/lib/systemd/system/tool.service", unit), entry("usr/bin/old")], [entry("usr/bin/.wh.old")],
    ]  # fmt: skip
    layout = write_layout(tmp_path / "layout", *layers)
    words = ("oci-rootfs", layout, "tree", "--sysext", "tool", "--unit-enable", "tool.service")
    done = flatcar_bake(*words, cwd=tmp_path, env={"FORMAT": "erofs", "OS": "flatcar"})
    assert done.returncode == 0, done.stderr
    assert done.stdout == "tool.raw\n"
    with open_contents(tmp_path / "tool.raw") as opened:
        assert opened.fs == "erofs" and opened.contents is not None
        found = {path for path, node in opened.contents.nodes.items() if node.kind == "file"}
        release = opened.contents.read("/usr/lib/extension-release.d/extension-release.tool", 1000).decode()
    units = "/usr/lib/systemd/system"
    assert found == {
        "/usr/bin/tool", f"{units}/tool.service", f"{units}/multi-user.target.d/10-tool-service.conf",
        "/usr/lib/extension-release.d/extension-release.tool",
    }  # fmt: skip
    assert release == "ID=flatcar\nSYSEXT_LEVEL=1.0\nARCHITECTURE=x86-64\nEXTENSION_RELOAD_MANAGER=1\n"
    again = flatcar_bake(*words[:2], "other", *words[3:], cwd=tmp_path)
    assert again.returncode == 2 and "tool.raw exists" in again.stderr and not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([entry("usr/x"), entry("etc/y")], "with /etc in it"),
        ([folder("etc")], "neither /usr nor /opt"),
        ([link("usr", "/etc")], "/usr of the image is no folder"),
        ([entry("usr/pipe", type=tarfile.FIFOTYPE)], "usr/pipe is a device, pipe"),
        ([entry("usr/bin/su", mode=0o4755)], "set-user-id"),
    ],
)
def test_another_image_is_no_sysext(tmp_path: Path, entries: list[Entry], message: str) -> None:
    layout = write_layout(tmp_path / "layout", entries)
    done = flatcar_bake("oci-rootfs", layout, "tree", "--sysext", "x", cwd=tmp_path)
    assert done.returncode in (2, 6) and message in done.stderr
    assert not (tmp_path / "x.raw").exists()


def test_capabilities_are_kept_for_root(tmp_path: Path) -> None:
    text = CAPABILITY.decode("utf-8", "surrogateescape")
    headers = {"SCHILY.xattr.security.capability": text}
    unpacked(write_layout(tmp_path / "layout", [entry("ping", b"x", pax_headers=headers)]), tmp_path / "root")
    assert os.getxattr(tmp_path / "root/ping", "security.capability") == CAPABILITY
