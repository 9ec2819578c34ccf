"""Handing results on: `export` writes a table, `stack` puts the arrays of all tasks into one file.

As the functions of `reading`, they need no GPU and no orchestrator, work in the middle of a run and
long after it, and write nothing into the spool. The files that they write appear whole or not at
all. They raise what those raise, and UsageError where a library is missing that a format needs.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

from gpuspool.orchestrator.export.required import (
    refuse_before_printing,
    refuse_incomplete,
    refuse_unreadable,
)
from gpuspool.orchestrator.export.saved import STDOUT, is_stream, refuse, saved
from gpuspool.orchestrator.export.stack import NPY, Stacked
from gpuspool.orchestrator.export.stack import stack as stack_view
from gpuspool.orchestrator.export.table import Format, Table, write_rows
from gpuspool.orchestrator.plan.locate import find_spool
from gpuspool.orchestrator.report.results import ResultState
from gpuspool.spool.errors import UsageError
from gpuspool.spool.view import open_view

Spool = str | os.PathLike[str] | None
File = str | os.PathLike[str]


def export(
    spool: Spool,
    file: File,
    format: str | None = None,
    *,
    states: str | Iterable[str] = (),
    flatten: bool = False,
    require_complete: bool = False,
) -> int:
    """Write what became of each task as a table into a file; returns how many rows it has.

    docs/results.md tells the columns. The file appears whole, or not at all.

    spool: the spool's folder; None: the only ./spool-* there is.
    file: the path of the file. One that is there is replaced.
    format: "jsonl", "csv" or "parquet". Default: as the name of the file ends.
    states: only tasks with these: "complete", "failed", "missing". Default: all.
    flatten: a column for each scalar at the top of the results.
    require_complete: raise Incomplete, and write nothing, unless every task is complete.
    """
    if os.fspath(file) == STDOUT:
        raise UsageError(f"{STDOUT} is no file. Name one, or print what `results` gives.")
    refuse(file)
    path = Path(file)
    chosen = format_of(path, format)
    wanted = states_of(states)
    if chosen is Format.PARQUET and is_stream(path):
        raise UsageError(f"{file} is no plain file, and Parquet cannot be written piece by piece.")
    view = open_view(find_spool(spool), reads_claims=False)
    if require_complete and is_stream(path):
        refuse_before_printing(view)
    elif require_complete:
        refuse_incomplete(view)
    with saved(path) as opened:
        table = Table(view, wanted, is_flat=flatten)
        rows = write_rows(table, chosen, opened)
        if require_complete:
            refuse_unreadable(view, table.unreadable, is_printed=is_stream(path))
    return rows


def export_to(
    spool: Spool,
    opened: BinaryIO,
    format: str,
    *,
    states: str | Iterable[str] = (),
    flatten: bool = False,
    require_complete: bool = False,
) -> int:
    """As `export`, into something that is open already; csv and jsonl alone."""
    wanted = states_of(states)
    view = open_view(find_spool(spool), reads_claims=False)
    if require_complete:
        refuse_before_printing(view)
    table = Table(view, wanted, is_flat=flatten)
    rows = write_rows(table, Format(format), opened)
    if require_complete:
        refuse_unreadable(view, table.unreadable, is_printed=True)
    return rows


def stack(
    spool: Spool, files: File | Iterable[File], *, suffix: str = NPY, require_complete: bool = False
) -> Stacked:
    """Put the arrays that all complete tasks wrote, an output of each, into one file.

    docs/results.md tells how rows and ids come about. The files appear whole, or not at all.

    spool: the spool's folder; None: the only ./spool-* there is.
    files: one or more, whose names end in `.npy` or `.arrow`. Beside x.npy the ids of its rows are
        written into x.ids.txt.
    suffix: how the outputs end that are meant.
    require_complete: raise Incomplete, and write nothing, unless every task is complete.
    """
    several = [files] if isinstance(files, (str, os.PathLike)) else list(files)
    if not suffix:
        raise UsageError("--suffix is empty: say how the outputs end that are meant.")
    for file in several:
        refuse(file)
    view = open_view(find_spool(spool), reads_claims=False)
    if require_complete:
        refuse_incomplete(view)
    return stack_view(
        view, [Path(file) for file in several], suffix, is_complete_required=require_complete
    )


def format_of(path: Path | None, format: str | None) -> Format:
    """The format that was named, else that of which a file's name is. Raises UsageError."""
    names = [str(one) for one in Format]
    found = format
    if found is None and path is not None:
        found = path.suffix.removeprefix(".").lower()
        found = {"ndjson": "jsonl", "pq": "parquet"}.get(found, found)
    if found not in names:
        named = f"{path} does not tell the format" if format is None else f"format {format!r}"
        raise UsageError(f"{named}: say --format {'|'.join(names)}, or end the name so.")
    return Format(found)


def states_of(states: str | Iterable[str]) -> list[ResultState]:
    """The states that were named. Raises UsageError for any other word."""
    words = [states] if isinstance(states, str) else list(states)
    known = [str(state) for state in ResultState]
    for word in words:
        if word not in known:
            raise UsageError(f"state {word!r:.40} is none of {', '.join(known)}.")
    return [ResultState(word) for word in words]
