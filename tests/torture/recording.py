"""Recording what a run does to its files: strace's log, read as calls of `replay.py` in one order.

strace stops a process before and after each call. So for every call the log has a moment at which
it had surely not begun, and one at which it had surely ended. Calls are ordered by the first. That
is a legal order, since nobody can see what a call did before it has begun. A sync covers only what
had ended before the sync began.

That nothing is missing is proved: the folder that follows from the record must be, at its end, what
is really there, byte for byte.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from helpers import Box, tree

from torture.replay import ROOT, Moment, Names, Op, Record, Size, Sync, Write

STRACE = ("strace", "-f", "-y", "-xx", "-s", "16777216", "--seccomp-bpf", "-qq")
OPENING = ("open", "openat", "openat2", "creat")
MAKING = ("mkdir", "mkdirat")
REMOVING = ("unlink", "unlinkat", "rmdir")
LINKING = ("link", "linkat")
RENAMING = ("rename", "renameat", "renameat2")
WRITING = ("write", "pwrite64", "writev", "ftruncate")
SYNCING = ("fsync", "fdatasync")
UNKNOWN = (
    "truncate", "fallocate", "sendfile", "copy_file_range", "splice", "pwritev", "pwritev2",
    "symlink", "symlinkat", "mknod", "mknodat",
)  # fmt: skip
CALLS = (*OPENING, *MAKING, *REMOVING, *LINKING, *RENAMING, *WRITING, *SYNCING, *UNKNOWN)

_LINE = re.compile(r"(\d+) +(?:<\.\.\. \w+ resumed>)?(.*?)( <unfinished \.\.\.>)?\n")
_CALL = re.compile(r"(\w+)\((.*)\) += (-?\d+)(?:<\S*>)?(?:\(deleted\))?(?: .*)?", re.DOTALL)
_FD = re.compile(r"(?:AT_FDCWD|\d+)<([^>]*)>(?:\(deleted\))?")
_HELD = re.compile(r"^/proc/self/fd/\d+")
_TEXT = re.compile(r'"([^"]*)"')


class NotRecorded(Exception):
    """The recording would not tell everything that happened."""


@dataclass(frozen=True)
class Call:
    """One system call that succeeded. begin, end: places in the log. args: strings are in hex."""

    begin: int
    end: int
    name: str
    args: list[str]
    result: int


def missing_strace() -> str | None:
    """Why nothing can be recorded here; None if it can."""
    if shutil.which("strace") is None:
        return "strace is not installed"
    done = subprocess.run([*STRACE, "-o", "/dev/null", "true"], capture_output=True, text=True)
    return (
        None if done.returncode == 0 else f"strace does not work here: {done.stderr.strip()[:200]}"
    )


def record(box: Box, program: Sequence[str | Path], *, spared: str, **variables: str) -> Record:
    """Run a program in the box's folder, and record everything that happens below that folder.

    spared: a folder of the test's own, below which nothing is ever lost. Raises NotRecorded.
    """
    log = box.home.with_name(f"{box.home.name}.strace")
    translator = Translator(box.home, spared)
    # The question marks allow for machines that do not have every call.
    calls = ",".join(f"?{name}" for name in CALLS)
    traced = (*STRACE, "-e", f"trace={calls}", "-o", str(log))
    box.run(*program, program=traced, env=variables)
    with open(log, encoding="ascii") as lines:
        succeeded = read_calls(lines)
    try:
        ops = [op for call in succeeded for op in translator.translate(call)]
    except KeyError as error:
        raise NotRecorded(f"a call names {error}, which no call had made") from None
    found = Record(box.home, translator.start_names, translator.start_data, ops)
    prove(found)
    return found


def prove(found: Record) -> None:
    """Raises NotRecorded if the record does not end in what is on disk."""
    expected, actual = Moment(found, float("inf")).seen().tree(), tree(found.home)
    wrong = [
        path
        for path in expected.keys() | actual.keys()
        if expected.get(path, 0) != actual.get(path, 0)
    ]
    if wrong:
        raise NotRecorded(
            f"the record does not rebuild {len(wrong)} of {len(actual)} paths, {min(wrong)} for one"
        )


def read_calls(lines: Iterable[str]) -> list[Call]:
    """The calls of a log that succeeded, in the order in which they began."""
    found: list[Call] = []
    begun: dict[str, tuple[int, str]] = {}
    for place, line in enumerate(lines):
        match = _LINE.fullmatch(line)
        if match is None:
            raise NotRecorded(f"strace says {line[:200]!r}")
        pid, text, is_unfinished = match.groups()
        if text.startswith(("---", "+++")):
            continue
        begin, head = begun.pop(pid, (place, ""))
        if is_unfinished:
            begun[pid] = place, text
            continue
        call = _CALL.fullmatch(head + text)
        if call is not None and int(call[3]) >= 0:
            found.append(Call(begin, place, call[1], call[2].split(", "), int(call[3])))
    return sorted(found, key=lambda call: call.begin)


def _unhex(text: str) -> bytes:
    return bytes.fromhex(text.replace("\\x", ""))


def _data(text: str) -> bytes:
    """All the bytes of an argument, or of a list of buffers."""
    if '"...' in text:
        raise NotRecorded("strace cut a string short")
    return b"".join(map(_unhex, _TEXT.findall(text)))


class Translator:
    """Follows the names below `home`, and tells which inodes each call is about."""

    def __init__(self, home: Path, spared: str) -> None:
        self._home, self._spared = f"{home}/", spared
        self._folders: dict[int, dict[str, int]] = {ROOT: {}}
        self._sizes: dict[int, int] = {}
        # The inode of each open file, by the path under which it was opened: strace goes on calling
        # a descriptor by that.
        self._opened: dict[str, int] = {}
        # What a worker names as /proc/self/fd/N: the spool, which every process opens before all
        # other folders that it holds.
        self._held = ""
        self.start_data: dict[int, bytes] = {}
        for path, data in tree(home).items():
            folder, name = self._place(self._home + path)
            inode = self._folders[folder][name] = self._new(data is None)
            if data is not None:
                self.start_data[inode], self._sizes[inode] = data, len(data)
        self.start_names = {inode: dict(names) for inode, names in self._folders.items()}

    def translate(self, call: Call) -> Iterator[Op]:
        """The changes that a call made below `home`; often none."""
        if call.name in UNKNOWN:
            descriptors = [os.fsdecode(_path_of(arg)) for arg in call.args]
            if any(map(self._is_ours, [*descriptors, *self._paths(call)])):
                raise NotRecorded(f"{call.name} is not understood")
        elif call.name in (*WRITING, *SYNCING):
            yield from self._by_descriptor(call)
        else:
            paths = [path for path in self._paths(call) if self._is_ours(path)]
            if paths:
                yield from self._translators()[call.name](call, *paths)

    def _paths(self, call: Call) -> list[str]:
        """The absolute paths that a call names; what it reaches by a descriptor is spelled out."""
        found = _paths(call, self._home)
        return [_HELD.sub(lambda _: self._held, path) for path in found]

    def _translators(self) -> dict[str, Callable[..., Iterator[Op]]]:
        groups = (
            (OPENING, self._open),
            (MAKING, self._make),
            (REMOVING, self._remove),
            (LINKING, self._link),
        )
        return {
            name: method for names, method in (*groups, (RENAMING, self._rename)) for name in names
        }

    def _is_ours(self, path: str) -> bool:
        return path.startswith(self._home)

    def _new(self, is_folder: bool) -> int:
        """The number of a new inode; below zero for folders."""
        number = len(self._folders) + len(self._sizes)
        if is_folder:
            self._folders[-number] = {}
            return -number
        self._sizes[number] = 0
        return number

    def _place(self, path: str) -> tuple[int, str]:
        """(inode of the folder, name in it)."""
        *parents, name = path.removeprefix(self._home).split("/")
        folder = ROOT
        for parent in parents:
            folder = self._folders[folder][parent]
        return folder, name

    def _find(self, path: str) -> int:
        if f"{path}/" == self._home:
            return ROOT
        folder, name = self._place(path)
        return self._folders[folder][name]

    def _change(
        self, call: Call, path: str, folder: int, *changes: tuple[str, int | None]
    ) -> Iterator[Op]:
        names = self._folders[folder]
        for name, inode in changes:
            if inode is None:
                names.pop(name)
            else:
                names[name] = inode
        yield Names(call.begin, call.end, folder, changes, spared=self._is_spared(path))

    def _is_spared(self, path: str) -> bool:
        return path.startswith(f"{self._home}{self._spared}/")

    def _open(self, call: Call, path: str) -> Iterator[Op]:
        flags = call.args[-1] if call.name == "openat2" else " ".join(call.args[1:3])
        if "O_PATH" in flags and not self._held:
            self._held = path
        if call.name == "creat":
            flags = "O_CREAT|O_TRUNC"
        if "O_CREAT" not in flags and "O_TRUNC" not in flags:
            return
        folder, name = self._place(path)
        inode = self._folders[folder].get(name)
        if inode is None:
            inode = self._new(False)
            yield from self._change(call, path, folder, (name, inode))
        self._opened[path] = inode
        if self._sizes[inode] and "O_TRUNC" in flags:
            self._sizes[inode] = 0
            yield Size(call.begin, call.end, inode, 0, spared=self._is_spared(path))

    def _make(self, call: Call, path: str) -> Iterator[Op]:
        folder, name = self._place(path)
        yield from self._change(call, path, folder, (name, self._new(True)))

    def _remove(self, call: Call, path: str) -> Iterator[Op]:
        folder, name = self._place(path)
        yield from self._change(call, path, folder, (name, None))

    def _link(self, call: Call, old: str, new: str) -> Iterator[Op]:
        folder, name = self._place(new)
        yield from self._change(call, new, folder, (name, self._find(old)))

    def _rename(self, call: Call, old: str, new: str) -> Iterator[Op]:
        """A rename within a folder is one change; between two folders it is one in each."""
        (folder, name), (target, renamed) = self._place(old), self._place(new)
        inode = self._folders[folder][name]
        if folder == target:
            yield from self._change(call, new, folder, (name, None), (renamed, inode))
        else:
            yield from self._change(call, new, target, (renamed, inode))
            yield from self._change(call, old, folder, (name, None))

    def _by_descriptor(self, call: Call) -> Iterator[Op]:
        path = os.fsdecode(_path_of(call.args[0]))
        if not self._is_ours(f"{path}/"):
            return
        inode = self._opened[path] if "(deleted)" in call.args[0] else self._find(path)
        spared = self._is_spared(path)
        if call.name in SYNCING:
            yield Sync(call.begin, call.end, inode)
        elif call.name == "ftruncate":
            self._sizes[inode] = int(call.args[1])
            yield Size(call.begin, call.end, inode, self._sizes[inode], spared=spared)
        else:
            # Every file here is written from its beginning on or appended to: a write goes to the
            # end.
            offset = int(call.args[3]) if call.name == "pwrite64" else self._sizes[inode]
            data = _data(" ".join(call.args[1:]))[: call.result]
            self._sizes[inode] = max(self._sizes[inode], offset + len(data))
            yield Write(call.begin, call.end, inode, offset, data, spared=spared)


def _path_of(arg: str) -> bytes:
    """The path that `-y` tells of a descriptor; "" if there is none."""
    match = _FD.fullmatch(arg)
    return _unhex(match[1]) if match and match[1].startswith("\\x") else b""


def _paths(call: Call, home: str) -> list[str]:
    """The absolute paths that a call names."""
    found, folder = [], home
    for arg in call.args:
        if _FD.fullmatch(arg):
            folder = os.fsdecode(_path_of(arg))
        elif arg.startswith('"'):
            found.append(os.path.normpath(os.path.join(folder, os.fsdecode(_data(arg)))))
            folder = home
    return found
