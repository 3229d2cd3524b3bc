"""The files of one release, named as Flatcar names them, in a folder."""

from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from baker.console import Console
from baker.model import Arch
from baker.run import run
from standin import grub, guest, image, layout, sysexts

PREFIX = "flatcar_production"
_OEM = "qemu"
# The OEM sysexts of the releases 4459 and 4593: all of the vendors' for x86-64, fewer for arm64.
_OEM_SYSEXTS = {
    Arch.X86_64: (
        "akamai", "ami", "azure", "digitalocean", "gce", "hetzner", "hyperv", "kubevirt", "nutanix", "openstack",
        "proxmoxve", "qemu", "scaleway", "stackit", "vmware",
    ),
    Arch.ARM64: (
        "akamai", "ami", "azure", "hetzner", "kubevirt", "openstack", "proxmoxve", "qemu", "scaleway", "stackit",
    ),
}  # fmt: skip
_FIRMWARE = {
    Arch.X86_64: ("/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/share/OVMF/OVMF_VARS_4M.fd"),
    Arch.ARM64: ("/usr/share/AAVMF/AAVMF_CODE.fd", "/usr/share/AAVMF/AAVMF_VARS.fd"),
}


@dataclass(frozen=True)
class Spec:
    """Which release to make; `generation` is the partition table's, `old` or `new`."""

    version: str
    channel: str
    arch: Arch
    generation: str


@dataclass(frozen=True)
class System:
    """What is inside the images of one release: /usr as a folder, a kernel, and where it boots an initrd."""

    usr: Path
    vmlinuz: Path
    initrd: Path | None


def build(spec: Spec, out: Path, work: Path, console: Console) -> None:
    """Fill the empty folder `out` with the release's files (unsigned); `work` is an empty folder on the same disk."""
    with console.step(f"/usr of {spec.version} for {spec.arch}"):
        system = _system(spec, work)
    for oem in _OEM_SYSEXTS[spec.arch]:
        sysexts.pack_vendor(out / f"oem-{oem}.raw", oem, spec.version)
    (out / "version.txt").write_text(_version_txt(spec.version))
    base = layout.base(spec.generation)
    vm = base.with_root(layout.VM_ROOT)
    with console.step("Filesystems"), ThreadPoolExecutor(2) as pool:
        squash = pool.submit(_pxe, system, out, work)
        filesystems = _filesystems(spec, system, base, work)
        vm_parts = filesystems | _vm_filesystems(spec, filesystems["ROOT"], vm, out, work)
        squash.result()
    generic, vendor = work / f"{PREFIX}_image.bin", out / f"{PREFIX}_{_OEM}_uefi_image.img"
    with console.step("Disk images"), ThreadPoolExecutor(2) as pool:
        published = pool.submit(_vendor_image, spec, vendor, vm, vm_parts, work)
        _disk(spec, generic, base, filesystems, work)
        # lbzip2 uses all cores by itself and is what Flatcar's own build uses.
        run(["lbzip2", "--compress", "--keep", generic])
        generic.with_suffix(".bin.bz2").rename(out / f"{generic.name}.bz2")
        published.result()
    for path, kind in zip(_FIRMWARE[spec.arch], ("code", "vars"), strict=True):
        target = out / f"{PREFIX}_{_OEM}_uefi_efi_{kind}.qcow2"
        run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", path, target])


def _system(spec: Spec, work: Path) -> System:
    usr = work / "usr"
    if spec.arch is Arch.X86_64:
        shared = guest.build()
        run(["cp", "-a", "--reflink=auto", shared.usr, usr])
        system = System(usr, shared.vmlinuz, shared.initrd)
    else:
        # Only the disk's shape counts on arm64: nothing here boots.
        vmlinuz = work / "vmlinuz"
        vmlinuz.write_bytes(b"no kernel for arm64 in the stand-in release\n" * 64)
        system = System(usr, vmlinuz, None)
    _brand(spec, usr)
    return system


def _brand(spec: Spec, usr: Path) -> None:
    """Write into /usr what says which release it is: os-release and the built-in sysexts."""
    (usr / "lib").mkdir(parents=True, exist_ok=True)
    (usr / "lib/os-release").write_text(_os_release(spec))
    images, links = usr / "share/flatcar/sysext", usr / "share/flatcar/etc/extensions"
    images.mkdir(parents=True)
    links.mkdir(parents=True)
    for program in ("docker", "containerd"):
        name = f"{program}-flatcar.raw"
        sysexts.pack_builtin(images / name, program, spec.version)
        (links / name).symlink_to(f"/usr/share/flatcar/sysext/{name}")


