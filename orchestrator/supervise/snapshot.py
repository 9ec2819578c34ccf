"""What is known of a run, as `decide` wants it: taken from the view, and from what this epoch did.

`Situation` is the memory of the loop from one look to the next: whether it has swept, whether
claims must be mended, whether it was said that all is finished. The loop notes here what it did.
What became of attempts is in `history.py`. Taking a snapshot changes nothing in the spool; it reads
on, lets the judge look, and notes when each end, failure and verdict was first seen.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Collection, Iterable, Sequence

from gpuspool.orchestrator.plan.slots import Slot
from gpuspool.orchestrator.supervise.decide import (
    OpenAttempt,
    Policy,
    Snapshot,
    ranks_without_news,
    sick_devices,
    trusted_devices,
    working_devices,
)
from gpuspool.orchestrator.supervise.drain import Drain
from gpuspool.orchestrator.supervise.history import History, is_opinion_of
from gpuspool.orchestrator.supervise.opinions import fruitless_row
from gpuspool.orchestrator.supervise.rulings import Judge
from gpuspool.orchestrator.supervise.taken_slots import TakenSlots
from gpuspool.orchestrator.supervise.warmth import Warmth
from gpuspool.orchestrator.supervise.workers import Workers
from gpuspool.spool.states import BY_RESUME, Life, Reason
from gpuspool.spool.view import View


class Situation:
    """What the loop remembers of one epoch between its looks."""

    def __init__(
        self,
        view: View,
        workers: Workers,
        judge: Judge,
        policy: Policy,
        epoch: int,
        slots: Sequence[Slot],
        is_one_first: bool = False,
    ) -> None:
        """is_one_first: a rank shall have imported its job before the others start."""
        self._policy = policy
        self._judge = judge
        self._view = view
        self._workers = workers
        self._slots = slots
        self._history = History(view, epoch, slots)
        self._taken_slots = TakenSlots(view, workers.others, slots)
        self._is_one_first = is_one_first and len(slots) > 1
        self._warmth = Warmth(view, self._is_one_first)
        self._epoch = epoch
        self._closings_read = 0
        # How many attempts were closed whose death nobody saw; and how many had been when claims
        # were mended, -1 before that.
        self._unseen_deaths = 0
        # Before the first epoch nobody can have died.
        self._unseen_deaths_mended = 0 if epoch == 0 else -1
        self._was_swept = False
        self._finished_at: float | None = None
        # How many tasks had a verdict when that number last changed, when that was, and how many
        # attempts were closed then.
        self._n_finished = -1
        self._finished_last_at = 0.0
        self._closed_before = 0

    def snapshot(
        self, drain: Drain | None, is_gatherer: bool = True, others: Collection[int] = ()
    ) -> Snapshot:
        """What is known now, of a view that was just refreshed.

        is_gatherer: this parent does what one of all has to do. others: the epochs of the other
        parents that are there.
        """
        ledger = self._view.ledger
        undecided = self._undecided()
        if drain is not None:
            self._history.note_drain()
        past = self._history.past()
        elsewhere = self._history.past_elsewhere(others)
        everywhere = [*past, *elsewhere]
        open_ = self._open()
        self._note_progress()
        devices = trusted_devices(everywhere, self._policy.max_restarts)
        without_news = ranks_without_news(everywhere, open_)
        # Whoever has nothing to do could try a doubtful task.
        is_somebody_free = self._view.unclaimed == 0
        is_ruling_due = self._judge.look(
            devices, working_devices(everywhere), is_somebody_free, self._ranks_of(without_news)
        )
        n_doubtful, n_attempts = self._failures_of_this_epoch()
        tasks_left = ledger.tasks - ledger.n_finished + undecided
        if tasks_left:
            # Tasks may have been added since it was said that all are finished.
            self._finished_at = None
        last_phase_since = self._judge.last_phase_since
        lingering = map(self._history.slot_of, self._workers.lingering())
        return Snapshot(
            tasks_left=tasks_left,
            unclaimed=self._view.unclaimed,
            open=open_,
            past=past,
            failed=ledger.n_failed - undecided,
            drain=drain,
            is_mending_due=self._is_mending_due(),
            is_unsettled=bool(self._view.unsettled),
            was_swept=self._was_swept,
            finished_at=self._finished_at,
            without_news=without_news,
            is_ruling_due=is_ruling_due,
            is_ruling_awaited=self._judge.is_last and bool(self._view.unruled()),
            is_settling=last_phase_since is not None and self._finished_last_at >= last_phase_since,
            do_processes_break=self._judge.do_processes_break,
            tasks=ledger.tasks,
            complete=ledger.n_complete,
            doubtful=n_doubtful,
            doubting=n_attempts,
            barren=self._barren(),
            finished_last_at=self._finished_last_at,
            is_one_first=self._is_one_first,
            is_cold=self._warmth.look(open_, past),
            occupied=frozenset(lingering) | self._taken_slots.beside_first,
            is_gatherer=is_gatherer,
            elsewhere=elsewhere,
        )

    def _ranks_of(self, numbers: Iterable[int]) -> frozenset[int]:
        """The ranks that slots have, of those that have had an attempt."""
        return frozenset(self._history.rank_of_slot(number) for number in numbers)

    def _barren(self) -> int:
        """How many attempts ended since a task was finished last, and were not recycled."""
        closed = itertools.islice(self._view.closed.values(), self._closed_before, None)
        return sum(closing.reason is not Reason.RECYCLED for closing in closed)

    def _note_progress(self) -> None:
        """Note whether a task was finished since the last look."""
        n_finished = self._view.ledger.n_finished
        if n_finished != self._n_finished:
            self._n_finished = n_finished
            self._finished_last_at = time.monotonic()
            self._closed_before = len(self._view.closed)

    def _failures_of_this_epoch(self) -> tuple[int, int]:
        """How many of the doubtful tasks failed in this epoch, and in how many attempts.

        What failed before may have failed by what ended that epoch.
        """
        attempts: set[str] = set()
        count = 0
        for key in self._judge.doubtful:
            failed_in = {one.attempt for one in self._view.held[key]}
            ours = set(filter(self._judge.is_of_this_epoch, failed_in))
            attempts |= ours
            if ours:
                count += 1
        return count, len(attempts)

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
        children, slot_of = self._workers.children, self._history.slot_of
        foreign = self._workers.others.open_attempts()
        busy = {slot_of(name) for name in self._view.open_attempts if name in children}
        taken = self._taken_slots.look(foreign, busy)
        found: list[OpenAttempt] = []
        for name in self._view.open_attempts:
            life = self._workers.life(name)
            if life is Life.DEAD and time.monotonic() < self._workers.believed_at(name):
                # It is judged later, and until then it is waited for.
                life = Life.ALIVE
            is_starting = name not in have_claimed
            # It is asked only where tasks fail, and looks at every claim.
            is_idle = bool(self._judge.doubtful) and not is_starting and self._judge.is_idle(name)
            is_leaving = name in self._view.leaving
            slot = taken.get(name, slot_of(name))
            is_own = name in children or name in taken or life is Life.ALIVE
            found.append(OpenAttempt(name, slot, life, is_starting, is_idle, is_leaving, is_own))
        return found

    def next_due_at(self) -> float | None:
        """When to look again by the clock alone, on the monotonic clock.

        That is when the next death may be judged that is too fresh now, or when to see how far the
        rank is that others wait for.
        """
        now = time.monotonic()
        moments = [self._workers.believed_at(name) for name in self._view.open_attempts]
        moments = [moment for moment in moments if moment > now]
        warm_at = self._warmth.due_at()
        if warm_at is not None:
            moments.append(warm_at)
        return min(moments, default=None)

    def _is_mending_due(self) -> bool:
        """Whether claims may lack what a power cut took back: they are not synced.

        In the first epoch nobody died before it. In a later one everybody may have died with the
        power, so claims are mended once at its beginning. They are mended again whenever an attempt
        was closed whose death nobody saw: as long as it counted as alive, by its lease, what it
        held could not be told from what was taken back.
        """
        closed = self._view.closed
        for attempt in itertools.islice(closed, self._closings_read, len(closed)):
            if closed[attempt].by == BY_RESUME:
                self._unseen_deaths += 1
        self._closings_read = len(closed)
        return self._unseen_deaths != self._unseen_deaths_mended

    def note_launch(self, slot: Slot, attempt: str) -> None:
        """Somebody was started, so a sweep may find something again."""
        self._history.note_launch(slot, attempt)
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
        """The devices to look at, with their ranks: they seem sick, and others got on.

        It may be less than what gives a device up. But where only tasks speak against one, and only
        once, that may have been an outage, or the kernel that ended a process for want of memory.
        So then several tasks must have failed there that completed elsewhere, and on no other
        device any.
        """
        past = self._history.past()
        sick = sick_devices(past, min(1, self._policy.max_restarts))
        once = sick_devices(past, 0)
        for rank in past:
            if rank.device not in once:
                continue
            row = fruitless_row(rank.place)
            is_its_own = any(trial.is_fault and not trial.is_trouble for trial in row)
            if is_its_own or (rank.acquitted > 1 and self._failed_only_on(rank.device)):
                sick.add(rank.device)
        ranks: dict[str, list[int]] = {}
        tokens = {slot.place: slot.device for slot in self._slots}
        for place in sorted(sick & tokens.keys()):
            if self._have_others_completed(place):
                numbers = [slot.number for slot in self._slots if slot.place == place]
                ranks[tokens[place]] = sorted(self._ranks_of(numbers) - {-1})
        return ranks

    def _have_others_completed(self, place: str) -> bool:
        """Whether an attempt on another device completed a task."""
        for attempt, intent in self._view.intents.items():
            if intent is not None and intent.place != place and self._view.completed(attempt):
                return True
        return False

    def _failed_only_on(self, place: str) -> bool:
        """Whether all failures of tasks that are complete happened on one device."""
        complete = self._view.ledger.complete
        for attempt, failed in self._view.failed_in.items():
            if self._history.is_on(attempt, place):
                continue
            for key in failed:
                if complete[key[0]] and is_opinion_of(self._view, attempt, key):
                    return False
        return True
