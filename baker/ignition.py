"""Ignition configs: reading them, judging them for a release, writing base configs, and merging.

What it offers:

- `parse_config(data, name)` reads a config (JSON, spec 2.0.0 to 2.3.0 or 3.0.0 to 3.5.0) into an `IgnitionConfig`, or
  raises a UsageError that names the file, the place and the next step.
- `check_release(config, version)` refuses a config that the Ignition of a Flatcar release cannot read.
- `collisions(config, paths)` names the baked paths that a user's config declares in a way that fails provisioning.
- `base_config(links, files, units)` makes the bytes of a base.ign: canonical JSON, the same for the same content. Its
  links and files overwrite what is there, so that it may run again, after flatcar-reset for example.
- `merge_base(existing, ours, name)` puts a base config on top of the `base/base.ign` that an image has already, which
  some vendors of lts-3510 ship; all of it stays.

Nothing here starts a program or opens a file: `ignition_tools.py` runs butane and ignition-validate.

Facts. Flatcar's initrd (flatcar/bootengine, dracut/30ignition/ignition-setup.sh) takes exactly two files from the OEM
partition, or from /usr/share/oem of a PXE boot's initramfs: `base/base.ign`, merged below the user's config, and
`config.ign`, used as the user's config in place of the platform's. Ignition merges by path and name, and what the
user's config says wins. Specs by Ignition release: upstream's docs/specs.md; Ignition by Flatcar release: its feed
(2.13 since 3185.0.0, 2.15 since 3535.0.0, 2.20 since 4152.0.0). Flatcar's own patch also takes spec 2.x.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NoReturn
from urllib.parse import quote

from baker.errors import UsageError
from baker.schema import suggest

CONFIG_PATH, BASE_PATH = "/config.ign", "/base/base.ign"
"""Where the initrd looks for the user's and for the base config, within the OEM partition."""

BASE_SPEC = "3.0.0"
"""The spec of base configs that we write: all that they need is in it, and every Ignition 2.x reads it."""

MAX_SIZE = 16 << 20
"""The largest config in bytes that is read."""

_DEEPEST = 32
SPECS = ("2.0.0", "2.1.0", "2.2.0", "2.3.0", "3.0.0", "3.1.0", "3.2.0", "3.3.0", "3.4.0", "3.5.0")
_NEWEST_SPEC = ((4152, "3.5.0"), (3535, "3.4.0"), (3185, "3.3.0"), (0, "2.3.0"))
"""The newest spec by the first major of the Flatcar releases that read it."""

_SECTIONS = {"2": ("ignition", "networkd", "passwd", "storage", "systemd"),
             "3": ("ignition", "kernelArguments", "passwd", "storage", "systemd")}  # fmt: skip
_NODES = ("files", "directories", "links")
_IDENTITY = {
    "files": "path", "directories": "path", "links": "path", "filesystems": "device", "disks": "device",
    "raid": "name", "luks": "name", "units": "name", "dropins": "name", "users": "name", "groups": "name",
    "merge": "source", "certificateAuthorities": "source", "httpHeaders": "name", "partitions": "number",
}  # fmt: skip
"""What makes two entries of a list the same one, by the list's name; the entries of other lists are values."""


@dataclass(frozen=True)
class IgnitionConfig:
    """A config that was read. `name` is what messages call it, `data` the bytes as they are to be written."""

    name: str
    spec: str
    data: bytes

    @cached_property
    def content(self) -> dict[str, Any]:
        """The parsed JSON, not to be changed."""
        content: dict[str, Any] = json.loads(self.data)
        return content

    def nodes(self, kind: str) -> list[dict[str, Any]]:
        """The entries of `storage` of one kind: `files`, `directories` or `links`."""
        return list((self.content.get("storage") or {}).get(kind) or ())

    @property
    def paths(self) -> frozenset[str]:
        """Every path that the config declares."""
        return frozenset(str(node.get("path")) for kind in _NODES for node in self.nodes(kind))


@dataclass(frozen=True)
class ConfigFile:
    """A file for `base_config` to declare."""

    content: bytes
    mode: int = 0o644


@dataclass(frozen=True)
class ConfigUnit:
    """A systemd unit for `base_config` to declare; None leaves to the system what it does not say."""

    contents: str | None = None
    enabled: bool | None = None


