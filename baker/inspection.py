"""Looking into a disk image, baked or not: partitions, release, OEM, sysexts, updates, free space. Changes nothing."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from baker.convert import to_raw
from baker.debugfs import Debugfs
from baker.disk import extract, read_table
from baker.errors import ImageError, UsageError
from baker.extension_release import MAX_RELEASE_SIZE, parse_release
from baker.formats.probe import image_info
from baker.ignition import BASE_PATH, MAX_SIZE
from baker.ignition import parse_config as parse_ignition
from baker.inject import Editor
from baker.layout import describe
from baker.model import Arch, Node, Partition
from baker.offline import OfflineEditor
from baker.printable import printable
from baker.run import Bounds, CommandFailed, run
from baker.sysext import lint, read_sysext
from baker.sysupdate import TransferConfig, matches, parse_config

_TIMER_LINK = "/etc/systemd/system/timers.target.wants/systemd-sysupdate.timer"
_COMPONENT = re.compile(r"/etc/sysupdate\.([^/]+)\.d/[^/]+\.(?:conf|transfer)")
_OEM_MOUNTS = ("/oem", "/usr/share/oem")
_OS_RELEASE_PATHS = r"^/(|lib(|/os-release))$"  # for btrfs: the file and every folder on the way to it
_EXT_ROOT = 2  # the inode number
_MAX_READ = 512 << 20  # a larger sysext is listed, not looked into: it passes through memory
_MAX_HOPS = 10


@dataclass(frozen=True)
class BakedSysext:
    """One entry of ROOT:/etc/extensions, `link`, and the `path` on a partition that it leads to.

    `state` is `baked` (that is a file on ROOT or OEM), `off` (a link to /dev/null, which switches a built-in sysext
    off), `built-in` (a file of /usr), or `missing`.
    """

    name: str
    link: str
    state: str
    partition: str = ""
    path: str = ""
    size: int = 0
    fs: str = ""
    os_id: str = ""
    version_id: str = ""
    sysext_level: str = ""
    architecture: str = ""
    findings: tuple[str, ...] = ()
    """Sentences: what the lint, or the attempt to read it, says."""


@dataclass(frozen=True)
class Component:
    """A sysext that systemd-sysupdate knows: its configs, and the version it reads from the baked file's name."""

    name: str
    configs: tuple[str, ...]
    source: str = ""
    version: str = ""


@dataclass(frozen=True)
class Inspection:
    """What is in an image. Sizes are bytes. `problems` are sentences about what could not be read or is wrong."""

    image: str
    format: str
    size: int
    disk_guid: str
    generation: str
    layout: str
    partitions: tuple[Partition, ...]
    release: Mapping[str, str] = field(default_factory=dict)
    first_boot: bool | None = None
    oem: str = ""
    oem_files: Mapping[str, int] = field(default_factory=dict)
    sysexts: tuple[BakedSysext, ...] = ()
    components: tuple[Component, ...] = ()
    updates: bool = False
    free: Mapping[str, int] = field(default_factory=dict)
    problems: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def read_os_release(image: Path, partition: Partition, work: Path) -> dict[str, str]:
    """The fields of usr/lib/os-release in a USR partition of a raw image: btrfs, or ext2 before release 3794.

    Raises ImageError when the partition holds something else, is damaged or has no os-release.
    """
    with TemporaryDirectory(dir=work, prefix="usr-") as folder:
        if partition.fs == "btrfs":
            data = _os_release_of_btrfs(image, partition, Path(folder))
        elif partition.fs.startswith("ext"):
            data = _os_release_of_ext(image, partition, Path(folder))
        else:
            raise ImageError(f"{partition.label} holds {partition.fs or 'no known filesystem'}, not Flatcar's /usr.")
    if data is None:
        raise ImageError(f"{partition.label} has no lib/os-release, so it is not Flatcar's /usr.")
    return parse_release(data)


def _os_release_of_btrfs(image: Path, partition: Partition, folder: Path) -> bytes | None:
    file = folder / "partition"
    extract(image, partition, file)
    try:
        run(["btrfs", "restore", "--path-regex", _OS_RELEASE_PATHS, file, folder], bounds=Bounds(writable=(folder,)))
    except CommandFailed as error:
        raise ImageError(f"The filesystem of {partition.label} is damaged.", error.message) from error
    found = folder / "lib/os-release"  # never a link: btrfs restores those only when asked to
    return found.read_bytes() if found.is_file() else None


def _os_release_of_ext(image: Path, partition: Partition, folder: Path) -> bytes | None:
    debugfs = Debugfs(image, partition, folder, 0)
    inode = _EXT_ROOT
    for name in (b"lib", b"os-release"):
        below = {entry.name: entry.inode for entry in debugfs.listing([inode])[0]}
        if name not in below:
            return None
        inode = below[name]
    return debugfs.content(inode, MAX_RELEASE_SIZE + 1)


