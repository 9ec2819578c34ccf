"""What people are told while a run goes on: why tasks wait, and which attempts ended badly.

Each of these would be true at look after look, and is told once: for the whole epoch, for each
attempt, or for each time that it happens, as each method says. Nothing here decides or changes
anything. The loop calls it; `telling.py` prints and records.
"""

from __future__ import annotations

import math
import resource
from collections.abc import Sequence

from gpuspool.orchestrator.plan.slots import Slot
from gpuspool.orchestrator.supervise.decide import Snapshot, is_outage_likely
from gpuspool.orchestrator.supervise.opinions import OUTAGE_S
from gpuspool.orchestrator.supervise.rulings import Judge, how_it_failed
from gpuspool.orchestrator.supervise.telling import Telling
from gpuspool.orchestrator.supervise.warmth import WARM_S
from gpuspool.orchestrator.text.words import count_of
from gpuspool.spool.records import Closing, Error
from gpuspool.spool.states import AttemptState, Life, Reason
from gpuspool.spool.timeouts import LEAVING_S
from gpuspool.spool.view import View

# A wait for verdicts that is shorter than this is not told.
TELL_FROM_S = 20.0
# Nor is one told while the last completion is more recent than this.
QUIET_S = 5.0


class Notices:
    """What one start has told, and has still to tell. Its methods raise OSError as the view does.

    Those that begin with `tell_why` take the snapshot of each look.
    """

    def __init__(
        self, view: View, judge: Judge, telling: Telling, slots: Sequence[Slot], one_first: str
    ) -> None:
        """one_first: why one rank shall import its job before the others start, "" if it shall
        not.
        """
        self._view = view
        self._judge = judge
        self._telling = telling
        self._slots = slots
        self._one_first = one_first
        self._was_disk_trouble_told = False
        self._were_last_tasks_told = False
        self._was_first_rank_told = False
        self._was_failed_close_told = False
        # When a task had been finished last, when people were told of an outage.
        self._outage_told = -1.0
        # The attempts of other parents of which people were told that they take a slot.
        self._told_in_the_way: set[str] = set()

    def tell_why_tasks_wait(self, snapshot: Snapshot, now: float) -> None:
        """Tell of all that tasks or slots wait for, where that may take a while.

        now: on the monotonic clock.
        """
        self._tell_of_disk_trouble()
        self._tell_of_last_tasks(snapshot)
        self._tell_of_outage(snapshot, now)
        self._tell_of_taken_slots(snapshot)
        self._tell_of_first_rank(snapshot)

    def tell_of_end(self, closing: Closing, is_draining: bool) -> None:
        """Tell of an attempt that closed itself since it could not go on, or was stopped.

        is_draining: this parent was asked for a drain.
        """
        if closing.by != closing.attempt:
            return
        self.tell_of_failed_close(closing)
        message = "" if closing.error is None else closing.error.message
        if closing.reason is Reason.RECYCLED:
            self._telling.record("attempt_recycled", attempt=closing.attempt, why=message)
        elif closing.reason is Reason.DRAINED:
            # A worker may hear of `gpuspool drain` before this process does.
            if not is_draining:
                self._tell_of_stranger(closing.attempt)
        elif closing.state is AttemptState.FAILED:
            text = f"{closing.attempt} failed ({closing.reason}): {message}"
            self._telling.tell("attempt_failed", text, attempt=closing.attempt)

    def tell_of_failed_close(self, closing: Closing) -> None:
        """Tell of a job whose `close` failed: of the first, since each process may say the same.

        Of the others there is only a record.
        """
        error = closing.close_error
        if error is None:
            return
        log = self._view.layout.log(closing.attempt)
        text = (
            f"{closing.attempt}: the job's `close` failed, no task is concerned, see {log}: "
            f"{error.type}: {error.message}"
        )
        if self._was_failed_close_told:
            self._telling.record("close_failed", text=text, attempt=closing.attempt)
        else:
            self._was_failed_close_told = True
            self._telling.tell("close_failed", text, attempt=closing.attempt)

    def tell_of_slow_end(self, attempt: str) -> None:
        """Tell of a worker whose process goes on although its work is over."""
        log = self._view.layout.log(attempt)
        text = (
            f"{attempt} has done its work, but threads or exit handlers of the job go on; after "
            f"{LEAVING_S:.0f} s they are cut off, and {log} says where they stood"
        )
        self._telling.tell("slow_to_end", text, attempt=attempt)

    def _tell_of_stranger(self, attempt: str) -> None:
        """Tell of an attempt that was drained, but by neither this parent nor an order."""
        text = f"{attempt} was told to stop by somebody else, by a signal, and did"
        if resource.getrlimit(resource.RLIMIT_CPU)[1] != resource.RLIM_INFINITY:
            text += "; it may have reached its limit on CPU time, ulimit -t"
        self._telling.tell("attempt_stopped", text, attempt=attempt)

    def _tell_of_disk_trouble(self) -> None:
        """Tell, once until no task is doubtful any more, that a file system keeps tasks waiting."""
        excused = self._judge.excused
        if excused and not self._was_disk_trouble_told:
            tasks = count_of(len(excused), "task waits", "tasks wait")
            message = self._last_error(excused[-1]).message
            text = f"{tasks} for a file system in trouble, to be tried again: {message}"
            self._telling.tell("tasks_waiting", text)
        was_told = self._was_disk_trouble_told and bool(self._judge.doubtful)
        self._was_disk_trouble_told = bool(excused) or was_told

    def _tell_of_last_tasks(self, snapshot: Snapshot) -> None:
        """Tell, once, that only failed tasks are left, which soon fail for good."""
        wait_s = self._judge.old_in_s
        is_quiet = snapshot.complete > 0 and self._judge.quiet_s >= QUIET_S
        is_wait_long = TELL_FROM_S <= wait_s < math.inf
        if self._were_last_tasks_told or self._judge.excused or not (is_quiet and is_wait_long):
            return
        self._were_last_tasks_told = True
        tasks = count_of(len(self._judge.doubtful), "task has", "tasks have")
        text = (
            f"the last {tasks} failed, and nothing completes any more: unless that changes, "
            f"they fail for good in {wait_s:.0f} s (with --keep-going each failure counts at once)"
        )
        self._telling.tell("tasks_waiting", text)

    def _tell_of_outage(self, snapshot: Snapshot, now: float) -> None:
        """Tell, once for each, that every place fails and nothing has completed for a while.

        Not where it was told that what is left soon fails for good.
        """
        if self._were_last_tasks_told:
            return
        quiet_s = now - snapshot.finished_last_at
        if quiet_s < TELL_FROM_S or not is_outage_likely(snapshot):
            return
        if self._outage_told == snapshot.finished_last_at:
            return
        self._outage_told = snapshot.finished_last_at
        error = self._last_error(self._judge.doubtful[-1])
        text = (
            f"nothing was finished for {quiet_s:.0f} s, and on every rank tasks fail (the last by "
            f"{error.type}: {error.message}). Something that all of them need may be away: no task "
            "is blamed, the ranks try again with pauses, and if nothing is finished for "
            f"{OUTAGE_S / 60:.0f} minutes the run ends, to be resumed"
        )
        self._telling.tell("outage", text)

    def _tell_of_taken_slots(self, snapshot: Snapshot) -> None:
        """Tell, once for each, that an attempt of another parent uses the device of a slot."""
        for one in snapshot.open:
            is_in_the_way = one.is_own and one.slot >= 0 and one.life is Life.ELSEWHERE
            if is_in_the_way and one.name not in self._told_in_the_way:
                self._told_in_the_way.add(one.name)
                device = self._slots[one.slot].device_name
                text = (
                    f"device {device} is used by {one.name}, which another gpuspool on this host "
                    "started: its slot here waits until that has ended"
                )
                self._telling.tell("waiting", text, attempt=one.name)

    def _tell_of_first_rank(self, snapshot: Snapshot) -> None:
        """Tell, once, that one rank starts before the others."""
        if snapshot.is_cold and snapshot.unclaimed > 1 and not self._was_first_rank_told:
            self._was_first_rank_told = True
            text = (
                f"one rank starts first, the others once it has imported its job, or in "
                f"{WARM_S:.0f} s: {self._one_first}"
            )
            self._telling.tell("one_first", text)

    def _last_error(self, key: tuple[int, int]) -> Error:
        """The last failure of a doubtful task."""
        return how_it_failed(self._view, key, self._view.held[key][-1]).error
