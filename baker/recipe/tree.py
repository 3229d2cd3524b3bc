"""The extension's tree while it is made: files enter it by absolute path, and nothing ever leaves its folder.

What enters comes from archives that nobody may trust: a link that one of them brings is never followed.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from baker.errors import ImageError, UsageError
from baker.recipe.entries import tree_path
from baker.recipe.globs import covers
from baker.recipe.model import EXECUTABLE, PLAIN
from baker.sparse import clone


class Tree:
    """A folder that becomes an extension. Errors begin with `where`: file and line of the recipe's entry."""

    def __init__(self, root: Path, exists: bool = False) -> None:
        if not exists:
            root.mkdir()
        self.root = root
        self._moved: dict[Path, Path] = {}

    def put(self, path: str, source: Path, mode: int | None, where: str) -> None:
        """Move a file or link here. What was moved already is copied. Without a mode, an x bit decides."""
        target = self._new(path, where)
        if source.is_symlink():
            target.symlink_to(os.readlink(source))
            return
        origin = self._moved.get(source)
        if origin is None:
            self._moved[source] = source.rename(target)
        else:
            clone(origin, target)
            shutil.copymode(origin, target)
        target.chmod(_mode(target) if mode is None else mode)

    def copy(self, path: str, source: Path, where: str) -> None:
        """Copy a file or link of the recipe's own here."""
        target = self._new(path, where)
        if source.is_symlink():
            target.symlink_to(os.readlink(source))
        else:
            shutil.copyfile(source, target)
            target.chmod(_mode(source))

    def write(self, path: str, content: str, mode: int, where: str) -> None:
        """Make a file."""
        target = self._new(path, where)
        target.write_text(content, encoding="utf-8")
        target.chmod(mode)

    def link(self, path: str, text: str, where: str) -> None:
        """Make a symbolic link."""
        self._new(path, where).symlink_to(text)

    def edit(self, path: str, replace: tuple[tuple[str, str], ...], count: int, where: str) -> None:
        """Replace texts in a file, each of which must be there `count` times."""
        file = self.file(path)
        if file is None:
            raise ImageError(f"{where}: there is no file {path} to edit.")
        try:
            text = file.read_bytes().decode("utf-8")
        except UnicodeDecodeError as error:
            raise ImageError(f"{where}: {path} is no text, so it cannot be edited.") from error
        for old, new in replace:
            found = text.count(old)
            if found != count:
                raise ImageError(
                    f"{where}: {path} has {old!r} {found} times, not {count}.",
                    "Upstream changed the file: look at it, and correct the recipe.",
                )
            text = text.replace(old, new)
        file.write_bytes(text.encode())

    def remove(self, pattern: str, where: str, optional: bool = False) -> None:
        """Remove what a glob matches, and the folders that are empty then."""
        found = [path for path in self.paths() if covers([pattern], path)]
        if not found and not optional:
            raise ImageError(
                f"{where}: nothing in the extension matches {pattern}.",
                "Correct the pattern, or mark the entry as optional.",
            )
        for path in found:
            place = self._place(path)
            place.unlink()
            while (place := place.parent) != self.root and not os.listdir(place):
                place.rmdir()

    def open_folders(self, private: str) -> None:
        """Give folders their usual mode, whatever the umask; those below `private` keep what they have."""
        for folder, names, _ in os.walk(self.root):
            Path(folder).chmod(EXECUTABLE)
            names[:] = [name for name in names if f"{folder}/{name}" != str(self._place(private))]

    def paths(self) -> list[str]:
        """The absolute paths of all files and links, sorted."""
        return sorted(self._paths(self.root))

    def file(self, path: str) -> Path | None:
        """Where a regular file is on the host; None where there is none, or a link."""
        place = self._place(path)
        return place if not place.is_symlink() and place.is_file() and self._own(place) else None

    def has(self, path: str) -> bool:
        """Whether a file or link is there."""
        place = self._place(path)
        return os.path.lexists(place) and self._own(place)

    def _paths(self, folder: Path) -> Iterator[str]:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    yield from self._paths(Path(entry.path))
                else:
                    yield "/" + os.path.relpath(entry.path, self.root)

    def _place(self, path: str) -> Path:
        return self.root / path.lstrip("/")

    def _own(self, place: Path) -> bool:
        """Whether no link leads there."""
        return place.parent.resolve().is_relative_to(self.root.resolve())

    def _new(self, path: str, where: str) -> Path:
        """Where a new file goes; its folder is made, through folders only."""
        tree_path(path, "the path", where)
        target = self._place(path)
        for folder in [*reversed(target.relative_to(self.root).parents)][1:]:
            place = self.root / folder
            if place.is_symlink() or (place.exists() and not place.is_dir()):
                raise UsageError(f"{where}: {path} cannot be below /{folder}, which is no folder.")
            place.mkdir(mode=0o755, exist_ok=True)
        if os.path.lexists(target):
            raise UsageError(f"{where}: {path} is in the extension already.", "Exclude one of the two.")
        return target


def _mode(file: Path) -> int:
    return EXECUTABLE if file.stat().st_mode & 0o111 else PLAIN