def parse_config(data: bytes, name: str) -> IgnitionConfig:
    """Read an Ignition config. `name` is the file's, for messages.

    Raises UsageError for what is no JSON object, has a key twice or a section that its spec does not know (Ignition
    would ignore it), a spec of no supported version, or entries without what identifies them. Finer points are
    ignition-validate's.
    """
    if len(data) > MAX_SIZE:
        raise UsageError(f"{name} is larger than {MAX_SIZE >> 20} MiB, too large for an Ignition config.")
    try:
        content = json.loads(data.decode("utf-8"), object_pairs_hook=_without_repeats, parse_constant=_no_number)
    except UnicodeDecodeError as error:
        raise UsageError(f"{name} is not UTF-8 text.") from error
    except (ValueError, RecursionError) as error:
        hint = "Butane YAML goes into a file named *.bu, *.yaml or *.yml." if data.lstrip()[:1] != b"{" else None
        raise UsageError(f"{name} is no valid JSON: {error}.", hint) from error
    if not isinstance(content, dict):
        raise UsageError(f"{name} is no JSON object, so it is no Ignition config.")
    spec = _spec(content, name)
    for key in content:
        if key not in _SECTIONS[spec[0]]:
            raise UsageError(
                f"{name} has the section {key!r}, which Ignition would ignore.", suggest(key, _SECTIONS[spec[0]])
            )
    _check_lists(content, "$", name, 0)
    config = IgnitionConfig(name, spec, data)
    declared = [node["path"] for kind in _NODES for node in config.nodes(kind)]
    if spec[0] == "3" and len(set(declared)) != len(declared):
        twice = next(path for path in declared if declared.count(path) > 1)
        raise UsageError(f"{name} declares {twice} twice.", "A path is a file, a directory or a link, and only once.")
    return config


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        twice = next(key for key, _ in pairs if [other for other, _ in pairs].count(key) > 1)
        raise ValueError(f"the key {twice!r} is there twice in one object")
    return found


def _no_number(word: str) -> NoReturn:
    raise ValueError(f"{word} is no JSON value")


def _spec(content: Mapping[str, Any], name: str) -> str:
    if content.get("ignitionVersion") == 1:
        raise UsageError(f"{name} is of Ignition's spec 1, which is not supported.", "Rewrite it for spec 3.3.0.")
    head = content.get("ignition")
    spec = head.get("version") if isinstance(head, dict) else None
    if not isinstance(spec, str):
        raise UsageError(
            f"{name} says no ignition.version, so it is no Ignition config.",
            'It must begin like {"ignition": {"version": "3.3.0"}, …}.',
        )
    if spec not in SPECS:
        why = " Experimental specs change without notice." if "experimental" in spec else ""
        raise UsageError(
            f"{name} is of Ignition's spec {spec!r}, which is not supported.",
            f"Supported are {', '.join(SPECS)}.{why}",
        )
    return spec


def _check_lists(value: Any, where: str, name: str, depth: int) -> None:
    """Refuse sections that are no objects, lists that are none, and files, directories and links without a path."""
    if depth > _DEEPEST:
        raise UsageError(f"{name} nests objects and lists more than {_DEEPEST} deep, which no config does.")
    if isinstance(value, dict):
        for key, item in value.items():
            place = f"{where}.{key}"
            if key in _IDENTITY and item is not None and where != "$":
                _check_entries(key, item, place, name)
            _check_lists(item, place, name, depth + 1)
    elif isinstance(value, list):
        for number, item in enumerate(value):
            _check_lists(item, f"{where}[{number}]", name, depth + 1)
    if where.count(".") == 1 and where[2:] in _SECTIONS["3"] and not isinstance(value, dict | None):
        raise UsageError(f"{name}: {where} must be an object, not {value!r}.")


def _check_entries(key: str, items: Any, where: str, name: str) -> None:
    if not isinstance(items, list):
        raise UsageError(f"{name}: {where} must be a list, not {items!r}.")
    for number, item in enumerate(items):
        if key != "groups" and not isinstance(item, dict):  # a user's groups are words
            raise UsageError(f"{name}: {where}[{number}] must be an object, not {item!r}.")
        if key in _NODES:
            path = item.get("path")
            if not isinstance(path, str) or not path.startswith("/"):
                raise UsageError(f"{name}: {where}[{number}].path must be an absolute path, not {path!r}.")


