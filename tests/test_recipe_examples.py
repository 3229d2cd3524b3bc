"""Examples of recipes: checked when a recipe is loaded, filled with plain values only, and accepted by systemd."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from cli import flatcar_bake
from provisioning import apply
from recipe_builds import build_recipe
from recipe_checks import SYSTEM_PROGRAMS, unpack
from upstream import Upstream

from baker.errors import UsageError
from baker.model import Arch
from baker.provision import choose_example
from baker.recipe.examples import Example
from baker.recipe.load import load_recipe, load_recipes
from recipes import RECIPE, write_recipe

TABLE = '\n[butane.join]\ndescription = "joins"\n[butane.join.values]\ntoken = "a secret"\n'
BODY = """variant: flatcar
version: 1.0.0
storage:
  files:
    - path: /etc/tool.conf
      mode: 0600
      contents:
        inline: |
          token={token} ${HOME}
"""


def write(folder: Path, table: str = TABLE, body: str | None = BODY) -> Path:
    home = write_recipe(folder, RECIPE + table)
    if body is not None:
        (home / "butane").mkdir()
        (home / "butane/join.bu").write_text(body)
    return home


def test_an_example_is_filled_with_the_values_given(tmp_path: Path) -> None:
    (example,) = load_recipe(write(tmp_path)).examples
    assert (example.name, example.description, dict(example.values)) == ("join", "joins", {"token": "a secret"})
    root = apply(json.dumps(example.config({"token": "K10::a-b"})), tmp_path / "root", tmp_path)
    written = root / "etc/tool.conf"
    assert written.read_text() == "token=K10::a-b ${HOME}\n"
    assert written.stat().st_mode & 0o7777 == 0o600


@pytest.mark.parametrize("value", ["", "a b", 'a"', "a'", "a\n", "$HOME", "`id`", "a;b", "a\\", "é", "%h #"])
def test_a_value_that_could_mean_something_is_refused(value: str, tmp_path: Path) -> None:
    (example,) = load_recipe(write(tmp_path)).examples
    with pytest.raises(UsageError, match="plain word"):
        example.config({"token": value})


def test_a_missing_value_is_named_with_what_it_is(tmp_path: Path) -> None:
    (example,) = load_recipe(write(tmp_path)).examples
    with pytest.raises(UsageError, match="tool/join needs the value token: a secret"):
        example.config({})


WRONG = {
    "no file": (TABLE, None, "there is no butane/join.bu"),
    "no table": ("", BODY, "says nothing of this example"),
    "unknown word": (TABLE, BODY.replace("{token}", "{tokn} {token}"), "{tokn} is no value"),
    "unused value": (TABLE, BODY.replace("{token}", "x"), "does not use the value 'token'"),
    "unknown key": (TABLE, BODY.replace("mode:", "mod:"), "has the key 'mod'"),
    "wrong type": (TABLE, BODY.replace("0600", '"0600"'), "files 1.mode must be a int"),
    "no list": (TABLE, BODY.replace("    - path", "      path"), "storage.files must be a list"),
    "both": (TABLE, BODY + "        source: data:,\n", "both inline and source"),
    "other variant": (TABLE, BODY.replace("flatcar", "fcos"), "this is Butane fcos 1.0.0"),
    "other version": (TABLE, BODY.replace("1.0.0", "1.1.0"), "an example is of Butane's version 1.0.0"),
    "old version": (TABLE, BODY.replace("1.0.0", "0.9.0"), "this is Butane flatcar 0.9.0"),
    "no yaml": (TABLE, BODY + "\t- x", "this is no YAML"),
    "no config": (TABLE, "[]", "no Butane config"),
    "description": (TABLE.replace("description", "descr"), BODY, "lacks the key 'description'"),
    "key": (TABLE.replace("description", "x = 1\ndescription"), BODY, "unknown key 'x'"),
    "name": (TABLE.replace("join", "Join"), BODY, "small letters"),
    "value": (TABLE.replace("token =", '"to ken" ='), BODY, "'to ken'"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_with_an_example_is_said_when_the_recipe_is_loaded(case: str, tmp_path: Path) -> None:
    table, body, message = WRONG[case]
    folder = write(tmp_path, table, body)
    with pytest.raises(UsageError) as error:
        load_recipe(folder)
    assert message in error.value.message
    assert str(folder) in error.value.message


def test_a_builtin_that_flatcar_does_not_have_is_refused(tmp_path: Path) -> None:
    folder = write_recipe(tmp_path, RECIPE.replace("reload = true", 'reload = true\nreplaces = ["docker"]'))
    with pytest.raises(UsageError, match="no built-in 'docker'") as error:
        load_recipe(folder)
    assert error.value.hint == "Did you mean docker-flatcar?"


def test_an_example_is_found_by_its_name_unless_two_have_it() -> None:
    recipes = load_recipes()
    some = {name: recipes[name] for name in ("k3s", "rke2", "ollama")}
    assert choose_example("rke2/agent", some).path.parts[-3:] == ("rke2", "butane", "agent.bu")
    assert choose_example("serve", some).name == "serve"
    with pytest.raises(UsageError, match="may be k3s/agent and rke2/agent"):
        choose_example("agent", some)
    with pytest.raises(UsageError) as error:
        choose_example("rke2/sever", some)
    assert "rke2/server" in (error.value.hint or "")


def test_the_command_lists_examples_with_what_they_need() -> None:
    done = flatcar_bake("butane", "--list-examples", "k3s", "rke2@v1.33.1+rke2r1")
    assert done.returncode == 0, done.stderr
    assert "k3s/agent: a worker that joins a server\n    --set server=" in done.stdout
    assert "rke2/server" in done.stdout and "ollama" not in done.stdout
    rows = json.loads(flatcar_bake("butane", "--list-examples", "--json").stdout)
    assert {"recipe": "tailscale", "example": "join"}.items() <= next(
        row for row in rows if row["recipe"] == "tailscale"
    ).items()


SHIPPED = [(name, example) for name, recipe in load_recipes().items() for example in recipe.examples]
UPSTREAMS_UNITS = {"rke2": ("usr/local/lib/systemd/system/rke2-server.service",
                            "usr/local/lib/systemd/system/rke2-agent.service")}  # fmt: skip


@pytest.mark.parametrize(("name", "example"), SHIPPED, ids=[f"{name}-{each.name}" for name, each in SHIPPED])
def test_systemd_has_nothing_against_the_units_of_an_example(name: str, example: Example, tmp_path: Path) -> None:
    """The example applied by Ignition, over the recipe's own files: every unit it declares or changes is verified."""
    recipe = load_recipes()[name]
    root = tmp_path / "root"
    if recipe.files.is_dir():
        shutil.copytree(recipe.files, root)
    config = example.config(dict.fromkeys(example.values, "192.0.2.1:6443"))
    apply(json.dumps(config), root, tmp_path)
    system = root / "usr/lib/systemd/system"
    system.mkdir(parents=True, exist_ok=True)
    # Units of Flatcar, and those that come out of upstream's archive.
    for unit in ("sysinit", "basic", "multi-user", "network", "network-online", "network-pre", "shutdown"):
        (system / f"{unit}.target").write_text("[Unit]\n")
    for unit in ("system.slice", "-.slice", "tmp.mount"):
        (system / unit).write_text("[Unit]\n" + ("[Mount]\nWhat=tmpfs\nWhere=/tmp\n" if unit == "tmp.mount" else ""))
    for unit in ("containerd.service", "systemd-resolved.service", *UPSTREAMS_UNITS.get(name, ())):
        path = root / unit if "/" in unit else system / unit
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("[Service]\nExecStart=/usr/bin/sh\n")
    for program in (*SYSTEM_PROGRAMS, "kubeadm", "kubelet", "tailscale", "tailscaled", "nats-server", "wasmcloud"):
        place(root / "usr/bin" / program)
    for program in ("usr/local/bin/k3s", "usr/local/bin/ollama", "usr/sbin/modprobe"):
        place(root / program)
    (root / "bin").symlink_to("usr/bin")
    units = [unit["name"] for unit in config.get("systemd", {}).get("units", [])]
    links = [link for link in config["storage"].get("links", [])]
    for link in links:
        assert os.path.lexists(root / link["path"].lstrip("/"))
        assert (root / link["target"].lstrip("/")).is_file(), link["target"]
        units.append(os.path.basename(link["target"]))
    assert units
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", f"--root={root}", *units], capture_output=True, text=True,
        env={**os.environ, "SYSTEMD_LOG_LEVEL": "warning"},
    )  # fmt: skip
    assert done.stderr == "" and done.returncode == 0, done.stderr


def test_the_real_nats_server_accepts_the_config_of_its_example(upstream: Upstream, tmp_path: Path) -> None:
    (example,) = load_recipes()["wasmcloud"].examples
    made = build_recipe(upstream, tmp_path, "wasmcloud", Arch.X86_64)
    tree = unpack(made.path, tmp_path / "tree")
    values = {"hub": "nats-leaf://user:password@192.0.2.10:7422", "lattice": "default"}
    root = apply(json.dumps(example.config(values)), tmp_path / "root", tmp_path)
    config = root / "etc/nats/nats.conf"
    words = [tree / "usr/bin/nats-server", "-t", "-c", config]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    config.write_text(config.read_text().replace("leafnodes", "leafnode_s"))
    assert subprocess.run(words, capture_output=True).returncode != 0


def place(program: Path) -> None:
    """A file that systemd takes for a program."""
    program.parent.mkdir(parents=True, exist_ok=True)
    program.write_bytes(b"")
    program.chmod(0o755)
