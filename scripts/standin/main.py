"""make-release: a Flatcar release server in a folder, made of Debian packages, for tests and demonstrations.

Its disk images have a Flatcar release's exact partition table (labels, type GUIDs, attribute bits, fixed GUIDs, both
generations), its filesystems and its way to boot: GRUB reads the OEM's grub.cfg, /usr is a read-only btrfs found by
partition GUID, /etc is an overlay over /usr/share/flatcar/etc, Ignition runs on the first boot, the OEM's sysext is
linked, systemd-sysext merges. All files are signed by a throw-away key with a signing subkey.

What differs from Flatcar:
- The programs are Debian's: kernel 6.1 (cloud flavour), systemd 252 (no systemd-sysupdate), Ignition 2.14.
- The initrd is a busybox script (files/init) and a file of its own on the ESP: Flatcar's kernel has it inside. In the
  PXE cpio it follows Flatcar's content as a second archive.
- Ignition runs the stages fetch and files in the real root: no disks, filesystems or kernel arguments, no network.
  Its platform is qemu for the OEM qemu and metal for all others.
- No dm-verity (its area in USR-A is zeros), no Secure Boot, no update engine, no networking, no SSH, no D-Bus.
- The disk GUID is not drawn anew and ROOT is not grown at the first boot; the ESP is not mounted at /boot.
- flatcar.autologin gives a root shell on ttyS0 only; without it there is a login prompt that leads nowhere.
- Debian's Ignition labels files for SELinux; the guest's setfiles does nothing.
- An OEM sysext or an enabled official one that is missing stops the boot; Flatcar tries to download it first.
- USR-A's btrfs and OEM's are not compressed. The docker and containerd inside are scripts that only tell their name.
- GRUB looks for OEM by its filesystem's label, has one menu entry, and does not heed the attribute bits of USR-A.
- Of the vendors only qemu_uefi is published as an image. OEM sysexts hold nothing but a text, and there are no
  official extra sysexts such as flatcar-python.raw.
- arm64 has the disk's shape, but no system: its kernel, GRUB and programs are placeholders.
- The feed holds only the releases in the folder. The bakery's wasmtime is the program of a PyPI wheel.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from baker.console import Console, PlainConsole
from baker.errors import BakeError, UsageError
from baker.model import Arch, Channel
from baker.run import find
from standin import cache, layout, mirror, packages, release, signing
from standin.http_server import FolderServer

DEFAULT_VERSION = {"old": "4459.2.4", "new": "4593.2.5"}
_STAMP = ".made-by"


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line, parsed; argparse ends the program on a wrong one."""
    summary, _, details = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        prog="make-release", description=summary, epilog=details, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", metavar="DIR", type=Path, help="the folder to fill; releases already there stay")
    parser.add_argument("--layout", choices=layout.GENERATIONS, default="old", help="the partition table's generation")
    parser.add_argument("--arch", type=Arch, choices=tuple(Arch), default=Arch.X86_64)
    parser.add_argument("--version", help="default: 4459.2.4 for the old layout, 4593.2.5 for the new one")
    parser.add_argument("--channel", choices=[str(channel) for channel in Channel], default="stable")
    parser.add_argument(
        "--serve", metavar="PORT", type=int, help="then serve DIR on 127.0.0.1 until interrupted; 0: any"
    )
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Run make-release; returns its exit status."""
    options = arguments(argv)
    if argv is None:
        _become_root()
    console = PlainConsole()
    try:
        spec = release.Spec(
            options.version or DEFAULT_VERSION[options.layout], options.channel, options.arch, options.layout
        )
        root = options.folder.resolve()
        fingerprint = make(root, spec, console)
        if options.serve is not None:
            serve(root, options.serve, fingerprint)
    except BakeError as error:
        print(f"make-release: {error.message}", file=sys.stderr)
        if error.hint:
            print(f"  {error.hint}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    return 0


def _become_root() -> None:
    """For an ordinary user: start again as the root of a user namespace, so that files in images belong to root."""
    if os.geteuid() == 0:
        return
    unshare = find("unshare")
    if unshare is not None:
        os.execv(unshare, ["unshare", "--map-root-user", sys.executable, *sys.argv])


def make(root: Path, spec: release.Spec, console: Console) -> str:
    """Put a release into the release server at `root`, if it is not there yet; returns the key's fingerprint.

    Safe to run again after an interruption and side by side: a release appears by one rename, everything else is
    written anew from what is there.
    """
    try:
        if len(mirror.numbers(spec.version)) != 3:
            raise ValueError
    except ValueError:
        raise UsageError(f"{spec.version} is not a version such as 4459.2.4.") from None
    packages.check_host()
    root.mkdir(parents=True, exist_ok=True)
    with cache.locked(root / ".lock"), signing.signer(root) as signer:
        target = mirror.release_folder(root, spec)
        made_by = f"{cache.scripts_digest()} {signer.fingerprint} {spec.generation}\n"
        stamp = target / _STAMP
        if not stamp.exists() or stamp.read_text() != made_by:
            _make_folder(root, spec, signer, made_by, console)
        with console.step("Bakery and feed"):
            mirror.fill_bakery(root, spec.arch)
            mirror.link_current(root, spec)
            mirror.add_to_feed(root, spec)
            mirror.write_env(root, signer.fingerprint)
        return signer.fingerprint


def _make_folder(root: Path, spec: release.Spec, signer: signing.Signer, made_by: str, console: Console) -> None:
    for stale in root.glob(".work-*"):
        shutil.rmtree(stale, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=".work-", dir=root) as folder:
        work, out = Path(folder) / "work", Path(folder) / "out"
        work.mkdir()
        out.mkdir()
        release.build(spec, out, work, console)
        with console.step("Signatures"):
            signing.sign_folder(out, signer)
        (out / _STAMP).write_text(made_by)
        target = mirror.release_folder(root, spec)
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.exists():
            target.rename(Path(folder) / "replaced")
        out.rename(target)


def serve(root: Path, port: int, fingerprint: str) -> None:
    """Serve the folder over HTTP until interrupted, with `env` pointing at the server as long as that lasts."""
    try:
        server = FolderServer(root, port)
    except (OSError, OverflowError) as error:
        raise UsageError(f"Port {port} of 127.0.0.1 cannot be used: {error}.", "--serve 0 takes a free one.") from None
    with server:
        mirror.write_env(root, fingerprint, server.url)
        print(server.url, flush=True)
        try:
            server.wait()
        finally:
            mirror.write_env(root, fingerprint)
