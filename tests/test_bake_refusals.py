"""Bad input gets one clear sentence, the exit code of its kind, and nothing is lost or left behind."""

import http.server
import os
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from cli import flatcar_bake, release_environment
from disks import make_disk
from sysexts import make_sysext

from baker.model import SECTOR

GENERIC = "flatcar_production_image.bin"


@pytest.fixture
def env(stand_in: Path, tmp_path: Path) -> dict[str, str]:
    return release_environment(stand_in) | {"FLATCAR_BAKE_CACHE_DIR": str(tmp_path / "cache")}


@pytest.fixture
def out(tmp_path: Path) -> Path:
    folder = tmp_path / "out"
    folder.mkdir()
    return folder


@pytest.fixture
def tools(tmp_path: Path) -> Path:
    return make_sysext(tmp_path, "tools")


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    path = tmp_path / "disk.raw"
    make_disk(path)
    return path


def refused(done: subprocess.CompletedProcess[str], code: int, *sentences: str) -> None:
    assert done.returncode == code, (done.returncode, done.stderr)
    for sentence in sentences:
        assert sentence in done.stderr, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.count("error: ") == 1
    assert not done.stdout


def mirrored(stand_in: Path, folder: Path) -> tuple[Path, Path]:
    """A mirror of links to the stand-in release, whose release folder can be tampered with; returns both."""
    mirror = folder / "mirror"
    shutil.copytree(stand_in, mirror, symlinks=True, copy_function=os.link)
    return mirror, next(mirror.glob("stable/amd64-usr/[0-9]*"))


def replace(path: Path, content: bytes) -> None:
    path.unlink()
    path.write_bytes(content)


def test_nothing_to_bake(out: Path, env: dict[str, str]) -> None:
    refused(flatcar_bake("-o", out, env=env, cwd=out), 2, "No sysext was given", "hint:")


def test_an_unknown_vendor(out: Path, tools: Path, env: dict[str, str]) -> None:
    done = flatcar_bake("-v", "qemu_efi", "-o", out, f"tools:{tools}", env=env)
    refused(done, 2, "no vendor 'qemu_efi'", "Did you mean qemu_uefi")


def test_an_unknown_channel(out: Path, tools: Path, env: dict[str, str]) -> None:
    done = flatcar_bake("--release", "stabel", "-o", out, f"tools:{tools}", env=env)
    refused(done, 2, "stabel", "stable")


def test_no_such_version(out: Path, tools: Path, env: dict[str, str]) -> None:
    refused(flatcar_bake("--release", "4999.2.0", "-o", out, f"tools:{tools}", env=env), 2, "4999.2.0")


def test_a_sysext_for_another_architecture(out: Path, tmp_path: Path, env: dict[str, str]) -> None:
    arm = make_sysext(tmp_path, "arm", "ID=flatcar\nSYSEXT_LEVEL=1.0\nARCHITECTURE=arm64\n")
    done = flatcar_bake("-o", out, f"arm:{arm}", env=env)
    refused(done, 6, "arm64", "--allow arch-mismatch")
    done = flatcar_bake("-o", out, "--allow", "arch-mismatch", "--plan", f"arm:{arm}", env=env)
    assert done.returncode == 0, done.stderr


def test_a_release_without_the_architecture(out: Path, tools: Path, env: dict[str, str]) -> None:
    done = flatcar_bake("--arch", "arm64", "--release", "stable", "-o", out, f"tools:{tools}", env=env)
    refused(done, 2, "arm64")


def test_a_missing_file_and_the_way_to_the_bakery(out: Path, env: dict[str, str]) -> None:
    refused(flatcar_bake("-o", out, "w:no-such.raw", env=env), 2, "no file no-such.raw", "--fetch")


def test_a_bakery_file_that_does_not_exist(out: Path, env: dict[str, str]) -> None:
    done = flatcar_bake("--fetch", "-o", out, "wasmtime:wasmtime-1.0-x86-64.raw", env=env)
    refused(done, 2, "wasmtime-1.0-x86-64.raw", "Did you mean wasmtime-")
    done = flatcar_bake("-o", out, "tools@0.0.1", env=env)
    refused(done, 2, "no tools 0.0.1", "no sysext of that name")


def test_something_that_is_not_a_sysext(out: Path, tmp_path: Path, env: dict[str, str]) -> None:
    text = tmp_path / "text.raw"
    text.write_text("hello")
    refused(flatcar_bake("-o", out, f"text:{text}", env=env), 6, "text.raw")


def test_a_sysext_under_another_name_would_stop_all_extensions(out: Path, tools: Path, env: dict[str, str]) -> None:
    refused(flatcar_bake("-o", out, f"other:{tools}", env=env), 6, "tools", "no extension at all", "tools:FILE")


def test_a_corrupt_squashfs(out: Path, tools: Path, env: dict[str, str]) -> None:
    data = bytearray(tools.read_bytes())
    data[96:-200] = os.urandom(len(data) - 296)
    tools.write_bytes(data)
    refused(flatcar_bake("-o", out, f"tools:{tools}", env=env), 6, "tools.raw")


