"""Provisioning: an Ignition config with which a plain Flatcar machine fetches its extensions at the first boot.

The layout is that of a bake: the image in /opt/extensions/NAME, the link /etc/extensions/NAME.raw that activates it,
and for updates the transfer config of systemd-sysupdate with what makes it run. `remote.py` finds out what to fetch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from baker.butane import IGNITION_VERSION, Config
from baker.errors import UsageError
from baker.ignition import IgnitionConfig, canonical, data_url, merge_base, parse_config
from baker.official import CONF, enabled_conf
from baker.recipe.examples import Example
from baker.recipe.model import Recipe
from baker.remote import RemoteSysext
from baker.schema import suggest
from baker.sign import KEYRING_NAME
from baker.sysupdate import drop_in, noop_config

DROP_IN = "10-flatcar-bake.conf"


def provisioning(
    sysexts: Iterable[RemoteSysext],
    updates: bool,
    disabled: Iterable[str] = (),
    official: Iterable[str] = (),
    keyring: bytes = b"",
) -> Config:
    """The config that fetches and links `sysexts`, and with `updates` keeps those up to date that have a config.

    `disabled` are built-in sysexts to turn off beside those that are replaced, such as docker-flatcar. `official` are
    names of Flatcar's own extra ones, which the initrd fetches in the version of the system, and updates with it.
    `keyring` are the keys by which signed updates are trusted, b"" for none.
    """
    found = tuple(sysexts)
    files = [_image(item) for item in found]
    links = [_link(f"/etc/extensions/{item.name}.raw", item.path) for item in found]
    # A link to /dev/null hides the one of the same name that the /usr image brings.
    hidden = sorted({name for item in found for name in item.builtins} | set(disabled))
    links += [_link(f"/etc/extensions/{name}.raw", "/dev/null") for name in hidden]
    config: Config = {"ignition": {"version": IGNITION_VERSION}}
    if enabled := tuple(official):
        files.append(_file(CONF, enabled_conf(None, enabled).decode()))
    if keyring:
        contents = {"source": data_url(keyring)}
        files.append({"path": f"/etc/systemd/{KEYRING_NAME}", "mode": 0o644, "overwrite": True, "contents": contents})
    updated = [item for item in found if updates and item.config]
    if updated:
        files += [_file(f"/etc/sysupdate.{item.name}.d/{item.config_name}", item.config) for item in updated]
        files.append(_file("/etc/sysupdate.d/noop.conf", noop_config()))
        service = {"name": DROP_IN, "contents": drop_in(item.name for item in updated)}
        config["systemd"] = {
            "units": [
                {"name": "systemd-sysupdate.service", "dropins": [service]},
                {"name": "systemd-sysupdate.timer", "enabled": True},
            ]
        }
    config["storage"] = {kind: nodes for kind, nodes in (("files", files), ("links", links)) if nodes}
    return config


def _image(item: RemoteSysext) -> dict[str, Any]:
    contents: dict[str, Any] = {"source": item.url}
    if item.hash:
        contents["verification"] = {"hash": item.hash}
    return {"path": item.path, "mode": 0o644, "overwrite": True, "contents": contents}


def _file(path: str, text: str) -> dict[str, Any]:
    return {"path": path, "mode": 0o644, "overwrite": True, "contents": {"source": data_url(text.encode())}}


def _link(path: str, target: str) -> dict[str, Any]:
    return {"path": path, "target": target, "overwrite": True, "hard": False}


def add(config: Config, more: Config, name: str) -> Config:
    """`config` with all that `more` says, as Ignition merges them; `name` is what messages call `more`.

    UsageError for a path, unit or drop-in that both declare: only one of them could win.
    """
    ours, theirs = parse_config(canonical(config), "the config"), parse_config(canonical(more), name)
    for what in sorted(_declared(ours) & _declared(theirs)):
        raise UsageError(f"{name} declares {what}, which is declared already.", "Leave it out of one of them.")
    return dict(parse_config(merge_base(ours.data, theirs.data, name), name).content)


def _declared(config: IgnitionConfig) -> frozenset[str]:
    """Paths, units with contents, and drop-ins."""
    units = (config.content.get("systemd") or {}).get("units") or ()
    contents = {unit["name"] for unit in units if unit.get("contents")}
    drop_ins = {f"{unit['name']}.d/{each['name']}" for unit in units for each in unit.get("dropins") or ()}
    return config.paths | contents | drop_ins


def choose_example(word: str, recipes: Mapping[str, Recipe]) -> Example:
    """The example that RECIPE/EXAMPLE, or EXAMPLE alone, means; `recipes` are those of the extensions asked for."""
    known = {f"{recipe.name}/{example.name}": example for recipe in recipes.values() for example in recipe.examples}
    found = [example for full, example in known.items() if word in (full, example.name)]
    if len(found) == 1:
        return found[0]
    if found:
        both = " and ".join(full for full, example in known.items() if example in found)
        raise UsageError(f"The example {word!r} may be {both}.", "Write it with the extension before the slash.")
    hint = suggest(word, (*known, *(example.name for example in known.values())))
    raise UsageError(
        f"There is no example {word!r} for these extensions.",
        hint or (f"There is: {', '.join(known)}." if known else "`flatcar-bake butane --list-examples` shows all."),
    )
