"""How a start of a run ended, as Python callers get it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpuspool.orchestrator.text.printable import printable
from gpuspool.spool.view import open_view

if TYPE_CHECKING:
    from gpuspool.orchestrator.report.results import Result


@dataclasses.dataclass(frozen=True)
class Report:
    """How a run ended.

    spool: its folder. exit_code: what the command line ends with; docs/options.md lists the codes.
    counts: how many tasks there are (`total`), and how many are `complete` and `failed`. message:
    what the command line says at the end, mostly one line. efficiency: the lines that it says
    before, of what this start made of its ranks; "" of a short start, and of a quiet one.
    """

    spool: Path
    exit_code: int
    counts: dict[str, int]
    message: str
    efficiency: str = ""

    @property
    def ok(self) -> bool:
        """Whether every task is complete."""
        return self.exit_code == 0

    def __repr__(self) -> str:
        """A small table, for prompts and notebooks."""
        rows = {"spool": self.spool, "exit code": self.exit_code, **self.counts}
        table = "\n".join(f"{name:10}{value}" for name, value in rows.items())
        return f"{table}\n{self.efficiency}{self.message}"

    def _repr_html_(self) -> str:
        """The table that a notebook shows in place of `repr`, as HTML; all text is escaped."""
        # Imported here, since few have a notebook.
        from html import escape

        rows = {"spool": self.spool, "exit code": self.exit_code, **self.counts}
        style = "text-align: left"
        cells = "".join(
            f'<tr><th style="{style}">{escape(name)}</th>'
            f'<td style="{style}">{escape(str(value))}</td></tr>'
            for name, value in rows.items()
        )
        message = escape(printable(self.efficiency + self.message))
        return f'<table>{cells}</table><pre style="white-space: pre-wrap">{message}</pre>'

    def results(self) -> Iterator[Result]:
        """One `Result` for each task, in input order, read from the spool as they are asked for."""
        # Imported here, since every start of a run imports this module and few ask for results.
        from gpuspool.orchestrator.report.results import Results

        return iter(Results(open_view(self.spool, reads_claims=False)))

    def to_pandas(self, *, flatten: bool = False) -> Any:
        """What became of each task, as a pandas.DataFrame with the columns of `gpuspool.export`.

        flatten: with a column for each scalar at the top of the results. Raises UsageError where
        there is no pandas, which gpuspool does not bring along.
        """
        from gpuspool.orchestrator.export.frame import to_frame
        from gpuspool.orchestrator.export.table import Table

        return to_frame(Table(open_view(self.spool, reads_claims=False), is_flat=flatten))
