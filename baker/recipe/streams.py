"""sysupdate configs of a recipe: one per stream, and for those by minor version one for the minor that is built."""

from __future__ import annotations

from baker.recipe.model import Recipe
from baker.recipe.words import Scope
from baker.sysupdate import noop_config, transfer_config


def stream_configs(recipe: Recipe, scope: Scope, url: str, *, verify: bool = False) -> dict[str, str]:
    """File name → content of every stream's config, and of noop.conf, which systemd-sysupdate needs beside them.

    `url` is the address of the folder in which the extension's images are published; `verify` says that its
    SHA256SUMS is signed.
    """
    configs = {}
    component = scope.name or recipe.name
    for stream in recipe.streams:
        name, pattern, target = (
            _renamed(scope.expand(text, stream.where), recipe.name, component)
            for text in (stream.name, stream.pattern, stream.target or recipe.name)
        )
        configs[f"{name}.conf"] = transfer_config(target, pattern, url, verify=verify)
    return configs | ({"noop.conf": noop_config()} if configs else {})


def _renamed(text: str, name: str, component: str) -> str:
    """For an extension under a name of the user's own: its files are called after that."""
    if text == name or text.startswith((f"{name}-", f"{name}.")):
        return component + text.removeprefix(name)
    return text
