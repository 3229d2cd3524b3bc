"""The recipes that the bakery began with: each builds for both architectures, and holds what it should."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from recipe_builds import build_recipe
from recipe_checks import listing, system_root, unpack, verify_units, wrong_machines
from upstream import Upstream
from upstream_seed import CNI, CNI_PLUGINS, NATS

from baker.model import Arch
from baker.recipe.build import Built

UNITS = "/usr/lib/systemd/system"
LOCAL_UNITS = "/usr/local/lib/systemd/system"


def programs(folder: str, *names: str) -> dict[str, str]:
    """Programs as `listing` has them."""
    return {f"{folder}/{name}": "x" for name in names}


def texts(*paths: str) -> dict[str, str]:
    """Files that are no programs."""
    return dict.fromkeys(paths, "")


def upheld(unit: str, target: str = "multi-user.target") -> dict[str, str]:
    """The drop-in that starts a unit."""
    return texts(f"{UNITS}/{target}.d/10-{unit.replace('.', '-')}.conf")


DOCKER = {
    **programs("/usr/bin", "docker", "dockerd", "docker-init", "docker-proxy"),
    **texts(f"{UNITS}/docker.service", f"{UNITS}/docker.socket", "/usr/lib/sysusers.d/docker.conf"),
    **upheld("docker.socket", "sockets.target"),
}
CONTAINERD = {
    **programs("/usr/bin", "containerd", "containerd-shim", "containerd-shim-runc-v2", "ctr", "runc"),
    **texts(f"{UNITS}/containerd.service"),
    **texts("/usr/share/containerd/config.toml", "/usr/share/containerd/config-cgroupfs.toml"),
    **upheld("containerd.service"),
}
CONTENTS: dict[str, dict[str, str]] = {
    "crio": {
        **programs("/usr/bin", "conmon", "conmonrs", "crictl", "crio", "crio-credential-provider", "crun", "pinns"),
        **programs("/usr/bin", "runc"),
        **programs("/usr/share/crio/cni/bin", *CNI_PLUGINS),
        "/usr/libexec/crio": "../bin",
        **texts(
            "/usr/lib/tmpfiles.d/crio.conf", f"{UNITS}/crio.service", f"{UNITS}/crio.service.d/10-crio.conf",
            "/usr/share/crio/README-flatcar.md", "/usr/share/crio/cni/etc/net.d/10-crio-bridge.conflist.disabled",
            "/usr/share/crio/etc/crictl.yaml", "/usr/share/crio/etc/crio/crio.conf",
            "/usr/share/crio/etc/crio/policy.json", "/usr/share/crio/etc/crio/crio.conf.d/10-crio.conf",
            "/usr/share/crio/etc/crio/crio.conf.d/20-flatcar.conf", "/usr/share/crio/etc/containers/policy.json",
            "/usr/share/crio/etc/containers/registries.conf.d/crio.conf",
            "/usr/share/oci-umount/oci-umount.d/crio-umount.conf",
        ),
        **upheld("crio.service"),
    },
    "docker": DOCKER | CONTAINERD,
    "docker-compose": programs("/usr/local/lib/docker/cli-plugins", "docker-compose"),
    "k3s": {
        **programs("/usr/local/bin", "k3s"),
        **{f"/usr/local/bin/{name}": "k3s" for name in ("crictl", "ctr", "kubectl")},
        **texts(f"{LOCAL_UNITS}/k3s.service", f"{LOCAL_UNITS}/k3s-agent.service"),
    },
    "kubernetes": {
        **programs("/usr/bin", "kubeadm", "kubectl", "kubelet"),
        **programs("/usr/local/bin/cni", *CNI_PLUGINS),
        "/usr/libexec/kubernetes/kubelet-plugins/volume/exec": "/var/kubernetes/kubelet-plugins/volume/exec",
        **texts(
            "/usr/local/share/kubernetes-version", "/usr/local/share/kubernetes-cni-version",
            f"{UNITS}/kubelet.service", f"{UNITS}/kubelet.service.d/10-kubeadm.conf",
        ),
        **upheld("kubelet.service"),
    },
    "nvidia-runtime": {
        **programs("/usr/bin", "nvidia-container-cli", "nvidia-container-runtime", "nvidia-container-runtime-hook"),
        **programs("/usr/bin", "nvidia-ctk"),
        "/usr/bin/nvidia-container-toolkit": "nvidia-container-runtime-hook",
        "/usr/lib64/libnvidia-container.so.1": "libnvidia-container.so.1.18.0",
        **programs("/usr/lib64", "libnvidia-container.so.1.18.0"),
        "/usr/local/nvidia": "/opt/nvidia",
        **texts(
            "/usr/lib/tmpfiles.d/nvidia-runtime.conf", f"{UNITS}/nvidia-cdi-refresh.service",
            "/usr/share/nvidia-runtime/etc/containerd/config-nvidia.toml",
            "/usr/share/nvidia-runtime/etc/nvidia-container-toolkit/nvidia-cdi-refresh.env",
            *(f"{UNITS}/{unit}.service.d/10-nvidia-runtime.conf" for unit in ("containerd", "docker", "nvidia")),
        ),
    },
    "ollama": {
        **programs("/usr/local/bin", "ollama"),
        **programs("/usr/local/lib/ollama", "libggml-base.so.0.0.0", "cuda_v13/libggml-cuda.so"),
        "/usr/local/lib/ollama/libggml-base.so.0": "libggml-base.so.0.0.0",
        **texts(f"{UNITS}/ollama.service"),
        **upheld("ollama.service"),
    },
    "rke2": {
        **programs("/usr/local/bin", "rke2", "rke2-killall.sh"),
        **texts("/usr/local/share/rke2/LICENSE.txt"),
        **texts(*(f"{LOCAL_UNITS}/rke2-{role}.{kind}" for role in ("agent", "server") for kind in ("env", "service"))),
    },
    "tailscale": {
        **programs("/usr/bin", "tailscale", "tailscaled"),
        **texts(
            f"{UNITS}/tailscaled.service", "/usr/share/tailscale/tailscaled.defaults",
            "/usr/lib/systemd/network/50-tailscale.network",
        ),
        **upheld("tailscaled.service"),
    },
    "wasmcloud": {
        **programs("/usr/bin", "nats-server", "wasmcloud"),
        **texts(f"{UNITS}/nats.service", f"{UNITS}/wasmcloud.service", "/usr/share/nats/nats.conf"),
        **upheld("nats.service"), **upheld("wasmcloud.service"),
    },
    "wasmtime": programs("/usr/bin", "wasmtime"),
}  # fmt: skip
PARAMETERS = {"kubernetes": {"cni": CNI}, "wasmcloud": {"nats": NATS}}
KNOWN_FINDINGS = {"docker": {"docker-conflict", "containerd-conflict"}, "rke2": {"ignored-unit"}}  # its .env files

Build = Callable[[str, Arch], Built]


@pytest.fixture(scope="module")
def built(upstream: Upstream, tmp_path_factory: pytest.TempPathFactory) -> Build:
    """Builds a recipe for an architecture, once."""
    folder = tmp_path_factory.mktemp("seed")
    done: dict[tuple[str, Arch], Built] = {}

    def once(name: str, arch: Arch) -> Built:
        if (name, arch) not in done:
            done[name, arch] = build_recipe(upstream, folder, name, arch, parameters=PARAMETERS.get(name, {}))
        return done[name, arch]

    return once


@pytest.mark.parametrize("arch", Arch)
@pytest.mark.parametrize("name", sorted(CONTENTS))
def test_a_recipe_builds_what_it_promises(name: str, arch: Arch, built: Build, tmp_path: Path) -> None:
    made = built(name, arch)
    assert listing(made.path) == CONTENTS[name]
    assert {finding.code for finding in made.findings()} == KNOWN_FINDINGS.get(name, set())
    tree = unpack(made.path, tmp_path / "tree")
    assert wrong_machines(tree, arch) == {}
    assert verify_units(system_root(tmp_path / "root"), tree) == ""
