"""The recipes that the bakery began with: each builds for both architectures, and holds what it should."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from programs import GO
from recipe_builds import build_recipe
from recipe_checks import listing, system_root, unpack, verify_units, wrong_machines
from standin import cache
from standin.packages import network_environment
from upstream import Upstream
from upstream_seed import CNI, CNI_PLUGINS, KEEPALIVED, NATS

from baker.model import Arch
from baker.recipe.build import Built
from baker.run import run

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

# What keepalived needs to be compiled, and is linked with.
COMPILER = "gcc,libc6-dev,make,pkg-config"
KEEPALIVED_LIBRARIES = ("libcrypto.so.3", "libmnl.so.0", "libnftnl.so.11", "libnl-3.so.200", "libnl-genl-3.so.200",
                        "libpcre2-8.so.0", "libssl.so.3")  # fmt: skip

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
    check(built(name, arch), CONTENTS[name], tmp_path)


def check(made: Built, contents: dict[str, str], folder: Path) -> Path:
    """What must be true of every extension; returns its files, unpacked into `folder`."""
    assert listing(made.path) == contents
    assert {finding.code for finding in made.findings()} == KNOWN_FINDINGS.get(made.request.recipe.name, set())
    tree = unpack(made.path, folder / "tree")
    assert wrong_machines(tree, made.request.arch) == {}
    assert verify_units(system_root(folder / "root"), tree) == ""
    return tree


@pytest.fixture(scope="module")
def debian_image(request: pytest.FixtureRequest) -> Iterator[str]:
    """Debian as a base image for an architecture. That for arm64 only says so: nothing of it is compiled there."""
    arch: Arch = request.param

    def make(folder: Path) -> None:
        # The compiler is in it already, so that the recipe's own apt-get has little to do.
        command = ["mmdebstrap", "--quiet", "--variant=apt", f"--include={COMPILER}", "bookworm", folder / "image.tar"]
        run(command, env=network_environment())

    tar = cache.item("container_debian", COMPILER, make) / "image.tar"
    name = f"localhost/flatcar-test-{os.getpid()}-{arch}:1"
    run(["podman", "import", "--quiet", f"--arch={GO[arch]}", "--os=linux", tar, name])
    yield name
    run(["podman", "rmi", "--force", name])


@pytest.mark.parametrize(
    ("debian_image", "arch", "version"),
    [(Arch.X86_64, Arch.X86_64, KEEPALIVED), (Arch.ARM64, Arch.ARM64, "v2.2.8")],
    indirect=["debian_image"],
    ids=["x86-64", "arm64"],
)
def test_keepalived_is_compiled_in_a_container(
    debian_image: str, arch: Arch, version: str, upstream: Upstream, tmp_path: Path
) -> None:
    made = build_recipe(upstream, tmp_path, "keepalived", arch, version, image=debian_image)
    libraries = texts(*(f"/usr/lib/keepalived/{name}" for name in KEEPALIVED_LIBRARIES))
    own = texts(f"{UNITS}/keepalived.service", "/usr/lib/tmpfiles.d/keepalived.conf") | upheld("keepalived.service")
    compiled = libraries if version == KEEPALIVED else {}
    tree = check(made, programs("/usr/bin", "keepalived") | compiled | own, tmp_path)
    if version == KEEPALIVED:
        # Only glibc is the system's.
        program = tree / "usr/bin/keepalived"
        needs = run(["readelf", "--dynamic", program]).text
        assert "RPATH" in needs and "[/usr/lib/keepalived]" in needs
