"""The rules of injection that both backends share: which paths, which conflicts, how much space."""

import hashlib
from dataclasses import replace
from pathlib import Path

import pytest

from baker.errors import EnvironmentFault, ImageError, UsageError
from baker.inject import (
    check_paths,
    check_space,
    check_written,
    expected_nodes,
    parents,
    plan_work,
    space_needed,
    usable_bytes,
)
from baker.model import Injection, Node

IMAGE = {"/": "directory", "/etc": "directory", "/etc/file": "file", "/etc/link": "symlink", "/dev": "other"}


def plan(*injections: Injection):
    return plan_work("ROOT", injections, lambda path: IMAGE.get(path, ""))


def test_parents_are_listed_from_the_outside():
    assert parents("/a/b/c") == ["/a", "/a/b"]
    assert parents("/a") == []


@pytest.mark.parametrize(
    "path",
    ["", "relative", "/", "/a/", "//a", "/a/../b", "/./a", "/a\nb", "/a\0b", '/a"b', "/-rf", "/<2>", "/\udcff",
     "/\ud800", "/" + "x" * 256, "/é" + "é" * 127, "/a" * 2100],
)  # fmt: skip
def test_paths_that_are_not_plain_are_refused(path):
    with pytest.raises(UsageError, match="plain absolute path"):
        check_paths([Injection(path, content=b"")])


@pytest.mark.parametrize("path", ["/a b", "/etc/x\\x2d.mount", "/ü/ß", "/{}", "/a'b", "/#a", "/" + "x" * 255])
def test_unusual_but_plain_paths_are_accepted(path):
    check_paths([Injection(path, content=b"")])


@pytest.mark.parametrize(
    "bad",
    [
        Injection("/a", content=b"", symlink="b"),
        Injection("/a", mode=0o10000),
        Injection("/a", content=b"", mode=0o4755),
        Injection("/a", content=b"", mode=0o2755),
        Injection("/a", uid=-1),
        Injection("/a", gid=2**32 - 1),
        Injection("/a", source=Path("/nowhere")),
        Injection("/a", symlink=""),
        Injection("/a", symlink="a\nb"),
        Injection("/a", symlink="x" * 4096),
    ],
)
def test_impossible_entries_are_refused(bad):
    with pytest.raises(UsageError):
        check_paths([bad])


def test_a_set_cannot_contradict_itself():
    with pytest.raises(UsageError, match="twice"):
        check_paths([Injection("/a", content=b""), Injection("/a", symlink="b")])
    with pytest.raises(UsageError, match="below /a"):
        check_paths([Injection("/a/b", content=b""), Injection("/a", content=b"")])
    check_paths([Injection("/a/b", content=b""), Injection("/a", mode=0o700)])


def test_missing_parents_are_made_once_and_first():
    work = plan(
        Injection("/opt/x/b", content=b""), Injection("/opt/x", mode=0o700), Injection("/opt/a", symlink="x/b")
    )
    assert [(entry.path, entry.mode) for entry in work.directories] == [("/opt", 0o755), ("/opt/x", 0o700)]
    assert [entry.path for entry in work.entries] == ["/opt/a", "/opt/x/b"]
    assert work.removals == ()


def test_an_existing_directory_is_kept_as_it_is():
    assert plan(Injection("/etc", mode=0o700)).created == ()


def test_existing_entries_need_replace():
    for path in ("/etc/file", "/etc/link"):
        with pytest.raises(UsageError, match="exists already in ROOT") as error:
            plan(Injection(path, content=b""))
        assert "--force" in (error.value.hint or "")
        assert plan(Injection(path, content=b"", replace=True)).removals == (path,)


def test_directories_and_special_files_are_never_replaced():
    for path in ("/etc", "/dev"):
        with pytest.raises(UsageError, match="never replaced"):
            plan(Injection(path, content=b"", replace=True))
    with pytest.raises(UsageError, match="not a directory"):
        plan(Injection("/etc/file", replace=True))


@pytest.mark.parametrize(
    ("parent", "what"), [("/etc/link", "a symlink"), ("/etc/file", "a file"), ("/dev", "special")]
)
def test_a_parent_must_be_a_real_directory(parent, what):
    with pytest.raises(ImageError, match=f"{parent}, the parent of .* {what}"):
        plan(Injection(f"{parent}/x/y", content=b""))


def test_only_entries_below_real_directories_are_looked_at():
    asked = []
    plan_work("ROOT", [Injection("/new/a/b/c", content=b"")], lambda path: asked.append(path) or "")
    assert asked == ["/new"]


def test_space_counts_blocks_and_keeps_a_reserve():
    work = plan(Injection("/new/a", content=b"x" * 4097), Injection("/new/l", symlink="a"))
    assert space_needed(work) == 2 * 4096 + 3 * 4096
    check_space("ROOT", work, 5 * 4096)
    with pytest.raises(EnvironmentFault, match="20480 bytes are needed, 20479 are free") as error:
        check_space("ROOT", work, 5 * 4096 - 1)
    assert error.value.hint
    assert usable_bytes(100 << 20, 100 << 20) == 98 << 20
    assert usable_bytes(100 << 20, 100 << 30) == 84 << 20
    assert usable_bytes(0, 100 << 20) == 0


def test_what_was_written_is_compared_in_every_field(tmp_path):
    source = tmp_path / "s"
    source.write_bytes(b"abc")
    expected = expected_nodes(
        plan(Injection("/n/f", mode=0o600, uid=5, source=source), Injection("/n/l", symlink="f"))
    )
    digest = hashlib.sha256(b"abc").hexdigest()
    assert expected["/n/f"] == Node("/n/f", "file", 0o600, 5, 0, 3, digest)
    assert expected["/n/l"] == Node("/n/l", "symlink", 0o777, 0, 0, 1, symlink="f")
    check_written("ROOT", expected, expected)
    with pytest.raises(ImageError, match="is not there"):
        check_written("ROOT", expected, {})
    for change in ({"mode": 0o644}, {"uid": 0}, {"sha256": "0"}, {"kind": "other"}):
        wrong = expected | {"/n/f": replace(expected["/n/f"], **change)}
        with pytest.raises(ImageError, match="/n/f in ROOT is not what was written"):
            check_written("ROOT", expected, wrong)
