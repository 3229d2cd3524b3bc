"""The bake: executes a plan, step by step, in one work folder that becomes output only at the very end."""

from __future__ import annotations

from baker.extras import write_extras
from baker.gather import Base, fetch_bases, gather_sysexts
from baker.images import make_images, stage_roots
from baker.job import Job, OpenEditor
from baker.manifest import BakeManifest, sysext_record, tool_versions, write_records
from baker.model import Artifact
from baker.placing import ReadySysext, place
from baker.plan import BakePlan
from baker.publish import publish, tidy
from baker.services import Services
from baker.work import WorkFolder


def bake(plan: BakePlan, services: Services, open_editor: OpenEditor) -> BakeManifest:
    """Execute a plan and return the record of what was made.

    `open_editor(image, work, epoch)` opens the backend. Nothing appears in the output folder before everything is
    complete and checked. Raises the BakeError of the step that failed; the work folder is gone then.
    """
    plan.output_dir.mkdir(parents=True, exist_ok=True)
    for left in tidy(plan.output_dir)[0]:
        services.console.note(f"removed {left}, left by a bake that was killed")
    with WorkFolder(plan.output_dir, keep=plan.keep_work) as work:
        job = Job(plan, services, open_editor, work)
        job.out.mkdir()
        bases = fetch_bases(job)
        version = bases[0].version
        sysexts = gather_sysexts(job, version)
        placed = place(sysexts, plan.install_to, version, plan.updates, plan.force)
        stages = stage_roots(job, bases, placed.get("ROOT", []))
        artifacts = make_images(job, stages, placed.get("OEM", []))
        artifacts += write_extras(job, version)
        manifest = _manifest(job, bases, sysexts, artifacts)
        with services.console.step("Publish"):
            publish([item.path for item in artifacts] + write_records(job.out, manifest), plan.output_dir, plan.force)
    return manifest


def _manifest(job: Job, bases: list[Base], sysexts: list[ReadySysext], artifacts: list[Artifact]) -> BakeManifest:
    plan = job.plan
    return BakeManifest(
        plan_id=plan.id, version=bases[0].version, channel=plan.release.channel if plan.release else "",
        arch=plan.arch, install_to=f"{plan.install_to.target}:{plan.install_to.directory}", backend=plan.backend,
        epoch=plan.epoch, inputs=tuple(sorted(job.inputs, key=lambda item: (item["kind"], item["name"]))),
        sysexts=tuple(sysext_record(item, plan.install_to) for item in sysexts),
        decisions=tuple(f"{item.vendor.name}: {item.base} ({item.why})" for item in plan.vendors),
        outputs=tuple(artifacts), tools=tool_versions(),
    )  # fmt: skip
