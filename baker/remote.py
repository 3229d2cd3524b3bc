"""Extensions that machines fetch by themselves: from which address, with which digest, and how they are updated."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from baker.admission import admit
from baker.errors import ImageError, UsageError
from baker.fetch import local_path
from baker.model import Arch
from baker.origins import check_file_name
from baker.recipe.streams import stream_configs
from baker.recipe.words import Scope
from baker.release import join_url
from baker.request import InstallTo, SysextRequest, parse_sysext
from baker.sources import bakery_digest, config_candidates, pick_bakery_version
from baker.sysext import builtins_replaced, read_sysext
from baker.sysupdate import lint_config, matches, parse_config, transfer_config

if TYPE_CHECKING:
    from baker.services import Services

_SHA512 = re.compile(r"(.+)#sha512=([0-9a-fA-F]{128})")


@dataclass(frozen=True)
class RemoteSysext:
    """An extension on a server. `hash` is as Ignition writes it (`sha256-HEX`), "" where nothing tells it.

    `config` is the text of its sysupdate config, "" without one; `builtins` are Flatcar's own that it replaces.
    """

    name: str
    file_name: str
    url: str
    hash: str
    config: str = ""
    config_name: str = ""
    builtins: tuple[str, ...] = ()

    @property
    def path(self) -> str:
        """Where it goes on the machine."""
        return InstallTo().path(self.name, self.file_name)


@dataclass(frozen=True)
class RemoteRequest:
    """What to look for, and how. `server` is where machines fetch from, "" for the bakery that is looked into."""

    arch: Arch = Arch.X86_64
    server: str = ""
    updates: bool = False
    allow: tuple[str, ...] = ()
    keys: bool = False
    """Whether machines get keys by which they trust signed updates; configs that are made here demand them then."""


def find_remote(words: Collection[str], request: RemoteRequest, services: Services) -> tuple[RemoteSysext, ...]:
    """Find out what machines must fetch; nothing but lists of digests and configs is downloaded.

    A word is NAME@VERSION, NAME:FILE (a file of the bakery, or with a folder in it one of this machine that the
    server will have) or NAME:URL#sha256=HEX (or #sha512=). UsageError for what does not exist, or would be fetched
    unverified without `allow`ing it.
    """
    if not words:
        raise UsageError("No sysext was given.", "Name at least one, for example wasmtime@24.0.0.")
    if request.server and urlsplit(request.server).scheme not in ("http", "https"):
        raise UsageError(f"Machines cannot fetch from {request.server}.", "Give --server an http or https address.")
    found: dict[str, RemoteSysext] = {}
    for word in words:
        item = _find(word, request, services)
        if found.setdefault(item.name, item) is not item:
            raise UsageError(f"The sysext name {item.name} is given twice.", "Drop one of them.")
    return tuple(found.values())


def _find(word: str, request: RemoteRequest, services: Services) -> RemoteSysext:
    strong = _SHA512.fullmatch(word)
    item = parse_sysext(strong[1] if strong else word, fetch=True)
    if item.url:
        digest = f"sha512-{strong[2].lower()}" if strong else f"sha256-{item.sha256}" if item.sha256 else ""
        name = unquote(urlsplit(item.url).path).rsplit("/", 1)[-1]
        if not digest and "unverified" not in request.allow:
            raise UsageError(
                f"Nothing says what {item.url} must contain.",
                f"Append the digest, {item.name}:{item.url}#sha256=HEX, or --allow unverified.",
            )
        return _complete(item, name, item.url, digest, _recipe_builtins(item.name, services), request, services)
    if item.path is not None:
        return _published_later(item, item.path, request, services)
    names = services.bakery_files(item.name)
    name = item.bakery_file or pick_bakery_version(item.name, item.version, request.arch, names)
    digest = f"sha256-{bakery_digest(name, names)}"
    url = _address(item.name, name, request, services)
    return _complete(item, name, url, digest, _recipe_builtins(item.name, services), request, services)


def _published_later(item: SysextRequest, path: Path, request: RemoteRequest, services: Services) -> RemoteSysext:
    """A file of this machine: what it is can be seen, and the server has to be told."""
    if not path.is_file():
        raise UsageError(f"There is no file {path} for the sysext {item.name}.")
    if not request.server:
        raise UsageError(
            f"Nothing says from where machines will fetch {path.name}.",
            "Say where it will be published: --server https://…",
        )
    sysext = read_sysext(path, item.name)
    admit(sysext, request.arch, None, request.allow, services.console)
    builtins = tuple(sorted(builtins_replaced(path, None)))
    url = join_url(request.server, path.name)
    return _complete(item, path.name, url, f"sha256-{sysext.sha256}", builtins, request, services)


def _complete(
    item: SysextRequest, file_name: str, url: str, digest: str, builtins: tuple[str, ...], request: RemoteRequest,
    services: Services,
) -> RemoteSysext:  # fmt: skip
    check_file_name(file_name)
    config_name, config = _config(item, file_name, request, services) if request.updates else ("", "")
    return RemoteSysext(item.name, file_name, url, digest, config, config_name, builtins)


def _address(name: str, file_name: str, request: RemoteRequest, services: Services) -> str:
    """The address of a bakery's file for machines: in the bakery itself, or in the extension's own folder there."""
    own = () if services.in_bakery(file_name) else (name,)
    if own and services.fetcher.size(join_url(services.bakery, name, file_name)) is None:
        raise UsageError(f"The bakery {services.bakery} lists {file_name} but does not have it.")
    server = request.server or services.bakery
    if local_path(server) is not None:
        raise UsageError(f"Machines cannot fetch from {server}.", "Say where it is published: --server https://…")
    return join_url(server, *own, file_name)


def _recipe_builtins(name: str, services: Services) -> tuple[str, ...]:
    """What an extension of this name replaces, by its recipe: its image is not looked into."""
    recipe = services.recipes.named(name)
    return recipe.replaces if recipe else ()


def _config(item: SysextRequest, file_name: str, request: RemoteRequest, services: Services) -> tuple[str, str]:
    """Name and text of the sysupdate config: the bakery's, else by the recipe, else for files NAME-VERSION-ARCH.raw.

    Of several streams the one of the minor version is taken: no machine goes to another minor by itself.
    """
    folder = _folder(item, request, services)
    choices = {} if request.server else _published_configs(item.name, file_name, services)
    choices = choices or _recipe_configs(item.name, file_name, request, folder, services)
    if not choices:
        pattern = f"{item.name}-@v-%a.raw"
        choices = {f"{item.name}.conf": transfer_config(item.name, pattern, folder, verify=request.keys)}
    for name, text in choices.items():
        if problem := lint_config(text.encode(), item.name):
            raise ImageError(f"The update config {name} must not be used: {problem}.")
    fitting = {
        name: text for name, text in choices.items()
        if any(matches(each, file_name, request.arch) for each in parse_config(text.encode()).target_patterns)
    }  # fmt: skip
    if not fitting:
        services.console.warn(
            f"{file_name} is no version by any update config ({', '.join(choices)}): it will be fetched again."
        )
    name, text = max((fitting or choices).items(), key=lambda pair: len(pair[0]))
    if parse_config(text.encode()).verify and not request.keys:
        services.console.warn(
            f"{item.name} is updated from signed releases only, and machines get no key to check them by: "
            "--update-key FILE"
        )
    return name, text


def _folder(item: SysextRequest, request: RemoteRequest, services: Services) -> str:
    """Where new versions will be listed: the extension's own folder, or a common one where it has none."""
    server = request.server or services.bakery
    if item.url:
        return item.url.rsplit("/", 1)[0]
    lists = join_url(services.bakery, item.name, "SHA256SUMS")
    own = item.path is None and services.fetcher.size(lists) is not None
    return join_url(server, item.name) if own else server


def _published_configs(name: str, file_name: str, services: Services) -> dict[str, str]:
    found = {}
    for candidate in config_candidates(name, file_name):
        if services.in_bakery(candidate):
            stored = services.store.bakery(services.bakery, candidate)
            found[candidate] = stored.path.read_text(encoding="utf-8", errors="replace")
    return found


def _recipe_configs(
    name: str, file_name: str, request: RemoteRequest, folder: str, services: Services
) -> dict[str, str]:  # fmt: skip
    recipe = services.recipes.named(name)
    version = re.fullmatch(rf"{re.escape(name)}-(.+)-{request.arch}\.raw", file_name)
    if recipe is None or version is None:
        return {}
    scope = Scope(recipe, version[1], request.arch, name=name)
    configs = stream_configs(recipe, scope, folder, verify=request.keys)
    return {key: text for key, text in configs.items() if key != "noop.conf"}
