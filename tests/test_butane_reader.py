"""Butane is read by its specification: what is known, what scalars mean, local files, and errors with their line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from mirrors import Recorder
from provisioning import apply, decoded, valid

from baker.butane import to_butane
from baker.butane_reader import NotRead, from_butane
from baker.errors import EnvironmentFault, UsageError
from baker.ignition_tools import read_config

HEAD = "variant: flatcar\nversion: 1.0.0\n"
NEWER = HEAD.replace("1.0.0", "1.1.0")
WHOLE = """
ignition:
  config:
    merge:
      - inline: '{"ignition": {"version": "3.0.0"}}'
  timeouts: {http_response_headers: 20, http_total: 100}
  security:
    tls:
      certificate_authorities:
        - source: https://a.example/ca.pem
          verification: {hash: sha256-%s}
          http_headers: [{name: a, value: b}]
  proxy: {http_proxy: "http://p.example", https_proxy: "https://p.example", no_proxy: [a.example]}
storage:
  disks:
    - device: /dev/vdb
      wipe_table: yes
      partitions:
        - {number: 1, label: data, size_mib: 100, start_mib: 0, type_guid: 3B8F8425-20E0-4F3B-907F-1A25A76F98E9,
           wipe_partition_entry: true, should_exist: true, resize: false}
  raid:
    - {name: data, level: raid1, devices: [/dev/vdc, /dev/vdd], spares: 0, options: [--verbose]}
  filesystems:
    - {device: /dev/vdb1, format: ext4, path: /data, wipe_filesystem: false, label: data, mount_options: [ro]}
  luks:
    - {name: secret, device: /dev/vde, key_file: {inline: key}, wipe_volume: true}
  files:
    - path: /etc/one
      mode: 0o640
      user: {name: core}
      group: {id: 500}
      append: [{inline: more}]
  directories:
    - {path: /srv/x, mode: 0750}
  links:
    - {path: /a, target: /b, hard: off}
systemd:
  units:
    - name: a.service
      enabled: true
      mask: false
      contents: |
        [Service]
        ExecStart=/usr/bin/true
        [Install]
        WantedBy=multi-user.target
      dropins: [{name: x.conf, contents: "[Unit]"}]
passwd:
  users:
    - {name: core, ssh_authorized_keys: [ssh-rsa AAA], password_hash: $6$x, uid: 500, groups: [docker],
       home_dir: /home/core, no_create_home: true, no_user_group: true, no_log_init: true, primary_group: core,
       gecos: x, shell: /bin/sh, should_exist: true, system: false}
  groups:
    - {name: g, gid: 700, system: true}
kernel_arguments:
  should_exist: [a=b]
  should_not_exist: [c]
