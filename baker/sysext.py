"""Sysext images: what they say about themselves, and whether Flatcar will merge them.

The rules are those of systemd-sysext(8), os-release(5) and Flatcar's own sysext documentation. What happens when one
is broken was tried out with systemd 252: an image without a matching extension-release file makes
systemd-sysext.service fail and *no* extension is merged; any other mismatch skips that one image silently.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from baker.contents import Contents, Opened, open_contents, resolve
from baker.erofs import Unsupported
from baker.errors import ImageError
from baker.extension_release import FLATCAR_LEVEL, MAX_RELEASE_SIZE, RELEASE_FOLDER, RELEASE_PREFIX, parse_release
from baker.model import Arch, Sysext
from baker.readers import Squashfs
from baker.sparse import file_sha256
from baker.treelint import Finding as Finding
from baker.treelint import check_programs, check_tree, has_builtins, major, units
from baker.treelint import conflicting_builtins as conflicting_builtins

_FIRST_WITH_LEVEL = 3185
_FIRST_WITH_EROFS = 4284
# Release notes: "added zstd support for squashfs kernel module".
_FIRST_WITH_ZSTD, _FIRST_WITH_ZSTD_OF_3602 = (3760, 1, 1), (3602, 2, 2)
_ZSTD = 6

_TRUE = ("1", "yes", "y", "true", "t", "on")  # of systemd's parse_boolean


def read_sysext(path: Path, name: str) -> Sysext:
    """What the image at `path` says in its extension-release.NAME; empty fields where it says nothing.

    A filesystem that cannot be read without mounting gives empty fields too. Raises UsageError when there is no such
    file and ImageError when it is not a sysext or is damaged. Nothing of it is executed.
    """
    with open_contents(path) as opened:
        return describe(opened, path, name)


def describe(opened: Opened, path: Path, name: str) -> Sysext:
    """`read_sysext` for an image that is open."""
    fields = _read_release(opened.contents, path, name) if opened.contents else {}
    return Sysext(
        name, path, path.stat().st_size, file_sha256(path), opened.fs, fields.get("ID", ""),
        fields.get("VERSION_ID", ""), fields.get("SYSEXT_LEVEL", ""), fields.get("ARCHITECTURE", ""),
        fields.get("EXTENSION_RELOAD_MANAGER", "").lower() in _TRUE,
    )  # fmt: skip


def builtins_replaced(path: Path, version: str | None) -> set[str]:
    """The built-in sysexts that baking this image into this release must switch off. Errors as `read_sysext`."""
    with open_contents(path) as opened:
        nodes = opened.contents.nodes if opened.contents else {}
    return conflicting_builtins(nodes) if has_builtins(version) else set()


def names_within(contents: Contents) -> list[str]:
    """The names of all extension-release files of a tree, in order; a sound sysext has one."""
    prefix = f"{resolve(contents, RELEASE_FOLDER)}/{RELEASE_PREFIX}"
    return sorted(path.removeprefix(prefix) for path in contents.nodes if path.startswith(prefix))


def lint(sysext: Sysext, arch: Arch | None, version: str | None) -> list[Finding]:
    """Everything that speaks against baking `sysext` into the release `version` for `arch` (None: not known)."""
    with open_contents(sysext.path) as opened:
        return lint_opened(opened, sysext, arch, version)


def lint_opened(opened: Opened, sysext: Sysext, arch: Arch | None, version: str | None) -> list[Finding]:
    """`lint` for an image that is open."""
    findings = list(_check_filesystem(opened, sysext, version))
    if opened.contents is not None:
        findings += _check_release(opened.contents, sysext, arch, version)
        findings += check_tree(opened.contents.nodes, sysext.name, version)
        if arch is not None and not sysext.architecture:
            findings += check_programs(opened.contents, sysext.name, arch)
    return findings


def _read_release(contents: Contents, path: Path, name: str) -> dict[str, str]:
    """The fields of extension-release.NAME, empty where there is none. ImageError for one that cannot be read."""
    file = resolve(contents, f"{RELEASE_FOLDER}/{RELEASE_PREFIX}{name}")
    if file is None or contents.nodes[file].kind != "file":
        return {}
    try:
        return parse_release(contents.read(file, MAX_RELEASE_SIZE + 1))
    except Unsupported as reason:
        raise ImageError(f"{path.name}: {file} cannot be read: {reason}.", "Newer erofs-utils may do it.") from reason
    except ImageError as error:
        raise ImageError(f"{path.name}: {error.message}", f"Look at {file} in it.") from error


def _check_filesystem(opened: Opened, sysext: Sysext, version: str | None) -> Iterator[Finding]:
    number = major(version)
    if number is not None and number < _FIRST_WITH_LEVEL:
        yield Finding(
            "release-too-old", f"Release {version} does not merge sysexts, {_FIRST_WITH_LEVEL}.0.0 was the first to.",
            True, "Bake a newer release.",
        )  # fmt: skip
    if opened.fs == "erofs" and number is not None and number < _FIRST_WITH_EROFS:
        yield Finding(
            "no-erofs", f"The sysext {sysext.name} is an EROFS image, which release {version} cannot mount.",
            True, f"Build it as squashfs, or bake release {_FIRST_WITH_EROFS}.0.0 or later.",
        )  # fmt: skip
    if isinstance(opened.contents, Squashfs) and opened.contents.compression == _ZSTD and not _mounts_zstd(version):
        yield Finding(
            "no-zstd", f"The sysext {sysext.name} is compressed by zstd, which release {version} cannot mount.",
            True, "Pack it with --compression gzip, or bake a newer release.",
        )  # fmt: skip
    if opened.contents is None:
        yield Finding(
            "unchecked", f"The sysext {sysext.name} was not checked: {opened.why_not}.",
            False, "Squashfs, EROFS, ext4 and plain btrfs images are checked.",
        )  # fmt: skip


def _mounts_zstd(version: str | None) -> bool:
    """Whether a release's kernel reads squashfs with zstd; true where the release is not known."""
    match = re.match(r"(\d+)\.(\d+)\.(\d+)", version or "")
    if match is None:
        return True
    found = (int(match[1]), int(match[2]), int(match[3]))
    return found >= _FIRST_WITH_ZSTD or (found[0] == 3602 and found >= _FIRST_WITH_ZSTD_OF_3602)


