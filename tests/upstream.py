"""A local mirror of the places that recipes download from, served over real HTTP.

What one recipe needs for one version and architecture is made when a test first asks for it, by the function that is
registered for the recipe with `@provides`, and kept in the cache folder of the stand-in release. The mirror's folder
has HOST/PATH for https://HOST/PATH; `Upstream.rewrites` sends requests there. What GitHub's API answers about
releases is made of the assets that are there, so its digests are true.
"""

from __future__ import annotations

import bz2
import gzip
import hashlib
import io
import json
import os
import re
import shutil
import tarfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from inspect import getsourcefile
from pathlib import Path
from urllib.parse import parse_qs, quote, unquote, urlsplit

from programs import Link as Link
from programs import mode_of
from servers import Handler, MirrorServer
from standin import cache

from baker.model import Arch
from baker.run import run
from baker.sparse import file_sha256

Data = bytes | str | Path
"""A file's content, or the file to copy it from."""


class Site:
    """Files of some web servers, below a folder as HOST/PATH."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, url: str) -> Path:
        """Where the file of an https:// URL is; its folder exists. A URL that ends with a slash is an index."""
        parts = urlsplit(url)
        path = self.folder / parts.netloc / unquote(parts.path).lstrip("/")
        if url.endswith("/"):
            path /= "index.html"
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def put(self, url: str, data: Data) -> Path:
        """Publish a file as it is."""
        path = self.path(url)
        if isinstance(data, Path):
            shutil.copyfile(data, path)
        else:
            path.write_bytes(data.encode() if isinstance(data, str) else data)
        return path

    def archive(self, url: str, members: Mapping[str, Data | Link]) -> Path:
        """Publish an archive, of the kind that the URL's suffix says.

        Programs and scripts in it are executable, other files are not. Folders are members too, as tar makes them.
        """
        path = self.path(url)
        if path.name.endswith(".zip"):
            _write_zip(path, members)
        else:
            _compress(path, _tar(members))
        return path

    def sums(self, url: str, *files: Path, names: bool = True, between: str = "  ") -> Path:
        """Publish sha256sum's output for some files of this site; without `names`, the bare digest of the only one.

        `between` stands before each name: ` *` for files read as binary, or with `./` where upstream summed that.
        """
        lines = [f"{file_sha256(file)}{between}{file.name}\n" for file in files]
        return self.put(url, "".join(lines) if names else lines[0].split()[0])

    def tags(self, repo: str, *names: str) -> None:
        """What GitHub's API says about the tags of a repository, newest first."""
        self.put(f"https://api.github.com/repos/{repo}/tags", json.dumps([{"name": name} for name in names]))

    def releases(self, repo: str, *tags: str) -> None:
        """Let GitHub list releases, without assets where no other call publishes some."""
        for tag in tags:
            (self.folder / "github.com" / repo / "releases/download" / tag).mkdir(parents=True, exist_ok=True)


def github(repo: str, tag: str) -> str:
    """The address that the assets of a release are below."""
    return f"https://github.com/{repo}/releases/download/{tag}"


Make = Callable[[Site, str, Arch], None]
"""Publishes on a site what a recipe downloads for a version (in the recipe's form) and an architecture."""


@dataclass(frozen=True)
class Provider:
    """How a recipe's upstream is made, and the version that tests build."""

    make: Make
    version: str


PROVIDERS: dict[str, Provider] = {}


def provides(recipe: str, version: str) -> Callable[[Make], Make]:
    """Register the decorated function as the upstream of `recipe`; `version` is what tests build by default."""

    def register(make: Make) -> Make:
        PROVIDERS[recipe] = Provider(make, version)
        return make

    return register


class Upstream:
    """The running mirror."""

    def __init__(self, folder: Path, server: MirrorServer) -> None:
        self.folder = folder
        self.server = server
        """Knows what was requested, and makes faults happen."""

    @property
    def rewrites(self) -> tuple[tuple[str, str], ...]:
        """Rules for `--mirror-url`: each https://HOST/ that is mirrored, and where."""
        hosts = sorted(path.name for path in self.folder.iterdir())
        return tuple((f"https://{host}/", f"{self.server.url}/{host}/") for host in hosts)

    def add(self, recipe: str, arch: Arch, version: str = "") -> str:
        """Mirror what a recipe needs; returns the version, which is the registered one unless told otherwise."""
        provider = PROVIDERS[recipe]
        version = version or provider.version
        made = cache.item(
            f"upstream_{recipe.replace('-', '_')}",
            (version, arch, _digest(provider.make)),
            lambda work: provider.make(Site(work), version, arch),
        )
        shutil.copytree(made, self.folder, copy_function=_share, dirs_exist_ok=True)
        for repo in (self.folder / "github.com").glob("*/*/releases"):
            self._answer_for(repo.parent)
        return version

    def _answer_for(self, repo: Path) -> None:
        """Write what GitHub's API says about the releases of a repository."""
        name = f"{repo.parent.name}/{repo.name}"
        tags = sorted((repo / "releases/download").iterdir(), key=lambda tag: _order(tag.name), reverse=True)
        answers = [_release(name, tag) for tag in tags]
        site, base = Site(self.folder), f"https://api.github.com/repos/{name}/releases"
        site.put(f"{base}/", json.dumps(answers))
        for answer in answers:
            site.put(f"{base}/tags/{answer['tag_name']}", json.dumps(answer))
        self.server.on(f"/api.github.com/repos/{name}/releases", _no_second_page)


