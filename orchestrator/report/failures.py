"""The tasks that failed for good, as a person wants to see them: each kind of failure once, with
the tasks that it struck.

The command line and the Python API call this.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from gpuspool.orchestrator.report.results import Result, Results
from gpuspool.orchestrator.text.groups import How, how_of
from gpuspool.orchestrator.text.printable import one_line
from gpuspool.orchestrator.text.words import count_of
from gpuspool.spool.records import Error
from gpuspool.spool.view import View

# So many tasks of one group are shown; `--json` lists all. More would push the other groups off the
# screen.
SHOWN = 20


@dataclass
class _Group:
    """The tasks that failed in the same way, of which the first few are kept."""

    count: int = 0
    shown: list[str] = field(default_factory=list)


def failed_results(view: View) -> Iterator[Result]:
    """The result of each task that failed, in input order; its `error` says why. Raises OSError."""
    return Results(view).failed()


def failures_text(results: Iterable[Result]) -> str:
    """Failures grouped by kind, type and the line that raised, the largest group first.

    Each line is safe for a terminal, whatever keys and messages hold. "" if nothing failed. Of the
    results, all of which must have an error, few are held at a time.
    """
    groups: dict[How, _Group] = {}
    for result in results:
        error = result.error
        assert error is not None, result.index
        how = how_of(error)
        group = groups.setdefault(how, _Group())
        group.count += 1
        if group.count <= SHOWN:
            group.shown.append(_line(result, error))
    text = ""
    largest_first = sorted(groups.items(), key=lambda item: -item[1].count)
    for (kind, type_, where), group in largest_first:
        text += _headline(kind, type_, where, group.count)
        text += _group_text(group)
    return text


def _headline(kind: str, type_: str, where: str, count: int) -> str:
    text = f"{count_of(count, 'task')}: {kind}, {type_}"
    if where:
        text += f" at {where}"
    return f"{one_line(text)}\n"


def _group_text(group: _Group) -> str:
    text = ""
    for line in group.shown:
        text += f"    {line}\n"
    n_more = group.count - SHOWN
    if n_more > 0:
        text += f"    … and {n_more} more; `--json` lists all\n"
    return text


def _line(result: Result, error: Error) -> str:
    task = result.key or result.index
    what = f"{error.type}: {error.message}" if error.message else error.type
    return one_line(f"{task}  {error.kind}  {what}")