def _check_release(contents: Contents, sysext: Sysext, arch: Arch | None, version: str | None) -> Iterator[Finding]:
    """The rules by which systemd-sysext decides whether an image fits its host."""
    name, wanted = sysext.name, f"{RELEASE_PREFIX}{sysext.name}"
    fields = _read_release(contents, sysext.path, name)
    if not fields.get("ID"):
        yield _missing_release(contents, name, wanted)
        return
    if arch is not None and sysext.architecture not in ("", "_any", arch):
        yield Finding(
            "arch-mismatch", f"The sysext {name} is for {sysext.architecture}, the image is for {arch}.",
            True, f"Get the {arch} build of it, or choose the other --arch.",
        )  # fmt: skip
    scopes = fields.get("SYSEXT_SCOPE", "system").split()
    if "system" not in scopes:
        yield Finding(
            "scope-mismatch", f"The sysext {name} is for the scope {' '.join(scopes)!r}, not for a running system.",
            True, f"Set SYSEXT_SCOPE=system in its {wanted}.",
        )  # fmt: skip
    if sysext.os_id == "flatcar":
        yield from _check_version(sysext, version)
    elif sysext.os_id != "_any":
        yield Finding(
            "id-mismatch", f"The sysext {name} is made for {sysext.os_id!r}, so Flatcar skips it.",
            True, f"Its {wanted} needs ID=flatcar or ID=_any.",
        )  # fmt: skip
    if units(contents.nodes) and not sysext.reload_manager:
        yield Finding(
            "no-reload", f"The sysext {name} ships units but does not ask for a reload of systemd.", False,
            "They are there after a boot, yet not after a mere `systemd-sysext refresh`; "
            f"EXTENSION_RELOAD_MANAGER=1 in its {wanted} changes that.",
        )  # fmt: skip


def _missing_release(contents: Contents, name: str, wanted: str) -> Finding:
    """Why there is no ID: no file of this name, one of another name, or one without an ID."""
    found = names_within(contents)
    if name in found:
        return Finding(
            "missing-id", f"The file {wanted} of the sysext {name} has no ID=, so Flatcar skips the sysext.", True
        )
    consequence = "systemd would then merge no extension at all"
    if not found:
        return Finding(
            "missing-release", f"The sysext {name} has no {RELEASE_FOLDER.lstrip('/')}/{wanted}; {consequence}.", True,
            "It is no sysext for Flatcar, or was not built to the end.",
        )  # fmt: skip
    others = ", ".join(map(repr, found[:3]))
    return Finding(
        "name-mismatch", f"The sysext would be linked as {name}.raw but calls itself {others}; {consequence}.", True,
        f"Bake it under its own name: {found[0]}:FILE.",
    )  # fmt: skip


def _check_version(sysext: Sysext, version: str | None) -> Iterator[Finding]:
    """SYSEXT_LEVEL decides where it is set, since Flatcar's os-release has one; VERSION_ID must be equal otherwise."""
    name, level, tied = sysext.name, sysext.sysext_level, sysext.version_id
    if level == FLATCAR_LEVEL:
        return
    if level or not tied:
        yield Finding(
            "level-mismatch",
            f"The sysext {name} has {f'SYSEXT_LEVEL={level}' if level else 'no SYSEXT_LEVEL'}, so Flatcar skips it.",
            True, f"It needs SYSEXT_LEVEL={FLATCAR_LEVEL}, or ID=_any.",
        )  # fmt: skip
    elif version is not None and tied != version:
        yield Finding(
            "version-mismatch", f"The sysext {name} is for release {tied} only, so release {version} skips it.",
            True, f"Bake release {tied}, or get the sysext of release {version}.",
        )  # fmt: skip
    else:
        yield Finding(
            "version-tied",
            f"The sysext {name} is for release {tied} only: an update of the system leaves it out.",
            False,
        )
