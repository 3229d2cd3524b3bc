"""Checking a bake.toml before anybody bakes it, for pull requests: all that can be known without an image.

The file is read, each sysext looked for (local ones are read and linted whole), and then the bake is planned, which
asks the release server for the small signed files that say what a release is. What is wrong with one sysext does not
hide what is wrong with another.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from baker.config import BakeFile, load
from baker.console import Console
from baker.errors import BakeError, EnvironmentFault, ImageError, NetworkError, UsageError, VerificationError
from baker.lock import LOCK_NAME, Lock
from baker.model import Arch
from baker.origins import plan_sysext
from baker.plan import make_plan
from baker.recipe.lines import LineTable, load_lines
from baker.request import BakeRequest, SysextRequest, parse_sysext, parse_vendors
from baker.services import Services
from baker.survey.report import lint_image
from baker.vendor import find_vendors

T = TypeVar("T")

EXIT_CODES = {
    kind.kind: kind.exit_code
    for kind in (UsageError, VerificationError, EnvironmentFault, NetworkError, ImageError, BakeError)
}
"""The status that a program ends with for a finding of each kind."""


@dataclass(frozen=True)
class FileFinding:
    """Something about a bake.toml. `level` is `error` (a bake would refuse it), `warning` or `note`.

    `kind` is that of the error a bake would end with, `code` what exactly it is. `line` counts from 1.
    """

    level: str
    kind: str
    code: str
    message: str
    hint: str
    path: str
    line: int = 1


class _Places:
    """Where in a bake.toml things are said."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._table: LineTable | None = load_lines(path)
            self._lines = path.read_text(encoding="utf-8").splitlines()
        except (UsageError, OSError, UnicodeDecodeError):
            self._table, self._lines = None, []

    def key(self, name: str) -> int:
        """The line of a key; 1 where there is none."""
        return int(self._table.place(name).rpartition(":")[2]) if self._table else 1

    def sysext(self, name: str) -> int:
        """The line where a sysext is asked for, as a word or as a table."""
        word = re.compile(rf"""["']{re.escape(name)}[:@"']""")
        found = [number for number, line in enumerate(self._lines, 1) if word.search(line)]
        return next((number for number in found if number >= self.key("sysexts")), self.key("sysexts"))

    def message(self, text: str) -> int:
        """The line that a message is about: one that it states, or that of the first key that it names; else 0."""
        stated = re.search(r"\(at line (\d+), column \d+\)", text)
        if stated:
            return int(stated[1])
        words = re.findall(r"[A-Za-z_]+", text.removeprefix(str(self._path)))
        lines = [self.key(word) for word in words if self._table and word in self._table.left()]
        return next(iter(lines), 0)


class _Listening(Console):
    """Takes what a plan warns of as findings; notes are passed on to the user's console."""

    def __init__(self, console: Console, warn: Callable[[str], None]) -> None:
        self._console, self._warn = console, warn

    def warn(self, text: str) -> None:
        self._warn(text)

    def note(self, text: str) -> None:
        self._console.note(text)


