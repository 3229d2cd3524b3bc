"""Put one file into ROOT of a raw image by one backend, as a program of its own: edit.py BACKEND IMAGE FILE."""

from __future__ import annotations

import sys
from pathlib import Path
from tempfile import TemporaryDirectory

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from baker.model import Injection
from baker.offline import OfflineEditor
from baker.privilege import Helper, LoopEditor


def main() -> None:
    """Run it."""
    backend, image, source = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    injections = [Injection(f"/opt/extensions/{source.name}", source=source)]
    with TemporaryDirectory(dir=image.parent) as folder:
        if backend == "offline":
            with OfflineEditor(image, Path(folder), 1) as editor:
                editor.apply("ROOT", injections)
        else:
            with Helper() as helper, LoopEditor(image, Path(folder), 1, helper) as loop:
                loop.apply("ROOT", injections)


main()