def test_a_corrupt_download_is_a_bad_signature(
    stand_in: Path, out: Path, tools: Path, tmp_path: Path, env: dict[str, str]
) -> None:
    mirror, release = mirrored(stand_in, tmp_path)
    packed = release / f"{GENERIC}.bz2"
    data = bytearray(packed.read_bytes())
    data[len(data) // 2] ^= 0xFF
    replace(packed, bytes(data))
    done = flatcar_bake("-o", out, f"tools:{tools}", env=env | {"FLATCAR_BAKE_MIRROR": str(mirror)})
    refused(done, 3, f"{GENERIC}.bz2")
    assert not list(out.iterdir())


def test_an_older_release_in_the_place_of_the_one_asked_for(
    stand_in: Path, out: Path, tools: Path, tmp_path: Path, env: dict[str, str]
) -> None:
    """Properly signed files of 4459.2.4, renamed to 4459.2.99 by the mirror."""
    mirror, release = mirrored(stand_in, tmp_path)
    release.rename(release.parent / "4459.2.99")
    shutil.rmtree(mirror / "releases-json")
    done = flatcar_bake(
        "--release", "4459.2.99", "-o", out, f"tools:{tools}", env=env | {"FLATCAR_BAKE_MIRROR": str(mirror)}
    )
    refused(done, 3, "4459.2.99", release.name)
    assert not list(out.iterdir())


def test_an_image_without_root(out: Path, tools: Path, disk: Path, env: dict[str, str]) -> None:
    subprocess.run(["sfdisk", "-q", "--part-label", disk, "9", "STATE"], check=True)
    done = flatcar_bake("--image", disk, "-o", out, f"tools:{tools}", env=env)
    refused(done, 6, "no ROOT partition")


def test_a_partition_table_with_a_bad_checksum(out: Path, tools: Path, disk: Path, env: dict[str, str]) -> None:
    with disk.open("r+b") as file:
        file.seek(2 * SECTOR + 60)
        file.write(b"\xff")
    refused(flatcar_bake("--image", disk, "-o", out, f"tools:{tools}", env=env), 6, "partition table")
    assert not list(out.iterdir())


def test_an_image_that_is_no_disk(out: Path, tools: Path, tmp_path: Path, env: dict[str, str]) -> None:
    text = tmp_path / "text.img"
    text.write_text("hello" * 1000)
    refused(flatcar_bake("--image", text, "-o", out, f"tools:{tools}", env=env), 6, "text.img has no GPT")


def test_a_read_only_output_folder(env: dict[str, str]) -> None:
    nobody = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--bounding-set=-all", "--inh-caps=-all")
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        tools = make_sysext(Path(folder), "tools")
        done = flatcar_bake("-o", folder, f"tools:{tools}", env=env | {"HOME": folder}, prefix=nobody)
        refused(done, 4, "cannot be written to", "--output-dir")
        done = flatcar_bake("-o", f"{folder}/new/folder", f"tools:{tools}", env=env | {"HOME": folder}, prefix=nobody)
        refused(done, 4, "cannot be written to", "--output-dir")


def test_existing_outputs_are_kept(out: Path, tools: Path, env: dict[str, str]) -> None:
    (out / GENERIC).write_text("precious")
    refused(flatcar_bake("-o", out, f"tools:{tools}", env=env), 2, "exists already", "--force")
    assert (out / GENERIC).read_text() == "precious"
    assert [path.name for path in out.iterdir()] == [GENERIC]


def test_an_input_is_never_overwritten_by_its_output(out: Path, tools: Path, disk: Path, env: dict[str, str]) -> None:
    image = out / GENERIC
    disk.rename(image)
    done = flatcar_bake("--force", "--image", image, "-o", out, f"tools:{tools}", env=env)
    refused(done, 2, "overwrite its own input")


def test_a_dead_mirror(out: Path, tools: Path, env: dict[str, str]) -> None:
    done = flatcar_bake("-o", out, f"tools:{tools}", env=env | {"FLATCAR_BAKE_MIRROR": "http://127.0.0.1:9/"})
    refused(done, 5, "127.0.0.1", "Connection refused", "--mirror")


@pytest.fixture
def web_pages() -> Iterator[str]:
    """A server that answers every request with a page, as captive portals and single-page sites do."""

    class Page(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = b"<!doctype html><html><body>Please log in</body></html>"
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        do_HEAD = do_GET

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Page)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()


def test_a_mirror_that_serves_web_pages(out: Path, tools: Path, web_pages: str, env: dict[str, str]) -> None:
    done = flatcar_bake("-o", out, f"tools:{tools}", env=env | {"FLATCAR_BAKE_MIRROR": web_pages})
    refused(done, 5, "web page")


def test_a_url_that_nothing_vouches_for(out: Path, env: dict[str, str]) -> None:
    refused(flatcar_bake("-o", out, "w:https://example.com/w.raw", env=env), 2, "#sha256=")


def test_an_unknown_key_in_bake_toml(out: Path, env: dict[str, str]) -> None:
    (out / "bake.toml").write_text('vendor = ["generic"]\nsysexts = ["a@1"]\n')
    refused(flatcar_bake(env=env, cwd=out), 2, "unknown key 'vendor'", "vendors")


def test_options_that_do_not_exist(out: Path, tools: Path, env: dict[str, str]) -> None:
    done = flatcar_bake("--vendors-dir", "x", f"tools:{tools}", env=env)
    assert done.returncode == 2 and "No such option" in done.stderr
