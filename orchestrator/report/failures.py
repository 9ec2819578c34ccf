"""The tasks that failed for good, as a person wants to see them: the same failure once, with whom
it struck.
"""

from __future__ import annotations

from collections.abc import Iterable

from gpuspool.orchestrator.report.results import Result, Results
from gpuspool.spool.records import Error
from gpuspool.spool.states import ErrorKind
from gpuspool.spool.view import View

SHOWN = 20  # tasks of one group; `--json` lists all


def failed_results(view: View) -> list[Result]:
    return [
        result for result in Results(view) if result.state == "failed" and result.error is not None
    ]


def failures_text(results: Iterable[Result]) -> str:
    """Groups by kind, type and the line that raised, the largest first; "" where nothing failed."""
    groups: dict[tuple[str, str, str], list[Result]] = {}
    for result in results:
        assert result.error is not None
        groups.setdefault((result.error.kind, result.error.type, result.error.where), []).append(
            result
        )
    largest = sorted(groups.items(), key=lambda group: -len(group[1]))
    return "".join(_group(*kind, members) for kind, members in largest)


def _group(kind: str, type_: str, where: str, members: list[Result]) -> str:
    tasks = "1 task" if len(members) == 1 else f"{len(members)} tasks"
    text = f"{tasks}: {kind}, {type_}" + (f" at {where}" if where else "") + "\n"
    text += "".join(f"    {_line(result)}\n" for result in members[:SHOWN])
    return text + (
        f"    … and {len(members) - SHOWN} more; `--json` lists all\n"
        if len(members) > SHOWN
        else ""
    )


def _line(result: Result) -> str:
    error = result.error or Error(kind=ErrorKind.EXCEPTION, type="", message="")
    return f"{result.key or result.index}  {error.kind}  {error.type}: {error.message}"
