"""The client's files that a task needs, packed on one side and laid out on the other."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from baker.errors import UsageError
from baker.sparse import file_sha256


@dataclass(frozen=True)
class Input:
    """One file; `place` is the number of the folder it belongs into, `name` its relative path there.

    `link` is the text of a symbolic link, which has no digest.
    """

    place: int
    name: str
    sha256: str = ""
    size: int = 0
    mode: int = 0o644
    link: str = ""


class Luggage:
    """Collects the files that paths in a request mean. Each path gets a folder of its own, so names never clash."""

    def __init__(self) -> None:
        self.files: dict[str, Path] = {}
        self._words: dict[Path, dict[str, object]] = {}
        self._inputs: list[Input] = []

    @property
    def inputs(self) -> tuple[Input, ...]:
        return tuple(self._inputs)

    def word_for(self, path: Path) -> dict[str, object]:
        """What stands for a path in a task."""
        return self._words.get(path) or self.add(path)

    def add(self, path: Path, *beside: Path) -> dict[str, object]:
        """Take a file or a whole folder along, with the files `beside` it that exist.

        A path where nothing is yet stays a name. Raises UsageError for what cannot be read.
        """
        place = len(self._words)
        self._words[path] = word = {"place": place, "main": path.name if not path.is_dir() else ""}
        try:
            if path.is_dir():
                for file in sorted(path.rglob("*")):
                    if file.is_symlink():
                        name = file.relative_to(path).as_posix()
                        self._inputs.append(Input(place, name, link=os.readlink(file)))
                    else:
                        self._take(place, file, file.relative_to(path).as_posix())
            else:
                for file in (path, *beside):
                    self._take(place, file, file.name)
        except OSError as error:
            raise UsageError(f"Cannot read {error.filename or path}: {error.strerror}.") from error
        return word

    def _take(self, place: int, file: Path, name: str) -> None:
        if file.is_file():
            found, digest = file.stat(), file_sha256(file)
            self._inputs.append(Input(place, name, digest, found.st_size, found.st_mode & 0o777))
            self.files[digest] = file


def target(item: Input, folder: Path) -> Path:
    """Where an input belongs beneath `folder`, with its parent folders made; UsageError for a name that leads out."""
    name = PurePosixPath(item.name)
    if name.is_absolute() or ".." in name.parts or not name.parts or "\0" in item.name:
        raise UsageError(f"A task of the fleet wants to write to {item.name!r}.")
    path = folder / str(int(item.place)) / name
    path.parent.mkdir(parents=True, exist_ok=True)
    return path
