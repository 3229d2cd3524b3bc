"""`recipe new`: a recipe to begin with, which explains itself and passes the lint."""

from __future__ import annotations

from pathlib import Path

from baker.errors import EnvironmentFault, UsageError
from baker.recipe.entries import plain_name

_RECIPE = """\
# A recipe for flatcar-bake; docs/recipes.md is the reference.
# Check it with `recipe lint`, build it with `recipe build {name} 1.0.0 --recipes FOLDER-OF-THIS-FOLDER`.
schema = 1
name = "{name}"                     # the name of the folder, too
title = "What {name} is, in a few words"
homepage = "https://example.org"
license = "Apache-2.0"
reload = true                       # there are units, so systemd must load its configuration again

[version]
form = "bare"                       # 1.2.3; "v" for v1.2.3. Users may write either
match = '^\\d+\\.\\d+\\.\\d+$'
example = "1.0.0"

[version.source]                    # for `recipe versions {name}` and the version `latest`
type = "github-releases"
repo = "example/{name}"
strip_prefix = "v"

# Words for URLs: what upstream calls the architectures.
[arch]
x86-64 = {{ go = "amd64" }}
arm64 = {{ go = "arm64" }}

[[source]]
id = "release"
url = "https://github.com/example/{name}/releases/download/v{{bare}}/{name}-linux-{{go}}.tar.gz"
# strip = 1                         # drop the archive's top folder
checksum = {{ type = "github-digest", missing = "lock" }}
# checksum = {{ type = "sha256sum-file", url = "{{url}}.sha256" }}

[[install]]
from = "release"
src = "{name}"                      # a glob in the archive
dst = "/usr/bin/"
mode = "0755"

# Everything in files/ is part of the extension: units, tmpfiles.d, defaults. Nothing can be put into /etc: ship
# defaults in /usr/share/{name} and let tmpfiles.d copy them.

[[uphold]]                          # starts the service at boot, and when the extension is merged
target = "multi-user.target"
unit = "{name}.service"

[[stream]]                          # {name}.conf for systemd-sysupdate
name = "{name}"
pattern = "{name}-@v-%a.raw"

[promise]                           # what a test finds after a boot
active = ["{name}.service"]

[test]                              # what must be in the extension
elf = ["/usr/bin/{name}"]
"""

_UNIT = """\
[Unit]
Description={name}
After=network-online.target
Wants=network-online.target

[Service]
ExecStart=/usr/bin/{name}
Restart=on-failure

[Install]
WantedBy=multi-user.target
"""


def write_skeleton(folder: Path, name: str) -> list[Path]:
    """Write the recipe `name` in `folder`; returns its files. UsageError when it exists."""
    home = folder / plain_name(name, "NAME", "recipe new")
    if home.exists():
        raise UsageError(f"{home} exists.", "Choose another name, or another folder with --recipes.")
    files = {
        home / "recipe.toml": _RECIPE.format(name=name),
        home / "files/usr/lib/systemd/system" / f"{name}.service": _UNIT.format(name=name),
    }
    try:
        for path, text in files.items():
            path.parent.mkdir(parents=True)
            path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise EnvironmentFault(f"Cannot write {error.filename}: {error.strerror}.") from error
    return list(files)
