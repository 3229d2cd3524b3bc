"""Ignition configs are read strictly, told apart by release, and merged so that nothing gets lost."""

import json
import subprocess

import pytest

from baker.errors import UsageError
from baker.ignition import (
    BASE_SPEC,
    ConfigFile,
    ConfigUnit,
    base_config,
    check_release,
    collisions,
    merge_base,
    newest_spec,
    parse_config,
    wipes,
)


def config(spec: str = "3.3.0", **sections: object) -> bytes:
    return json.dumps({"ignition": {"version": spec}, **sections}).encode()


def files(*paths: str, **fields: object) -> dict[str, object]:
    return {"files": [{"path": path, **fields} for path in paths]}


def accepted(data: bytes) -> bool:
    """What ignition-validate says."""
    return subprocess.run(["ignition-validate", "-"], input=data, capture_output=True).returncode == 0


@pytest.mark.parametrize("spec", ["2.1.0", "2.3.0", "3.0.0", "3.3.0", "3.4.0", "3.5.0"])
def test_a_config_is_kept_byte_for_byte(spec):
    data = b"\n " + config(spec, storage=files("/etc/a", "/etc/b")) + b"\n\n"
    read = parse_config(data, "node.ign")
    assert (read.spec, read.data, read.paths) == (spec, data, {"/etc/a", "/etc/b"})


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (b"", "no valid JSON"),
        (b"variant: flatcar\nversion: 1.0.0\n", "no valid JSON"),
        (b"\xff\xfe", "not UTF-8"),
        (b"[]", "no JSON object"),
        (b"{}", "says no ignition.version"),
        (b'{"ignition": "3.3.0"}', "says no ignition.version"),
        (b'{"ignition": {"version": "3.3.0"}, "storage": {"files": []}, "storage": {}}', "'storage' is there twice"),
        (b'{"ignition": {"version": "3.3.0"}, "storage": {"x": NaN}}', "NaN is no JSON value"),
        (b'{"ignitionVersion": 1}', "spec 1"),
        (config("3.9.0"), "spec '3.9.0', which is not supported"),
        (config("3.6.0-experimental"), "not supported"),
        (config(sytemd={}), "the section 'sytemd', which Ignition would ignore"),
        (config(storage=[]), r"\$.storage must be an object"),
        (config(storage={"files": {}}), r"\$.storage.files must be a list"),
        (config(storage={"files": ["/etc/a"]}), r"files\[0\] must be an object"),
        (config(storage=files("etc/a")), r"\$.storage.files\[0\].path must be an absolute path, not 'etc/a'"),
        (config(storage={"links": [{"target": "/x"}]}), "must be an absolute path, not None"),
        (config(storage=files("/a") | {"links": [{"path": "/a", "target": "/b"}]}), "declares /a twice"),
        (b'{"a":' * 100_000, "no valid JSON"),
        (config(storage={"x": json.loads("[" * 500 + "]" * 500)}), "more than 32 deep"),
        (b" " * ((16 << 20) + 1), "larger than 16 MiB"),
    ],
)
def test_what_is_no_config_is_refused_by_name(data, complaint):
    with pytest.raises(UsageError, match=complaint) as caught:
        parse_config(data, "node.ign")
    assert "node.ign" in caught.value.message


def test_butane_under_a_wrong_name_is_recognised():
    with pytest.raises(UsageError) as caught:
        parse_config(b"variant: flatcar\n", "node.ign")
    assert "*.bu" in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("version", "newest"),
    [
        ("3139.2.3", "2.3.0"), ("3185.0.0", "3.3.0"), ("3510.3.8", "3.3.0"), ("3535.0.0", "3.4.0"),
        ("4081.3.10", "3.4.0"), ("4152.0.0", "3.5.0"), ("4593.2.5", "3.5.0"), ("", ""), ("main", ""),
    ],
)  # fmt: skip
def test_each_release_reads_specs_up_to_its_ignitions(version, newest):
    assert newest_spec(version) == newest
    for spec in ("2.3.0", "3.0.0", "3.3.0", "3.4.0", "3.5.0"):
        too_new = bool(newest) and spec > newest
        if too_new:
            with pytest.raises(UsageError, match=f"of Ignition's spec {spec}.*reads specs up to {newest}"):
                check_release(parse_config(config(spec), "x"), version)
        else:
            check_release(parse_config(config(spec), "x"), version)


