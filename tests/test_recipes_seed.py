"""The recipes that the bakery began with: each builds for both architectures, and holds what it should."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from recipe_builds import build_recipe, services
from recipe_checks import check, listing, programs, texts, upheld
from upstream import Upstream, serve
from upstream_seed import CNI_PLUGINS, KEEPALIVED

from baker.model import Arch
from baker.recipe.build import Built
from baker.recipe.versions import Catalogue
from baker.run import run

UNITS = "/usr/lib/systemd/system"
LOCAL_UNITS = "/usr/local/lib/systemd/system"

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
WASMCLOUD_HOST = {
    **programs("/usr/bin", "wasmcloud"),
    **texts(f"{UNITS}/wasmcloud.service"),
    **upheld("wasmcloud.service"),
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
        **WASMCLOUD_HOST,
        **programs("/usr/bin", "nats-server"),
        **texts(f"{UNITS}/nats.service", "/usr/share/nats/nats.conf"),
        **upheld("nats.service"),
    },
    "wasmtime": programs("/usr/bin", "wasmtime"),
}  # fmt: skip
KNOWN_FINDINGS = {"docker": {"docker-conflict", "containerd-conflict"}, "rke2": {"ignored-unit"}}  # its .env files

# What keepalived is linked with.
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
            done[name, arch] = build_recipe(upstream, folder, name, arch)
        return done[name, arch]

    return once


@pytest.mark.parametrize("arch", Arch)
@pytest.mark.parametrize("name", sorted(CONTENTS))
def test_a_recipe_builds_what_it_promises(name: str, arch: Arch, built: Build, tmp_path: Path) -> None:
    check(built(name, arch), CONTENTS[name], tmp_path, KNOWN_FINDINGS.get(name, ()))


@pytest.mark.long
@pytest.mark.parametrize(
    ("arch", "version"), [(Arch.X86_64, KEEPALIVED), (Arch.ARM64, "v2.2.8")], ids=["real", "arm64"]
)
def test_keepalived_is_compiled_in_a_container(
    arch: Arch, version: str, container_image: Callable[[Arch], str], upstream: Upstream, tmp_path: Path
) -> None:
    made = build_recipe(upstream, tmp_path, "keepalived", arch, version, image=container_image(arch))
    contents = programs("/usr/bin", "keepalived") | upheld("keepalived.service")
    contents |= texts(f"{UNITS}/keepalived.service", "/usr/lib/tmpfiles.d/keepalived.conf")
    if version == KEEPALIVED:
        contents |= {"/usr/bin/genhash": "keepalived"}
        contents |= texts(*(f"/usr/lib/keepalived/{name}" for name in KEEPALIVED_LIBRARIES))
    tree = check(made, contents, tmp_path)
    if version == KEEPALIVED:
        needs = run(["readelf", "--dynamic", tree / "usr/bin/keepalived"]).text
        assert "Library rpath: [/usr/lib/keepalived]" in needs


@pytest.mark.parametrize(
    ("variant", "contents", "findings"),
    [("docker-only", DOCKER, {"docker-conflict"}), ("containerd-only", CONTAINERD, {"containerd-conflict"})],
)
def test_docker_comes_in_halves(
    variant: str, contents: dict[str, str], findings: set[str], upstream: Upstream, tmp_path: Path
) -> None:
    made = build_recipe(upstream, tmp_path, "docker", Arch.ARM64, variant=variant)
    assert listing(made.path) == contents
    assert findings <= {finding.code for finding in made.findings}


@pytest.mark.parametrize(
    ("name", "version", "gone", "added"),
    [("ollama", "v0.13.5", {}, {}), ("wasmcloud", "v2.0.0", WASMCLOUD_HOST, programs("/usr/bin", "wash"))],
    ids=["ollama-as-tgz", "wasmcloud-is-wash"],
)
def test_versions_that_upstream_publishes_in_another_way(
    name: str, version: str, gone: dict[str, str], added: dict[str, str], upstream: Upstream, tmp_path: Path
) -> None:
    made = build_recipe(upstream, tmp_path, name, Arch.ARM64, version)
    assert listing(made.path) == {path: kind for path, kind in CONTENTS[name].items() if path not in gone} | added


LATEST = {
    "crio": ["v1.37.1", "v1.36.1", "v1.35.1", "v1.30.1"],
    "docker": ["28.0.4"],
    "docker-compose": ["2.40.3"],
    "k3s": ["v1.37.1+k3s2", "v1.36.1+k3s1", "v1.35.1+k3s1", "v1.30.1+k3s1"],
    "keepalived": ["v2.3.4"],
    "kubernetes": ["v1.37.1", "v1.36.1", "v1.35.1", "v1.30.1"],
    "nvidia-runtime": ["v1.18.0"],
    "ollama": ["v0.14.1"],
    "rke2": ["v1.37.1+rke2r1", "v1.36.1+rke2r1", "v1.35.1+rke2r1", "v1.30.1+rke2r1"],
    "tailscale": ["v1.90.6"],
    "wasmcloud": ["v1.9.1"],
    "wasmtime": ["v49.0.4"],
}
"""What the mirror's newest versions are: no release candidates, and of Kubernetes one for each minor that is alive."""


def test_the_newest_versions_are_found(tmp_path: Path) -> None:
    folder = tmp_path / "mirror"
    folder.mkdir()
    # A mirror of its own, in which no other test has put other versions.
    with serve(folder) as upstream:
        for name in LATEST:
            upstream.add(name, Arch.ARM64)
        with services(upstream, tmp_path) as opened:
            catalogue = Catalogue(opened, opened.rewrites, opened.recipes)
            assert {name: catalogue.latest(opened.recipes[name]) for name in LATEST} == LATEST
