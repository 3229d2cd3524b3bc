"""Boot an image in QEMU and say whether it came up as it should.

The image itself is never written to. The check gets into the guest from outside, by Ignition or a systemd
credential; where an image listens to neither, by an edited copy that is thrown away afterwards.
"""

from __future__ import annotations

import re
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

from baker import guest, qemu
from baker.boot_report import BootReport, Check
from baker.console import Console
from baker.disk import read_table
from baker.errors import BootError, EnvironmentFault, ImageError, UsageError
from baker.guest import CommandResult, GuestReport
from baker.model import Arch, Injection
from baker.offline import OfflineEditor
from baker.qemu import Firmware, FirmwareFiles, Machine
from baker.run import Bounds, run, spawn
from baker.serial import SerialReader, watch
from baker.sparse import clone
from baker.work import scratch


@dataclass(frozen=True)
class BootRequest:
    """What to boot and what to expect. `timeout` is seconds for each firmware, `memory` MiB."""

    image: Path
    firmware: tuple[Firmware, ...] = (Firmware.UEFI,)
    arch: Arch | None = None
    """None: told by the boot loader on the image's EFI system partition."""
    expect_sysexts: tuple[str, ...] = ()
    commands: tuple[str, ...] = ()
    allow_failed_units: bool = False
    timeout: float = 300
    memory: int = 2048
    accelerator: str = "auto"
    network: bool = False
    """Let the guest reach the outside through this machine."""
    console_file: Path | None = None
    """Gets the raw bytes of the serial console, one boot after the other."""


@dataclass(frozen=True)
class _Facts:
    """What decides how the check can get into an image's guest."""

    arch: Arch
    platform: str
    """The `oem_id` of the OEM partition's grub.cfg; "" is a generic image."""
    first_boot: bool
    own_config: bool
    """The OEM partition holds an Ignition config, which Ignition prefers to one from outside."""

    @property
    def hears_qemu(self) -> bool:
        """Ignition will run in the guest and take the config that QEMU offers."""
        return self.platform == "qemu" and self.first_boot and not self.own_config


@dataclass(frozen=True)
class _Disk:
    """A raw disk to boot, and what was changed in it compared with the image."""

    path: Path
    arch: Arch
    changes: tuple[str, ...] = ()


def boot_image(request: BootRequest, console: Console) -> list[BootReport]:
    """Boot an image once per firmware and report. What an image does wrong is in the reports, not raised.

    Raises UsageError for an unusable image file or request, EnvironmentFault for a missing tool, ImageError for an
    image without a partition table.
    """
    with scratch() as work:
        mark = f"@flatcar-bake-{secrets.token_hex(4)}@"
        # Half of the time for systemd leaves the other half for the report on a system that does not settle.
        script = guest.check_script(mark, request.commands, settle_seconds=max(10, int(request.timeout / 2)))
        disk = _prepare_disk(request, script, work, console)
        qemu.need_emulator(disk.arch)
        firmware = _usable_firmware(request.firmware, disk.arch, console)
        accelerator = qemu.choose_accelerator(disk.arch, request.accelerator)
        fw_cfg, smbios = _write_guest_files(script, work)
        reports = []
        with request.console_file.open("wb", buffering=0) if request.console_file else nullcontext() as copy:
            for item in firmware:
                uefi = _uefi_files(disk.arch, item, work)
                machine = Machine(disk.arch, accelerator, request.memory, uefi, request.network)
                argv = qemu.qemu_argv(machine, disk.path, fw_cfg, smbios)
                with console.step(f"Boot {request.image.name} ({item.upper()}, {accelerator.upper()})"):
                    outcome = _run_guest(argv, mark, request, copy, work / "qemu.log", console)
                reports.append(_report(request, disk, item, accelerator, outcome))
        return reports


def _usable_firmware(wanted: tuple[Firmware, ...], arch: Arch, console: Console) -> tuple[Firmware, ...]:
    if arch == Arch.X86_64 or Firmware.BIOS not in wanted:
        return wanted
    if Firmware.UEFI not in wanted:
        raise UsageError(f"{arch} machines have no BIOS.", "Use --firmware uefi.")
    console.note(f"{arch} machines have no BIOS; booting under UEFI only")
    return (Firmware.UEFI,)