class FileLint:
    """One lint. `request_of` makes a request of what a bake.toml says, as the bake does."""

    def __init__(self, path: Path, request_of: Callable[[BakeFile], BakeRequest], console: Console) -> None:
        self.findings: list[FileFinding] = []
        self._path, self._request_of, self._console = path, request_of, console
        self._shown = _shown(path)
        self._places = _Places(path)

    def read(self) -> BakeFile | None:
        """Read the file; None, and a finding, if it cannot be."""
        return self._attempt(self._places.message, lambda: load(self._path))

    def check(self, file: BakeFile, services: Callable[[Console], Services], offline: bool) -> None:
        """Check what a file asks for. `offline` leaves out whatever a server would have to be asked."""

        def line(text: str) -> int:
            return self._line_of(text, file)

        sound = tuple(word for word in file.sysexts or () if self._check_word(word, file))
        with services(_Listening(self._console, lambda text: self._warn(text, line(text)))) as opened:
            if offline or (file.sysexts and not sound):
                names = file.vendors or ("generic",)
                arch = file.arch or Arch.X86_64
                self._attempt(line, lambda: find_vendors(parse_vendors(names), arch, opened.vendors))
            if file.sysexts and not sound:
                return
            wanted = dataclasses.replace(file, sysexts=sound)
            request = self._attempt(line, lambda: self._request_of(wanted))
            if request is None:
                return
            kept = tuple(item for item in request.sysexts if self._check_sysext(item, request, opened, offline, file))
            if offline:
                return
            # What a bake would overwrite on somebody's machine is no matter here.
            planned = dataclasses.replace(request, sysexts=kept, force=True)
            self._attempt(line, lambda: make_plan(planned, opened))
            self._check_lock(request, opened)

    def _check_word(self, word: str, file: BakeFile) -> bool:
        name = re.split("[:@]", word, maxsplit=1)[0]
        return (
            self._attempt(lambda _: self._places.sysext(name), lambda: parse_sysext(word, bool(file.fetch)))
            is not None
        )

    def _check_sysext(
        self, item: SysextRequest, request: BakeRequest, services: Services, offline: bool, file: BakeFile
    ) -> bool:
        """Look for one sysext; whether the plan may have it."""
        line = self._places.sysext(item.name)
        if item.path is not None and item.path.is_file():
            return self._check_image(item.name, item.path, request, line)
        if offline and item.path is None:
            self._add("note", "network", "not-checked", f"{item.name} was not looked for: offline.", "", line)
            return True
        if item.path is not None:
            text = f"There is no file {_shown(item.path)} for {item.name}."
            self._add("error", UsageError.kind, "missing", text, "", line)
            return False

        def blamed(text: str) -> int:
            # It may be the bakery, or a key.
            return line if item.name in text else self._line_of(text, file) or line

        return self._attempt(blamed, lambda: plan_sysext(item, request, None, services)) is not None

    def _check_image(self, name: str, path: Path, request: BakeRequest, line: int) -> bool:
        found = self._attempt(lambda _: line, lambda: lint_image(path, name, request.arch, _version(request)))
        for finding in found or ():
            fatal = finding.fatal and finding.code not in request.allow
            level = "error" if fatal else "note" if _told_only(finding.code) else "warning"
            hint = (
                f'{finding.hint} To bake it all the same: allow = ["{finding.code}"]'.strip()
                if fatal
                else finding.hint
            )
            self._add(level, ImageError.kind, finding.code, finding.message, hint, line)
        return found is not None and not any(each.fatal and each.code not in request.allow for each in found)

    def _check_lock(self, request: BakeRequest, services: Services) -> None:
        """A bake.lock beside the file must be of what the file asks for."""
        lock = self._path.parent / LOCK_NAME
        if not lock.is_file() or any(finding.level == "error" for finding in self.findings):
            return
        before = list(self.findings)
        self._attempt(
            lambda _: 1, lambda: make_plan(dataclasses.replace(request, lock=Lock.load(lock), force=True), services)
        )
        # Everything else was said before.
        errors = [each for each in self.findings[len(before) :] if each.level == "error"]
        self.findings = before + [dataclasses.replace(each, code="lock", path=_shown(lock)) for each in errors]

    def _attempt(self, line: Callable[[str], int], work: Callable[[], T]) -> T | None:
        """What `work` gives; None, and a finding, for an expected failure."""
        try:
            return work()
        except BakeError as error:
            self._add("error", error.kind, error.kind, error.message, error.hint or "", line(error.message))
            return None

    def _warn(self, text: str, line: int) -> None:
        self._add("warning", UsageError.kind, "plan", text, "", line)

    def _add(self, level: str, kind: str, code: str, message: str, hint: str, line: int) -> None:
        if any(each.message == message for each in self.findings):
            return  # the plan comes upon it once more
        self.findings.append(FileFinding(level, kind, code, message, hint, self._shown, line or 1))

    def _line_of(self, text: str, file: BakeFile) -> int:
        """The line of the key that a message of the plan is about, by the value that it names; 0 if none."""
        for key, values in _values(file):
            if any(re.search(rf"(?<![\w.-]){re.escape(value)}(?![\w-])", text) for value in values):
                return self._places.key(key)
        return self._places.message(text)


def _values(file: BakeFile) -> Iterator[tuple[str, Collection[str]]]:
    """Key and texts of what a file says."""
    for field in dataclasses.fields(file):
        value: Any = getattr(file, field.name)
        if value is not None and not isinstance(value, bool | int):
            many = value if isinstance(value, tuple) else (value,)
            yield field.name, [str(each) for each in many if len(str(each)) > 1]


def _version(request: BakeRequest) -> str | None:
    """The release's version where the file says it."""
    return request.release if request.release[:1].isdigit() else None


def _told_only(code: str) -> bool:
    """Whether a finding just tells what a bake will do about it."""
    return code.endswith("-conflict")


def _shown(path: Path) -> str:
    """The path as people and CI services know it: from the current folder, where it is below that."""
    relative = os.path.relpath(path)
    return str(path) if relative.startswith("..") else relative


def exit_code(findings: Collection[FileFinding], strict: bool) -> int:
    """The status for these findings: that of the first error's kind; with `strict` warnings count as errors."""
    counted = ("error", "warning") if strict else ("error",)
    bad = sorted((each for each in findings if each.level in counted), key=lambda each: counted.index(each.level))
    return EXIT_CODES.get(bad[0].kind, 1) if bad else 0
