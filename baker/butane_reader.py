"""Reading Butane: variant flatcar, versions 1.0.0 and 1.1.0, into the Ignition config that it means.

All of the two specifications is read but `trees` and `with_mount_unit`, which make files and units of their own: the
program butane does those. Scalars mean what they mean to butane's YAML library: a text may be written as a number, a
mode as 0644 or 0o644, a truth as yes. Keys that are unknown or come twice are refused, with their line.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from baker.errors import UsageError
from baker.ignition import MAX_SIZE, data_url
from baker.schema import suggest

VARIANT = "flatcar"
SPECS = {"1.0.0": "3.3.0", "1.1.0": "3.4.0"}
"""Ignition's spec by Butane's version."""

_RESOURCE: Mapping[str, Any] = {
    "inline": str, "source": str, "local": str, "compression": str, "verification": {"hash": str},
    "http_headers": [{"name": str, "value": str}],
}  # fmt: skip
_OWNER: Mapping[str, Any] = {"id": int, "name": str}
_NODE: Mapping[str, Any] = {"path": str, "overwrite": bool, "user": _OWNER, "group": _OWNER}
_CONTENTS: Mapping[str, Any] = {"name": str, "contents": str, "contents_local": str}
_PARTITION: Mapping[str, Any] = {
    "label": str, "number": int, "size_mib": int, "start_mib": int, "type_guid": str, "guid": str, "resize": bool,
    "wipe_partition_entry": bool, "should_exist": bool,
}  # fmt: skip
_SHAPE: Mapping[str, Any] = {
    "variant": str,
    "version": str,
    "ignition": {
        "config": {"merge": [_RESOURCE], "replace": _RESOURCE},
        "timeouts": {"http_response_headers": int, "http_total": int},
        "security": {"tls": {"certificate_authorities": [_RESOURCE]}},
        "proxy": {"http_proxy": str, "https_proxy": str, "no_proxy": [str]},
    },
    "storage": {
        "disks": [{"device": str, "wipe_table": bool, "partitions": [_PARTITION]}],
        "raid": [{"name": str, "level": str, "devices": [str], "spares": int, "options": [str]}],
        "filesystems": [
            {"device": str, "format": str, "path": str, "wipe_filesystem": bool, "label": str, "uuid": str,
             "options": [str], "mount_options": [str]}
        ],
        "luks": [
            {"name": str, "device": str, "key_file": _RESOURCE, "label": str, "uuid": str, "options": [str],
             "discard": bool, "open_options": [str], "wipe_volume": bool}
        ],
        "files": [{**_NODE, "mode": int, "contents": _RESOURCE, "append": [_RESOURCE]}],
        "directories": [{**_NODE, "mode": int}],
        "links": [{**_NODE, "target": str, "hard": bool}],
    },
    "systemd": {"units": [{**_CONTENTS, "enabled": bool, "mask": bool, "dropins": [_CONTENTS]}]},
    "passwd": {
        "users": [
            {"name": str, "password_hash": str, "ssh_authorized_keys": [str], "ssh_authorized_keys_local": [str],
             "uid": int, "gecos": str, "home_dir": str, "no_create_home": bool, "primary_group": str,
             "groups": [str], "no_user_group": bool, "no_log_init": bool, "shell": str, "should_exist": bool,
             "system": bool}
        ],
        "groups": [{"name": str, "gid": int, "password_hash": str, "should_exist": bool, "system": bool}],
    },
    "kernel_arguments": {"should_exist": [str], "should_not_exist": [str]},
}  # fmt: skip
"""Keys, and the types of their values."""

_SINCE_1_1 = ("discard", "open_options", "ssh_authorized_keys_local", "contents_local")
_OTHERS = ("trees", "with_mount_unit")
_INTEGER = re.compile(r"[-+]?(?:0o?[0-7]+|0x[0-9a-fA-F]+|0b[01]+|[1-9][0-9]*|0)")
_TRUTHS = {"true": True, "yes": True, "on": True, "y": True, "false": False, "no": False, "off": False, "n": False}
_MOST_NODES = 100_000


class NotRead(UsageError):
    """What is right, but beyond what is read here."""


class _Reader:
    """One text. `files` is the folder of what `local` names."""

    def __init__(self, where: str, files: Path | None) -> None:
        self._where, self._files = where, files
        self._version = ""
        self._nodes = 0

    def read(self, text: str) -> dict[str, Any]:
        try:
            node = yaml.compose(text, Loader=yaml.SafeLoader)
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            mark = getattr(error, "problem_mark", None)
            line = f":{mark.line + 1}" if mark else ""
            why = getattr(error, "problem", None) or error
            raise UsageError(f"{self._where}{line}: this is no YAML: {why}.") from error
        if not isinstance(node, yaml.MappingNode):
            raise UsageError(f"{self._where}: this is no Butane config.")
        said = {key.value: value.value for key, value in node.value if isinstance(value, yaml.ScalarNode)}
        variant, self._version = said.get("variant"), str(said.get("version"))
        if variant != VARIANT or self._version not in SPECS:
            wanted = " or ".join(SPECS)
            raise NotRead(
                f"{self._where}: this is Butane {variant} {self._version}.",
                f"Read is the variant {VARIANT} in version {wanted}: variant: {VARIANT} and version: 1.0.0.",
            )
        try:
            made: dict[str, Any] = self._value(node, _SHAPE, "")
        except RecursionError as error:  # an anchor within itself
            raise UsageError(f"{self._where}: this is nested too deeply.") from error
        settings = made.pop("ignition", {})
        del made["variant"], made["version"]
        return {"ignition": {"version": SPECS[self._version], **settings}, **made}

    def _value(self, node: yaml.Node, shape: Any, path: str) -> Any:
        """What a node means; None for a null."""
        self._nodes += 1
        if self._nodes > _MOST_NODES:
            raise self._wrong(node, "the config has too many entries")
        if isinstance(node, yaml.ScalarNode) and node.tag.endswith(":null"):
            return None
        if isinstance(shape, list):
            if not isinstance(node, yaml.SequenceNode):
                raise self._wrong(node, f"{path} must be a list")
            items = [self._value(each, shape[0], f"{path} {number}") for number, each in enumerate(node.value, 1)]
            return [each for each in items if each is not None]
        if isinstance(shape, Mapping):
            return self._table(node, shape, path)
        if not isinstance(node, yaml.ScalarNode):
            raise self._wrong(node, f"{path} must be a {shape.__name__}")
        return self._scalar(node, shape, path)

    def _table(self, node: yaml.Node, shape: Mapping[str, Any], path: str) -> dict[str, Any]:
        if not isinstance(node, yaml.MappingNode):
            raise self._wrong(node, f"{path or 'the config'} must have keys and values")
        found: dict[str, Any] = {}
        seen = set()
        for key_node, value_node in node.value:
            key = str(key_node.value) if isinstance(key_node, yaml.ScalarNode) else ""
            if key in seen:
                raise self._wrong(key_node, f"{path or 'the config'} has the key {key!r} twice")
            seen.add(key)
            self._check_key(key, key_node, shape, path)
            value = self._value(value_node, shape[key], f"{path}.{key}".lstrip("."))
            if value is not None:
                found[key] = value
        given = [key for key in ("inline", "source", "local") if key in found]
        if len(given) > 1:
            raise self._wrong(node, f"{path} has both {' and '.join(given)}")
        return self._sugar(found, node, path)

    def _check_key(self, key: str, node: yaml.Node, shape: Mapping[str, Any], path: str) -> None:
        what = path or "the config"
        if key in _OTHERS:
            said = self._wrong(node, f"{what} has the key {key!r}, which is not read here")
            raise NotRead(said.message, "The program butane does: translate the file with it, and give the result.")
        if key not in shape:
            raise self._wrong(node, f"{what} has the key {key!r}, which is not known", suggest(key, shape))
        if key in _SINCE_1_1 and self._version == "1.0.0":
            raise self._wrong(node, f"{what} has the key {key!r}, which is of version 1.1.0")

    def _sugar(self, found: dict[str, Any], node: yaml.Node, path: str) -> dict[str, Any]:
        """A table in Ignition's names, with what Butane's short forms stand for."""
        made: dict[str, Any] = {}
        for key, value in found.items():
            if key == "inline":
                made["source"] = data_url(value.encode())
            elif key == "local":
                made["source"] = data_url(self._local(value, node, path))
            elif key == "contents_local":
                made["contents"] = self._text(value, node, path)
            elif key == "ssh_authorized_keys_local":
                lines = [line for name in value for line in self._text(name, node, path).splitlines() if line.strip()]
                made["sshAuthorizedKeys"] = made.get("sshAuthorizedKeys", []) + lines
            elif key == "ssh_authorized_keys":
                made["sshAuthorizedKeys"] = value + made.get("sshAuthorizedKeys", [])
            else:
                made[_camel(key)] = value
        return made

    def _local(self, name: str, node: yaml.Node, path: str) -> bytes:
        """A file in the folder of local files, and nowhere else."""
        if self._files is None:
            raise self._wrong(node, f"{path} names the local file {name!r}, and there is no folder of such files")
        folder = self._files.resolve()
        file = (folder / name).resolve()
        if not file.is_relative_to(folder):
            raise self._wrong(node, f"{path} names the local file {name!r}, which is not in {self._files}")
        try:
            with file.open("rb") as opened:
                data = opened.read(MAX_SIZE + 1)
        except OSError as error:
            raise self._wrong(node, f"{path}: cannot read {file}: {error.strerror}") from error
        if len(data) > MAX_SIZE:
            raise self._wrong(node, f"{path}: {file} is larger than {MAX_SIZE >> 20} MiB")
        return data

    def _text(self, name: str, node: yaml.Node, path: str) -> str:
        try:
            return self._local(name, node, path).decode()
        except UnicodeDecodeError as error:
            raise self._wrong(node, f"{path}: {name} is not UTF-8 text") from error

    def _scalar(self, node: yaml.ScalarNode, shape: type, path: str) -> Any:
        text = str(node.value)
        plain = node.style is None
        if shape is str:
            return text
        if shape is bool and plain and text.lower() in _TRUTHS:
            return _TRUTHS[text.lower()]
        word = text.replace("_", "")
        if shape is int and plain and _INTEGER.fullmatch(word):
            octal = re.fullmatch(r"([-+]?)0o?([0-7]+)", word)
            return int(octal[1] + octal[2], 8) if octal else int(word, 0)
        raise self._wrong(node, f"{path} must be a {shape.__name__}, not {text!r}")

    def _wrong(self, node: yaml.Node, why: str, hint: str | None = None) -> UsageError:
        return UsageError(f"{self._where}:{node.start_mark.line + 1}: {why}.", hint)


def from_butane(text: str, where: str, files: Path | None = None) -> dict[str, Any]:
    """The Ignition config that a Butane text means.

    `where` is the text's name, for messages, `files` the folder in which `local` files are looked for (butane's
    `--files-dir`). UsageError, with the line, for what is wrong or not read.
    """
    return _Reader(where, files).read(text)


def _camel(name: str) -> str:
    return re.sub(r"_(mib|[a-z])", lambda found: "MiB" if found[1] == "mib" else found[1].upper(), name)
