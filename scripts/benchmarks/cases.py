"""What is measured. Every function makes its own empty folders, checks its results, and returns cases by name."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from baker.run import find
from baker.sparse import clone, file_sha256
from baker.vendor_files import load_vendors
from benchmarks.checks import check_image
from benchmarks.fixture import Fixture, bake_environment, small_sysexts
from benchmarks.measure import Case, Failed, Run, measure, on_disk, repeat

HERE = Path(__file__).resolve().parent
IMAGES = {"generic": "flatcar_production_image.bin", "qemu_uefi": "flatcar_production_qemu_uefi_image.img"}
_LIBGUESTFS_LIMIT = 180  # seconds


@dataclass(frozen=True)
class Bench:
    """What all cases need: the fixture, where it is served, an empty folder to work in, and how often to repeat."""

    fixture: Fixture
    url: str
    work: Path
    runs: int

    def folder(self, name: str) -> Path:
        """A new empty folder; an old one of that name goes first."""
        path = self.work / name
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir()
        return path

    @property
    def fewer(self) -> int:
        """How often to repeat what takes long."""
        return max(1, self.runs - 1)

    @property
    def warm(self) -> Path:
        """The cache that warm runs share."""
        return self.work / "warm-cache"


def _bake(bench: Bench, words: Sequence[str | Path], cache: Path | None = None, path: str = "") -> Run:
    """One bake into the folder `bake`; without `cache` its cache is inside that folder, and empty."""
    folder = bench.folder("bake")
    env = bake_environment(bench.fixture, bench.url, cache or folder / "cache")
    env["PYTHONPATH"] = str(HERE.parent.parent)
    if path:
        env["PATH"] = path
    return measure([sys.executable, "-m", "baker", "--output-dir", folder / "out", *words], folder, env)


def _bakes(
    bench: Bench, name: str, vendor: str, runs: int, *words: str, cache: Path | None = None, path: str = ""
) -> Case:
    """Several bakes of the 60 MB sysext: the first result is checked, the others must be the same bytes."""
    sysext = bench.fixture.sysext(60)
    digests: list[str] = []

    def once(_: int) -> Run:
        run = _bake(bench, ["--vendor", vendor, *words, f"payload:{sysext}"], cache, path)
        image = bench.work / "bake/out" / IMAGES[vendor]
        if not digests:
            check_image(image, {f"/opt/extensions/payload/{sysext.name}": sysext}, bench.fixture.generic_raw)
        digests.append(file_sha256(image))
        if digests[-1] != digests[0]:
            raise Failed(f"{name}: two runs gave different bytes.")
        return run

    return repeat(name, runs, once)


def pipeline(bench: Bench) -> dict[str, Case]:
    """The shell pipeline; its generic part is a case of its own."""
    sysext = bench.fixture.sysext(60)
    whole, generic, unpack = Case("pipeline qemu_uefi"), Case("pipeline generic"), Case("pipeline bunzip2")
    for number in range(bench.fewer):
        folder = bench.folder("pipeline")
        url = f"{bench.url}/{bench.fixture.files.relative_to(bench.fixture.release.resolve())}"
        run = measure([HERE / "pipeline.sh", url, bench.fixture.key, sysext], folder)
        times = {line.split()[1]: float(line.split()[0]) for line in run.output.splitlines() if line[:1].isdecimal()}
        whole.runs.append(run)
        seconds = times["generic-is-done"] - times["download"]
        generic.runs.append(run.first(seconds))
        unpack.runs.append(Run(times["inject"] - times["unpack"], 0))
        if number == 0:
            for image in IMAGES.values():
                expected = {f"/opt/extensions/payload/{sysext.name}": sysext}
                check_image(folder / image, expected, bench.fixture.generic_raw)
    shutil.rmtree(bench.work / "pipeline")
    return {case.name: case for case in (whole, generic, unpack)}


def floor(bench: Bench) -> dict[str, Case]:
    """Parallel bz2 decoding alone, to nowhere: no bake from the bz2 can be faster."""

    def once(_: int) -> Run:
        return measure(["sh", "-c", 'lbzip2 -dc "$0" >/dev/null', bench.fixture.compressed], bench.folder("floor"))

    return {"floor": repeat("floor", bench.runs, once)}


def cold(bench: Bench) -> dict[str, Case]:
    """Bakes with an empty cache from an HTTP server on this machine."""
    cases = [
        _bakes(bench, "generic cold", "generic", bench.runs),
        _bakes(bench, "generic cold without lbzip2", "generic", bench.fewer, path=_path_without_lbzip2(bench)),
        _bakes(bench, "qemu_uefi cold", "qemu_uefi", bench.runs),
        _bakes(bench, "qemu_uefi cold from bz2", "qemu_uefi", bench.fewer, "--base", "generic"),
    ]
    return {case.name: case for case in cases}


def warm(bench: Bench) -> dict[str, Case]:
    """Bakes from a full cache; the first one, which fills it, does not count."""
    _fill_cache(bench)
    runs = bench.runs + 2
    cases = [
        _bakes(bench, "generic warm", "generic", runs, cache=bench.warm),
        _bakes(bench, "qemu_uefi warm", "qemu_uefi", runs, cache=bench.warm),
        _bakes(bench, "qemu_uefi warm, from generic", "qemu_uefi", bench.runs, "--base", "generic", cache=bench.warm),
    ]
    return {case.name: case for case in cases}


def digest(bench: Bench) -> dict[str, Case]:
    """sha256 of the raw image alone, which SHA256SUMS needs; holes are not read, but their zeros are hashed."""
    program = "import sys, pathlib; from baker.sparse import file_sha256; file_sha256(pathlib.Path(sys.argv[1]))"
    command = [sys.executable, "-c", program, bench.fixture.generic_raw]
    name = "sha256 of the raw image alone"
    env = {"PYTHONPATH": str(HERE.parent.parent)}
    return {name: repeat(name, bench.runs, lambda _: measure(command, bench.folder("digest"), env))}


def _fill_cache(bench: Bench) -> None:
    sysext = bench.fixture.sysext(60)
    for words in (["--vendor", "qemu_uefi"], ["--vendor", "qemu_uefi", "--base", "generic"]):
        _bake(bench, [*words, f"payload:{sysext}"], bench.warm)


def _path_without_lbzip2(bench: Bench) -> str:
    """A PATH with everything but lbzip2: a folder of links."""
    folder = bench.folder("path")
    for source in (Path("/usr/local/bin"), Path("/usr/bin")):
        for program in source.iterdir():
            if program.name != "lbzip2" and not (folder / program.name).is_symlink():
                (folder / program.name).symlink_to(program)
    return str(folder)


def encoders(bench: Bench) -> dict[str, Case]:
    """One disk as compressed qcow2, from QEMU's fastest command and from ours. `disk` is the size of the result."""
    raw = bench.fixture.generic_raw
    qemu = ["qemu-img", "convert", "-c", "-f", "raw", "-O", "qcow2", "-o", "compat=0.10"]
    ours = [sys.executable, HERE / "encode.py"]
    commands: dict[str, Callable[[Path], list[str | Path]]] = {
        "qemu-img convert -c": lambda target: [*qemu, raw, target],
        "qemu-img convert -c -W -m 16": lambda target: [*qemu, "-W", "-m", "16", raw, target],
        "ours, one thread": lambda target: [*ours, "1", raw, target],
        "ours, two threads": lambda target: [*ours, "2", raw, target],
        "ours, two threads, read back and digest": lambda target: [*ours, "2", raw, target, "prove"],
    }

    def once(name: str) -> Run:
        folder = bench.folder("encode")
        target = folder / "disk.img"
        run = measure(commands[name](target), folder)
        measure(["qemu-img", "compare", "-f", "raw", "-F", "qcow2", raw, target], bench.folder("compare"))
        return Run(run.seconds, run.cpu, run.memory, target.stat().st_size)

    return {name: repeat(name, bench.fewer, lambda _, name=name: once(name)) for name in commands}


