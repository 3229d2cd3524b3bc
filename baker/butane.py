"""Butane: provisioning configs as people write them, for Flatcar. `butane_reader.py` reads it.

What is common to both is kept as Ignition has it, parsed from its JSON. Butane's names are those of Ignition with
underscores, contents may stand in the text itself (`inline`), and modes may be octal.
Format facts: the Butane project's specifications of `flatcar` 1.0.0 and 1.1.0, Ignition's of 3.3.0 and 3.4.0.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterable
from typing import Any
from urllib.parse import unquote_to_bytes

import yaml

from baker.butane_reader import SPECS, VARIANT
from baker.errors import UsageError

IGNITION_VERSION = "3.3.0"
"""Of the configs that we write."""
_BUTANE_VERSIONS = {spec: version for version, spec in SPECS.items()}

Config = dict[str, Any]
"""An Ignition config, as its JSON is parsed."""

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