@contextmanager
def serve(folder: Path) -> Iterator[Upstream]:
    """Run a mirror in an empty folder."""
    with MirrorServer(folder) as server:
        yield Upstream(folder, server)


def _release(repo: str, tag: Path) -> dict[str, object]:
    """A release as GitHub's REST API describes it, as far as recipes look."""
    base = github(repo, quote(tag.name))
    assets = [
        {
            "name": asset.name,
            "size": asset.stat().st_size,
            "digest": f"sha256:{file_sha256(asset)}",
            "browser_download_url": f"{base}/{quote(asset.name)}",
        }
        for asset in sorted(tag.iterdir())
    ]
    prerelease = bool(re.search(r"-(alpha|beta|rc|pre)", tag.name, re.IGNORECASE))
    return {"tag_name": tag.name, "name": tag.name, "draft": False, "prerelease": prerelease, "assets": assets}


def _order(tag: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", tag)]


def _no_second_page(request: Handler) -> bool:
    """A fault that is none: all releases are on the first page."""
    page = parse_qs(urlsplit(request.path).query).get("page", ["1"])[0]
    return page != "1" and request.answer(200, b"[]", Content_Type="application/json")


def _digest(make: Make) -> str:
    """A digest of the code that an upstream is made with."""
    here = Path(__file__)
    files = [here, here.with_name("programs.py"), Path(getsourcefile(make) or here)]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def _share(source: str, target: str) -> None:
    """Put a file of the cache into the mirror: by a second link where that is possible.

    The checksum file of a release is about all architectures, so its lines join those that are there.
    """
    there = Path(target)
    if there.exists() and re.search(r"sums?\b.*\.txt$|SUMS$", there.name):
        lines = dict.fromkeys(there.read_text().splitlines() + Path(source).read_text().splitlines())
        there.unlink()
        there.write_text("".join(f"{line}\n" for line in lines))
        return
    there.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _compress(path: Path, content: bytes) -> None:
    """Write a file compressed as its suffix says: quickly rather than well."""
    name = path.name
    if name.endswith((".tar.gz", ".tgz")):
        content = gzip.compress(content, compresslevel=1, mtime=0)
    elif name.endswith(".xz"):
        content = run(["xz", "-0", "-T2", "-c"], input=content).stdout
    elif name.endswith(".zst"):
        content = run(["zstd", "-q", "-1", "-c"], input=content).stdout
    elif name.endswith(".bz2"):
        content = bz2.compress(content, 1)
    path.write_bytes(content)


def _folders(members: Mapping[str, object]) -> list[str]:
    """The folders that members are in, parents first."""
    found = {str(parent) for name in members for parent in Path(name).parents if str(parent) != "."}
    return sorted(found)


def _content(data: Data) -> tuple[bytes, int]:
    """A member's bytes and mode."""
    content = data.read_bytes() if isinstance(data, Path) else data.encode() if isinstance(data, str) else data
    return content, mode_of(content)


def _tar(members: Mapping[str, Data | Link]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        _write_tar(tar, members)
    return buffer.getvalue()


def _write_tar(tar: tarfile.TarFile, members: Mapping[str, Data | Link]) -> None:
    for name in _folders(members):
        entry = tarfile.TarInfo(name)
        entry.type, entry.mode = tarfile.DIRTYPE, 0o755
        tar.addfile(entry)
    for name, data in members.items():
        entry = tarfile.TarInfo(name)
        if isinstance(data, Link):
            entry.type, entry.linkname = tarfile.SYMTYPE, data.target
            tar.addfile(entry)
            continue
        content, entry.mode = _content(data)
        entry.size = len(content)
        tar.addfile(entry, io.BytesIO(content))


def _write_zip(path: Path, members: Mapping[str, Data | Link]) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, data in members.items():
            assert not isinstance(data, Link), "no upstream has links in a zip"
            content, mode = _content(data)
            entry = zipfile.ZipInfo(name)
            entry.external_attr = (0o100000 | mode) << 16
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, content)
