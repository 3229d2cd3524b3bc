"""Butane: provisioning configs as people write them, of Flatcar's variant 1.0.0, which means Ignition 3.3.0.

What is common to both is kept as Ignition has it, parsed from its JSON. Butane's names are those of Ignition with
underscores, contents may stand in the text itself (`inline`), and modes may be octal.
Format facts: the Butane project's specification of `flatcar` 1.0.0 and Ignition's of 3.3.0.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import unquote_to_bytes

import yaml

from baker.errors import UsageError
from baker.ignition import data_url
from baker.schema import suggest

VARIANT, BUTANE_VERSION, IGNITION_VERSION = "flatcar", "1.0.0", "3.3.0"
_BUTANE_VERSIONS = {IGNITION_VERSION: BUTANE_VERSION, "3.4.0": "1.1.0"}
"""Of the variant, by Ignition's spec."""

Config = dict[str, Any]
"""An Ignition config, as its JSON is parsed."""

_CONTENTS: Mapping[str, Any] = {
    "inline": str, "source": str, "compression": str, "verification": {"hash": str},
    "http_headers": [{"name": str, "value": str}],
}  # fmt: skip
_OWNER: Mapping[str, Any] = {"id": int, "name": str}
_NODE: Mapping[str, Any] = {"path": str, "overwrite": bool, "user": _OWNER, "group": _OWNER}
_SHAPE: Mapping[str, Any] = {
    "variant": str,
    "version": str,
    "storage": {
        "files": [{**_NODE, "mode": int, "contents": _CONTENTS, "append": [_CONTENTS]}],
        "directories": [{**_NODE, "mode": int}],
        "links": [{**_NODE, "target": str, "hard": bool}],
    },
    "systemd": {
        "units": [
            {"name": str, "enabled": bool, "mask": bool, "contents": str,
             "dropins": [{"name": str, "contents": str}]}
        ],
    },
    "kernel_arguments": {"should_exist": [str], "should_not_exist": [str]},
}  # fmt: skip
"""The part of Butane that is read here: keys, and the types of their values."""


_FIRST = ("variant", "version", "ignition", "storage", "path", "name", "target", "enabled", "mode", "overwrite",
          "inline", "source")  # fmt: skip


class _Octal(int):
    """A mode, written as 0644."""


class _Dumper(yaml.SafeDumper):
    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        return super().increase_indent(flow, False)

    def ignore_aliases(self, data: object) -> bool:
        return True


def _represent_octal(dumper: yaml.SafeDumper, value: _Octal) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:int", f"0{value:03o}")


def _represent_text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    # Outside of quotes YAML makes one kind of line break of all of them.
    odd = any(character in value for character in "\r\x85\u2028\u2029\ufeff")
    return dumper.represent_scalar(
        "tag:yaml.org,2002:str", value, style='"' if odd else "|" if "\n" in value else None
    )


_Dumper.add_representer(_Octal, _represent_octal)
_Dumper.add_representer(str, _represent_text)


def to_butane(config: Config, comment: str = "") -> str:
    """An Ignition config as Butane; lines of `comment` go before it. UsageError for a spec that Butane cannot say."""
    spec = str(config["ignition"]["version"])
    if spec not in _BUTANE_VERSIONS:
        raise UsageError(
            f"Butane's variant {VARIANT} cannot say what is of Ignition's spec {spec}.",
            f"It can for {' and '.join(_BUTANE_VERSIONS)}. With --format ignition the spec stays.",
        )
    body = {key: value for key, value in config.items() if key != "ignition"}
    settings = {key: value for key, value in config["ignition"].items() if key != "version"}
    document = {
        "variant": VARIANT, "version": _BUTANE_VERSIONS[spec],
        **({"ignition": _butane(settings)} if settings else {}), **_butane(body),
    }  # fmt: skip
    text = yaml.dump(ordered(document), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=1 << 20)
    return "".join(f"# {line}".rstrip() + "\n" for line in comment.splitlines()) + text


def ordered(value: Any) -> Any:
    """The same with keys in an order that reads well: what a thing is called goes before what it holds."""
    if isinstance(value, dict):
        ranks = {key: _FIRST.index(key) if key in _FIRST else len(_FIRST) for key in value}
        return {key: ordered(value[key]) for key in sorted(value, key=lambda key: (ranks[key], key))}
    return [ordered(each) for each in value] if isinstance(value, list) else value


