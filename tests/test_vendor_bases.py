"""What a vendor's image is made from, and what its platform demands: decided from what the release server has."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest
from mirrors import RELEASE, Recorder

from baker.bases import PlannedVendor, choose_source
from baker.errors import ImageError, UsageError
from baker.platform import check_platform, enforce, expected_size, final_size
from baker.services import Services, Settings
from baker.vendor import Vendor, numbers
from baker.vendor_files import load_vendors

GENERIC = "flatcar_production_image.bin.bz2"
GIB = 1 << 30


class Server:
    """A release server with certain files, and the choices made from it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.services = Services(Settings(mirror=str(folder), cache_dir=folder / "cache"), Recorder())

    def choose(
        self, name: str, *files: str, base: str = "auto", count: int = 1, version: str = "4593.2.5"
    ) -> PlannedVendor:
        release = dataclasses.replace(RELEASE, version=version)
        folder = self.folder / release.channel / release.board / version
        folder.mkdir(parents=True)
        for file in files:
            (folder / file).touch()
        return choose_source(load_vendors()[name], base, count, release, self.services)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    server = Server(tmp_path)
    with server.services:
        yield server


def test_one_vendor_takes_its_published_image(server: Server) -> None:
    chosen = server.choose("ami", "flatcar_production_ami_image.bin.bz2", "oem-ami.raw")
    assert (chosen.base, chosen.source) == ("published", "flatcar_production_ami_image.bin.bz2")


def test_another_format_is_made_of_the_published_raw_disk(server: Server) -> None:
    assert server.choose("vmware_ova", "flatcar_production_vmware_raw_image.bin.bz2").base == "published"


def test_several_vendors_share_the_generic_image(server: Server) -> None:
    chosen = server.choose("ami", "flatcar_production_ami_image.bin.bz2", "oem-ami.raw", count=2)
    assert (chosen.base, chosen.source) == ("generic", GENERIC)


def test_the_preferred_compression_comes_first(server: Server) -> None:
    names = [f"flatcar_production_digitalocean_image.bin.{suffix}" for suffix in ("bz2", "gz")]
    assert server.choose("digitalocean", *names, base="published").source == names[1]


def test_a_vendor_without_oem_content_needs_the_generic_image_only(server: Server) -> None:
    assert server.choose("xen").base == "generic"
    assert server.choose("parallels", version="4722.0.0").base == "generic"


def test_a_grub_cfg_is_enough_where_a_release_came_before_the_sysext(server: Server) -> None:
    old = server.choose("virtualbox", version="4593.2.5")
    assert old.base == "generic" and old.vendor.oem and not old.vendor.oem.sysext
    new = server.choose("virtualbox", "oem-virtualbox.raw", version="4722.0.0")
    assert new.vendor.oem and new.vendor.oem.sysext == "virtualbox"


def test_where_more_was_in_the_oem_the_published_image_is_needed(server: Server) -> None:
    chosen = server.choose("cloudstack_vhd", "flatcar_production_cloudstack_image.bin.bz2", count=3)
    assert chosen.base == "published" and "exists since 4722.0.0" in chosen.why


def test_a_release_with_nothing_for_a_vendor_says_since_when_there_is_something(server: Server) -> None:
    with pytest.raises(UsageError, match=r"no oem-vagrant.raw, which exists since 4722.0.0, and no published image"):
        server.choose("vagrant")


def test_a_missing_sysext_of_a_newer_release_is_an_error(server: Server) -> None:
    with pytest.raises(UsageError, match=r"has no oem-virtualbox.raw, and"):
        server.choose("virtualbox", version="4722.0.0")
    with pytest.raises(UsageError, match=r"cannot be made from the generic image"):
        server.choose("virtualbox", version="4723.0.0", base="generic")


def test_a_retired_name_works_where_its_release_has_what_it_takes(server: Server) -> None:
    assert server.choose("packet", "oem-packet.raw", base="generic").base == "generic"
    image = "flatcar_production_rackspace_image.bin.bz2"
    chosen = server.choose("rackspace_vhd", image, count=2, version="4459.2.0")
    assert (chosen.base, chosen.source) == ("published", image)


@pytest.mark.parametrize(
    ("name", "instead"),
    [
        ("packet", "generic"), ("rackspace", "openstack"), ("rackspace_onmetal", "generic"),
        ("rackspace_vhd", "openstack"),
        ("vagrant_virtualbox", "vagrant"), ("vagrant_vmware_fusion", "vmware"),
    ],
)  # fmt: skip
def test_a_retired_name_says_what_to_use_where_it_cannot_work(server: Server, name: str, instead: str) -> None:
    with pytest.raises(UsageError) as caught:
        server.choose(name, version="4722.0.0")
    assert f"`{instead}`" in str(caught.value.hint)


