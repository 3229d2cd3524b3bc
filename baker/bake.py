"""The bake: executes a plan, step by step, in one work folder that becomes output only at the very end."""

from __future__ import annotations

from baker.adding import add_to
from baker.diskless.build import fetch_live
from baker.diskless.content import gather_content, installed
from baker.gather import fetch_bases, gather_oem, gather_sysexts
from baker.images import Images, InMemory, make_images
from baker.job import Job, OpenEditor
from baker.manifest import SBOM_NAME, BakeManifest, sysext_record, tool_versions, write_records
from baker.model import Injection
from baker.placing import ReadySysext, place
from baker.plan import BakePlan
from baker.publish import publish, tidy
from baker.run import log_to
from baker.sbom import write_sbom
from baker.services import Services
from baker.work import WorkFolder

LOG_NAME = "commands.log"


def bake(plan: BakePlan, services: Services, open_editor: OpenEditor) -> BakeManifest:
    """Execute a plan and return the record of what was made.

    `open_editor(image, work, epoch)` opens the backend. Nothing appears in the output folder before everything is
    complete and checked. Raises the BakeError of the step that failed; the work folder is gone then. Of several
    vendors some may fail while the others are published: the record's `failures` tell.
    """
    plan.output_dir.mkdir(parents=True, exist_ok=True)
    for left in tidy(plan.output_dir)[0]:
        services.console.note(f"removed {left}, left by a bake that was killed")
    with WorkFolder(plan.output_dir, keep=plan.keep_work) as work:
        if plan.keep_work:
            log_to(work / LOG_NAME)
            services.console.note(f"the work folder is kept: {work} ({LOG_NAME} in it has every command)")
        job = Job(plan, services, open_editor, work)
        job.out.mkdir()
        bases, live = fetch_bases(job), fetch_live(job)
        version = bases[0].version if bases else live.version if live else ""
        sysexts = gather_sysexts(job, version)
        placed: dict[str, list[Injection]] = {}
        if bases:
            placed = add_to(place(sysexts, plan.install_to, version, plan.updates, plan.force), job, version)
        oem = {name: [*own, *placed.get("OEM", [])] for name, own in gather_oem(job, bases).items()}
        memory = InMemory(live, gather_content(job, sysexts, version)) if live else None
        images = make_images(job, bases, placed.get("ROOT", []), oem, memory)
        manifest = _manifest(job, version, sysexts, images)
        with services.console.step("Publish"):
            finished = [item.path for item in manifest.outputs] + write_records(job.out, manifest)
            publish(finished, plan.output_dir, plan.force)
    return manifest


def _manifest(job: Job, version: str, sysexts: list[ReadySysext], images: Images) -> BakeManifest:
    """The record of the bake; the SBOM, which says the same in SPDX's words, is written here and in the record."""
    plan = job.plan
    # Vendors may share an input; side by side, they come to it in any order.
    inputs = tuple(item for _, item in sorted({(item["kind"], item["name"]): item for item in job.inputs}.items()))
    route = plan.diskless[0].base if plan.diskless else ""
    paths = {item.sysext.name: installed(route, item, plan.oem_directory, version) for item in sysexts if route}
    records = tuple(
        sysext_record(item, plan.install_to, paths.get(item.sysext.name, ""), bool(plan.disks)) for item in sysexts
    )
    sbom = write_sbom(job.out / SBOM_NAME, plan, version, inputs, records, images.artifacts)
    return BakeManifest(
        plan_id=plan.id, version=version, channel=plan.release.channel if plan.release else "",
        arch=plan.arch, install_to=f"{plan.install_to.target}:{plan.install_to.directory}", backend=plan.backend,
        epoch=plan.epoch, inputs=inputs, sysexts=records,
        decisions=tuple(f"{item.vendor.name}: {item.base} ({item.why})" for item in plan.vendors),
        outputs=(*images.artifacts, sbom), tools=tool_versions(), failures=tuple(images.failures),
        additions=plan.additions_record(),
    )  # fmt: skip
