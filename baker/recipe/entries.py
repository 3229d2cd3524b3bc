"""Reading one entry of a recipe.toml each: its keys, their types, and what can be said of a value by itself."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from baker.errors import UsageError
from baker.model import Arch
from baker.recipe.conditions import ALWAYS, Condition, ConditionError, parse_condition
from baker.recipe.lines import LineTable
from baker.recipe.model import (
    PLAIN,
    Checksum,
    ContainerBuild,
    Edit,
    Generate,
    Install,
    Parameter,
    Remove,
    Rootfs,
    Source,
    Stream,
    Symlink,
    Uphold,
    Variant,
    VersionSource,
)  # fmt: skip
from baker.schema import suggest

FORMS = ("v", "bare", "any")
KINDS = ("file", "tar", "zip", "deb")
CHECKSUMS = ("sha256sum-file", "bare-file", "bsd-file", "github-digest", "pin", "none")
MANAGERS = ("apk", "apt")
VERSION_SOURCES: Mapping[str, tuple[str, ...]] = {
    "github-releases": ("repo",), "github-tags": ("repo",), "gitlab-tags": ("url", "repo"), "git-tags": ("url",),
    "k8s-schedule": ("url",), "hashicorp": ("product",), "html-index": ("url", "pattern"), "json": ("url", "key"),
    "text": ("url",), "follow": ("recipe",),
}  # fmt: skip
"""The types of version sources, and the keys that each must have."""

_ARCHIVE = re.compile(r"\.(?:tar(?:\.\w+)?|tgz|tbz2?|txz|tzst)$")
_UNIT = re.compile(r"[A-Za-z0-9:_.\\@{}-]+\.(?:service|socket|timer|path|mount|target|slice)")
_PLAIN = re.compile(r"[a-z0-9][a-z0-9._-]*", re.IGNORECASE)
_FORBIDDEN = ("/usr/sbin", "/usr/bin/..", "/opt/..", "/usr/lib/extension-release.d")


@dataclass(frozen=True)
class Reader:
    """What entries are checked against: the names of parameters for conditions."""

    parameters: tuple[str, ...] = ()

    def when(self, table: LineTable) -> Condition:
        """The key `when`."""
        text = table.take("when", str, "")
        if not text:
            return ALWAYS
        try:
            return parse_condition(text, self.parameters)
        except ConditionError as error:
            raise UsageError(f"{table.place('when')}: the condition {text!r} {error}.") from error

    def limits(self, table: LineTable) -> dict[str, Any]:
        """The keys that every entry may have: `variant` and `when`."""
        return {"variants": _words(table, "variant"), "when": self.when(table), "where": table.place()}


def one_of(table: LineTable, key: str, known: tuple[str, ...], default: str | None = None) -> str:
    """A key whose value must be one of some words."""
    value = table.take(key, str, default)
    if value not in known and value != default:
        hint = suggest(value, known) or f"It can be {', '.join(known)}."
        raise UsageError(f"{table.place(key)}: {key} cannot be {value!r}.", hint)
    return value


def plain_name(value: str, what: str, place: str) -> str:
    """A name that can be part of a file name."""
    if not _PLAIN.fullmatch(value):
        raise UsageError(f"{place}: {what} must be a plain name of letters, digits, '.', '_' and '-', not {value!r}.")
    return value


def pattern(table: LineTable, key: str, default: str | None = None) -> str:
    """A key that holds a regular expression."""
    value = table.take(key, str, default)
    try:
        re.compile(value)
    except re.error as error:
        raise UsageError(f"{table.place(key)}: {key} is no regular expression: {error}.") from error
    return value


def tree_path(value: str, key: str, place: str) -> str:
    """A path in the extension: below /usr or /opt, and nothing that hides parts of the system."""
    path = PurePosixPath(value)
    if not value.startswith(("/usr/", "/opt/")) or ".." in path.parts or "//" in value:
        raise UsageError(
            f"{place}: {key} must be a path below /usr or /opt, not {value!r}.",
            "An extension can hold nothing else. Files for /etc go to /usr/share, and tmpfiles.d copies them.",
        )
    for forbidden in _FORBIDDEN:
        if f"{value}/".startswith(f"{forbidden}/"):
            hint = "On Flatcar /usr/sbin is a link to bin, which a folder would hide: use /usr/bin."
            raise UsageError(f"{place}: {key} must not be in {forbidden}.", hint if "sbin" in forbidden else None)
    return value


def _path(table: LineTable, key: str) -> str:
    return tree_path(table.take(key, str), key, table.place(key))


def _paths(table: LineTable, key: str, default: tuple[str, ...] | None = None) -> tuple[str, ...]:
    return tuple(tree_path(value, key, table.place(key)) for value in table.strings(key, default))


def _words(table: LineTable, key: str) -> tuple[str, ...]:
    """A word, or a list of words."""
    value = table.take_any(key, ())
    words = (value,) if isinstance(value, str) else tuple(value) if isinstance(value, (list, tuple)) else (None,)
    if not all(isinstance(word, str) for word in words):
        raise UsageError(f"{table.place(key)}: {key} must be a word or a list of words.")
    return tuple(str(word) for word in words)


def _texts(table: LineTable, key: str) -> dict[str, str]:
    values = table.take(key, dict, {})
    if not all(isinstance(value, str) for value in values.values()):
        raise UsageError(f"{table.place(key)}: every value of {key} must be a string.")
    return dict(values)


def _by_arch(table: LineTable, key: str) -> dict[str, str]:
    """A text for all architectures (under ""), or a table of one for each."""
    value = table.take_any(key)
    if isinstance(value, str):
        return {"": value}
    known = tuple(Arch)
    if not isinstance(value, dict) or not all(isinstance(text, str) and arch in known for arch, text in value.items()):
        raise UsageError(f"{table.place(key)}: {key} must be a string, or a table of one for each architecture.")
    return dict(value)


def _mode(table: LineTable) -> int | None:
    word = table.take("mode", str, "")
    if not word:
        return None
    if word not in ("0755", "0644"):
        raise UsageError(f'{table.place("mode")}: mode must be "0755" or "0644", not {word!r}.')
    return int(word, 8)


def read_version_source(table: LineTable) -> VersionSource:
    """[version.source] or the source of a parameter."""
    kind = one_of(table, "type", tuple(VERSION_SOURCES))
    latest = table.table("latest")
    per, count, supported = "", 0, ""
    if latest is not None:
        per = one_of(latest, "per", ("minor",), "")
        count = latest.take("count", int, 0)
        wanted = latest.take_any("supported", "")
        supported = kind if wanted is True else wanted if isinstance(wanted, str) else ""
        latest.done()
    source = VersionSource(
        kind, table.take("repo", str, ""), table.take("url", str, ""), pattern(table, "pattern", ""),
        table.take("strip_prefix", str, ""), pattern(table, "reject", ""), table.take("key", str, ""),
        table.take("product", str, ""), table.take("recipe", str, ""), table.take("all_arches", bool, False),
        per, count, supported, table.place(),
    )  # fmt: skip
    table.done()
    for key in VERSION_SOURCES[kind]:
        if not getattr(source, key):
            raise UsageError(f"{table.at()} of type {kind} lacks the key {key!r}.")
    if source.repo and kind.startswith("github") and not re.fullmatch(r"[\w.-]+/[\w.-]+", source.repo):
        raise UsageError(f"{table.place('repo')}: repo must be owner/name, not {source.repo!r}.")
    return source


def read_parameter(name: str, table: LineTable, reader: Reader) -> Parameter:
    """[param.NAME]."""
    origin = table.table("source")
    parameter = Parameter(
        plain_name(name, "the name of a parameter", table.place()), table.take("description", str, ""),
        table.take("default", str, ""), table.take("required", bool, False), table.strings("choices", ()),
        table.take("env", str, ""), table.strings("aliases", ()), one_of(table, "normalise", FORMS[:2], ""),
        table.take("positional", int, 0), read_version_source(origin) if origin else None, reader.when(table),
        table.place(),
    )  # fmt: skip
    table.done()
    if parameter.default == "latest" and parameter.source is None:
        raise UsageError(f"{table.place('default')}: the default is latest, but there is no source to ask for it.")
    if parameter.required and parameter.default:
        raise UsageError(f"{table.place('required')}: a parameter with a default cannot be required.")
    if parameter.choices and parameter.default and parameter.default not in parameter.choices:
        raise UsageError(f"{table.place('default')}: the default {parameter.default!r} is not one of the choices.")
    return parameter


def read_checksum(table: LineTable | None) -> Checksum:
    """`checksum` of a source; without one, recipes.lock must vouch for the file."""
    if table is None:
        return Checksum(missing="lock")
    checksum = Checksum(
        one_of(table, "type", CHECKSUMS), table.take("url", str, ""), table.take("name", str, ""),
        _by_arch(table, "value") if "value" in table.left() else {}, one_of(table, "missing", ("lock",), ""),
        table.take("unverified", str, ""), table.place(),
    )  # fmt: skip
    table.done()
    if checksum.type.endswith("-file") != bool(checksum.url):
        raise UsageError(
            f"{table.at()} of type {checksum.type} {'lacks the key' if not checksum.url else 'has no'} url."
        )
    if (checksum.type == "pin") != bool(checksum.values):
        raise UsageError(f"{table.at()}: value belongs to the type pin, and pin needs one.")
    for value in checksum.values.values():
        if not re.fullmatch(r"sha256:[0-9a-f]{64}", value):
            raise UsageError(f"{table.place('value')}: {value!r} is not sha256: and 64 hexadecimal digits.")
    if checksum.missing and checksum.unverified:
        raise UsageError(f"{table.at()}: missing and unverified exclude each other.")
    if checksum.type == "none" and not checksum.missing and not checksum.unverified:
        raise UsageError(
            f"{table.at()}: nothing would vouch for the file.",
            'Add missing = "lock" (recipes.lock vouches for it), or unverified = "the reason".',
        )
    return checksum


def read_source(table: LineTable, reader: Reader) -> Source:
    """[[source]]."""
    url = table.take("url", str)
    source = Source(
        plain_name(table.take("id", str), "id", table.place("id")), url, one_of(table, "kind", KINDS, _kind(url)),
        table.take("strip", int, 0), read_checksum(table.table("checksum")), table.strings("foreach", ()),
        table.strings("mirrors", ()), reader.when(table), table.place(),
    )  # fmt: skip
    table.done()
    if not source.url.startswith(("https://", "http://")):
        raise UsageError(f"{table.place('url')}: url must begin with https://, not {url!r}.")
    if source.id in ("build", "files"):
        raise UsageError(f"{table.place('id')}: {source.id} cannot be the id of a source.")
    if source.strip < 0 or (source.strip and source.kind in ("file", "deb")):
        raise UsageError(f"{table.place('strip')}: strip counts folders of a tar or zip.")
    return source


def _kind(url: str) -> str:
    path = urlsplit(url).path.lower()
    return (
        "tar"
        if _ARCHIVE.search(path)
        else next((kind for kind in ("zip", "deb") if path.endswith(f".{kind}")), "file")
    )


def read_install(table: LineTable, reader: Reader) -> Install:
    """[[install]]."""
    install = Install(
        table.take("from", str), _path(table, "dst"), table.take("src", str, ""), table.take("find", str, ""),
        _mode(table), table.strings("exclude", ()), table.take("optional", bool, False), **reader.limits(table),
    )  # fmt: skip
    table.done()
    if install.src and install.find:
        raise UsageError(f"{table.at()}: src and find exclude each other.")
    for glob in (install.src, *install.exclude):
        if glob.startswith("/") or ".." in glob.split("/"):
            raise UsageError(f"{table.at()}: {glob!r} must be a path within the archive.")
    if "/" in install.find:
        raise UsageError(f"{table.place('find')}: find is the name of a file, without folders.")
    return install


def read_symlink(table: LineTable, reader: Reader) -> Symlink:
    """[[symlink]]."""
    link = Symlink(_path(table, "path"), table.take("target", str), **reader.limits(table))
    table.done()
    if not link.target:
        raise UsageError(f"{table.place('target')}: target is empty.")
    return link


def read_generate(table: LineTable, reader: Reader) -> Generate:
    """[[generate]]."""
    mode = _mode(table)
    made = Generate(
        _path(table, "path"), table.take("content", str), PLAIN if mode is None else mode, **reader.limits(table)
    )
    table.done()
    return made


def read_edit(table: LineTable, reader: Reader) -> Edit:
    """[[edit]]."""
    pairs = table.take("replace", list)
    if not pairs or not all(
        isinstance(pair, list) and len(pair) == 2 and all(isinstance(text, str) for text in pair) and pair[0]
        for pair in pairs
    ):
        raise UsageError(f'{table.place("replace")}: replace must be a list of pairs: [["old", "new"]].')
    edit = Edit(
        _path(table, "path"), tuple((old, new) for old, new in pairs), table.take("count", int, 1),
        **reader.limits(table),
    )  # fmt: skip
    table.done()
    if edit.count < 1:
        raise UsageError(f"{table.place('count')}: count must be at least 1.")
    return edit


def read_remove(table: LineTable, reader: Reader) -> Remove:
    """[[remove]]."""
    removal = Remove(_paths(table, "paths"), table.take("optional", bool, False), **reader.limits(table))
    table.done()
    return removal


def unit_name(value: str, place: str) -> str:
    """The name of a unit."""
    if not _UNIT.fullmatch(value):
        raise UsageError(f"{place}: {value!r} is not the name of a unit, such as docker.socket.")
    return value


def read_uphold(table: LineTable, reader: Reader) -> Uphold:
    """[[uphold]]."""
    target, unit = (unit_name(table.take(key, str), table.place(key)) for key in ("target", "unit"))
    uphold = Uphold(target, unit, **reader.limits(table))
    table.done()
    return uphold


def read_variant(name: str, table: LineTable) -> Variant:
    """[variant.NAME]."""
    variant = Variant(
        plain_name(name, "the name of a variant", table.place()), table.take("description", str, ""),
        _paths(table, "drop", ()), table.strings("drop_uphold", ()), _texts(table, "env"),
        table.place(),
    )  # fmt: skip
    table.done()
    return variant


def read_build(table: LineTable | None) -> ContainerBuild | None:
    """[build]."""
    if table is None:
        return None
    build = ContainerBuild(
        _by_arch(table, "image"), table.strings("steps", ()), table.take("script", str, ""),
        table.strings("fetch", ()),
        table.take("platform", str, ""), one_of(table, "manager", MANAGERS, ""), table.strings("packages", ()),
        table.take("network", bool, True), _texts(table, "mount"), _texts(table, "env"),
        table.take("out", str, "/out"), table.take("timeout", int, 3600), table.place(),
    )  # fmt: skip
    table.done()
    if bool(build.steps) == bool(build.script):
        raise UsageError(f"{table.at()} needs either steps or a script.")
    if build.packages and not build.manager:
        raise UsageError(f"{table.at()} has packages but no manager.")
    return build


def read_rootfs(table: LineTable | None) -> Rootfs | None:
    """[rootfs]."""
    if table is None:
        return None
    rootfs = Rootfs(
        one_of(table, "tool", ("flix", "flatwrap")), table.take("image", str), table.strings("paths"),
        table.strings("packages", ()), one_of(table, "manager", MANAGERS, ""), _texts(table, "options"), table.place(),
    )  # fmt: skip
    table.done()
    if rootfs.packages and not rootfs.manager:
        raise UsageError(f"{table.at()} has packages but no manager.")
    return rootfs


def read_stream(table: LineTable) -> Stream:
    """[[stream]]."""
    stream = Stream(
        table.take("name", str), table.take("pattern", str), table.take("target", str, ""),
        one_of(table, "per", ("minor",), ""), table.place(),
    )  # fmt: skip
    table.done()
    if stream.pattern.count("@v") != 1 or "/" in stream.pattern:
        raise UsageError(f"{table.place('pattern')}: pattern must be a file name with one @v in it.")
    return stream


def read_all(tables: list[LineTable], read: Callable[[LineTable, Reader], Any], reader: Reader) -> tuple[Any, ...]:
    """All entries of one kind, in order."""
    return tuple(read(table, reader) for table in tables)
