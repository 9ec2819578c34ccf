"""How long a run takes yet, for whoever looks at it from outside.

A parent hears of each finished task as it happens, and knows what each task costs. Who types
`gpuspool status` has nothing but the files, and a fraction of a second. So of each journal some
lines are looked at, which stand for all, and of the manifests some lines tell what tasks cost. How
many there are does not depend on how many tasks the run has. The reckoning is `text.forecast`, the
same as in a parent.

`Prospect` is a listener of a view. It must be that from before the view's first refresh on, and
stays it for as long as somebody looks.
"""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Mapping

import msgspec

from gpuspool.orchestrator.text.forecast import Forecast, Outlook, Work
from gpuspool.spool.layout import is_original
from gpuspool.spool.records import Record
from gpuspool.spool.states import Reason
from gpuspool.spool.view import View

# Of each journal so many lines are looked at, at even distances. How long its attempt was at work
# is told by the first and the last of them, and so to one part in so many.
LINES_OF_JOURNAL = 64
# Of many journals all together hardly more than so many are: each costs as much as ten lines that
# are only read. Of each at least so few are.
LINES_IN_ALL = 8192
FEWEST_LINES = 16
# Where costs differ, each such line that is looked at is the beginning of a search for a task whose
# cost is known: no more than so many lines on.
SEARCHES_EVERY = 8
LONGEST_SEARCH = 128
# The costs of so many tasks are read, in runs of so many lines. In a planned manifest each fourth
# line is a cheap task, so a run must be longer than that.
COSTS_READ = 4096
RUN_OF_LINES = 16

# A call has hardly more tasks than this, whatever a heartbeat says.
MOST_IN_HAND = 10_000


class TaskCost(Record, frozen=True, kw_only=True):
    """What a task costs, of a manifest line; the rest is skipped."""

    task: int
    cost: float


class InHand(msgspec.Struct, frozen=True):
    """What an open attempt is at: so many tasks, for so many seconds."""

    tasks: int
    for_s: float


class Prospect:
    """What is learned of the pace of one run by looking at it."""

    def __init__(self, view: View) -> None:
        """view: one that was not refreshed yet; this becomes its listener."""
        self._view = view
        view.listener = self
        # What some of the tasks cost, and for how many tasks each of them stands; empty where all
        # cost the same. Read when the first line is.
        self._costs: dict[int, float] = {}
        self._weights: dict[int, float] = {}
        # How many tasks the run had then.
        self._n_weighed = -1
        self._forecast = Forecast(Work(0, 0.0), self._is_cost_known)
        # By attempt: how many lines were looked at, and where its search for a known cost ends.
        self._n_looked: dict[str, int] = {}
        self._search_left: dict[str, int] = {}
        # How long journals were when they were first read.
        self._sizes: dict[str, int] = {}
        self._n_closed = 0

    # What the view reads.

    def take(self, attempt: str, at: int, task: int, start: float, seconds: float) -> int:
        """As `Listener.take`."""
        self._weigh()
        search_left = self._search_left.pop(attempt, 0)
        if search_left and not self._is_cost_known(task):
            self._search_left[attempt] = search_left - 1
            return at
        wanted = self._forecast.take(attempt, at, task, start, seconds)
        looked = self._n_looked.get(attempt, 0) + 1
        self._n_looked[attempt] = looked
        if self._costs and looked % SEARCHES_EVERY == 0:
            self._search_left[attempt] = LONGEST_SEARCH
        lines = LINES_IN_ALL // len(self._view.journals)
        lines = max(FEWEST_LINES, min(lines, LINES_OF_JOURNAL))
        return max(wanted, at + max(self._size(attempt), at) // lines)

    def put_off(self, attempt: str, tasks: int, start: float, seconds: float) -> None:
        """As `Listener.put_off`."""
        self._forecast.put_off(attempt, tasks, start, seconds)

    def rest(self, attempt: str) -> None:
        """As `Listener.rest`."""
        self._forecast.rest(attempt)

    def failed(self, attempt: str, at: int, error: msgspec.Raw) -> None:
        """As `Listener.failed`: what failed is told elsewhere."""

    def split(self, attempt: str, at: int) -> None:
        """As `Listener.split`: nothing of it is told."""

    def _size(self, attempt: str) -> int:
        size = self._sizes.get(attempt)
        if size is None:
            size = os.stat(self._view.layout.journal(attempt)).st_size
            self._sizes[attempt] = size
        return size

    # What is told.

    def outlook(self, in_hand: Mapping[str, InHand]) -> Outlook:
        """How the run gets on, as of the view's last refresh.

        in_hand: of the open attempts, what is known to be in hand.
        """
        view = self._view
        now = time.time()
        for closing in itertools.islice(view.closed.values(), self._n_closed, None):
            is_recycled = closing.reason is Reason.RECYCLED
            self._forecast.end(closing.attempt, closing.at, is_recycled)
        self._n_closed = len(view.closed)
        heard = {attempt: now - call.for_s for attempt, call in in_hand.items()}
        self._forecast.note(view.open_attempts, now, heard)
        self._weigh()
        whole, finished = self._work()
        usual_cost = whole.cost / max(1, whole.tasks)
        return self._forecast.outlook(
            whole,
            finished,
            view.open_attempts,
            lambda task: self._costs.get(task, usual_cost),
            lambda attempt, _: _costs_in_hand(in_hand.get(attempt), usual_cost),
            now,
        )

    def _work(self) -> tuple[Work, Work]:
        """What there is to do, and what of it is done, the costs as far as they can be told."""
        ledger = self._view.ledger
        n_tasks, n_finished = ledger.tasks, ledger.n_finished
        cost = self._view.cost
        if not self._costs:
            return Work(n_tasks, float(n_tasks)), Work(n_finished, float(n_finished))
        known = done = 0.0
        for task, one in self._costs.items():
            weighed = one * self._weights[task]
            known += weighed
            if ledger.verdict(task) is not None:
                done += weighed
        share = done / known if known > 0 else 0.0
        return Work(n_tasks, cost), Work(n_finished, cost * share)

    def _is_cost_known(self, task: int) -> bool:
        return not self._costs or task in self._costs

    def _weigh(self) -> None:
        """Read what some tasks cost, where costs differ, and tasks were added since."""
        view = self._view
        if view.ledger.tasks == self._n_weighed:
            return
        self._n_weighed = view.ledger.tasks
        if view.cost in (0, view.ledger.tasks):
            return
        first = [one for name, one in view.manifests.items() if is_original(name)]
        n_lines = sum(map(len, first))
        for manifest in first:
            n_runs = max(1, COSTS_READ * len(manifest) // (RUN_OF_LINES * max(1, n_lines)))
            step = max(RUN_OF_LINES, len(manifest) // n_runs)
            found: dict[int, float] = {}
            for position in range(0, len(manifest), step):
                for line in manifest.records(TaskCost, position, position + RUN_OF_LINES):
                    if 0 <= line.task < view.ledger.tasks:
                        found[line.task] = line.cost
            self._costs.update(found)
            for task in found:
                self._weights[task] = len(manifest) / len(found)


def _costs_in_hand(call: InHand | None, usual_cost: float) -> list[float]:
    return [] if call is None else [usual_cost] * min(call.tasks, MOST_IN_HAND)
