"""Small languages of recipes: words in braces, conditions, globs, and the order of versions."""

import pytest

from baker.errors import UsageError
from baker.model import Arch
from baker.recipe.conditions import ConditionError, Facts, parse_condition
from baker.recipe.globs import covers, kept, matches
from baker.recipe.load import load_recipe
from baker.recipe.order import minor_of, version_key
from baker.recipe.words import Scope, UnknownWord, expand
from recipes import RECIPE, write_recipe


def test_versions_sort_as_people_mean():
    ordered = [
        "v1.9.0", "v1.31.0-alpha.2", "v1.31.0-rc.1", "v1.31.0-rc.10", "1.31.0", "v1.31.0+k3s1", "v1.31.0+k3s2",
        "v1.31.1", "2", "10.0",
    ]  # fmt: skip
    assert sorted(reversed(ordered), key=version_key) == ordered
    assert version_key("1.2") == version_key("v1.2.0")
    assert [minor_of(word) for word in ("v1.29.3+k3s1", "24.0", "7")] == ["1.29", "24.0", "7"]


@pytest.mark.parametrize(
    ("text", "true"),
    [
        ("version >= 1.2.3", True), ("version < 1.10", True), ("version == v1.2.3", True), ("version>1.2.3", False),
        ("p.cni", True), ("not p.cni", False), ("p.none", False), ("not p.none", True),
        ("p.cni >= 1.4 and arch == 'arm64'", True), ('arch != "arm64"', False), ("p.word == 'a b'", True),
        ("version >= 1 and p.cni and not p.none", True),
    ],
)  # fmt: skip
def test_conditions(text, true):
    facts = Facts("v1.2.3", "arm64", {"cni": "v1.4.1", "word": "a b"})
    assert parse_condition(text, ["cni", "none", "word"]).holds(facts) is true


@pytest.mark.parametrize(
    "text",
    ["version", "version >=", "version >= new", "version = 1", "p.other", "not version >= 1", "p.cni or p.cni",
     "p.cni and", "arch == arm64", "arch > 'a'", "version == '1'", "p.cni 'x"],
)  # fmt: skip
def test_conditions_that_make_no_sense(text):
    with pytest.raises(ConditionError):
        parse_condition(text, ["cni"])


def test_words():
    words = {"v": "v1", "p.cni": "v2"}
    assert expand("{v}/{p.cni} ${v} {{v}} { v } {} {1}", words, "x") == "v1/v2 ${v} {v} { v } {} {1}"
    with pytest.raises(UnknownWord, match="is not known here") as error:
        expand("{p.cnj}", words, "x:1")
    assert error.value.hint == "Did you mean p.cni?"


def test_the_words_of_a_build(tmp_path):
    recipe = load_recipe(write_recipe(tmp_path))
    scope = Scope(recipe, "v1.29.3", Arch.ARM64, {}, "mine")
    assert scope.expand("{v} {bare} {tag} {major} {minor} {arch} {go} {name} {url}", "x", url="u") == (
        "v1.29.3 1.29.3 v1.29.3 1 1.29 arm64 arm64 mine u"
    )


@pytest.mark.parametrize(("said", "canonical"), [("1.2.3", "v1.2.3"), ("v1.2.3", "v1.2.3"), (" 1.2.3 ", "v1.2.3")])
def test_versions_come_into_the_form_of_the_recipe(said, canonical, tmp_path):
    assert load_recipe(write_recipe(tmp_path)).canonical(said) == canonical


@pytest.mark.parametrize("said", ["1.2", "v1.2.3-rc1", "", "latest", "v1.2.3/../..", "vv1.2.3"])
def test_what_is_no_version(said, tmp_path):
    with pytest.raises(UsageError, match="is no version of tool"):
        load_recipe(write_recipe(tmp_path)).canonical(said)


@pytest.mark.parametrize("said", ["../x", "a/b", ".x", "a b"])
def test_a_version_can_be_part_of_a_file_name_whatever_the_recipe_allows(said, tmp_path):
    lax = RECIPE.replace("""form = "v"\nmatch = '^v\\d+\\.\\d+\\.\\d+$'""", 'form = "any"\nmatch = ".*"')
    assert lax != RECIPE
    with pytest.raises(UsageError, match="is no version of tool"):
        load_recipe(write_recipe(tmp_path, lax)).canonical(said)


@pytest.mark.parametrize(
    ("pattern", "path", "stays"),
    [
        ("*", "tool", "tool"), ("*", "a/tool", None), ("bin/*", "bin/tool", "tool"), ("**", "a/b/c", "a/b/c"),
        ("usr/**", "usr/lib/x", "lib/x"), ("usr/lib/*-linux-gnu/*", "usr/lib/x86_64-linux-gnu/a.so", "a.so"),
        ("a/**/c.txt", "a/c.txt", "c.txt"), ("a/**/c.txt", "a/b/d/c.txt", "b/d/c.txt"), ("tool?", "tools", "tools"),
        ("[ab].txt", "a.txt", "a.txt"), ("[!ab].txt", "a.txt", None), ("a.b", "axb", None), ("lib", "lib", "lib"),
    ],
)  # fmt: skip
def test_globs(pattern, path, stays):
    assert kept(pattern, path) == stays
    assert matches(pattern, path) is (stays is not None)


def test_a_folder_is_covered_with_all_in_it():
    assert covers(["/usr/share/x"], "/usr/share/x/y/z")
    assert covers(["README*"], "a/b/README.md"), "without a slash it is about names"
    assert not covers(["/usr/bin/containerd*"], "/usr/bin/docker")
