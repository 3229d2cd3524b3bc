"""One task, carried out in a process of its own: `python -m baker.fleet.child FOLDER`, the document on stdin.

stderr tells progress, one JSON object a line; stdout gets the answer. A process of its own because it can be stopped
at any moment and cleans up then, also when the worker that started it is killed, and because the worker stays free to
talk to its scheduler. FOLDER is where the work folder is made; it is gone at the end.
"""

from __future__ import annotations

import dataclasses
import json
import signal
import sys
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NoReturn

from baker import stopping
from baker.backends import open_backend
from baker.bake import bake
from baker.console import Console, JsonConsole
from baker.errors import BakeError, EnvironmentFault
from baker.fleet.answers import Output, error_words
from baker.fleet.inputs import target
from baker.fleet.storage import Storage
from baker.fleet.tasks import Order, read_order
from baker.plan import make_plan
from baker.publish import tidy
from baker.recipe.asked import RecipeWords, settle_words
from baker.recipe.output import write_sysext
from baker.recipe.pins import PinFile
from baker.request import BakeRequest
from baker.services import Services
from baker.sparse import file_sha256
from baker.work import WorkFolder


def main() -> NoReturn:
    for number in stopping.SIGNALS:
        signal.signal(number, stopping.handle)
    console = JsonConsole(sys.stderr)
    try:
        answer = carry_out(sys.stdin.read(), Path(sys.argv[1]), console)
    except BakeError as error:
        answer = error_words(error)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        answer = error_words(EnvironmentFault(f"{where}{error.strerror or error}."))
    except stopping.Stopped as stop:
        sys.exit(128 + stop.number)
    except Exception as error:
        answer = error_words(BakeError(f"flatcar-bake itself failed on a worker: {type(error).__name__}: {error}"))
    print(json.dumps(answer), flush=True)
    sys.exit(0)


def carry_out(document: str, scratch: Path, console: Console) -> dict[str, Any]:
    """Do what a document asks; returns the answer. Raises what a bake or a recipe build raises."""
    began = time.monotonic()
    tidy(scratch)  # what tasks left here whose machine went down
    with WorkFolder(scratch) as work, ExitStack() as stack:
        inputs, out = work / "inputs", work / "out"
        order = read_order(document, inputs)
        storage = Storage(order.storage)
        with console.step("Fetch what the task needs"):
            _lay_out(order, storage, inputs)
        out.mkdir()
        services = stack.enter_context(Services(order.settings, console))
        known = services.pins.own() if order.settings.recipes_lock else {}
        if isinstance(order.request, BakeRequest):
            record, digests = _bake(order.request, services, out, stack)
        else:
            record, digests = _build(order.request, services, out)
        with console.step("Store the results"):
            outputs = [_store(path, digests, storage) for path in sorted(out.iterdir())]
        pins = PinFile(services.pins.path).own() if order.settings.recipes_lock else {}
        return {
            "outputs": [dataclasses.asdict(item) for item in outputs], "record": record,
            "pins": {url: digest for url, digest in pins.items() if url not in known},
            "seconds": round(time.monotonic() - began, 1),
        }  # fmt: skip


def _lay_out(order: Order, storage: Storage, folder: Path) -> None:
    """Fetch the inputs; links come last, so that nothing is written through one."""
    folder.mkdir()
    for item in (item for item in order.inputs if not item.link):
        path = target(item, folder)
        storage.get_input(path, item.sha256, item.size)
        path.chmod(item.mode & 0o777)
    for item in (item for item in order.inputs if item.link):
        target(item, folder).symlink_to(item.link)


def _bake(
    request: BakeRequest, services: Services, out: Path, stack: ExitStack
) -> tuple[dict[str, Any], Mapping[str, str]]:
    """Bake into `out`; returns the manifest and the digests that it tells by file name."""
    plan = make_plan(dataclasses.replace(request, output_dir=out), services)
    manifest = bake(plan, services, open_backend(plan.backend, services, stack))
    return manifest.as_dict(), {item.path.name: item.sha256 for item in manifest.outputs}


def _build(words: RecipeWords, services: Services, out: Path) -> tuple[dict[str, Any], Mapping[str, str]]:
    """Build a sysext into `out`; returns its record and the image's digest."""
    request = settle_words(words, services)
    built, files = write_sysext(request, services, out / request.file_name, words.bakery, force=False)
    for finding in built.findings:
        (services.console.warn if finding.fatal else services.console.note)(finding.message)
    return built.record, {files[0].name: built.sysext.sha256}


def _store(path: Path, digests: Mapping[str, str], storage: Storage) -> Output:
    output = Output(path.name, path.stat().st_size, digests.get(path.name) or file_sha256(path))
    if storage.size(output.name) != output.size:  # a task that is done again has stored it before
        storage.put(path, output.name)
    return output


if __name__ == "__main__":
    main()
