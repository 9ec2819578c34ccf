"""What this attempt holds and has not begun: claimed tasks, decoded some at a time, and those that
are tried again.

Whatever is in here when the attempt ends goes into its orphans manifest. Claims are made when
nothing is left, or a little before that where inputs are loaded ahead.
"""

from __future__ import annotations

import heapq
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from itertools import islice, takewhile

from gpuspool.spool.records import TaskLine
from gpuspool.worker.supply import Rate, Supply

# lines of a claim that are decoded at once: it may hold very many, and most may be released again
DECODED = 256


class Backlog:
    """`before_claim` is called before each claim, and `is_ours` after: whether the attempt was not
    closed meanwhile.
    """

    def __init__(
        self, supply: Supply, before_claim: Callable[[], None], is_ours: Callable[[], bool]
    ) -> None:
        self.rate = Rate()
        self.tries: dict[int, int] = {}
        self._supply, self._before_claim, self._is_ours = supply, before_claim, is_ours
        self._claimed: Iterator[TaskLine] = iter(())
        self._pending: deque[TaskLine] = deque()
        self._deferred: list[tuple[float, int, TaskLine]] = []

    def look_closely(self) -> None:
        """There are places that nobody claimed, and that were passed over."""
        self._supply.look_closely()

    def rest(self) -> list[TaskLine]:
        """All of it, which is forgotten here."""
        return [*self._pending, *self._claimed, *(line for _, _, line in self._deferred)]

    def defer(self, line: TaskLine, wait_s: float) -> None:
        """Try a task again after some time, alone."""
        heapq.heappush(self._deferred, (time.monotonic() + wait_s, line.task, line))

    def due_in_s(self) -> float | None:
        """When the next task that is tried again is due; None where there is none."""
        return self._deferred[0][0] - time.monotonic() if self._deferred else None

    def fill(self, batch: int, window: int) -> bool:
        """Whether there is something to run now: claimed before, a retry that is due, or claimed
        anew.
        """
        while not self._decode(batch + window):
            if self._deferred and self._deferred[0][0] <= time.monotonic():
                self._pending.append(heapq.heappop(self._deferred)[2])
            elif not self._claim(batch, is_ahead=False):
                return False
        return True

    def _decode(self, wanted: int) -> bool:
        if len(self._pending) < wanted:
            self._pending.extend(islice(self._claimed, max(wanted, DECODED)))
        return bool(self._pending)

    def _claim(self, batch: int, is_ahead: bool) -> bool:
        """Only once the last claim is decoded. False: there is nothing to claim, or nothing more is
        ours to run.
        """
        self._before_claim()
        tasks = self._supply.take(batch, self.rate.learn(), is_ahead)
        if tasks is None:
            return False
        self._claimed = tasks
        return self._is_ours()

    def next_batch(self, size: int, most_cost: float | None) -> list[TaskLine]:
        """At most so many decoded tasks; a careful one, or one that is tried again, alone."""
        pending, tries = self._pending, self.tries
        first = pending.popleft()
        batch, cost = [first], first.cost
        if self._is_alone(first):
            return batch
        while pending and len(batch) < size:
            line = pending[0]
            cost += line.cost
            if line.careful or line.task in tries or (most_cost is not None and cost > most_cost):
                break
            batch.append(pending.popleft())
        return batch

    def put_back(self, lines: Sequence[TaskLine]) -> None:
        """Those of the last batch that were not run."""
        self._pending.extendleft(reversed(lines))

    def _is_alone(self, line: TaskLine) -> bool:
        return line.careful or line.task in self.tries

    def ahead(self, in_hand: list[TaskLine], batch: int, window: int) -> list[TaskLine]:
        """The tasks whose inputs are wanted soon: those in hand, and so many behind them, claimed
        early if need be.

        Nothing is loaded beside a task that runs alone, so that what happens then is its own doing;
        and so that one which is tried again gets its turn, nothing is claimed early while there are
        such.
        """
        if self._is_alone(in_hand[0]):
            return []
        while (
            len(self._pending) < window and not self._deferred and self._claim(batch, is_ahead=True)
        ):
            self._decode(window)
        return [
            *in_hand,
            *takewhile(lambda line: not self._is_alone(line), islice(self._pending, window)),
        ]
