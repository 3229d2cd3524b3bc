"""What a wrapped program sees: which paths come from its root filesystem, and which are the system's."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from baker.chroot.root import Root
from baker.errors import UsageError

CHOICES = ("host", "chroot")
_SYSTEMS = ("dev", "media", "mnt", "proc", "run", "srv", "sys", "tmp")
"""Folders at the top that are the system's unless the user says otherwise."""
_MAPPED = {"etc": ("/etc",), "var": ("/var",), "home": ("/home", "/root")}
_NEVER = ("boot", "lost+found")


@dataclass(frozen=True)
class Mapping:
    """Whose /etc, /var and /home (with /root) a program sees: `host` or `chroot`; and lists that say more.

    An empty list is the default: of the root filesystem what is no folder of the system's, of the system the rest.
    """

    etc: str = "host"
    var: str = "host"
    home: str = "host"
    chroot: tuple[str, ...] = ()
    host: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for option in _MAPPED:
            if getattr(self, option) not in CHOICES:
                raise UsageError(f"--{option} cannot be {getattr(self, option)!r}.", "It is `host` or `chroot`.")
        for path in (*self.chroot, *self.host):
            if not path.startswith("/") or not path.isprintable() or ".." in path.split("/") or not path.strip("/"):
                raise UsageError(f"{path!r} is no absolute path below /.", "Write, for example, /srv")


@dataclass(frozen=True)
class View:
    """Paths by where they come from. Parents stand before what is in them."""

    mounts: tuple[tuple[str, str], ...]
    """(`image` or `host`, path) in the order of mounting."""
    links: tuple[tuple[str, str], ...]
    """Links at the top of the root filesystem: name and text."""

    @property
    def image(self) -> list[str]:
        """The paths that come out of the root filesystem."""
        return [path for kind, path in self.mounts if kind == "image"]

    def inner(self) -> list[str]:
        """Paths of the system that are mounted within the root filesystem, which needs a place for them."""
        return [path for kind, path in self.mounts if kind == "host" and _above(path, self.image)]


def view(root: Root, mapping: Mapping) -> View:
    """What a program of `root` is to see. Raises UsageError for a folder that `root` does not have."""
    names = root.names("/")
    links = [(name, text) for name in names if (text := root.link(f"/{name}")) is not None and name not in _NEVER]
    linked = {name for name, _ in links}
    image = {_plain(root, path) for path in mapping.chroot} or set(_own(root, names, linked))
    host = set(map(_strip, mapping.host)) or {f"/{name}" for name in _SYSTEMS}
    for option, paths in _MAPPED.items():
        if getattr(mapping, option) == "chroot":
            image |= {path for path in paths if root.is_folder(path)}
        else:
            host |= set(paths)
    if not mapping.host:
        host |= {"/var/tmp"} if mapping.var == "chroot" else set()  # noqa: S108 - a mount point
        host |= {"/opt"} if "/opt" not in image else set()
    image -= set(map(_strip, mapping.host))
    host -= image
    both = {path: "host" for path in host} | {path: "image" for path in image}
    # What lies within a folder from the same place is there already.
    mounts = [(kind, path) for path, kind in sorted(both.items()) if _nearest(path, both) != kind]
    tops = {path for _, path in mounts}
    kept = [(name, text) for name, text in links if f"/{name}" not in tops and not _within(f"/{name}", tops)]
    return View(tuple(mounts), tuple(kept))


def _own(root: Root, names: Iterable[str], linked: Iterable[str]) -> Iterable[str]:
    for name in names:
        if name in (*_SYSTEMS, *_NEVER, *linked, "etc", "var", "home", "root") or not root.is_folder(f"/{name}"):
            continue
        if name != "opt" or root.names("/opt"):
            yield f"/{name}"


def _plain(root: Root, path: str) -> str:
    """A path of the root filesystem without links, such as /usr/bin for /bin."""
    real = root.resolve(path)
    if real is None or real == "/":
        raise UsageError(f"The root filesystem has no {path}.", "Correct the list of --chroot.")
    return real


def _strip(path: str) -> str:
    return "/" + path.strip("/")


def _nearest(path: str, both: dict[str, str]) -> str:
    """Where the closest folder around a path comes from; "" when there is none."""
    while path := path.rpartition("/")[0]:
        if path in both:
            return both[path]
    return ""


def _above(path: str, folders: Iterable[str]) -> bool:
    return any(path.startswith(f"{folder}/") for folder in folders)


def _within(path: str, paths: Iterable[str]) -> bool:
    return any(other.startswith(f"{path}/") for other in paths)
