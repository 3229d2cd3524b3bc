"""The recipes that the bakery got later: each builds for both architectures, and holds what it should."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from recipe_builds import build_recipe, services
from recipe_checks import check, listing, programs, texts, unpack, upheld
from upstream import Upstream, serve
from upstream_more import LLAMAEDGE_WASMEDGE
from upstream_seed import CNI, CNI_PLUGINS

from baker.model import Arch
from baker.recipe.versions import Catalogue

RECIPES = Path(__file__).resolve().parent.parent / "recipes"
UNITS = "/usr/lib/systemd/system"


def service(*names: str, starts: bool = False) -> dict[str, str]:
    """Services, the first of which may start by itself."""
    found = texts(*(f"{UNITS}/{name}.service" for name in names))
    return found | (upheld(f"{names[0]}.service") if starts else {})


def settings(name: str, *defaults: str, user: bool = False) -> dict[str, str]:
    """What puts the defaults of an extension into /etc."""
    found = texts(f"/usr/lib/tmpfiles.d/10-{name}.conf", *(f"/usr/share/{name}/{each}" for each in defaults))
    return found | (texts(f"/usr/lib/sysusers.d/{name}.conf") if user else {})


CONTENTS: dict[str, dict[str, str]] = {
    "bird": programs("/usr/bin", "bird", "birdc", "birdcl") | service("bird", starts=True)
    | settings("bird", "bird.conf"),
    "chrony": programs("/usr/bin", "chronyc", "chronyd") | service("chronyd")
    | settings("chrony", "chrony.conf", user=True),
    "cilium": programs("/usr/local/bin", "cilium") | service("cilium"),
    "cloud-hypervisor": programs("/usr/bin", "cloud-hypervisor", "ch-remote"),
    "coder": programs("/usr/bin", "coder") | service("coder", "coder-workspace-proxy", "coder-setup")
    | settings("coder", "coder.env", "coder-workspace-proxy.env", "README.md", user=True),
    "consul": programs("/usr/bin", "consul") | service("consul", "consul-setup", starts=True)
    | settings("consul", "consul.hcl", user=True),
    "containerd": programs("/usr/bin", "containerd", "containerd-shim-runc-v2", "ctr", "runc")
    | service("containerd", starts=True)
    | texts("/usr/share/containerd/config.toml", "/usr/share/containerd/config-cgroupfs.toml"),
    "dataplaneapi": programs("/usr/bin", "dataplaneapi") | service("dataplaneapi")
    | settings("dataplaneapi", "dataplaneapi.yml"),
    "docker-buildx": programs("/usr/local/lib/docker/cli-plugins", "docker-buildx"),
    "falco": programs("/usr/bin", "falco", "falcoctl") | service("falco-modern-bpf", "falcoctl-artifact-follow")
    | programs("/usr/share/falco/plugins", "libcontainer.so")
    | settings("falco", "etc/falco/falco.yaml", "etc/falco/falco_rules.yaml",
               "etc/falco/config.d/falco.container_plugin.yaml", "etc/falcoctl/falcoctl.yaml")
    | texts("/usr/src/falco-8.0.0+driver/Makefile"),
    "haproxy": programs("/usr/bin", "haproxy") | service("haproxy") | settings("haproxy", "haproxy.cfg", user=True),
    "ig": programs("/usr/bin", "ig", "gadgetctl"),
    "kata-containers": programs("/opt/kata/bin", "kata-runtime", "containerd-shim-kata-v2", "kata-collect-data.sh")
    | {f"/usr/bin/{name}": f"../../opt/kata/bin/{name}"
       for name in ("kata-runtime", "containerd-shim-kata-v2", "kata-collect-data.sh")}
    | texts("/opt/kata/share/defaults/kata-containers/configuration-qemu.toml",
            "/opt/kata/share/kata-containers/vmlinux-6.12.22")
    | {"/opt/kata/share/defaults/kata-containers/configuration.toml": "configuration-qemu.toml",
       "/opt/kata/share/kata-containers/vmlinux.container": "vmlinux-6.12.22"},
    "llamaedge": programs("/usr/lib/wasmedge", "libwasmedgePluginWasiNN.so")
    | texts("/usr/lib/wasmedge/wasm/llama-api-server.wasm", "/usr/share/llamaedge/wasmedge-version"),
    "nebula": programs("/usr/bin", "nebula", "nebula-cert") | service("nebula", starts=True),
    "nerdctl": programs("/usr/bin", "nerdctl", "containerd-rootless.sh", "containerd-rootless-setuptool.sh"),
    "nomad": programs("/usr/bin", "nomad") | service("nomad") | settings("nomad", "nomad.hcl"),
    "opkssh": programs("/usr/local/bin", "opkssh"),
    "scx": programs("/usr/bin", "scx_bpfland", "scx_lavd") | service("scx") | texts("/usr/share/scx/scx"),
    "vault": programs("/usr/bin", "vault") | service("vault", "vault-setup", starts=True)
    | settings("vault", "vault.hcl", user=True),
    "wasmedge": programs("/usr/bin", "wasmedge", "wasmedgec") | programs("/usr/lib", "libwasmedge.so.0.1.0")
    | {"/usr/lib/libwasmedge.so": "libwasmedge.so.0", "/usr/lib/libwasmedge.so.0": "libwasmedge.so.0.1.0"},
}  # fmt: skip
PARAMETERS = {"llamaedge": {"wasmedge": LLAMAEDGE_WASMEDGE}}
COMPILED = ("bird", "chrony", "haproxy", "scx")
OTHER_VERSIONS = {"bird": "2.17.1", "chrony": "4.6.1"}
"""Versions for which there are only stand-ins for the sources."""
KNOWN_FINDINGS = {"containerd": {"containerd-conflict"}, "kata-containers": {"opt-read-only"}}

# What the defaults of an extension become in /etc, with their modes, and the user who may read them.
IN_ETC = {
    "bird": {"bird/bird.conf": (0o640, "root")},
    "chrony": {"chrony/chrony.conf": (0o644, "root")},
    "coder": {"coder.d/coder.env": (0o640, "coder"), "coder.d/coder-workspace-proxy.env": (0o640, "coder")},
    "consul": {"consul.d/consul.hcl": (0o640, "consul")},
    "dataplaneapi": {"haproxy/dataplaneapi.yml": (0o600, "root")},
    "haproxy": {"haproxy/haproxy.cfg": (0o644, "root")},
    "nerdctl": {"nerdctl/nerdctl.toml": (0o644, "root")},
    "nomad": {"nomad.d/nomad.hcl": (0o600, "root")},
    "vault": {"vault.d/vault.hcl": (0o640, "vault")},
}


def haproxy_beside(folder: Path) -> Path:
    """HAProxy's own files, as the units of dataplaneapi see them."""
    tree = shutil.copytree(RECIPES / "haproxy/files", folder / "beside")
    program = tree / "usr/bin/haproxy"
    program.parent.mkdir()
    program.touch(mode=0o755)
    return tree


