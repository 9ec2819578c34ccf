"""What this attempt has claimed and not begun, and the tasks that wait to be tried again.

Of a claim some tasks are decoded at a time. Whatever is in here when the attempt ends goes into its
orphans manifest. Claims are made when nothing is left, or a little before that where inputs are
loaded ahead. Called by the work loop; `settle` adds the tasks that are to be tried again.
"""

from __future__ import annotations

import heapq
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from itertools import islice

from gpuspool.spool.records import TaskLine
from gpuspool.worker.supply import Rate, Supply

# So many lines of a claim are decoded at once. A claim may hold very many, and most of them may be
# given back undecoded.
DECODED = 256


class Backlog:
    """The claimed tasks of one attempt, in order."""

    def __init__(
        self, supply: Supply, before_claim: Callable[[], None], is_still_open: Callable[[], bool]
    ) -> None:
        """before_claim: called before each claim, which may take long. is_still_open: called after
        each claim; False where the attempt was closed meanwhile, so that nothing more may be run.
        """
        self._supply = supply
        self._is_proven: Callable[[], bool] = _never
        self._is_fresh: Callable[[], bool] = _never
        self._before_claim = before_claim
        self._is_still_open = is_still_open
        self._rate = Rate()
        # The rest of the last claim, not decoded yet.
        self._claimed: Iterator[TaskLine] = iter(())
        self._pending: deque[TaskLine] = deque()
        # A heap of (when it is due on the monotonic clock, task, its line).
        self._deferred: list[tuple[float, int, TaskLine]] = []
        # How many tasks are wanted from here in all; None for as many as there are.
        self.wanted: int | None = None
        # task -> how often it has failed here
        self._tries: dict[int, int] = {}

    @property
    def claims_tried(self) -> int:
        """How many claims this attempt has tried to make, whatever came of it."""
        return self._supply.claims_tried

    def take_doubtful_after(
        self, is_proven: Callable[[], bool], is_fresh: Callable[[], bool]
    ) -> None:
        """is_proven, is_fresh: as `Supply.take` has them, of the moment."""
        self._is_proven = is_proven
        self._is_fresh = is_fresh

    @property
    def leaves_doubtful(self) -> bool:
        """Whether all that is left to claim are doubtful tasks that others should try first."""
        return self._supply.leaves_doubtful

    @property
    def needs_fresh(self) -> bool:
        """Whether these tasks need a process that has tried none, so that it is vain to wait."""
        return self._supply.needs_fresh

    def give_in(self) -> bool:
        """Nobody else took what had better be tried elsewhere. False: there is no more to take."""
        return self._supply.give_in()

    def look_closely(self) -> None:
        """There are positions that nobody has claimed, and that were passed over."""
        self._supply.look_closely()

    def learn(self, seconds: float, lines: Sequence[TaskLine]) -> None:
        """These tasks were run in so many seconds: later claims are sized by that."""
        # The sum of their weights; `weight` is written out, since a call for each tiny task shows.
        self._rate.add(seconds, sum([line.cost or 1.0 for line in lines]))

    def release(self) -> list[TaskLine]:
        """Everything that is in here, which is empty afterwards."""
        deferred = [line for _, _, line in self._deferred]
        everything = [*self._pending, *self._claimed, *deferred]
        self._pending.clear()
        self._deferred.clear()
        return everything

    def count_try(self, line: TaskLine) -> int:
        """A task failed; returns how often it has failed in this attempt."""
        tries = self._tries.get(line.task, 0) + 1
        self._tries[line.task] = tries
        return tries

    def defer(self, line: TaskLine, wait_s: float) -> None:
        """Run a task again after so many seconds, alone."""
        heapq.heappush(self._deferred, (time.monotonic() + wait_s, line.task, line))

    def due_in_s(self) -> float | None:
        """In how many seconds the next deferred task is due; None where there is none."""
        if not self._deferred:
            return None
        return self._deferred[0][0] - time.monotonic()

    def fill(self, batch: int, window: int) -> bool:
        """See to it that there is something to run now. False: there is nothing.

        In this order: what was claimed before, a deferred task that is due, a new claim. batch:
        tasks of one call. window: how many tasks behind it have their inputs loaded.
        """
        while True:
            self._decode(batch + window)
            if self._pending:
                return True
            wait_s = self.due_in_s()
            if wait_s is not None and wait_s <= 0:
                self._pending.append(heapq.heappop(self._deferred)[2])
            elif not self._claim(batch, is_ahead=False):
                return False

    def _decode(self, wanted: int) -> None:
        """Decode lines of the last claim until so many are pending, or none is left."""
        if len(self._pending) < wanted:
            self._pending.extend(islice(self._claimed, max(wanted, DECODED)))

    def _claim(self, batch: int, is_ahead: bool) -> bool:
        """Make a claim; only once the last one is decoded.

        False: there is nothing to claim, or nothing more may be run here.
        """
        self._before_claim()
        rate = self._rate.learn()
        is_proven, is_fresh = self._is_proven(), self._is_fresh()
        most = None
        if self.wanted is not None:
            most = max(1, self.wanted - len(self._pending))
        tasks = self._supply.take(batch, rate, is_ahead, is_proven, is_fresh, most)
        if tasks is None:
            return False
        self._claimed = tasks
        return self._is_still_open()

    def next_batch(self, size: int, most_cost: float | None) -> list[TaskLine]:
        """The tasks to call next: at most `size`, whose costs add up to at most `most_cost`.

        At least one, whatever it costs. A careful task, or one that is tried again, comes alone. To
        be called after `fill` said that there is something.
        """
        pending = self._pending
        first = pending.popleft()
        batch = [first]
        if self._is_alone(first):
            return batch
        cost = first.cost
        while pending and len(batch) < size:
            line = pending[0]
            cost += line.cost
            is_too_much = most_cost is not None and cost > most_cost
            # `_is_alone`, written out: a call of it would cost a tiny task some percent.
            if line.careful or line.failed_in or line.task in self._tries or is_too_much:
                break
            batch.append(pending.popleft())
        return batch

    def put_back(self, lines: Sequence[TaskLine]) -> None:
        """Tasks of the last batch that were not run come first again."""
        self._pending.extendleft(reversed(lines))

    def _is_alone(self, line: TaskLine) -> bool:
        """Whether a task must be in a call of its own, so that it alone is to blame for it."""
        return line.careful or bool(line.failed_in) or line.task in self._tries

    def ahead(self, in_hand: list[TaskLine], batch: int, window: int) -> list[TaskLine]:
        """The tasks whose inputs are wanted soon: those in hand, and at most `window` behind them.

        A claim is made for them if need be. Nothing is loaded beside a task that runs alone, so
        that what happens then is its own doing. And while tasks wait to be tried again nothing is
        claimed early, so that they get their turn.
        """
        if self._is_alone(in_hand[0]):
            return []
        if self.wanted is not None:
            window = min(window, max(0, self.wanted - len(in_hand)))
        while len(self._pending) < window and not self._deferred:
            if not self._claim(batch, is_ahead=True):
                break
            self._decode(window)
        wanted = list(in_hand)
        for line in islice(self._pending, window):
            if self._is_alone(line):
                break
            wanted.append(line)
        return wanted


def _never() -> bool:
    return False
