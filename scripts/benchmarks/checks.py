"""Is the result of a measured run right? Independent of the code that made it: QEMU, e2fsck and debugfs decide."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

from baker.disk import check_filesystems, extract, read_table
from baker.model import Partition
from baker.run import run
from baker.sparse import content_digest, file_sha256
from benchmarks.measure import Failed


def check_image(image: Path, sysexts: dict[str, Path], original: Path) -> None:
    """Check a raw or qcow2 image: partition table, filesystems, every sysext's bytes, and /usr as in `original` (raw).

    `sysexts` has the files by their paths in ROOT. Raises Failed.
    """
    with TemporaryDirectory(dir=image.parent, prefix=".check-") as folder:
        work = Path(folder)
        raw = image
        if image.suffix == ".img":
            raw = work / "disk.raw"
            run(["qemu-img", "check", "-q", image])
            run(["qemu-img", "convert", "-f", "qcow2", "-O", "raw", image, raw])
        table = read_table(raw)
        check_filesystems(raw, table, ["ROOT"], work)
        _check_sysexts(raw, table.get("ROOT"), sysexts, work)
        before, after = (_partition_digest(disk, "USR-A", work) for disk in (original, raw))
        if before != after:
            raise Failed(f"{image} has another /usr than the release.")


def _check_sysexts(raw: Path, root: Partition, sysexts: dict[str, Path], work: Path) -> None:
    for path, source in sysexts.items():
        copy = work / "sysext"
        run(["debugfs", "-R", f"dump {path} {copy}", f"{raw}?offset={root.offset}"])
        if not copy.exists() or file_sha256(copy) != file_sha256(source):
            raise Failed(f"{raw} does not hold {source.name} at {path}.")
        copy.unlink()


def _partition_digest(disk: Path, label: str, work: Path) -> str:
    copy = work / "partition"
    extract(disk, read_table(disk).get(label), copy)
    digest = content_digest(copy)
    copy.unlink()
    return digest