def backends(bench: Bench) -> dict[str, Case]:
    """One file into ROOT of a raw image, everything included that the program does, start and read-back too."""
    cases: dict[str, Case] = {}
    for megabytes in (60, 600):
        sysext = bench.fixture.sysext(megabytes)
        for backend in ("offline", "loop"):
            name = f"{backend}, {megabytes} MB"
            command = [sys.executable, HERE / "edit.py", backend, "disk.raw", sysext]
            runs = bench.runs if megabytes == 60 else bench.fewer
            cases[name] = repeat(name, runs, lambda _, c=command, s=sysext: _edit(bench, c, s))
    if find("guestfish"):
        cases |= _guestfish(bench, bench.fixture.sysext(60))
    return cases


def _guestfish(bench: Bench, sysext: Path) -> dict[str, Case]:
    """What `virt-customize --copy-in` does, by the same library's shell: a virtual machine mounts ROOT and copies.

    virt-customize itself first looks for an operating system, and finds none whose /usr is a partition of its own.
    Where KVM does not work the machine is emulated.
    """
    command: list[str | Path] = ["guestfish", "--rw", "--format=raw", "-a", "disk.raw", "-m", "/dev/sda9"]
    command += ["mkdir-p", "/opt/extensions", ":", "copy-in", sysext, "/opt/extensions"]
    for settings, name in (("", "libguestfs, 60 MB"), ("force_tcg", "libguestfs, 60 MB")):
        env = {"LIBGUESTFS_BACKEND": "direct", "LIBGUESTFS_BACKEND_SETTINGS": settings}
        try:
            case = repeat(name, 1, lambda _, e=env: _edit(bench, command, sysext, e, _LIBGUESTFS_LIMIT))
            return {name: case}
        except Failed as failure:
            print(f"{name} does not work: {str(failure).splitlines()[0]}", file=sys.stderr)
    return {}


