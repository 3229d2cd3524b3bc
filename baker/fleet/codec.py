"""Frozen dataclasses as JSON and back, by their type hints. Paths are the caller's to translate."""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Callable, Mapping
from enum import Enum
from functools import cache
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

from baker.errors import UsageError


def encode(value: Any, path: Callable[[Path], Any]) -> Any:
    """`value` in terms of JSON; `path` says what stands for a Path."""
    if isinstance(value, Path):
        return path(value)
    if dataclasses.is_dataclass(value):
        return {field.name: encode(getattr(value, field.name), path) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): encode(item, path) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [encode(item, path) for item in value]
    return value.value if isinstance(value, Enum) else value


def decode(kind: Any, value: Any, path: Callable[[Any], Path]) -> Any:
    """A `kind` (a dataclass, or what a field of one may be) out of JSON; UsageError where it does not fit.

    Fields that are missing get their defaults; unknown ones are refused.
    """
    origin, words = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        inner = [word for word in words if word is not types.NoneType]
        return None if value is None else decode(inner[0], value, path)
    if kind is Path:
        return path(value)
    if origin is tuple and isinstance(value, list):
        return tuple(decode(words[0], item, path) for item in value)
    if origin is not None and issubclass(origin, Mapping) and isinstance(value, dict):
        return {str(key): decode(words[1], item, path) for key, item in value.items()}
    if dataclasses.is_dataclass(kind) and isinstance(value, dict):
        return _record(kind, value, path)
    if isinstance(kind, type) and issubclass(kind, Enum):
        try:
            return kind(value)
        except ValueError:
            pass
    elif type(value) is kind:
        return value
    raise UsageError(f"A task of the fleet says {value!r} where a {getattr(kind, '__name__', kind)} belongs.")


def _record(kind: Any, values: dict[str, Any], path: Callable[[Any], Path]) -> Any:
    hints = _hints(kind)
    if unknown := values.keys() - hints.keys():
        raise UsageError(f"A task of the fleet has an unknown {kind.__name__}.{min(unknown)}.")
    try:
        return kind(**{name: decode(hints[name], value, path) for name, value in values.items()})
    except TypeError as error:
        raise UsageError(f"A task of the fleet has no whole {kind.__name__}: {error}.") from error


@cache
def _hints(kind: Any) -> dict[str, Any]:
    return get_type_hints(kind)
