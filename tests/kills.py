"""Real bakes that are struck by signals at chosen moments, and what must be true afterwards.

A `Ground` is one bake with a cache, a temporary folder and an output folder of its own. Moments are counted in lines
of progress, so that every step is struck equally often, however long it takes on the machine of the day.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from cli import flatcar_bake
from loops import assert_nothing_left

from baker.offline import OfflineEditor
from baker.run import run
from baker.sparse import content_digest, file_sha256
from baker.work import PREFIX

TARGETS = ("bake", "terminal", "tool", "helper")
"""Who is struck: the process itself, all of its process group as by Ctrl-C, one child program, the helper."""

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
PATIENCE = 20.0
"""Seconds in which a struck bake must be gone, on a machine that does many other things."""

_TOOL_WAIT = 5.0
_IMAGES = (".bin", ".qcow2")
_WRAPPERS = ("setpriv", "prlimit")
"""What a program passes through on its way to be itself; messages name the program."""


@dataclass(frozen=True)
class Strike:
    """One signal to one target, `delay` seconds after the `line`th line of progress (0: after the start)."""

    target: str
    number: signal.Signals
    line: int
    delay: float

    def __str__(self) -> str:
        return f"{self.number.name} to the {self.target} {self.delay * 1000:.0f} ms after line {self.line}"


@dataclass(frozen=True)
class Outcome:
    """How a struck bake ended. `hit` is the name of the program that got the signal, "" when it came too late."""

    hit: str
    status: int
    stderr: str


class Ground:
    """One bake, as often as wanted: `words` are its arguments, `folder` is where everything of it lives."""

    def __init__(self, folder: Path, words: Sequence[str | Path], env: Mapping[str, str], backend: str) -> None:
        self.out, self.cache, self.temporary = folder / "out", folder / "cache", folder / "tmp"
        self.temporary.mkdir(parents=True)
        self.backend = backend
        self._folder = folder
        self._words = [*words, "--backend", backend, "-o", self.out]
        # TMPDIR is one of the few variables that children inherit, so it marks all of them.
        self._env = {**env, "FLATCAR_BAKE_CACHE_DIR": str(self.cache), "TMPDIR": str(self.temporary),
                     "FLATCAR_BAKE_PROGRESS": "plain"}  # fmt: skip
        self._steps: list[float] = []
        self._expected: dict[str, str] = {}
        self._vendors: dict[str, set[str]] = {}

    def rehearse(self) -> None:
        """One bake that nobody disturbs: how long its steps take, and what comes out."""
        began, self._steps = time.monotonic(), []
        with self._start() as process:
            assert process.stderr is not None
            said = []
            for line in process.stderr:
                said.append(line)
                self._steps.append(time.monotonic() - began)
                began = time.monotonic()
            self._steps.append(time.monotonic() - began)
        assert process.returncode == 0, "".join(said)
        self._expected = self._content()
        for output in json.loads((self.out / "bake-manifest.json").read_text())["outputs"]:
            if output["vendor"]:
                self._vendors.setdefault(output["vendor"], set()).add(output["file"])
        self.clear()

    def choose(self, dice: random.Random) -> Strike:
        """A strike at any step, up to a little after its usual end."""
        targets = TARGETS if self.backend == "loop" else TARGETS[:3]
        line = dice.randrange(len(self._steps))
        delay = dice.uniform(0, 1.1) * self._steps[line]
        return Strike(dice.choice(targets), dice.choice(SIGNALS), line, delay)

    def strike(self, strike: Strike) -> Outcome:
        """Bake, and strike; returns when the process is gone."""
        with self._start() as process:
            assert process.stderr is not None
            said = [process.stderr.readline() for _ in range(strike.line)]
            time.sleep(strike.delay)
            hit = _hit(process, strike)
            _, rest = process.communicate(timeout=PATIENCE)
        return Outcome(hit, process.returncode, "".join(said) + rest)

    def check(self, strike: Strike, outcome: Outcome) -> None:
        """What must be true after any strike, before anything is done about it."""
        self._no_process()
        assert_nothing_left(self._folder)
        killed = _outright(strike)
        names = {path.name for path in self.out.iterdir()} if self.out.exists() else set()
        left = {name for name in names if name.startswith(PREFIX)}
        if not killed:
            assert not left, "a work folder was left"
            assert not list(self.temporary.iterdir()), "temporary files were left"
        if "bake-manifest.json" in names or not killed:
            assert names - left in self._whole(strike), "some of the outputs"
        if "bake-manifest.json" in names:
            run(["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=self.out)
        self._only_verified_objects()
        self._told(strike, outcome)

    def cleanup(self, strike: Strike) -> None:
        """`doctor --cleanup` leaves nothing of a struck bake, except what it had finished."""
        done = flatcar_bake("doctor", "--cleanup", "-o", self.out, env=self._env)
        assert done.returncode == 0, done.stderr
        names = {path.name for path in self.out.iterdir()} if self.out.exists() else set()
        assert names in self._whole(strike), "not everything, and not nothing"
        assert not list(self.temporary.iterdir()), "temporary files were left"

    def again(self) -> None:
        """The same bake succeeds now, with the same result, and tidies up; finished results need --force."""
        force = ["--force"] if (self.out / "bake-manifest.json").exists() else []
        done = flatcar_bake(*self._words, *force, env=self._env)
        assert done.returncode == 0, done.stderr
        content = self._content()
        assert content == self._expected, {name for name, _ in content.items() ^ self._expected.items()}
        assert not list(self.temporary.iterdir()), "temporary files were left"
        assert not list(self.cache.glob("v*/partial/*")), "a broken download was left"

    def clear(self) -> None:
        """Take the results away; the cache stays."""
        for path in self.out.iterdir():
            path.unlink()

    def empty_cache(self) -> None:
        """Let the next bake download again."""
        done = flatcar_bake("cache", "prune", "--all", env=self._env)
        assert done.returncode == 0, done.stderr

    @contextmanager
    def _start(self) -> Iterator[subprocess.Popen[str]]:
        clean = {name: value for name, value in os.environ.items() if not name.startswith("FLATCAR_BAKE_")}
        argv = [sys.executable, "-m", "baker", *map(os.fspath, self._words)]
        with subprocess.Popen(
            argv, env=clean | self._env, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
            text=True, errors="replace", start_new_session=True,
        ) as process:  # fmt: skip
            try:
                yield process
            finally:
                process.kill()

    def _content(self) -> dict[str, str]:
        """What a finished bake left in the output folder: name → digest."""
        if self.backend == "offline":
            return {path.name: file_sha256(path) for path in self.out.iterdir()}
        # Loop mounts leave times of their own in the filesystems, so digests of images and what lists them vary.
        return {path.name: _trees(path) if path.suffix in _IMAGES else "" for path in self.out.iterdir()}

    def _whole(self, strike: Strike) -> list[set[str]]:
        """The names that may be in the output folder: none or all. A vendor of several whose tool or helper was
        struck fails alone: then all but its own, and the manifest says so."""
        whole = [set[str](), set(self._expected)]
        manifest = self.out / "bake-manifest.json"
        if strike.target in ("tool", "helper") and manifest.exists():
            failed = [item["vendor"] for item in json.loads(manifest.read_text()).get("failed", ())]
            whole.append(set(self._expected).difference(*(self._vendors[vendor] for vendor in failed)))
        return whole

    def _no_process(self) -> None:
        """Nobody is left that has our TMPDIR. Tools started just before a SIGKILL may take a moment to end."""
        deadline = time.monotonic() + PATIENCE
        while left := _descendants(self.temporary):
            assert time.monotonic() < deadline, left
            time.sleep(0.02)

    def _only_verified_objects(self) -> None:
        for path in self.cache.glob("v*/objects/*"):
            digest = content_digest(path) if path.suffix == ".raw" else file_sha256(path)
            assert path.stem == digest, f"{path} is not what it claims to be"

    def _told(self, strike: Strike, outcome: Outcome) -> None:
        """The exit status and the words fit the signal."""
        assert "Traceback" not in outcome.stderr or strike.line == 0
        if strike.target in ("tool", "helper"):
            # A tool may survive the signal, or be one whose failure does not matter.
            assert outcome.status in (0, 4)
            if outcome.status:
                assert "error: " in outcome.stderr
                assert outcome.hit in outcome.stderr or outcome.hit in _WRAPPERS
        else:
            # A bake that is too young or too old has no handlers: then there is nothing to clean up yet, or any more.
            assert outcome.status in (0, 128 + strike.number, -strike.number)


def _outright(strike: Strike) -> bool:
    """Whether the bake itself is killed and cannot clean up."""
    return strike.number is signal.SIGKILL and strike.target in ("bake", "terminal")


def _hit(process: subprocess.Popen[str], strike: Strike) -> str:
    """Send the signal; returns the name of who got it, "" if nobody was there any more."""
    if strike.target == "bake":
        process.send_signal(strike.number)
        return "flatcar-bake"
    if strike.target == "terminal":
        os.killpg(process.pid, strike.number)
        return "flatcar-bake"
    deadline = time.monotonic() + _TOOL_WAIT
    while process.poll() is None and time.monotonic() < deadline:
        for child in _children(process.pid):
            name = _name(child)
            if (name == "helper") == (strike.target == "helper") and name:
                try:
                    os.kill(child, strike.number)
                    return name
                except ProcessLookupError:
                    continue
    return ""


def _children(parent: int) -> list[int]:
    """The children of all threads of a process."""
    found = []
    for path in Path(f"/proc/{parent}/task").glob("*/children"):
        try:
            found += [int(word) for word in path.read_text().split()]
        except OSError:
            continue
    return found


def _name(pid: int) -> str:
    """What a process is called: its program, or `helper`; "" when it is gone, or not yet a program of its own."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return ""
    if b"baker" in words:
        return ""
    if any(word.endswith(b"/helper.py") for word in words):
        return "helper"
    return os.path.basename(words[0].decode("utf-8", "replace"))


def _descendants(temporary: Path) -> list[str]:
    """The command lines of all processes whose TMPDIR is this folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if f"TMPDIR={temporary}\0".encode() in path.read_bytes() + b"\0":
                found.append(path.with_name("cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace"))
        except OSError:
            continue
    return found


def _trees(image: Path) -> str:
    """A digest of the files in an image."""
    with TemporaryDirectory() as folder:
        raw = Path(folder) / "raw"
        run(["qemu-img", "convert", "-O", "raw", image, raw])
        with OfflineEditor(raw, Path(folder), 0) as editor:
            trees = [[vars(node) for node in editor.tree(label).values()] for label in ("ROOT", "OEM")]
    return hashlib.sha256(json.dumps(trees, default=str).encode()).hexdigest()
