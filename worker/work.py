"""The work loop: claim, run, settle, until the run is over or this attempt shall end.

Each step of the loop first looks whether it may go on at all (the journal is sound, no drain, not
closed by somebody else), then does one thing: it runs a batch or a stretch of tasks, waits for a
task that is to be tried again, or idles. A step with tiny tasks takes 10 ms, so these looks cost
nothing.
"""

from __future__ import annotations

import time
from enum import Enum, auto
from time import perf_counter
from typing import assert_never

from gpuspool.spool.journal import JournalWriter
from gpuspool.spool.layout import Layout
from gpuspool.spool.parents import is_anybody_there
from gpuspool.spool.publish import ring
from gpuspool.spool.records import TaskLine
from gpuspool.spool.states import Phase
from gpuspool.worker.backlog import Backlog
from gpuspool.worker.doing import Doing
from gpuspool.worker.drain import Drain
from gpuspool.worker.execute import Executor
from gpuspool.worker.idle import Idling, Word
from gpuspool.worker.parent import Parent
from gpuspool.worker.say import say
from gpuspool.worker.settle import Settler
from gpuspool.worker.standing import Standing
from gpuspool.worker.starting import NotNow
from gpuspool.worker.timer import Timer

# While a task waits for its retry the loop looks around so often: a drain must not wait for it.
LONGEST_PAUSE_S = 0.25
# Where no process can be started, the next try comes after this pause. The trouble is another one
# if it was away for longer than the second span, and the attempt ends if it lasts for the third:
# limits that others use up, as on a login node, may come free within seconds.
TROUBLE_PAUSE_S = 0.5
TROUBLE_GAP_S = 10.0
TROUBLE_S = 60.0
# An attempt that is due to be recycled, and has no orchestrator to start a fresh process, looks for
# one after so many seconds again.
ORPHAN_LOOK_S = 5.0


class WorkEnd(Enum):
    """Why the loop ended."""

    # Every task is finished, or, of an attempt that waits for nobody, all that it could claim.
    FINISHED = auto()
    # A drain was asked for.
    DRAINED = auto()
    # Somebody else closed this attempt.
    CLOSED = auto()
    # Too many tasks failed in a row: a fresh process may be in order.
    FAILURES = auto()
    # Only tasks that failed here are left, and another process must try them, or rule about them.
    HANDOVER = auto()
    # The job wants a fresh process.
    RECYCLED = auto()


