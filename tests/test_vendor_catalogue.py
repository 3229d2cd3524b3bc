"""The vendor catalogue: complete, strictly read, and extensible by adding a file."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from cli import flatcar_bake

from baker.errors import EnvironmentFault, UsageError
from baker.model import Arch
from baker.resources import catalogue
from baker.vendor import Vendor, find_vendors
from baker.vendor_files import load_vendor, load_vendors
from baker.vendor_text import format_words, vendor_details

MINIMAL = """
summary = "A test"
arches = ["x86-64"]
layout = "base"
image = "flatcar_production_test_image.img"
[disk]
format = "qcow2"
"""


# Name: architectures, layout, format and what is around it, OEM id, OEM sysext. Both architectures are "x a".
# From flatcar/scripts build_library/vm_image_util.sh, oem/*/grub.cfg and the KEYWORDS of coreos-base/oem-*.
CATALOGUE = """
akamai                 x a  vm-new   raw in gz                    akamai             akamai
ami                    x a  vm-new   raw                          ec2                ami
ami_vmdk               x a  vm-new   vmdk streamOptimized         ec2                ami
azure                  x a  azure    vpc fixed                    azure              azure
cloudsigma             x    base     qcow2                        cloudsigma         cloudsigma
cloudstack             x    base     raw                          cloudstack         cloudstack
cloudstack_vhd         x    base     vpc dynamic                  cloudstack         cloudstack
digitalocean           x    base     raw in gz                    digitalocean       digitalocean
exoscale               x    base     qcow2                        exoscale           exoscale
gce                    x    vm       raw in gce                   gce                gce
generic                x a  base     raw                          -                  -
hetzner                x a  vm       raw in bz2                   hetzner            hetzner
hyperv                 x    base     vpc dynamic in zip           hyperv             hyperv
hyperv_vhdx            x    base     vhdx dynamic in zip          hyperv             hyperv
kubevirt               x a  vm       qcow2                        kubevirt           kubevirt
nutanix                x    vm       qcow2                        nutanix            nutanix
openstack              x a  vm       qcow2                        openstack          openstack
openstack_mini         x a  base     qcow2                        openstack          openstack
oraclecloud            x a  vm       qcow2                        oraclecloud        oraclecloud
packet                 x a  base     raw                          packet             packet
parallels              x    vm       parallels in tgz             -                  -
proxmoxve              x a  vm       qcow2                        proxmoxve          proxmoxve
qemu                   x    vm       qcow2                        qemu               qemu
qemu_uefi              x a  vm       qcow2                        qemu               qemu
qemu_uefi_secure       x    vm       qcow2                        qemu               qemu
rackspace              x    base     raw                          rackspace          -
rackspace_onmetal      x    base     qcow2                        rackspace-onmetal  -
rackspace_vhd          x    base     vpc dynamic                  rackspace          -
scaleway               x a  vm       qcow2                        scaleway           scaleway
stackit                x a  vm       qcow2                        openstack          stackit
vagrant                x    vagrant  vmdk ide in box              vagrant            vagrant
vagrant_parallels      x    vagrant  parallels in box             vagrant            vagrant
vagrant_virtualbox     x    vagrant  vmdk ide in box              vagrant            vagrant
vagrant_vmware_fusion  x    vagrant  vmdk lsilogic in box         vagrant            vagrant
virtualbox             x    vm       vmdk ide                     virtualbox         virtualbox
vmware                 x    vm       vmdk lsilogic                vmware             vmware
vmware_insecure        x    vm       vmdk lsilogic in zip         vagrant            -
vmware_ova             x    vm       vmdk streamOptimized in ova  vmware             vmware
vmware_raw             x    base     raw                          vmware             vmware
xen                    x    base     raw                          -                  -
"""
NO_DISKS = {"pxe", "iso"}


def row(vendor: Vendor) -> list[str]:
    """A vendor as a line of CATALOGUE, split at its columns."""
    oem = vendor.oem
    arches = " ".join({Arch.X86_64: "x", Arch.ARM64: "a"}[arch] for arch in vendor.arches)
    return [
        vendor.name, arches, vendor.layout, format_words(vendor), (oem and oem.id) or "-", (oem and oem.sysext) or "-",
    ]  # fmt: skip


def test_the_catalogue_is_flatcars() -> None:
    expected = [re.split(r"  +", line) for line in CATALOGUE.strip().splitlines()]
    assert [row(vendor) for name, vendor in sorted(load_vendors().items()) if name not in NO_DISKS] == expected


@pytest.mark.parametrize(
    ("name", "files"),
    [
        ("qemu", ["qemu_image.img", "qemu.sh", "qemu.README"]),
        ("qemu_uefi", [
            "qemu_uefi_image.img", "qemu_uefi.sh", "qemu_uefi.README",
            "qemu_uefi_efi_code.qcow2", "qemu_uefi_efi_vars.qcow2",
        ]),
        ("gce", ["gce.tar.gz"]),
        ("akamai", ["akamai_image.bin.gz"]),
        ("hyperv_vhdx", ["hyperv_vhdx_image.vhdx.zip"]),
        ("vmware_ova", ["vmware_ova.ova"]),
        ("parallels", ["parallels.tgz"]),
        ("vmware_insecure", ["vmware_insecure.zip", "vmware_insecure.README"]),
        ("packet", ["packet_image.bin", "packet.ipxe"]),
        ("xen", ["xen_image.bin", "xen_pygrub.cfg", "xen_pvgrub.cfg", "xen.README"]),
    ],
)  # fmt: skip
def test_outputs_are_all_files_under_their_final_names(name: str, files: list[str]) -> None:
    assert load_vendors()[name].outputs == tuple(f"flatcar_production_{file}" for file in files)


def test_the_documentation_has_a_section_for_every_vendor() -> None:
    text = (Path(__file__).parents[1] / "docs/vendors.md").read_text()
    assert sorted(re.findall(r"^## (\w+)$", text, re.MULTILINE)) == sorted(load_vendors().keys() - NO_DISKS)


def test_no_two_vendors_write_the_same_file() -> None:
    names = [name for vendor in load_vendors().values() for name in vendor.outputs]
    assert len(names) == len(set(names))


def test_published_images_are_of_kinds_that_can_be_read() -> None:
    kinds = r"flatcar_production_[a-z_]+_image\.(bin|img|qcow2)(\.gz|\.bz2)?|flatcar_production_image\.bin\.bz2"
    for vendor in load_vendors().values():
        assert all(re.fullmatch(kinds, name) for name in vendor.published), vendor.name


def test_a_folder_of_ones_own_adds_a_vendor(tmp_path: Path) -> None:
    (tmp_path / "mycloud.toml").write_text(MINIMAL)
    assert load_vendors([tmp_path])["mycloud"].image == "flatcar_production_test_image.img"


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("summary", "sumary", "lacks the key 'summary'"),
        ('layout = "base"', 'layout = "bse"', "no disk layout 'bse'"),
        ('format = "qcow2"', 'format = "qcow"', "no disk format 'qcow'"),
        ('format = "qcow2"', 'format = "qcow2"\ncompres = true', "unknown key 'compres'"),
        ('"flatcar_production_test_image.img"', '"../x"', "plain file name"),
        ('["x86-64"]', '["x86"]', "no architecture 'x86'"),
        ('["x86-64"]', "[]", "arches is empty"),
        ('"A test"', "3", "summary must be a str"),
        ('"A test"', '"A test', "not valid TOML"),
        ("[disk]", 'compress = "xz"\n[disk]', "no compression 'xz'"),
        ("[disk]", '[disk]\nsize = "ten"', "size must be a size such as"),
        ("[disk]", '[disk]\nalign = "0 GiB"', "align must be a size such as"),
        ("[disk]", '[oem]\nid = "a b$"\n[disk]', "id may have no quotes"),
        ("[disk]", '[oem]\nid = "x"\nsince = "stable"\n[disk]', "since must be a release"),
        ("[disk]", '[oem]\nid = "x"\n[oem.x86]\n[disk]', "unknown key 'x86'"),
        ("[disk]", '[oem]\nid = "x"\n[[oem.file]]\npath = "../x"\ncontent = ""\n[disk]', "plain names separated"),
        ("[disk]", '[bundle]\nformat = "rar"\nname = "x"\n[disk]', "no bundle format 'rar'"),
        (
            "[disk]",
            'compress = "gz"\n[bundle]\nformat = "box"\nname = "x"\n[disk]',
            "a bundle has its own",
        ),
        ("[disk]", '[[rule]]\nname = "x"\nmeasure = "disk"\nsays = "s"\nsource = "d"\n[disk]', "needs at_least"),
        (
            "[disk]",
            '[[rule]]\nname = "x"\nmeasure = "weight"\nsays = "s"\nsource = "d"\n[disk]',
            "no measure",
        ),
        (
            "[disk]",
            '[[file]]\nname = "flatcar_production_test_image.img"\nfirmware = "code"\n[disk]',
            "two files",
        ),
    ],
)
def test_a_mistake_in_a_vendor_file_is_named(tmp_path: Path, old: str, new: str, sentence: str) -> None:
    path = tmp_path / "test.toml"
    path.write_text(MINIMAL.replace(old, new))
    with pytest.raises(UsageError, match=sentence):
        load_vendor(path)


def test_a_template_must_exist_and_stay_in_its_folder(tmp_path: Path) -> None:
    path = tmp_path / "test.toml"
    for template in ("none.sh", "../../etc/passwd"):
        path.write_text(MINIMAL + f'[[file]]\nname = "x.sh"\ntemplate = "{template}"\n')
        with pytest.raises(UsageError, match="template"):
            load_vendor(path)


def test_sizes_are_read_in_binary_and_decimal_units(tmp_path: Path) -> None:
    path = tmp_path / "test.toml"
    path.write_text(MINIMAL + 'size = "10 GiB"\nalign = "3 MB"\n')
    assert (load_vendor(path).disk_size, load_vendor(path).disk_align) == (10 << 30, 3_000_000)


def test_an_unknown_vendor_is_met_with_the_nearest_names() -> None:
    with pytest.raises(UsageError) as caught:
        find_vendors(["qemu_uefy"], Arch.X86_64, load_vendors())
    assert "qemu_uefi" in str(caught.value.hint)


def test_part_of_a_name_is_not_a_vendor() -> None:
    for word in ("qemu_", "gen", ".", ""):
        with pytest.raises(UsageError):
            find_vendors([word], Arch.X86_64, load_vendors())


def test_a_vendor_of_another_architecture_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mycloud.toml").write_text(MINIMAL)
    with pytest.raises(UsageError, match="does not exist for arm64"):
        find_vendors(["mycloud"], Arch.ARM64, load_vendors([tmp_path]))


def test_an_empty_catalogue_is_an_error() -> None:
    with pytest.raises(EnvironmentFault):
        catalogue("no-such-catalogue")


def test_the_command_lists_all_vendors_with_what_they_write() -> None:
    rows = {item["name"]: item for item in json.loads(flatcar_bake("vendors", "--json").stdout)}
    assert rows.keys() == load_vendors().keys()
    assert rows["stackit"]["oem"] == "openstack"
    assert rows["gce"]["outputs"] == ["flatcar_production_gce.tar.gz"]
    table = flatcar_bake("vendors").stdout
    for item in rows.values():
        assert all(word in table for word in (item["name"], item["layout"], *item["outputs"]))


def test_the_command_shows_one_vendor_in_full(tmp_path: Path) -> None:
    (tmp_path / "mycloud.toml").write_text(MINIMAL)
    text = flatcar_bake("vendors", "mycloud", "--vendors", tmp_path).stdout
    assert "flatcar_production_test_image.img" in text and "nothing of the vendor's own" in text
    done = flatcar_bake("vendors", "mycloudd", "--vendors", tmp_path)
    assert done.returncode == 2
    assert "Did you mean mycloud" in done.stderr


def test_every_vendor_can_be_shown() -> None:
    for vendor in load_vendors().values():
        text = vendor_details(vendor)
        assert all(name in text for name in (*vendor.outputs, *vendor.published, vendor.retired))
