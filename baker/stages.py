"""What several vendors' images have in common, made once: the disk of one base and one layout, with ROOT finished."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from baker.adding import settle_root
from baker.bases import PlannedVendor
from baker.convert import convert, edits_in_place
from baker.disk import check_filesystems, grow_root, read_table
from baker.formats import NATIVE_QCOW2, takes_over
from baker.gather import Base
from baker.job import Job
from baker.layout import layout_size
from baker.model import Injection
from baker.origin import Origin, copy_edited, encoded_stage
from baker.sparse import LeadingDigest, clone


@dataclass(frozen=True)
class StagePlan:
    """The vendors of one base that have one layout; `last` when the base is not needed for another stage."""

    number: int
    base: Base
    layout: str
    vendors: tuple[PlannedVendor, ...]
    last: bool


@dataclass
class Stage:
    """A disk with ROOT finished, which the disks of several vendors are taken from."""

    path: Path
    version: str
    vendors: tuple[PlannedVendor, ...]
    origin: Origin | None = None
    """What holds the rest of the disk, when `path` has only the parts that are edited."""
    leading: LeadingDigest | None = None
    """The digest of what the disk begins with, if that is still what the base begins with."""
    encoded: Origin | None = None
    """The whole disk as qcow2, all but OEM and partition table for good; for several vendors that want qcow2."""
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _left: int = field(init=False)

    def __post_init__(self) -> None:
        self._left = len(self.vendors)

    def take(self, item: PlannedVendor, target: Path) -> Origin | None:
        """Make `target` the raw disk of a vendor; returns what holds the parts that it lacks.

        The last vendor gets the disk itself, the others a copy of what they need.
        """
        with self._lock:  # the last one must not edit a disk that another is copying
            self._left -= 1
            if self.encoded is not None and edits_in_place(item.vendor.disk):
                copy_edited(self.path, target, self.encoded)
                return self.encoded
            if self._left:
                clone(self.path, target)
            else:
                self.path.rename(target)
            return self.origin

    def close(self) -> None:
        """Remove what is left of the stage; nobody takes from it any more."""
        self.path.unlink(missing_ok=True)
        if self.encoded is not None:
            self.encoded.image.path.unlink(missing_ok=True)


def plan_stages(bases: Iterable[Base]) -> list[StagePlan]:
    """One stage for every layout that a base's vendors want."""
    stages: list[StagePlan] = []
    for base in bases:
        layouts = list(dict.fromkeys(item.vendor.layout for item in base.vendors))
        for number, layout in enumerate(layouts, 1):
            vendors = tuple(item for item in base.vendors if item.vendor.layout == layout)
            stages.append(StagePlan(len(stages), base, layout, _in_order(vendors), number == len(layouts)))
    return stages


def _in_order(vendors: Sequence[PlannedVendor]) -> tuple[PlannedVendor, ...]:
    """Who shares an encoding first, so that it can go; who makes the disk itself the result last."""
    return tuple(
        sorted(vendors, key=lambda item: (not edits_in_place(item.vendor.disk), takes_over(item.vendor.disk)))
    )


def open_stage(job: Job, plan: StagePlan, root: list[Injection]) -> Stage:
    """Make the disk of a stage: grown to its layout, with the ROOT injections in it, and checked.

    Its files are temporary; `close` removes them once they are not needed.
    """
    base = plan.base
    path = job.work / f"stage-{plan.number}.raw"
    if base.shared or not plan.last:
        clone(base.path, path)
    else:
        base.path.rename(path)
    leading = None if _prepare_root(job, path, plan.layout, root) else base.leading
    stage = Stage(path, base.version, plan.vendors, base.origin, leading)
    if sum(edits_in_place(item.vendor.disk) for item in plan.vendors) > 1:
        qcow2 = path.with_suffix(".qcow2")
        with job.console.step(f"Encode what {plan.layout} images have in common"):
            convert(path, qcow2, NATIVE_QCOW2, job.plan.jobs, origin=base.origin)
        stage.encoded = encoded_stage(qcow2, read_table(path))
    return stage


def _prepare_root(job: Job, path: Path, layout: str, root: list[Injection]) -> bool:
    """Bring a disk to its layout and edit its ROOT; returns whether its partition table changed."""
    table = read_table(path)
    size = layout_size(layout, table)
    grows = size.root > table.get("ROOT").size
    if grows:
        with job.console.step(f"Grow ROOT to the {layout} layout"):
            grow_root(path, size.root, size.disk, job.work)
    if root:
        with (
            job.console.step("Put the extensions into ROOT"),
            job.open_editor(path, job.work, job.plan.epoch) as editor,
        ):
            editor.apply("ROOT", settle_root(editor, root))
    with job.console.step("Check ROOT"):
        check_filesystems(path, read_table(path), ["ROOT"], job.work)
    return grows
