"""The upstreams of the recipes that the bakery got later, for the mirror of `upstream.py`.

Real, for x86-64: nebula, containerd and runc, and the sources of BIRD and chrony. Everything else is a stand-in in
upstream's layout. Sources that are stand-ins bring, for each machine, the programs that would be compiled from them.
"""

from __future__ import annotations

import json
from pathlib import Path

from programs import GO, UNAME, Link, debian, debian_source, stand_in, stand_ins
from upstream import Data, Site, github, provides

from baker.model import Arch

LICENCE = "The licence.\n"


@provides("containerd", "1.6.20")
def containerd(site: Site, version: str, arch: Arch) -> None:
    """The real programs on x86-64: Debian's."""
    names = ("containerd", "containerd-shim-runc-v2", "ctr")
    found: dict[str, Data] = {**stand_ins(arch, version, *names, "runc")}
    if arch is Arch.X86_64:
        root = debian("containerd", "runc")
        found |= {name: root / "usr/bin" / name for name in names} | {"runc": root / "usr/sbin/runc"}
    base = github("containerd/containerd", f"v{version}")
    archive = f"{base}/containerd-static-{version}-linux-{GO[arch]}.tar.gz"
    made = site.archive(archive, {f"bin/{name}": found[name] for name in names})
    site.sums(f"{archive}.sha256sum", made)
    runc = github("opencontainers/runc", "v1.1.5")
    files = [site.put(f"{runc}/runc.{GO[each]}", found["runc"] if each is arch else b"\x7fELF") for each in Arch]
    site.sums(f"{runc}/runc.sha256sum", *files)
    site.releases("opencontainers/runc", "v1.2.0")
    site.put(
        f"https://raw.githubusercontent.com/containerd/containerd/v{version}/script/setup/runc-version", "v1.1.5\n"
    )
    site.releases("containerd/containerd", "v2.1.4", "v2.1.3", "v2.0.6", "v1.7.28", "v2.2.0-rc.0")


@provides("docker-buildx", "0.24.0")
def docker_buildx(site: Site, version: str, arch: Arch) -> None:
    """One program; the sums are those of files read as binary."""
    base = github("docker/buildx", f"v{version}")
    made = site.put(f"{base}/buildx-v{version}.linux-{GO[arch]}", stand_in(f"buildx v{version}", arch))
    sums = site.sums(f"{base}/checksums.txt", made)
    sums.write_text(sums.read_text().replace("  ", " *"))


@provides("nerdctl", "v2.1.2")
def nerdctl(site: Site, version: str, arch: Arch) -> None:
    """With CNI plugins, for those who want them."""
    bare = version.removeprefix("v")
    base = github("containerd/nerdctl", version)
    made = site.archive(
        f"{base}/nerdctl-{bare}-linux-{GO[arch]}.tar.gz",
        {
            **stand_ins(arch, version, "nerdctl"),
            "containerd-rootless.sh": "#!/bin/sh\n",
            "containerd-rootless-setuptool.sh": "#!/bin/bash\n",
        },
    )
    site.sums(f"{base}/SHA256SUMS", made)


@provides("cilium", "v0.18.3")
def cilium(site: Site, version: str, arch: Arch) -> None:
    """An archive with one program, and its sum beside it."""
    url = f"{github('cilium/cilium-cli', version)}/cilium-linux-{GO[arch]}.tar.gz"
    site.sums(f"{url}.sha256sum", site.archive(url, stand_ins(arch, version, "cilium")))


@provides("cloud-hypervisor", "v46.0")
def cloud_hypervisor(site: Site, version: str, arch: Arch) -> None:
    """Two programs without sums."""
    suffix = {Arch.X86_64: "", Arch.ARM64: "-aarch64"}[arch]
    for name, program in stand_ins(arch, version, "cloud-hypervisor", "ch-remote").items():
        site.put(f"{github('cloud-hypervisor/cloud-hypervisor', version)}/{name}-static{suffix}", program)


@provides("coder", "v2.22.1")
def coder(site: Site, version: str, arch: Arch) -> None:
    """The program among texts."""
    bare = version.removeprefix("v")
    base = github("coder/coder", version)
    members = {"./LICENSE": LICENCE, "./README.md": "About it.\n", "./coder": stand_in(f"Coder {version}", arch)}
    made = site.archive(f"{base}/coder_{bare}_linux_{GO[arch]}.tar.gz", members)
    site.sums(f"{base}/coder_{bare}_checksums.txt", made)


