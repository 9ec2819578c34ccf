"""The table of a run as it is drawn on a terminal again and again, and in a notebook.

What the table says is `table_lines`; here it is told which of its lines are drawn in the colour of
trouble. Called by the progress of a run and by `status --watch`.
"""

from __future__ import annotations

import re
from typing import Any

from gpuspool.orchestrator.report.table import table_lines
from gpuspool.orchestrator.text.screen import Line

# A rank's row begins with its number and its state. These states need somebody's eye.
_TROUBLE = re.compile(r"\s*\d+\s+(failed|lost|dead|silent)\b|damaged: ")


def picture(now: dict[str, Any], columns: int, most_lines: int) -> list[Line]:
    """The lines of a run's table, of what `status` returned."""
    lines = table_lines(now, columns, most_lines)[:most_lines]
    return [Line(text, _TROUBLE.match(text) is not None) for text in lines]
