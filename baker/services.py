"""What a plan and a bake work with: the release server, the bakery, the cache and the catalogue, in one place."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Self
from urllib.parse import urlsplit

from baker.cache import Cache
from baker.console import Console
from baker.errors import UsageError
from baker.fetch import Fetcher, FileMissing
from baker.model import Arch, Release
from baker.recipe.mirrors import Rewrites
from baker.recipe.pins import PinFile
from baker.release import Mirror, join_url, resolve
from baker.resources import catalogue
from baker.store import Store
from baker.verify import FLATCAR_FINGERPRINT, Verifier

if TYPE_CHECKING:
    from baker.bakery import Check
    from baker.recipe.load import Recipes
    from baker.vendor import Vendor

PINS_NAME = "recipes.lock"
DEFAULT_BAKERY = "https://extensions.flatcar.org/extensions"
DEFAULT_CACHE_LIMIT = 20 * 1000**3


def default_cache_folder() -> Path:
    """$XDG_CACHE_HOME/flatcar-bake, or ~/.cache/flatcar-bake."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "flatcar-bake"


@dataclass
class Settings:
    """Where things come from, as told by options and environment."""

    mirror: str | None = None
    bakery: str = DEFAULT_BAKERY
    bakery_key: Path | None = None
    """Public keys: lists of the bakery must be signed by one of them."""
    signing_key: Path | None = None
    fingerprint: str = FLATCAR_FINGERPRINT
    cache_dir: Path | None = None
    cache_limit: int = DEFAULT_CACHE_LIMIT
    vendor_folders: tuple[Path, ...] = field(default=())
    recipe_folders: tuple[Path, ...] = field(default=())
    mirror_urls: tuple[str, ...] = field(default=())
    """Rules PREFIX=PREFIX for what recipes download."""
    recipes_lock: Path | None = None
    """Where new pins of recipes' downloads are written."""
    locked_sources: bool = False
    """No new pins: what nothing vouches for is refused."""


class Services:
    """Lazily opened: nothing is read, fetched or created before it is needed."""

    def __init__(self, settings: Settings, console: Console) -> None:
        for address in (settings.mirror, settings.bakery):
            if address and "@" in urlsplit(address).netloc:
                raise UsageError(
                    "The address of a mirror or bakery holds a user name or password.",
                    "Put them into ~/.netrc instead; an address is shown in messages and in the manifest.",
                )
        self.settings = settings
        self.console = console
        self.bakery = settings.bakery.rstrip("/")
        self.mirror = Mirror(settings.mirror)
        self.fetcher = Fetcher(console)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if "store" in self.__dict__:
            self.store.close()
        if "cache" in self.__dict__:
            self.cache.close()

    @cached_property
    def vendors(self) -> dict[str, Vendor]:
        """The vendor catalogue by name."""
        from baker.vendor_files import load_vendors

        return load_vendors(self.settings.vendor_folders)

    @cached_property
    def recipes(self) -> Recipes:
        """The recipe catalogue by name."""
        from baker.recipe.load import Recipes

        return Recipes(self.settings.recipe_folders)

    @cached_property
    def rewrites(self) -> Rewrites:
        """Where to look for what recipes download."""
        return Rewrites.parse(self.settings.mirror_urls)

    @cached_property
    def pins(self) -> PinFile:
        """What recipes' downloads must be where upstream does not say it: a file that is written to, and others.

        That is ./recipes.lock where there is one, else one in the cache folder; the shipped pins and those in the
        user's recipe folders are below it.
        """
        own = self.settings.recipes_lock
        if own is None:
            here = Path(PINS_NAME)
            own = here if here.is_file() else self.cache.root / PINS_NAME
        folders = (catalogue("recipes"), *self.settings.recipe_folders)
        return PinFile(own, *(folder / PINS_NAME for folder in folders), locked=self.settings.locked_sources)

    @cached_property
    def cache(self) -> Cache:
        """Verified downloads, shared by all bakes of a user."""
        return Cache(self.settings.cache_dir or default_cache_folder(), self.settings.cache_limit, self.console)

    @cached_property
    def store(self) -> Store:
        """Verified files of releases and bakeries."""
        return Store(
            self.cache, self.fetcher, self.mirror, self._verifier, self.console, self.settings.fingerprint,
            self._bakery_check(),
        )  # fmt: skip

    def _bakery_check(self) -> Check | None:
        """How the bakery's lists are judged; None where they need no signature."""
        if self.settings.bakery_key is None:
            return None
        from baker.sign import check_by_any, read_keyring

        return partial(check_by_any, read_keyring(self.settings.bakery_key))

    def _verifier(self) -> Verifier:
        """A verifier for the pinned fingerprint. The key itself may come from anywhere: the pin decides."""
        path = self.settings.signing_key
        if path is None:
            key = self.fetcher.read(self.mirror.key_url, 1 << 20)
        else:
            try:
                key = path.read_bytes()
            except OSError as error:
                raise UsageError(f"Cannot read the signing key {path}: {error.strerror}.") from error
        return Verifier(key, self.settings.fingerprint)

    def resolve(self, request: str, arch: Arch) -> Release:
        """The release that a channel name or version means."""
        return resolve(request, arch, self.mirror, self.store)

    def published(self, release: Release, name: str) -> bool:
        """Whether the release has this file: in the cache already, or on the server."""
        return self.store.has(release, name)

    def in_bakery(self, name: str) -> bool:
        """Whether the bakery has this file."""
        return self.fetcher.size(join_url(self.bakery, name)) is not None

    def bakery_files(self, name: str) -> dict[str, str]:
        """File name → sha256 of a bakery, or where it has no common list, of one sysext's own folder there."""
        try:
            return self.store.bakery_names(self.bakery)
        except FileMissing:
            return self.store.bakery_names(join_url(self.bakery, name))
