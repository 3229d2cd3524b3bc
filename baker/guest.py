"""The check inside a booted guest: what is put in, and how its report is read back from the serial console.

One bash script collects the facts. It needs nothing in the image but bash, coreutils and systemd. The whole script
travels inside one systemd unit (`StandardInputData=`), so every way into the guest carries a single file.
The report goes out as numbered frames with a checksum each, sent several times: a kernel message in the middle
of a line costs one frame of one round, no more.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import quote

from baker.errors import BootError, UsageError
from baker.model import Injection

UNIT = "flatcar-bake-check.service"
CREDENTIAL_UNIT = "flatcar-bake-check-credential.service"
COMMAND_SECONDS = 120
"""How long each command may run in the guest."""
_OUTPUT_LIMIT = 64 * 1024
_COMMANDS_LIMIT = 8 * 1024
_MAX_FRAMES = 20_000

# Sent in front of it: mark, settle_seconds, command_seconds, output_limit, commands=().
# All of it is a function, because bash reads the script from stdin and a command must not eat the rest of it.
_SCRIPT = r"""
set -u
export LC_ALL=C HOME=/root PATH="$PATH:/opt/bin" COLUMNS=1000 SYSTEMD_COLORS=0 SYSTEMD_PAGER=
case "$(uname -m)" in aarch64) port=/dev/ttyAMA0 ;; *) port=/dev/ttyS0 ;; esac

record() { printf '%s:%s;' "$1" "$(base64 -w 0)"; }

collect() {
  printf '%s' "${FLATCAR_BAKE_WAY:-}" | record way
  cut -d ' ' -f 1 /proc/uptime | record uptime
  cat /etc/os-release | record os-release
  uname -r | record kernel
  record state <state
  systemctl list-jobs --no-legend 2>&1 | head -n 20 | record jobs
  systemctl list-units --failed --plain --no-legend 2>&1 | record failed
  systemctl list-units --failed --plain --no-legend 2>/dev/null | while read -r unit _; do
    printf '%s: ' "$unit"
    journalctl -b -u "$unit" -o cat --no-pager 2>/dev/null | tail -n 3 | tr '\n' ' '
    echo
  done | record failures
  systemd-sysext status --json=short 2>/dev/null | record sysext-json
  systemd-sysext status --no-pager 2>&1 | record sysext-text
  systemd-sysext list --no-pager --no-legend 2>&1 | record sysext-list
  journalctl -b -u systemd-sysext.service -o cat --no-pager 2>/dev/null | tail -n 10 | record sysext-log
  grep -F ' - overlay ' /proc/self/mountinfo | record overlays
  local number=0 command status
  for command in "${commands[@]}"; do
    timeout "$command_seconds" bash -c "$command" >stdout 2>stderr
    status=$?
    printf '%s' "$status" | record "run.$number.status"
    head -c "$output_limit" stdout | record "run.$number.stdout"
    head -c "$output_limit" stderr | record "run.$number.stderr"
    number=$((number + 1))
  done
}

frames() {
  local number=0 sum line lines
  mapfile -t lines < <(fold -w 2048 report; echo)
  for line in "${lines[@]}"; do
    number=$((number + 1))
    sum=$(printf '%s' "$number/${#lines[@]} $line" | sha256sum)
    printf '\n%s %s/%s %s %s\n' "$mark" "$number" "${#lines[@]}" "${sum:0:8}" "$line"
  done
}

check() {
  # Several ways into the guest may have worked; the first one does the check.
  mkdir /run/flatcar-bake-check 2>/dev/null || return 0
  cd /run/flatcar-bake-check || return 1
  printf '\n%s start\n' "$mark" >"$port"
  timeout "$settle_seconds" systemctl is-system-running --wait >state 2>/dev/null
  collect >report
  frames >frames
  # A getty that takes the port hangs up whoever writes to it, so every round opens it anew.
  local round
  for round in 1 2 3 4 5 6 7 8 9 10; do
    cat frames >"$port"
    sleep 3
  done
}