class Work:
    """The loop of one attempt. Every part is told to it; none knows the loop."""

    def __init__(
        self,
        layout: Layout,
        journal: JournalWriter,
        doing: Doing,
        drain: Drain,
        parent: Parent,
        standing: Standing,
        timer: Timer,
        backlog: Backlog,
        settler: Settler,
        idling: Idling | None,
    ) -> None:
        """idling: None for an attempt that ends as soon as there is nothing to claim."""
        self._layout = layout
        self._journal = journal
        self._doing = doing
        self._drain = drain
        self._parent = parent
        self._standing = standing
        self._timer = timer
        self._backlog = backlog
        self._settler = settler
        self._idling = idling
        backlog.take_doubtful_after(lambda: settler.is_proven, lambda: settler.is_fresh)
        # Since when, and when last, something kept every task from being run, on the monotonic
        # clock.
        self._trouble_since = -TROUBLE_GAP_S
        self._trouble_seen = -TROUBLE_GAP_S
        # When to look next whether an orchestrator is there that would start a fresh process.
        self._look_again_at = 0.0

    def run(self, executor: Executor) -> WorkEnd:
        """The whole loop.

        Raises OSError where the spool or OUT cannot be used, Unusable where this process cannot.
        """
        while True:
            self._journal.check()
            self._parent.heed()
            self._settler.judge_waiting()
            if self._drain.is_requested:
                return WorkEnd.DRAINED
            if self._settler.is_out_of_patience:
                return WorkEnd.FAILURES
            if self._standing.was_closed_meanwhile():
                return WorkEnd.CLOSED
            is_due = self._plan_recycling(executor.recycle)
            if is_due and self._settler.may_be_recycled:
                return WorkEnd.RECYCLED
            if self._settler.is_full or (is_due and self._settler.waits_for_s() is not None):
                self._pause(self._settler.waits_for_s())
                continue
            if self._backlog.fill(executor.batch_size, executor.window):
                self._run_some(executor)
                continue
            # Nothing was found to run, which also happens if a claim was made and the attempt was
            # closed before it. Then what was claimed is not ours to run.
            if self._standing.is_closed():
                return WorkEnd.CLOSED
            wait_s = self._due_in_s()
            executor.rest()
            if wait_s is not None:
                self._pause(wait_s)
                continue
            end = self._idle()
            if end is not None:
                return end

    def _plan_recycling(self, recycle: int | None) -> bool:
        """Whether a fresh process shall go on; else tell the backlog how many tasks may come yet.

        recycle: after so many tasks the job wants one, where somebody is there to start it.
        """
        if self._settler.restart is not None:
            # This one is of no use any more, whoever is there.
            return True
        self._backlog.wanted = None
        if recycle is None:
            return False
        left = recycle - self._settler.ended
        if left > 0:
            self._backlog.wanted = left
            return False
        now = time.monotonic()
        if now < self._look_again_at:
            return False
        # An adopted attempt has another orchestrator than the one that started it.
        if self._parent.is_there() or is_anybody_there(self._layout):
            self._backlog.wanted = 1
            return True
        self._look_again_at = now + ORPHAN_LOOK_S
        return False

    def release(self) -> list[TaskLine]:
        """Every task that was claimed and has no verdict from here."""
        settler = self._settler
        return [
            *settler.release(),
            *settler.release_given_back(),
            *settler.release_waiting(),
            *self._backlog.release(),
        ]

    def _due_in_s(self) -> float | None:
        """When a task can be tried again, or a failure judged, with nothing else to do."""
        waits = (self._backlog.due_in_s(), self._settler.waits_for_s())
        return min((wait_s for wait_s in waits if wait_s is not None), default=None)

    def _pause(self, wait_s: float | None) -> None:
        self._timer.end()
        self._journal.flush()
        time.sleep(max(0.0, min(wait_s or 0.0, LONGEST_PAUSE_S)))

    def _run_some(self, executor: Executor) -> None:
        """Run a batch, or a stretch of single tasks."""
        wanted = executor.wanted
        if executor.is_stretching and self._backlog.wanted is not None:
            wanted = min(wanted, self._backlog.wanted)
        lines = self._backlog.next_batch(wanted, executor.batch_cost)
        self._settler.take_in_hand(lines)
        if executor.window and not self._drain.is_requested:
            executor.look_ahead(self._backlog.ahead(lines, executor.batch_size, executor.window))
        began = perf_counter()
        self._doing.clocks.runs.start(began)
        try:
            ran = executor.run(lines)
        except NotNow as trouble:
            self._put_back()
            self._wait_out(trouble)
            return
        finally:
            self._doing.clocks.runs.stop(perf_counter())
            self._timer.end()
            self._doing.phase = Phase.RUNNING
        self._journal.flush()
        took_s = perf_counter() - began
        self._put_back()
        self._settler.end_stretch(took_s, calls=ran if executor.is_stretching else 1)
        self._backlog.learn(took_s, lines[:ran])

    def _put_back(self) -> None:
        """A call or a stretch is over: what has no verdict of it comes first again."""
        self._journal.flush()
        self._doing.let_go()
        self._backlog.put_back(self._settler.release())

    def _wait_out(self, trouble: NotNow) -> None:
        """Pause for something that keeps every task from being run, and that will pass.

        Raises the trouble's OSError once it has lasted for TROUBLE_S.
        """
        self._timer.end()
        now = time.monotonic()
        if now > self._trouble_seen + TROUBLE_GAP_S:
            self._trouble_since = now
            say(f"gpuspool: {trouble}; no task is to blame, trying again for {TROUBLE_S:.0f} s")
        self._trouble_seen = now
        if now > self._trouble_since + TROUBLE_S or not self._drain.is_possible:
            raise trouble.error
        self._drain.is_told_within(TROUBLE_PAUSE_S)

    def _idle(self) -> WorkEnd | None:
        """Nothing is left to claim: wait. None: there may be something again."""
        if self._idling is None:
            return WorkEnd.FINISHED
        self._timer.end()
        self._doing.phase = Phase.IDLE
        # The parent may be asleep; what this attempt finished may have been the last.
        ring(self._layout.control)
        backlog = self._backlog
        word = self._idling.wait(backlog.claims_tried, backlog.is_tempted, backlog.needs_fresh)
        match word:
            case Word.FORSAKEN:
                return WorkEnd.HANDOVER
            case Word.TEMPTED:
                if not self._backlog.give_in():
                    return WorkEnd.HANDOVER
            case Word.FINISHED:
                return WorkEnd.FINISHED
            case Word.DRAINED:
                return WorkEnd.DRAINED
            case Word.CLOSED:
                return WorkEnd.CLOSED
            case Word.OVERLOOKED:
                self._backlog.look_closely()
            case Word.NEW_MANIFEST | Word.SILENCE:
                pass
            case _:
                assert_never(word)
        self._doing.phase = Phase.RUNNING
        return None
