"""The vendor catalogue: complete, strictly read, and extensible by adding a file."""

from pathlib import Path

import pytest

from baker.errors import EnvironmentFault, UsageError
from baker.model import Arch
from baker.resources import catalogue
from baker.vendor import find_vendors
from baker.vendor_files import load_vendor, load_vendors

MINIMAL = """
summary = "A test"
arches = ["x86-64"]
layout = "base"
image = "flatcar_production_test_image.img"
[disk]
format = "qcow2"
"""


def test_the_shipped_vendors_are_read_and_named_after_their_files() -> None:
    vendors = load_vendors()
    assert {"generic", "qemu_uefi"} <= set(vendors)
    assert vendors["qemu_uefi"].outputs == (
        "flatcar_production_qemu_uefi_image.img",
        "flatcar_production_qemu_uefi.sh",
        "flatcar_production_qemu_uefi.README",
        "flatcar_production_qemu_uefi_efi_code.qcow2",
        "flatcar_production_qemu_uefi_efi_vars.qcow2",
    )


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
