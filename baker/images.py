"""From base images to vendor images, side by side; one vendor that fails does not take the others with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field

from baker.bases import PlannedVendor
from baker.diskless.build import Live, make_diskless
from baker.diskless.content import Content
from baker.errors import BakeError, EnvironmentFault, VerificationError
from baker.finishing import finish_vendor
from baker.gather import Base
from baker.job import Job
from baker.manifest import VendorFailure
from baker.model import Artifact, Injection
from baker.run import CommandKilled
from baker.stages import Stage, StagePlan, open_stage, plan_stages

_ENDS_ALL = (VerificationError, CommandKilled)
"""What is no fault of one vendor: somebody forged something, or ends our programs."""


@dataclass
class Images:
    """What became of the vendors that were asked for."""

    artifacts: list[Artifact] = field(default_factory=list)
    failures: list[VendorFailure] = field(default_factory=list)


@dataclass(frozen=True)
class InMemory:
    """What the images of machines without a disk are made of."""

    live: Live
    content: Content


def make_images(
    job: Job,
    bases: Sequence[Base],
    root: list[Injection],
    oem: Mapping[str, list[Injection]],
    memory: InMemory | None = None,
) -> Images:
    """Make every vendor's files; `root` goes into ROOT, `oem` by vendor into the OEM partition.

    `memory` is there when the plan has vendors without a disk.

    What vendors have in common is done once. Stages are large, so the next one is made only when it would be missed.
    Results are in the plan's order. With several vendors asked for, the failure of some is part of the result; raises
    the BakeError when all failed, and in any case a VerificationError or CommandKilled.
    """
    workers = min(job.plan.jobs, len(job.plan.vendors))
    with ThreadPoolExecutor(workers) as pool:
        crew = _Crew(job, pool, oem, job.plan.jobs // workers)
        try:
            for plan in plan_stages(bases):
                crew.wait_until_fewer_than(workers)
                crew.begin(plan, root)
            for item in job.plan.diskless:
                crew.wait_until_fewer_than(workers)
                crew.begin_diskless(item, memory)
            crew.wait_until_fewer_than(1)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)  # the end of the block waits for those that have begun
            raise
    names = [item.vendor.name for item in job.plan.vendors]
    if len(crew.failed) == len(names):
        raise crew.failed[names[0]]
    return Images(
        [artifact for name in names for artifact in crew.made.get(name, ())],
        [VendorFailure(name, crew.failed[name]) for name in names if name in crew.failed],
    )


class _Crew:
    """The vendors that are being worked on, by at most `jobs` threads each, and what became of the others."""

    def __init__(self, job: Job, pool: ThreadPoolExecutor, oem: Mapping[str, list[Injection]], jobs: int) -> None:
        self.made: dict[str, list[Artifact]] = {}
        self.failed: dict[str, BakeError] = {}
        self._job, self._pool, self._oem, self._jobs = job, pool, oem, jobs
        self._at_work: dict[Future[list[Artifact]], tuple[Stage | None, PlannedVendor]] = {}

    def begin(self, plan: StagePlan, root: list[Injection]) -> None:
        """Make a stage, and let its vendors be worked on."""
        try:
            stage = open_stage(self._job, plan, root)
        except (BakeError, OSError) as error:
            for item in plan.vendors:
                self._fail(item, error)
            return
        for item in stage.vendors:
            content = self._oem[item.vendor.name]
            future = self._pool.submit(finish_vendor, self._job, stage, item, content, self._jobs)
            self._at_work[future] = (stage, item)

    def begin_diskless(self, item: PlannedVendor, memory: InMemory | None) -> None:
        """Let a vendor without a disk be worked on."""
        assert memory is not None
        future = self._pool.submit(make_diskless, self._job, item, memory.live, memory.content)
        self._at_work[future] = (None, item)

    def wait_until_fewer_than(self, count: int) -> None:
        """Wait for vendors to be done until there is work for fewer than `count`; tell each one's outcome."""
        while len(self._at_work) >= count:
            for future in wait(self._at_work, return_when=FIRST_COMPLETED).done:
                stage, item = self._at_work.pop(future)
                try:
                    self._succeed(item, future.result())
                except (BakeError, OSError) as error:
                    self._fail(item, error)
                if stage is not None and not any(other is stage for other, _ in self._at_work.values()):
                    stage.close()

    def _succeed(self, item: PlannedVendor, made: list[Artifact]) -> None:
        self.made[item.vendor.name] = made
        if len(self._job.plan.vendors) > 1:
            self._job.console.note(f"{item.vendor.name} is done: {', '.join(file.path.name for file in made)}")

    def _fail(self, item: PlannedVendor, error: BakeError | OSError) -> None:
        """Note the failure of a vendor; raises the error where it is to end the whole bake."""
        if isinstance(error, _ENDS_ALL) or len(self._job.plan.vendors) == 1:
            raise error
        if isinstance(error, OSError):
            where = f"{error.filename}: " if error.filename else ""
            error = EnvironmentFault(f"{where}{error.strerror or error}.")
        name = item.vendor.name
        self._job.console.warn(f"{name} failed: {error.message.removeprefix(f'{name}: ')}")
        self.failed[name] = error
