"""bake.lock: what one bake was made of, so that another can be made of exactly the same.

`--lock` writes it after a bake, `--locked` obeys it: the release is the one it names, whatever a channel offers today,
and every file must have the digest it gives, however well another one is signed. The bake itself is still described by
the command line or bake.toml; where that asks for something else than the lock holds, the bake is refused.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, urlencode

from baker import __version__
from baker.diskless.routes import ROUTES
from baker.errors import EnvironmentFault, UsageError, VerificationError
from baker.model import Arch, Channel, Release
from baker.schema import Table, load_toml
from baker.sources import version_files

if TYPE_CHECKING:
    from baker.manifest import BakeManifest
    from baker.origins import PlannedSysext
    from baker.plan import BakePlan
    from baker.request import BakeRequest, InstallTo

LOCK_NAME = "bake.lock"
_FORMAT = 1
_HEAD = "# Written by `flatcar-bake --lock`. Keep it beside bake.toml; `flatcar-bake --locked` bakes just this.\n"
_HINT = "If the change is wanted, bake once with --lock instead of --locked."


@dataclass(frozen=True)
class LockedFile:
    """A file that went into the bake besides the sysexts; `kind` as in the manifest."""

    kind: str
    name: str
    sha256: str


@dataclass(frozen=True)
class LockedVendor:
    """What a vendor's image was made from; see `PlannedVendor` in bases.py."""

    name: str
    base: str
    source: str
    why: str


@dataclass(frozen=True)
class LockedSysext:
    """A sysext and its sysupdate config; `config` is "" for one that has none.

    `built_with` is for sysexts built from a recipe: variant and parameters, in the form of a URL's query.
    """

    name: str
    origin: str
    file: str
    sha256: str
    config: str
    config_sha256: str
    built_with: str = ""

    @property
    def choices(self) -> dict[str, str]:
        """`built_with`, as `RecipeBuild.choices` has it."""
        return dict(parse_qsl(self.built_with))

    def version_for(self, arch: Arch) -> str:
        """The version in the file's name."""
        return self.file.removeprefix(f"{self.name}-").removesuffix(f"-{arch}.raw")


@dataclass(frozen=True)
class LockedAddition:
    """Something that is baked besides sysexts; see `PlannedAdditions.facts`."""

    what: str
    value: str


