"""Merging parts that were built elsewhere: folders of CI jobs are taken in, published parts are listed."""

from __future__ import annotations

from pathlib import Path

from baker.errors import UsageError, VerificationError
from baker.publish import give_name
from baker.releasing.index import Contents
from baker.releasing.layout import SUMS, Layout, record_name, write_file
from baker.releasing.previous import read_previous
from baker.services import Services
from baker.sign import Signer
from baker.sparse import clone, file_sha256
from baker.verify import parse_sha256sums
from baker.work import WorkFolder


def merge_part(
    part: str, layout: Layout, contents: Contents, services: Services, signer: Signer | None, unsigned: bool
) -> None:
    """Merge one part: the images in a folder, at whatever depth, or what a URL's SHA256SUMS lists.

    Raises UsageError for a part that is not there, VerificationError for an image that is not what its SHA256SUMS
    says, or that the release has with other content.
    """
    if "://" in part:
        files = read_previous(part, services, signer, unsigned)
        if not files:
            raise UsageError(f"There is no {SUMS} at {part}.", "A part is a folder, or the address of one.")
        for file, sha256 in layout.of_images(files).items():
            contents.add(file, sha256, part)
        return
    folder = Path(part)
    if not folder.is_dir():
        raise UsageError(f"There is no folder {folder}.", "A part is a folder with images, or a URL.")
    for path in sorted(folder.rglob("*.raw")):
        image = layout.parse(path.name)
        hidden = any(name.startswith(".") for name in path.relative_to(folder).parts)
        if image is not None and not hidden and not path.is_symlink() and path.is_file():
            _take(path, layout.folder(image.component) / path.name)


def _take(path: Path, target: Path) -> None:
    digest = file_sha256(path)
    sums = path.with_name(SUMS)
    listed = parse_sha256sums(sums.read_bytes()).get(path.name) if sums.is_file() else None
    if listed not in (None, digest):
        raise VerificationError(f"{path} is not what {sums} says.", "It was damaged on its way; fetch the part again.")
    if target.exists():
        if not target.samefile(path) and file_sha256(target) != digest:
            raise VerificationError(
                f"{path} is not what the release has under that name already.",
                "One version must always be the same bytes. Remove one of the two.",
            )
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    record = path.with_name(record_name(path.name))
    if record.is_file() and not record.is_symlink():
        write_file(target.with_name(record.name), record.read_bytes())
    with WorkFolder(target.parent) as work:
        clone(path, work / target.name)
        (work / target.name).chmod(0o644)
        give_name(work / target.name, target, True)
