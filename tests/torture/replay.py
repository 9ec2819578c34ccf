"""What a disk may hold after a power cut: a model file system that promises what POSIX promises.

A record is a list of calls in one order. At a cut, a moment in it, everything is certain that a
finished fsync covers:

- fsync or fdatasync of a file covers what was written to it by calls that had returned before the
  sync began.
- fsync of a folder covers the names that were made, moved or removed in it by calls that had
  returned before the sync began.

Everything else is in doubt, each thing by itself and in any combination, as in ALICE (OSDI'14). A
name may be as it was before, although a later one in the same folder is not. Data may be missing,
cut short at any byte, or zeroes of the right length. A name may be there without its file's data,
and data without its name. A rename within a folder is one change. Syncing a file promises nothing
about its name, and syncing a folder promises nothing about the files in it.
"""

from __future__ import annotations

import hashlib
import os
import zlib
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

# The inode of the folder that is recorded. Other folders have numbers below it, files above.
ROOT = 0


@dataclass(frozen=True, eq=False)
class Op:
    """One call. begin, end: when it was made and when it had returned. spared: it is not lost."""

    begin: int
    end: float
    inode: int
    spared: bool = field(default=False, kw_only=True)


@dataclass(frozen=True, eq=False)
class Names(Op):
    """In one step, names in the folder `inode` came to lead elsewhere, or to nothing (None)."""

    changes: tuple[tuple[str, int | None], ...]


@dataclass(frozen=True, eq=False)
class Write(Op):
    """Bytes were written to a file at an offset."""

    offset: int
    data: bytes


@dataclass(frozen=True, eq=False)
class Size(Op):
    """A file was cut, or filled up with zeroes."""

    size: int


@dataclass(frozen=True, eq=False)
class Sync(Op):
    """fsync or fdatasync of a file or folder."""


@dataclass(frozen=True)
class Record:
    """What was on disk at the start, all of it certain, and every call since, by its begin."""

    home: Path
    names: Mapping[int, Mapping[str, int]]
    data: Mapping[int, bytes]
    ops: list[Op]

    def cuts(self) -> list[int]:
        """Every moment at which something more may, or must, be on disk."""
        return sorted(
            {
                int(op.end) if isinstance(op, Sync) else op.begin
                for op in self.ops
                if op.end < float("inf")
            }
        )


@dataclass(frozen=True)
class State:
    """What a disk holds: path -> inode (None for folders), inode -> bytes.

    Two paths may lead to one inode.
    """

    paths: Mapping[str, int | None]
    data: Mapping[int, bytes]

    def digest(self) -> str:
        """A hash that is equal for states which nobody can tell apart."""
        first: dict[int, str] = {}
        known = hashlib.sha256()
        for path, inode in sorted(self.paths.items()):
            body = (
                b"/"
                if inode is None
                else first.setdefault(inode, path).encode() + b"\0" + self.data[inode]
            )
            known.update(b"%d %d " % (len(path), len(body)) + path.encode() + body)
        return known.hexdigest()

    def tree(self) -> dict[str, bytes | None]:
        """The state in the form in which `helpers.tree` tells of a real folder."""
        return {
            path: None if inode is None else self.data[inode] for path, inode in self.paths.items()
        }

    def write(self, home: Path, was: Path) -> None:
        """Make it a real folder. Where data names the recorded folder, it names this one instead.

        Both names must have the same length, so that no size changes. No sealed line may hold one.
        run.json does, and is sealed anew if its seal was right.
        """
        old, new = os.fsencode(was), os.fsencode(home)
        assert len(old) == len(new), (was, home)
        first: dict[int, Path] = {}
        home.mkdir()
        for name, inode in sorted(self.paths.items()):
            path = home / name
            if inode is None:
                path.mkdir(0o755)
            elif inode in first:
                os.link(first[inode], path)
            else:
                fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
                os.write(fd, _renamed(self.data[inode], old, new))
                os.close(fd)
                first[inode] = path


def _renamed(data: bytes, old: bytes, new: bytes) -> bytes:
    tail = b',\n  "crc": "%08x"\n}\n'
    body = data[: -len(tail % 0)]
    if data != body + tail % zlib.crc32(body):
        return data.replace(old, new)
    body = body.replace(old, new)
    return body + tail % zlib.crc32(body)


class Moment:
    """A cut through a record: what is certain, and the names and data that are in doubt.

    data: for each file in doubt, what it holds for certain, and what it held for the processes.
    """

    def __init__(self, record: Record, cut: float) -> None:
        self.record = record
        synced = {op.inode: op.begin for op in record.ops if isinstance(op, Sync) and op.end <= cut}
        self._ops = [op for op in record.ops if op.begin <= cut and not isinstance(op, Sync)]
        self._certain = {op for op in self._ops if op.spared or op.end < synced.get(op.inode, -1)}
        self.names = [op for op in self._ops if isinstance(op, Names) and op not in self._certain]
        in_doubt = {
            op.inode for op in self._ops if not isinstance(op, Names) and op not in self._certain
        }
        before = _contents(record.data, (op for op in self._ops if op in self._certain))
        self._after = _contents(record.data, self._ops)
        self.data = {
            inode: (before.get(inode, b""), self._after[inode]) for inode in sorted(in_doubt)
        }

    def seen(self) -> State:
        """What the processes saw: as if they had been killed, and the machine lived."""
        return self.state(self.names, {})

    def state(self, names: Collection[Names], data: Mapping[int, bytes]) -> State:
        """The disk with these of the names in doubt and these contents.

        Other files hold everything that was written to them.
        """
        kept = set(names)
        folders: dict[int, dict[str, int]] = {
            inode: dict(found) for inode, found in self.record.names.items()
        }
        for op in self._ops:
            if isinstance(op, Names) and (op in self._certain or op in kept):
                _change(folders.setdefault(op.inode, {}), op)
        paths = dict(_walk(folders, ROOT, ""))
        contents = {
            inode: data.get(inode, self._after.get(inode, b""))
            for inode in paths.values()
            if inode is not None
        }
        return State(paths, contents)


def _change(folder: dict[str, int], op: Names) -> None:
    for name, inode in op.changes:
        if inode is None:
            folder.pop(name, None)
        else:
            folder[name] = inode


def _contents(start: Mapping[int, bytes], ops: Iterable[Op]) -> dict[int, bytes]:
    """The bytes of each inode after these writes."""
    found = {inode: bytearray(data) for inode, data in start.items()}
    for op in ops:
        if isinstance(op, Write):
            body = found.setdefault(op.inode, bytearray())
            body.extend(bytes(max(0, op.offset - len(body))))
            body[op.offset : op.offset + len(op.data)] = op.data
        elif isinstance(op, Size):
            body = found.setdefault(op.inode, bytearray())
            body.extend(bytes(max(0, op.size - len(body))))
            del body[op.size :]
    return {inode: bytes(body) for inode, body in found.items()}


def _walk(
    folders: Mapping[int, Mapping[str, int]], inode: int, prefix: str
) -> Iterator[tuple[str, int | None]]:
    for name, child in folders.get(inode, {}).items():
        path = f"{prefix}{name}"
        yield path, child if child > ROOT else None
        yield from _walk(folders, child, f"{path}/")
