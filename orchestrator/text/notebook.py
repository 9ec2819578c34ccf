"""A table as the output of a notebook's cell, which is replaced in place.

IPython is no dependency of ours: only where the calling program has imported it, and its shell is a
kernel, there is a notebook in front of somebody. Used by the progress of a run.
"""

from __future__ import annotations

import importlib
import sys
from typing import Any

from gpuspool.orchestrator.text.screen import Drawing, Line

# A cell is wider than a terminal, and may be long.
COLUMNS = 110
MOST_LINES = 60

_STYLE = "line-height: 1.25; white-space: pre; overflow-x: auto"
_TROUBLE = "color: #c00"


def is_notebook() -> bool:
    """Whether this process is the kernel of a notebook."""
    ipython = sys.modules.get("IPython")
    if ipython is None:
        return False
    shell = ipython.get_ipython()
    return shell is not None and getattr(shell, "kernel", None) is not None


class Cell:
    """One output of the cell that runs now."""

    def __init__(self) -> None:
        self._display: Any = importlib.import_module("IPython.display").display
        self._handle: Any = None

    def show(self, drawing: Drawing) -> None:
        """Put a table in the place of the last one."""
        lines = drawing(COLUMNS, MOST_LINES)
        data = {"text/plain": "\n".join(line.text for line in lines), "text/html": as_html(lines)}
        if self._handle is None:
            self._handle = self._display(data, raw=True, display_id=True)
        else:
            self._handle.update(data, raw=True)


def as_html(lines: list[Line]) -> str:
    """The lines of a table as HTML, in which nothing of them is more than text."""
    # Every start imports this module, and few have a notebook.
    from html import escape

    text = "\n".join(
        f'<span style="{_TROUBLE}">{escape(line.text)}</span>'
        if line.is_trouble
        else escape(line.text)
        for line in lines
    )
    return f'<pre style="{_STYLE}">{text}</pre>'
