"""What `sysext lint` says about units and programs, beyond the rules that decide whether Flatcar merges an image.

None of it is fatal: the sysext would merge, but something in it would not work as meant.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import TypeVar

from baker.contents import Contents, resolve
from baker.erofs import Unsupported
from baker.model import Arch, Node
from baker.survey.elf import Elf, read_elf, read_machine
from baker.survey.units import SUFFIXES, UnitFile, Units, read_units
from baker.treelint import Finding

T = TypeVar("T")

_MAX_PROGRAMS = 200
_EXEC = ("ExecStartPre", "ExecCondition", "ExecStart", "ExecStartPost", "ExecReload", "ExecStop", "ExecStopPost")
_SECTIONS = ("Service", "Socket", "Mount", "Swap")
_SEARCHED = ("/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin")

# Programs that every Flatcar release has, and units likewise use: coreutils, util-linux, systemd and the like.
OF_THE_SYSTEM = frozenset(
    """
    sh bash awk basename cat chgrp chmod chown cp cut date dd df dirname du echo env expr false find getent grep gawk
    groupadd head hostname hostnamectl id install ip iptables ip6tables iptables-save iptables-restore ipset ipvsadm
    journalctl jq kill killall ln logger losetup ls lsblk lsmod md5sum mkdir mkfifo mknod mktemp modprobe mount
    mountpoint mv networkctl nft nsenter pgrep pidof ping pkill printf ps pwd readlink realpath resolvectl rm rmdir
    rmmod rsync sed seq setcap setfacl sha256sum sleep sort stat stdbuf stty sync sysctl systemctl systemd-cat
    systemd-notify systemd-run systemd-sysext systemd-sysusers systemd-tmpfiles tail tar tee test timeout touch tr true
    tty udevadm umount uname unlink unshare useradd usermod wc wget curl xargs blkid fsck mkfs.ext4 mkfs.btrfs mkfs.xfs
    swapon swapoff depmod insmod ethtool bridge tc ss socat openssl gpg git vim
    """.split()  # noqa: SIM905
)
_UNITS_OF_THE_SYSTEM = re.compile(
    r"(systemd-.*|.*\.(target|slice|device|mount|swap)|(docker|containerd)\.(service|socket)|dbus\.(service|socket)|"
    r"sshd\.(service|socket)|update-engine\.service|locksmithd\.service|iptables-.*|.*@.*)"
)


def elf_files(contents: Contents) -> Iterator[tuple[str, Elf]]:
    """The programs and libraries of a tree; those whose content cannot be read are left out."""
    yield from _elf_files(contents, read_elf)


def _elf_files(contents: Contents, look: Callable[[Callable[[int], bytes]], T | None]) -> Iterator[tuple[str, T]]:
    files = [node for node in contents.nodes.values() if node.kind == "file" and _may_be_elf(node)]
    for node in files[:_MAX_PROGRAMS]:
        try:
            found = look(lambda limit, path=node.path: contents.read(path, limit))  # type: ignore[misc]
        except Unsupported:
            continue
        if found is not None:
            yield node.path, found


def _may_be_elf(node: Node) -> bool:
    return bool(node.mode & 0o111) or ".so" in node.path.rpartition("/")[2]


def survey_findings(contents: Contents, name: str, arch: Arch | None) -> Iterator[Finding]:
    """Findings about the units and programs of the sysext `name`; machines are compared with `arch` if it is known."""
    units = read_units(contents)
    yield from _ignored(units, name)
    yield from _missing_units(contents, units, name)
    for file in [*units.units.values(), *units.drop_ins]:
        yield from _missing_programs(contents, file, name)
    if arch is not None:
        yield from _machines(contents, name, arch)


def _ignored(units: Units, name: str) -> Iterator[Finding]:
    for path in units.ignored:
        folder, _, file = path.rpartition("/")
        if folder.endswith(".d"):
            what, hint = "drop-in", f"Name it {file.rpartition('.')[0] or file}.conf."
        else:
            what, hint = "unit", f"A unit's name ends in one of {' '.join(SUFFIXES)}."
        yield Finding("ignored-unit", f"systemd ignores {path!r} of the sysext {name}: no {what}'s name.", False, hint)


def _missing_units(contents: Contents, units: Units, name: str) -> Iterator[Finding]:
    for unit, starters in sorted(units.starters.items()):
        upheld = [how for how in starters if how.startswith(("upheld by", "wanted by", "activated by"))]
        if upheld and unit not in units.units and not _UNITS_OF_THE_SYSTEM.fullmatch(unit):
            yield Finding(
                "missing-unit", f"The unit {unit!r} is {upheld[0]}, but the sysext {name} does not have it.", False,
                "Put the unit into usr/lib/systemd/system, or correct its name.",
            )  # fmt: skip


def _missing_programs(contents: Contents, file: UnitFile, name: str) -> Iterator[Finding]:
    for program in sorted(_programs(file)):
        found = _find(contents, program)
        if found is None:
            if program.rpartition("/")[2] not in OF_THE_SYSTEM:
                yield Finding(
                    "missing-program",
                    f"The unit {file.unit!r} of the sysext {name} runs {program!r}, which is not in it.", False,
                    f"Put it there, unless Flatcar or another sysext has it. The unit is {file.path}.",
                )  # fmt: skip
        elif found.kind == "file" and not found.mode & 0o111:
            yield Finding(
                "not-executable", f"The unit {file.unit!r} of the sysext {name} runs {program!r}, which has no x bit.",
                False, f"chmod 0755 {found.path.lstrip('/')}",
            )  # fmt: skip


def _programs(file: UnitFile) -> set[str]:
    """The programs that the Exec lines begin with, as far as they are plain words."""
    words = set()
    for section in _SECTIONS:
        for key in _EXEC:
            for value in file.values(section, key):
                # Prefixes of systemd.service(5): a missing program is forgiven after "-".
                match = re.match(r"([@:+!|-]*)\"?([^\s\";]+)", value)
                if match and "-" not in match[1] and not re.search(r"[$%\\']", match[2]):
                    words.add(match[2])
    return words


def _find(contents: Contents, program: str) -> Node | None:
    """Where a program is in the tree. Those outside /usr are the user's, so they count as found."""
    if "/" in program:
        path = re.sub(r"^/(bin|sbin|lib|lib64)/", r"/usr/\1/", program)
        if not path.startswith("/usr/"):
            return Node(path, "other", 0, 0, 0, 0)
        candidates = [path, path.replace("/sbin/", "/bin/")]
    else:
        candidates = [f"{folder}/{program}" for folder in _SEARCHED]
    for path in candidates:
        node = contents.nodes.get(path)
        if node is not None and node.kind == "symlink":
            target = resolve(contents, path)
            return contents.nodes[target] if target else node  # a link out of the image is the user's affair
        if node is not None:
            return node
    return None


def _machines(contents: Contents, name: str, arch: Arch) -> Iterator[Finding]:
    machines = _elf_files(contents, read_machine)
    wrong = [(path, machine) for path, machine in machines if machine in tuple(Arch) and machine != arch]
    if wrong:
        path, machine = wrong[0]
        more = f", and {len(wrong) - 1} more files" if len(wrong) > 1 else ""
        yield Finding(
            "wrong-machine", f"The sysext {name} is for {arch}, but {path!r} is for {machine}{more}.", False,
            f"Get the {arch} build of it.",
        )  # fmt: skip
