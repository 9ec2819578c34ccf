"""Which rank the attempts of a slot are.

A rank's number is unique among what lives, on whatever host, and it is chosen when a slot launches
its first attempt: the lowest number that was never used, or whose attempts are all closed and whose
last parent is gone. The link(2) of the intent takes it; of two parents that choose the same number
one finds it taken, looks again and takes the next. A slot keeps its number, so its attempts follow
each other under one name. It never waits for a number: where those of an earlier start are not
proved dead yet, it takes a new one.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from gpuspool.orchestrator.plan.slots import Slot
from gpuspool.spool.layout import rank_of
from gpuspool.spool.liveness import FailureDetector
from gpuspool.spool.states import Life
from gpuspool.spool.view import View


class Ranks:
    """The ranks that the slots of one parent have."""

    def __init__(self, view: View, detector: FailureDetector, epoch: int) -> None:
        self._view = view
        self._detector = detector
        self._epoch = epoch
        # The rank of each slot that has launched an attempt, by the number of the slot.
        self._ranks: dict[int, int] = {}

    def candidates(self, slot: Slot) -> Iterator[int]:
        """The ranks to try for a slot's next attempt, the best first: its own, then free ones.

        It never ends. Whoever finds one taken asks for the next, and the attempts are read again
        before that. Raises OSError.
        """
        tried: set[int] = set()
        own = self._ranks.get(slot.number)
        if own is not None:
            tried.add(own)
            if not self._has_open(own):
                yield own
                self._view.refresh_attempts()
        while True:
            rank = self._lowest_free(tried)
            tried.add(rank)
            yield rank
            self._view.refresh_attempts()

    def take(self, slot: Slot, rank: int) -> None:
        """A slot has launched an attempt of this rank, and keeps it."""
        self._ranks[slot.number] = rank

    def _has_open(self, rank: int) -> bool:
        """Whether an attempt of a rank is open.

        One of a slot's own rank can be, if somebody took this parent for dead and the rank for
        free.
        """
        return any(rank_of(attempt) == rank for attempt in self._view.open_attempts)

    def _lowest_free(self, tried: set[int]) -> int:
        last: dict[int, str] = {}
        open_ranks: set[int] = set()
        # The attempts stand in the order of their numbers, so the last one of each rank stays.
        for attempt in self._view.attempts:
            rank = rank_of(attempt)
            last[rank] = attempt
            if attempt not in self._view.closed:
                open_ranks.add(rank)
        taken = {*tried, *self._ranks.values(), *open_ranks}
        for rank in itertools.count():
            if rank not in taken and (rank not in last or self._is_rank_left(last[rank])):
                return rank
        raise AssertionError("there is always a number that was never used")

    def _is_rank_left(self, attempt: str) -> bool:
        """Whether nobody will start another attempt of the rank of this one, which is closed."""
        intent = self._view.intents.get(attempt)
        if intent is not None and intent.epoch == self._epoch:
            return True
        return self._detector.parent_life(attempt) is Life.DEAD