def _hashicorp(site: Site, product: str, version: str, arch: Arch) -> None:
    base = f"https://releases.hashicorp.com/{product}/{version}/{product}_{version}"
    made = site.archive(
        f"{base}_linux_{GO[arch]}.zip",
        {"LICENSE.txt": LICENCE, product: stand_in(f"{product.title()} v{version}", arch)},
    )
    site.sums(f"{base}_SHA256SUMS", made)
    listed = [(version, "oss", False), (f"{version}+ent", "enterprise", False), ("9.0.0-rc1", "oss", True)]
    answers = [
        {"name": product, "version": each, "license_class": licence, "is_prerelease": early,
         "timestamp_created": f"2025-0{month}-01T00:00:00Z"}
        for month, (each, licence, early) in enumerate(listed, 1)
    ]  # fmt: skip
    site.put(f"https://api.releases.hashicorp.com/v1/releases/{product}", json.dumps(answers))


@provides("consul", "1.21.1")
def consul(site: Site, version: str, arch: Arch) -> None:
    """A zip."""
    _hashicorp(site, "consul", version, arch)


@provides("vault", "1.19.5")
def vault(site: Site, version: str, arch: Arch) -> None:
    """A zip."""
    _hashicorp(site, "vault", version, arch)


@provides("nomad", "1.10.1")
def nomad(site: Site, version: str, arch: Arch) -> None:
    """A zip."""
    _hashicorp(site, "nomad", version, arch)


@provides("nebula", "v1.6.1")
def nebula(site: Site, version: str, arch: Arch) -> None:
    """The real programs on x86-64: Debian's."""
    names = ("nebula", "nebula-cert")
    found: dict[str, Data] = {**stand_ins(arch, version, *names)}
    if arch is Arch.X86_64:
        found = {name: debian("nebula") / "usr/bin" / name for name in names}
    base = github("slackhq/nebula", version)
    made = site.archive(f"{base}/nebula-linux-{GO[arch]}.tar.gz", found)
    sums = site.sums(f"{base}/SHASUM256.txt", made)
    # The sums of the archives' members are in the same list.
    sums.write_text(sums.read_text() + "".join(f"{'0' * 64}  {made.name}/{name}\n" for name in names))


@provides("dataplaneapi", "v3.1.4")
def dataplaneapi(site: Site, version: str, arch: Arch) -> None:
    """The program among texts."""
    machine = {Arch.X86_64: "x86_64", Arch.ARM64: "arm64"}[arch]
    base = github("haproxytech/dataplaneapi", version)
    made = site.archive(
        f"{base}/dataplaneapi_{version.removeprefix('v')}_linux_{machine}.tar.gz",
        {
            "LICENSE": LICENCE,
            "README.md": "About it.\n",
            **stand_ins(arch, version, "dataplaneapi"),
            "dataplaneapi.yml.dist": "config_version: 2\n",
        },
    )
    site.sums(f"{base}/checksums.txt", made)


@provides("falco", "0.41.0")
def falco(site: Site, version: str, arch: Arch) -> None:
    """A tree as it would be installed, with upstream's configuration."""
    top = f"falco-{version}-{UNAME[arch]}"
    members: dict[str, Data] = {
        "etc/falco/falco.yaml": "rules_files: [/etc/falco/falco_rules.yaml]\n",
        "etc/falco/falco_rules.yaml": "- list: none\n  items: []\n",
        "etc/falco/config.d/falco.container_plugin.yaml": "load_plugins: [container]\n",
        "etc/falcoctl/falcoctl.yaml": "artifact: {follow: {refs: [falco-rules:4]}}\n",
        "usr/bin/falco": stand_in(f"Falco version: {version}", arch),
        "usr/bin/falcoctl": stand_in("falcoctl", arch),
        "usr/share/falco/plugins/libcontainer.so": stand_in("container plugin", arch),
        "usr/src/falco-8.0.0+driver/Makefile": "all:\n",
    }
    url = f"https://download.falco.org/packages/bin/{UNAME[arch]}/{top}.tar.gz"
    site.archive(url, {f"{top}/{name}": data for name, data in members.items()})
    site.releases("falcosecurity/falco", version, "0.40.0", "v0.1.1", "0.42.0-rc1")


