"""What is known of a run, as `decide` wants it: taken from the view, and from what this epoch did.

`Situation` is the memory of the loop from one look to the next: which attempts of this epoch ended
and when, whether it has swept, whether claims must be mended, whether it was said that all is
finished. The loop notes here what it did. Taking a snapshot changes nothing in the spool; it reads
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
    RankPast,
    Snapshot,
    ranks_without_news,
    sick_devices,
    trusted_devices,
    working_devices,
)
from gpuspool.orchestrator.supervise.drain import Drain
from gpuspool.orchestrator.supervise.opinions import Trial, fruitless_row
from gpuspool.orchestrator.supervise.rulings import Judge
from gpuspool.orchestrator.supervise.taken_slots import TakenSlots
from gpuspool.orchestrator.supervise.warmth import Warmth
from gpuspool.orchestrator.supervise.workers import Workers
from gpuspool.spool.layout import rank_of
from gpuspool.spool.records import CPU, Intent
from gpuspool.spool.states import BY_RESUME, AttemptState, Life, Reason, Verdict
from gpuspool.spool.view import View


class History:
    """The attempts that each slot had in this epoch, and those that the slots of later ones had.

    Those of earlier epochs do not count: what another parent saw before burns none of this one's
    restarts. Parents of later epochs work beside this one, and what became of theirs says what
    failures are worth. All these attempts are found by reading on in the view's intents, so a look
    at a run that had thousands of attempts before costs no more than one at a new run.
    """

    def __init__(self, view: View, epoch: int, slots: Sequence[Slot]) -> None:
        self._view = view
        self._epoch = epoch
        self._n_own = len(slots)
        self._slots = {slot.number: slot for slot in slots}
        self._attempts: dict[int, list[str]] = {slot.number: [] for slot in slots}
        # The number of each slot of another parent, by its epoch and its number there.
        self._numbers: dict[tuple[int, int], int] = {}
        self._slot_of: dict[str, int] = {}
        self._intents_read = 0
        # When this process saw each attempt end, on the monotonic clock.
        self._ended_at: dict[str, float] = {}
        # How many tasks that failed in its place had been acquitted when an attempt was launched.
        self._known: dict[str, int] = {}
        # How many tasks had failed in an open attempt at the last look, and when that changed.
        self._failed_last: dict[str, tuple[int, float]] = {}
        # When this parent began to drain, on the monotonic clock.
        self._drained_at: float | None = None
        # The slots that are known to have completed a task.
        self._working: set[int] = set()

    def note_launch(self, slot: Slot, attempt: str) -> None:
        """Note what speaks for the innocence of a place's last tasks when it gets an attempt."""
        ended = self._ended(self._attempts[slot.number])
        if slot.device:
            ended = self._ended_on(slot.place)
        self._known[attempt] = self._acquitted(self._row(ended))

    def note_drain(self) -> None:
        """From now on whoever stops does so since this parent drains."""
        if self._drained_at is None:
            self._drained_at = time.monotonic()

    def past(self) -> list[RankPast]:
        """What became of the attempts of this parent's slots, in the order of these."""
        self._read_intents()
        return [self._past_of(self._slots[number]) for number in range(self._n_own)]

    def past_elsewhere(self, epochs: Collection[int]) -> list[RankPast]:
        """Likewise of the slots of other parents that are in play, as of the last `past`.

        epochs: of the parents that are there. Nobody will have another opinion in the slots of one
        that has gone, but for an attempt that it has left behind and that is open yet. If they
        counted as places, tasks would wait for their opinions for ever.
        """
        found: list[RankPast] = []
        for (epoch, _), number in self._numbers.items():
            if epoch in epochs or self._open(number) is not None:
                found.append(self._past_of(self._slots[number]))
        return found

    def slot_of(self, attempt: str) -> int:
        """The number of the slot that an attempt was started in, -1 where that is not known."""
        return self._slot_of.get(attempt, -1)

    def _read_intents(self) -> None:
        intents = self._view.intents
        for attempt in itertools.islice(intents, self._intents_read, len(intents)):
            intent = intents[attempt]
            if intent is None or intent.epoch < self._epoch:
                continue
            number = self._number_of(intent)
            if number in self._attempts:
                self._attempts[number].append(attempt)
                self._slot_of[attempt] = number
        self._intents_read = len(intents)

    def _number_of(self, intent: Intent) -> int:
        """The number of the slot of an attempt, which another parent's slot gets now."""
        if intent.epoch == self._epoch:
            return intent.local_rank
        key = intent.epoch, intent.local_rank
        number = self._numbers.get(key)
        if number is None:
            number = self._numbers[key] = len(self._slots)
            device = "" if intent.device == CPU else intent.device
            self._slots[number] = Slot(
                number, device, host=intent.parent.host, job_id=intent.job_id
            )
            self._attempts[number] = []
        return number

    def rank_of_slot(self, number: int) -> int:
        """The rank of a slot's last attempt, -1 before its first."""
        attempts = self._attempts[number]
        return rank_of(attempts[-1]) if attempts else -1

    def _past_of(self, slot: Slot) -> RankPast:
        # A restart waits from the moment at which this process saw the end, not from the time in
        # the closing: that was written by a clock which may be another host's, or may have been
        # set. A backoff that is reckoned from it could be over at once, or last for hours.
        ended = self._ended(self._attempts[slot.number])
        ended_at = 0.0
        if ended:
            ended_at = self._ended_at[ended[-1]]
        trials = self._trials(ended)
        device_trials = trials
        ended_in_place = ended
        if slot.device:
            ended_in_place = self._ended_on(slot.place)
            device_trials = self._trials(ended_in_place)
        row = self._row(ended_in_place)
        failed_at = self._failed_at(slot.number)
        return RankPast(
            slot,
            reasons=frozenset(self._view.closed[attempt].reason for attempt in ended),
            trials=trials,
            device_trials=device_trials,
            ended_at=ended_at,
            acquitted=self._acquitted(row),
            failed_elsewhere=self._failed_elsewhere(row, slot),
            failed_at=failed_at,
            gets_on=failed_at is None and self._completed_in_open(slot.number) > 0,
            has_completed=self._has_completed(slot.number),
            has_begun=self._has_begun(slot.number),
        )

    def is_on(self, attempt: str, place: str) -> bool:
        """Whether an attempt was started on a device, by the name that rulings have for it."""
        number = self.slot_of(attempt)
        return number >= 0 and self._slots[number].place == place

    def _ended(self, attempts: Sequence[str]) -> list[str]:
        """Those of these attempts that are closed, each with the moment when that was first seen.

        The oldest end comes first.
        """
        ended = [attempt for attempt in attempts if attempt in self._view.closed]
        for attempt in ended:
            self._ended_at.setdefault(attempt, time.monotonic())
        ended.sort(key=self._ended_at.__getitem__)
        return ended

    def _ended_on(self, place: str) -> list[str]:
        """The closed attempts of all slots with a device, the oldest end first."""
        attempts: list[str] = []
        for number, slot in self._slots.items():
            if slot.place == place:
                attempts.extend(self._attempts[number])
        return self._ended(attempts)

    # Only the last attempts matter, as far back as the first that completed a task. So that is how
    # far trials are made, and a run with thousands of attempts costs no more than a new one.
    def _trials(self, ended: Sequence[str]) -> tuple[Trial, ...]:
        """The last trials of these attempts, oldest first."""
        trials: list[Trial] = []
        for attempt in reversed(ended):
            trial = self._trial(attempt)
            trials.append(trial)
            if trial.completed:
                break
        trials.reverse()
        return tuple(trials)

    def _trial(self, attempt: str) -> Trial:
        completed = self._view.completed(attempt)
        if completed:
            # It speaks for its place, whatever failed in it besides.
            return Trial(completed=completed)
        closing = self._view.closed[attempt]
        tasks = self._failed_in(attempt)
        is_failed = closing.state is AttemptState.FAILED
        # Whoever was drained although nobody had told this parent was stopped by a stranger.
        was_stopped = closing.reason is Reason.DRAINED and self._ended_before_drain(attempt)
        is_seen = (is_failed and closing.reason is not Reason.LOST) or was_stopped
        was_in_call = attempt in self._view.started
        ledger = self._view.ledger
        return Trial(
            failed=len(tasks),
            acquitted=self._acquitted([attempt]),
            convicted=sum(ledger.verdict(task) is Verdict.FAILED for task in tasks),
            known=self._known.get(attempt, 0),
            is_fault=is_seen and not tasks and not closing.suspects and not was_in_call,
            is_trouble=closing.reason is Reason.IO,
            is_excused=bool(tasks) and tasks == self._excused_in(attempt),
            is_silent=not tasks and not is_seen,
        )

    def _ended_before_drain(self, attempt: str) -> bool:
        return self._drained_at is None or self._ended_at[attempt] < self._drained_at

    def _failed_in(self, attempt: str) -> set[int]:
        """The tasks that failed in an attempt, or were in hand when it was killed."""
        tasks = {task for task, _ in self._view.failed_in.get(attempt, [])}
        closing = self._view.closed[attempt]
        tasks.update(failure.task for failure in closing.failures)
        if closing.killed is not None:
            tasks.add(closing.killed)
        return tasks

    def _excused_in(self, attempt: str) -> set[int]:
        """The tasks that a file system in trouble kept from running in an attempt."""
        keys = self._view.failed_in.get(attempt, [])
        return {key[0] for key in keys if not is_opinion_of(self._view, attempt, key)}

    def _row(self, ended: Sequence[str]) -> list[str]:
        """The last of these attempts, back to the first that completed a task."""
        row: list[str] = []
        for attempt in reversed(ended):
            if self._view.completed(attempt):
                break
            row.append(attempt)
        row.reverse()
        return row

    def _acquitted(self, attempts: Sequence[str]) -> int:
        """How many tasks that failed in these attempts are complete."""
        complete = self._view.ledger.complete
        tasks: set[int] = set()
        for attempt in attempts:
            tasks |= self._failed_in(attempt) - self._excused_in(attempt)
        return sum(complete[task] for task in tasks if task < len(complete))

    def _failed_elsewhere(self, row: Sequence[str], slot: Slot) -> int:
        """How many tasks of a place's last trial that says something failed elsewhere too."""
        for attempt in reversed(row):
            trial = self._trial(attempt)
            if trial.is_silent or trial.is_explained:
                continue
            count = 0
            for key in self._view.failed_in.get(attempt, []):
                others = (one.attempt for one in self._view.held[key] if not one.is_excused)
                count += any(not self._is_of_place(other, slot) for other in others)
            return count
        return 0

    def _is_of_place(self, attempt: str, slot: Slot) -> bool:
        if not slot.device:
            return self.slot_of(attempt) == slot.number
        return self.is_on(attempt, slot.place)

    def _has_completed(self, number: int) -> bool:
        """Whether an attempt of a slot completed a task in this epoch."""
        if number not in self._working:
            if not any(map(self._view.completed, self._attempts[number])):
                return False
            self._working.add(number)
        return True

    def _has_begun(self, number: int) -> bool:
        """Whether an attempt of a slot got as far as to claim tasks in this epoch."""
        return any(attempt in self._view.claims_by for attempt in self._attempts[number])

    def _open(self, number: int) -> str | None:
        """The open attempt of a slot."""
        attempts = self._attempts[number]
        if not attempts or attempts[-1] in self._view.closed:
            return None
        return attempts[-1]

    def _completed_in_open(self, number: int) -> int:
        """How many tasks the open attempt of a slot has completed."""
        attempt = self._open(number)
        return 0 if attempt is None else self._view.completed(attempt)

    def _failed_at(self, number: int) -> float | None:
        """When the last task of a slot's open attempt was seen to have failed.

        None where nothing failed in it since it completed a task.
        """
        attempt = self._open(number)
        if attempt is None:
            return None
        failed = self._view.failed_in.get(attempt)
        if not failed:
            return None
        n_failed, at = self._failed_last.get(attempt, (0, 0.0))
        if n_failed < len(failed):
            at = time.monotonic()
            self._failed_last[attempt] = len(failed), at
        last = [one for one in self._view.held[failed[-1]] if one.attempt == attempt][-1]
        if self._view.completed(attempt) > self._view.completed_before(last):
            return None
        return at


def is_opinion_of(view: View, attempt: str, key: tuple[int, int]) -> bool:
    """Whether a task failed in an attempt otherwise than by a file system in trouble."""
    return any(one.attempt == attempt and not one.is_excused for one in view.held[key])


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