def check_release(config: IgnitionConfig, version: str) -> None:
    """Refuse, with UsageError, a config that the Ignition of a Flatcar release cannot read.

    `version` is the release's, "" where it is not known: then nothing is refused.
    """
    newest = newest_spec(version)
    if newest and _numbers(config.spec) > _numbers(newest):
        raise UsageError(
            f"{config.name} is of Ignition's spec {config.spec}, and Flatcar {version} reads specs up to {newest}.",
            f"Write it for {newest}, or bake a newer release.",
        )


def newest_spec(version: str) -> str:
    """The newest spec that the Ignition of a Flatcar release reads; "" for a version that is no number."""
    major = version.partition(".")[0]
    if not major.isdecimal():
        return ""
    return next(spec for first, spec in _NEWEST_SPEC if int(major) >= first)


def _numbers(spec: str) -> tuple[int, ...]:
    return tuple(int(word) for word in spec.split("."))


def collisions(config: IgnitionConfig, baked: Mapping[str, str | None]) -> list[str]:
    """The baked paths that this user's config declares without `overwrite: true`, sorted: Ignition would fail.

    `baked` maps each path, as the running system sees it, to the target of a link or to None for a file. A link that
    says exactly what is baked is fine (Ignition's specification, `storage.links`), and so is a file that is declared
    to be there with whatever content it has. In spec 2.x files overwrite unless they say otherwise.
    """
    found = set()
    for kind in _NODES:
        for node in config.nodes(kind):
            path, overwrite = node["path"], node.get("overwrite")
            if config.spec.startswith("2") and (node.get("filesystem") != "root" or kind == "files"):
                overwrite = True if overwrite is None else overwrite
            if path not in baked or overwrite:
                continue
            symbolic = kind == "links" and not node.get("hard")
            same_link = symbolic and baked[path] is not None and node.get("target") == baked[path]
            as_it_is = kind == "files" and baked[path] is None and not node.get("contents")
            if not same_link and not as_it_is:
                found.add(path)
    return sorted(found)


def wipes(config: IgnitionConfig) -> list[str]:
    """The partitions of a baked disk, ROOT or OEM, whose filesystem the config wipes; Ignition warns of nothing."""
    found = []
    for item in (config.content.get("storage") or {}).get("filesystems") or ():
        # Spec 2.x has all of it a level deeper.
        inner = item["mount"] if isinstance(item.get("mount"), dict) else item
        device = str(inner.get("device"))
        label = next((label for label in ("ROOT", "OEM") if device.endswith(f"label/{label}")), "")
        if label and inner.get("wipeFilesystem"):
            found.append(label)
    return found


def base_config(
    links: Mapping[str, str],
    files: Mapping[str, ConfigFile] | None = None,
    units: Mapping[str, ConfigUnit] | None = None,
) -> bytes:
    """A base.ign that makes symbolic `links` (target by path), `files` (by path) and `units` (by name).

    All of them overwrite what is there; parent directories are Ignition's own doing, root:root 0755. Equal arguments
    give equal bytes. UsageError for a path that is not absolute.
    """
    storage: dict[str, Any] = {}
    for path in (*links, *(files or {})):
        if not path.startswith("/"):
            raise UsageError(f"{path!r} in a base config must be an absolute path.")
    if files:
        storage["files"] = [
            {"path": path, "mode": item.mode, "overwrite": True, "contents": {"source": data_url(item.content)}}
            for path, item in sorted(files.items())
        ]
    if links:
        storage["links"] = [
            {"path": path, "target": target, "overwrite": True, "hard": False}
            for path, target in sorted(links.items())
        ]
    content: dict[str, Any] = {"ignition": {"version": BASE_SPEC}}
    content |= {"storage": storage} if storage else {}
    content |= {"systemd": {"units": [_unit(*item) for item in sorted(units.items())]}} if units else {}
    return canonical(content)


def _unit(name: str, unit: ConfigUnit) -> dict[str, Any]:
    said = {"contents": unit.contents, "enabled": unit.enabled}
    return {"name": name} | {key: value for key, value in said.items() if value is not None}


def data_url(content: bytes) -> str:
    """The content as a URL (RFC 2397): readable for plain text, base64 for the rest."""
    if content.isascii() and content.decode("ascii").replace("\n", "").replace("\t", "").isprintable():
        return "data:," + quote(content, safe="/:=,+@")
    return "data:;base64," + base64.b64encode(content).decode("ascii")