def _os_release(spec: Spec) -> str:
    return f"""NAME="Flatcar Container Linux stand-in"
ID=flatcar
ID_LIKE=coreos
VERSION={spec.version}
VERSION_ID={spec.version}
BUILD_ID=stand-in
SYSEXT_LEVEL=1.0
PRETTY_NAME="Stand-in for Flatcar Container Linux {spec.version}, made of Debian packages"
FLATCAR_BOARD="{spec.arch.board}"
"""


def _version_txt(version: str) -> str:
    build, branch, patch = version.split(".")
    return f"""FLATCAR_BUILD={build}
FLATCAR_BRANCH={branch}
FLATCAR_PATCH={patch}
FLATCAR_VERSION={version}
FLATCAR_VERSION_ID={version}
FLATCAR_BUILD_ID=""
FLATCAR_SDK_VERSION={build}.0.0
"""


def _pxe(system: System, out: Path, work: Path) -> None:
    """The kernels that are published on their own, and the PXE cpio: an empty etc/ and /usr as a squashfs.

    Flatcar's kernel carries its initrd inside. Here it follows in the same file as a second archive, which the kernel
    unpacks as well, while cpio(1) stops after the first and sees what it would see of Flatcar's.
    """
    for name in ("image", "pxe"):
        shutil.copyfile(system.vmlinuz, out / f"{PREFIX}_{name}.vmlinuz")
    tree = work / "pxe"
    (tree / "etc").mkdir(parents=True)
    sysexts.squash(system.usr, tree / "usr.squashfs")
    target = out / f"{PREFIX}_pxe_image.cpio.gz"
    guest.pack_cpio(tree, target)
    if system.initrd is not None:
        with target.open("ab") as file:
            file.write(system.initrd.read_bytes())


def _filesystems(spec: Spec, system: System, base: layout.Layout, work: Path) -> dict[str, Path]:
    """The filesystems of the generic image by partition label."""
    made = {label: work / f"{label}.fs" for label in ("EFI-SYSTEM", "USR-A", "OEM", "ROOT")}
    image.make_btrfs(made["USR-A"], "USR-A", layout.USR_FILESYSTEM_BYTES, system.usr)
    empty = work / "oem-generic"
    empty.mkdir()
    image.make_btrfs(made["OEM"], "OEM", base.get("OEM").size_bytes, empty, mixed=True)
    image.make_root(made["ROOT"], base.get("ROOT").size_bytes, work)
    grub.esp(made["EFI-SYSTEM"], base.get("EFI-SYSTEM").size_bytes, _esp_files(spec, system, work), work)
    return made


def _esp_files(spec: Spec, system: System, work: Path) -> dict[str, Path | bytes]:
    files: dict[str, Path | bytes] = {
        "flatcar/vmlinuz-a": system.vmlinuz,
        "flatcar/first_boot": b"",
        "flatcar/grub/grub.cfg": grub.menu(),
    }
    if system.initrd is None:
        return files | {"EFI/boot/bootaa64.efi": b"no GRUB for arm64 in the stand-in release\n"}
    program = work / "bootx64.efi"
    grub.efi_image(program)
    return files | {"flatcar/initrd-a": system.initrd, "EFI/boot/bootx64.efi": program}


def _vm_filesystems(spec: Spec, root: Path, vm: layout.Layout, out: Path, work: Path) -> dict[str, Path]:
    """What differs in the vendor's image: a filled OEM partition and a larger ROOT."""
    tree = work / "oem-vendor"
    (tree / "sysext").mkdir(parents=True)
    shutil.copyfile(out / f"oem-{_OEM}.raw", tree / f"sysext/oem-{_OEM}-{spec.version}.raw")
    (tree / f"sysext/active-oem-{_OEM}").touch()
    (tree / "oem-release").write_text(f'ID={_OEM}\nVERSION_ID={spec.version}\nNAME="QEMU of the stand-in release"\n')
    (tree / "grub.cfg").write_text(f'set oem_id="{_OEM}"\nset linux_append="flatcar.autologin"\n')
    oem, grown = work / "OEM-vendor.fs", work / "ROOT-vendor.fs"
    image.make_btrfs(oem, "OEM", vm.get("OEM").size_bytes, tree, mixed=True)
    image.grow_root(root, grown, vm.get("ROOT").size_bytes)
    return {"OEM": oem, "ROOT": grown}


def _disk(spec: Spec, target: Path, table: layout.Layout, filesystems: dict[str, Path], work: Path) -> None:
    image.assemble(target, table, filesystems)
    if spec.arch is Arch.X86_64:
        grub.install_bios(target, table, work)


def _vendor_image(spec: Spec, target: Path, vm: layout.Layout, filesystems: dict[str, Path], work: Path) -> None:
    """The published image of the vendor qemu_uefi, as it is and bz2-compressed."""
    raw = work / "vendor.bin"
    _disk(spec, raw, vm, filesystems, work)
    run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", "-c", "-o", "compat=0.10", raw, target])
    raw.unlink()
    run(["lbzip2", "--compress", "--keep", target])