@dataclass(frozen=True)
class Lock:
    """A bake.lock. `release` is None, and `image` a digest, for a bake into an image of the user's own."""

    path: Path
    made_by: str
    arch: Arch
    epoch: int
    install_to: str
    updates: bool
    image: str
    release: Release | None
    compress: str
    kernel_args: tuple[str, ...]
    files: tuple[LockedFile, ...]
    sysexts: tuple[LockedSysext, ...]
    vendors: tuple[LockedVendor, ...]
    additions: tuple[LockedAddition, ...] = ()

    @classmethod
    def of(cls, path: Path, plan: BakePlan, manifest: BakeManifest) -> Lock:
        """The lock of a bake that is done."""
        inputs = {(item["kind"], item["name"]): item["sha256"] for item in manifest.inputs}
        sysexts = (
            LockedSysext(
                item["name"], item["origin"], item["file"], item["sha256"], item["sysupdate_config"],
                item["sysupdate_config_sha256"], urlencode(item["built"]["choices"]) if "built" in item else "",
            )
            for item in manifest.sysexts
        )  # fmt: skip
        return cls(
            path=path, made_by=__version__, arch=plan.arch, epoch=plan.epoch, install_to=_place(plan.install_to),
            updates=plan.updates, image=str(plan.substance()["image"] or ""), release=plan.release,
            compress=plan.compress, kernel_args=plan.kernel_args,
            files=tuple(LockedFile(*key, sha256) for key, sha256 in sorted(inputs.items()) if key[0] not in _OWN),
            sysexts=tuple(sorted(sysexts, key=lambda item: item.name)),
            vendors=tuple(
                LockedVendor(item.vendor.name, item.base, "" if item.base == "image" else item.source, item.why)
                for item in sorted(plan.vendors, key=lambda item: item.vendor.name)
            ),
            additions=tuple(LockedAddition(*item) for item in sorted(plan.additions.facts().items())),
        )  # fmt: skip

    @classmethod
    def load(cls, path: Path) -> Lock:
        """Read a bake.lock; UsageError for a missing or malformed one."""
        table = Table(load_toml(path), str(path))
        form = table.take("format", int)
        if form != _FORMAT:
            raise UsageError(f"{path} has the format {form}, which this flatcar-bake does not know.")
        arch, release = _member(path, Arch, table.take("arch", str)), table.table("release")
        lock = cls(
            path=path, made_by=table.take("made_by", str), arch=arch,
            epoch=table.take("epoch", int), install_to=table.take("install_to", str),
            updates=table.take("updates", bool), image=table.take("image", str, ""),
            release=_read_release(path, release, arch) if release else None,
            compress=table.take("compress", str, ""), kernel_args=table.strings("kernel_args", ()),
            files=tuple(_strings(LockedFile, item) for item in table.tables("files")),
            sysexts=tuple(_strings(LockedSysext, item) for item in table.tables("sysexts")),
            vendors=tuple(_strings(LockedVendor, item) for item in table.tables("vendors")),
            additions=tuple(_strings(LockedAddition, item) for item in table.tables("additions")),
        )  # fmt: skip
        table.done()
        return lock

    def text(self) -> str:
        """The file's content: TOML with everything in a fixed order, one value a line."""
        top = {"format": _FORMAT, "made_by": self.made_by, "arch": self.arch.value, "epoch": self.epoch}
        top |= {"install_to": self.install_to, "updates": self.updates}
        top |= {"image": self.image} if self.image else {}
        top |= {"compress": self.compress} if self.compress else {}
        top |= {"kernel_args": list(self.kernel_args)} if self.kernel_args else {}
        blocks = [_HEAD, *_lines(top)]
        if self.release is not None:
            release = asdict(self.release)
            del release["arch"]
            blocks += ["\n[release]\n", *_lines(release)]
        for name in ("files", "sysexts", "vendors", "additions"):
            for item in getattr(self, name):
                blocks += [f"\n[[{name}]]\n", *_lines(asdict(item))]
        return "".join(blocks)

    def save(self) -> None:
        """Write it to `path`, replacing an older one at once or not at all."""
        new = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        try:
            new.write_text(self.text(), encoding="utf-8")
            new.replace(self.path)
        except OSError as error:
            new.unlink(missing_ok=True)
            raise EnvironmentFault(f"Cannot write {self.path}: {error.strerror}.") from error

    # What a locked bake asks

    def source(self, vendor: str) -> LockedVendor:
        """What the image of a vendor is made from."""
        return next(item for item in self.vendors if item.name == vendor)

    def sysext(self, name: str) -> LockedSysext:
        """The pins of a sysext."""
        return next(item for item in self.sysexts if item.name == name)

    def has_file(self, kind: str, name: str) -> bool:
        """Whether such a file went into the locked bake."""
        return any((item.kind, item.name) == (kind, name) for item in self.files)

    def check_request(self, request: BakeRequest, epoch: str) -> None:
        """Refuse a request for something else than was locked; VerificationError says what.

        `epoch` is the user's SOURCE_DATE_EPOCH, or "".
        """
        self._same("the architecture", self.arch, request.arch)
        self._same("where sysexts go", self.install_to, _place(request.install_to))
        self._same("updates", self.updates, request.updates)
        self._same("the compression", self.compress, request.compress)
        self._same("the kernel arguments", " ".join(self.kernel_args), " ".join(request.kernel_args))
        self._same("SOURCE_DATE_EPOCH", str(self.epoch), epoch or str(self.epoch))
        self._same("an image of your own", bool(self.image), request.image is not None)
        self._same("the vendors", _listed(item.name for item in self.vendors), _listed(request.vendors))
        self._same(
            "the sysexts", _listed(item.name for item in self.sysexts), _listed(item.name for item in request.sysexts)
        )
        for item in request.sysexts:
            locked = self.sysext(item.name).file
            any_version = item.version in ("", "latest")
            if not any_version and locked not in version_files(item.name, item.version, request.arch):
                self._refuse(f"the version of {item.name}", locked, item.version)
            self._same(f"the file of {item.name}", locked, item.bakery_file or locked)
        if self.release is not None and not _means(request.release, self.release):
            self._refuse("the release", f"{self.release.version} ({self.release.channel})", request.release)
        for vendor in self.vendors:
            if vendor.base in ROUTES:
                if request.without_disk.route not in ("auto", vendor.base):
                    self._refuse(f"the route of {vendor.name}", vendor.base, request.without_disk.route)
            elif request.base not in ("auto", vendor.base):
                self._refuse(f"the base of {vendor.name}", vendor.base, request.base)

    def check_plan(self, plan: BakePlan) -> None:
        """Refuse a plan whose inputs are not the locked ones, as far as they are known before the bake."""
        self._same("the image", self.image, str(plan.substance()["image"] or ""))
        key = next((item.sha256 for item in self.files if item.kind == "update key"), "")
        self._same("the update key", key, str(plan.substance().get("update_key", "")))
        for item in plan.sysexts:
            self._check_sysext(item)
        locked, found = {item.what: item.value for item in self.additions}, plan.additions.facts()
        for what in sorted(locked.keys() | found.keys()):
            self._same(f"the {what}", locked.get(what, ""), found.get(what, ""))

    def _check_sysext(self, item: PlannedSysext) -> None:
        locked = self.sysext(item.name)
        self._same(f"the origin of {item.name}", locked.origin, item.origin)
        self._same(f"the file of {item.name}", locked.file, item.file_name)
        self._same(f"the sha256 of {item.file_name}", locked.sha256, item.sha256)
        self._same(f"the config of {item.name}", locked.config, Path(item.config).name)

    def check_config(self, name: str, sha256: str) -> None:
        """Refuse another sysupdate config than the locked one for the sysext `name`."""
        locked = self.sysext(name)
        self._same(f"the sha256 of {locked.config}", locked.config_sha256, sha256)

    def check_file(self, kind: str, name: str, sha256: str) -> None:
        """Refuse a file that is not in the lock, or has another digest there."""
        if kind in _OWN:
            return  # sysexts and their configs have pins of their own
        expected = next((item.sha256 for item in self.files if (item.kind, item.name) == (kind, name)), "no such file")
        self._same(f"the sha256 of the {kind} {name}", expected, sha256)

    def _same(self, what: str, locked: object, found: object) -> None:
        if locked != found:
            self._refuse(what, locked, found)

    def _refuse(self, what: str, locked: object, found: object) -> None:
        raise VerificationError(
            f"{self.path} does not allow this bake: {what}: {_shown(locked)} is locked, not {_shown(found)}.", _HINT
        )


