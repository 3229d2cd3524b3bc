"""Texts rendered from the templates of the vendor catalogue, by Jinja2.

What a value may hold is not known to a template's author: names come from users, images and servers. So every value
that a template puts out is made safe for the kind of text it goes into, which the template's suffix tells
(`vmware.vmx.j2` makes a VMX). No filter has to be remembered, and none can be forgotten. Only in a comment, where
quotes would be odd, a template says `{{ value | line }}`: the value as one line of text.
"""

from __future__ import annotations

import json
import re
import shlex
import traceback
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path

from jinja2 import FileSystemLoader, StrictUndefined, TemplateNotFound, Undefined
from jinja2.exceptions import TemplateError, TemplateSyntaxError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from baker.errors import UsageError
from baker.printable import printable

SUFFIX = ".j2"


def render(folder: Path, name: str, values: Mapping[str, object]) -> str:
    """Fill in the template `folder/name`; it may include others of its folder.

    Raises UsageError with the template's line for one that is wrong or uses a value that does not exist. A BakeError
    raised by a function among the values passes through.
    """
    try:
        return _environment(folder, _kind(name)).get_template(name).render(values)
    except TemplateNotFound as error:
        raise UsageError(f"There is no template {error.name} in {folder}.") from error
    except TemplateSyntaxError as error:
        raise UsageError(f"{error.filename or folder / name}:{error.lineno}: {error.message}.") from error
    except (TemplateError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename.endswith(SUFFIX)]
        where = f"{frames[-1].filename}:{frames[-1].lineno}" if frames else str(folder / name)
        raise UsageError(f"{where}: {error}.") from error


def _kind(name: str) -> str:
    """The suffix that tells what a template makes: `sh` of `qemu.sh.j2`; "" without one."""
    return Path(name.removesuffix(SUFFIX)).suffix.removeprefix(".")


@cache
def _environment(folder: Path, kind: str) -> ImmutableSandboxedEnvironment:
    """Templates of a user's own vendors may be somebody else's work, hence the sandbox."""
    environment = ImmutableSandboxedEnvironment(
        loader=FileSystemLoader(folder), undefined=StrictUndefined, keep_trailing_newline=True,
        trim_blocks=True, lstrip_blocks=True, autoescape=kind in _XML, finalize=_finalizer(kind),
    )  # fmt: skip
    environment.filters["line"] = lambda value: _Line(_text(value))
    return environment


class _Line(str):
    """A value that the template put into a comment."""


def _finalizer(kind: str) -> Callable[[object], object]:
    """What makes the values of this kind of text safe."""
    escape = _ESCAPES.get(kind, _text)

    def finalize(value: object) -> object:
        # An undefined value complains when it becomes a text, so it must not become one here unnoticed.
        return value if isinstance(value, Undefined) else _text(value) if isinstance(value, _Line) else escape(value)

    return finalize


def _text(value: object) -> str:
    """One line without anything that steers a terminal."""
    return printable(str(value))


def _shell(value: object) -> str:
    """One word of a POSIX shell, outside of quotes; as it stays on one line, it is safe in a comment as well."""
    return shlex.quote(_text(value))


def _ruby(value: object) -> str:
    """A literal of Ruby: a number, or a string in single quotes, where nothing is expanded."""
    if isinstance(value, int):
        return str(value)
    return "'" + re.sub(r"([\\'])", r"\\\1", _text(value)) + "'"


def _vmx(value: object) -> str:
    """What is inside the quotes of a VMX: VMware writes what is special as a bar and two hex digits."""
    return re.sub(r'["|#\\]', lambda match: f"|{ord(match[0]):02X}", _text(value))


def _xl(value: object) -> str:
    """A literal of xl.cfg(5): a number, or a string in double quotes."""
    if isinstance(value, int):
        return str(value)
    return '"' + re.sub(r'([\\"])', r"\\\1", _text(value)) + '"'


def _grub(value: object) -> str:
    """One word of GRUB's language: in double quotes, where `$`, backslashes and double quotes are special."""
    return '"' + re.sub(r'([\\"$])', r"\\\1", _text(value)) + '"'


_XML = ("xml", "ovf", "pvs")  # Jinja2's own escaping does the rest
_ESCAPES: dict[str, Callable[[object], str]] = {
    "sh": _shell, "json": json.dumps, "rb": _ruby, "vmx": _vmx, "cfg": _xl, "grub": _grub,
}  # fmt: skip