def canonical(content: Mapping[str, Any]) -> bytes:
    """JSON in one form: sorted keys, no blanks, nothing but ASCII, a line break at the end."""
    return json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False).encode("ascii") + b"\n"


def merge_base(existing: bytes | None, ours: bytes, name: str = "base/base.ign") -> bytes:
    """The base config that has all of `existing` and all of `ours`, which wins where both say something of one thing.

    `existing` is None where the image has none; then the result is `ours`. Everything of `existing` that `ours` does
    not speak of stays as it is. One of spec 2.x stays one: what `ours` declares is written in its terms, as spec
    2.3.0. UsageError when `existing` cannot be read, or `ours` has what spec 2.x cannot say.
    """
    added = parse_config(ours, "the base config")
    if existing is None or not existing.strip():
        return ours
    there = parse_config(existing, name)
    content = dict(added.content)
    spec = max(there.spec, added.spec, key=_numbers)
    if there.spec[0] != added.spec[0]:
        if there.spec[0] == "3":
            raise UsageError(
                f"{added.name} is of spec {added.spec}, and the image's {name} of spec {there.spec}.",
                f"Write it for spec {there.spec}.",
            )
        content, spec = _as_spec_2(content, name, there.spec), "2.3.0"
    merged = _merged(there.content, content)
    merged["ignition"] = {**merged["ignition"], "version": spec}
    return canonical(merged)


def _merged(parent: Mapping[str, Any], child: Mapping[str, Any]) -> dict[str, Any]:
    """As Ignition merges: objects by key, lists by what identifies their entries, and the child wins."""
    parent = _without_replaced_nodes(parent, child)
    result = dict(parent)
    for key, value in child.items():
        old = parent.get(key)
        if isinstance(old, dict) and isinstance(value, dict):
            result[key] = _merged(old, value)
        elif isinstance(old, list) and isinstance(value, list):
            objects = all(isinstance(item, dict) for item in (*old, *value))  # a user's groups are words
            result[key] = list(_merged_lists(old, value, _IDENTITY.get(key, "") if objects else ""))
        elif value is not None:
            result[key] = value
    return result


def _without_replaced_nodes(parent: Mapping[str, Any], child: Mapping[str, Any]) -> Mapping[str, Any]:
    """A path is declared once: a link of the child takes the place of a file of the parent, and so on."""
    paths = {kind: {node["path"] for node in child.get(kind) or ()} for kind in _NODES}
    if not any(paths.values()):
        return parent
    others = {kind: set().union(*(paths[other] for other in _NODES if other != kind)) for kind in _NODES}
    kept = {
        kind: [node for node in parent.get(kind) or () if node["path"] not in others[kind]]
        for kind in _NODES if kind in parent
    }  # fmt: skip
    return {**parent, **kept}


def _merged_lists(old: list[Any], new: list[Any], identity: str) -> Iterator[Any]:
    if not identity:
        yield from old
        yield from (item for item in new if item not in old)
        return

    def key(item: Mapping[str, Any]) -> str:
        # A partition is known by its number, or without one by its label; a file of spec 2.x by its filesystem, too.
        return json.dumps([item.get(identity) or item.get("label"), item.get("filesystem")])

    added = {key(item): item for item in new}
    for item in old:
        yield _merged(item, added.pop(key(item))) if key(item) in added else item
    yield from added.values()


def _as_spec_2(content: Mapping[str, Any], name: str, spec: str) -> dict[str, Any]:
    """What a config of spec 3 declares, in the terms of spec 2.3.0: files, directories, links and units."""
    storage = content.get("storage") or {}
    if (
        content.keys() - {"ignition", "storage", "systemd"}
        or storage.keys() - set(_NODES)
        or len(content["ignition"]) > 1
    ):
        raise UsageError(
            f"The image's {name} is of Ignition's spec {spec}, which cannot say all that the base config says.",
            "Only files, directories, links and units can be added to it; use --ignition for the rest.",
        )  # fmt: skip
    made = {kind: [{"filesystem": "root", **node} for node in storage[kind]] for kind in _NODES if storage.get(kind)}
    return {**content, "storage": made} if made else dict(content)
