"""Opening the backend that a plan has chosen."""

from __future__ import annotations

from contextlib import ExitStack

from baker.job import OpenEditor
from baker.services import Services


def open_backend(name: str, services: Services, stack: ExitStack) -> OpenEditor:
    """How to open images with the backend `name`; the loop backend starts its one privileged process here."""
    if name == "offline":
        from baker.offline import OfflineEditor

        return OfflineEditor
    from baker.privilege import Helper, LoopEditor

    with services.console.suspended():
        helper = stack.enter_context(Helper())
    return lambda image, work, epoch: LoopEditor(image, work, epoch, helper)