def test_every_retired_name_names_vendors_that_exist() -> None:
    vendors = load_vendors()
    retired = {name for name, vendor in vendors.items() if vendor.retired}
    assert retired == {
        "packet", "rackspace", "rackspace_onmetal", "rackspace_vhd", "vagrant_virtualbox", "vagrant_vmware_fusion",
        "vmware_insecure",
    }  # fmt: skip
    for name in retired:
        instead = vendors[name].retired.split("`")[1::2]
        assert instead and not retired & set(instead) and set(instead) <= vendors.keys()


def vendor(name: str, **changes: object) -> Vendor:
    return dataclasses.replace(load_vendors()[name], **changes)


def test_nightly_versions_can_be_compared() -> None:
    assert numbers("4593.2.5+nightly-20260101-2100") == (4593, 2, 5)


def test_virtual_sizes_follow_layout_and_platform() -> None:
    assert expected_size(vendor("akamai"), "4081.3.10") == 4756340736
    assert expected_size(vendor("akamai"), "4593.2.5") == 13212057600
    assert expected_size(vendor("exoscale"), "4593.2.5") == 10 * GIB
    assert expected_size(vendor("gce"), "4593.2.5") == 13 * GIB
    assert final_size(vendor("gce"), 13 * GIB) == 13 * GIB
    assert final_size(vendor("exoscale"), 11 * GIB) == 11 * GIB


@pytest.mark.parametrize("version", ["4081.3.10", "4593.2.5"])
def test_the_images_of_releases_meet_the_demands_of_their_platforms(version: str) -> None:
    disks = [item for item in load_vendors().values() if not item.diskless]
    found = {item.name: check_platform(item, expected_size(item, version)) for item in disks}
    broken = {name: [breach.rule.name for breach in breaches] for name, breaches in found.items() if breaches}
    assert broken == ({"akamai": ["unpacked-size"]} if version == "4593.2.5" else {})


@pytest.mark.parametrize(
    ("name", "changes", "size", "rule"),
    [
        ("azure", {}, 30 * GIB + 512, "whole-mib"),
        ("azure", {}, 2041 * GIB, "largest-vhd"),
        ("hyperv", {}, 2041 * GIB, "largest-vhd"),
        ("gce", {}, 13 * GIB + (1 << 20), "whole-gib"),
        ("exoscale", {}, 9 * GIB, "disk-size"),
        ("exoscale", {}, 94 * GIB, "disk-size"),
        ("exoscale", {"compress": "bz2"}, 10 * GIB, "compression"),
        ("digitalocean", {}, 94 * GIB, "unpacked-size"),
        ("digitalocean", {"compress": "zst"}, GIB, "compression"),
        ("akamai", {"compress": ""}, GIB, "compression"),
        ("hetzner", {}, 41 * GIB, "server-disk"),
        ("scaleway", {"compress": "gz"}, GIB, "compression"),
    ],
)
def test_a_broken_demand_is_named_with_its_source(name: str, changes: dict[str, str], size: int, rule: str) -> None:
    (breach,) = check_platform(vendor(name, **changes), size)
    assert breach.rule.name == rule
    assert breach.rule.source in str(breach) and str(breach).startswith(f"{name}: ")


def test_files_are_measured_when_they_are_there(tmp_path: Path) -> None:
    file = tmp_path / "image"
    with file.open("wb") as opened:
        opened.truncate(5_000_000_001)
    assert [breach.rule.name for breach in check_platform(vendor("akamai"), GIB, file)] == ["packed-size"]
    with file.open("wb") as opened:
        opened.truncate(GIB)
    assert [breach.rule.name for breach in check_platform(vendor("azure"), GIB, file)] == ["fixed-vhd"]
    with file.open("wb") as opened:
        opened.truncate(GIB + 512)
    assert check_platform(vendor("azure"), GIB, file) == []


def test_warnings_are_said_and_errors_end_the_vendor() -> None:
    console = Recorder()
    enforce(check_platform(vendor("akamai"), 7 * GIB), console)
    assert "7.00 GiB" in console.warnings[0]
    with pytest.raises(ImageError, match=r"Exoscale takes disks of 10 to 100 GB, and this is 9\.00 GiB"):
        enforce(check_platform(vendor("exoscale"), 9 * GIB), console)