BAKED = {"/etc/extensions/a.raw": "/opt/a.raw", "/opt/a.raw": None}


@pytest.mark.parametrize(
    ("spec", "storage", "found"),
    [
        ("3.3.0", files("/opt/a.raw", contents={"source": "data:,x"}), ["/opt/a.raw"]),
        ("3.3.0", files("/opt/a.raw", contents={"source": "data:,x"}, overwrite=True), []),
        ("3.3.0", files("/opt/a.raw", mode=0o600), []),
        ("3.3.0", files("/opt/other.raw", contents={"source": "data:,x"}), []),
        ("3.3.0", {"links": [{"path": "/etc/extensions/a.raw", "target": "/opt/a.raw"}]}, []),
        ("3.3.0", {"links": [{"path": "/etc/extensions/a.raw", "target": "/opt/b.raw"}]}, ["/etc/extensions/a.raw"]),
        ("3.3.0", {"directories": [{"path": "/opt/a.raw"}]}, ["/opt/a.raw"]),
        ("2.3.0", {"files": [{"filesystem": "root", "path": "/opt/a.raw"}]}, []),
        ("2.3.0", {"files": [{"filesystem": "root", "path": "/opt/a.raw", "overwrite": False,
                              "contents": {"source": "data:,x"}}]}, ["/opt/a.raw"]),
    ],
)  # fmt: skip
def test_what_a_config_says_of_baked_paths_is_judged_as_ignition_does(spec, storage, found):
    assert collisions(parse_config(config(spec, storage=storage), "x"), BAKED) == found


def test_a_config_that_wipes_what_is_baked_is_found_out():
    new = config(storage={"filesystems": [{"device": "/dev/disk/by-label/ROOT", "wipeFilesystem": True},
                                          {"device": "/dev/disk/by-partlabel/USR-B", "wipeFilesystem": True},
                                          {"device": "/dev/disk/by-label/OEM"}]})  # fmt: skip
    old = config("2.3.0", storage={"filesystems": [{"mount": {"device": "/dev/disk/by-label/OEM",
                                                              "wipeFilesystem": True}}]})  # fmt: skip
    assert wipes(parse_config(new, "x")) == ["ROOT"] and wipes(parse_config(old, "x")) == ["OEM"]


def test_a_base_config_is_canonical_and_valid():
    links = {"/etc/extensions/b.raw": "/oem/sysext/b.raw", "/etc/extensions/a.raw": "/oem/sysext/a.raw"}
    more = {"/etc/x": ConfigFile(b"\0\xff", 0o600), "/etc/plain": ConfigFile(b"100 % of it # here\n")}
    units = {"x.service": ConfigUnit("[Service]\nExecStart=/bin/true\n", True), "y.timer": ConfigUnit(enabled=False)}
    made = base_config(links, more, units)
    assert made == base_config(dict(reversed(links.items())), dict(reversed(more.items())), units)
    assert accepted(made) and b"\n" not in made[:-1]
    content = json.loads(made)
    assert content["ignition"] == {"version": BASE_SPEC}
    assert [link["path"] for link in content["storage"]["links"]] == sorted(links)
    assert all(node["overwrite"] for kind in ("files", "links") for node in content["storage"][kind])
    assert content["storage"]["files"][0]["contents"]["source"] == "data:,100%20%25%20of%20it%20%23%20here%0A"
    assert base_config({}) == b'{"ignition":{"version":"3.0.0"}}\n'
    with pytest.raises(UsageError, match="absolute"):
        base_config({"etc/x": "/y"})