check </dev/null
exit
"""


@dataclass(frozen=True)
class CommandResult:
    """What one command did in the guest. Output is cut at 64 KiB; status 124 means it ran out of time."""

    command: str
    status: int
    stdout: str
    stderr: str


@dataclass(frozen=True)
class GuestReport:
    """What the guest says of itself once systemd has finished starting."""

    way: str
    """How the check came in: `ignition`, `credential` or `edited copy`."""
    version: str
    """VERSION_ID of os-release."""
    kernel: str
    boot_seconds: float
    """The guest's uptime when systemd had finished starting."""
    state: str
    """What `systemctl is-system-running` says; empty when it did not finish in time."""
    jobs: str
    sysexts: tuple[str, ...]
    """Names that `systemd-sysext status` gives for a hierarchy on which an overlay is really mounted."""
    sysexts_found: str
    """The text of `systemd-sysext list`: what is there, merged or not."""
    sysext_log: str
    failed_units: tuple[str, ...]
    failures: str
    """One line per failed unit with the last it logged."""
    commands: tuple[CommandResult, ...]


def check_script(mark: str, commands: Sequence[str], settle_seconds: int) -> bytes:
    """The bash script for a guest.

    `mark` starts every line it sends; `settle_seconds` bounds the wait for systemd to finish starting.
    Raises UsageError when the commands are too long to be passed in.
    """
    if sum(len(command.encode()) for command in commands) > _COMMANDS_LIMIT:
        raise UsageError(
            f"The commands to run are longer than {_COMMANDS_LIMIT // 1024} KiB together.",
            "Bake a script into the image and run that.",
        )
    head = (
        f"mark={shlex.quote(mark)} settle_seconds={settle_seconds} command_seconds={COMMAND_SECONDS}\n"
        f"output_limit={_OUTPUT_LIMIT}\ncommands=({' '.join(map(shlex.quote, commands))})\n"
    )
    return (head + _SCRIPT).encode("utf-8", "surrogateescape")


def unit(script: bytes, way: str) -> str:
    """A unit that runs `script`; the report repeats `way`.

    Type=exec: the check waits until systemd has started everything, so it must not be waited for itself.
    """
    return (
        "[Unit]\nDescription=flatcar-bake: check of this boot\n\n"
        f'[Service]\nType=exec\nEnvironment="FLATCAR_BAKE_WAY={way}"\n'
        f"ExecStart=/usr/bin/bash -s\nStandardInput=data\nStandardInputData={base64.b64encode(script).decode()}\n"
    )


def fw_cfg(script: bytes) -> dict[str, bytes]:
    """QEMU firmware configuration entries: an Ignition config, under Flatcar's key and under upstream's.

    Ignition reads it on the first boot of an image whose platform is qemu (spec 3.0.0, provider `qemu`).
    `overwrite` keeps a copy of the unit that is there already from failing the boot.
    """
    folder = "/etc/systemd/system"
    config = {
        "ignition": {"version": "3.0.0"},
        "storage": {
            "files": [
                {
                    "path": f"{folder}/{UNIT}",
                    "mode": 0o644,
                    "overwrite": True,
                    "contents": {"source": "data:," + quote(unit(script, "ignition"))},
                }
            ],
            "links": [
                {
                    "path": f"{folder}/multi-user.target.wants/{UNIT}",
                    "target": f"{folder}/{UNIT}",
                    "overwrite": True,
                }
            ],
        },
    }
    data = json.dumps(config).encode()
    return {"opt/org.flatcar-linux/config": data, "opt/com.coreos/config": data}


def smbios_strings(script: bytes) -> list[str]:
    """SMBIOS type 11 strings: a unit as a systemd credential, for systemd 256 and newer on any platform and boot.

    See systemd.system-credentials(7), `systemd.extra-unit.*` and `systemd.unit-dropin.*`.
    """
    credentials = {
        f"systemd.extra-unit.{CREDENTIAL_UNIT}": unit(script, "credential"),
        "systemd.unit-dropin.multi-user.target": f"[Unit]\nWants={CREDENTIAL_UNIT}\n",
    }
    return [
        f"io.systemd.credential.binary:{name}={base64.b64encode(text.encode()).decode()}"
        for name, text in credentials.items()
    ]


def root_injections(script: bytes) -> list[Injection]:
    """The unit as files for the ROOT partition of a throw-away copy."""
    folder = "/etc/systemd/system"
    return [
        Injection(f"{folder}/{UNIT}", content=unit(script, "edited copy").encode(), replace=True),
        Injection(f"{folder}/multi-user.target.wants/{UNIT}", symlink=f"{folder}/{UNIT}", replace=True),
    ]


