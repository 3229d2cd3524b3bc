"""Where each sysext of a bake comes from: a local file, a URL, the bakery, or a recipe that builds it."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from baker.admission import admit
from baker.errors import NetworkError, UsageError
from baker.fetch import FileMissing
from baker.request import BakeRequest, SysextRequest
from baker.services import Services
from baker.sources import bakery_digest, find_config, pick_bakery_version
from baker.sysext import read_sysext

if TYPE_CHECKING:
    from baker.lock import LockedSysext
    from baker.recipe.request import RecipeBuild


@dataclass(frozen=True)
class PlannedSysext:
    """A sysext whose origin is settled. `sha256` is "" only where nothing tells it before the download or the build.

    `config` names the sysupdate config that will be baked beside it: a path, a bakery file name, or "".
    """

    name: str
    file_name: str
    origin: str
    """`local`, `bakery`, `url` or `recipe`."""
    location: str
    sha256: str
    installed: str
    config: str = ""
    config_sha256: str = ""
    """What the lock says; "" without one."""
    recipe: RecipeBuild | None = None
    why: str = ""
    """Why it is built from its recipe."""

    def as_dict(self) -> dict[str, Any]:
        """The JSON form."""
        fields = dataclasses.asdict(dataclasses.replace(self, recipe=None))
        return fields | {"recipe": self.recipe.as_dict() if self.recipe else None}


@dataclass(frozen=True)
class _Origin:
    """What `PlannedSysext` says of the same names."""

    origin: str
    location: str
    file_name: str
    sha256: str
    config: str
    recipe: RecipeBuild | None = None
    why: str = ""


def plan_sysext(item: SysextRequest, request: BakeRequest, version: str | None, services: Services) -> PlannedSysext:
    """Settle where one sysext comes from, and check it now if it is a local file. `version` is the release's."""
    locked = request.lock.sysext(item.name) if request.lock else None
    if item.path is not None:
        found = _local(item, request, version, services)
    elif item.url:
        found = _remote(item)
    elif locked is not None and locked.origin != "recipe":
        found = _of_bakery(item, request, {locked.file: locked.sha256}, services, locked)
    elif locked is not None:
        found = _of_recipe(item, request, services, "bake.lock says so", locked)
    else:
        found = _by_version(item, request, services)
    check_file_name(found.file_name)
    return PlannedSysext(
        item.name, found.file_name, found.origin, found.location, found.sha256,
        request.install_to.path(item.name, found.file_name), found.config, locked.config_sha256 if locked else "",
        found.recipe, found.why,
    )  # fmt: skip


def _local(item: SysextRequest, request: BakeRequest, version: str | None, services: Services) -> _Origin:
    assert item.path is not None
    sysext = read_sysext(item.path, item.name)
    admit(sysext, request.arch, version, request.allow, services.console)
    beside = item.path.parent / f"{item.name}.conf"
    return _Origin("local", str(item.path), item.path.name, sysext.sha256, str(beside) if beside.is_file() else "")


def _remote(item: SysextRequest) -> _Origin:
    if not item.sha256:
        raise UsageError(
            f"Nothing says what {item.url} must contain.", f"Append the digest: {item.name}:{item.url}#sha256=HEX"
        )
    return _Origin("url", item.url, unquote(urlsplit(item.url).path).rsplit("/", 1)[-1], item.sha256, "")


def _by_version(item: SysextRequest, request: BakeRequest, services: Services) -> _Origin:
    """NAME@VERSION: the bakery's, or built from the recipe when the bakery has none or the user wants it."""
    if not item.version:
        return _of_bakery(item, request, services.bakery_files(item.name), services)
    if request.build:
        return _of_recipe(item, request, services, "asked for by --build")
    try:
        return _of_bakery(item, request, services.bakery_files(item.name), services)
    except (UsageError, FileMissing):
        if not _has_recipe(item.name, services):
            raise
        return _of_recipe(item, request, services, "the bakery does not have it")
    except NetworkError as error:
        if _has_recipe(item.name, services):
            error.hint = f"--build builds {item.name} from its recipe, without a bakery."
        raise


def _of_bakery(
    item: SysextRequest, request: BakeRequest, names: dict[str, str], services: Services,
    locked: LockedSysext | None = None,
) -> _Origin:  # fmt: skip
    file_name = item.bakery_file or pick_bakery_version(item.name, item.version, request.arch, names)
    config = locked.config if locked else find_config(item.name, file_name, services)
    return _Origin("bakery", file_name, file_name, bakery_digest(file_name, names), config)


def _has_recipe(name: str, services: Services) -> bool:
    return services.recipes.named(name) is not None


def _of_recipe(
    item: SysextRequest, request: BakeRequest, services: Services, why: str, locked: LockedSysext | None = None
) -> _Origin:
    from baker.recipe.load import find_recipe
    from baker.recipe.request import settle
    from baker.recipe.versions import Catalogue

    recipe = find_recipe(item.name, services.recipes)
    choices = locked.choices if locked else {}
    version = locked.version_for(request.arch) if locked else item.version
    # Always the same time, so that an extension is the same in whichever image.
    build = settle(
        recipe, version, request.arch, Catalogue(services, services.rewrites, services.recipes),
        variant=choices.get("variant", ""), name=item.name,
        parameters={key.removeprefix("p."): value for key, value in choices.items() if key.startswith("p.")},
    )  # fmt: skip
    config = locked.config if locked else _config_in_bakery(build, services)
    sha256 = locked.sha256 if locked else ""
    return _Origin("recipe", f"{recipe.name} {build.version}", build.file_name, sha256, config, build, why)


def _config_in_bakery(build: RecipeBuild, services: Services) -> str:
    """The config by which the bakery's versions follow the one that is built; "" where no bakery answers."""
    try:
        return find_config(build.component, build.file_name, services)
    except NetworkError as error:
        services.console.note(f"{build.component} gets no sysupdate config: {error.message}")
        return ""


def check_file_name(name: str) -> None:
    """Refuse file names that would be a trap inside an image; UsageError."""
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._+@~=-]*", name):
        raise UsageError(
            f"{name!r} cannot be the name of a file in an image.",
            "Rename it: letters, digits, . _ + - @ ~ = are fine.",
        )


def describe_sysext(item: PlannedSysext, partition: str) -> list[str]:
    """The lines of a plan about a sysext."""
    origin = {"local": "local file", "bakery": "bakery", "url": "URL"}.get(item.origin, "")
    digest = f", sha256 {item.sha256[:16]}…" if item.sha256 else ""
    if item.recipe is not None:
        choices = "".join(f", {key.removeprefix('p.')}={value}" for key, value in item.recipe.choices.items())
        origin = f"built from its recipe{choices}: {item.why}"
    lines = [
        f"  sysext     {item.name}: {item.location} ({origin}{digest})",
        f"             → {partition}:{item.installed}",
    ]
    return lines + ([f"             updates described by {Path(item.config).name}"] if item.config else [])
