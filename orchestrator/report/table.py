"""How a run stands, as lines for people."""

from __future__ import annotations

from typing import Any

from gpuspool.orchestrator.report.status import status_text
from gpuspool.orchestrator.text.progress import duration, rate_of


def table_lines(now: dict[str, Any], columns: int = 80, most_lines: int | None = None) -> list[str]:
    """What `gpuspool status` prints for people, of what `status` returned.

    No line is wider than `columns`, and there are not more than `most_lines`.
    """
    head, *rest = status_text(now).split("\n")
    head = "  ".join([head, *filter(None, (_left(now), rate_of(now.get("tasks_per_s"))))])
    lines = [line[:columns].rstrip() for line in (head, *rest)]
    if most_lines is None or len(lines) <= most_lines:
        return lines
    n_left = len(lines) - most_lines + 1
    return [*lines[: most_lines - 1], f"… and {n_left} more"[:columns]]


def _left(now: dict[str, Any]) -> str:
    return "" if now.get("left_s") is None else f"{duration(now['left_s'])} left"


def one_line_of(now: dict[str, Any]) -> str:
    """How a run stands in one line."""
    return status_text(now).partition("\n")[0]
