"""Where in which journal the line stands that tells what became of each task.

A task may have several lines: a try in each round, and a second complete line where it ran twice.
One of them is its result. Of complete lines that is the first, by attempt and then by offset (of a
task that was redone, the first since then), so that the answer does not change when a task that ran
twice is told again. A task that is not complete has failed by the last line of its newest round.

The lines themselves stay on disk, since a result may be 1 MiB long and there may be millions. Of
each task three numbers are kept; lines are then read for some tasks at a time, in bulk.

Guarantees: the places are those that the view knew when they were found, whatever a live run has
appended since. A line that is damaged costs itself alone. At most one descriptor is open.

Called by `results` alone.
"""

from __future__ import annotations

import array
import itertools
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import msgspec

from gpuspool.orchestrator.report.ranges import Range, read_ranges, records_in, report_unreadable
from gpuspool.spool.codec import R
from gpuspool.spool.ledger import Ledger
from gpuspool.spool.records import Record
from gpuspool.spool.states import LineState, Verdict
from gpuspool.spool.view import View

# Lines are read for at most so many tasks at once. A window takes one open for each journal that it
# touches, so a small one costs opens where there are many journals, and a large one costs memory:
# 16,384 lines of 200 bytes are 3 MB, and the records made of them some times that.
WINDOW_TASKS = 16 * 1024

# The lines of a window have together at most so many bytes, unless a single one has more.
WINDOW_BYTES = 4 * 1024 * 1024

# Ranges that touch each other are cut from what was read as one, up to so many bytes: one that the
# file does not hold whole any more costs all of them a second reading.
JOINED_BYTES = 64 * 1024

# The results in so many bytes of a journal are heard at once. Each of them, however short, keeps
# the whole chunk of the journal that it was read from in memory.
HEARD_BYTES = 1024 * 1024

# The number of a journal that stands for "no journal tells of this task".
NOWHERE = -1


# A result that is not there, in JSON.
NULL = msgspec.Raw(b"null")


class _Verdict(Record, frozen=True, kw_only=True):
    """What a journal line says of the verdict on its task; the rest is skipped, not decoded."""

    state: LineState
    task: int = NOWHERE
    round: int = 0


class _VerdictWithResult(_Verdict, frozen=True, kw_only=True):
    """The same with what the job returned."""

    result: msgspec.Raw = NULL


