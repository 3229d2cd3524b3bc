"""Loading recipes: a folder's recipe.toml as a checked Recipe, and the catalogue of all of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from pathlib import Path

from baker.errors import UsageError
from baker.model import Arch
from baker.recipe import entries
from baker.recipe.checks import check_recipe
from baker.recipe.entries import Reader, read_all
from baker.recipe.examples import read_examples
from baker.recipe.lines import LineTable, load_lines
from baker.recipe.model import Promise, Recipe, RecipeTests, Run, Versions
from baker.resources import catalogue
from baker.schema import suggest
from baker.treelint import BUILTINS

SCHEMA = 1


def load_recipe(folder: Path) -> Recipe:
    """Read and check one recipe. UsageError begins with file and line of what is wrong."""
    top = load_lines(folder / "recipe.toml")
    if top.take("schema", int) != SCHEMA:
        raise UsageError(f"{top.place('schema')}: only schema {SCHEMA} is known.", "Use a newer flatcar-bake.")
    parameters = top.named("param")
    reader = Reader(tuple(parameters))
    arches = tuple(_arch(word, top.place("arches")) for word in top.strings("arches", tuple(Arch)))
    recipe = Recipe(
        name=entries.plain_name(top.take("name", str), "name", top.place("name")),
        title=top.take("title", str),
        folder=folder,
        version=_versions(top),
        arches=arches,
        words=_words(top, arches),
        aliases=top.strings("aliases", ()),
        homepage=top.take("homepage", str, ""),
        license=top.take("license", str, ""),
        docs=top.take("docs", str, ""),
        reload=top.take("reload", bool, False),
        requires=top.strings("requires", ()),
        host_needs=top.strings("host_needs", ()),
        parameters=tuple(entries.read_parameter(name, table, reader) for name, table in parameters.items()),
        sources=read_all(top.tables("source"), entries.read_source, reader),
        installs=read_all(top.tables("install"), entries.read_install, reader),
        symlinks=read_all(top.tables("symlink"), entries.read_symlink, reader),
        generates=read_all(top.tables("generate"), entries.read_generate, reader),
        edits=read_all(top.tables("edit"), entries.read_edit, reader),
        removes=read_all(top.tables("remove"), entries.read_remove, reader),
        upholds=read_all(top.tables("uphold"), entries.read_uphold, reader),
        variants=tuple(entries.read_variant(name, table) for name, table in top.named("variant").items()),
        build=entries.read_build(top.table("build")),
        rootfs=entries.read_rootfs(top.table("rootfs")),
        streams=tuple(entries.read_stream(table) for table in top.tables("stream")),
        tests=_tests(top.table("test")),
        promise=_promise(top.table("promise")),
        replaces=_builtins(top),
        examples=read_examples(top.named("butane"), folder),
    )
    top.done()
    if recipe.name != folder.absolute().name:
        raise UsageError(
            f"{top.place('name')}: the recipe {recipe.name!r} is in the folder {folder.absolute().name!r}."
        )
    check_recipe(recipe)
    return recipe


def _arch(word: str, place: str) -> Arch:
    if word not in tuple(Arch):
        raise UsageError(f"{place}: there is no architecture {word!r}.", suggest(word, Arch))
    return Arch(word)


def _builtins(top: LineTable) -> tuple[str, ...]:
    names = top.strings("replaces", ())
    for name in names:
        if name not in BUILTINS:
            raise UsageError(f"{top.place('replaces')}: Flatcar has no built-in {name!r}.", suggest(name, BUILTINS))
    return names


def _versions(top: LineTable) -> Versions:
    table = top.sub("version")
    source = table.table("source")
    versions = Versions(
        entries.one_of(table, "form", entries.FORMS), entries.pattern(table, "match"), table.take("example", str, ""),
        table.take("min", str, ""), table.take("prerelease", bool, False),
        entries.read_version_source(source) if source else None,
    )  # fmt: skip
    table.done()
    return versions


def _words(top: LineTable, arches: tuple[Arch, ...]) -> dict[Arch, Mapping[str, str]]:
    """[arch]: every word must have a value for each architecture."""
    group = top.table("arch")
    words: dict[Arch, Mapping[str, str]] = {}
    if group is None:
        return {arch: {} for arch in arches}
    for name in group.left():
        arch = _arch(name, group.place(name))
        table = group.sub(name)
        words[arch] = {key: table.take(key, str) for key in table.left()}
    names = set().union(*words.values())
    for arch in arches:
        missing = names - set(words.get(arch, {}))
        if missing:
            raise UsageError(f"{group.at()}: {arch} lacks a value for {', '.join(sorted(missing))}.")
    return words


def _tests(table: LineTable | None) -> RecipeTests:
    if table is None:
        return RecipeTests()
    runs = []
    for run in table.tables("run"):
        runs.append(Run(run.strings("argv"), run.take("stdout", str, "")))
        run.done()
    tests = RecipeTests(
        table.strings("elf", ()), table.strings("static", ()), table.strings("paths", ()), tuple(runs)
    )  # fmt: skip
    table.done()
    return tests


def _promise(table: LineTable | None) -> Promise:
    if table is None:
        return Promise()
    active, present = (
        tuple(entries.unit_name(unit, table.place(key)) for unit in table.strings(key, ()))
        for key in ("active", "inactive-but-present")
    )
    table.done()
    return Promise(active, present)


def recipe_folders(folders: Iterable[Path] = ()) -> dict[str, Path]:
    """The folder of each recipe by its name: the shipped ones, then those in the user's folders, which win.

    A user's folder holds recipes in folders of their names, or is a recipe itself.
    """
    found: dict[str, Path] = {}
    for folder in (catalogue("recipes"), *folders):
        if not folder.is_dir():
            raise UsageError(f"There is no folder {folder} to read recipes from.")
        own = [folder] if (folder / "recipe.toml").is_file() else []
        for each in own or sorted(path.parent for path in folder.glob("*/recipe.toml")):
            found[each.absolute().name] = each
    return found


class Recipes(Mapping[str, Recipe]):
    """All recipes by name, sorted, each read when it is asked for: a build of one need not read the others.

    Asking raises UsageError for one that is wrong.
    """

    def __init__(self, folders: Iterable[Path] = ()) -> None:
        self._folders = dict(sorted(recipe_folders(folders).items()))
        self._read: dict[str, Recipe] = {}

    def __getitem__(self, name: str) -> Recipe:
        if name not in self._read:
            self._read[name] = load_recipe(self._folders[name])
        return self._read[name]

    def __contains__(self, name: object) -> bool:
        return name in self._folders

    def __iter__(self) -> Iterator[str]:
        return iter(self._folders)

    def __len__(self) -> int:
        return len(self._folders)

    @cached_property
    def aliases(self) -> dict[str, Recipe]:
        """The recipes by their other names; UsageError for one that two recipes claim."""
        owners: dict[str, Recipe] = {}
        for recipe in self.values():
            for alias in recipe.aliases:
                if alias in self or alias in owners:
                    owner = owners[alias].name if alias in owners else alias
                    raise UsageError(f"{recipe.path}: the alias {alias!r} belongs to the recipe {owner} already.")
                owners[alias] = recipe
        return owners

    def named(self, name: str) -> Recipe | None:
        """The recipe of that name or alias."""
        return self[name] if name in self else self.aliases.get(name)


def load_recipes(folders: Iterable[Path] = ()) -> Recipes:
    """All recipes, every one of them read. UsageError for the first one that is wrong, or claims another's alias."""
    recipes = Recipes(folders)
    _ = recipes.aliases
    return recipes


def find_recipe(name: str, recipes: Recipes) -> Recipe:
    """The recipe of that name or alias; UsageError with the nearest names otherwise."""
    recipe = recipes.named(name)
    if recipe is not None:
        return recipe
    hint = suggest(name, (*recipes, *recipes.aliases)) or (
        "`flatcar-bake recipe list` shows all; --recipes DIR adds your own."
    )
    raise UsageError(f"There is no recipe {name!r}.", hint)