def inspect_image(image: Path, work: Path) -> Inspection:
    """Look into a raw or qcow2 image; `work` is a folder for temporary files, as large as the image's data.

    What cannot be read becomes one of the `problems`; ImageError is raised only when there is no partition table to
    go by.
    """
    info = image_info(image)
    raw = image
    if info.format != "raw":
        raw = work / "inspected.raw"
        to_raw(image, raw)
    table = read_table(raw)
    problems: list[str] = []
    found: dict[str, Any] = {}
    with _noting(problems):
        found["generation"], found["layout"] = describe(table)
    with _noting(problems):
        found["release"] = read_os_release(raw, table.get("USR-A"), work)
    with _noting(problems):
        found["first_boot"] = _first_boot(raw, table.get("EFI-SYSTEM"))
    with _noting(problems), OfflineEditor(raw, work, 0) as editor:
        found |= _Reader(editor, work, found.get("release", {}), problems).read()
    return Inspection(
        image=str(image), format=info.format, size=info.virtual_size, disk_guid=table.guid,
        partitions=table.partitions, problems=tuple(problems),
        **{"generation": "unknown", "layout": "unknown"} | found,
    )  # fmt: skip


@contextmanager
def _noting(problems: list[str]) -> Iterator[None]:
    """Errors about the image become problems, and the rest of it is still looked at."""
    try:
        yield
    except ImageError as error:
        problems.append(error.message)


def _first_boot(image: Path, partition: Partition) -> bool:
    """Whether the flag file is there by which GRUB knows the first boot, when Ignition runs."""

    def exists(path: str) -> bool:
        command = ["mdir", "-b", "-i", f"{image.absolute()}@@{partition.offset}", f"::{path}"]
        return run(command, env={"MTOOLS_SKIP_CHECK": "1"}, ok=(0, 1), bounds=Bounds()).status == 0

    if not exists("/flatcar"):
        raise ImageError(f"{partition.label} has no readable folder /flatcar.")
    return exists("/flatcar/first_boot")


class _Reader:
    """Reads what a bake puts on ROOT and OEM, through an editor that is only asked."""

    def __init__(self, editor: Editor, work: Path, release: Mapping[str, str], problems: list[str]) -> None:
        self._editor, self._work, self._problems = editor, work, problems
        self._version = release.get("VERSION_ID")
        self._arch = {arch.board: arch for arch in Arch}.get(release.get("FLATCAR_BOARD", ""))

    def read(self) -> dict[str, Any]:
        """Fields of `Inspection`; those that could not be read are left out."""
        found: dict[str, Any] = {}
        with _noting(self._problems):
            etc = dict(sorted((self._from_base_config() | self._editor.tree("ROOT", "/etc")).items()))
            found["updates"] = _TIMER_LINK in etc
            links = [node for node in etc.values() if posixpath.dirname(node.path) == "/etc/extensions"]
            found["sysexts"] = tuple(self._sysext(node) for node in links)
            found["components"] = tuple(self._components(etc, found["sysexts"]))
        with _noting(self._problems):
            nodes = self._editor.tree("OEM").values()
            found["oem_files"] = {node.path: node.size for node in nodes if node.kind == "file"}
            oem_release = self._editor.read("OEM", "/oem-release", MAX_RELEASE_SIZE + 1)
            found["oem"] = parse_release(oem_release or b"").get("ID", "")
        found["free"] = {}
        for label in ("ROOT", "OEM"):
            with _noting(self._problems):
                found["free"][label] = self._editor.free_bytes(label)
        return found

    def _from_base_config(self) -> dict[str, Node]:
        """The links that the first boot will make, as the base Ignition config on OEM says."""
        try:
            data = self._editor.read("OEM", BASE_PATH, MAX_SIZE)
            declared = parse_ignition(data, f"OEM:{BASE_PATH}").nodes("links") if data else []
        except (ImageError, UsageError) as error:
            self._problems.append(error.message)
            return {}
        return {
            link["path"]: Node(link["path"], "symlink", 0o777, 0, 0, 0, symlink=str(link.get("target")))
            for link in declared
        }

    def _sysext(self, node: Node) -> BakedSysext:
        name = posixpath.basename(node.path).removesuffix(".raw")
        label, path, end = self._follow(node)
        entry = BakedSysext(name, node.path, "missing", label, path)
        if path == "/dev/null":
            return replace(entry, state="off", partition="")
        if end is None:
            built_in = label == "USR"
            missing = f"The link {node.path} leads to {path}, which is not there."
            return replace(entry, state="built-in") if built_in else replace(entry, findings=(missing,))
        entry = replace(entry, state="baked", size=end.size)
        return self._described(entry) if end.kind == "file" else entry

    def _follow(self, node: Node) -> tuple[str, str, Node | None]:
        """Where a link of ROOT leads in the running system: partition label, path on it, and what is there."""
        label, here, found = "ROOT", node.path, node
        for _ in range(_MAX_HOPS):
            if found.kind != "symlink":
                return label, here, found
            mount = _OEM_MOUNTS[0] if label == "OEM" else ""
            label, here = _locate(posixpath.join(mount + posixpath.dirname(here), found.symlink))
            below = self._editor.tree(label, here).get(here) if label != "USR" and here != "/dev/null" else None
            if below is None:
                return label, here, None
            found = below
        return label, here, None

    def _described(self, entry: BakedSysext) -> BakedSysext:
        """With what the sysext says about itself, and what the lint says about it."""
        if entry.size > _MAX_READ:
            return replace(entry, findings=("It is too large to be looked into.",))
        with TemporaryDirectory(dir=self._work, prefix="sysext-") as folder:
            file = Path(folder) / posixpath.basename(entry.path)
            file.write_bytes(self._editor.read(entry.partition, entry.path, entry.size) or b"")
            try:
                sysext = read_sysext(file, entry.name)
                findings = lint(sysext, self._arch, self._version) if self._arch else []
            except ImageError as error:
                return replace(entry, findings=(error.message,))
        return replace(
            entry, fs=sysext.fs, os_id=sysext.os_id, version_id=sysext.version_id, sysext_level=sysext.sysext_level,
            architecture=sysext.architecture, findings=tuple(finding.message for finding in findings),
        )  # fmt: skip

    def _components(self, etc: Mapping[str, Node], sysexts: Iterable[BakedSysext]) -> Iterator[Component]:
        configs: dict[str, list[str]] = {}
        for path in etc:
            if match := _COMPONENT.fullmatch(path):
                configs.setdefault(match[1], []).append(path)
        files = {entry.name: posixpath.basename(entry.path) for entry in sysexts if entry.state == "baked"}
        for name, paths in configs.items():
            try:
                config = parse_config(self._editor.read("ROOT", paths[0]) or b"")
            except ImageError as error:
                self._problems.append(f"The sysupdate config {paths[0]} {error.message}.")
                yield Component(name, tuple(paths))
                continue
            yield Component(name, tuple(paths), config.source_path, self._version_of(files.get(name, ""), config))

    def _version_of(self, file_name: str, config: TransferConfig) -> str:
        if self._arch is None:
            return ""
        versions = (matches(pattern, file_name, self._arch) for pattern in config.target_patterns)
        return next((version for version in versions if version), "")


