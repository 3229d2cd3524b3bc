"""Where the things go that are baked besides sysexts, and how a bake survives a reset."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from baker.errors import UsageError, VerificationError
from baker.gather import use_update_key
from baker.ignition import BASE_PATH, CONFIG_PATH, MAX_SIZE, ConfigFile, IgnitionConfig, base_config, merge_base
from baker.inject import Editor
from baker.job import Job
from baker.model import Injection
from baker.oem import with_kernel_args
from baker.official import CONF, enabled_conf, gather_official
from baker.planned_additions import PlannedFile, check_additions
from baker.sparse import clone, file_sha256

_GRUB_CFG = "/grub.cfg"
_LARGEST_IN_BASE = 64 << 10
"""The largest file in bytes that a base config carries: the initrd copies it into memory at every first boot."""


def add_to(
    placed: Mapping[str, list[Injection]], job: Job, version: str, in_memory: bool = False
) -> dict[str, list[Injection]]:
    """What goes where, by partition label: what is `placed` already, and the plan's additions.

    For machines without a disk (`in_memory`) ROOT is made by the base config at every start, and official sysexts are
    among what is placed. Else fetches those. `version` is the release inside the image, "" where it is not known: one
    of the user's own shows it only now. VerificationError for a file that changed since the plan, UsageError for what
    cannot survive a reset.
    """
    plan = job.plan.additions
    check_additions(plan, version)
    root, oem = list(placed.get("ROOT", ())), list(placed.get("OEM", ()))
    for number, item in enumerate(plan.files):
        (root if item.request.partition.label == "ROOT" else oem).append(
            _file(job, item, f"{number}{'-memory' * in_memory}")
        )
    root += [] if in_memory else use_update_key(job)
    there = {item.path for item in root}
    off = (f"/etc/extensions/{name}-flatcar.raw" for name in plan.disabled_builtins)
    root += [Injection(path, mode=0o777, symlink="/dev/null", replace=True) for path in off if path not in there]
    by_config = plan.survive_reset or in_memory
    root += [] if in_memory else gather_official(job)
    if plan.ignition is not None:
        # It may hold secrets, and everybody can read /oem otherwise.
        oem.append(Injection(CONFIG_PATH, mode=0o600, content=plan.ignition.data, replace=job.plan.force))
    base = _base(root if by_config else (), plan.ignition_base)
    if base is not None:
        oem.append(Injection(BASE_PATH, mode=0o600 if plan.ignition_base else 0o644, content=base, replace=True))
    all_of_it = {"ROOT": [] if by_config else root, "OEM": oem}
    return {label: sorted(items, key=lambda item: item.path) for label, items in all_of_it.items() if items}


def _file(job: Job, item: PlannedFile, number: str) -> Injection:
    """A copy of the file, for nobody else writes to that."""
    copy = job.work / f"added-{number}"
    clone(item.request.source, copy)
    if file_sha256(copy) != item.sha256:
        raise VerificationError(
            f"{item.request.source} changed after the plan was made.",
            "Run the bake again, when nobody writes to the file.",
        )
    return Injection(item.request.path, mode=item.mode, source=copy, replace=job.plan.force)


def _base(root: Sequence[Injection], own: IgnitionConfig | None) -> bytes | None:
    """The base config that makes `root`, with the user's own below it; None where there is neither."""
    if not root:
        return own.data if own else None
    links = {item.path: item.symlink for item in root if item.symlink is not None}
    files = {item.path: ConfigFile(_content(item), item.mode) for item in root if item.symlink is None}
    for path in sorted(own.paths & (links.keys() | files.keys()) if own else ()):
        raise UsageError(f"{own.name if own else ''} declares {path}, which the base config of this bake makes.")
    return merge_base(own.data if own else None, base_config(links, files), own.name if own else "")


def _content(item: Injection) -> bytes:
    if item.size > _LARGEST_IN_BASE:
        raise UsageError(
            f"{item.path} is too large to survive a reset, or for a machine without a disk: it has {item.size} bytes, "
            f"and the base config that makes it carries {_LARGEST_IN_BASE}.",
            f"Put it on the OEM partition, for example at oem:{item.path}.",
        )
    return item.source.read_bytes() if item.source is not None else item.content or b""


def settle_oem(editor: Editor, content: Sequence[Injection], kernel_args: Sequence[str]) -> list[Injection]:
    """The content of an OEM partition, with what is added to a file added to the one that is there.

    Kernel arguments go into the grub.cfg of `content`, or that of the image. Base configs of `content` are put on top
    of the image's, in their order. UsageError for a base config that cannot be read.
    """
    kept = [item for item in content if item.path not in (BASE_PATH, _GRUB_CFG)]
    grubs = [item for item in content if item.path == _GRUB_CFG]
    if kernel_args:
        text = grubs[0].content if grubs else editor.read("OEM", _GRUB_CFG)
        grubs = [Injection(_GRUB_CFG, content=with_kernel_args(text or b"", kernel_args), replace=True)]
    bases = [item for item in content if item.path == BASE_PATH]
    if not bases:
        return [*kept, *grubs]
    merged = editor.read("OEM", BASE_PATH, MAX_SIZE)
    for item in bases:
        merged = merge_base(merged, item.content or b"", f"the image's {BASE_PATH[1:]}")
    return [*kept, *grubs, replace(bases[-1], content=merged, replace=True)]


def settle_root(editor: Editor, content: Sequence[Injection]) -> list[Injection]:
    """The content of ROOT, with official sysexts enabled in addition to those that the image enables."""
    return [
        replace(item, content=enabled_conf(editor.read("ROOT", CONF), (item.content or b"").decode().split()))
        if item.path == CONF
        else item
        for item in content
    ]
