"""Every text that is generated for a platform: its exact form, that it parses, and that no value breaks out of it."""

from __future__ import annotations

import json
import os
import subprocess
import tomllib
from pathlib import Path

import pytest
from disks import tool

from baker.bundles import BundleFacts
from baker.diskless.texts import LiveFacts, kernel_arguments
from baker.errors import BakeError, ImageError, UsageError
from baker.model import Arch
from baker.templates import render
from baker.vendor import ExtraFile, Vendor
from baker.vendor_files import load_vendors

SNAPSHOTS = Path(__file__).parent / "snapshots"
VENDORS = load_vendors()
HOSTILE = "a';touch owned;'\"$(touch owned)`touch owned`\n]]></x>|#\\{{ 7 * 7 }}"
XML = (".ovf", ".xml", ".pvs")


def texts(vendor: Vendor) -> list[ExtraFile]:
    """What is rendered for a vendor, beside its image and in its bundle."""
    return [item for item in (*vendor.files, *(vendor.bundle.members if vendor.bundle else ())) if item.template]


TEXTS = [
    pytest.param(vendor, arch, extra, id=f"{name}-{arch}-{extra.name.replace('/', '_')}")
    for name, vendor in sorted(VENDORS.items())
    for arch in vendor.arches
    for extra in texts(vendor)
]


def facts(
    folder: Path, vendor: Vendor, arch: Arch, sysexts: tuple[str, ...] = ("docker", "tools")
) -> BundleFacts | LiveFacts:
    if vendor.diskless is not None:
        args = kernel_arguments(vendor.diskless, arch, "", ["quiet"])
        initrds = (vendor.diskless.cpio, vendor.diskless.oem)
        return LiveFacts(vendor, vendor.diskless, arch, "4230.2.3", sysexts, initrds, args, 1 << 30, "oem")
    disk = folder / "disk"
    disk.write_bytes(bytes(3 << 20))
    return BundleFacts(vendor, disk, 9116319744, arch, "4230.2.3", sysexts, "a plan's id", 1_700_000_000)


def check_parses(text: str, name: str, folder: Path) -> None:
    """Let the tools of its kind read a text."""
    file = folder / Path(name).name
    file.write_text(text)
    if name.endswith(".sh"):
        tool("sh", "-n", file)
        tool("shellcheck", file)
    elif name.endswith(XML):
        tool("xmllint", "--noout", "--nonet", file)
    elif name.endswith(".json"):
        json.loads(text)
    elif name.endswith("_grub.cfg"):
        tool("grub-script-check", file)
    elif name.endswith("_pxelinux.cfg"):
        known = {"DEFAULT", "LABEL", "MENU", "KERNEL", "INITRD", "APPEND", "#"}
        assert {line.split()[0] for line in text.splitlines()} == known
    elif name.endswith(".ipxe"):
        assert text.startswith("#!ipxe\n")
    elif name.endswith(".cfg"):
        # Assignments of numbers, strings and lists of strings, which are the same in TOML.
        tomllib.loads(text)
    elif name.endswith(".vmx"):
        assert all(line.count('"') == 2 and line.endswith('"') and " = " in line for line in text.splitlines())


@pytest.mark.parametrize(("vendor", "arch", "extra"), TEXTS)
def test_a_text_is_as_it_was_when_it_was_last_looked_at(
    vendor: Vendor, arch: Arch, extra: ExtraFile, tmp_path: Path
) -> None:
    text = facts(tmp_path, vendor, arch).text(extra)
    snapshot = SNAPSHOTS / f"{vendor.name}.{arch}" / extra.name
    if os.environ.get("UPDATE_SNAPSHOTS"):
        snapshot.parent.mkdir(parents=True, exist_ok=True)
        snapshot.write_text(text)
    assert snapshot.is_file(), f"look at the text and store it: UPDATE_SNAPSHOTS=1 pytest {Path(__file__).name}"
    assert text == snapshot.read_text()
    check_parses(text, extra.name, tmp_path)


def test_no_snapshot_is_left_of_texts_that_are_gone() -> None:
    wanted = {
        f"{name}.{arch}/{extra.name}"
        for name, vendor in VENDORS.items() for arch in vendor.arches for extra in texts(vendor)
    }  # fmt: skip
    assert {str(path.relative_to(SNAPSHOTS)) for path in SNAPSHOTS.rglob("*") if path.is_file()} == wanted


