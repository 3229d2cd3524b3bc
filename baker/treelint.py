"""What a sysext's tree would do to the system it is merged into.

systemd-sysext lays the image's /usr and /opt over the host's with overlayfs: a directory joins the host's and brings
its own owner and mode along, and anything else replaces what the host has at that path, folders included.
"""

from __future__ import annotations

import re
import stat
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from baker.erofs import Unsupported
from baker.model import Arch, Node
from baker.survey.elf import header_arch

if TYPE_CHECKING:
    from baker.contents import Contents

# Major versions of Flatcar, from its release notes.
_FIRST_WITH_BUILTIN_DOCKER = 3794
_FIRST_WITH_MERGED_SBIN = 4116

# The program that shows a sysext to replace one of those that Flatcar carries in /usr/share/flatcar/sysext.
_BUILTINS = {"/usr/bin/dockerd": "docker-flatcar", "/usr/bin/containerd": "containerd-flatcar"}
BUILTINS = tuple(_BUILTINS.values())
"""Flatcar's own sysexts that others may take the place of."""

# Folders of Flatcar that must stay folders, owned by root and readable for everybody.
_SYSTEM_FOLDERS = (
    "/usr", "/usr/bin", "/usr/lib", "/usr/lib64", "/usr/libexec", "/usr/share", "/usr/lib/systemd",
    "/usr/lib/systemd/system", "/opt",
)  # fmt: skip

_UNIT = re.compile(r"/usr/lib/systemd/system/[^/]+\.(service|socket|timer|mount|path|target)")
_PROGRAMS_TO_READ = 4


@dataclass(frozen=True)
class Finding:
    """Something about a sysext that the user must know. `fatal`: Flatcar would ignore it, or break."""

    code: str
    message: str
    fatal: bool
    hint: str = ""


def major(version: str | None) -> int | None:
    """The first number of a Flatcar version; None where the version is not known."""
    match = re.match(r"\d+", version or "")
    return int(match[0]) if match else None


def check_tree(nodes: Mapping[str, Node], name: str, version: str | None) -> Iterator[Finding]:
    """All findings about paths, types, owners and modes. `version` is the release's, None where it is not known."""
    yield from _check_places(nodes, name)
    yield from _check_system_folders(nodes, name, version)
    yield from _check_owners(nodes, name)
    yield from _check_modes(nodes, name)
    yield from _check_builtins(nodes, name, version)


def conflicting_builtins(nodes: Iterable[str]) -> set[str]:
    """The sysexts built into Flatcar that an image with these paths takes the place of, for example docker-flatcar.

    Baking it means linking /etc/extensions/BUILTIN.raw to /dev/null, in releases that have them.
    """
    return {builtin for program, builtin in _BUILTINS.items() if program in set(nodes)}


def has_builtins(version: str | None) -> bool:
    """Whether a release carries docker and containerd as built-in sysexts; an unknown one is taken to be recent."""
    number = major(version)
    return number is None or number >= _FIRST_WITH_BUILTIN_DOCKER


def units(nodes: Iterable[str]) -> list[str]:
    """The systemd units a tree ships."""
    return [path for path in nodes if _UNIT.fullmatch(path)]


def check_programs(contents: Contents, name: str, arch: Arch) -> Iterator[Finding]:
    """Compare the machine of a few programs with `arch`; for images that do not tell their architecture."""
    programs = [
        node for node in contents.nodes.values()
        if node.kind == "file" and node.mode & 0o111 and node.path.startswith(("/usr/bin/", "/usr/local/bin/"))
    ]  # fmt: skip
    for node in programs[:_PROGRAMS_TO_READ]:
        try:
            header = contents.read(node.path, 20)
        except Unsupported:
            continue
        built_for = header_arch(header)
        if built_for and built_for != arch:
            yield Finding(
                "arch-mismatch", f"The sysext {name} is for {built_for}: {node.path!r} is; the image is for {arch}.",
                True, f"Get the {arch} build, or bake with --arch {built_for}.",
            )  # fmt: skip
            return


def _list(nodes: Iterable[Node]) -> str:
    """Some paths for a message, quoted, since names can hold anything."""
    paths = [repr(node.path) for node in nodes]
    more = f" and {len(paths) - 3} more" if len(paths) > 3 else ""
    return ", ".join(paths[:3]) + more


