"""debugfs as a service: batches of commands on one ext4 partition of an image, and what they print.

debugfs edits without root, but it never fails by exit status, so every word on stderr counts as a failure. Names in
an image are not to be trusted: output that may hold them is parsed by a grammar that they cannot break out of.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from baker import run
from baker.e2fs import alias, first_lines
from baker.errors import EnvironmentFault, ImageError
from baker.inject import kind_of
from baker.model import Partition

_SHORT_LINK = 60
_TIMES = ((0x08, 0x8C), (0x0C, 0x84), (0x10, 0x88), (0x90, 0x94))
_BATCH = 500
_ENTRY = re.compile(rb"/(\d+)/([0-7]{6})/-?\d+/-?\d+/([^/]*)/(\d*)/\n")
_DUMP_LINE = re.compile(rb"^([0-7]+)  ((?:[0-9a-f]{4} ){8})", re.MULTILINE)
_EXTENT = re.compile(rb"^ *\d+/ *\d+ +\d+/ *\d+ +(\d+) - +(\d+) +(\d+) - +(\d+) +(\d+)( Uninit)? *$", re.MULTILINE)


class DebugfsRefused(ImageError):
    """debugfs said that a command failed; its exit status never tells."""


@dataclass(frozen=True)
class Entry:
    """A directory entry: its name, inode number, file mode with type bits, and size in bytes (0 for directories)."""

    name: bytes
    inode: int
    mode: int
    size: int

    @property
    def kind(self) -> str:
        """As `Node.kind`."""
        return kind_of(self.mode)


@dataclass(frozen=True)
class Inode:
    """The fields of an inode that matter to an injection (kernel: Documentation/filesystems/ext4/inodes.rst)."""

    number: int
    mode: int
    uid: int
    gid: int
    size: int
    links: int
    allocated: int
    """Bytes of blocks it holds."""
    times: tuple[tuple[int, int], ...]
    """Access, change, modification and creation time: seconds, and the word with nanoseconds and epoch bits."""
    short_target: bytes | None
    """The target of a symlink that is kept in the inode itself."""

    @classmethod
    def parse(cls, number: int, raw: bytes) -> Inode:
        """Read the first 256 bytes of an inode."""

        def half(at: int) -> int:
            return int.from_bytes(raw[at : at + 2], "little")

        def word(at: int) -> int:
            return int.from_bytes(raw[at : at + 4], "little")

        mode, size = half(0x00), word(0x04) | word(0x6C) << 32
        return cls(
            number=number,
            mode=mode,
            uid=half(0x02) | half(0x78) << 16,
            gid=half(0x18) | half(0x7A) << 16,
            size=size,
            links=half(0x1A),
            allocated=(word(0x1C) | half(0x74) << 32) * 512,
            times=tuple((word(at), word(extra)) for at, extra in _TIMES),
            short_target=raw[0x28 : 0x28 + size] if stat.S_ISLNK(mode) and size < _SHORT_LINK else None,
        )


@dataclass(frozen=True)
class Extent:
    """`length` blocks of a file from block `logical` on, stored from block `physical` of the filesystem on."""

    logical: int
    physical: int
    length: int


class Debugfs:
    """Runs batches of debugfs commands on one partition of an image.

    `folder` must be an empty one of our own; it is the working directory of debugfs, so that commands name host
    files by plain relative names. Anything debugfs says on stderr raises DebugfsRefused, and EnvironmentFault when
    it is about the host's space.
    """

    def __init__(self, image: Path, partition: Partition, folder: Path, epoch: int) -> None:
        self.folder = folder
        self._device = f"{alias(image, folder)}?offset={partition.offset}"
        self._bounds = run.Bounds(writable=(folder, image.absolute()))
        self._label = partition.label
        self._epoch = epoch

    def read(self, commands: Sequence[str]) -> list[bytes]:
        """Run commands whose output is no text from the image; returns the output of each."""
        output = _Output(self._run(commands, []), self._label)
        return [output.until(command, after) for command, after in zip(commands, [*commands[1:], None], strict=True)]

    def write(self, commands: Iterable[str]) -> None:
        """Run commands that change the filesystem, with the clock at `epoch`."""
        self._run([f"set_current_time @{max(1, self._epoch)}", *commands], ["-w"])

    def _run(self, commands: Iterable[str], options: Sequence[str]) -> bytes:
        script = self.folder / "commands"
        script.write_text("".join(f"{command}\n" for command in commands), "utf-8")
        argv = ["debugfs", *options, "-f", script.name, self._device]
        done = run.run(argv, cwd=self.folder, ok=(0, 1), bounds=self._bounds)
        complaints = "\n".join(line for line in done.stderr.splitlines() if not line.startswith("debugfs 1."))
        if os.strerror(errno.ENOSPC) in complaints:  # of the host; a full filesystem in the image has other words
            raise EnvironmentFault(
                f"There is no space left where {self._label} is edited.", "Free some, or choose another --output-dir."
            )
        if complaints or done.status:
            raise DebugfsRefused(f"debugfs could not edit {self._label}: {first_lines(complaints)}")
        return done.stdout

    def listing(self, inodes: Sequence[int]) -> list[list[Entry]]:
        """The entries of directories, without `.` and `..`. Names may be any bytes but `/`."""
        found = []
        for start in range(0, len(inodes), _BATCH):
            commands = [f"ls -p <{inode}>" for inode in inodes[start : start + _BATCH]]
            output = _Output(self._run(commands, []), self._label)
            found += [output.entries(command) for command in commands]
        return found

    def inodes(self, numbers: Sequence[int]) -> list[Inode]:
        """The inodes with these numbers."""
        dumps = []
        for start in range(0, len(numbers), _BATCH):
            dumps += self.read([f"inode_dump <{number}>" for number in numbers[start : start + _BATCH]])
        return [Inode.parse(number, _parse_dump(dump)) for number, dump in zip(numbers, dumps, strict=True)]

    def extents(self, inode: int) -> list[Extent]:
        """The extents of a file, in order; raises DebugfsRefused when they are not one gapless run from block 0."""
        found = [tuple(map(int, match[:5])) for match in _EXTENT.findall(self.read([f"dump_extents -l <{inode}>"])[0])]
        expected = 0
        for logical, last, physical, physical_last, length in found:
            if logical != expected or last != logical + length - 1 or physical_last != physical + length - 1:
                raise DebugfsRefused(f"debugfs described the extents of inode {inode} in {self._label} oddly.")
            expected += length
        return [Extent(logical, physical, length) for logical, _, physical, _, length in found]

    def content(self, inode: int, limit: int) -> bytes:
        """The first `limit` bytes of a file or long symlink."""
        argv = ["debugfs", "-R", f"cat <{inode}>", self._device]
        with run.spawn(argv, cwd=self.folder, bounds=run.Bounds()) as process:
            assert process.stdout is not None
            data = process.stdout.read(limit)
            if len(data) < limit:
                run.check_killed(argv[0], process.wait())
            return data

    def dump(self, inodes: Sequence[int]) -> list[Path]:
        """Copy the contents of files into `folder`; the caller removes them."""
        targets = [self.folder / f"dump{inode}" for inode in inodes]
        self.read([f"dump <{inode}> {target.name}" for inode, target in zip(inodes, targets, strict=True)])
        return targets


class _Output:
    """What a batch printed, consumed command by command: each is echoed as `debugfs: COMMAND` before its output."""

    def __init__(self, data: bytes, label: str) -> None:
        self._data, self._at, self._label = data, 0, label

    def _take(self, expected: bytes) -> None:
        if not self._data.startswith(expected, self._at):
            raise ImageError(f"The directories of {self._label} could not be read.", "A file name in it is malformed.")
        self._at += len(expected)

    def until(self, command: str, after: str | None) -> bytes:
        """The output of `command`, which ends where the echo of the next begins."""
        self._take(f"debugfs: {command}\n".encode())
        start = self._at
        end = len(self._data) if after is None else self._data.find(f"debugfs: {after}\n".encode(), start)
        self._at = max(start, end)
        return self._data[start : self._at]

    def entries(self, command: str) -> list[Entry]:
        """The output of `ls -p`. A name ends at the next `/`, which none contains: newlines in it fool nobody."""
        self._take(f"debugfs: {command}\n".encode())
        found = []
        while match := _ENTRY.match(self._data, self._at):
            inode, mode, name, size = match.groups()
            found.append(Entry(name, int(inode), int(mode, 8), int(size or 0)))
            self._at = match.end()
        self._take(b"\n")
        # Entries of inode 0 are unused room in the directory.
        return [entry for entry in found if entry.inode and entry.name not in (b".", b"..")]


def _parse_dump(dump: bytes) -> bytes:
    """The first 256 bytes of a hex dump: lines of an octal offset and 16 bytes; `*` stands for repeated lines."""
    raw, filled, last = bytearray(256), 0, bytes(16)
    lines = [(int(match[1], 8), bytes.fromhex(match[2].decode())) for match in _DUMP_LINE.finditer(dump)]
    for start, data in [*lines, (len(raw), b"")]:
        for gap in range(filled, min(start, len(raw)), 16):
            raw[gap : gap + 16] = last
        if start < len(raw):
            raw[start : start + 16] = last = data
        filled = start + 16
    return bytes(raw)
