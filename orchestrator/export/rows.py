"""The fixed columns of a table of results: what became of each task, a row each, in input order.

The rows are those of `report.results`. So each task has one row, with the verdict that all verbs
give, whatever a live run does meanwhile, however often a task was tried, and also where its line
cannot be read any more. They are read for some thousand tasks at a time.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Any

import msgspec

from gpuspool.orchestrator.export.columns import Chunk, Field, Type
from gpuspool.orchestrator.export.paths import Paths
from gpuspool.orchestrator.report.places import NULL
from gpuspool.orchestrator.report.results import Outcome, Results, ResultState
from gpuspool.spool.layout import rank_of
from gpuspool.spool.records import Error
from gpuspool.spool.states import Verdict
from gpuspool.spool.view import View

# The columns that every table has, in this order, whatever its format.
FIELDS = (
    Field("index", Type.INT),
    Field("key", Type.TEXT),
    Field("path", Type.TEXT),
    Field("state", Type.TEXT),
    Field("result", Type.JSON),
    Field("error", Type.TEXT),
    Field("start", Type.FLOAT),
    Field("seconds", Type.FLOAT),
    Field("rank", Type.INT),
    Field("host", Type.TEXT),
    Field("attempt", Type.TEXT),
    Field("outputs", Type.NAMES),
)
INDEX, KEY, PATH, STATE, RESULT, ERROR, START, SECONDS, RANK, HOST, ATTEMPT, OUTPUTS = range(12)

# By name, since to ask a member of an enum for its value costs more than to look it up.
_STATE_NAMES = {state: str(state) for state in ResultState}

# What stands in for a line that cannot be read, until its columns are filled by what is known.
_NO_LINE = Outcome(state=ResultState.MISSING)

_NO_OUTPUTS: list[str] = []


class Rows:
    """The rows of a view, as it was refreshed last.

    unreadable: of how many complete tasks the rows so far have no result, since it cannot be read
    any more.
    """

    def __init__(
        self,
        view: View,
        states: Collection[ResultState] = (),
        hear: Callable[[list[msgspec.Raw]], None] | None = None,
    ) -> None:
        """states: only tasks with one of these; all where there are none. hear: as for `Results`.
        Raises OSError.
        """
        self.unreadable = 0
        self._view = view
        self._states = frozenset(states)
        self._results = Results(view, hear=hear)
        self._paths = Paths(view)
        # By attempt; None is the attempt of a task that has none.
        self._hosts: dict[str | None, str | None] = {None: None}
        self._ranks: dict[str | None, int | None] = {None: None}

    def chunks(self) -> Iterator[Chunk]:
        """All rows, some at a time; see `Chunk`. Raises OSError."""
        return itertools.starmap(self._chunk, self._results.windows(self._tasks()))

    def _tasks(self) -> Iterable[int]:
        """The tasks that get a row, in input order."""
        tasks = range(self._view.ledger.tasks)
        if not self._states:
            return tasks
        return (task for task in tasks if self._state(task) in self._states)

    def _state(self, task: int) -> ResultState:
        match self._view.ledger.verdict(task):
            case None:
                return ResultState.MISSING
            case Verdict.COMPLETE:
                return ResultState.COMPLETE
            case Verdict.FAILED:
                return ResultState.FAILED

    def _chunk(
        self, tasks: list[int], writers: list[str | None], found: list[Outcome | None]
    ) -> Chunk:
        return Chunk(len(tasks), self._columns(tasks, writers, found))

    def _columns(
        self, tasks: list[int], writers: list[str | None], found: list[Outcome | None]
    ) -> list[list[Any]]:
        """The columns of some tasks. writers, found: whose line each has, and that line."""
        for writer in set(writers):
            self._look_up(writer)
        lines = [line or _NO_LINE for line in found]
        keys = self._results.keys_of(tasks)
        columns: list[list[Any]] = [
            tasks,
            keys,
            self._paths.of(tasks, keys),
            [_STATE_NAMES[line.state] for line in lines],
            [None if line.result is NULL else line.result for line in lines],
            [line.error and error_text(line.error) for line in lines],
            [line.start or None for line in lines],
            [line.seconds for line in lines],
            [self._ranks[writer] for writer in writers],
            [self._hosts[writer] for writer in writers],
            list(writers),
            self._outputs(tasks, lines),
        ]
        if None in found:
            for row, line in enumerate(found):
                if line is None:
                    self._fill(columns, row)
        return columns

    def _outputs(self, tasks: list[int], lines: Sequence[Outcome]) -> list[list[str]]:
        """The names of the outputs of each of some tasks."""
        pairs = zip(tasks, lines, strict=True)
        of = self._results.outputs_of
        return [of(task, line) if line.outputs else _NO_OUTPUTS for task, line in pairs]

    def _fill(self, columns: list[list[Any]], row: int) -> None:
        """Put into a row what is known of a task without a line that can be read."""
        task = columns[INDEX][row]
        known = self._results.without_line(task, columns[ATTEMPT][row])
        self._look_up(known.attempt)
        columns[STATE][row] = _STATE_NAMES[known.state]
        columns[ERROR][row] = known.error and error_text(known.error)
        columns[START][row] = self._results.failed_start(task) or None
        columns[SECONDS][row] = None
        columns[RANK][row] = self._ranks[known.attempt]
        columns[HOST][row] = self._hosts[known.attempt]
        columns[ATTEMPT][row] = known.attempt
        if known.state is ResultState.COMPLETE:
            self.unreadable += 1

    def _look_up(self, attempt: str | None) -> None:
        """Learn rank and host of an attempt, once."""
        if attempt is None or attempt in self._hosts:
            return
        self._hosts[attempt] = self._view.host_of(attempt) or None
        self._ranks[attempt] = rank_of(attempt)


def error_text(error: Error) -> str:
    """Why a task failed, as text for a cell of a table: "ValueError: no such label"."""
    return f"{error.type}: {error.message}" if error.message else error.type
