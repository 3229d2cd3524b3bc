"""What a recipe says, as frozen values. `load.py` makes and checks them; docs/recipes.md is their reference.

Texts named *template* hold words in braces that `words.py` expands. `where` is `FILE:LINE`, for messages.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from baker.errors import UsageError
from baker.model import Arch
from baker.recipe.conditions import ALWAYS, Condition
from baker.recipe.examples import Example

EXECUTABLE, PLAIN = 0o755, 0o644
_VERSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+~-]*")


@dataclass(frozen=True)
class VersionSource:
    """Where the list of versions comes from. Which fields count depends on `type`; see `load.VERSION_SOURCES`."""

    type: str
    repo: str = ""
    """`owner/name` on GitHub; on GitLab the project's path or number."""
    url: str = ""
    """Template: the page, index, JSON or text to read; for gitlab-tags the server."""
    pattern: str = ""
    """Regular expression that finds versions; its first group, where it has one, is the version."""
    strip_prefix: str = ""
    """What a tag has before the version."""
    reject: str = ""
    """Regular expression: tags in which it is found are left out."""
    key: str = ""
    """Path of the version in JSON, names joined by dots, `*` for every element."""
    product: str = ""
    """HashiCorp's name of the product."""
    recipe: str = ""
    """For `follow`: the recipe whose versions count."""
    all_arches: bool = False
    """Only versions that are listed for every architecture."""
    per: str = ""
    """`minor`: latest is the newest of each minor, up to `count` of them."""
    count: int = 0
    supported: str = ""
    """Latest is the newest for each version that this recipe's upstream supports; its own name for its own list."""
    where: str = field(default="", compare=False)


@dataclass(frozen=True)
class Versions:
    """The form of a recipe's versions and where they come from."""

    form: str
    """`v` (v1.2.3), `bare` (1.2.3) or `any` (as upstream says)."""
    match: str
    """Regular expression that a whole version must match."""
    example: str = ""
    min: str = ""
    prerelease: bool = False
    source: VersionSource | None = None


@dataclass(frozen=True)
class Parameter:
    """A value that the user may choose beside the version."""

    name: str
    description: str = ""
    default: str = ""
    """A literal, or `latest` of `source`; "" leaves it unset."""
    required: bool = False
    choices: tuple[str, ...] = ()
    env: str = ""
    """Environment variable that sets it too."""
    aliases: tuple[str, ...] = ()
    normalise: str = ""
    """`v` or `bare`: the form it is brought into, like a version."""
    positional: int = 0
    """Its place among the arguments of the old script; 0 for none."""
    source: VersionSource | None = None
    when: Condition = ALWAYS
    where: str = field(default="", compare=False)


@dataclass(frozen=True)
class Checksum:
    """What vouches for a download."""

    type: str = "none"
    """`sha256sum-file`, `bare-file`, `bsd-file`, `github-digest`, `pin` or `none`."""
    url: str = ""
    """Template of the checksum file; may use {url}."""
    name: str = ""
    """Template of the file's name in the checksum file; "" for the last part of its URL."""
    values: Mapping[str, str] = field(default_factory=dict)
    """For `pin`: `sha256:HEX` by architecture, or under "" for all."""
    missing: str = ""
    """`lock`: where upstream says nothing, recipes.lock decides (trust on first use)."""
    unverified: str = ""
    """Why nothing can vouch for it; shown to the user."""
    where: str = field(default="", compare=False)


@dataclass(frozen=True)
class Source:
    """A file to download."""

    id: str
    url: str
    """Template."""
    kind: str
    """`file`, `tar`, `zip` or `deb`."""
    strip: int = 0
    """Leading folders to drop from the names in an archive."""
    checksum: Checksum = Checksum(missing="lock")
    foreach: tuple[str, ...] = ()
    """One download for each; {item} stands for it."""
    mirrors: tuple[str, ...] = ()
    """Templates of further addresses of the same file, tried in order."""
    when: Condition = ALWAYS
    where: str = field(default="", compare=False)


