"""A table of results, from a view to a file.

Called by `api/exporting.py`, and with another writer by `frame.py`.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterator, Sequence
from enum import StrEnum
from typing import BinaryIO, Protocol

from gpuspool.orchestrator.export.arrow import ParquetWriter
from gpuspool.orchestrator.export.columns import Chunk, Field
from gpuspool.orchestrator.export.csv_text import CsvWriter
from gpuspool.orchestrator.export.flatten import Flattener
from gpuspool.orchestrator.export.jsonl import JsonWriter
from gpuspool.orchestrator.export.rows import FIELDS, RESULT, Rows
from gpuspool.orchestrator.report.results import ResultState
from gpuspool.spool.view import View


class Format(StrEnum):
    """In which form a table is written; also how the name of its file ends."""

    JSONL = "jsonl"
    CSV = "csv"
    PARQUET = "parquet"


class Writer(Protocol):
    """Writes the rows of a table into a file."""

    def write(self, chunk: Chunk) -> None:
        """Write some rows. Raises OSError."""

    def close(self) -> None:
        """Write what is left. Raises OSError."""


class Table:
    """The fields and the rows of a view, as it was refreshed last."""

    def __init__(
        self, view: View, states: Collection[ResultState] = (), *, is_flat: bool = False
    ) -> None:
        """states: only tasks with one of these; all where there are none. is_flat: with a column
        for each scalar at the top of the results. Raises UsageError and OSError.
        """
        self._flattener: Flattener | None = None
        if is_flat:
            self._flattener = Flattener(field.name for field in FIELDS)
        has_results = not states or ResultState.COMPLETE in states
        hears = self._flattener is not None and has_results
        self._rows = Rows(
            view, states, self._flattener.learn if hears and self._flattener else None
        )
        self.fields: Sequence[Field] = FIELDS
        if self._flattener is not None:
            self.fields = (*FIELDS, *self._flattener.fields())

    @property
    def unreadable(self) -> int:
        """Of how many complete tasks the rows so far have no result, as it cannot be read."""
        return self._rows.unreadable

    def chunks(self) -> Iterator[Chunk]:
        """All rows, some at a time; see `Chunk`. Raises OSError."""
        if self._flattener is None:
            return self._rows.chunks()
        return map(functools.partial(_with_scalars, self._flattener), self._rows.chunks())


def _with_scalars(flattener: Flattener, chunk: Chunk) -> Chunk:
    """The same rows, with a column for each scalar of their results."""
    return Chunk(chunk.rows, [*chunk.columns, *flattener.columns(chunk.columns[RESULT])])


def writer_of(format_: Format, file: BinaryIO, fields: Sequence[Field]) -> Writer:
    """What writes a table with these fields into a file. Raises UsageError where a library that it
    needs is missing.
    """
    match format_:
        case Format.JSONL:
            return JsonWriter(file, fields)
        case Format.CSV:
            return CsvWriter(file, fields)
        case Format.PARQUET:
            return ParquetWriter(file, fields)


def write_rows(table: Table, format_: Format, file: BinaryIO) -> int:
    """Write all rows of a table into a file; returns how many rows it has. Raises OSError."""
    writer = writer_of(format_, file, table.fields)
    rows = 0
    for chunk in table.chunks():
        writer.write(chunk)
        rows += chunk.rows
        # Before the next one is made; see `Chunk`.
        del chunk
    writer.close()
    return rows
