"""Releases of a tiny recipe for tests: what upstream has, and the commands that publish it."""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cli import flatcar_bake
from programs import GO

from baker.model import Arch
from recipes import RECIPE, archive, program, write_recipe

SOURCE = """
[version.source]
type = "text"
url = "https://up.example/versions"
pattern = '(v\\d+\\.\\d+\\.\\d+)'
[[stream]]
name = "tool"
pattern = "tool-@v-%a.raw"
[[stream]]
per = "minor"
name = "tool-v{minor}"
pattern = "tool-v{minor}.@v-%a.raw"
target = "tool"
"""


class Workshop:
    """A folder with the recipe `tool` and its upstream, where releases are built."""

    def __init__(self, folder: Path, versions: tuple[str, ...] = ("v1.2.3", "v1.3.0")) -> None:
        self.folder = folder
        write_recipe(folder / "recipes", RECIPE + SOURCE)
        self.upstream = folder / "up"
        self.upstream.mkdir()
        for version in versions:
            self.publish(version)

    def publish(self, version: str) -> None:
        """Let upstream have a version."""
        folder = self.upstream / version
        folder.mkdir()
        for arch, word in GO.items():
            data = archive({"tool": program(arch), "version": version})
            (folder / f"tool-{word}.tar.gz").write_bytes(data)
            (folder / f"tool-{word}.tar.gz.sha256").write_text(
                f"{hashlib.sha256(data).hexdigest()}  tool-{word}.tar.gz\n"
            )
        # A version that is not listed is still there for those who name it.
        listed = sorted(path.name for path in self.upstream.iterdir() if path.is_dir())
        (self.upstream / "versions").write_text("".join(f"{name}\n" for name in listed))

    def environment(self, **more: str) -> dict[str, str]:
        return {
            "FLATCAR_BAKE_CACHE_DIR": str(self.folder / "cache"), "FLATCAR_BAKE_PROGRESS": "plain",
            "FLATCAR_BAKE_MIRROR_URL": f"https://up.example/={self.upstream}/",
            "FLATCAR_BAKE_RECIPES": str(self.folder / "recipes"), "FLATCAR_BAKE_COMPRESSION": "lz4", **more,
        }  # fmt: skip

    def run(self, command: str, *words: str | Path, env: Mapping[str, str] = {}) -> subprocess.CompletedProcess[str]:
        """Run `flatcar-bake release COMMAND …` there."""
        return flatcar_bake("release", command, *words, env=self.environment(**env), cwd=self.folder)

    def build(self, lines: str, *words: str | Path, out: str = "site") -> dict[str, Any]:
        """Build a versions file into the folder `out`; returns what the command reports."""
        (self.folder / "versions.txt").write_text(lines)
        done = self.run("build", "versions.txt", "-o", out, "--json", *words)
        assert done.returncode == 0, done.stderr
        report: dict[str, Any] = json.loads(done.stdout)
        return report

    def files(self, out: str = "site") -> list[str]:
        """What is in a release's folder, hidden or not."""
        root = self.folder / out
        return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())


def images(*versions: str, name: str = "tool") -> list[str]:
    """The names of images for both architectures."""
    return [f"{name}-{version}-{arch}.raw" for version in versions for arch in Arch]
