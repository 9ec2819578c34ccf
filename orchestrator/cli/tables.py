"""What `gpuspool results` prints and writes."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO, cast

from gpuspool.orchestrator.api import exporting
from gpuspool.orchestrator.export.stack import NPY, ids_of
from gpuspool.orchestrator.export.table import Format
from gpuspool.orchestrator.plan.locate import find_spool
from gpuspool.orchestrator.report.results import Results, ResultState, encode_result
from gpuspool.orchestrator.text.printable import plain_json, printable
from gpuspool.orchestrator.text.progress import say
from gpuspool.orchestrator.text.words import count_of
from gpuspool.spool.errors import UsageError
from gpuspool.spool.view import open_view

# What stands for standard output.
STDOUT = "-"


def print_results(spool: str, states: Sequence[str], is_complete_required: bool) -> None:
    """One JSON line for each task, in input order. Raises Incomplete."""
    view = open_view(find_spool(spool), reads_claims=False)
    if is_complete_required:
        exporting.refuse_incomplete(view)
    wanted = set(map(ResultState, states))
    write = sys.stdout.buffer.write
    for result in Results(view):
        if not wanted or result.state in wanted:
            write(plain_json(encode_result(result)) + b"\n")


def write_table(
    spool: str,
    output: str | None,
    format_: str | None,
    states: Sequence[str],
    is_flat: bool,
    is_complete_required: bool,
) -> None:
    """A table into a file, of which stderr is told, or to standard output."""
    if output is not None and output != STDOUT:
        rows = exporting.export(
            spool,
            output,
            format_,
            states=states,
            flatten=is_flat,
            require_complete=is_complete_required,
        )
        say(f"{count_of(rows, 'row')} in {output}")
        return
    if format_ is None:
        raise UsageError("--output -: say with --format which format it shall have.")
    if format_ == Format.PARQUET:
        raise UsageError("--format parquet cannot be printed: name a file with -o FILE.")
    exporting.export_to(
        spool,
        cast(BinaryIO, _Printed(format_)),
        format_,
        states=states,
        flatten=is_flat,
        require_complete=is_complete_required,
    )


class _Printed:
    """Standard output, of which a terminal gets nothing that could harm it.

    JSON stays the same values. CSV has no escapes, so only a terminal is spared: what a program
    reads is as it is.
    """

    def __init__(self, format_: str) -> None:
        self._is_json = format_ == Format.JSONL
        self._is_terminal = sys.stdout.isatty()

    def write(self, data: bytes) -> Any:
        """Print some whole lines."""
        if self._is_json:
            data = plain_json(data)
        elif self._is_terminal:
            text = data.decode(errors="replace").replace("\r\n", "\n")
            data = printable(text).encode()
        return sys.stdout.buffer.write(data)


def write_stack(
    spool: str, files: Sequence[str], suffix: str | None, is_complete_required: bool
) -> None:
    """The arrays of all tasks into these files, of which stderr is told."""
    made = exporting.stack(
        spool, files, suffix=suffix or NPY, require_complete=is_complete_required
    )
    shape = "x".join(map(str, (made.rows, *made.shape)))
    ids = [str(ids_of(Path(file))) for file in files if Path(file).suffix == NPY]
    where = f"; the ids of the rows are in {', '.join(ids)}" if ids else ""
    tasks = count_of(made.tasks, "task")
    say(f"{shape} of {made.dtype}, of {tasks}, in {', '.join(files)}{where}")
    if made.n_without:
        more = ", …" if made.n_without > len(made.without) else ""
        none = count_of(made.n_without, "complete task has", "complete tasks have")
        say(f"{none} no such output: {', '.join(made.without)}{more}")
