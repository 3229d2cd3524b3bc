"""A recipe that is wrong is refused before anything is built, with the file and the line of what is wrong."""

from pathlib import Path

import pytest

from baker.errors import UsageError
from baker.recipe.lines import LineIndex
from baker.recipe.lint import lint_recipe
from baker.recipe.load import Recipes, find_recipe, load_recipe, load_recipes
from recipes import RECIPE, write_recipe

SOURCE = 'id = "release"'
END = 'unit = "tool.service"\n'


def line_of(text: str, part: str) -> int:
    """The number of the line with `part`."""
    return text[: text.index(part)].count("\n") + 1


# What is replaced, by what, a part of the line that is blamed, and a part of the message or the hint.
WRONG = {
    "syntax": ('title = "A tool"', "title = A tool", "title = A tool", "Invalid value"),
    "schema": ("schema = 1", "schema = 2", "schema = 2", "only schema 1"),
    "unknown key": ("title =", 'titel = ""\ntitle =', "titel", "Did you mean title"),
    "missing key": ('title = "A tool"', "", "schema", "lacks the key 'title'"),
    "wrong type": ("reload = true", 'reload = "yes"', 'reload = "yes"', "must be a bool"),
    "other name": ('name = "tool"', 'name = "tole"', 'name = "tole"', "in the folder 'tool'"),
    "path as name": ('name = "tool"', 'name = "../x"', 'name = "../x"', "plain name"),
    "key of an entry": (SOURCE, SOURCE + "\nsum = 1", "sum = 1", "unknown key 'sum'"),
    "key in an inline table": ('url = "{url}.sha256"', 'url = "{url}.sha256", algo = 1', "algo = 1", "key 'algo'"),
    "key of a sub-table": ('example = "v1.2.3"', 'example = "v1.2.3"\nform2 = 1', "form2", "Did you mean form"),
    "no such form": ('form = "v"', 'form = "vee"', "vee", "form cannot be 'vee'"),
    "regular expression": ("match = '^v", "match = '(v", "match = '(v", "no regular expression"),
    "example": ('example = "v1.2.3"', 'example = "1.2.3"', "schema", "does not have the form"),
    "architecture": ("arm64 = {", "arm46 = {", "arm46", "Did you mean arm64"),
    "word of one architecture": ('arm64 = { go = "arm64" }', "arm64 = {}", "[arch]", "arm64 lacks a value for go"),
    "unknown word": ("tool-{go}.tar.gz", "tool-{goo}.tar.gz", "[[source]]", "{goo} is not known here"),
    "word of elsewhere": ("/tool-{go}.tar.gz", "/{item}.tar.gz", "[[source]]", "{item} is not known here"),
    "insecure checksum": ('"sha256sum-file", url = "{url}.sha256"', '"none"', "checksum", "nothing would vouch"),
    "checksum without url": (', url = "{url}.sha256"', "", "checksum", "lacks the key url"),
    "pin": ('"sha256sum-file", url = "{url}.sha256"', '"pin", value = "sha256:12"', "checksum", "64 hexadecimal"),
    "no such source": ('from = "release"', 'from = "relaese"', "[[install]]", "Did you mean release"),
    "unused source": (SOURCE, 'id = "x"\nurl = "https://a/b"\n[[source]]\n' + SOURCE, "[[source]]", "nothing uses"),
    "two sources": ("[[install]]", f'[[source]]\n{SOURCE}\nurl = "https://a/b"\n[[install]]', "a/b", "two sources"),
    "etc": ('dst = "/usr/bin/"', 'dst = "/etc/"', 'dst = "/etc/"', "below /usr or /opt"),
    "sbin": ('dst = "/usr/bin/"', 'dst = "/usr/sbin/"', 'dst = "/usr/sbin/"', "link to bin"),
    "dots": ('dst = "/usr/bin/"', 'dst = "/usr/../etc/"', "/usr/../etc/", "below /usr or /opt"),
    "dots in an archive": ('src = "tool"', 'src = "../tool"', "[[install]]", "within the archive"),
    "mode": ('src = "tool"', 'src = "tool"\nmode = "4755"', "4755", "mode must be"),
    "condition": (SOURCE, SOURCE + '\nwhen = "version => 1"', "version => 1", "cannot be read"),
    "condition on nothing": (SOURCE, SOURCE + '\nwhen = "p.cni"', "p.cni", "asks for 'p.cni'"),
    "unit": (END, 'unit = "tool"\n', 'unit = "tool"', "not the name of a unit"),
    "variant": (END, END + 'variant = "smal"\n[variant.small]\n', "[[uphold]]", "Did you mean small"),
    "dropped unit": (
        END,
        END + '[variant.x]\ndrop_uphold = ["y.service"]\n',
        "[variant.x]",
        "y.service is not upheld",
    ),
    "latest of nothing": (END, END + '[param.x]\ndefault = "latest"\n', "default =", "no source to ask"),
    "edit": (END, END + '[[edit]]\npath = "/usr/x"\nreplace = ["a", "b"]\n', "replace", "list of pairs"),
    "stream": (END, END + '[[stream]]\nname = "tool"\npattern = "tool.raw"\n', "tool.raw", "one @v"),
    "stream of any form": ('form = "v"', 'form = "any"', "[[stream]]", "one form"),
    "minor stream": (END, END + '[[stream]]\nper = "minor"\nname = "t"\npattern = "t@v"\n', "[[stream]]", "{minor}"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_named_with_its_line(case, tmp_path):
    old, new, blamed, message = WRONG[case]
    text = RECIPE.replace(old, new, 1)
    if case == "stream of any form":
        text += '\n[[stream]]\nname = "tool"\npattern = "tool-@v.raw"\n'
    assert text != RECIPE
    folder = write_recipe(tmp_path, text)
    with pytest.raises(UsageError) as error:
        load_recipe(folder)
    said = f"{error.value.message} {error.value.hint}"
    assert message in said
    wanted = line_of(text, blamed)
    if case == "two sources":
        wanted -= 2  # the table that comes second
    if case not in ("example",):  # which is about the whole
        assert said.startswith(f"{folder}/recipe.toml:{wanted}"), said


def test_lines_are_counted_past_strings_and_arrays():
    text = '''# a comment = 1
a = """
b = 2
[c]
"""
list = [
  "x = 1", # [y]
  "]",
]
[t."quoted.key"]
d.e = 'f'
[[t.many]]
g = 1
[[t.many]]
g = 2
[t.many.inner]
h = { i = 1 }
'''
    index = LineIndex(text)
    assert index.find(("a",)) == 2
    assert index.find(("list",)) == 6
    assert index.find(("t", "quoted.key")) == 10
    assert index.find(("t", "quoted.key", "d", "e")) == 11
    assert index.find(("t", "many", 2, "g")) == 15
    assert index.find(("t", "many", 2, "inner", "h", "i")) == 17
    assert index.find(("b",)) == 1, "what is in a string is no key"


def test_recipes_of_the_user_win_and_are_found_by_alias(tmp_path):
    write_recipe(tmp_path)
    recipes = load_recipes([tmp_path])
    assert find_recipe("old_tool", recipes).name == "tool"
    assert find_recipe("tool", load_recipes([tmp_path / "tool"])).folder == tmp_path / "tool"
    with pytest.raises(UsageError) as error:
        find_recipe("wasmtim", recipes)
    assert error.value.hint and "wasmtime" in error.value.hint
    with pytest.raises(UsageError, match="no folder"):
        load_recipes([tmp_path / "none"])


def test_a_recipe_is_found_though_another_is_wrong(tmp_path):
    write_recipe(tmp_path)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken/recipe.toml").write_text("schema = 1\n")
    recipes = Recipes([tmp_path])
    assert find_recipe("tool", recipes).name == "tool"
    with pytest.raises(UsageError, match=r"broken/recipe\.toml"):
        find_recipe("broken", recipes)
    with pytest.raises(UsageError, match=r"broken/recipe\.toml"):
        find_recipe("old_tool", recipes)


def test_an_alias_belongs_to_one_recipe(tmp_path):
    write_recipe(tmp_path, RECIPE.replace("old_tool", "docker"))
    with pytest.raises(UsageError, match="belongs to the recipe docker"):
        load_recipes([tmp_path])


@pytest.mark.parametrize(
    ("text", "files", "problem"),
    [
        (RECIPE, {}, "nothing brings tool.service"),
        (RECIPE, {"usr/sbin/x": ""}, "/usr/sbin"),
        (RECIPE, {"etc/x": ""}, "below /usr or /opt"),
        (RECIPE, {"usr/lib/systemd/system/a.target.d/tool.service": ""}, "systemd ignores the drop-in"),
        (RECIPE.replace("reload = true", ""), {"usr/lib/systemd/system/tool.service": ""}, "reload = true"),
    ],
    ids=["no unit", "sbin", "etc", "drop-in", "reload"],
)
def test_the_lint_looks_at_the_files(text, files, problem, tmp_path):
    assert any(problem in said for said in lint_recipe(write_recipe(tmp_path, text, files)))


def test_shipped_recipes_are_fine():
    assert [problem for recipe in load_recipes().values() for problem in lint_recipe(recipe.folder)] == []


def test_the_digest_is_of_everything_in_the_folder(tmp_path):
    folder = write_recipe(tmp_path)
    before = load_recipe(folder).digest
    assert before == load_recipe(folder).digest
    (folder / "files/usr/link").symlink_to("x")
    linked = load_recipe(folder).digest
    unit = Path(folder / "files/usr/lib/systemd/system/tool.service")
    unit.chmod(0o755)
    assert len({before, linked, load_recipe(folder).digest}) == 3
