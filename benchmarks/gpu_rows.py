"""Rows of the table that `make gpu` makes. Each step is a process that may hang or be killed, so it
writes its rows to a file of its own, one JSON line each: first all that it is about to try, then
each as it comes out. Of a step that was ended, what it had tried stands, and the rest is named.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

# What is about to be tried. It becomes NOT_RUN where nothing came of it.
PLANNED = "planned"
NOT_RUN = "not run"
PASSED = "passed"
FAILED = "failed"
SKIPPED = "skipped"
MEASURED = "measured"


@dataclass(frozen=True)
class Row:
    """what: was tried. result: one of the words above. figure: for people. values: the same as
    numbers, by names that end with their unit. seconds: how long it took, None where that is not
    known.
    """

    what: str
    result: str
    figure: str = ""
    seconds: float | None = None
    values: dict[str, float | None] = field(default_factory=dict)

    def line(self) -> str:
        """The row of a Markdown table."""
        seconds = "" if self.seconds is None else f"{self.seconds:.1f}"
        cells = (self.what, self.result, self.figure, seconds)
        return "| " + " | ".join(cell.replace("|", "/") for cell in cells) + " |"


HEAD = "| tried | result | figure | seconds |\n|---|---|---|---|"


def add(path: Path | None, *rows: Row) -> None:
    """Append rows to the file of a step; without a path nothing is kept."""
    if path is not None:
        with open(path, "a") as file:
            file.writelines(json.dumps(asdict(row)) + "\n" for row in rows)


def plan(path: Path | None, *whats: str) -> None:
    """Say what is about to be tried."""
    add(path, *(Row(what, PLANNED) for what in whats))


def read(path: Path) -> list[Row]:
    """The rows of a step in the order in which they were planned, the last word of each. A line
    that was cut by a kill is no row.
    """
    found: dict[str, Row] = {}
    text = path.read_text() if path.exists() else ""
    for line in text.splitlines():
        try:
            row = Row(**json.loads(line))
        except ValueError:
            continue
        found[row.what] = row
    return [Row(row.what, NOT_RUN) if row.result == PLANNED else row for row in found.values()]