class Places:
    """The line of each task of a view, as it was refreshed last, that tells what became of it."""

    def __init__(
        self,
        view: View,
        *,
        only_failed: bool = False,
        hear: Callable[[list[msgspec.Raw]], None] | None = None,
    ) -> None:
        """Reads every journal once, as far as the view has read it.

        only_failed: only those that say of a task that it failed; the other tasks then have no
        place. hear: called with the results of these lines, some at a time and in no order that
        means anything: what it learns of all of them costs no further reading. A line without a
        result has null.
        """
        self._hear = hear
        self._view = view
        n_tasks = view.ledger.tasks
        names = [name for name in view.attempts if name in view.journals]
        self._attempts = names
        # By the number of a journal; the last one is found by NOWHERE.
        self._writers: list[str | None] = [*names, None]
        # By task: the number of its journal in `_attempts`, and where in that its line lies.
        self._journal = array.array("i", [NOWHERE]) * n_tasks
        self._start = array.array("q", [0]) * n_tasks
        self._stop = array.array("q", [0]) * n_tasks
        for number, attempt in enumerate(names):
            if not only_failed or view.failed_by.get(attempt):
                self._find_in(number, attempt)

    # Whoever reads a result checks its line once more.
    def _find_in(self, number: int, attempt: str) -> None:
        """Note the lines of one journal that tell what became of their tasks.

        A line stops where the next readable one starts, or where the view stopped reading. So
        damaged lines in between are part of the range. They are skipped again when it is read.
        """
        # Whoever reads results passes through this loop once for each journal line, a million times
        # for a million tasks. Looking up an attribute costs as much as the comparison that it is
        # for, so everything is bound to a local name before, and nothing is called for a line that
        # tells of a complete task.
        ledger = self._view.ledger
        n_tasks = ledger.tasks
        is_complete = ledger.complete
        redone = ledger.redone
        journals = self._journal
        starts = self._start
        stops = self._stop
        complete = LineState.COMPLETE
        failed = LineState.FAILED

        end = self._view.journals[attempt].offset
        kind = _Verdict if self._hear is None else _VerdictWithResult
        lines: Iterator[tuple[int, Any]] = self._view.reread(attempt, kind)
        hear = self._hear
        heard: list[msgspec.Raw] = []
        hear_at = HEARD_BYTES
        # The task whose line was the last one, if that line tells what became of it.
        told = NOWHERE
        for start, line in lines:
            if told != NOWHERE:
                stops[told] = start
                told = NOWHERE
            if start >= end:
                break
            task = line.task
            if not 0 <= task < n_tasks:
                continue
            if is_complete[task]:
                tells = line.state is complete and journals[task] == NOWHERE
                if redone and line.round < redone.get(task, 0):
                    tells = False
            else:
                tells = line.state is failed and _is_verdict(ledger, task, line.round)
            if tells:
                journals[task] = number
                starts[task] = start
                told = task
                if hear is not None:
                    if start >= hear_at:
                        hear(heard)
                        heard = []
                        hear_at = start + HEARD_BYTES
                    heard.append(line.result)
        if told != NOWHERE:
            stops[told] = end
        if hear is not None and heard:
            hear(heard)

    def windows(self, tasks: Iterable[int]) -> Iterator[list[int]]:
        """The tasks in the order given, as many at a time as may be read at once."""
        rest = iter(tasks)
        while some := list(itertools.islice(rest, WINDOW_TASKS)):
            if self._n_bytes(some) <= WINDOW_BYTES:
                yield some
            else:
                yield from self._smaller(some)

    def _n_bytes(self, tasks: list[int]) -> int:
        """How many bytes the lines of some tasks have together."""
        return sum(map(self._stop.__getitem__, tasks)) - sum(map(self._start.__getitem__, tasks))

    def _smaller(self, tasks: list[int]) -> Iterator[list[int]]:
        """The tasks in parts whose lines have together at most WINDOW_BYTES."""
        window: list[int] = []
        n_bytes = 0
        for task in tasks:
            size = self._stop[task] - self._start[task]
            if window and n_bytes + size > WINDOW_BYTES:
                yield window
                window = []
                n_bytes = 0
            window.append(task)
            n_bytes += size
        yield window

    def writers(self, window: list[int]) -> list[str | None]:
        """For each task of a window the attempt that wrote its line; None where it has none."""
        return [self._writers[self._journal[task]] for task in window]

    def read(self, window: list[int], kind: type[R]) -> dict[int, R]:
        """The lines of a window's tasks, by task, as records of this kind.

        A task without a line has no entry. Neither has one whose line was there when it was found
        and cannot be read any more; that is reported to the view.
        """
        found: dict[int, R] = {}
        for number, tasks in self._by_journal(window).items():
            tasks.sort(key=self._start.__getitem__)
            records = self._read_from(self._attempts[number], tasks, kind)
            found.update(records)
        return found

    def _by_journal(self, tasks: list[int]) -> dict[int, list[int]]:
        """The tasks that have a line, by the number of the journal in which it stands."""
        found: defaultdict[int, list[int]] = defaultdict(list)
        for task, number in zip(tasks, map(self._journal.__getitem__, tasks), strict=True):
            found[number].append(task)
        found.pop(NOWHERE, None)
        return found

    def _read_from(self, attempt: str, tasks: list[int], kind: type[R]) -> dict[int, R]:
        """The lines of these tasks, which stand in this order in the journal of an attempt.

        All of them are checked and decoded by one call, which costs a fraction of one by one. Only
        if that finds fewer lines than it was given is each looked at, to say which.
        """
        path = self._view.layout.journal(attempt)
        records = records_in(b"".join(read_ranges(path, self._joined_ranges(tasks))), kind)
        if len(records) == len(tasks):
            return dict(zip(tasks, records, strict=True))

        lines = read_ranges(path, [(self._start[task], self._stop[task]) for task in tasks])
        found: dict[int, R] = {}
        for task, line in zip(tasks, lines, strict=True):
            readable = records_in(line, kind)
            if readable:
                found[task] = readable[-1]
            else:
                report_unreadable(self._view, path, self._start[task], task)
        return found

    def _joined_ranges(self, tasks: list[int]) -> list[Range]:
        """Where the lines of these tasks stand, which are in the order of their journal.

        Lines that touch each other, as most do, are one range.
        """
        joined: list[Range] = []
        begin = end = 0
        for start, stop in zip(
            map(self._start.__getitem__, tasks), map(self._stop.__getitem__, tasks), strict=True
        ):
            if start != end or stop - begin > JOINED_BYTES:
                if end:
                    joined.append((begin, end))
                begin = start
            end = stop
        joined.append((begin, end))
        return joined


def _is_verdict(ledger: Ledger, task: int, round_: int) -> bool:
    """Whether a task has failed, and this round is the last in which it did."""
    if round_ != ledger.failed_round.get(task):
        return False
    return ledger.verdict(task) is Verdict.FAILED
