"""Tiny recipes and the upstream they download from: a folder that stands for https://up.example/."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Mapping
from pathlib import Path

from programs import mode_of, stand_in

from baker.model import Arch

RECIPE = """\
schema = 1
name = "tool"
title = "A tool"
aliases = ["old_tool"]
reload = true

[version]
form = "v"
match = '^v\\d+\\.\\d+\\.\\d+$'
example = "v1.2.3"

[arch]
x86-64 = { go = "amd64" }
arm64 = { go = "arm64" }

[[source]]
id = "release"
url = "https://up.example/{v}/tool-{go}.tar.gz"
checksum = { type = "sha256sum-file", url = "{url}.sha256" }

[[install]]
from = "release"
src = "tool"
dst = "/usr/bin/"

[[uphold]]
target = "multi-user.target"
unit = "tool.service"
"""
UNIT = "[Unit]\nDescription=tool\n[Service]\nExecStart=/usr/bin/tool\n"
UNIT_PATH = "usr/lib/systemd/system/tool.service"


def write_recipe(folder: Path, text: str = RECIPE, files: Mapping[str, str] = {UNIT_PATH: UNIT}) -> Path:
    """A recipe in `folder`/tool; returns its folder. `files` is the overlay."""
    home = folder / "tool"
    home.mkdir(parents=True)
    (home / "recipe.toml").write_text(text)
    for name, content in files.items():
        path = home / "files" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return home


def archive(members: Mapping[str, str | bytes]) -> bytes:
    """A tar.gz; programs and scripts in it are executable."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, content in members.items():
            data = content.encode() if isinstance(content, str) else content
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(data), mode_of(data)
            tar.addfile(entry, io.BytesIO(data))
    return buffer.getvalue()


def program(arch: Arch = Arch.X86_64) -> bytes:
    """A program of that architecture."""
    return stand_in("tool v1.2.3", arch)