def _check_places(nodes: Mapping[str, Node], name: str) -> Iterator[Finding]:
    foreign = [node for node in nodes.values() if node.path.count("/") == 1 and node.path not in ("/usr", "/opt")]
    if foreign:
        yield Finding(
            "foreign-path", f"The sysext {name} has {_list(foreign)}, which will not appear: only /usr and /opt do.",
            False, "Move what is needed below /usr; defaults for /etc go below /usr/share, copied by tmpfiles.d.",
        )  # fmt: skip
    if "/opt" in nodes:
        yield Finding(
            "opt-read-only", f"The sysext {name} ships /opt, so all of /opt becomes read-only while it is merged.",
            False, "systemd-sysupdate cannot write to /opt/extensions then; prefer /usr, or updates by new images.",
        )  # fmt: skip
    if any(path in nodes for path in ("/usr/lib/os-release", "/etc/os-release")):
        yield Finding(
            "os-release", f"The sysext {name} carries an os-release file; systemd-sysext refuses such images.",
            True, "Remove usr/lib/os-release and etc/os-release from it.",
        )  # fmt: skip


def _check_system_folders(nodes: Mapping[str, Node], name: str, version: str | None) -> Iterator[Finding]:
    hidden = [nodes[path] for path in _SYSTEM_FOLDERS if path in nodes and nodes[path].kind != "directory"]
    sbin = nodes.get("/usr/sbin")
    merged = (major(version) or _FIRST_WITH_MERGED_SBIN) >= _FIRST_WITH_MERGED_SBIN
    if sbin and (sbin.kind == "directory") == merged:
        hidden.append(sbin)
    if hidden:
        yield Finding(
            "usr-merge", f"The sysext {name} replaces {_list(hidden)} of Flatcar and hides all that is in there.",
            True, "Ship folders as folders, and programs in usr/bin instead of usr/sbin.",
        )  # fmt: skip
    elif sbin and sbin.kind == "directory":
        yield Finding(
            "usr-merge",
            f"The sysext {name} ships the folder usr/sbin, which is a link from release {_FIRST_WITH_MERGED_SBIN} on.",
            False, "It will hide all programs of usr/sbin after such an update; move them to usr/bin.",
        )  # fmt: skip


def _check_owners(nodes: Mapping[str, Node], name: str) -> Iterator[Finding]:
    strange = [node for node in nodes.values() if node.uid]
    if strange:
        yield Finding(
            "owner", f"The sysext {name} has files of user {strange[0].uid} instead of root: {_list(strange)}.",
            True, "Build it with `flatcar-bake sysext pack`, or mksquashfs -all-root.",
        )  # fmt: skip
        return
    strange = [node for node in nodes.values() if node.gid]
    if strange:
        yield Finding(
            "group", f"The sysext {name} has files of group {strange[0].gid} instead of root: {_list(strange)}.", False
        )


def _check_modes(nodes: Mapping[str, Node], name: str) -> Iterator[Finding]:
    devices = [node for node in nodes.values() if node.kind == "other"]
    if devices:
        yield Finding(
            "device-node", f"The sysext {name} has device nodes, pipes or sockets: {_list(devices)}.",
            True, "A sysext is mounted nodev; a device 0/0 deletes the host's file. Leave them out.",
        )  # fmt: skip
    closed = [nodes[path] for path in _SYSTEM_FOLDERS if path in nodes and nodes[path].mode & 0o005 != 0o005]
    closed = [node for node in closed if node.kind == "directory"]
    if closed:
        yield Finding(
            "closed-folder", f"The sysext {name} makes {_list(closed)} unreadable for everybody but root.",
            True, "Its folder was made with a strict umask; chmod 0755 the folders and build it again.",
        )  # fmt: skip
    writable = [node for node in nodes.values() if node.mode & 0o002 and node.kind in ("file", "directory")]
    if writable:
        yield Finding("world-writable", f"In the sysext {name}, everybody may write to {_list(writable)}.", False)
    privileged = [n for n in nodes.values() if n.kind == "file" and n.mode & (stat.S_ISUID | stat.S_ISGID)]
    if privileged:
        yield Finding(
            "setuid", f"The sysext {name} has set-user-id or set-group-id programs: {_list(privileged)}.", False
        )


def _check_builtins(nodes: Mapping[str, Node], name: str, version: str | None) -> Iterator[Finding]:
    if not has_builtins(version):
        return
    for builtin in sorted(conflicting_builtins(nodes)):
        yield Finding(
            f"{builtin.removesuffix('-flatcar')}-conflict",
            f"The sysext {name} takes the place of Flatcar's own {builtin}, which will be switched off.",
            False, f"This is done by the link /etc/extensions/{builtin}.raw to /dev/null.",
        )  # fmt: skip