def require_success(reports: list[BootReport]) -> None:
    """Raise BootError when an expectation of one of the reports does not hold."""
    problems = [f"{report.firmware}: {problem}" for report in reports for problem in report.problems]
    if problems:
        more = f" And {len(problems) - 1} more of {sum(len(report.checks) for report in reports)} checks failed."
        raise BootError(
            problems[0] + (more if len(problems) > 1 else ""),
            "--console FILE keeps all that the guest printed.",
        )


def _prepare_disk(request: BootRequest, script: bytes, work: Path, console: Console) -> _Disk:
    """The image itself where the check can come in from outside, else an edited copy of it; raw either way."""
    image, raw = request.image, work / "disk.raw"
    format = qemu.image_format(image)
    if format != "raw":
        with console.step(f"Convert {image.name} from {format} to a temporary raw image"):
            qemu.unpack(image, format, raw)
    source = image if format == "raw" else raw
    facts = _inspect(source, request.arch, work)
    if facts.hears_qemu:
        return _Disk(source, facts.arch)
    with console.step("Prepare a temporary copy of the image for the check"):
        if source == image:
            clone(image, raw)
        changes: list[str] = []
        try:
            _edit(raw, facts, script, work, changes)
        except (EnvironmentFault, ImageError) as error:
            console.warn(f"{error.message} The check may only get in by a systemd credential (systemd 256 or newer).")
        return _Disk(raw, facts.arch, tuple(changes))


def _inspect(raw: Path, arch: Arch | None, work: Path) -> _Facts:
    table = read_table(raw)
    esp = f"{raw}@@{table.get('EFI-SYSTEM').offset}"
    loaders = _vfat_names(esp, "EFI/BOOT")
    with OfflineEditor(raw, work, 0) as editor:
        grub = editor.read("OEM", "/grub.cfg") or b""
        own_config = editor.read("OEM", "/config.ign", limit=1) is not None
    ids = re.findall(rb'^\s*set\s+oem_id="?([\w.-]*)', grub, re.MULTILINE)
    return _Facts(
        arch=arch or (Arch.ARM64 if "bootaa64.efi" in loaders and "bootx64.efi" not in loaders else Arch.X86_64),
        platform=ids[-1].decode() if ids else "",
        first_boot="first_boot" in _vfat_names(esp, "flatcar"),
        own_config=own_config,
    )


def _vfat_names(filesystem: str, folder: str) -> set[str]:
    """The names in a folder of a FAT filesystem given as mtools' IMAGE@@OFFSET, in lower case; empty if unreadable.

    An unreadable boot partition is for the firmware to stumble over: that is what a boot is to show.
    """
    listing = run(
        ["mdir", "-b", "-i", filesystem, f"::/{folder}"],
        env={"MTOOLS_SKIP_CHECK": "1"},
        ok=range(256),
        bounds=Bounds(),
    )
    return {line.rstrip("/").rpartition("/")[2].lower() for line in listing.text.splitlines()}


def _edit(raw: Path, facts: _Facts, script: bytes, work: Path, changes: list[str]) -> None:
    """Put the check into a throw-away disk; adds to `changes` what was changed, in words.

    Only a first boot asks the platform for a config. Any platform but qemu would wait for a metadata service that
    is not there.
    """
    with OfflineEditor(raw, work, 0) as editor:
        editor.apply("ROOT", guest.root_injections(script))
        changes.append(f"{guest.UNIT} added to ROOT")
        if facts.first_boot and facts.platform != "qemu":
            grub = editor.read("OEM", "/grub.cfg") or b""
            content = grub.rstrip(b"\n") + b'\nset oem_id="qemu"\n'
            editor.apply("OEM", [Injection("/grub.cfg", content=content.lstrip(), replace=True)])
            changes.append(f"platform {facts.platform or 'none'} set to qemu")


def _write_guest_files(script: bytes, work: Path) -> tuple[dict[str, Path], list[Path]]:
    """Write what QEMU passes to the guest: files by firmware configuration key, and SMBIOS strings."""
    keys: dict[str, Path] = {}
    for number, (key, content) in enumerate(guest.fw_cfg(script).items()):
        keys[key] = work / f"fw_cfg-{number}"
        keys[key].write_bytes(content)
    strings = []
    for number, text in enumerate(guest.smbios_strings(script)):
        strings.append(work / f"smbios-{number}")
        strings[-1].write_text(text)
    return keys, strings


