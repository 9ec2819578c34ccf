"""--stack: the arrays that the tasks of a run wrote, all in one file.

Each complete task has at most one output that ends as was asked for, `.npy` if nothing was. An
array with one axis is one row; of one with several the first axis counts rows, so a task that is a
batch of things gives as many rows as it has things. Rows come in input order, and within a task as
they were.

The id of a row is its task's key; of a task with several rows key[0], key[1], and so on. Where a
task wrote ids beside its array (`x.ids.txt` beside `x.npy`, a line for each row), it is these.

All rows must have one shape and one type, and the first that was met says which. The others are
looked at to the end, so that all that differ can be told, and then nothing is written.

Bytes are copied as they are, piece by piece: neither NumPy nor memory for the whole is needed.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO, Protocol

import msgspec

from gpuspool.orchestrator.export.arrow import VectorWriter
from gpuspool.orchestrator.export.npy import (
    Header,
    NpyError,
    check_size,
    make_header,
    read_elements,
    read_header,
)
from gpuspool.orchestrator.export.required import refuse_unreadable
from gpuspool.orchestrator.export.saved import BUFFER_BYTES, is_stream, saved_together
from gpuspool.orchestrator.report.results import Results, ResultState
from gpuspool.orchestrator.text.words import count_of, to_type
from gpuspool.spool.errors import UsageError
from gpuspool.spool.open_folder import out_of
from gpuspool.spool.publish import naming, open_plain
from gpuspool.spool.states import Verdict
from gpuspool.spool.view import View

# How the outputs end that are stacked, and how the file is named that has the ids of their rows.
NPY = ".npy"
ARROW = ".arrow"
IDS = ".ids.txt"

# So many of the arrays that do not fit, and of the tasks without any, are named.
NAMED = 5

# No file has more rows, and the header is made so long that their number fits into it.
MOST_ROWS = 10**18


class Stacked(msgspec.Struct, frozen=True):
    """What became one file.

    rows: how many there are, each of this `shape` and `dtype` (as NumPy writes it). tasks: of how
    many tasks. without: the keys of the first few complete tasks that have no such output;
    n_without: how many these are. n_unreadable: how many complete tasks have no row since nobody
    can read any more what their outputs are.
    """

    rows: int
    shape: tuple[int, ...]
    dtype: str
    tasks: int
    without: list[str]
    n_without: int
    n_unreadable: int = 0


class _Array(msgspec.Struct, frozen=True):
    """The output of a task that is stacked. ids: the name of the output with the ids of its rows,
    None if there is none.
    """

    index: int
    key: str
    name: str
    ids: str | None


class _Sink(Protocol):
    """Takes rows."""

    def name(self, index: int, key: str, ids: Sequence[str], /) -> None:
        """Say whose the next rows are: those of a task, and the ids of them."""

    def put(self, piece: bytes, /) -> None:
        """Take the next elements. Raises OSError."""

    def close(self) -> None:
        """Write what is left. Raises OSError."""


class _NpySink:
    """Writes a .npy file, and the ids of its rows into another."""

    def __init__(self, file: BinaryIO, ids: BinaryIO, dtype: str, row: tuple[int, ...]) -> None:
        self._file = file
        self._ids = ids
        self._dtype = dtype
        self._row = row
        self._rows = 0
        # Written again at the end, when the number of rows is known, in the same place.
        self._header_bytes = len(make_header(dtype, (MOST_ROWS, *row)))
        file.write(bytes(self._header_bytes))

    def put(self, piece: bytes) -> None:
        self._file.write(piece)

    def name(self, _index: int, _key: str, ids: Sequence[str]) -> None:
        self._rows += len(ids)
        self._ids.write("".join(f"{one}\n" for one in ids).encode(errors="backslashreplace"))

    def close(self) -> None:
        self._file.seek(0)
        self._file.write(make_header(self._dtype, (self._rows, *self._row), self._header_bytes))


def stack(
    view: View, files: Sequence[Path], suffix: str = NPY, *, is_complete_required: bool = False
) -> Stacked:
    """Put the arrays of all complete tasks into these files, which end in `.npy` or `.arrow`.

    suffix: how the outputs end that are meant. is_complete_required: of each complete task the line
    must be readable, or Incomplete is raised. Raises UsageError where there are no arrays, where
    some do not fit, and where one is no such file. In all these cases nothing is written. Raises
    OSError.
    """
    paths = _paths(files)
    return _Stack(view, suffix, is_complete_required).write(paths)


def _paths(files: Sequence[Path]) -> list[Path]:
    """All files that are written for these, of which those with ids come first."""
    if not files:
        raise UsageError("--stack: name a file that ends in .npy or .arrow.")
    for file in files:
        if file.suffix not in (NPY, ARROW):
            raise UsageError(f"--stack {file}: the name must end in .npy or .arrow.")
        if is_stream(file) and not file.is_dir():
            raise UsageError(f"--stack {file}: it is no plain file, and cannot appear at once.")
    ids = [ids_of(file) for file in files if file.suffix == NPY]
    return [*ids, *sorted(files, key=lambda file: file.suffix == NPY)]


def ids_of(file: Path) -> Path:
    """Where the ids of the rows of a .npy file stand."""
    return file.with_suffix(IDS)


class _Stack:
    """One call of `stack`."""

    def __init__(self, view: View, suffix: str, is_complete_required: bool) -> None:
        self._view = view
        self._is_complete_required = is_complete_required
        self._suffix = suffix
        self._root = view.layout.root
        self._out = out_of(view.layout, view.run)
        self._tasks = range(view.ledger.tasks)
        self._results = Results(view)
        # The array that says what all others must be.
        self._first: tuple[_Array, Header] | None = None
        self._misfits: list[str] = []
        self._n_misfits = 0
        self._rows = 0
        self._n_tasks = 0
        self._without: list[str] = []
        self._n_without = 0
        self._n_unreadable = 0
        self._sinks: list[tuple[Path, _Sink]] = []

    def write(self, paths: Sequence[Path]) -> Stacked:
        """Write these files; see `_paths`."""
        with saved_together(paths) as opened:
            files = dict(zip(paths, opened, strict=True))
            for array in self._arrays():
                with self._opened(array.name) as file:
                    self._take(array, file, files)
            if self._is_complete_required:
                refuse_unreadable(self._view, self._n_unreadable)
            header = self._header()
            for path, sink in self._sinks:
                with naming(path):
                    sink.close()
        return Stacked(
            rows=self._rows,
            shape=header.row,
            dtype=header.dtype,
            tasks=self._n_tasks,
            without=self._without,
            n_without=self._n_without,
            n_unreadable=self._n_unreadable,
        )

    def _header(self) -> Header:
        """That of the first array. Raises UsageError where there is none, or some do not fit."""
        if self._first is None:
            raise UsageError(
                f"no complete task has an output that ends in {self._suffix}, so there is nothing "
                "to stack. --suffix says how the outputs end; they must be files as numpy.save "
                "writes them."
            )
        array, header = self._first
        if self._n_misfits:
            others = count_of(self._n_misfits, "output differs", "outputs differ")
            more = self._n_misfits - len(self._misfits)
            tail = f"; and {more} more" if more else ""
            raise UsageError(
                f"the rows of {array.name} are {_kind(header)}, and {others}: "
                f"{'; '.join(self._misfits)}{tail}. Nothing was written. If they belong to several "
                "outputs of each task, say with --suffix which are meant."
            )
        return header

    def _arrays(self) -> Iterator[_Array]:
        """The output of each complete task that is stacked, in input order."""
        verdict = self._view.ledger.verdict
        for tasks, _, lines in self._results.windows(self._tasks):
            keys = self._results.keys_of(tasks)
            for task, key, line in zip(tasks, keys, lines, strict=True):
                if line is None:
                    self._n_unreadable += verdict(task) is Verdict.COMPLETE
                elif line.state is ResultState.COMPLETE:
                    names = self._results.outputs_of(task, line) if line.outputs else []
                    array = self._array_of(task, key or f"#{task}", names)
                    if array is not None:
                        yield array

    def _array_of(self, task: int, key: str, names: list[str]) -> _Array | None:
        """Which of its outputs is the array of a task; None where none is."""
        ours = [name for name in names if name.endswith(self._suffix)]
        if len(ours) > 1:
            raise UsageError(
                f"task {key} has {len(ours)} outputs that end in {self._suffix}: "
                f"{', '.join(ours[:NAMED])}. Say with --suffix which are meant."
            )
        if not ours:
            self._n_without += 1
            if len(self._without) < NAMED:
                self._without.append(key)
            return None
        ids = ours[0].removesuffix(self._suffix) + IDS
        return _Array(task, key, ours[0], ids if ids in names else None)

    @contextlib.contextmanager
    def _opened(self, name: str) -> Iterator[BinaryIO]:
        """An output, open for reading. Raises UsageError where it is not there, and OSError."""
        path = self._out / name
        fd = open_plain(path)
        if fd is None:
            raise UsageError(
                f"the output {path} is not there any more. "
                f"{to_type('redo', self._root, '--missing-outputs')} makes it again."
            )
        if stat.S_ISDIR(os.fstat(fd).st_mode):
            os.close(fd)
            raise UsageError(f"the output {path} cannot be stacked: it is a folder.")
        try:
            with naming(path), os.fdopen(fd, "rb", BUFFER_BYTES) as file:
                yield file
        except NpyError as error:
            raise UsageError(f"the output {path} cannot be stacked: {error}.") from None

    def _take(self, array: _Array, file: BinaryIO, files: Mapping[Path, BinaryIO]) -> None:
        """Write the rows of an array that is open, or note that it does not fit."""
        header = read_header(file)
        check_size(header, os.fstat(file.fileno()).st_size)
        if self._first is None:
            self._first = array, header
            self._sinks = _sinks(files, header)
        first = self._first[1]
        if (header.row, header.dtype) != (first.row, first.dtype):
            self._n_misfits += 1
            if len(self._misfits) < NAMED:
                self._misfits.append(f"{array.name} {_kind(header)}")
        if self._n_misfits:
            return
        ids = self._ids(array, header.rows)
        for path, sink in self._sinks:
            with naming(path):
                sink.name(array.index, array.key, ids)
        for piece in read_elements(file, header):
            for path, sink in self._sinks:
                with naming(path):
                    sink.put(piece)
        self._rows += header.rows
        self._n_tasks += 1

    def _ids(self, array: _Array, rows: int) -> list[str]:
        """The ids of the rows of an array."""
        if array.ids is None:
            return [array.key] if rows == 1 else [f"{array.key}[{row}]" for row in range(rows)]
        with self._opened(array.ids) as file:
            ids = file.read().decode(errors="replace").split("\n")
        # No line begins behind the last newline, and none is in an empty file.
        if not ids[-1]:
            ids.pop()
        if len(ids) != rows:
            raise UsageError(
                f"the output {self._out / array.ids} has {count_of(len(ids), 'line')}, and "
                f"{array.name} {count_of(rows, 'row')}: it must be a line for each row."
            )
        return [one.removesuffix("\r") for one in ids]


def _sinks(files: Mapping[Path, BinaryIO], header: Header) -> list[tuple[Path, _Sink]]:
    """What writes rows as this header has them into these files."""
    sinks: list[tuple[Path, _Sink]] = []
    for path, file in files.items():
        if path.suffix == ARROW:
            sinks.append((path, VectorWriter(file, header.dtype, header.row)))
        elif path.suffix == NPY:
            sinks.append((path, _NpySink(file, files[ids_of(path)], header.dtype, header.row)))
    return sinks


def _kind(header: Header) -> str:
    """ "(768,) <f4" """
    return f"{header.row} {header.dtype}"
