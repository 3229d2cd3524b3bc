"""Fixtures for several test files: stand-in releases, built once and kept in the user's cache folder."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from baker.console import Console
from baker.model import Arch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "scripts"))

import upstream as mirror
import upstream_more  # noqa: F401  registers what it knows
import upstream_seed  # noqa: F401  the same
from build_images import base_image
from standin import cache, main, release

_CLONE_NEWNS = 0x20000  # linux/sched.h


def pytest_configure(config: pytest.Config) -> None:
    """Let signals mean what they mean at a terminal, and give each worker mounts of its own.

    Who starts the tests in the background of a shell, or by nohup, has them and all that they start ignore signals.

    Whatever unshares its mounts while a test of another worker has an image mounted takes a copy of that mount along,
    and unmounting the original then neither writes the filesystem out nor frees its loop device.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if hasattr(config, "workerinput"):
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
    if os.geteuid() == 0:
        if ctypes.CDLL(None, use_errno=True).unshare(_CLONE_NEWNS):
            raise OSError(ctypes.get_errno(), "unshare")
        subprocess.run(["mount", "--make-rprivate", "/"], check=True)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes long comes first: else one core works on the last of it while the others have nothing to do."""
    items.sort(key=lambda item: not (item.get_closest_marker("boot") or item.get_closest_marker("long")))


def _stand_in(arch: Arch, generation: str) -> Path:
    """The folder of a stand-in release server; another run of the same scripts has built it, or it is built now."""
    root = cache.folder() / f"release-{arch}-{generation}-{cache.scripts_digest()}"
    spec = release.Spec(main.DEFAULT_VERSION[generation], "stable", arch, generation)
    main.make(root, spec, Console())
    cache.keep("release", root)
    return root


@pytest.fixture(scope="session")
def stand_in() -> Path:
    """A release server with one x86-64 release of the old layout; shared by all runs, so never write into it."""
    return _stand_in(Arch.X86_64, "old")


@pytest.fixture(scope="session")
def stand_in_new() -> Path:
    """Like `stand_in`, with the new layout."""
    return _stand_in(Arch.X86_64, "new")


@pytest.fixture(scope="session")
def stand_in_arm64() -> Path:
    """Like `stand_in`, for arm64; nothing in it boots."""
    return _stand_in(Arch.ARM64, "old")


@pytest.fixture(scope="session")
def upstream(tmp_path_factory: pytest.TempPathFactory) -> Iterator[mirror.Upstream]:
    """The mirror of what recipes download; `add` a recipe before building it."""
    with mirror.serve(tmp_path_factory.mktemp("upstream")) as running:
        yield running


@pytest.fixture(scope="session")
def container_image() -> Iterator[Callable[[Arch], str]]:
    """Base images for builds in containers, each made when it is first asked for."""
    with ExitStack() as stack:
        made: dict[Arch, str] = {}

        def once(arch: Arch) -> str:
            if arch not in made:
                made[arch] = stack.enter_context(base_image(arch))
            return made[arch]

        yield once
