"""What is baked to make updates run is accepted by systemd itself."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from baker.model import Injection
from baker.sysupdate import noop_config, parse_config, update_injections


def write(root: Path, injections: list[Injection]) -> None:
    """Put the entries below a folder, as a bake puts them into ROOT."""
    for item in injections:
        target = root / item.path.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        if item.symlink is not None:
            target.symlink_to(item.symlink)
        else:
            assert item.content is not None
            target.write_bytes(item.content)
            target.chmod(item.mode)


# The parts of systemd's own units that the drop-in meets; Debian's systemd comes without systemd-sysupdate.
SERVICE = "[Service]\nType=simple\nExecStart=/usr/lib/systemd/systemd-sysupdate update\n"
TIMER = "[Timer]\nOnBootSec=15min\nOnUnitActiveSec=2h\n[Install]\nWantedBy=timers.target\n"


def make_root(root: Path) -> Path:
    write(root, update_injections(["wasmtime", "c++", "a@b"]))
    write(
        root,
        [
            Injection("/usr/lib/systemd/system/systemd-sysupdate.service", content=SERVICE.encode()),
            Injection("/usr/lib/systemd/system/systemd-sysupdate.timer", content=TIMER.encode()),
            Injection("/usr/lib/systemd/systemd-sysupdate", content=b"#!/bin/sh\n", mode=0o755),
        ],
    )
    for unit in ("sysinit.target", "basic.target", "timers.target", "shutdown.target", "time-sync.target",
                 "time-set.target", "system.slice", "-.slice"):  # fmt: skip
        (root / "usr/lib/systemd/system" / unit).write_text("[Unit]\n")
    return root


def verify(root: Path) -> str:
    """What systemd has to say about the service with its drop-ins."""
    result = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", f"--root={root}", "systemd-sysupdate.service"],
        capture_output=True, text=True, env={**os.environ, "SYSTEMD_LOG_LEVEL": "warning"},
    )  # fmt: skip
    return result.stderr + (f"status {result.returncode}" if result.returncode else "")


def test_systemd_accepts_the_drop_in(tmp_path: Path) -> None:
    make_root(tmp_path)
    assert verify(tmp_path) == ""
    drop_in = next(tmp_path.glob("etc/systemd/system/systemd-sysupdate.service.d/*.conf"))
    drop_in.write_text(drop_in.read_text() + "NoSuchSetting=1\n")
    assert "NoSuchSetting" in verify(tmp_path)


def test_systemd_finds_the_timer_enabled(tmp_path: Path) -> None:
    make_root(tmp_path)
    enabled = subprocess.run(
        ["systemctl", f"--root={tmp_path}", "is-enabled", "systemd-sysupdate.timer"], capture_output=True, text=True
    )
    assert enabled.stdout.strip() == "enabled"


def test_every_component_is_updated_however_the_others_fare(tmp_path: Path) -> None:
    make_root(tmp_path)
    shown = subprocess.run(
        ["systemd-analyze", "cat-config", f"--root={tmp_path}", "systemd/system/systemd-sysupdate.service"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    for name in ("wasmtime", "c++", "a@b"):
        assert f"ExecStartPre=-/usr/lib/systemd/systemd-sysupdate --component={name} update\n" in shown.stdout
    assert "TimeoutStartSec=infinity\n" in shown.stdout


def test_the_noop_transfer_is_a_valid_one_that_finds_nothing() -> None:
    config = parse_config(noop_config().encode())
    assert config.source_type == config.target_type == "regular-file"
    assert config.source_path == config.target_path == "/etc/sysupdate.d"
    assert config.source_patterns == config.target_patterns
    assert all("@v" in pattern for pattern in config.source_patterns)
