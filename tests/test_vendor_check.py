"""scripts/check-vendors finds what Flatcar's own table has and the catalogue has not, without executing the file."""

import subprocess
import sys
from pathlib import Path

import pytest

from baker.vendor_files import load_vendors

SCRIPT = Path(__file__).parents[1] / "scripts/check-vendors"

# A table of the form of build_library/vm_image_util.sh, with settings of vendors that the catalogue has.
TABLE = """
VALID_IMG_TYPES=(
    akamai
    ami_vmdk  # a comment
    azure
    exoscale
    gce
    iso
    parallels
    stackit
    vmware_ova
    xen
)
IMG_DEFAULT_DISK_FORMAT=raw
IMG_DEFAULT_DISK_LAYOUT=base
IMG_DEFAULT_CONF_FORMAT=
IMG_DEFAULT_OEM_SYSEXT=
IMG_DEFAULT_MEM=2048
IMG_akamai_DISK_LAYOUT=vm
IMG_akamai_OEM_SYSEXT=akamai
IMG_ami_vmdk_DISK_FORMAT=vmdk_stream
IMG_ami_vmdk_DISK_LAYOUT=vm
IMG_ami_vmdk_SYSEXT=oem-ami
IMG_azure_DISK_FORMAT=vhd_fixed
IMG_azure_DISK_LAYOUT=azure
IMG_azure_OEM_SYSEXT="azure"
IMG_exoscale_DISK_FORMAT=exoscale
IMG_exoscale_OEM_SYSEXT=oem-exoscale
IMG_gce_DISK_LAYOUT=vm
IMG_gce_CONF_FORMAT=gce
IMG_gce_OEM_SYSEXT=oem-gce
IMG_iso_DISK_FORMAT=iso
IMG_parallels_BUNDLE_FORMAT=pvm_tgz
IMG_parallels_DISK_FORMAT=hdd
IMG_parallels_DISK_LAYOUT=vm
IMG_parallels_CONF_FORMAT=pvs
IMG_stackit_DISK_FORMAT=qcow2
IMG_stackit_DISK_LAYOUT=vm
IMG_stackit_OEM_SYSEXT=oem-stackit
IMG_vmware_ova_DISK_FORMAT=vmdk_stream
IMG_vmware_ova_DISK_LAYOUT=vm
IMG_vmware_ova_CONF_FORMAT=ovf_vmware
IMG_vmware_ova_BUNDLE_FORMAT=ova
IMG_vmware_ova_OEM_SYSEXT=oem-vmware
IMG_xen_CONF_FORMAT=xl
touch executed
"""
LISTED = {"akamai", "ami_vmdk", "azure", "exoscale", "gce", "parallels", "stackit", "vmware_ova", "xen"}


def check(table: str, folder: Path) -> tuple[int, list[str]]:
    """Run check-vendors on a table; status and lines, without those about vendors that are not in the table."""
    (folder / "vm_image_util.sh").write_text(table)
    argv = [sys.executable, SCRIPT, "vm_image_util.sh"]
    done = subprocess.run(argv, cwd=folder, capture_output=True, text=True)
    assert not (folder / "executed").exists()
    assert "Traceback" not in done.stderr
    return done.returncode, [line for line in done.stdout.splitlines() if "we have it" not in line]


def test_equal_settings_are_no_difference(tmp_path: Path) -> None:
    assert check(TABLE, tmp_path) == (1, [])  # 1, because the table lacks most vendors


def test_a_vendor_that_the_table_lacks_is_named_unless_flatcar_gave_it_up(tmp_path: Path) -> None:
    (tmp_path / "table").write_text(TABLE)
    done = subprocess.run([sys.executable, SCRIPT, tmp_path / "table"], capture_output=True, text=True)
    named = {line.split(":")[0] for line in done.stdout.splitlines()}
    ours = {vendor.name for vendor in load_vendors().values() if not vendor.retired} - {"iso"}  # in the table, too
    assert named == ours - LISTED - {"generic", "qemu", "qemu_uefi_secure"}


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ("    xen\n", "    xen\n    outscale\n", "outscale: Flatcar has it, we do not (DISK_FORMAT=raw, "),
        ("_DISK_FORMAT=vhd_fixed", "_DISK_FORMAT=vhd", "azure: the disk format is vpc force_size=on subformat=dyn"),
        ("IMG_stackit_DISK_LAYOUT=vm\n", "", "stackit: the layout is base with Flatcar, vm here"),
        ("=oem-stackit", "=oem-openstack", "stackit: the OEM sysext is openstack with Flatcar, stackit here"),
        ("BUNDLE_FORMAT=ova\n", "BUNDLE_FORMAT=\n", "vmware_ova: the bundle is none with Flatcar, ova here"),
        ("_CONF_FORMAT=xl", "_CONF_FORMAT=vmx", "xen: the configuration is .vmx with Flatcar, none here"),
        ("FORMAT=exoscale", "FORMAT=qcow2", "exoscale: the image's suffix is img with Flatcar, qcow2 here"),
        ("FORMAT=exoscale", "FORMAT=qed", "exoscale: the disk format is qed (unknown to check-vendors) with Flatcar"),
    ],
)  # fmt: skip
def test_each_kind_of_difference_is_found(tmp_path: Path, old: str, new: str, line: str) -> None:
    assert old in TABLE
    status, lines = check(TABLE.replace(old, new), tmp_path)
    assert status == 1
    assert len(lines) == 1
    assert lines[0].startswith(line)


def test_grub_cfg_files_of_the_checkout_are_compared(tmp_path: Path) -> None:
    (tmp_path / "oem/stackit").mkdir(parents=True)
    (tmp_path / "oem/stackit/grub.cfg").write_text('set oem_id="stackit"\nset linux_append="quiet"\n')
    assert check(TABLE, tmp_path)[1] == [
        "stackit: the OEM id is stackit with Flatcar, openstack here",
        "stackit: linux_append is quiet with Flatcar, none here",
    ]


@pytest.mark.parametrize("content", [b"", b"VALID_IMG_TYPES=(", b"\xff\xfe"])
def test_another_file_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "other").write_bytes(content)
    done = subprocess.run([sys.executable, SCRIPT, tmp_path / "other"], capture_output=True, text=True)
    assert done.returncode == 2
    assert "other" in done.stderr and "Traceback" not in done.stderr
