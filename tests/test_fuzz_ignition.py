"""Whatever a config holds, it is read and merged, or refused in words."""

import contextlib
import json

from hypothesis import given
from hypothesis import strategies as st
from test_fuzz_parsers import fuzzing, mutated

from baker.additions import Additions
from baker.errors import UsageError
from baker.ignition import ConfigFile, base_config, check_release, collisions, merge_base, parse_config, wipes

KEYS = (
    "ignition", "version", "config", "merge", "source", "storage", "files", "links", "directories", "filesystems",
    "mount", "device", "wipeFilesystem", "disks", "partitions", "number", "path", "filesystem", "target", "contents",
    "overwrite", "systemd", "units", "dropins", "name", "passwd", "users", "groups", "sshAuthorizedKeys",
)  # fmt: skip
WORDS = st.sampled_from(("/etc/a", "/etc/b", "core", "root", "3.0.0", "2.1.0", "", "\ud800", "\0"))
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=5),
    max_leaves=25,
)
NODES = st.lists(st.fixed_dictionaries({"path": WORDS}, optional={"contents": VALUES, "target": VALUES}), max_size=2)
STORAGE = st.fixed_dictionaries({}, optional={"files": NODES, "links": NODES, "filesystems": VALUES, "disks": VALUES})
SPECS = st.sampled_from(("2.1.0", "3.0.0", "3.3.0"))
CONFIGS = st.fixed_dictionaries(
    {"ignition": st.fixed_dictionaries({"version": SPECS}, optional={"config": VALUES})},
    optional={"storage": STORAGE | VALUES, "systemd": VALUES, "passwd": VALUES},
)  # fmt: skip
OURS = base_config({"/etc/a": "/x"}, {"/etc/b": ConfigFile(b"b")})


@fuzzing(150)
@given(CONFIGS, CONFIGS)
def test_configs_of_any_content(theirs: object, more: object) -> None:
    both = [json.dumps(content).encode() for content in (theirs, more)]
    for data in both:
        with contextlib.suppress(UsageError):
            config = parse_config(data, "x")
            check_release(config, "4593.2.5")
            assert set(collisions(config, {"/etc/a": None, "/etc/b": "/x"})) <= {"/etc/a", "/etc/b"}
            assert set(wipes(config)) <= {"ROOT", "OEM"}
    for ours in (OURS, both[1]):
        with contextlib.suppress(UsageError):
            merged = merge_base(both[0], ours)
            assert parse_config(merged, "merged").paths == {
                path for data in (both[0], ours) for path in parse_config(data, "x").paths
            }  # fmt: skip
            assert merge_base(merged, ours) == merged


@fuzzing(150)
@given(mutated([OURS]))
def test_bytes_that_are_no_config(data: bytes) -> None:
    with contextlib.suppress(UsageError):
        parse_config(data, "x")
    with contextlib.suppress(UsageError):
        merge_base(data, OURS)


@fuzzing(150)
@given(st.text() | st.from_regex(r"[a:.]{0,3}:(root|oem|USR-A|x):[a/.:]{0,6}(:[0-9]{0,5})?", fullmatch=True))
def test_words_for_files(word: str) -> None:
    with contextlib.suppress(UsageError):
        (made,) = Additions.parse(files=[word]).files
        assert made.path.startswith("/") and ".." not in made.path.split("/")
