"""Extensions built by recipes out of real programs, baked and booted: their services are in the state they promise."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from cli import flatcar_bake, release_environment
from programs import debian
from recipe_builds import build_recipe
from standin.packages import Apt
from sysexts import make_sysext
from upstream import Upstream
from upstream_seed import KEEPALIVED

from baker.model import Arch
from baker.recipe.load import load_recipes

LIBRARIES = "usr/lib/x86_64-linux-gnu"
# The guest has neither iptables nor a kernel with bridges.
SETTINGS = "[Service]\nEnvironment=DOCKER_SELINUX= 'DOCKER_OPTS=--iptables=false --bridge=none'\n"


def debian_libraries(folder: Path) -> Path:
    """What Debian's Docker is linked with, as a sysext: the programs that upstream publishes are static."""
    files: dict[str, str | bytes] = {"usr/lib/systemd/system/docker.service.d/50-test.conf": SETTINGS}
    root = debian("docker.io", "containerd", "runc", "tini")
    needed = [name.partition("=")[0] for name in Apt().closure(["docker.io", "runc"]) if name.startswith("lib")]
    for source in (root, debian(*needed)):
        for library in (source / LIBRARIES).glob("*.so.*"):
            files[f"{LIBRARIES}/{library.name}"] = library.resolve().read_bytes()
    return make_sysext(folder, "libraries", "ID=_any\nEXTENSION_RELOAD_MANAGER=1\n", files=files)


@pytest.mark.boot
def test_services_of_recipes_are_in_the_state_that_they_promise(
    stand_in: Path, upstream: Upstream, container_image: Callable[[Arch], str], tmp_path: Path
) -> None:
    built = {
        name: build_recipe(upstream, tmp_path, name, Arch.X86_64).path for name in ("docker", "kubernetes", "wasmtime")
    }
    image = container_image(Arch.X86_64)
    built["keepalived"] = build_recipe(upstream, tmp_path, "keepalived", Arch.X86_64, KEEPALIVED, image=image).path
    words = [f"{name}:{path}" for name, path in built.items()]
    env = release_environment(stand_in) | {"FLATCAR_BAKE_CACHE_DIR": str(tmp_path / "cache")}
    done = flatcar_bake("-v", "qemu_uefi", "-o", tmp_path, *words, f"libraries:{debian_libraries(tmp_path)}", env=env)
    assert done.returncode == 0, done.stderr

    recipes = load_recipes()
    active = [unit for name in built for unit in recipes[name].promise.active]
    idle = [unit for name in built for unit in recipes[name].promise.present]
    assert set(active) >= {"docker.socket", "containerd.service", "kubelet.service", "keepalived.service"}
    done = flatcar_bake(
        "boot", tmp_path / "flatcar_production_qemu_uefi_image.img", "--json", "--timeout", "500",
        *(word for name in (*built, "libraries") for word in ("--expect-sysext", name)),
        *("--run", f"for unit in {' '.join(active)}; do systemctl is-active $unit || exit; done"),
        *("--run", f"for unit in {' '.join(idle)}; do systemctl show -p LoadState,ActiveState $unit; done"),
        *("--run", "docker version --format '{{.Client.Version}} {{.Server.Version}}'"),
        *("--run", "ctr version && test -d /run/docker/libcontainerd"),
        *("--run", "wasmtime --version && kubectl version --client && keepalived --version 2>&1"),
    )  # fmt: skip
    (boot,) = json.loads(done.stdout)["boots"]
    states, present, docker, containerd, versions = (command["stdout"] for command in boot["commands"])
    assert done.returncode == 0, done.stderr
    assert states.split() == ["active"] * len(active)
    assert "LoadState=loaded" in present and "ActiveState=inactive" in present
    client, server = docker.split()
    assert client == server and client.startswith("20.10.")
    assert containerd.count("Revision") == 2
    assert "wasmtime 49" in versions and "Client Version" in versions and "Keepalived v2.2" in versions
