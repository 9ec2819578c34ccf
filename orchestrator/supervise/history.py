"""What became of the attempts in each slot: in this epoch, and in the slots of later parents.

`Situation` keeps one `History` for the epoch and asks it at each look. It reads on in a view that
was just refreshed, and notes when this process saw each end and each failure first: the times in
records were written by clocks that may be other hosts', or may have been set.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Collection, Sequence

from gpuspool.orchestrator.plan.slots import Slot
from gpuspool.orchestrator.supervise.decide import RankPast
from gpuspool.orchestrator.supervise.opinions import Trial
from gpuspool.spool.layout import rank_of
from gpuspool.spool.records import CPU, Intent
from gpuspool.spool.states import AttemptState, Reason, Verdict
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
        """What became of the attempts in other parents' slots, as of the last call of `past`.

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
