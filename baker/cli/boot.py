"""The boot command."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from baker.cli import options
from baker.model import Arch


class FirmwareChoice(StrEnum):
    UEFI = "uefi"
    BIOS = "bios"
    BOTH = "both"


class Accelerator(StrEnum):
    AUTO = "auto"
    KVM = "kvm"
    TCG = "tcg"


_EPILOG = """Examples:

\b
  flatcar-bake boot flatcar_production_qemu_uefi_image.img --expect-sysext wasmtime
  flatcar-bake boot image.bin --firmware both --run 'wasmtime --version' --junit boot.xml
"""


def boot(
    image: Annotated[
        Path, typer.Argument(metavar="IMAGE", help="A raw, qcow2, vmdk, vhd or vhdx disk image; it is only read.")
    ],
    expect_sysext: Annotated[
        list[str] | None,
        typer.Option("--expect-sysext", metavar="NAME", help="This sysext must be merged; may be repeated."),
    ] = None,
    command: Annotated[
        list[str] | None,
        typer.Option(
            "--run", metavar="CMD", help="Run this in the guest with bash; it must end with status 0; may be repeated."
        ),
    ] = None,
    allow_failed_units: Annotated[
        bool, typer.Option("--allow-failed-units", help="Failed systemd units are no failure of the boot.")
    ] = False,
    firmware: Annotated[
        FirmwareChoice,
        typer.Option(
            "--firmware", envvar="FLATCAR_BAKE_FIRMWARE", help="How the machine starts; arm64 has UEFI only."
        ),
    ] = FirmwareChoice.UEFI,
    arch: Annotated[
        Arch | None,
        typer.Option("--arch", "-a", help="Architecture of the image.  [default: told by its boot loader]"),
    ] = None,
    timeout: Annotated[
        float,
        typer.Option(
            "--timeout", envvar="FLATCAR_BAKE_BOOT_TIMEOUT", min=1, help="Seconds for each boot and its checks."
        ),
    ] = 300,
    memory: Annotated[
        int, typer.Option("--memory", envvar="FLATCAR_BAKE_BOOT_MEMORY", min=256, help="Memory of the machine in MiB.")
    ] = 2048,
    network: Annotated[
        bool, typer.Option("--network", help="Let the guest reach the network through this machine.")
    ] = False,
    accel: Annotated[
        Accelerator,
        typer.Option("--accel", envvar="FLATCAR_BAKE_ACCEL", help="KVM, or QEMU's emulation, which runs everywhere."),
    ] = Accelerator.AUTO,
    junit: Annotated[Path | None, typer.Option("--junit", metavar="FILE", help="Write a JUnit XML report.")] = None,
    console_file: Annotated[
        Path | None, typer.Option("--console", metavar="FILE", help="Keep what the serial console prints.")
    ] = None,
    json: options.JsonOption = False,
    progress: options.ProgressOption = options.ProgressMode.AUTO,
    quiet: options.QuietOption = False,
    debug: options.DebugOption = False,
) -> None:
    """Boot a baked image in QEMU and check that extensions merge.

    Reports merged sysexts and failed units, and ends with status 7 when an expectation does not hold.
    """
    from json import dumps

    from baker.boot import BootRequest, boot_image, require_success
    from baker.boot_report import as_json, render, write_junit
    from baker.console import make_console
    from baker.qemu import Firmware

    for file in filter(None, (junit, console_file)):
        _check_writable(file)
    choices = tuple(Firmware) if firmware == FirmwareChoice.BOTH else (Firmware(firmware.value),)
    request = BootRequest(
        image=image, firmware=choices, arch=arch, expect_sysexts=tuple(expect_sysext or ()),
        commands=tuple(command or ()), allow_failed_units=allow_failed_units, timeout=timeout, memory=memory,
        accelerator=accel.value, network=network, console_file=console_file,
    )  # fmt: skip
    console = make_console(progress.value, quiet)
    try:
        reports = boot_image(request, console)
    finally:
        console.close()
    if junit is not None:
        write_junit(reports, junit)
    typer.echo(dumps(as_json(reports), indent=2) if json else "\n".join(map(render, reports)))
    require_success(reports)


def _check_writable(file: Path) -> None:
    """UsageError now rather than after minutes of booting."""
    from baker.errors import UsageError

    try:
        file.open("ab").close()
    except OSError as error:
        raise UsageError(f"Cannot write {file}: {error.strerror}.") from None


boot.__doc__ = f"{boot.__doc__}\n\n{_EPILOG}"
