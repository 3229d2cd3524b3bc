"""What was published before: the list of a previous release, and its files for a release that is to be complete."""

from __future__ import annotations

from pathlib import Path

from baker.errors import VerificationError
from baker.fetch import FileMissing
from baker.publish import give_name
from baker.release import join_url
from baker.releasing.layout import SUMS, Layout, write_file
from baker.services import Services
from baker.sign import SIGNATURE_SUFFIX, Signer
from baker.sparse import clone
from baker.verify import parse_sha256sums
from baker.work import WorkFolder

_LIST_LIMIT = 16 << 20
_SIGNATURE_LIMIT = 64 << 10


def read_previous(address: str, services: Services, signer: Signer | None, unsigned: bool) -> dict[str, str]:
    """File name → sha256 of a release that is published at a URL or in a folder; empty where there is none yet.

    What we sign we vouch for, so with a `signer` the list must have been signed by the same key, unless `unsigned`.
    Raises VerificationError when it was not, NetworkError when the server does not answer.
    """
    url = join_url(address, SUMS)
    try:
        data = services.fetcher.read(url, _LIST_LIMIT)
    except FileMissing:
        services.console.note(f"there is no {url}, so this is the first release")
        return {}
    if signer is not None and not unsigned:
        try:
            signature = services.fetcher.read(url + SIGNATURE_SUFFIX, _SIGNATURE_LIMIT)
        except FileMissing:
            raise VerificationError(
                f"The previous release is not signed: there is no {url}{SIGNATURE_SUFFIX}.",
                "If that is known and its files are to be trusted, add --unsigned-previous.",
            ) from None
        signer.check(data, signature, url)
    return parse_sha256sums(data)


def carry_over(address: str, files: dict[str, str], layout: Layout, services: Services) -> None:
    """Bring the images of a previous release, and their records, into the folder of this one, verified.

    Raises NetworkError and VerificationError for a file that is not there or not what the list says.
    """
    wanted = layout.of_images(files)
    for file in sorted(wanted, key=lambda name: (not name.endswith(".json"), name)):  # an image is there last
        image = layout.parse(file.removesuffix(".json").removesuffix(".raw") + ".raw")
        assert image is not None
        target = layout.folder(image.component) / file
        if not target.exists():
            stored = services.store.bakery(address, file, files[file])
            _copy(stored.path, target)


def _copy(source: Path, target: Path) -> None:
    if target.suffix == ".json":
        write_file(target, source.read_bytes())
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    with WorkFolder(target.parent) as work:
        clone(source, work / target.name)
        (work / target.name).chmod(0o644)
        give_name(work / target.name, target, True)