def _uefi_files(arch: Arch, firmware: Firmware, work: Path) -> FirmwareFiles | None:
    """The firmware with a fresh variable store; None for BIOS, which QEMU brings itself."""
    if firmware == Firmware.BIOS:
        return None
    files = qemu.firmware_files(arch)
    return replace(files, vars=Path(shutil.copyfile(files.vars, work / "variables.fd")))


@dataclass(frozen=True)
class _Outcome:
    """How a boot ended: with the guest's report or with a failure in words, never both."""

    seconds: float
    guest: GuestReport | None = None
    failure: str | None = None
    last_lines: tuple[str, ...] = ()


def _run_guest(
    argv: list[str], mark: str, request: BootRequest, copy: IO[bytes] | None, log: Path, console: Console
) -> _Outcome:
    """Start QEMU and follow the guest until its report is there or cannot come any more; QEMU is gone afterwards."""
    reader = SerialReader(mark)
    started = time.monotonic()

    def on_phase(phase: str) -> None:
        console.note(f"{phase} after {time.monotonic() - started:.1f} s")

    with log.open("wb") as stderr, spawn(argv, stderr=stderr) as process:
        assert process.stdout is not None
        running = watch(process.stdout, reader, request.timeout, copy, on_phase)
        if not running and process.wait() != 0:
            said = log.read_text(errors="replace").strip() or f"status {process.returncode}"
            raise EnvironmentFault(f"QEMU failed: {said}.", "--accel tcg and --memory change how it is started.")
    seconds = time.monotonic() - started
    if reader.frames.complete:
        return _Outcome(seconds, guest=guest.parse_report(reader.frames.records(), request.commands))
    failure = reader.failure or (
        f"The image did not come up within {request.timeout:.0f} s; it got as far as {reader.phase or 'nothing'}."
        if running
        else f"The guest restarted or powered off by itself; it got as far as {reader.phase or 'nothing'}."
    )
    return _Outcome(seconds, failure=failure, last_lines=tuple(reader.last_lines()))


def _report(request: BootRequest, disk: _Disk, firmware: Firmware, accelerator: str, outcome: _Outcome) -> BootReport:
    found = outcome.guest
    return BootReport(
        image=request.image.name,
        firmware=firmware.value,
        accelerator=accelerator,
        booted=found is not None,
        seconds=round(outcome.seconds, 1),
        boot_seconds=found.boot_seconds if found else 0.0,
        version=found.version if found else "",
        kernel=found.kernel if found else "",
        way=found.way if found else "",
        changes=disk.changes,
        sysexts=found.sysexts if found else (),
        failed_units=found.failed_units if found else (),
        commands=found.commands if found else (),
        checks=tuple(judge(request, found)) if found else (Check("boots", outcome.failure),),
        last_lines=outcome.last_lines,
    )


def judge(request: BootRequest, found: GuestReport) -> Iterator[Check]:
    """Every expectation of a guest that reported, and whether it holds."""
    settled = found.state in ("running", "degraded")
    waiting = "; ".join(line.strip() for line in found.jobs.splitlines()) or found.state or "unknown"
    yield Check("boots", None if settled else f"systemd did not finish starting; it waits for: {waiting}.")
    for name in request.expect_sysexts:
        yield Check(f"sysext {name} is merged", None if name in found.sysexts else _not_merged(name, found))
    if not request.allow_failed_units:
        failures = "; ".join(line.strip() for line in found.failures.splitlines()) or ", ".join(found.failed_units)
        yield Check("no unit failed", f"Units failed: {failures}" if found.failed_units else None)
    for result in found.commands:
        yield Check(f"command: {result.command}", _command_failure(result))


def _not_merged(name: str, found: GuestReport) -> str:
    known = any(line.split()[0] == name for line in found.sysexts_found.splitlines() if line.strip())
    why = (
        "systemd sees its image but did not take it: it may be for another OS version or architecture"
        if known
        else "systemd does not see an image of that name"
    )
    telling = [line for line in found.sysext_log.splitlines() if name in line or "ailed" in line]
    log = f" systemd-sysext says: {telling[-1]}" if telling else ""
    return f"The sysext {name} is not merged ({why}); merged are: {', '.join(found.sysexts) or 'none'}.{log}"


def _command_failure(result: CommandResult) -> str | None:
    if result.status == 0:
        return None
    if result.status == 124:
        return f"`{result.command}` did not end within {guest.COMMAND_SECONDS} s."
    said = (result.stderr.strip() or result.stdout.strip()).splitlines()
    return f"`{result.command}` ended with status {result.status}{': ' + said[-1] if said else '.'}"