class FrameCollector:
    """Puts the report together from console lines, however often and in whatever order frames arrive."""

    def __init__(self, mark: str) -> None:
        self._pattern = re.compile(
            re.escape(mark) + r" ([0-9]{1,5})/([0-9]{1,5}) ([0-9a-f]{8}) ?([A-Za-z0-9+/=:;.-]*)(?:\s|$)"
        )
        self._total = 0
        self._chunks: dict[int, str] = {}

    def feed(self, line: str) -> bool:
        """Take one console line; True when it holds a frame that is whole."""
        found = self._pattern.search(line)
        if found is None:
            return False
        number, total, chunk = int(found[1]), int(found[2]), found[4]
        digest = hashlib.sha256(f"{number}/{total} {chunk}".encode()).hexdigest()
        if digest[:8] != found[3] or not 1 <= number <= total <= _MAX_FRAMES:
            return False
        if total != self._total:
            self._total, self._chunks = total, {}
        self._chunks[number] = chunk
        return True

    @property
    def complete(self) -> bool:
        return 0 < self._total == len(self._chunks)

    def records(self) -> dict[str, bytes]:
        """The report's parts by name; BootError when it is not what the check sends."""
        text = "".join(self._chunks[number] for number in sorted(self._chunks))
        records = {}
        for item in filter(None, text.split(";")):
            name, colon, content = item.partition(":")
            try:
                records[name] = base64.b64decode(content, validate=True)
            except binascii.Error:
                colon = ""
            if not colon:
                raise BootError("The guest's report is garbled.", "Boot the image once more.")
        return records


def parse_report(records: Mapping[str, bytes], commands: Sequence[str]) -> GuestReport:
    """Make sense of the records of a guest that was told to run `commands`."""
    text = {name: content.decode("utf-8", "replace").strip() for name, content in records.items()}
    os_release = dict(line.partition("=")[::2] for line in text.get("os-release", "").splitlines())
    mounted = _mount_points(text.get("overlays", ""))
    merged = parse_status(text.get("sysext-json", ""), text.get("sysext-text", ""))
    return GuestReport(
        way=text.get("way", ""),
        version=os_release.get("VERSION_ID", "").strip("\"'"),
        kernel=text.get("kernel", ""),
        boot_seconds=_seconds(text.get("uptime", "")),
        state=text.get("state", ""),
        jobs=text.get("jobs", ""),
        sysexts=tuple(sorted({name for where, names in merged.items() if where in mounted for name in names})),
        sysexts_found=text.get("sysext-list", ""),
        sysext_log=text.get("sysext-log", ""),
        failed_units=tuple(line.split()[0] for line in text.get("failed", "").splitlines() if line.strip()),
        failures=text.get("failures", ""),
        commands=tuple(
            CommandResult(
                command,
                _status(text.get(f"run.{number}.status", "")),
                records.get(f"run.{number}.stdout", b"").decode("utf-8", "replace"),
                records.get(f"run.{number}.stderr", b"").decode("utf-8", "replace"),
            )
            for number, command in enumerate(commands)
        ),
    )


def _seconds(text: str) -> float:
    return float(text) if re.fullmatch(r"[0-9]+(\.[0-9]+)?", text) else 0.0


def _status(text: str) -> int:
    return int(text) if re.fullmatch(r"[0-9]{1,3}", text) else -1


def _mount_points(mountinfo: str) -> set[str]:
    """The mount points in lines of /proc/self/mountinfo; field five, see proc(5)."""
    return {fields[4] for fields in map(str.split, mountinfo.splitlines()) if len(fields) > 4}


def parse_status(json_text: str, table: str) -> dict[str, tuple[str, ...]]:
    """The merged extensions of each hierarchy, from `systemd-sysext status` as JSON, else as its table."""
    try:
        rows = json.loads(json_text)
        return {row["hierarchy"]: _names(row["extensions"]) for row in rows}
    except (ValueError, TypeError, KeyError, RecursionError):
        return _parse_table(table)


def _names(value: object) -> tuple[str, ...]:
    """systemd gives a list of names, or the word `none`."""
    names = value if isinstance(value, list) else [value]
    return tuple(str(name) for name in names if name not in (None, "none"))


def _parse_table(table: str) -> dict[str, tuple[str, ...]]:
    """A hierarchy's further extensions stand on lines of their own, below the first one."""
    lines = table.splitlines()
    header = next((line for line in lines if re.match(r"HIERARCHY +EXTENSIONS +SINCE", line)), None)
    if header is None:
        return {}
    first, second = header.index("EXTENSIONS"), header.index("SINCE")
    merged: dict[str, tuple[str, ...]] = {}
    where = ""
    for line in lines[lines.index(header) + 1 :]:
        where = line[:first].strip() or where
        merged[where] = merged.get(where, ()) + _names(line[first:second].strip() or None)
    return merged