@pytest.mark.parametrize("arch", Arch)
@pytest.mark.parametrize("name", sorted(set(CONTENTS) - set(COMPILED)))
def test_a_recipe_builds_what_it_promises(name: str, arch: Arch, upstream: Upstream, tmp_path: Path) -> None:
    made = build_recipe(upstream, tmp_path, name, arch, parameters=PARAMETERS.get(name, {}))
    beside = haproxy_beside(tmp_path) if name == "dataplaneapi" else None
    check(made, CONTENTS[name], tmp_path, KNOWN_FINDINGS.get(name, set()), beside)


@pytest.mark.long
@pytest.mark.parametrize("arch", Arch)
@pytest.mark.parametrize("name", COMPILED)
def test_a_recipe_is_compiled(
    name: str, arch: Arch, container_image: Callable[[Arch], str], upstream: Upstream, tmp_path: Path
) -> None:
    # A compiler for arm64 would be another gigabyte of packages, so the real sources are compiled for x86-64 alone.
    version = OTHER_VERSIONS.get(name, "") if arch is Arch.ARM64 else ""
    made = build_recipe(upstream, tmp_path, name, arch, version, image=container_image(arch))
    tree = check(made, CONTENTS[name], tmp_path)
    for run in made.request.recipe.tests.run if arch is Arch.X86_64 else ():
        program, *arguments = run.argv
        said = subprocess.run([tree / program.lstrip("/"), *arguments], capture_output=True, text=True, check=True)
        assert made.request.scope.expand(run.stdout, "") in said.stdout + said.stderr


def group_of(root: Path, file: Path) -> str:
    """The name of a file's group by the groups of a system in a folder."""
    path = root / "etc/group"
    entries = [line.split(":") for line in path.read_text().splitlines()] if path.exists() else []
    return {int(entry[2]): entry[0] for entry in entries}.get(file.stat().st_gid, "root")


