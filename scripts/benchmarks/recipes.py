"""A recipe from start to finish, beside what packing alone takes: the rest should be hardly more than a download."""

from __future__ import annotations

import sys
from pathlib import Path

from baker.model import Arch
from baker.run import run
from baker.sparse import file_sha256
from benchmarks.cases import HERE, Bench
from benchmarks.measure import Case, Failed, Run, measure, repeat

TESTS = HERE.parent.parent / "tests"
BUILD, ALONE = "recipe build wasmtime", "mksquashfs alone, of wasmtime"
SAME = "mksquashfs with the level of ours, of wasmtime"


def recipe(bench: Bench) -> dict[str, Case]:
    """wasmtime from a mirror on this machine, nothing cached; and mksquashfs on the tree that was packed, as the
    scripts of the bakery call it and with our level of compression."""
    sys.path.insert(0, str(TESTS))
    import upstream
    import upstream_seed  # noqa: F401  registers what it knows

    with upstream.serve(bench.folder("upstream")) as mirror:
        version = mirror.add("wasmtime", Arch.X86_64)
        rules = [word for rule in mirror.rewrites for word in ("--mirror-url", "=".join(rule))]
        digests: set[str] = set()

        def once(_: int) -> Run:
            folder = bench.folder("recipe")
            env = {"PYTHONPATH": str(HERE.parent.parent), "FLATCAR_BAKE_CACHE_DIR": str(folder / "cache")}
            words = ["recipe", "build", "wasmtime", version, *rules, "--output-dir", folder / "out"]
            made = measure([sys.executable, "-m", "baker", *words], folder, env)
            digests.add(file_sha256(_built(folder / "out")))
            if len(digests) > 1:
                raise Failed(f"{BUILD}: two runs gave different bytes.")
            return made

        built = repeat(BUILD, bench.runs, once)
    image = _built(bench.work / "recipe/out")
    tree = bench.folder("tree") / "wasmtime"
    run(["unsquashfs", "-quiet", "-no-progress", "-dest", tree, image])
    facts = dict(line.split(None, 1) for line in run(["unsquashfs", "-stat", image]).text.splitlines() if " " in line)
    ours = ["-comp", facts["Compression"], "-Xcompression-level", facts["compression-level"]]

    def alone(*options: str) -> Run:
        folder = bench.folder("alone")
        return measure(["mksquashfs", tree, folder / "image", "-all-root", "-noappend", "-quiet", *options], folder)

    return {
        BUILD: built,
        ALONE: repeat(ALONE, bench.runs, lambda _: alone()),
        SAME: repeat(SAME, bench.runs, lambda _: alone(*ours)),
    }


def _built(folder: Path) -> Path:
    """The one image in a folder."""
    (image,) = folder.glob("*.raw")
    return image