@provides("ig", "v0.40.0")
def ig(site: Site, version: str, arch: Arch) -> None:
    """Two archives of one program each, and one list of sums."""
    base = github("inspektor-gadget/inspektor-gadget", version)
    made = [
        site.archive(f"{base}/{name}-linux-{GO[arch]}-{version}.tar.gz", {"LICENSE": LICENCE, name: program})
        for name, program in stand_ins(arch, version, "ig", "gadgetctl").items()
    ]
    site.sums(f"{base}/inspektor-gadget-{version}_checksums.txt", *made)


@provides("kata-containers", "3.17.0")
def kata_containers(site: Site, version: str, arch: Arch) -> None:
    """A tree below opt/kata; from 3.21.0 on compressed by zstd."""
    suffix = "xz" if [int(part) for part in version.split(".")] < [3, 21, 0] else "zst"
    members: dict[str, Data | Link] = {
        "bin/kata-runtime": stand_in(f"kata-runtime : {version}", arch),
        "bin/containerd-shim-kata-v2": stand_in("containerd-shim-kata-v2", arch),
        "bin/kata-collect-data.sh": "#!/bin/bash\n",
        "share/defaults/kata-containers/configuration-qemu.toml": "[hypervisor.qemu]\n",
        "share/defaults/kata-containers/configuration.toml": Link("configuration-qemu.toml"),
        "share/kata-containers/vmlinux-6.12.22": b"kernel",
        "share/kata-containers/vmlinux.container": Link("vmlinux-6.12.22"),
    }
    url = f"{github('kata-containers/kata-containers', version)}/kata-static-{version}-{GO[arch]}.tar.{suffix}"
    site.archive(url, {f"./opt/kata/{name}": data for name, data in members.items()})


@provides("wasmedge", "0.14.1")
def wasmedge(site: Site, version: str, arch: Arch) -> None:
    """A program and its library; before 0.15.0 in a folder."""
    top = f"WasmEdge-{version}-Linux/" if [int(part) for part in version.split(".")] < [0, 15, 0] else ""
    members: dict[str, Data | Link] = {
        "bin/wasmedge": stand_in(f"wasmedge version {version}", arch),
        "bin/wasmedgec": stand_in(f"wasmedgec version {version}", arch),
        "include/wasmedge/wasmedge.h": "/* nothing */\n",
        "lib/libwasmedge.so": Link("libwasmedge.so.0"),
        "lib/libwasmedge.so.0": Link("libwasmedge.so.0.1.0"),
        "lib/libwasmedge.so.0.1.0": stand_in("libwasmedge", arch),
    }
    url = f"{github('WasmEdge/WasmEdge', version)}/WasmEdge-{version}-ubuntu20.04_{UNAME[arch]}.tar.gz"
    site.archive(url, {f"{top}{name}": data for name, data in members.items()})


LLAMAEDGE_WASMEDGE = "0.14.1"
"""The version of WasmEdge whose plugin the mirror has."""


@provides("llamaedge", "0.18.5")
def llamaedge(site: Site, version: str, arch: Arch) -> None:
    """WasmEdge's plugin and a server in WebAssembly."""
    plugin = f"WasmEdge-plugin-wasi_nn-ggml-{LLAMAEDGE_WASMEDGE}-ubuntu20.04_{UNAME[arch]}.tar.gz"
    library = {"libwasmedgePluginWasiNN.so": stand_in("WASI-NN", arch)}
    site.archive(f"{github('WasmEdge/WasmEdge', LLAMAEDGE_WASMEDGE)}/{plugin}", library)
    site.put(f"{github('LlamaEdge/LlamaEdge', version)}/llama-api-server.wasm", b"\0asm\1\0\0\0")


@provides("opkssh", "v0.7.0")
def opkssh(site: Site, version: str, arch: Arch) -> None:
    """One program."""
    site.put(f"{github('openpubkey/opkssh', version)}/opkssh-linux-{GO[arch]}", stand_in(f"opkssh {version}", arch))


def _sources(name: str, version: str, *programs: str) -> dict[str, Data]:
    """Finished programs for every machine, as the sources NAME-VERSION bring them."""
    return {
        f"{name}-{version}/finished/{UNAME[arch]}/{program}": stand_in(f"{program} version {version}", arch)
        for arch in Arch
        for program in programs
    }


def _makefile(*programs: str) -> str:
    """A Makefile that takes the finished programs of the machine that an image says it is."""
    rules = "".join(f"{program}:\n\tcp finished/$(MACHINE)/{program} .\n" for program in programs)
    return f"all: {' '.join(programs)}\n{rules}"