@dataclass(frozen=True)
class Install:
    """What is taken out of a source, and where it goes."""

    source: str
    """A source's id, or `build`."""
    dst: str
    """Template: a path, or with a slash at the end a folder."""
    src: str = ""
    """Template: a glob within the archive. "" is the file itself, or everything of an archive."""
    find: str = ""
    """Template: the name of a file that is searched for; exactly one must be found."""
    mode: int | None = None
    """None keeps whether it is executable."""
    exclude: tuple[str, ...] = ()
    optional: bool = False
    variants: tuple[str, ...] = ()
    when: Condition = ALWAYS
    where: str = field(default="", compare=False)


@dataclass(frozen=True)
class Symlink:
    """A symbolic link; `target` is written as it is."""

    path: str
    target: str
    variants: tuple[str, ...] = ()
    when: Condition = ALWAYS
    where: str = field(default="", compare=False)


@dataclass(frozen=True)
class Generate:
    """A file whose content is a template."""

    path: str
    content: str
    mode: int = PLAIN
    variants: tuple[str, ...] = ()
    when: Condition = ALWAYS
    where: str = field(default="", compare=False)


@dataclass(frozen=True)
class Edit:
    """Texts to replace in a file that upstream wrote. Each must be found `count` times, or the build stops."""

    path: str
    replace: tuple[tuple[str, str], ...]
    count: int = 1
    variants: tuple[str, ...] = ()
    when: Condition = ALWAYS
    where: str = field(default="", compare=False)


@dataclass(frozen=True)
class Remove:
    """Paths to remove, as globs. Each must match something unless `optional`."""

    paths: tuple[str, ...]
    optional: bool = False
    variants: tuple[str, ...] = ()
    when: Condition = ALWAYS
    where: str = field(default="", compare=False)


@dataclass(frozen=True)
class Uphold:
    """A unit that a target keeps running: how a sysext starts a service, since presets come too early for it."""

    target: str
    unit: str
    variants: tuple[str, ...] = ()
    when: Condition = ALWAYS
    where: str = field(default="", compare=False)

    @property
    def path(self) -> str:
        """The drop-in's path."""
        return f"/usr/lib/systemd/system/{self.target}.d/10-{self.unit.replace('.', '-')}.conf"


@dataclass(frozen=True)
class Variant:
    """A named subset of the extension."""

    name: str
    description: str = ""
    drop: tuple[str, ...] = ()
    """Globs of paths to leave out; each must match something."""
    drop_uphold: tuple[str, ...] = ()
    """Units that are not upheld."""
    env: Mapping[str, str] = field(default_factory=dict)
    """Environment variables and the values that choose this variant."""
    where: str = field(default="", compare=False)


@dataclass(frozen=True)
class ContainerBuild:
    """A build from source in a container. All but the names are templates."""

    images: Mapping[str, str]
    """Image by architecture, or under "" for all."""
    steps: tuple[str, ...] = ()
    """Lines of one shell script, run with `set -e`."""
    script: str = ""
    """Name of a script in the recipe's folder, instead of steps."""
    fetch: tuple[str, ...] = ()
    """Lines that run before the steps, with a network: for dependencies that a lock file in the sources names."""
    platform: str = ""
    manager: str = ""
    """`apk` or `apt`."""
    packages: tuple[str, ...] = ()
    network: bool = True
    """Whether packages and `fetch` get a network; steps never see one."""
    mount: Mapping[str, str] = field(default_factory=dict)
    """Source id → folder in the container, read-only."""
    env: Mapping[str, str] = field(default_factory=dict)
    out: str = "/out"
    timeout: int = 3600
    """Seconds."""
    where: str = field(default="", compare=False)


@dataclass(frozen=True)
class Rootfs:
    """Programs taken out of a distribution with all they need, by `flix` or `flatwrap`."""

    tool: str
    image: str
    paths: tuple[str, ...]
    packages: tuple[str, ...] = ()
    manager: str = ""
    options: Mapping[str, str] = field(default_factory=dict)
    where: str = field(default="", compare=False)


