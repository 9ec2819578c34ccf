"""The table of a run as it is drawn on a terminal again and again, and in a notebook.

What the table says is `table_lines`; here it is told which of its lines are drawn in the colour of
trouble. Called by the progress of a run and by `status --watch`.
"""

from __future__ import annotations

import re
from typing import Any

from gpuspool.orchestrator.report.ranks import TROUBLED
from gpuspool.orchestrator.report.table import table_lines
from gpuspool.orchestrator.text.screen import Line
from gpuspool.spool.states import UNDER_WAY

# A rank's row begins with its number and its state.
_ROW = re.compile(r"\s*(\d+)\s+(\w+)")


def picture(now: dict[str, Any], columns: int, most_lines: int) -> list[Line]:
    """The lines of a run's table, of what `status` returned."""
    troubled = set()
    if now["state"] in UNDER_WAY:
        found = (row for row in now["ranks"] if row["trouble"] >= TROUBLED)
        troubled = {(str(row["rank"]), row["state"]) for row in found}
    lines = table_lines(now, columns, most_lines)[:most_lines]
    return [Line(text.rstrip(), _rank_of(text) in troubled) for text in lines]


def _rank_of(text: str) -> tuple[str, str] | None:
    """The number and the state of the rank of which a line tells, if it is a rank's."""
    match = _ROW.match(text)
    return None if match is None else (match[1], match[2])
