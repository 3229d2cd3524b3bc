"""What must fit together in a recipe: names that are used exist, words are known, streams sort."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from baker.errors import UsageError
from baker.recipe.entries import plain_name
from baker.recipe.model import Install, Recipe, Source
from baker.recipe.rootfs import check_options
from baker.recipe.words import ALWAYS_KNOWN, check_words
from baker.schema import suggest

BUILD_WORDS = ("epoch", "jobs")


def check_recipe(recipe: Recipe) -> None:
    """Raise UsageError for the first thing that does not fit."""
    for alias in recipe.aliases:
        plain_name(alias, "an alias", str(recipe.path))
    _check_version(recipe)
    _check_sources(recipe)
    _check_variants(recipe)
    _check_build(recipe)
    if recipe.rootfs is not None:
        check_options(recipe.rootfs)
    _check_streams(recipe)
    _check_words(recipe)


def _check_version(recipe: Recipe) -> None:
    version = recipe.version
    if version.example and recipe.canonical(version.example) != version.example:
        raise UsageError(f"{recipe.path}: the example {version.example!r} does not have the form {version.form!r}.")


def _unique(values: Iterable[tuple[str, str]], what: str) -> None:
    """Values are pairs of name and place."""
    seen: set[str] = set()
    for name, place in values:
        if name in seen:
            raise UsageError(f"{place}: there are two {what} {name!r}.")
        seen.add(name)


def _check_sources(recipe: Recipe) -> None:
    _unique(((source.id, source.where) for source in recipe.sources if not source.when.terms), "sources")
    known = {source.id for source in recipe.sources} | ({"build"} if recipe.build else set())
    used = {install.source for install in recipe.installs} | set(recipe.build.mount if recipe.build else ())
    for install in recipe.installs:
        if install.source not in known:
            raise UsageError(
                f"{install.where}: there is no source {install.source!r}.", suggest(install.source, known)
            )
        _check_foreach(install, recipe)
    for source in recipe.sources:
        if source.id not in used:
            raise UsageError(f"{source.where}: nothing uses the source {source.id!r}.")


def sources_of(recipe: Recipe, identifier: str) -> list[Source]:
    """The sources of an id: several, where their conditions choose one."""
    return [source for source in recipe.sources if source.id == identifier]


def _check_foreach(install: Install, recipe: Recipe) -> None:
    many = any(source.foreach for source in sources_of(recipe, install.source))
    if many and "{item}" not in install.dst and not install.dst.endswith("/"):
        raise UsageError(f"{install.where}: every item would go to {install.dst}.", "Put {item} into dst.")
    files = [source for source in sources_of(recipe, install.source) if source.kind == "file"]
    if files and (install.src or install.find or install.exclude):
        raise UsageError(f"{install.where}: {install.source} is a single file, in which there is nothing to choose.")


def _check_variants(recipe: Recipe) -> None:
    names = {variant.name for variant in recipe.variants}
    limited = [
        (entry.variants, entry.where)
        for kind in (recipe.installs, recipe.symlinks, recipe.generates, recipe.edits, recipe.removes, recipe.upholds)
        for entry in kind
    ]
    for words, place in limited:
        for word in words:
            if word not in names:
                raise UsageError(f"{place}: there is no variant {word!r}.", suggest(word, names))
    upheld = {uphold.unit for uphold in recipe.upholds}
    for variant in recipe.variants:
        for unit in variant.drop_uphold:
            if unit not in upheld:
                raise UsageError(f"{variant.where}: {unit} is not upheld.", suggest(unit, upheld))


def _check_build(recipe: Recipe) -> None:
    build = recipe.build
    if build is None:
        return
    for source in build.mount:
        if not sources_of(recipe, source):
            raise UsageError(f"{build.where}: there is no source {source!r} to mount.")
    if build.script and not (recipe.folder / plain_name(build.script, "script", build.where)).is_file():
        raise UsageError(f"{build.where}: there is no script {build.script!r} in {recipe.folder}.")
    if not any(install.source == "build" for install in recipe.installs):
        raise UsageError(f"{build.where}: nothing installs what is built.", 'Add [[install]] with from = "build".')


def _check_streams(recipe: Recipe) -> None:
    _unique(((stream.name, stream.where) for stream in recipe.streams), "streams")
    for stream in recipe.streams:
        if recipe.version.form == "any":
            raise UsageError(
                f"{stream.where}: a stream needs versions of one form.",
                "systemd takes v25 for older than 24: set form to v or bare.",
            )
        # The words of a name must come out the same for each version of the stream.
        words = ("minor", "name") if stream.per else ("name",)
        for text in (stream.name, stream.pattern, stream.target):
            check_words(text, words, stream.where)
        if stream.per and "{minor}" not in stream.pattern:
            raise UsageError(f"{stream.where}: a stream for each minor needs {{minor}} in its pattern.")


def _check_words(recipe: Recipe) -> None:
    arch_words = set().union(*(set(words) for words in recipe.words.values()))
    for word in arch_words:
        if word in (*ALWAYS_KNOWN, *BUILD_WORDS, "item", "url"):
            raise UsageError(f"{recipe.path}: [arch] cannot give {word!r} another meaning.")
    known = {*ALWAYS_KNOWN, *arch_words, *(f"p.{parameter.name}" for parameter in recipe.parameters)}
    if recipe.version.source:
        check_words(recipe.version.source.url, arch_words | {"name"}, recipe.version.source.where)
    for text, more, place in _templates(recipe):
        check_words(text, known | set(more), place)


def _templates(recipe: Recipe) -> Iterator[tuple[str, tuple[str, ...], str]]:
    """Every template with the words that it may use beside the usual ones, and its place."""
    for parameter in recipe.parameters:
        if parameter.source:
            yield parameter.source.url, (), parameter.where
    for source in recipe.sources:
        item = ("item",) if source.foreach else ()
        for text in (source.url, *source.mirrors):
            yield text, item, source.where
        for text in (source.checksum.url, source.checksum.name):
            yield text, (*item, "url"), source.checksum.where
    for install in recipe.installs:
        item = ("item",) if any(source.foreach for source in sources_of(recipe, install.source)) else ()
        for text in (install.src, install.dst, install.find, *install.exclude):
            yield text, item, install.where
    for link in recipe.symlinks:
        yield from ((text, (), link.where) for text in (link.path, link.target))
    for made in recipe.generates:
        yield from ((text, (), made.where) for text in (made.path, made.content))
    for edit in recipe.edits:
        yield from ((text, (), edit.where) for text in (edit.path, *(part for pair in edit.replace for part in pair)))
    for removal in recipe.removes:
        yield from ((text, (), removal.where) for text in removal.paths)
    for run in recipe.tests.run:
        yield from ((text, (), str(recipe.path)) for text in (*run.argv, run.stdout))
    yield from _build_templates(recipe)


def _build_templates(recipe: Recipe) -> Iterator[tuple[str, tuple[str, ...], str]]:
    build = recipe.build
    if build is not None:
        scripts = (*build.fetch, *build.steps)
        texts = (*build.images.values(), *scripts, build.platform, *build.packages, *build.env.values())
        yield from ((text, BUILD_WORDS, build.where) for text in texts)
    rootfs = recipe.rootfs
    if rootfs is not None:
        words = (rootfs.image, *rootfs.packages, *rootfs.paths, *rootfs.options.values())
        yield from ((text, (), rootfs.where) for text in words)
