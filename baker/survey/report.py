"""What is in a sysext image, for people and for programs: the result of `sysext inspect`."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from baker.contents import Contents, open_contents, resolve
from baker.errors import ImageError, UsageError
from baker.extension_release import validate_name
from baker.model import Arch, Sysext
from baker.printable import printable
from baker.survey.elf import Elf
from baker.survey.findings import elf_files, survey_findings
from baker.survey.units import Units, read_units
from baker.sysext import Finding, describe, lint_opened, names_within, read_sysext
from baker.treelint import conflicting_builtins

_SHOWN = 40  # programs in the text; JSON has all


@dataclass(frozen=True)
class Unit:
    """A systemd unit of the image. Without anything that starts it, it waits for the user to."""

    name: str
    path: str
    started_by: tuple[str, ...]


@dataclass(frozen=True)
class Program:
    """An ELF file, and the libraries and interpreter it needs that the image does not bring itself."""

    path: str
    arch: str
    static: bool
    from_os: tuple[str, ...]


@dataclass(frozen=True)
class Report:
    """Everything about an image. `bytes` is what its files hold, `size` what the image takes."""

    sysext: Sysext
    files: int
    directories: int
    symlinks: int
    bytes: int
    units: tuple[Unit, ...]
    drop_ins: tuple[str, ...]
    programs: tuple[Program, ...]
    replaces: tuple[str, ...]
    """Flatcar's built-in sysexts that it takes the place of."""
    why_unread: str = ""

    @property
    def from_os(self) -> tuple[str, ...]:
        """What all programs together need of the system."""
        return tuple(sorted({name for program in self.programs for name in program.from_os}))

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        fields = asdict(self)
        sysext: dict[str, Any] = fields.pop("sysext") | {"path": str(self.sysext.path)}
        return sysext | fields | {"from_os": list(self.from_os)}


def own_name(path: Path) -> str:
    """The name an image goes by: that of its extension-release file, or the file's own for want of one.

    Raises UsageError and ImageError as `open_contents`.
    """
    with open_contents(path) as opened:
        names = names_within(opened.contents) if opened.contents else []
    stem = path.name.removesuffix(".raw")
    if len(names) != 1:
        fitting = [name for name in names if stem == name or stem.startswith(f"{name}-")]
        names = [max(fitting, key=len)] if fitting else [re.sub(r"[^A-Za-z0-9._+@-]", "_", stem)]
    try:
        return validate_name(names[0])
    except UsageError as error:
        raise ImageError(f"{path.name}: {error.message}", error.hint) from error


def lint_image(path: Path, name: str, arch: Arch | None, version: str | None) -> list[Finding]:
    """All findings about an image: those that a bake looks at, then those about its units and programs.

    Without `arch` its own claim counts. Errors as `read_sysext`.
    """
    return examine(path, name, arch, version)[1]


def examine(path: Path, name: str, arch: Arch | None, version: str | None) -> tuple[Sysext, list[Finding]]:
    """What an image says about itself, and all findings about it, in one reading."""
    with open_contents(path) as opened:
        sysext = describe(opened, path, name)
        findings = lint_opened(opened, sysext, arch, version)
        claimed = next((known for known in Arch if known == sysext.architecture), None)
        if opened.contents is not None:
            findings += survey_findings(opened.contents, name, claimed)
    return sysext, findings


def report(path: Path, name: str) -> Report:
    """Look into an image. Errors as `read_sysext`."""
    sysext = read_sysext(path, name)
    with open_contents(path) as opened:
        if opened.contents is None:
            return Report(sysext, 0, 0, 0, 0, (), (), (), (), opened.why_not)
        contents = opened.contents
        kinds = Counter(node.kind for node in contents.nodes.values())
        units = read_units(contents)
        return Report(
            sysext, kinds["file"], kinds["directory"], kinds["symlink"],
            sum(node.size for node in contents.nodes.values()), tuple(_units(units)),
            tuple(drop_in.path for drop_in in units.drop_ins), tuple(_programs(contents)),
            tuple(sorted(conflicting_builtins(contents.nodes))),
        )  # fmt: skip


def _units(units: Units) -> list[Unit]:
    return [Unit(name, file.path, tuple(units.starters.get(name, ()))) for name, file in sorted(units.units.items())]


def _programs(contents: Contents) -> list[Program]:
    within = {path.rpartition("/")[2] for path in contents.nodes}
    return [
        Program(path, elf.arch, elf.is_static, tuple(_from_os(contents, elf, within)))
        for path, elf in sorted(elf_files(contents))
    ]


def _from_os(contents: Contents, elf: Elf, within: set[str]) -> list[str]:
    interpreter = re.sub(r"^/(lib|lib64)/", r"/usr/\1/", elf.interpreter)
    missing = [elf.interpreter] if interpreter and resolve(contents, interpreter) is None else []
    return missing + [name for name in elf.needed if name.rpartition("/")[2] not in within]


def render(found: Report) -> str:
    """A report as text, safe for a terminal."""
    sysext = found.sysext
    lines = [
        f"name          {sysext.name}",
        f"file          {sysext.path} ({sysext.size / 1e6:.1f} MB, {sysext.fs})",
        f"sha256        {sysext.sha256}",
        f"made for      {_made_for(sysext)}",
        f"reload        {'systemd loads its units at once' if sysext.reload_manager else 'no'}",
    ]
    if found.why_unread:
        return _safe([*lines, f"content       not read: {found.why_unread}"])
    lines.append(
        f"content       {found.files} files with {found.bytes / 1e6:.1f} MB, {found.directories} folders, "
        f"{found.symlinks} links"
    )
    lines += _section("replaces", [f"Flatcar's own {name}" for name in found.replaces])
    lines += _section(
        "units", [f"{unit.name}: {', '.join(unit.started_by) or 'not started by itself'}" for unit in found.units]
    )
    lines += _section("drop-ins", list(found.drop_ins))
    programs = [_program_line(program) for program in found.programs]
    more = [f"and {len(programs) - _SHOWN} more (--json lists all)"] if len(programs) > _SHOWN else []
    lines += _section("programs", programs[:_SHOWN] + more)
    lines += _section("needs of OS", list(found.from_os))
    return _safe(lines)


def render_findings(path: Path, findings: list[Finding]) -> str:
    """What the lint found in an image as text, safe for a terminal."""
    lines = [f"{path}: {f'{len(findings)} findings' if findings else 'ok'}"]
    for finding in findings:
        lines.append(f"  {'fatal' if finding.fatal else 'note '}  {finding.code}: {finding.message}")
        lines += [f"         {finding.hint}"] if finding.hint else []
    return _safe(lines)


def _made_for(sysext: Sysext) -> str:
    system = {"": "nothing: it has no ID", "_any": "any system"}.get(sysext.os_id, sysext.os_id)
    level = f" level {sysext.sysext_level}" if sysext.sysext_level else ""
    version = f" {sysext.version_id}" if sysext.version_id else ""
    return f"{system}{version}{level}, {sysext.architecture or 'any architecture'}"


def _program_line(program: Program) -> str:
    if program.static:
        return f"{program.path}: {program.arch}, static"
    return f"{program.path}: {program.arch}, needs {', '.join(program.from_os) or 'nothing that is not in the image'}"


def _section(title: str, items: list[str]) -> list[str]:
    return [f"{title if not number else '':<13} {item}" for number, item in enumerate(items)]


def _safe(lines: list[str]) -> str:
    return "\n".join(map(printable, lines))