def _edit(
    bench: Bench, command: Sequence[str | Path], sysext: Path, env: dict[str, str] | None = None, limit: float = 600
) -> Run:
    folder = bench.folder("edit")
    disk = folder / "disk.raw"
    clone(bench.fixture.generic_raw, disk)
    os.sync()  # else the first program that syncs pays for our copy
    before = on_disk(folder)
    run = measure(command, folder, env, limit)
    check_image(disk, {f"/opt/extensions/{sysext.name}": sysext}, bench.fixture.generic_raw)
    return Run(run.seconds, run.cpu, run.memory, run.disk - before)


def sizes(bench: Bench) -> dict[int, Case]:
    """The size of one sysext in MB."""
    _fill_cache(bench)
    return {
        size: _scaled(bench, "size", bench.fewer, [f"payload:{bench.fixture.sysext(size)}"])
        for size in (10, 30, 100, 300, 1000)
    }


def counts(bench: Bench) -> dict[int, Case]:
    """The number of sysexts of 2 MB."""
    _fill_cache(bench)
    return {
        count: _scaled(bench, "count", bench.fewer, small_sysexts(bench.fixture, count))
        for count in (1, 2, 4, 8, 16, 32)
    }


def vendors(bench: Bench) -> dict[int, Case]:
    """The number of vendors, each with a disk of its own that is grown, filled and encoded anew."""
    _fill_cache(bench)
    sysext = f"payload:{bench.fixture.sysext(60)}"
    return {count: _scaled(bench, "vendors", 1, [sysext], _copies(bench, count)) for count in (1, 2, 4, 8)}


def together(bench: Bench) -> dict[str, Case]:
    """All vendors that the release has what it takes for: in one run, and one after the other; cache warm.

    Images are not compressed, which would take most of the time in either case. `disk` includes all results.
    """
    _fill_cache(bench)
    names = [name for name in load_vendors() if _is_possible(bench, name)]
    in_one, one_by_one = f"{len(names)} vendors in one run", f"{len(names)} vendors one by one"
    once = _bake(bench, _uncompressed(bench, ",".join(names)), bench.warm)
    folder = bench.folder("bake")
    env = {**bake_environment(bench.fixture, bench.url, bench.warm), "PYTHONPATH": str(HERE.parent.parent)}
    runs = [
        measure(
            [sys.executable, "-m", "baker", "--output-dir", folder / name, *_uncompressed(bench, name)], folder, env
        )
        for name in names
    ]
    summed = Run(
        sum(run.seconds for run in runs), sum(run.cpu for run in runs), max(run.memory for run in runs),
        max(run.disk for run in runs),
    )  # fmt: skip
    return {in_one: Case(in_one, [once]), one_by_one: Case(one_by_one, [summed])}


def _uncompressed(bench: Bench, vendors: str) -> list[str]:
    payload = f"payload:{bench.fixture.sysext(60)}"
    return ["--vendor", vendors, "--base", "generic", "--compress", "none", payload]


def _is_possible(bench: Bench, vendor: str) -> bool:
    try:
        _bake(bench, ["--plan", *_uncompressed(bench, vendor)], bench.warm)
    except Failed:
        return False
    return True


def jobs(bench: Bench) -> dict[int, Case]:
    """The number of jobs, for four vendors."""
    _fill_cache(bench)
    words = _copies(bench, 4)
    sysext = f"payload:{bench.fixture.sysext(60)}"
    return {count: _scaled(bench, "jobs", 1, [sysext], [*words, "--jobs", str(count)]) for count in (1, 2)}


def _scaled(
    bench: Bench, name: str, runs: int, sysexts: Iterable[str], words: Sequence[str] = ("--vendor", "qemu_uefi")
) -> Case:
    asked = [*words, *sysexts]
    return repeat(name, runs, lambda _: _bake(bench, asked, bench.warm))


def _copies(bench: Bench, count: int) -> list[str]:
    """Options for so many vendors like qemu_uefi, made from the generic image."""
    shipped = HERE.parent.parent / "vendors"
    folder = bench.folder("vendors")
    shutil.copytree(shipped / "templates", folder / "templates")
    options = ["--vendors", str(folder), "--base", "generic"]
    text = (shipped / "qemu_uefi.toml").read_text()
    for number in range(count):
        name = f"like{number}"
        (folder / f"{name}.toml").write_text(text.replace("qemu_uefi", name))
        options += ["--vendor", name]
    return options
