"""systemd-sysupdate: reading transfer configs, judging those nobody signed, and making updates really run.

The rules are those of sysupdate.d(5) and of systemd's own parser; what a bakery publishes is a NAME.conf with one
transfer from an HTTPS folder to /opt/extensions/NAME, whose newest file /etc/extensions/NAME.raw links to.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from urllib.parse import urlsplit

from baker.errors import ImageError, UsageError
from baker.model import Arch, Injection

MAX_CONFIG_SIZE = 64 * 1024

_KEYS = {
    "Transfer": {
        "MinVersion", "MaxVersion", "ProtectVersion", "Verify", "ChangeLog", "AppStream", "Features",
        "RequisiteFeatures",
    },
    "Source": {"Type", "Path", "PathRelativeTo", "MatchPattern"},
    "Target": {
        "Type", "Path", "PathRelativeTo", "MatchPattern", "MatchPartitionType", "PartitionUUID", "PartitionFlags",
        "PartitionNoAuto", "PartitionGrowFileSystem", "ReadOnly", "Mode", "TriesLeft", "TriesDone", "InstancesMax",
        "RemoveTemporary", "CurrentSymlink",
    },
}  # fmt: skip

_VERSION = re.compile(r"[A-Za-z0-9.,_+-]+")  # systemd's version_is_valid
_PLAIN_PATTERN = re.compile(r"(?:[A-Za-z0-9._+-]|@v|%a|%%)+")


@dataclass(frozen=True)
class TransferConfig:
    """The parts of a transfer config that matter here. Patterns are as written, with `@v` and `%a`."""

    source_type: str
    source_path: str
    source_patterns: tuple[str, ...]
    target_type: str
    target_path: str
    target_patterns: tuple[str, ...]
    current_symlink: str
    relative_to: tuple[str, str]
    """PathRelativeTo= of source and target; `root` where it is not said."""
    verify: bool = True
    """Whether the source's SHA256SUMS must have a good signature."""


def parse_config(data: bytes) -> TransferConfig:
    """Parse a transfer config.

    Raises ImageError with a fragment to put behind "it" ("has an unknown section") for what is no text of at most
    MAX_CONFIG_SIZE bytes, breaks the syntax, or has sections or keys that systemd does not know.
    """
    values = _read_ini(data)

    def last(section: str, key: str, default: str = "") -> str:
        return values.get((section, key), [default])[-1] or default

    def patterns(section: str) -> tuple[str, ...]:
        words: list[str] = []
        for value in values.get((section, "MatchPattern"), []):
            words = words + value.split() if value else []
        return tuple(words)

    source_patterns = patterns("Source")
    return TransferConfig(
        last("Source", "Type"), last("Source", "Path"), source_patterns,
        last("Target", "Type", "regular-file"), last("Target", "Path"), patterns("Target") or source_patterns,
        last("Target", "CurrentSymlink"),
        (last("Source", "PathRelativeTo", "root"), last("Target", "PathRelativeTo", "root")),
        last("Transfer", "Verify", "yes").lower() not in ("0", "no", "n", "false", "f", "off"),
    )  # fmt: skip


def _read_ini(data: bytes) -> dict[tuple[str, str], list[str]]:
    if len(data) > MAX_CONFIG_SIZE:
        raise ImageError(f"is larger than {MAX_CONFIG_SIZE} bytes")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ImageError("is not UTF-8 text") from error
    if re.search(r"[\x00-\x08\x0b-\x1f\x7f]", text.replace("\r\n", "\n")):
        raise ImageError("has control characters in it")
    values: dict[tuple[str, str], list[str]] = {}
    section = ""
    for line in re.sub(r"\\\r?\n", " ", text).splitlines():
        line = line.strip()
        if not line or line[0] in "#;":
            continue
        if heading := re.fullmatch(r"\[(.*)\]", line):
            section = heading[1]
            if section not in _KEYS:
                raise ImageError(f"has the unknown section {section!r}")
            continue
        key, equals, value = (part.strip() for part in line.partition("="))
        if not equals or not section:
            raise ImageError(f"has the line {line!r}, which is no setting")
        if key not in _KEYS[section]:
            raise ImageError(f"has the unknown key {key!r} in [{section}]")
        values.setdefault((section, key), []).append(value)
    return values


def transfer_config(name: str, pattern: str, url: str, *, verify: bool = False) -> str:
    """The transfer config by which systemd-sysupdate keeps the sysext `name` up to date, laid out as bakes do.

    `pattern` is a file name with `@v` for the version and `%a` for the architecture, `url` the folder of the files.
    With `verify` the SHA256SUMS there must be signed by a key in import-pubring.gpg of the machine; without, https is
    all that vouches for it. UsageError for a config that would be refused by `lint_config`.
    """
    text = (
        f"[Transfer]\nVerify={str(verify).lower()}\n\n"
        f"[Source]\nType=url-file\nPath={url.rstrip('/')}/\nMatchPattern={pattern}\n\n"
        f"[Target]\nInstancesMax=3\nType=regular-file\nPath=/opt/extensions/{name}\n"
        f"MatchPattern={pattern}\nCurrentSymlink=/etc/extensions/{name}.raw\n"
    )
    if problem := lint_config(text.encode(), name):
        raise UsageError(f"There can be no update config for {name}: {problem}.")
    return text