def _locate(path: str) -> tuple[str, str]:
    """The partition that an absolute path of the running system is on, and the path within it."""
    path = posixpath.normpath(path)
    for mount in _OEM_MOUNTS:
        if path.startswith(f"{mount}/"):
            return "OEM", path.removeprefix(mount)
    return ("USR" if path.startswith("/usr/") else "ROOT"), path


def render(inspection: Inspection) -> str:
    """The inspection as plain text for a person, without control characters from the image."""
    lines = [*_overview(inspection), *_partition_lines(inspection), *_content_lines(inspection)]
    lines += [f"problem     {problem}" for problem in inspection.problems]
    return "\n".join(map(printable, lines))


def _overview(found: Inspection) -> list[str]:
    version = found.release.get("VERSION_ID", "unknown")
    name, board = found.release.get("NAME", "unknown system"), found.release.get("FLATCAR_BOARD", "")
    first = {True: "yes, Ignition will run", False: "no, it was booted before", None: "unknown"}[found.first_boot]
    return [
        f"image       {found.image}: {found.format}, {_size(found.size)}",
        f"release     {name} {version}{f' for {board}' if board else ''}",
        f"disk        layout {found.layout}, {found.generation} generation, GUID {found.disk_guid}",
        f"first boot  {first}",
    ]


def _partition_lines(found: Inspection) -> Iterator[str]:
    for part in found.partitions:
        free = f", {_size(found.free[part.label])} free" if part.label in found.free else ""
        name = part.label or "(no label)"
        yield f"partition   {part.number} {name:<11} {_size(part.size):>10} {part.fs or '-'}{free}"


def _content_lines(found: Inspection) -> Iterator[str]:
    yield f"oem         {found.oem or 'none'}"
    yield from (f"            /oem{path} {_size(size)}" for path, size in found.oem_files.items())
    if not found.sysexts:
        yield "sysexts     none"
    for entry in found.sysexts:
        place = f"{entry.partition}:{entry.path}, {entry.state}, {_size(entry.size)}"
        place = {"off": "switched off", "built-in": f"built in: {entry.path}"}.get(entry.state, place)
        yield f"sysext      {entry.name}: {place}"
        said = {"ID": entry.os_id, "VERSION_ID": entry.version_id, "SYSEXT_LEVEL": entry.sysext_level,
                "ARCHITECTURE": entry.architecture}  # fmt: skip
        if entry.fs:
            yield f"            {entry.fs}, {' '.join(f'{key}={value}' for key, value in said.items() if value)}"
        yield from (f"            ! {finding}" for finding in entry.findings)
    for component in found.components:
        version = component.version or "of no version that it can tell"
        yield f"updates     {component.name} {version}, from {component.source or 'an unreadable config'}"
    if found.components:
        yield f"            {'run by systemd-sysupdate.timer' if found.updates else 'the timer is not enabled'}"


def _size(count: int) -> str:
    """Bytes for a person: 1536 -> 1.5 KiB."""
    value, unit = float(count), "B"
    for larger in ("KiB", "MiB", "GiB"):
        if value < 1024:
            break
        value, unit = value / 1024, larger
    return f"{count} B" if unit == "B" else f"{value:.1f} {unit}"