def _compiled(site: Site, url: str, name: str, version: str, *programs: str) -> Path:
    """Publish a stand-in for sources that are configured and made."""
    own = {f"{name}-{version}/configure": "#!/bin/sh\n", f"{name}-{version}/Makefile": _makefile(*programs)}
    return site.archive(url, {**own, **_sources(name, version, *programs)})


@provides("haproxy", "3.2.1")
def haproxy(site: Site, version: str, arch: Arch) -> None:
    """Stand-ins for the sources, and the front page, which lists the newest release of each branch."""
    branch = version.rpartition(".")[0]
    url = f"https://www.haproxy.org/download/{branch}/src/haproxy-{version}.tar.gz"
    site.sums(f"{url}.sha256", _compiled(site, url, "haproxy", version, "haproxy"))
    listed = ("3.3-dev3", version, "3.1.8", "3.0.11", "2.8.15")
    rows = [f'<tr><td><a href="/download/x/src/haproxy-{each}.tar.gz">{each}</a></td></tr>' for each in listed]
    site.put("https://www.haproxy.org/", f"<html><table>{''.join(rows)}</table></html>")


BIRD = "2.0.12"
CHRONY = "4.3"
BIRD_SHA256 = "3ec462a237d06d1f4455d6ec00a42f0b1686061fc988e5c89a841d01dd753b53"
CHRONY_SHA256 = "9d0da889a865f089a5a21610ffb6713e3c9438ce303a63b49c2fb6eaff5b8804"
"""The versions whose real sources Debian has, and their digests."""


@provides("bird", BIRD)
def bird(site: Site, version: str, arch: Arch) -> None:
    """The real sources for one version, a stand-in for others."""
    url = f"https://bird.nic.cz/download/bird-{version}.tar.gz"
    if version == BIRD:
        site.put(url, debian_source("bird2", f"bird2_{version}.orig.tar.gz", BIRD_SHA256))
    else:
        _compiled(site, url, "bird", version, "bird", "birdc", "birdcl")
    tags = [{"name": name} for name in ("v3.1.2", "v3.0-alpha2", "v2.17.1", f"v{BIRD}", "bird-v1")]
    site.put("https://gitlab.nic.cz/api/v4/projects/labs%2Fbird/repository/tags", json.dumps(tags))


@provides("chrony", CHRONY)
def chrony(site: Site, version: str, arch: Arch) -> None:
    """The real sources for one version, a stand-in for others."""
    url = f"https://chrony-project.org/releases/chrony-{version}.tar.gz"
    if version == CHRONY:
        site.put(url, debian_source("chrony", f"chrony_{version}.orig.tar.gz", CHRONY_SHA256))
    else:
        _compiled(site, url, "chrony", version, "chronyd", "chronyc")
    tags = [{"name": name} for name in ("4.8-pre1", "4.7", "4.6.1", CHRONY)]
    site.put("https://gitlab.com/api/v4/projects/chrony%2Fchrony/repository/tags", json.dumps(tags))


@provides("scx", "v1.0.13")
def scx(site: Site, version: str, arch: Arch) -> None:
    """A stand-in for the sources, with a lock file."""
    bare = version.removeprefix("v")
    url = f"https://github.com/sched-ext/scx/archive/refs/tags/{version}.tar.gz"
    own = {f"scx-{bare}/Cargo.lock": "version = 4\n"}
    site.archive(url, {**own, **_sources("scx", bare, "scx_bpfland", "scx_lavd")})
    site.releases("sched-ext/scx", version, "v1.0.12")


@provides("btop", "1.4.3")
def btop(site: Site, version: str, arch: Arch) -> None:
    """The page that lists Alpine's packages."""
    names = (f"btop-{version}-r0.apk", f"btop-doc-{version}-r0.apk", "btrbk-0.32.6-r2.apk")
    rows = "".join(f'<a href="{name}">{name}</a>\n' for name in names)
    site.put(f"https://dl-cdn.alpinelinux.org/alpine/v3.22/community/{UNAME[arch]}/", f"<pre>{rows}</pre>")


@provides("tilde", "1.1.2")
def tilde(site: Site, version: str, arch: Arch) -> None:
    """The page about Debian's package."""
    site.put("https://packages.debian.org/bookworm/tilde", f"<h1>Package: tilde ({version}-1+b1)</h1>")