def lint_config(data: bytes, name: str) -> str:
    """Why a transfer config that nothing vouches for must not be baked for the sysext `name`; "" where it may.

    It may only fetch over HTTPS (what is signed, over HTTP too), write below /opt/extensions/NAME, and link
    /etc/extensions/NAME.raw. The answer is a fragment with its subject: "it writes to /usr".
    """
    try:
        config = parse_config(data)
    except ImageError as error:
        return f"it {error.message}"
    return _lint_source(config) or _lint_target(config, name)


def _lint_source(config: TransferConfig) -> str:
    if config.source_type != "url-file":
        return f"its source is of the type {config.source_type or 'nothing'!r} instead of 'url-file'"
    if not _is_plain_address(config.source_path, ("https", "http") if config.verify else ("https",)):
        return f"its source {config.source_path!r} is not a plain https address"
    if not config.source_patterns:
        return "it has no MatchPattern"
    for pattern in (*config.source_patterns, *config.target_patterns):
        if not _PLAIN_PATTERN.fullmatch(pattern) or pattern.count("@v") != 1:
            return f"its MatchPattern {pattern!r} is not a plain file name with one @v"
    return ""


def _is_plain_address(address: str, schemes: tuple[str, ...]) -> bool:
    try:
        url = urlsplit(address)
    except ValueError:  # a bracket that is not closed, and the like
        return False
    plain = url.username is None and not url.query and not url.fragment
    return url.scheme in schemes and bool(url.hostname) and plain


def _lint_target(config: TransferConfig, name: str) -> str:
    if config.target_type != "regular-file":
        return f"its target is of the type {config.target_type!r} instead of 'regular-file'"
    if config.relative_to != ("root", "root"):
        return "its paths are relative to something else than the root"
    home = f"/opt/extensions/{name}"
    path = _simplify(config.target_path)
    if not f"{path}/".startswith(f"{home}/") or ".." in path.split("/"):
        return f"it writes to {config.target_path!r} instead of {home}"
    # A relative link would be made below the target's folder, where systemd-sysext does not look.
    if _simplify(config.current_symlink) != f"/etc/extensions/{name}.raw":
        return f"it links {config.current_symlink!r} instead of /etc/extensions/{name}.raw"
    return ""


def _simplify(path: str) -> str:
    """Repeated and trailing slashes and `.` mean nothing, as in systemd's path_simplify."""
    parts = [part for part in path.split("/") if part not in ("", ".")]
    return ("/" if path.startswith("/") else "") + "/".join(parts)


def matches(pattern: str, file_name: str, arch: Arch) -> str | None:
    """The version that systemd-sysupdate reads out of `file_name` by a MatchPattern; None where it does not match.

    Of the specifiers only `%a` and `%%` are understood, of the fields only `@v`; other patterns match nothing.
    """
    if not _PLAIN_PATTERN.fullmatch(pattern) or pattern.count("@v") != 1:
        return None
    before, _, after = pattern.replace("%a", arch.value).replace("%%", "%").partition("@v")
    if not file_name.startswith(before):
        return None
    rest = file_name.removeprefix(before)
    # As systemd does: the version ends where the text behind it occurs for the first time, and that must be the end.
    version, found, behind = rest.partition(after) if after else (rest, "", "")
    return version if found == after and not behind and _VERSION.fullmatch(version) else None


def update_injections(names: Iterable[str]) -> list[Injection]:
    """What makes systemd-sysupdate run regularly for the components `names`, as entries for ROOT.

    Three things are needed beside the transfer configs: the timer enabled, a drop-in that runs one update per
    component (the service alone only looks into /etc/sysupdate.d), and a harmless transfer there, without which the
    service's own command fails for want of any. An update that was fetched becomes active at the next boot.
    """
    return [
        Injection("/etc/sysupdate.d/noop.conf", content=noop_config().encode()),
        Injection(
            "/etc/systemd/system/systemd-sysupdate.service.d/10-flatcar-bake.conf", content=drop_in(names).encode()
        ),
        Injection(
            "/etc/systemd/system/timers.target.wants/systemd-sysupdate.timer", mode=0o777,
            symlink="/usr/lib/systemd/system/systemd-sysupdate.timer",
        ),
    ]  # fmt: skip


def noop_config() -> str:
    """A valid transfer that never finds anything: it looks for files of its own folder under a name nobody uses."""
    return (
        "# systemd-sysupdate fails when this folder holds no transfer. This one matches no file.\n"
        "[Source]\nType=regular-file\nPath=/etc/sysupdate.d\nMatchPattern=flatcar-bake-none-@v.none\n\n"
        "[Target]\nType=regular-file\nPath=/etc/sysupdate.d\nMatchPattern=flatcar-bake-none-@v.none\n"
    )


def drop_in(names: Iterable[str]) -> str:
    """The drop-in for systemd-sysupdate.service. One component that fails does not keep the others from updating."""
    commands = "".join(
        f"ExecStartPre=-/usr/lib/systemd/systemd-sysupdate --component={name} update\n" for name in sorted(names)
    )
    return (
        "# Downloads new versions of the baked system extensions. They become active at the next boot,\n"
        "# or with `systemd-sysext refresh`.\n"
        "[Service]\n"
        # ExecStartPre= counts as starting, for which there are 90 seconds by default.
        "TimeoutStartSec=infinity\n"
        f"{commands}"
    )