""" % ("0" * 64)


def test_all_of_the_specification_becomes_valid_ignition_and_back() -> None:
    config = from_butane(HEAD + WHOLE, "it")
    assert valid(json.dumps(config)) == ""
    assert config["ignition"]["proxy"] == {
        "httpProxy": "http://p.example", "httpsProxy": "https://p.example", "noProxy": ["a.example"],
    }  # fmt: skip
    (partition,) = config["storage"]["disks"][0]["partitions"]
    assert partition["sizeMiB"] == 100 and partition["typeGuid"].startswith("3B8F")
    assert config["storage"]["disks"][0]["wipeTable"] is True
    assert config["passwd"]["users"][0]["sshAuthorizedKeys"] == ["ssh-rsa AAA"]
    assert config["kernelArguments"] == {"shouldExist": ["a=b"], "shouldNotExist": ["c"]}
    assert from_butane(to_butane(config), "it") == config
    newer = from_butane(NEWER + "storage: {luks: [{name: a, device: /dev/b, discard: true, open_options: [x]}]}", "it")
    assert newer["ignition"]["version"] == "3.4.0"
    assert from_butane(to_butane(newer), "it") == newer


@pytest.mark.parametrize(
    ("written", "meant"),
    [("0644", 0o644), ("0o644", 0o644), ("420", 420), ("0x1a4", 420), ("0b110", 6), ("0", 0), ("1_000", 1000)],
)
def test_a_mode_may_be_written_in_any_way_that_yaml_has(written: str, meant: int) -> None:
    config = from_butane(f"{HEAD}storage: {{files: [{{path: /a, mode: {written}}}]}}", "it")
    assert config["storage"]["files"][0]["mode"] == meant


@pytest.mark.parametrize("written", ["yes", "1.50", "0644", "2026-11-26", "0x10", "'x'", "no", "1e3"])
def test_a_text_is_taken_as_it_is_written(written: str) -> None:
    config = from_butane(f"{HEAD}storage: {{files: [{{path: /a, contents: {{inline: {written}}}}}]}}", "it")
    assert decoded(config)["storage"]["files"][0]["contents"] == written.strip("'")


def test_what_is_null_says_nothing() -> None:
    config = from_butane(f"{HEAD}storage:\n  files:\n    - path: /a\n      mode:\n      contents: ~\n  links:\n", "it")
    assert config["storage"] == {"files": [{"path": "/a"}]}


WRONG = {
    "unknown key": ("storage:\n  file: []\n", 4, "storage has the key 'file', which is not known"),
    "twice": ("storage:\n  links: []\n  links: []\n", 5, "storage has the key 'links' twice"),
    "merge key": ("a: &a {}\nstorage:\n  <<: *a\n", 3, "the key 'a', which is not known"),
    "no list": ("storage:\n  links: {}\n", 4, "storage.links must be a list"),
    "no table": ("storage:\n  links:\n    - x\n", 5, "storage.links 1 must have keys and values"),
    "no number": ("storage: {files: [{path: /a, mode: rw}]}\n", 3, "storage.files 1.mode must be a int, not 'rw'"),
    "quoted number": ('storage: {files: [{path: /a, mode: "0644"}]}\n', 3, "must be a int, not '0644'"),
    "quoted truth": ('storage: {links: [{path: /a, hard: "true"}]}\n', 3, "must be a bool, not 'true'"),
    "no text": ("storage: {links: [{path: []}]}\n", 3, "storage.links 1.path must be a str"),
    "of 1.1.0": ("storage: {luks: [{discard: true}]}\n", 3, "'discard', which is of version 1.1.0"),
    "two sources": ("storage: {files: [{contents: {inline: a, source: b}}]}\n", 3, "both inline and source"),
    "no folder": ("storage: {files: [{contents: {local: a}}]}\n", 3, "no folder of such files"),
    "itself": ("storage: &a\n  files: [*a]\n", 4, "storage.files 1 has the key 'files'"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_said_with_its_line(case: str) -> None:
    text, line, message = WRONG[case]
    with pytest.raises(UsageError) as error:
        from_butane(HEAD + text, "own.bu")
    assert error.value.message.startswith(f"own.bu:{line}: ") and message in error.value.message
    assert not isinstance(error.value, NotRead)


def test_anchors_cannot_make_a_small_text_large() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    text = "storage:\n  links:\n    - &l {path: /a, target: /b}\n"
    for number in range(6):
        lines.append(f"a{number + 1}: &a{number + 1} [{', '.join([f'*a{number}'] * 10)}]")
    with pytest.raises(UsageError):
        from_butane(HEAD + "\n".join(lines) + "\n" + text, "it")
    many = "ignition: {proxy: {no_proxy: [" + ", ".join(["a"] * 100_001) + "]}}\n"
    with pytest.raises(UsageError, match="too many entries"):
        from_butane(HEAD + many, "it")


def test_local_files_are_found_beside_the_config_and_nowhere_else(tmp_path: Path) -> None:
    home = tmp_path / "configs"
    home.mkdir()
    (home / "motd").write_bytes(b"\0binary")
    (home / "a.service").write_text("[Service]\nExecStart=/bin/true\n")
    (home / "keys").write_text("ssh-rsa A\n\nssh-rsa B\n")
    (tmp_path / "secret").write_text("x")
    path = home / "own.bu"
    path.write_text(
        NEWER + "storage: {files: [{path: /etc/motd, contents: {local: motd}}]}\n"
        "systemd: {units: [{name: a.service, contents_local: a.service}]}\n"
        "passwd: {users: [{name: core, ssh_authorized_keys_local: [keys], ssh_authorized_keys: [ssh-rsa C]}]}\n"
    )
    config = dict(read_config(path, Recorder()).content)
    assert config["passwd"]["users"][0]["sshAuthorizedKeys"] == ["ssh-rsa C", "ssh-rsa A", "ssh-rsa B"]
    del config["passwd"]  # there is no useradd in the root
    config["ignition"] = {"version": "3.3.0"}
    root = apply(json.dumps(config), tmp_path / "root", tmp_path)
    assert (root / "etc/motd").read_bytes() == b"\0binary"
    assert "ExecStart=/bin/true" in (root / "etc/systemd/system/a.service").read_text()
    (home / "out").symlink_to("../secret")
    for name in ("../secret", "/etc/passwd", "out"):
        path.write_text(HEAD + f"storage: {{files: [{{path: /a, contents: {{local: {name}}}}}]}}\n")
        with pytest.raises(UsageError, match="which is not in"):
            read_config(path, Recorder())
    path.write_text(HEAD + "storage: {files: [{path: /a, contents: {local: missing}}]}\n")
    with pytest.raises(UsageError, match="No such file"):
        read_config(path, Recorder())


@pytest.mark.parametrize(
    "text",
    [
        HEAD + "storage: {trees: [{local: x}]}\n",
        HEAD + "storage: {filesystems: [{device: /dev/a, format: ext4, path: /x, with_mount_unit: true}]}\n",
        "variant: fcos\nversion: 1.5.0\n",
        HEAD.replace("1.0.0", "1.2.0-experimental"),
    ],
)
def test_what_only_butane_itself_reads_is_left_to_it(text: str, tmp_path: Path) -> None:
    path = tmp_path / "own.bu"
    path.write_text(text)
    with pytest.raises(EnvironmentFault, match="and the program butane, which reads that, is not installed"):
        read_config(path, Recorder())
