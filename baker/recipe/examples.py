"""Examples of recipes: provisioning configs that show an extension at work, as Butane in `butane/NAME.bu`.

    [butane.agent]
    description = "a worker that joins a server"

    [butane.agent.values]
    token = "what the server has in /var/lib/rancher/k3s/server/node-token"

Words in braces stand for those values, which the user gives. They are put into contents of files and units only.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from baker.errors import UsageError
from baker.schema import suggest

if TYPE_CHECKING:
    from baker.butane import Config
    from baker.recipe.lines import LineTable

FOLDER = "butane"
_NAME = re.compile(r"[a-z][a-z0-9-]*")
_KEY = re.compile(r"[a-z][a-z0-9_]*")
_WORD = re.compile(r"(?<!\$)\{([a-z][a-z0-9_]*)\}")

# They land in YAML, environment files and command lines: nothing that means something in any of them.
_PLAIN_VALUE = re.compile(r"[A-Za-z0-9@%+=:,./_~-]+")


@dataclass(frozen=True)
class Example:
    """One example. `values` are the names of what the user must give, with what each is."""

    name: str
    description: str
    path: Path
    values: Mapping[str, str] = field(default_factory=dict)

    def config(self, given: Mapping[str, str]) -> Config:
        """The Ignition config with the user's values; UsageError names those that are missing or not plain."""
        for key, meaning in self.values.items():
            if key not in given:
                raise UsageError(
                    f"The example {self.path.parent.parent.name}/{self.name} needs the value {key}: {meaning}.",
                    f"Give it with --set {key}=…",
                )
            if not _PLAIN_VALUE.fullmatch(given[key]):
                raise UsageError(
                    f"The value of {key} must be a plain word, not {given[key]!r}.",
                    "Letters, digits and @ % + = : , . / _ ~ - are fine; for more, change the config by hand.",
                )
        from baker.butane_reader import from_butane

        filled: Config = _fill(from_butane(_read(self.path), str(self.path)), given)
        return filled


def read_examples(tables: Mapping[str, LineTable], folder: Path) -> tuple[Example, ...]:
    """The [butane.NAME] of a recipe, checked together with their files in the recipe's `folder`."""
    examples = tuple(_read_example(name, table, folder) for name, table in tables.items())
    known = {example.path for example in examples}
    for path in sorted((folder / FOLDER).glob("*")) if (folder / FOLDER).is_dir() else ():
        if path not in known:
            raise UsageError(f"{path}: the recipe says nothing of this example.", f"Add [butane.{path.stem}] to it.")
    return examples


def _read_example(name: str, table: LineTable, folder: Path) -> Example:
    if not _NAME.fullmatch(name):
        raise UsageError(f"{table.place()}: the name of an example has small letters and dashes, unlike {name!r}.")
    values = table.table("values")
    meanings = {} if values is None else {key: values.take(key, str) for key in values.left()}
    example = Example(name, table.take("description", str), folder / FOLDER / f"{name}.bu", meanings)
    table.done()
    if not example.path.is_file():
        raise UsageError(f"{table.place()}: there is no {FOLDER}/{name}.bu.")
    for key in meanings:
        if not _KEY.fullmatch(key):
            raise UsageError(f"{table.place('values')}: {key!r} cannot be the name of a value.")
    from baker.butane import IGNITION_VERSION, texts
    from baker.butane_reader import from_butane

    config = from_butane(_read(example.path), str(example.path))
    if config["ignition"]["version"] != IGNITION_VERSION:
        raise UsageError(f"{example.path}: an example is of Butane's version 1.0.0, which all releases read.")
    used = {word for text in texts(config) for word in _WORD.findall(text)}
    for word in sorted(used - set(meanings)):
        hint = suggest(word, meanings) or f"Add it to [butane.{name}.values]; a shell's variable is ${{{word}}}."
        raise UsageError(f"{example.path}: {{{word}}} is no value of this example.", hint)
    for word in sorted(set(meanings) - used):
        raise UsageError(f"{table.place('values')}: {example.path.name} does not use the value {word!r}.")
    return example


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(f"Cannot read {path}: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not UTF-8 text.") from error


def _fill(value: Any, given: Mapping[str, str]) -> Any:
    """The config with words replaced, in plain texts and within data URLs."""
    if isinstance(value, dict):
        return {key: _fill(each, given) for key, each in value.items()}
    if isinstance(value, list):
        return [_fill(each, given) for each in value]
    if isinstance(value, str) and value.startswith("data:"):
        from baker.butane import data_of
        from baker.ignition import data_url

        return data_url(_replace(data_of(value).decode(), given).encode())
    return _replace(value, given) if isinstance(value, str) else value


def _replace(text: str, given: Mapping[str, str]) -> str:
    return _WORD.sub(lambda found: given[found[1]], text)
