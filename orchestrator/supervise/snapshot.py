"""What is known of a run, as `decide` wants it: taken from the view, and from what this epoch did.

`Situation` is the memory of the loop from one look to the next: which attempts of this epoch ended
and when, whether it has swept, whether claims must be mended, whether it was said that all is
finished. The loop notes here what it did. Taking a snapshot changes nothing but the record of when
an end was first seen.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence

from gpuspool.orchestrator.plan.slots import Slot
from gpuspool.orchestrator.supervise.decide import OpenAttempt, RankPast, Snapshot, sick_devices
from gpuspool.orchestrator.supervise.drain import Drain
from gpuspool.orchestrator.supervise.workers import BY_RESUME, Workers
from gpuspool.spool.layout import rank_of
from gpuspool.spool.records import Closing
from gpuspool.spool.states import Life
from gpuspool.spool.view import View


class History:
    """The attempts that each slot had in this epoch.

    Those of earlier epochs do not count: what another orchestrator saw burns none of this one's
    restarts. The attempts of this epoch are found by reading on in the view's intents, so a look at
    a run that had thousands of attempts before costs no more than one at a new run.
    """

    def __init__(self, view: View, epoch: int, slots: Sequence[Slot]) -> None:
        self._view = view
        self._epoch = epoch
        self._slots = {slot.rank: slot for slot in slots}
        self._attempts: dict[int, list[str]] = {slot.rank: [] for slot in slots}
        self._intents_read = 0
        self._ended_at: dict[str, float] = {}

    def past(self) -> list[RankPast]:
        """What became of each slot's attempts, in the order of the slots."""
        self._read_intents()
        return [self._past_of(slot) for slot in self._slots.values()]

    def _read_intents(self) -> None:
        intents = self._view.intents
        for attempt in itertools.islice(intents, self._intents_read, len(intents)):
            intent = intents[attempt]
            if intent is None or intent.epoch != self._epoch:
                continue
            rank = rank_of(attempt)
            if rank in self._attempts:
                self._attempts[rank].append(attempt)
        self._intents_read = len(intents)

    def _past_of(self, slot: Slot) -> RankPast:
        # A restart waits from the moment at which this process saw the end, not from the time in
        # the closing: that was written by a clock which may be another host's, or may have been
        # set. A backoff that is reckoned from it could be over at once, or last for hours.
        attempts = self._attempts[slot.rank]
        finished_by = self._view.finished_by
        closings: list[Closing] = []
        finished: list[int] = []
        ended_at = 0.0
        for attempt in attempts:
            closing = self._view.closed.get(attempt)
            if closing is None:
                continue
            closings.append(closing)
            finished.append(finished_by.get(attempt, 0))
            ended_at = self._ended_at.setdefault(attempt, time.monotonic())
        return RankPast(
            slot,
            closings=tuple(closings),
            finished=tuple(finished),
            ended_at=ended_at,
            done=sum(finished_by.get(attempt, 0) for attempt in attempts),
        )


class Situation:
    """What the loop remembers of one epoch between its looks."""

    def __init__(self, view: View, workers: Workers, epoch: int, slots: Sequence[Slot]) -> None:
        self._view = view
        self._workers = workers
        self._slots = slots
        self._history = History(view, epoch, slots)
        self._epoch = epoch
        self._closings_read = 0
        # How many attempts were closed whose death nobody saw; and how many had been when claims
        # were mended, -1 before that.
        self._unseen_deaths = 0
        self._unseen_deaths_mended = -1
        self._was_swept = False
        self._finished_at: float | None = None

    def snapshot(self, drain: Drain | None) -> Snapshot:
        """What is known now, of a view that was just refreshed."""
        ledger = self._view.ledger
        undecided = self._undecided()
        return Snapshot(
            tasks_left=ledger.tasks - ledger.n_finished + undecided,
            unclaimed=self._view.unclaimed,
            open=self._open(),
            past=self._history.past(),
            failed=ledger.n_failed - undecided,
            drain=drain,
            is_mending_due=self._is_mending_due(),
            is_settling=bool(self._view.unsettled),
            was_swept=self._was_swept,
            finished_at=self._finished_at,
        )

    def _undecided(self) -> int:
        """How many tasks count as failed for their unreadable lines alone, and may yet complete.

        No readable line describes such a task any more, so nobody can claim it, and it has failed.
        But an attempt that is open may have read the line before the file was damaged, and may have
        the task in hand. So as long as anybody is open these tasks count as left: else the run
        would end, and say how many failed, while one of them is about to complete.
        """
        if not self._view.open_attempts:
            return 0
        ledger = self._view.ledger
        count = 0
        for task in ledger.unreadable:
            newest_round = ledger.round_of(task)
            if not ledger.is_finished_in(task, newest_round):
                count += 1
        return count

    def _open(self) -> list[OpenAttempt]:
        have_claimed = self._view.claims_by
        found: list[OpenAttempt] = []
        for name in self._view.open_attempts:
            life = self._workers.life(name)
            if life is Life.DEAD and time.monotonic() < self._workers.believed_at(name):
                # It is judged later, and until then it is waited for.
                life = Life.ALIVE
            is_starting = name not in have_claimed
            found.append(OpenAttempt(name, rank_of(name), life, is_starting))
        return found

    def next_judged_at(self) -> float | None:
        """When the next death may be judged that is too fresh now, on the monotonic clock."""
        now = time.monotonic()
        moments = [self._workers.believed_at(name) for name in self._view.open_attempts]
        return min((moment for moment in moments if moment > now), default=None)

    def _is_mending_due(self) -> bool:
        """Whether claims may lack what a power cut took back: they are not synced.

        In the first epoch nobody died before it. In a later one everybody may have died with the
        power, so claims are mended once at its beginning. They are mended again whenever an attempt
        was closed whose death nobody saw: as long as it counted as alive, by its lease, what it
        held could not be told from what was taken back.
        """
        if self._epoch == 0:
            return False
        closed = self._view.closed
        for attempt in itertools.islice(closed, self._closings_read, len(closed)):
            if closed[attempt].by == BY_RESUME:
                self._unseen_deaths += 1
        self._closings_read = len(closed)
        return self._unseen_deaths != self._unseen_deaths_mended

    def note_launch(self) -> None:
        """Somebody was started, so a sweep may find something again."""
        self._was_swept = False

    def note_sweep(self) -> None:
        """The spool was swept."""
        self._was_swept = True

    def note_mending(self) -> None:
        """Claims are mended as far as the deaths go that are known now."""
        self._unseen_deaths_mended = self._unseen_deaths

    def note_said_finished(self, now: float) -> None:
        """The attempts that wait were told that every task has a verdict."""
        self._finished_at = now

    def sick_devices(self) -> dict[str, list[int]]:
        """The devices whose last attempt failed for nothing, with their ranks.

        Whether the device was given up does not matter.
        """
        sick = sick_devices(self._history.past(), max_restarts=0)
        ranks: dict[str, list[int]] = {}
        for device in sorted(sick):
            ranks[device] = [slot.rank for slot in self._slots if slot.device == device]
        return ranks
