"""What `gpuspool results` prints and writes."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO, cast

from gpuspool.orchestrator.api import exporting
from gpuspool.orchestrator.export import saved
from gpuspool.orchestrator.export.required import refuse_before_printing, refuse_unreadable
from gpuspool.orchestrator.export.saved import STDOUT, Printed
from gpuspool.orchestrator.export.stack import NPY, ids_of
from gpuspool.orchestrator.export.table import Format
from gpuspool.orchestrator.plan.locate import find_spool
from gpuspool.orchestrator.report.results import Results, ResultState, encode_result
from gpuspool.orchestrator.text.printable import plain_json
from gpuspool.orchestrator.text.progress import say
from gpuspool.orchestrator.text.words import count_of
from gpuspool.spool.errors import UsageError
from gpuspool.spool.view import open_view


def refuse_twice(output: str | None, stacked: Sequence[str]) -> None:
    """Raise UsageError where two of the files that shall be written are one."""
    ids = [str(ids_of(Path(file))) for file in stacked if Path(file).suffix == NPY]
    saved.refuse_twice([*stacked, *ids, *([] if output is None else [output])])


def print_results(spool: str, states: Sequence[str], is_complete_required: bool) -> None:
    """One JSON line for each task, in input order. Raises Incomplete."""
    view = open_view(find_spool(spool), reads_claims=False)
    if is_complete_required:
        refuse_before_printing(view)
    wanted = set(map(ResultState, states))
    write = sys.stdout.buffer.write
    n_unreadable = 0
    for result in Results(view):
        n_unreadable += result.state is ResultState.COMPLETE and result.error is not None
        if not wanted or result.state in wanted:
            write(plain_json(encode_result(result)) + b"\n")
    if is_complete_required:
        refuse_unreadable(view, n_unreadable, is_printed=True)


def export_table(
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
        cast(BinaryIO, Printed(is_json=format_ == Format.JSONL)),
        format_,
        states=states,
        flatten=is_flat,
        require_complete=is_complete_required,
    )


def write_stack(
    spool: str, files: Sequence[str], suffix: str | None, is_complete_required: bool
) -> None:
    """The arrays of all tasks into these files, of which stderr is told."""
    made = exporting.stack(
        spool,
        files,
        suffix=NPY if suffix is None else suffix,
        require_complete=is_complete_required,
    )
    shape = "x".join(map(str, (made.rows, *made.shape)))
    ids = [str(ids_of(Path(file))) for file in files if Path(file).suffix == NPY]
    where = f"; the ids of the rows are in {', '.join(ids)}" if ids else ""
    tasks = count_of(made.tasks, "task")
    say(f"{shape} of {made.dtype}, of {tasks}, in {', '.join(files)}{where}")
    if made.n_unreadable:
        has = count_of(made.n_unreadable, "complete task has", "complete tasks have")
        say(f"{has} no row, for want of a journal line that can be read")
    if made.n_without:
        more = ", …" if made.n_without > len(made.without) else ""
        none = count_of(made.n_without, "complete task has", "complete tasks have")
        say(f"{none} no such output: {', '.join(made.without)}{more}")
