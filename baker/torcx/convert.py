"""`torcx`: the files of a torcx archive at the places where a sysext has them, and units that know nothing of torcx.

archive ─► unpack_archive() ─► manifest, places ─► files, links ─► units ─► drop-ins that start what torcx started
"""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from baker.chroot.tree import Made, make_folder, settle_folders
from baker.chroot.units import is_unit, with_new_places
from baker.errors import ImageError
from baker.extension_release import validate_name
from baker.model import Arch
from baker.survey.elf import header_arch
from baker.survey.units import FOLDERS, SUFFIXES
from baker.torcx.layout import Layout
from baker.torcx.manifest import KINDS, MANIFEST, read_assets, unpack_archive
from baker.torcx.units import Places, image_names, without_torcx

_LARGEST_TEXT = 256 << 10
_TORCX = re.compile(rb"TORCX_[A-Z]+|/run/(?:metadata/)?torcx")
_SHOWN = 5


@dataclass(frozen=True)
class TorcxRequest:
    """Which archive, for the sysext `name`."""

    archive: Path
    name: str
    arch: Arch | None = None
    """None: what its programs are for."""
    drop_capabilities: bool = False


@dataclass
class _Work:
    """What is known while the tree is filled."""

    request: TorcxRequest
    source: Path
    layout: Layout
    made: Made
    programs: dict[str, str] = field(default_factory=dict)
    """Old → new places of programs, as units name them."""


def convert(request: TorcxRequest, target: Path) -> Made:
    """Make the sysext's tree in the new folder `target`, with the unpacked archive beside it.

    Raises UsageError when there is no such file, ImageError that names what is damaged or cannot be in a sysext.
    """
    validate_name(request.name)
    source = target.with_name("unpacked")
    _check_privileges(request, source)
    assets = read_assets(source, request.archive.name)
    layout = Layout(source, request.name, request.archive.name, assets or {})
    target.mkdir()
    work = _Work(request, source, layout, Made(target))
    if assets is None:
        work.made.notes.append(f"the archive has no {MANIFEST}, so everything in it is taken for what it seems")
    for kind in sorted(set(assets or ()) - set(KINDS)):
        work.made.notes.append(f"its manifest lists paths of the kind {kind!r}, which is not known")
    for path in layout.left_out:
        work.made.notes.append(f"{path} is left out: a sysext has no place for it")
    _fill(work)
    work.made.arch = _machine(work)
    _rewrite_units(work)
    _start(work.made)
    _copy_etc(work)
    settle_folders(target)
    return work.made


def _check_privileges(request: TorcxRequest, source: Path) -> None:
    """Unpack the archive; ImageError for programs with privileges that a sysext cannot give."""
    root = unpack_archive(request.archive, source)
    if root.left_out.set_id:
        raise ImageError(
            f"{request.archive.name}: {root.left_out.set_id[0]} is a set-id program, which a sysext must not bring.",
            "Start it by a unit as root, or make the archive without it.",
        )
    capable = root.left_out.capabilities or root.capable
    if capable and not request.drop_capabilities:
        raise ImageError(
            f"{request.archive.name}: {capable[0]} has file capabilities, which a sysext does not carry.",
            "Give them by AmbientCapabilities= of a unit; to go without: --drop-capabilities",
        )
    if root.left_out.devices:
        raise ImageError(f"{request.archive.name}: {root.left_out.devices[0]} is a device, which no sysext can hold.")


def _fill(work: _Work) -> None:
    """Move all files and links to their places."""
    tree = work.made.tree
    for path, kind in work.layout.paths.items():
        new = work.layout.where(path)
        if not new:
            continue
        place, old = tree / new.lstrip("/"), work.source / path.lstrip("/")
        if kind == "folder":
            make_folder(tree, place)
            continue
        make_folder(tree, place.parent)
        if os.path.lexists(place):
            if _alike(old, place):
                continue
            raise ImageError(f"{work.request.archive.name} has two files that would be {new}.")
        if kind == "link":
            place.symlink_to(work.layout.link(path))
            work.programs |= _old_places(path, new)
            continue
        executable = bool(old.stat().st_mode & 0o111)
        old.rename(place)
        for name in os.listxattr(place):
            os.removexattr(place, name)
        place.chmod(0o755 if executable else 0o644)
        work.programs |= _old_places(path, new) if executable else {}
        if new != f"/usr{path}" and new != path:
            work.made.say(new, path, "the manifest lists it" if path in work.layout.listed else "its place", False)
    for path in reversed(sorted({posixpath.dirname(path) for path in work.layout.paths} - {"/"})):
        place = tree / work.layout.where(path).lstrip("/")
        if not any(place.iterdir()):
            place.rmdir()  # all that was in it has gone elsewhere
    for program in work.layout.programs:
        new = work.layout.where(program)
        link = tree / KINDS["bin"].lstrip("/") / posixpath.basename(program)
        if posixpath.dirname(new) != KINDS["bin"] and not os.path.lexists(link):
            make_folder(tree, link.parent)
            link.symlink_to(posixpath.relpath(new, KINDS["bin"]))
            work.made.say(f"{KINDS['bin']}/{link.name}", program, "a program of the manifest", True)


def _old_places(path: str, new: str) -> dict[str, str]:
    """The ways in which units may name what has moved out of an sbin folder; all others are the same on Flatcar."""
    folder, _, name = path.rpartition("/")
    return {f"{each}/{name}": new for each in ("/sbin", "/usr/sbin")} if folder in ("/sbin", "/usr/sbin") else {}


def _alike(one: Path, other: Path) -> bool:
    if one.is_symlink() or other.is_symlink():
        return one.is_symlink() and other.is_symlink() and os.readlink(one) == os.readlink(other)
    return one.is_file() and other.is_file() and one.read_bytes() == other.read_bytes()