THEIRS = config(
    "3.2.0",
    storage={
        "files": [{"path": "/etc/own", "contents": {"source": "data:,own"}}, {"path": "/etc/both", "mode": 384}],
        "links": [{"path": "/etc/link", "target": "/old"}],
    },
    systemd={
        "units": [{"name": "agent.service", "enabled": True, "dropins": [{"name": "a.conf", "contents": "[A]"}]}]
    },
    passwd={"users": [{"name": "core", "sshAuthorizedKeys": ["key one"], "groups": ["docker"]}]},
)


def test_merging_keeps_what_was_there_and_adds_ours():
    ours = config(
        "3.0.0",
        storage={"links": [{"path": "/etc/link", "target": "/new"}, {"path": "/etc/both", "target": "/x"}]},
        systemd={"units": [{"name": "agent.service", "dropins": [{"name": "b.conf", "contents": "[B]"}]}]},
        passwd={"users": [{"name": "core", "sshAuthorizedKeys": ["key two", "key one"], "groups": ["wheel"]}]},
    )
    merged = merge_base(THEIRS, ours)
    assert accepted(merged)
    content = json.loads(merged)
    assert content["ignition"]["version"] == "3.2.0"
    # A path is one thing: the link takes the place of the file.
    assert [node["path"] for node in content["storage"]["files"]] == ["/etc/own"]
    assert {node["path"]: node["target"] for node in content["storage"]["links"]} == {
        "/etc/link": "/new", "/etc/both": "/x",
    }  # fmt: skip
    (unit,) = content["systemd"]["units"]
    assert unit["enabled"] and [item["name"] for item in unit["dropins"]] == ["a.conf", "b.conf"]
    (user,) = content["passwd"]["users"]
    assert user["sshAuthorizedKeys"] == ["key one", "key two"] and user["groups"] == ["docker", "wheel"]
    assert merge_base(merged, ours) == merged
    assert merge_base(None, ours) == ours and merge_base(b"\n", ours) == ours


def test_a_base_config_of_spec_2_stays_one():
    """What oem-azure and others of lts-3510 bring is of spec 2.1.0."""
    old = config("2.1.0", systemd={"units": [{"name": "waagent.service", "enabled": True}]},
                 storage={"files": [{"filesystem": "root", "path": "/etc/a", "mode": 420}]})  # fmt: skip
    made = json.loads(merge_base(old, base_config({"/etc/l": "/x"}, {"/etc/a": ConfigFile(b"new")})))
    assert made["ignition"]["version"] == "2.3.0"
    assert made["systemd"]["units"] == [{"name": "waagent.service", "enabled": True}]
    assert made["storage"]["links"] == [
        {"filesystem": "root", "path": "/etc/l", "target": "/x", "overwrite": True, "hard": False}
    ]
    (file,) = made["storage"]["files"]
    assert file["filesystem"] == "root" and file["contents"] == {"source": "data:,new"} and file["overwrite"]
    with pytest.raises(UsageError, match=r"spec 2\.1\.0, which cannot say all"):
        merge_base(old, config("3.3.0", kernelArguments={"shouldExist": ["quiet"]}))


def test_text_of_any_kind_survives_merging():
    theirs = b'{"ignition": {"version": "3.0.0"}, "storage": {"files": [{"path": "/\\ud800 \xc3\xa9"}]}}'
    (file,) = json.loads(merge_base(theirs, base_config({"/l": "/\u00fc"})))["storage"]["files"]
    assert file["path"] == "/\ud800 \u00e9"


def test_a_base_config_that_cannot_be_read_is_not_replaced():
    with pytest.raises(UsageError, match=r"the image's base/base.ign is no valid JSON"):
        merge_base(b"{", base_config({}), "the image's base/base.ign")
    with pytest.raises(UsageError, match=r"spec 2.3.0, and the image's .* of spec 3.2.0"):
        merge_base(THEIRS, config("2.3.0"))