@pytest.mark.parametrize("name", sorted(IN_ETC))
def test_defaults_land_in_etc_and_never_over_the_users(name: str, tmp_path: Path) -> None:
    root = tmp_path / "root"
    unpacked = RECIPES / name / "files"
    (root / "etc").mkdir(parents=True)
    subprocess.run(["cp", "-r", unpacked / "usr", root], check=True)
    commands = [["systemd-tmpfiles", f"--root={root}", "--create", f"10-{name}.conf"]]
    if (root / f"usr/lib/sysusers.d/{name}.conf").exists():
        commands.insert(0, ["systemd-sysusers", f"--root={root}", f"{name}.conf"])
    for command in commands:
        subprocess.run(command, check=True, capture_output=True)
    for path, (mode, group) in IN_ETC[name].items():
        made = root / "etc" / path
        assert (made.stat().st_mode & 0o777, group_of(root, made)) == (mode, group)
        made.write_text("mine\n")
    subprocess.run(commands[-1], check=True)
    assert {(root / "etc" / path).read_text() for path in IN_ETC[name]} == {"mine\n"}


def test_nerdctl_has_networks_only_with_plugins(upstream: Upstream, tmp_path: Path) -> None:
    upstream.add("kubernetes", Arch.X86_64)
    made = build_recipe(upstream, tmp_path, "nerdctl", Arch.X86_64, parameters={"with-cni": CNI})
    plugins = programs("/usr/libexec/cni", *CNI_PLUGINS) | texts("/usr/share/nerdctl/cni-version")
    found = listing(made.path)
    assert found == CONTENTS["nerdctl"] | plugins | settings("nerdctl", "nerdctl.toml")
    tree = unpack(made.path, tmp_path / "tree")
    assert (tree / "usr/share/nerdctl/cni-version").read_text() == f"{CNI}\n"


@pytest.mark.parametrize(("name", "version"), [("kata-containers", "3.21.0"), ("wasmedge", "0.15.0")])
def test_archives_that_changed_over_time(name: str, version: str, upstream: Upstream, tmp_path: Path) -> None:
    made = build_recipe(upstream, tmp_path, name, Arch.X86_64, version)
    assert listing(made.path) == CONTENTS[name]


def test_scx_runs_the_scheduler_of_ones_choice(
    container_image: Callable[[Arch], str], upstream: Upstream, tmp_path: Path
) -> None:
    made = build_recipe(
        upstream,
        tmp_path,
        "scx",
        Arch.X86_64,
        parameters={"scheduler": "scx_lavd"},
        image=container_image(Arch.X86_64),
    )
    tree = unpack(made.path, tmp_path / "tree")
    assert "\nSCX_SCHEDULER=scx_lavd\n" in (tree / "usr/share/scx/scx").read_text()


LATEST = {
    "bird": ["3.1.2"],
    "btop": ["1.4.3"],
    "chrony": ["4.7"],
    "cilium": ["v0.18.3"],
    "cloud-hypervisor": ["v46.0"],
    "coder": ["v2.22.1"],
    "consul": ["1.21.1"],
    "containerd": ["2.1.4", "2.0.6", "1.7.28", "1.6.20"],
    "dataplaneapi": ["v3.1.4"],
    "docker-buildx": ["0.24.0"],
    "falco": ["0.41.0"],
    "haproxy": ["3.2.1"],
    "ig": ["v0.40.0"],
    "kata-containers": ["3.17.0"],
    "llamaedge": ["0.18.5"],
    "nebula": ["v1.6.1"],
    "nerdctl": ["v2.1.2"],
    "nomad": ["1.10.1"],
    "opkssh": ["v0.7.0"],
    "scx": ["v1.0.13"],
    "tilde": ["1.1.2"],
    "vault": ["1.19.5"],
    "wasmedge": ["0.14.1"],
}
"""What the mirror's newest versions are."""


def test_the_newest_versions_are_found(tmp_path: Path) -> None:
    (tmp_path / "mirror").mkdir()
    # A mirror of its own: other tests add versions to theirs.
    with serve(tmp_path / "mirror") as upstream:
        for name in LATEST:
            for arch in Arch:
                upstream.add(name, arch)
        with services(upstream, tmp_path) as opened:
            catalogue = Catalogue(opened, opened.rewrites, opened.recipes)
            assert {name: catalogue.latest(opened.recipes[name]) for name in LATEST} == LATEST
