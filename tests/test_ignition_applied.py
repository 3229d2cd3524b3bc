"""The real Ignition does what our base configs say, below a user's config, which wins.

Debian's program runs on a folder, in the stages of a first boot. In the initrd it would label files for SELinux; the
machine that runs tests may have no setfiles, so a program that does nothing takes its place, as in the stand-in guest.
"""

import json
import os
import subprocess
from pathlib import Path

from baker.ignition import ConfigFile, ConfigUnit, base_config, collisions, merge_base, parse_config

IGNITION = "/usr/lib/dracut/modules.d/30ignition/ignition"
LINKS = {"/etc/extensions/a.raw": "/oem/sysext/a.raw", "/etc/extensions/b.raw": "/oem/sysext/b.raw"}
FILES = {"/etc/sysupdate.d/noop.conf": ConfigFile(b"# 100 %\n"), "/etc/secret": ConfigFile(b"\0\1\xff", 0o600)}
UNITS = {"bake.service": ConfigUnit("[Service]\nExecStart=/bin/true\n[Install]\nWantedBy=multi-user.target\n", True)}


def apply(work: Path, base: bytes, user: bytes | None = None) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """Run a first boot's stages with a base and a user's config; returns the root folder and how the last ended."""
    root, configs, programs = work / "root", work / "configs", work / "bin"
    for folder in (root / "etc/selinux", configs / "base.d", programs):
        folder.mkdir(parents=True, exist_ok=True)
    (root / "etc/selinux/config").write_text("SELINUX=disabled\nSELINUXTYPE=targeted\n")
    if not (programs / "setfiles").exists():
        (programs / "setfiles").symlink_to("/bin/true")
    (configs / "base.d/base.ign").write_bytes(base)
    (configs / "user.ign").unlink(missing_ok=True)
    if user is not None:
        (configs / "user.ign").write_bytes(user)
    for name in ("cache.json", "state"):
        (work / name).unlink(missing_ok=True)
    for stage in ("fetch-offline", "fetch", "files"):
        done = subprocess.run(
            [IGNITION, f"--stage={stage}", "--platform=metal", f"--root={root}", "--log-to-stdout",
             f"--config-cache={work / 'cache.json'}", f"--neednet={work / 'neednet'}",
             f"--state-file={work / 'state'}"],
            env={"PATH": f"{programs}:{os.environ['PATH']}", "IGNITION_SYSTEM_CONFIG_DIR": str(configs)},
            capture_output=True, text=True,
        )  # fmt: skip
        if done.returncode != 0:
            break
    return root, done


def applied(work: Path, base: bytes, user: bytes | None = None) -> Path:
    root, done = apply(work, base, user)
    assert done.returncode == 0, done.stdout
    return root


def config(**storage: object) -> bytes:
    return json.dumps({"ignition": {"version": "3.3.0"}, "storage": storage}).encode()


def test_links_files_and_units_appear_over_what_was_there(tmp_path):
    (tmp_path / "root/etc/extensions").mkdir(parents=True)
    (tmp_path / "root/etc/extensions/a.raw").symlink_to("/somewhere/else")
    (tmp_path / "root/etc/secret").write_text("an older one")
    base = base_config(LINKS, FILES, UNITS)
    for _ in range(2):  # as after flatcar-reset
        root = applied(tmp_path, base)
        for path, target in LINKS.items():
            assert os.readlink(root / path[1:]) == target
        for path, file in FILES.items():
            assert (root / path[1:]).read_bytes() == file.content
            assert (root / path[1:]).stat().st_mode & 0o7777 == file.mode
        assert (root / "etc/systemd/system/bake.service").read_text() == UNITS["bake.service"].contents
        assert "enable bake.service" in (root / "etc/systemd/system-preset/20-ignition.preset").read_text()


def test_a_users_config_on_top_wins_and_the_rest_stays(tmp_path):
    user = config(
        links=[{"path": "/etc/extensions/b.raw", "target": "/dev/null"}],
        files=[{"path": "/etc/secret", "contents": {"source": "data:,mine"}},
               {"path": "/etc/extensions/a.raw", "contents": {"source": "data:,no%20link"}}],
    )  # fmt: skip
    root = applied(tmp_path, base_config(LINKS, FILES, UNITS), user)
    assert os.readlink(root / "etc/extensions/b.raw") == "/dev/null"
    assert (root / "etc/secret").read_text() == "mine"
    assert (root / "etc/extensions/a.raw").read_text() == "no link"
    assert (root / "etc/sysupdate.d/noop.conf").read_bytes() == FILES["/etc/sysupdate.d/noop.conf"].content


def test_merged_base_configs_do_what_both_say(tmp_path):
    vendors = config(files=[{"path": "/etc/vendor", "contents": {"source": "data:,its%20own"}}])
    root = applied(tmp_path, merge_base(vendors, base_config(LINKS)))
    assert (root / "etc/vendor").read_text() == "its own"
    assert os.readlink(root / "etc/extensions/a.raw") == LINKS["/etc/extensions/a.raw"]


def test_ignition_fails_on_just_those_baked_paths_that_we_warn_of(tmp_path):
    """Each case in a root of its own, where a file and a link are baked."""
    baked = {"/opt/a.raw": None, "/etc/extensions/a.raw": "/opt/a.raw"}
    source = {"source": "data:,x"}
    cases = [
        {"files": [{"path": "/opt/a.raw", "contents": source}]},
        {"files": [{"path": "/opt/a.raw", "contents": source, "overwrite": True}]},
        {"files": [{"path": "/opt/a.raw", "mode": 0o600}]},
        {"files": [{"path": "/opt/a.raw", "append": [source]}]},
        {"files": [{"path": "/etc/extensions/a.raw", "contents": source}]},
        {"files": [{"path": "/etc/extensions/a.raw", "mode": 0o600}]},
        {"links": [{"path": "/etc/extensions/a.raw", "target": "/opt/a.raw"}]},
        {"links": [{"path": "/etc/extensions/a.raw", "target": "/opt/b.raw"}]},
        {"links": [{"path": "/etc/extensions/a.raw", "target": "/opt/b.raw", "overwrite": True}]},
        {"links": [{"path": "/etc/extensions/a.raw", "target": "/opt/a.raw", "hard": True}]},
        {"links": [{"path": "/opt/a.raw", "target": "/opt/a.raw"}]},
        {"directories": [{"path": "/opt/a.raw"}]},
        {"directories": [{"path": "/opt"}]},
    ]
    outcomes = []
    for number, case in enumerate(cases):
        root = tmp_path / str(number) / "root"
        for path, target in baked.items():
            (root / path[1:]).parent.mkdir(parents=True)
            if target is None:
                (root / path[1:]).write_text("baked")
            else:
                (root / path[1:]).symlink_to(target)
        user = config(**case)
        _, done = apply(tmp_path / str(number), base_config({}), user)
        outcomes.append((case, done.returncode != 0, bool(collisions(parse_config(user, "x"), baked))))
    assert any(failed for _, failed, _ in outcomes) and not all(failed for _, failed, _ in outcomes)
    assert [case for case, failed, warned in outcomes if failed != warned] == []
