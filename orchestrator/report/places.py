"""Where in which journal the line stands that tells what became of each task.

A task may have several lines: a try in each round, and a second complete line where it ran twice.
One of them is its result. Of complete lines that is the first, by attempt and then by offset, so
that the answer does not change when a task that ran twice is told again. A task that is not
complete has failed by the last line of its newest round.

The lines themselves stay on disk, since a result may be 1 MiB long and there may be millions. Of
each task three numbers are kept; lines are then read for some tasks at a time, in bulk.

Guarantees: the places are those that the view knew when they were found, whatever a live run has
appended since. A line that is damaged costs itself alone. At most one descriptor is open.

Called by `results` alone.
"""

from __future__ import annotations

import array
from collections.abc import Iterable, Iterator

from gpuspool.orchestrator.report.ranges import read_ranges
from gpuspool.spool.codec import R, unseal_lines
from gpuspool.spool.journal import JournalReader
from gpuspool.spool.layout import rank_of
from gpuspool.spool.ledger import Ledger
from gpuspool.spool.manifest import Damage
from gpuspool.spool.records import JournalBrief
from gpuspool.spool.states import LineState, Verdict
from gpuspool.spool.view import View

# Lines are read for at most so many tasks at once. A window takes one open for each journal that it
# touches, so a small one costs opens where there are many journals, and a large one costs memory:
# 16,384 lines of 200 bytes are 3 MB, and the records made of them some times that.
WINDOW_TASKS = 16 * 1024

# The lines of a window have together at most so many bytes, unless a single one has more.
WINDOW_BYTES = 4 * 1024 * 1024

# The number of a journal that stands for "no journal tells of this task".
NOWHERE = -1


class Places:
    """The line of each task of a view, as it was refreshed last, that tells what became of it."""

    def __init__(self, view: View) -> None:
        """Reads every journal once, as far as the view has read it."""
        self._view = view
        names = [name for name in view.attempts if name in view.journals]
        self._attempts = names
        # By the number of a journal; the last one is found by NOWHERE.
        self._ranks: list[int | None] = [*map(rank_of, names), None]
        # By task: the number of its journal in `_attempts`, and where in that its line lies.
        self._journal = array.array("i", [NOWHERE]) * view.run.tasks
        self._start = array.array("q", [0]) * view.run.tasks
        self._stop = array.array("q", [0]) * view.run.tasks
        for number, attempt in enumerate(names):
            self._find_in(number, attempt)

    def _find_in(self, number: int, attempt: str) -> None:
        """Note the lines of one journal that tell what became of their tasks.

        Whoever reads results passes through this loop once for each finished task. A line stops
        where the next readable one starts, or where the view stopped reading: so `stop` is noted
        one line later, and damaged lines in between are part of the range. They are skipped again
        when it is read.
        """
        ledger = self._view.ledger
        is_complete = ledger.complete
        journals = self._journal
        starts = self._start
        stops = self._stop
        # Bound here, since looking up a member of an enum costs several times a comparison with it.
        complete = LineState.COMPLETE
        reader = JournalReader(self._view.layout, attempt, self._view.report)
        end = self._view.journals[attempt].offset
        # The task that the line before this one told of, if that line was noted.
        last = NOWHERE
        for start, line in reader.read(JournalBrief):
            if last != NOWHERE:
                stops[last] = start
                last = NOWHERE
            if start >= end:
                return
            task = line.task
            if not 0 <= task < ledger.tasks:
                continue
            if is_complete[task]:
                tells = line.state is complete and journals[task] == NOWHERE
            else:
                tells = line.state is LineState.FAILED and _is_verdict(ledger, task, line.round)
            if tells:
                journals[task] = number
                starts[task] = start
                last = task
        if last != NOWHERE:
            stops[last] = end

    def windows(self, tasks: Iterable[int]) -> Iterator[list[int]]:
        """The tasks in the order given, as many at a time as may be read at once."""
        window: list[int] = []
        n_bytes = 0
        starts = self._start
        stops = self._stop
        for task in tasks:
            size = stops[task] - starts[task]
            if window and (len(window) == WINDOW_TASKS or n_bytes + size > WINDOW_BYTES):
                yield window
                window = []
                n_bytes = 0
            window.append(task)
            n_bytes += size
        if window:
            yield window

    def ranks(self, window: list[int]) -> list[int | None]:
        """For each task of a window the rank that wrote its line; None where it has none."""
        return [self._ranks[self._journal[task]] for task in window]

    def read(self, window: list[int], kind: type[R]) -> dict[int, R]:
        """The lines of a window's tasks, by task, as records of this kind.

        A task without a line has no entry. Neither has one whose line was there when it was found
        and cannot be read any more; that is reported to the view.
        """
        by_journal: dict[int, list[int]] = {}
        for task in window:
            number = self._journal[task]
            if number != NOWHERE:
                by_journal.setdefault(number, []).append(task)
        found: dict[int, R] = {}
        for number, tasks in by_journal.items():
            tasks.sort(key=self._start.__getitem__)
            found.update(self._read_from(self._attempts[number], tasks, kind))
        return found

    def _read_from(self, attempt: str, tasks: list[int], kind: type[R]) -> dict[int, R]:
        """The lines of these tasks, which stand in this order in the journal of an attempt.

        All of them are checked and decoded by one call, which costs a fraction of one by one. Only
        if that finds fewer lines than it was given is each looked at, to say which.
        """
        path = self._view.layout.journal(attempt)
        ranges = [(self._start[task], self._stop[task]) for task in tasks]
        lines = read_ranges(path, ranges)
        records = [record for _, record in unseal_lines(b"".join(lines), 0, kind, _ignore)]
        if len(records) == len(tasks):
            return dict(zip(tasks, records, strict=True))
        found: dict[int, R] = {}
        for task, line in zip(tasks, lines, strict=True):
            for _, record in unseal_lines(line, 0, kind, _ignore):
                found[task] = record
            if task not in found:
                reason = f"the line that told of task {task} was whole when it was found"
                self._view.report(Damage(str(path), self._start[task], reason))
        return found


def _is_verdict(ledger: Ledger, task: int, round_: int) -> bool:
    """Whether a task has failed, and this round is the last in which it did."""
    return round_ == ledger.failed_round.get(task) and ledger.verdict(task) is Verdict.FAILED


def _ignore(at: int, reason: str) -> None:
    """Damage in a range of lines. It says nothing yet: the caller looks which lines are there."""
