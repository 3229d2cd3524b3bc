"""Configs for machines that fetch their extensions: Butane and Ignition say the same, and real Ignition obeys."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from cli import flatcar_bake
from hypothesis import given, settings
from hypothesis import strategies as st
from keys import TestKey
from mirrors import Recorder
from provisioning import IgnitionFailed, apply, butane, decoded, valid
from servers import MirrorServer
from sysexts import make_sysext

from baker.butane import to_butane
from baker.butane_reader import from_butane
from baker.errors import BakeError, UsageError
from baker.model import Arch
from baker.provision import add, provisioning
from baker.recipe.load import load_recipes
from baker.remote import RemoteRequest, find_remote
from baker.services import Services, Settings
from baker.sysupdate import parse_config

NAMES = {
    "tools": "tools-1.2.0-x86-64.raw",
    "k3s": "k3s-v1.33.1+k3s1-x86-64.raw",
    "docker": "docker-28.0.4-x86-64.raw",
    "kubernetes": "kubernetes-v1.33.2-x86-64.raw",
}
CONFIG = """[Transfer]
Verify=false
[Source]
Type=url-file
Path=https://sysexts.example/{name}/
MatchPattern={pattern}
[Target]
InstancesMax=3
Type=regular-file
Path=/opt/extensions/{name}
CurrentSymlink=/etc/extensions/{name}.raw
"""

SIGNED = CONFIG.format(name="tools", pattern="tools-@v-%a.raw").replace("Verify=false", "Verify=true")


@pytest.fixture(scope="module")
def bakery(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MirrorServer]:
    """A bakery with real sysexts over real HTTP; kubernetes has an update config for one minor only."""
    folder = tmp_path_factory.mktemp("bakery")
    for name, file in NAMES.items():
        make_sysext(folder, name, file_name=file)
    digests = [f"{hashlib.sha256((folder / file).read_bytes()).hexdigest()}  {file}" for file in NAMES.values()]
    (folder / "SHA256SUMS").write_text("\n".join(digests) + "\n")
    (folder / "tools.conf").write_text(CONFIG.format(name="tools", pattern="tools-@v-%a.raw"))
    for minor in ("", "-v1.33"):
        pattern = f"kubernetes{minor}{'.' if minor else '-'}@v-%a.raw"
        (folder / f"kubernetes{minor}.conf").write_text(CONFIG.format(name="kubernetes", pattern=pattern))
    with MirrorServer(folder) as server:
        yield server


@pytest.fixture
def services(bakery: MirrorServer, tmp_path: Path) -> Iterator[Services]:
    settings = Settings(bakery=bakery.url, cache_dir=tmp_path / "cache")
    with Services(settings, Recorder()) as opened:
        yield opened


def run(bakery: MirrorServer, tmp_path: Path, *words: str) -> str:
    """What `flatcar-bake butane` prints."""
    done = flatcar_bake("butane", "--bakery", bakery.url, "--cache-dir", tmp_path / "cache", *words)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_both_formats_say_the_same_and_ignition_validate_agrees(bakery: MirrorServer, tmp_path: Path) -> None:
    words = ["tools@1.2.0", "k3s@v1.33.1+k3s1", "docker@28.0.4", "--update", "--server", "https://sysexts.example/x",
             "--example", "agent", "--set", "server=https://192.0.2.1:6443", "--set", "token=K10ab::c"]  # fmt: skip
    yaml, text = (run(bakery, tmp_path, *words, "--format", kind) for kind in ("butane", "ignition"))
    assert valid(text) == ""
    assert valid(json.dumps(butane(yaml))) == ""
    assert decoded(butane(yaml)) == decoded(json.loads(text))
    assert decoded(from_butane(yaml, "it")) == decoded(json.loads(text))


def test_real_ignition_fetches_and_links_as_a_bake_does(bakery: MirrorServer, tmp_path: Path) -> None:
    root = tmp_path / "root"
    config = run(bakery, tmp_path, "tools@1.2.0", "docker@28.0.4", "--format", "ignition")
    # Where docker's own link hides, in the running system, what the /usr image brings.
    (root / "etc/extensions").mkdir(parents=True)
    (root / "etc/extensions/docker-flatcar.raw").symlink_to("/usr/share/flatcar/sysext/docker-flatcar.raw")
    apply(config, root, tmp_path)
    for name in ("tools", "docker"):
        image = root / "opt/extensions" / name / NAMES[name]
        assert image.read_bytes() == (bakery.folder / NAMES[name]).read_bytes()
        assert image.stat().st_mode & 0o7777 == 0o644
    assert {path.name: os.readlink(path) for path in (root / "etc/extensions").iterdir()} == {
        "tools.raw": f"/opt/extensions/tools/{NAMES['tools']}",
        "docker.raw": f"/opt/extensions/docker/{NAMES['docker']}",
        "docker-flatcar.raw": "/dev/null",
        "containerd-flatcar.raw": "/dev/null",
    }
    assert len(bakery.requests(f"/{NAMES['docker']}")) == 1


def test_updates_are_configured_and_enabled(bakery: MirrorServer, tmp_path: Path) -> None:
    words = ("tools@1.2.0", "kubernetes@v1.33.2", "--updates", "--format", "ignition", "--quiet")
    root = apply(run(bakery, tmp_path, *words), tmp_path / "root", tmp_path)
    config = parse_config((root / "etc/sysupdate.tools.d/tools.conf").read_bytes())
    assert config.current_symlink == "/etc/extensions/tools.raw"
    # Of the two that the bakery has, the one that stays within the minor version.
    assert os.listdir(root / "etc/sysupdate.kubernetes.d") == ["kubernetes-v1.33.conf"]
    assert (root / "etc/sysupdate.d/noop.conf").is_file()
    (drop_in,) = (root / "etc/systemd/system/systemd-sysupdate.service.d").iterdir()
    for name in ("tools", "kubernetes"):
        assert f"systemd-sysupdate --component={name} update\n" in drop_in.read_text()
    presets = (root / "etc/systemd/system-preset/20-ignition.preset").read_text()
    assert "enable systemd-sysupdate.timer" in presets.splitlines()


def test_it_can_be_applied_to_a_baked_root_and_again(bakery: MirrorServer, tmp_path: Path) -> None:
    config = run(bakery, tmp_path, "tools@1.2.0", "--format", "ignition", "--update")
    root = tmp_path / "root"
    (root / "opt/extensions/tools").mkdir(parents=True)
    (root / "opt/extensions/tools/tools-1.2.0-x86-64.raw").write_text("an older build")
    (root / "etc/extensions").mkdir(parents=True)
    (root / "etc/extensions/tools.raw").symlink_to("/opt/extensions/tools/tools-1.1.0-x86-64.raw")
    for _ in range(2):
        apply(config, root, tmp_path)
        image = bakery.folder / NAMES["tools"]
        assert (root / "opt/extensions/tools" / image.name).read_bytes() == image.read_bytes()
        assert os.readlink(root / "etc/extensions/tools.raw") == f"/opt/extensions/tools/{image.name}"


def test_ignition_refuses_what_was_exchanged_on_the_server(bakery: MirrorServer, tmp_path: Path) -> None:
    config = run(bakery, tmp_path, "tools@1.2.0", "--format", "ignition")
    bakery.on(f"/{NAMES['tools']}", lambda handler: handler.answer(200, b"something else"))
    try:
        with pytest.raises(IgnitionFailed, match="hash verification failed"):
            apply(config, tmp_path / "root", tmp_path)
    finally:
        bakery.faults.clear()
    assert not (tmp_path / "root/opt/extensions/tools" / NAMES["tools"]).exists()


def test_a_file_of_this_machine_gets_the_address_where_it_will_be(services: Services, tmp_path: Path) -> None:
    files = {"usr/bin/containerd": "#!/bin/sh\n", "usr/bin/dockerd": "#!/bin/sh\n"}
    image = make_sysext(tmp_path, "engine", files=files, file_name="engine-1.0-x86-64.raw")
    request = RemoteRequest(server="https://sysexts.example/x+y", updates=True)
    (found,) = find_remote([f"engine:{image}"], request, services)
    assert found.url == "https://sysexts.example/x+y/engine-1.0-x86-64.raw"
    assert found.hash == f"sha256-{hashlib.sha256(image.read_bytes()).hexdigest()}"
    # Nobody knows this extension, but its content tells.
    assert found.builtins == ("containerd-flatcar", "docker-flatcar")
    config = parse_config(found.config.encode())
    assert config.source_path == "https://sysexts.example/x+y/"
    assert config.target_patterns == ("engine-@v-%a.raw",)


def test_an_address_may_bring_a_digest_of_either_kind(services: Services) -> None:
    url = "https://sysexts.example/a-1.raw"
    for kind, length in (("sha256", 64), ("sha512", 128)):
        (found,) = find_remote([f"a:{url}#{kind}={'Ab' * (length // 2)}"], RemoteRequest(), services)
        assert (found.url, found.hash) == (url, f"{kind}-{'ab' * (length // 2)}")
        assert valid(json.dumps(provisioning([found], False))) == ""
    (bare,) = find_remote([f"a:{url}"], RemoteRequest(allow=("unverified",)), services)
    assert bare.hash == "" and "verification" not in json.dumps(provisioning([bare], False))


def test_a_bakery_with_a_folder_for_each_extension(tmp_path: Path) -> None:
    folder = tmp_path / "bakery"
    home = folder / "k3s"
    home.mkdir(parents=True)
    image = make_sysext(home, "k3s", file_name=NAMES["k3s"])
    (home / "SHA256SUMS").write_text(f"{hashlib.sha256(image.read_bytes()).hexdigest()}  {image.name}\n")
    with Services(Settings(bakery=str(folder), cache_dir=tmp_path / "cache"), Recorder()) as services:
        request = RemoteRequest(server="https://sysexts.example", updates=True)
        (found,) = find_remote(["k3s@v1.33.1+k3s1"], request, services)
    assert found.url == "https://sysexts.example/k3s/k3s-v1.33.1%2Bk3s1-x86-64.raw"
    assert found.config_name == "k3s-v1.33.conf"
    config = parse_config(found.config.encode())
    assert config.source_path == "https://sysexts.example/k3s/"
    assert config.target_patterns == ("k3s-v1.33.@v-%a.raw",)


def test_signed_updates_need_a_key_on_the_machine(services: Services, bakery: MirrorServer) -> None:
    bakery.on("/tools.conf", lambda handler: handler.answer(200, SIGNED.encode()))
    try:
        (found,) = find_remote(["tools@1.2.0"], RemoteRequest(updates=True), services)
    finally:
        bakery.faults.clear()
    assert found.config == SIGNED
    (warning,) = services.console.warnings  # type: ignore[attr-defined]
    assert "--update-key FILE" in warning


def test_machines_get_the_key_by_which_they_trust_updates(bakery: MirrorServer, tmp_path: Path) -> None:
    public, root = tmp_path / "key.asc", tmp_path / "root"
    with TestKey() as key:
        public.write_bytes(key.export())
        words = ("docker@28.0.4", "--update", "--update-key", str(public), "--format", "ignition", "--server")
        apply(_without_images(run(bakery, tmp_path, *words, "http://sysexts.example")), root, tmp_path)
        shown = key.gpg("--show-keys", "--with-colons", root / "etc/systemd/import-pubring.gpg").decode()
        assert key.fingerprint in shown
    # What is signed may come by http.
    config = parse_config((root / "etc/sysupdate.docker.d/docker.conf").read_bytes())
    assert config.verify and config.source_path == "http://sysexts.example/"


def _without_images(text: str) -> str:
    """A config without what would be downloaded."""
    config = json.loads(text)
    files = config["storage"]["files"]
    config["storage"]["files"] = [each for each in files if each["contents"]["source"].startswith("data:")]
    return json.dumps(config)


REFUSED = {
    "nothing": ([], RemoteRequest(), "No sysext"),
    "twice": (["tools@1.2.0", "tools:tools-1.2.0-x86-64.raw"], RemoteRequest(), "given twice"),
    "no such version": (["tools@9"], RemoteRequest(), "no tools 9"),
    "no such file": (["tools:tools-9-x86-64.raw"], RemoteRequest(), "does not list"),
    "other architecture": (["tools@1.2.0"], RemoteRequest(Arch.ARM64), "for arm64"),
    "no digest": (["a:https://sysexts.example/a.raw"], RemoteRequest(), "must contain"),
    "local file": (["a:./missing.raw"], RemoteRequest(server="https://a.example"), "no file"),
    "local server": (["tools@1.2.0"], RemoteRequest(server="/srv/sysexts"), "cannot fetch from"),
    "updates by http": (["docker@28.0.4"], RemoteRequest(server="http://a.example", updates=True), "https"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_machines_could_not_fetch_is_refused(case: str, services: Services) -> None:
    words, request, message = REFUSED[case]
    with pytest.raises(BakeError, match=message):
        find_remote(words, request, services)


def test_a_local_sysext_that_would_not_merge_is_refused(services: Services, tmp_path: Path) -> None:
    image = make_sysext(tmp_path, "tools", release=None)
    with pytest.raises(BakeError, match="extension-release"):
        find_remote([f"tools:{image}"], RemoteRequest(server="https://a.example"), services)


def test_a_config_of_ones_own_is_merged_and_must_not_contradict(bakery: MirrorServer, tmp_path: Path) -> None:
    own = tmp_path / "own.bu"
    own.write_text(
        "variant: flatcar\nversion: 1.0.0\nstorage:\n  files:\n    - path: /etc/hostname\n      mode: 0644\n"
        "      contents:\n        inline: node1\n"
        "systemd:\n  units:\n    - name: systemd-sysupdate.timer\n      dropins:\n"
        '        - name: 10-daily.conf\n          contents: "[Timer]\\nOnUnitActiveSec=1d\\n"\n'
    )
    words = ("tools@1.2.0", "--update", "--format", "ignition", "--merge")
    text = run(bakery, tmp_path, *words, str(own))
    root = apply(text, tmp_path / "root", tmp_path)
    assert (root / "etc/hostname").read_text() == "node1"
    assert (root / "etc/systemd/system/systemd-sysupdate.timer.d/10-daily.conf").is_file()
    assert (root / "etc/extensions/tools.raw").is_symlink()
    ignition = tmp_path / "own.ign"
    ignition.write_text(text)
    done = flatcar_bake("butane", "--bakery", bakery.url, "--cache-dir", tmp_path / "cache", *words, ignition)
    assert done.returncode == 2 and "own.ign declares /etc/extensions/tools.raw" in done.stderr


def test_what_flatcar_has_itself_is_turned_off_and_on(bakery: MirrorServer, tmp_path: Path) -> None:
    words = ("--disable-builtin", "docker", "--official-sysext", "zfs,flatcar-podman", "--format", "ignition")
    root = apply(run(bakery, tmp_path, *words), tmp_path / "root", tmp_path)
    assert os.readlink(root / "etc/extensions/docker-flatcar.raw") == "/dev/null"
    assert (root / "etc/flatcar/enabled-sysext.conf").read_text() == "zfs\npodman\n"


def test_what_butane_cannot_say_is_refused() -> None:
    config = add(provisioning([], False), {"ignition": {"version": "3.5.0"}}, "own.ign")
    with pytest.raises(UsageError, match="cannot say what is of Ignition's spec"):
        to_butane(config)


def test_the_result_goes_to_a_file_that_is_not_overwritten(bakery: MirrorServer, tmp_path: Path) -> None:
    words = ("butane", "tools@1.2.0", "--bakery", bakery.url, "--cache-dir", tmp_path / "cache", "-o", "tools.bu")
    done = flatcar_bake(*words, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, "tools.bu\n")
    assert from_butane((tmp_path / "tools.bu").read_text(), "tools.bu")["storage"]["links"]
    assert flatcar_bake(*words, cwd=tmp_path).returncode == 2
    assert flatcar_bake(*words, "--force", cwd=tmp_path).returncode == 0


def test_a_secret_can_come_from_a_file_and_is_for_its_owner_alone(bakery: MirrorServer, tmp_path: Path) -> None:
    secret = tmp_path / "token"
    secret.write_text("K10abc\n")
    output = tmp_path / "server.ign"
    words = ("k3s@v1.33.1+k3s1", "--example", "server", "--format", "ignition", "-o", str(output), "--set")
    run(bakery, tmp_path, *words, f"token=@{secret}")
    assert output.stat().st_mode & 0o777 == 0o600
    root = apply(output.read_text(), tmp_path / "root", tmp_path)
    config = root / "etc/rancher/k3s/config.yaml"
    assert config.read_text() == 'token: "K10abc"\n' and config.stat().st_mode & 0o777 == 0o600
    done = flatcar_bake("butane", *words, "token=@/missing", "--force")
    assert done.returncode == 2 and "Cannot read a value from /missing: No such file" in done.stderr


ODD = (
    "", "no newline", "a: b # c\n", "  indented\n\n\ttab\n", "trailing \nspace\n", "%a 100%\n", "é ☃\n", "'\"\\\n",
    "- x\n: y\n", "yes", "0644", "#comment\n", "\n\nlate", "a\r\nb", "{token}", "---\n", "&a *b !c |\n",
)  # fmt: skip


@pytest.mark.parametrize("content", ODD)
def test_any_text_survives_both_formats(content: str) -> None:
    unit = {"name": "a.service", "contents": content}
    text = to_butane({"ignition": {"version": "3.3.0"}, "systemd": {"units": [unit]}})
    assert from_butane(text, "it")["systemd"]["units"] == [unit]
    file = {"path": "/a", "contents": {"inline": content}}
    document = {"variant": "flatcar", "version": "1.0.0", "storage": {"files": [file], "links": []}}
    read = from_butane(json.dumps(document), "it")  # JSON is YAML
    assert decoded(from_butane(to_butane(read), "it")) == decoded(butane(to_butane(read))) == decoded(read)
    assert decoded(read)["storage"]["files"][0]["contents"] == content


@settings(max_examples=80, derandomize=True, deadline=None, database=None)
@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_whatever_a_unit_holds_is_the_same_afterwards(content: str) -> None:
    config = {"ignition": {"version": "3.3.0"}, "systemd": {"units": [{"name": "a.service", "contents": content}]}}
    assert from_butane(to_butane(config), "it")["systemd"] == config["systemd"]


KEYS = st.sampled_from(
    ["storage", "files", "path", "mode", "contents", "inline", "source", "systemd", "units", "name"]
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=9),
    lambda each: st.lists(each, max_size=3) | st.dictionaries(KEYS, each, max_size=4),
    max_leaves=8,
)


@settings(max_examples=60, derandomize=True, deadline=None, database=None)
@given(VALUES)
def test_whatever_is_given_as_butane_is_read_or_refused(value: object) -> None:
    text = value if isinstance(value, str) else json.dumps(value)
    if isinstance(value, dict):
        text = json.dumps({"variant": "flatcar", "version": "1.0.0", **value})
    try:
        config = from_butane(text, "it")
    except UsageError:
        return
    assert from_butane(to_butane(config), "it") == config


def test_every_example_of_a_recipe_is_valid() -> None:
    names = set()
    for recipe in load_recipes().values():
        for example in recipe.examples:
            config = example.config(dict.fromkeys(example.values, "value-1"))
            assert valid(json.dumps(config)) == "", example.path
            assert decoded(from_butane(to_butane(config), "it")) == decoded(config)
            names.add(f"{recipe.name}/{example.name}")
    assert names >= {
        "k3s/server", "k3s/agent", "rke2/server", "rke2/agent", "tailscale/join", "ollama/serve",
        "wasmcloud/lattice", "kubernetes/controller", "kubernetes/worker",
    }  # fmt: skip