@dataclass(frozen=True)
class Stream:
    """A sysupdate config: which file names are versions of the extension."""

    name: str
    pattern: str
    target: str = ""
    """The extension whose folder and link it updates; "" for the recipe's name."""
    per: str = ""
    """`minor`: one for each minor version."""
    where: str = field(default="", compare=False)


@dataclass(frozen=True)
class Run:
    """A command to try in a test, and a text its output must hold."""

    argv: tuple[str, ...]
    stdout: str = ""


@dataclass(frozen=True)
class RecipeTests:
    """What must be true of the built extension."""

    elf: tuple[str, ...] = ()
    """Programs of the right machine."""
    static: tuple[str, ...] = ()
    paths: tuple[str, ...] = ()
    run: tuple[Run, ...] = ()


@dataclass(frozen=True)
class Promise:
    """The state of units after a boot with the extension."""

    active: tuple[str, ...] = ()
    present: tuple[str, ...] = ()
    """There, but not started by itself (`inactive-but-present`)."""


@dataclass(frozen=True)
class Recipe:
    """One recipe: a folder with a recipe.toml and maybe `files/`, which is laid over the extension's tree."""

    name: str
    title: str
    folder: Path
    version: Versions
    arches: tuple[Arch, ...]
    words: Mapping[Arch, Mapping[str, str]]
    aliases: tuple[str, ...] = ()
    homepage: str = ""
    license: str = ""
    docs: str = ""
    reload: bool = False
    requires: tuple[str, ...] = ()
    host_needs: tuple[str, ...] = ()
    parameters: tuple[Parameter, ...] = ()
    sources: tuple[Source, ...] = ()
    installs: tuple[Install, ...] = ()
    symlinks: tuple[Symlink, ...] = ()
    generates: tuple[Generate, ...] = ()
    edits: tuple[Edit, ...] = ()
    removes: tuple[Remove, ...] = ()
    upholds: tuple[Uphold, ...] = ()
    variants: tuple[Variant, ...] = ()
    build: ContainerBuild | None = None
    rootfs: Rootfs | None = None
    streams: tuple[Stream, ...] = ()
    tests: RecipeTests = RecipeTests()
    promise: Promise = Promise()
    replaces: tuple[str, ...] = ()
    """Flatcar's built-in sysexts that it takes the place of."""
    examples: tuple[Example, ...] = ()

    @property
    def path(self) -> Path:
        return self.folder / "recipe.toml"

    @property
    def files(self) -> Path:
        """The overlay; it need not exist."""
        return self.folder / "files"

    def canonical(self, version: str) -> str:
        """A version in the form of this recipe; UsageError when it cannot be one."""
        found = version.strip()
        if self.version.form == "v" and found[:1].isdigit():
            found = f"v{found}"
        elif self.version.form == "bare" and re.match(r"v\d", found):
            found = found[1:]
        # Whatever `match` allows, a version becomes part of a file name.
        if not re.fullmatch(self.version.match, found) or not _VERSION.fullmatch(found):
            like = f" It looks like {self.version.example}." if self.version.example else ""
            raise UsageError(
                f"{version!r} is no version of {self.name}.",
                f"{like} `flatcar-bake recipe versions {self.name}` lists them.".strip(),
            )
        return found

    @cached_property
    def digest(self) -> str:
        """sha256 of all that the folder holds: names, kinds, executable bits and contents."""
        whole = hashlib.sha256()
        for path in sorted(self.folder.rglob("*")):
            kind = "l" if path.is_symlink() else "d" if path.is_dir() else "x" if os.access(path, os.X_OK) else "f"
            content = os.readlink(path).encode() if kind == "l" else path.read_bytes() if path.is_file() else b""
            whole.update(f"{kind} {path.relative_to(self.folder)} {len(content)}\n".encode())
            whole.update(content)
        return whole.hexdigest()