@pytest.mark.parametrize(("vendor", "arch", "extra"), TEXTS)
def test_no_value_breaks_out_of_a_text(vendor: Vendor, arch: Arch, extra: ExtraFile, tmp_path: Path) -> None:
    plain = facts(tmp_path, vendor, arch).text(extra)
    odd = facts(tmp_path, vendor, arch, ("tools", HOSTILE)).text(extra)
    # A value adds no line, and what comes of it parses as before.
    assert odd.count("\n") == plain.count("\n")
    check_parses(odd, extra.name, tmp_path)


def template(folder: Path, name: str, text: str) -> Path:
    (folder / name).write_text(text)
    return folder


def test_a_shell_sees_a_value_as_one_word(tmp_path: Path) -> None:
    folder = template(tmp_path, "x.sh.j2", "# {{ value | line }}\nprintf '%s\\n' {{ value }} {{ number }}\n")
    text = render(folder, "x.sh.j2", {"value": HOSTILE, "number": 7})
    said = subprocess.run(["sh"], input=text, text=True, capture_output=True, cwd=tmp_path, check=True).stdout
    assert said.splitlines() == [HOSTILE.replace("\n", "\\n"), "7"]
    assert not (tmp_path / "owned").exists()


def test_json_and_xml_give_a_value_back(tmp_path: Path) -> None:
    template(tmp_path, "x.json.j2", '{"value": {{ value }}, "number": {{ number }}}')
    folder = template(tmp_path, "x.ovf.j2", '<x a="{{ value }}" b="{{ number }}">{{ value }}</x>')
    assert json.loads(render(folder, "x.json.j2", {"value": HOSTILE, "number": 7})) == {"value": HOSTILE, "number": 7}
    file = tmp_path / "x.ovf"
    file.write_text(render(folder, "x.ovf.j2", {"value": HOSTILE, "number": 7}))
    for place in ("/x/@a", "/x"):
        said = tool("xmllint", "--xpath", f"string({place})", file).decode().rstrip("\n")
        assert said == HOSTILE.replace("\n", "\\n")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("one\n{{ missing }}\n", "x.txt.j2:2: 'missing' is undefined"),
        ("one\n{% if %}\n", "x.txt.j2:2: "),
        ('{% include "other.j2" %}', "There is no template other.j2"),
        ('{% include "../other.j2" %}', "There is no template ../other.j2"),
        ("{{ 1 // 0 }}", "x.txt.j2:1: "),
        ("{{ value.__class__.__mro__ }}", "x.txt.j2:1: "),
    ],
)
def test_a_wrong_template_is_named_with_its_line(text: str, reason: str, tmp_path: Path) -> None:
    folder = template(tmp_path, "x.txt.j2", text)
    with pytest.raises(UsageError) as raised:
        render(folder, "x.txt.j2", {"value": "a"})
    assert reason in raised.value.message


def test_a_vendor_without_its_template_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"There is no template gone\.j2"):
        render(tmp_path, "gone.j2", {})


def test_equal_plans_give_equal_identities_and_others_do_not(tmp_path: Path) -> None:
    vendor = VENDORS["parallels"]
    extra = next(item for item in texts(vendor) if item.name.endswith("config.pvs"))

    def text(seed: str) -> str:
        given = facts(tmp_path, vendor, Arch.X86_64)
        return BundleFacts(**{**vars(given), "seed": seed}).text(extra)

    assert text("one") == text("one")
    assert text("one") != text("two")


def test_a_disk_that_parallels_cannot_describe_is_refused(tmp_path: Path) -> None:
    vendor = VENDORS["parallels"]
    extra = next(item for item in texts(vendor) if item.name.endswith("DiskDescriptor.xml"))
    odd = BundleFacts(**{**vars(facts(tmp_path, vendor, Arch.X86_64)), "virtual_size": 9116319744 + 512})
    with pytest.raises(ImageError, match="multiple of 256 KiB"):
        odd.text(extra)


def test_an_ovf_for_another_format_than_vmdk_is_refused(tmp_path: Path) -> None:
    extra = ExtraFile("x.ovf", "vmware.ovf.j2")
    with pytest.raises(BakeError, match="only describe VMDK"):
        facts(tmp_path, VENDORS["parallels"], Arch.X86_64).text(extra)