_OWN = ("sysext", "sysupdate config")


def _place(install_to: InstallTo) -> str:
    return f"{install_to.target}:{install_to.path('NAME', 'FILE')}"


def _means(word: str, release: Release) -> bool:
    """Whether a --release could mean this release: its version, or its channel."""
    channel = "stable" if word == "current" else word.partition("-")[0]
    return channel == release.channel if channel in tuple(Channel) else word == release.version


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(set(names)))


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return str(value) or "none"


def _lines(values: Mapping[str, object]) -> Iterator[str]:
    for key, value in values.items():
        # JSON's strings, numbers and booleans are TOML's too, as long as nothing is escaped as a surrogate.
        yield f"{key} = {json.dumps(value, ensure_ascii=False)}\n"


def _strings(kind: type[Any], table: Table) -> Any:
    """A dataclass of nothing but strings."""
    optional = {"built_with"}
    made = kind(*(table.take(name, str, "" if name in optional else None) for name in kind.__dataclass_fields__))
    table.done()
    return made


def _read_release(path: Path, table: Table, arch: Arch) -> Release:
    channel = _member(path, Channel, table.take("channel", str))
    release = Release(table.take("version", str), channel, arch, table.take("build_date", int))
    table.done()
    return release


def _member(path: Path, kind: type[Any], value: str) -> Any:
    try:
        return kind(value)
    except ValueError:
        raise UsageError(f"{path}: {value!r} is no {kind.__name__.lower()}.") from None