def _machine(work: _Work) -> Arch | None:
    """What the programs are for; ImageError when they are for something else than asked, or for several."""
    found: dict[Arch, str] = {}
    for path in _files(work.made.tree):
        with path.open("rb") as file:
            machine = header_arch(file.read(20))
        if machine:
            found.setdefault(machine, f"/{path.relative_to(work.made.tree)}")
    wanted = work.request.arch
    if wanted is None and len(found) > 1:
        raise ImageError(
            f"{work.request.archive.name} has programs for {' and '.join(found)}.",
            "Say which it is for: --arch x86-64",
        )
    if wanted is not None and found and wanted not in found:
        other, program = next(iter(found.items()))
        raise ImageError(f"{program} is for {other}, not for {wanted}.", f"Use --arch {other}, or another archive.")
    return wanted or next(iter(found), None)


def _files(tree: Path) -> Iterator[Path]:
    for folder, _, names in os.walk(tree):
        for name in sorted(names):
            path = Path(folder) / name
            if path.is_file() and not path.is_symlink():
                yield path


def _rewrite_units(work: _Work) -> None:
    """Take torcx out of units and drop-ins, and say what else still relies on it."""
    units: list[tuple[str, Path]] = []
    others: list[tuple[str, Path]] = []
    for path in _files(work.made.tree):
        if path.stat().st_size <= _LARGEST_TEXT:
            inside = f"/{path.relative_to(work.made.tree)}"
            (units if is_unit(inside) else others).append((inside, path))
    texts = {inside: path.read_text("utf-8", "surrogateescape") for inside, path in units}
    names = {name for text in texts.values() for name in image_names(text)}
    names |= {work.request.name, work.request.archive.name.partition(":")[0].partition(".torcx")[0]}
    # With a usr/ in the archive, paths below it must not become /usr/usr.
    unpack_dir = "/" if work.layout.has_usr else "/usr"
    places = Places(lambda path: work.layout.where(path) or path, names, unpack_dir)
    for inside, path in units:
        new = without_torcx(texts[inside], places)
        text = with_new_places(new.text, work.programs)
        if text != texts[inside]:
            path.write_text(text, "utf-8", "surrogateescape")
            work.made.say(inside, "", "changed: it no longer relies on torcx", True)
        for setting in new.left:
            work.made.notes.append(f"{inside} still says {setting}")
    relying = [inside for inside, path in others if _TORCX.search(path.read_bytes())]
    if relying:
        more = f" and {len(relying) - _SHOWN} more" if len(relying) > _SHOWN else ""
        work.made.notes.append(f"these speak of torcx, and may need a change: {', '.join(relying[:_SHOWN])}{more}")


def _start(made: Made) -> None:
    """Let targets uphold what torcx linked into their .wants and .requires.

    Such links do nothing for a sysext that is merged when the target has been reached; systemd looks at Upholds=
    when it loads its configuration again. The links stay, for where the sysext is there in time.
    """
    for folder in FOLDERS:
        base = made.tree / folder.lstrip("/")
        for links in sorted([*base.glob("*.wants"), *base.glob("*.requires")]):
            wanting = links.name.rpartition(".")[0]
            if links.is_symlink() or not links.is_dir() or not wanting.endswith(".target"):
                continue  # a unit that starts later than the merge does find its links
            for link in sorted(links.iterdir()):
                if not link.name.endswith(SUFFIXES) or not re.fullmatch(r"[\w:.\\@-]+", link.name):
                    made.notes.append(f"{folder}/{links.name}/{link.name!r} is no unit")
                    continue
                path = f"{folder}/{wanting}.d/10-{link.name.replace('.', '-')}.conf"
                file = made.tree / path.lstrip("/")
                if os.path.lexists(file):
                    continue
                make_folder(made.tree, file.parent)
                file.write_text(f"[Unit]\nUpholds={link.name}\n")
                file.chmod(0o644)
                made.say(path, "", f"lets {wanting} start {link.name}", True)


def _copy_etc(work: _Work) -> None:
    """Let tmpfiles.d put what was in the archive's etc/ into /etc, where nothing of that name is."""
    share = f"/usr/share/{work.request.name}/etc"
    lines = []
    for folder, folders, names in os.walk(work.made.tree / share.lstrip("/")):
        inner = os.path.relpath(folder, work.made.tree / share.lstrip("/"))
        # Links to folders are among the folders.
        links = [name for name in folders if os.path.islink(os.path.join(folder, name))]
        for name in sorted([*names, *links]):
            path = posixpath.normpath(f"{inner}/{name}")
            lines.append(f"C {_quoted(f'/etc/{path}')} - - - - {_escaped(f'{share}/{path}')}")
    if not lines:
        return
    place = f"{KINDS['tmpfiles']}/{work.request.name}-etc.conf"
    file = work.made.tree / place.lstrip("/")
    make_folder(work.made.tree, file.parent)
    file.write_text("".join(f"{line}\n" for line in sorted(lines)), "utf-8", "surrogateescape")
    file.chmod(0o644)
    work.made.say(place, "", "copies what the archive has in /etc, unless it is there", True)


def _escaped(path: str) -> str:
    """A path as tmpfiles.d(5) reads the last field, which takes all there is: percent signs are specifiers."""
    return path.replace("%", "%%")


def _quoted(path: str) -> str:
    """A path as tmpfiles.d(5) reads the second field: blanks end it, unless it is quoted."""
    path = _escaped(path)
    if re.search(r"""[\s"'\\]""", path):
        escaped = path.replace("\\", "\\\\").replace('"', '\\"')
        return f'"{escaped}"'
    return path