def _butane(value: Any, key: str = "") -> Any:
    if isinstance(value, dict):
        made = {_snake(name): _butane(each, name) for name, each in value.items()}
        inline = _text_of(value["source"]) if isinstance(value.get("source"), str) else None
        if inline is not None and "compression" not in value:
            del made["source"]
            made = {"inline": inline, **made}
        return made
    if isinstance(value, list):
        return [_butane(each, key) for each in value]
    return _Octal(value) if key == "mode" else value


def _text_of(source: str) -> str | None:
    """What a data URL holds, if that is text."""
    try:
        return data_of(source).decode()
    except ValueError:
        return None


def data_of(source: str) -> bytes:
    """The content of a data URL; ValueError for what is none."""
    head, comma, data = source.removeprefix("data:").partition(",")
    if not source.startswith("data:") or not comma:
        raise ValueError("no data URL")
    raw = unquote_to_bytes(data)
    try:
        return base64.b64decode(raw, validate=True) if head.endswith(";base64") else raw
    except binascii.Error as error:
        raise ValueError("no base64") from error


def _snake(name: str) -> str:
    return re.sub(r"(?<=[a-z])(MiB|[A-Z])", lambda found: f"_{found[1].lower()}", name)


def _camel(name: str) -> str:
    return re.sub(r"_(mib|[a-z])", lambda found: "MiB" if found[1] == "mib" else found[1].upper(), name)


def from_butane(text: str, where: str) -> Config:
    """The Ignition config that a Butane text means.

    Read are files, folders, links, units and kernel arguments, which is what extensions need; UsageError, beginning
    with `where`, for all else and for what is wrong.
    """
    try:
        document = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        raise UsageError(f"{where}{line}: this is no YAML: {getattr(error, 'problem', None) or error}.") from error
    if not isinstance(document, dict):
        raise UsageError(f"{where}: this is no Butane config.")
    if (document.get("variant"), document.get("version")) != (VARIANT, BUTANE_VERSION):
        raise UsageError(
            f"{where}: this is Butane {document.get('variant')} {document.get('version')}.",
            f"Only {VARIANT} {BUTANE_VERSION} is read: variant: {VARIANT} and version: {BUTANE_VERSION}.",
        )
    _check(document, _SHAPE, where, "")
    body = {key: value for key, value in document.items() if key not in ("variant", "version")}
    return {"ignition": {"version": IGNITION_VERSION}, **_ignition(body)}


def _check(value: Any, shape: Any, where: str, path: str) -> None:
    """Refuse unknown keys and wrong types."""
    if isinstance(shape, list):
        if not isinstance(value, list):
            raise UsageError(f"{where}: {path} must be a list.")
        for number, each in enumerate(value, 1):
            _check(each, shape[0], where, f"{path} {number}")
    elif isinstance(shape, Mapping):
        if not isinstance(value, dict):
            raise UsageError(f"{where}: {path or 'the config'} must have keys and values.")
        for key, each in value.items():
            if key not in shape:
                hint = suggest(str(key), shape)
                raise UsageError(f"{where}: {path or 'the config'} has the key {key!r}, which is not read here.", hint)
            _check(each, shape[key], where, f"{path}.{key}".lstrip("."))
        if "inline" in value and "source" in value:
            raise UsageError(f"{where}: {path} has both inline and source.")
    elif not isinstance(value, shape) or (shape is int and isinstance(value, bool)):
        raise UsageError(f"{where}: {path} must be a {shape.__name__}, not {value!r}.")


def _ignition(value: Any) -> Any:
    if isinstance(value, dict):
        made = {_camel(name): _ignition(each) for name, each in value.items()}
        if "inline" in made:
            made = {"source": data_url(made.pop("inline").encode()), **made}
        return made
    return [_ignition(each) for each in value] if isinstance(value, list) else value


def texts(value: Any) -> Iterable[str]:
    """Every text in a config, those in data URLs included."""
    if isinstance(value, dict):
        for each in value.values():
            yield from texts(each)
    elif isinstance(value, list):
        for each in value:
            yield from texts(each)
    elif isinstance(value, str):
        yield (_text_of(value) or value) if value.startswith("data:") else value
