"""The tasks that failed for good, and each kind of failure once: how often, where, which tasks.

Guarantees: however many tasks failed, of each group one error is held and a few tasks, and there
are at most `MOST_GROUPS` groups. What is opened grows with the ranks and not with the tasks: the
view knows where the line of each failure stands, and no other line is read again. The verdicts are
those of the view, so that all verbs agree.

The command line and the Python API call this; `failures_text` shows the groups to people.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from gpuspool.orchestrator.report.keys import TaskInput, inputs_of
from gpuspool.orchestrator.report.naming import Name, Namer
from gpuspool.orchestrator.report.ranges import read_lines, records_in, report_unreadable
from gpuspool.orchestrator.report.results import (
    Result,
    Results,
    line_unreadable,
    losses,
    task_unreadable,
)
from gpuspool.orchestrator.text.groups import MOST_GROUPS, How, how_of
from gpuspool.spool.layout import rank_of
from gpuspool.spool.records import Error, Record
from gpuspool.spool.view import View

# So many tasks of one group are shown; `--json` lists all. More would push the other groups off the
# screen.
SHOWN = 20


class FailureLine(Record, frozen=True, kw_only=True):
    """What is taken from a journal line that says that a task failed; the rest is skipped."""

    task: int
    error: Error | None = None


class ShownTask(NamedTuple):
    """A task of a group: its place among the inputs, what it failed of, and the rank, if known."""

    task: int
    message: str
    rank: int | None


@dataclass
class Group:
    """The tasks that failed in the same way.

    first: the error of the first of them in input order. shown: the first few in input order.
    has_one_message: all of them have the same message, those too that are not shown.
    """

    first: Error
    count: int = 0
    shown: list[ShownTask] = field(default_factory=list)
    has_one_message: bool = True

    def add(self, task: int, error: Error, rank: int | None) -> None:
        """Take in a task that failed, which may come in any order."""
        self.count += 1
        if error.message != self.first.message:
            self.has_one_message = False
        if len(self.shown) == SHOWN and task > self.shown[-1].task:
            return
        bisect.insort(self.shown, ShownTask(task, error.message, rank))
        del self.shown[SHOWN:]
        if self.shown[0].task == task:
            self.first = error


@dataclass
class Groups:
    """All failures of a run by group, the largest group first.

    n_tasks: how many tasks failed. n_left_out: how many of them are in no group, since there were
    too many groups before them. inputs: what is known of the tasks that the groups show. names: of
    each group's first task.
    """

    groups: list[Group]
    n_tasks: int
    n_left_out: int
    inputs: Mapping[int, TaskInput]
    names: Mapping[int, Name]


def failed_results(view: View) -> Iterator[Result]:
    """The result of each task that failed, in input order; its `error` says why. Raises OSError."""
    if not view.ledger.n_failed:
        return iter(())
    return Results(view, only_failed=True).failed()


def group_failures(view: View, most_with_tasks: int) -> Groups:
    """The failed tasks of a view, grouped by kind, type and the line that raised. Raises OSError.

    most_with_tasks: the tasks of so many groups, the largest, are looked up.
    """
    groups: dict[How, Group] = {}
    n_left_out = 0
    for task, error, rank in _failures(view):
        how = how_of(error)
        group = groups.get(how)
        if group is None:
            if len(groups) >= MOST_GROUPS:
                n_left_out += 1
                continue
            group = groups[how] = Group(error)
        group.add(task, error, rank)
    largest_first = sorted(groups.values(), key=lambda group: (-group.count, group.shown[0]))
    asked: dict[int, int | None] = {}
    for group in largest_first[:most_with_tasks]:
        asked.update((shown.task, shown.rank) for shown in group.shown)
    inputs = inputs_of(view, asked)
    names: dict[int, Name] = {}
    namer = Namer(view)
    for group in largest_first[:most_with_tasks]:
        task = group.shown[0].task
        names[task] = namer.name_of(task, inputs[task].key if task in inputs else None)
    return Groups(largest_first, view.ledger.n_failed, n_left_out, inputs, names)


def _failures(view: View) -> Iterator[tuple[int, Error, int | None]]:
    """(task, error, rank on which it failed last) of each failed task, each once, in no order.

    The order of the sources is that of `Results`: what a journal says of the newest round, else
    what a closing or a ruling says.
    """
    by_journal: dict[str, list[tuple[int, int]]] = {}
    others: list[int] = []
    newest = view.ledger.failed_round
    lines = view.failed_lines
    for task in view.ledger.failed():
        line = lines.get(task)
        if line is not None and line.round == newest.get(task):
            by_journal.setdefault(line.attempt, []).append((line.at, task))
        else:
            others.append(task)
    for attempt in sorted(by_journal):
        rank = rank_of(attempt)
        for task, error in _errors_in(view, attempt, by_journal[attempt]):
            yield task, error, rank
    if others:
        yield from _told_elsewhere(view, others)


def _errors_in(
    view: View, attempt: str, places: list[tuple[int, int]]
) -> Iterator[tuple[int, Error]]:
    """(task, error) of each line of a journal; places: (offset, task) of each of them."""
    path = view.layout.journal(attempt)
    places.sort()
    missing = {task for _, task in places}
    for lines in read_lines(path, [at for at, _ in places]):
        for line in records_in(b"".join(lines), FailureLine):
            if line.error is not None and line.task in missing:
                missing.remove(line.task)
                yield line.task, line.error
    for at, task in places:
        if task in missing:
            report_unreadable(view, path, at, task)
            yield task, line_unreadable()


def _told_elsewhere(view: View, tasks: list[int]) -> Iterator[tuple[int, Error, int | None]]:
    """As `_failures`, of tasks of which no journal tells the failure that counts."""
    found = losses(view)
    for task in tasks:
        loss = found.get(task)
        if loss is not None:
            error = loss.failure.error
            yield task, error, error.rank
        elif task in view.ledger.unreadable:
            yield task, task_unreadable(), None
        else:
            yield task, line_unreadable(), None
