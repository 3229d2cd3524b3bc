"""bake.toml: a bake written down. Its keys are the command line's options, and options win over it.

    release = "lts"
    vendors = ["generic", "qemu_uefi"]
    sysexts = ["wasmtime@24.0.0", "tools:./tools.raw"]

A sysext can also be a table: `[[sysexts]]` with `name` and one of `file`, `version`, or `url` with `sha256`.
Relative paths are relative to the file itself.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from baker.diskless.routes import ROUTES
from baker.errors import UsageError
from baker.model import Arch
from baker.schema import Table, load_toml, suggest
from baker.vendor import COMPRESSIONS

T = TypeVar("T")


@dataclass(frozen=True)
class BakeFile:
    """What a bake.toml says; None for what it leaves open. `sysexts` are words as on the command line."""

    sysexts: tuple[str, ...] | None = None
    fetch: bool | None = None
    vendors: tuple[str, ...] | None = None
    arch: Arch | None = None
    release: str | None = None
    install_to: str | None = None
    output_dir: Path | None = None
    image: Path | None = None
    base: str | None = None
    backend: str | None = None
    updates: bool | None = None
    allow: tuple[str, ...] | None = None
    mirror: str | None = None
    bakery: str | None = None
    signing_key: Path | None = None
    fingerprint: str | None = None
    jobs: int | None = None
    compress: str | None = None
    kernel_args: tuple[str, ...] | None = None
    build: bool | None = None
    recipes: tuple[Path, ...] | None = None
    mirror_urls: tuple[str, ...] | None = None
    recipes_lock: Path | None = None
    pxe_route: str | None = None
    pxe_split: bool | None = None
    ram: str | None = None
    serial: str | None = None
    files: tuple[str, ...] | None = None
    ignition: Path | None = None
    ignition_base: Path | None = None
    disable_builtins: tuple[str, ...] | None = None
    official_sysexts: tuple[str, ...] | None = None
    survive_reset: bool | None = None
    bakery_key: Path | None = None
    update_key: Path | None = None


def load(path: Path) -> BakeFile:
    """Read a bake.toml. Raises UsageError naming file and key for bad syntax, unknown keys and wrong types."""
    return _Reader(path).read()


class _Reader:
    def __init__(self, path: Path) -> None:
        self._where, self._folder = str(path), path.absolute().parent
        self._values = load_toml(path)
        self._table = Table(self._values, self._where)

    def read(self) -> BakeFile:
        fetch = self._optional("fetch", bool)
        file = BakeFile(
            sysexts=self._sysexts(bool(fetch)), fetch=fetch, vendors=self._strings("vendors"),
            arch=self._arch(), release=self._optional("release", str), install_to=self._optional("install_to", str),
            output_dir=self._path("output_dir"), image=self._path("image"),
            base=self._choice("base", ("auto", "generic", "published")),
            backend=self._choice("backend", ("auto", "offline", "loop")),
            updates=self._updates(), allow=self._strings("allow"),
            mirror=self._address("mirror"), bakery=self._address("bakery"), signing_key=self._path("signing_key"),
            fingerprint=self._optional("fingerprint", str), jobs=self._jobs(),
            compress=self._choice("compress", (*COMPRESSIONS, "none")), kernel_args=self._strings("kernel_args"),
            build=self._optional("build", bool), recipes=self._folders("recipes"),
            mirror_urls=self._strings("mirror_urls"), recipes_lock=self._path("recipes_lock"),
            pxe_route=self._choice("pxe_route", ("auto", *ROUTES)), pxe_split=self._optional("pxe_split", bool),
            ram=self._optional("ram", str), serial=self._optional("serial", str),
            files=self._files(), ignition=self._path("ignition"), ignition_base=self._path("ignition_base"),
            disable_builtins=self._strings("disable_builtins"), official_sysexts=self._strings("official_sysexts"),
            survive_reset=self._optional("survive_reset", bool),
            bakery_key=self._path("bakery_key"), update_key=self._path("update_key"),
        )  # fmt: skip
        self._table.done()
        return file

    def _optional(self, key: str, kind: type[T]) -> T | None:
        value = self._table.take(key, kind, kind())
        return value if key in self._values else None

    def _strings(self, key: str) -> tuple[str, ...] | None:
        value = self._table.strings(key, ())
        return value if key in self._values else None

    def _choice(self, key: str, choices: tuple[str, ...]) -> str | None:
        value = self._optional(key, str)
        if value is not None and value not in choices:
            raise UsageError(
                f"{self._where}: {key} must be one of {', '.join(choices)}, not {value!r}.", suggest(value, choices)
            )
        return value

    def _arch(self) -> Arch | None:
        value = self._choice("arch", tuple(Arch))
        return None if value is None else Arch(value)

    def _updates(self) -> bool | None:
        """`updates`, which may be called as either of its options is."""
        value, other = self._optional("updates", bool), self._optional("enable_updates", bool)
        if value is not None and other is not None and value != other:
            raise UsageError(f"{self._where}: updates and enable_updates are one thing, and say two.")
        return value if value is not None else other

    def _files(self) -> tuple[str, ...] | None:
        """Words as for --file; relative sources are relative to the file, as all paths are."""
        words = self._strings("files")
        return None if words is None else tuple(os.path.join(self._folder, word) for word in words)

    def _jobs(self) -> int | None:
        value = self._optional("jobs", int)
        if value is not None and value < 1:
            raise UsageError(f"{self._where}: jobs must be at least 1, not {value}.")
        return value

    def _path(self, key: str) -> Path | None:
        value = self._optional(key, str)
        return None if value is None else self._folder / value

    def _folders(self, key: str) -> tuple[Path, ...] | None:
        values = self._strings(key)
        return None if values is None else tuple(self._folder / value for value in values)

    def _address(self, key: str) -> str | None:
        """A URL, or a folder."""
        value = self._optional(key, str)
        return value if value is None or "://" in value else str(self._folder / value)

    def _sysexts(self, fetch: bool) -> tuple[str, ...] | None:
        items: list[Any] | None = self._optional("sysexts", list)
        if items is None:
            return None
        return tuple(self._sysext(item, number, fetch) for number, item in enumerate(items, 1))

    def _sysext(self, item: Any, number: int, fetch: bool) -> str:
        where = f"{self._where}, sysexts {number}"
        if isinstance(item, str):
            name, colon, file = item.partition(":")
            remote = file.startswith(("http://", "https://")) or (fetch and "/" not in file)
            return item if not colon or not file or remote else f"{name}:{self._folder / file}"
        if not isinstance(item, dict):
            raise UsageError(f"{where} must be a string or a table, not {item!r}.", 'For example "wasmtime@24.0.0".')
        return self._sysext_table(Table(item, where), where, item)

    def _sysext_table(self, table: Table, where: str, given: dict[str, Any]) -> str:
        name = table.take("name", str)
        origins = {key: table.take(key, str, "") for key in ("file", "url", "version")}
        digest = table.take("sha256", str, "")
        table.done()
        if len([key for key in origins if key in given]) != 1 or not any(origins.values()):
            raise UsageError(f"{where} ({name}) needs exactly one of file, url and version.")
        if ("url" in given) != ("sha256" in given):
            raise UsageError(f"{where} ({name}): sha256 goes with url, and with nothing else.")
        if origins["version"]:
            return f"{name}@{origins['version']}"
        return (
            f"{name}:{self._folder / origins['file']}"
            if origins["file"]
            else f"{name}:{origins['url']}#sha256={digest}"
        )
