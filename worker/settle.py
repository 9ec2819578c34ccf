"""What the journal is told of the tasks in hand, and what becomes of a task that failed.

The tasks in hand are those that the executor was given and has not settled. The work loop says
which they are (`take_in_hand`), the executor announces calls and settles tasks, and what it did not
settle goes back (`release`). Every verdict of an attempt passes through here.

Decided here:

- **Whether calls are announced** by a `started` line in the journal. With limits on time every call
  is, since a worker that is ended in a call must leave word of what it was at. So is every call of
  a careful task, and every call once a task has waited for a retry: from then on what is claimed
  and has no line is not certainly what was in hand.
- **Whether lines may wait for others**, to share a write(2) with them. A write for each line was a
  quarter of what a tiny task cost, 0.7 to 2.4 µs (decision 12). The lines of one call wait for each
  other. Those of several calls may where the last ones took less than TINY_S on average; then a
  process that is killed loses at most the lines of the last 10 ms, and those tasks run again.
  tests/test_settle.py checks which lines wait.
- **What becomes of a task that failed.** By `--retries` it is tried again here. After that it is
  held back: a line in the journal says how it failed, this attempt lets go of it, and the
  orchestrator rules whether the task was to blame, once it has seen how it fares elsewhere. A task
  that fails during a stop stays in hand, and is given back.
- **Whether a failure is a verdict**, with `--keep-going` and in the seed API, where each one is.
  It, and any failure that looks like a stop, waits for a moment: if a stop is told meanwhile, which
  everybody got at once, nobody is to blame (see `spool/signals.py`), and the task is given back.
  The tasks that follow are run meanwhile, so that costs no time unless nothing else is left.
- **Whether this process is in order.** If too many tasks fail in a row, it may not be, and it ends.
- **Whether the job gets the fresh process** that it asks for by `Restart`. It does where this one
  is a used one, and nothing is said of the tasks. Else the next process would be no better, and it
  is a failure like any other. So a job that always asks ends like one that always raises.
"""

from __future__ import annotations

import random
import time
from collections import deque
from collections.abc import Sequence

import msgspec

from gpuspool.spool import signals
from gpuspool.spool.closing import FailedTask, publish_failed_task
from gpuspool.spool.journal import JournalWriter
from gpuspool.spool.layout import Layout
from gpuspool.spool.records import Error, JournalLine, Options, TaskLine
from gpuspool.spool.states import ErrorKind, LineState, Phase
from gpuspool.spool.timeouts import is_limited
from gpuspool.worker.backlog import Backlog
from gpuspool.worker.clocks import Span
from gpuspool.worker.doing import Doing
from gpuspool.worker.drain import Cause, Drain
from gpuspool.worker.limits import used_up
from gpuspool.worker.say import cut, say
from gpuspool.worker.scratch import Scratch
from gpuspool.worker.standing import Standing
from gpuspool.worker.timer import Timer

# If recent calls took less than this on average, journal lines may wait for others: the next call
# is unlikely to be long.
TINY_S = 0.001
# A task waits so long before its first retry, then twice as long each time, up to the second, and a
# quarter more or less by chance: what fails together should not be tried together.
FIRST_RETRY_S = 1.0
LONGEST_RETRY_S = 60.0
RETRY_SPREAD = 0.25
# A task that is not done is called again after so many seconds, if nothing else was claimed.
PUT_OFF_S = 0.1
# So often a task may ask for a fresh process in one round: what ends used processes may be the task
# itself, and some of them in a row may be bad luck.
MOST_RESTARTS = 3
# So many characters of what a task raised stand in the log.
LOGGED = 300
# No more failures wait for their moment than this: a traceback may have 16 KiB. With more of them
# nothing else is run, and 2,000 failures a second are more than a journal takes.
MOST_WAITING = 1000


class WaitingFailure(msgspec.Struct, frozen=True):
    """A failure that counts, as an opinion or as a verdict, unless a stop explains it.

    failed_at: on the monotonic clock; moment_s: how long after it a stop may still be told.
    """

    line: TaskLine
    verdict: JournalLine
    error: Error
    failed_at: float
    moment_s: float

    @property
    def judged_at(self) -> float:
        """From when on it can be judged, on the monotonic clock."""
        return self.failed_at + self.moment_s


class Settler:
    """The tasks in hand of one attempt, and the verdicts on them."""

    def __init__(
        self,
        layout: Layout,
        attempt: str,
        options: Options,
        patience: int,
        is_doubted: bool,
        journal: JournalWriter,
        backlog: Backlog,
        standing: Standing,
        timer: Timer,
        doing: Doing,
        drain: Drain,
        is_believing: bool,
        scratch: Scratch,
    ) -> None:
        """patience: how many tasks may fail in a row. is_doubted: as in the intent. is_believing:
        each failure is a verdict.
        """
        # Whether every call must be announced; those of careful tasks always are.
        self.is_announcing = is_limited(options)
        # What multiprocessing would exit with after the task that was settled last. Only a job of
        # the seed API uses it, which has one task; until that is settled, its process has failed.
        self.exit_code = 1
        # The folders in which tasks in hand keep what they have.
        self.scratch = scratch
        # Whether each failure is a verdict.
        self.is_believing = is_believing
        self._layout = layout
        self._attempt = attempt
        self._retries = options.retries
        self._journal = journal
        self._backlog = backlog
        self._standing = standing
        self._timer = timer
        self._doing = doing
        self._drain = drain
        self._patience = patience
        self._is_doubted = is_doubted
        # How many tasks failed since one completed, and how many were complete when that began.
        # Counted this way a complete task costs nothing here.
        self._row = 0
        self._complete_before = 0
        # How many tasks were complete when the last one failed.
        self._complete_at_failure = 0
        # The last failure that was held back, None where none was.
        self.last_error: Error | None = None
        # How many tasks failed here, or need another call.
        self._other_ends = 0
        # How many need another call.
        self._put_offs = 0
        # What the job said when it asked for a fresh process, and the tasks that go back for it.
        self.restart: Error | None = None
        self._given_back: list[TaskLine] = []
        self._in_hand: deque[TaskLine] = deque()
        # The failures that do not count yet, oldest first.
        self._waiting: list[WaitingFailure] = []
        # Whether the line of a complete task may wait for those that follow.
        self._may_wait = False

    @property
    def is_out_of_patience(self) -> bool:
        """Whether so many tasks failed in a row that this process should end."""
        return self.failures_in_a_row >= self._patience

    @property
    def is_at_end(self) -> bool:
        """Whether no further call shall be made in this process."""
        return self.restart is not None or self.is_out_of_patience

    @property
    def ended(self) -> int:
        """How many tasks completed here, failed, or need another call."""
        return self._doing.complete + self._other_ends

    @property
    def may_be_recycled(self) -> bool:
        """Whether nothing waits for what this process does next.

        After a failure the next task that completes tells whether this process was in order then.
        """
        if self._waiting:
            return False
        if self.restart is not None:
            return True
        return self.last_error is None or self._doing.complete > self._complete_at_failure

    def may_restart(self, lines: Sequence[TaskLine]) -> bool:
        """Whether a call of these tasks that asks for a fresh process gets one, without blame."""
        is_used = self._doing.complete > 0 or self._put_offs > 0
        return is_used and all(line.restarts < MOST_RESTARTS for line in lines)

    @property
    def failures_in_a_row(self) -> int:
        """How many tasks failed here since one completed."""
        if self._doing.complete != self._complete_before:
            return 0
        return self._row

    @property
    def is_proven(self) -> bool:
        """Whether the last task completed, or nothing speaks against this process yet."""
        if self.is_fresh:
            return not self._is_doubted
        return self._doing.complete > self._complete_at_failure

    @property
    def is_fresh(self) -> bool:
        """Whether no task completed or failed here yet."""
        return self._doing.complete == 0 and self.last_error is None

    def take_in_hand(self, lines: Sequence[TaskLine]) -> None:
        """These tasks will be run next."""
        self._in_hand = deque(lines)

    def announce(self, lines: list[TaskLine], loading: list[int]) -> None:
        """Right before a call of these tasks: set its time limit, and journal what is in hand.

        Tasks whose inputs are being loaded meanwhile are in hand too: they might take this process
        along.
        """
        self._timer.begin(len(lines))
        self._doing.phase = Phase.RUNNING
        first = lines[0]
        others = [line.task for line in lines[1:]]
        self._journal.append(
            JournalLine(
                task=first.task,
                round=first.round,
                state=LineState.STARTED,
                start=time.time(),
                batch=others + loading,
            )
        )

    def publishing(self) -> None:
        """The call is over; the next file of its outputs is published now."""
        self._doing.phase = Phase.PUBLISHING
        self._timer.publish()

    def pause(self, line: TaskLine, span: Span) -> None:
        """A task has to wait before it is called again: meanwhile no limit on time holds.

        Where calls are announced, the journal is told that this task is not being called. span: of
        the call that is over.
        """
        self._timer.end()
        if self.is_announcing or line.careful:
            self._journal.append(_deferred(line, span))

    def note_split(self, lines: Sequence[TaskLine], error: Error, span: Span) -> None:
        """Tell whoever reads the journal that a batch raised, and that its tasks run in parts.

        span: of its call.
        """
        first, *others = lines
        batch = [line.task for line in others]
        deferred = _deferred(first, span)
        self._journal.append(msgspec.structs.replace(deferred, error=error, batch=batch))

    def settle_call(self, ends: Sequence[tuple[TaskLine, JournalLine]]) -> None:
        """Journal what is known of the tasks of a call that is over. Their lines share a write."""
        for line, verdict in ends:
            self.settle(line, verdict, has_company=True)
        if not self._may_wait:
            self._journal.flush()

    def settle(self, line: TaskLine, verdict: JournalLine, has_company: bool = False) -> None:
        """Journal what is known of a task now. A failed one may be tried again instead.

        has_company: its line waits for others of the same call in any case, and the caller sees to
        it that they are written.
        """
        if verdict.error is not None:
            self._settle_failed(line, verdict, verdict.error)
            return
        self._journal.append(verdict, has_company or self._may_wait)
        self._in_hand.remove(line)
        self._doing.complete += 1
        self.exit_code = 0
        if line.task in self.scratch.asked:
            # Days of work may be in there: nothing must take back the line once that is gone.
            self._journal.sync()
            self.scratch.remove(line.task)

    def _put_off(self, line: TaskLine, span: Span) -> None:
        """A task needs another call: here, behind what was claimed, or in another start."""
        if self._drain.is_requested:
            # It stays in hand, and is given back when the attempt ends.
            return
        self._let_wait(line, span)
        self._put_offs += 1
        self._other_ends += 1
        self._backlog.defer(msgspec.structs.replace(line, restarts=0), PUT_OFF_S)

    def _give_back(self, line: TaskLine, error: Error, span: Span) -> None:
        """The job asks for a fresh process: the task goes back without a verdict."""
        self._let_wait(line, span)
        self._given_back.append(msgspec.structs.replace(line, restarts=line.restarts + 1))
        if self.restart is None:
            self.restart = error
            why = f": {cut(error.message, LOGGED)}" if error.message else ""
            say(f"gpuspool: the job asks for a fresh process in task {line.key}{why}")

    def _let_wait(self, line: TaskLine, span: Span) -> None:
        """A task is not in hand any more, and has no verdict. span: of its call."""
        self._in_hand.remove(line)
        # It stays claimed. So from now on calls must say what is in hand.
        self.is_announcing = True
        self._may_wait = False
        self._journal.append(_deferred(line, span))

    def _settle_failed(self, line: TaskLine, verdict: JournalLine, error: Error) -> None:
        span = Span(verdict.start, verdict.seconds)
        if error.kind is ErrorKind.NOT_DONE:
            self._put_off(line, span)
            return
        if self._drain.is_requested:
            # It stays in hand, and is given back when the attempt ends.
            say(f"gpuspool: task {line.key} failed during a stop, and is given back: {error.type}")
            return
        if error.kind is ErrorKind.RESTART:
            if self.may_restart([line]):
                self._give_back(line, error, span)
                return
            error = _refused_restart(line, error)
        if self._doing.complete:
            limit = used_up(error)
            if limit is not None:
                raise limit
        # What a file system in trouble kept from running was not tried.
        if error.kind is not ErrorKind.IO:
            tries = self._backlog.count_try(line)
            error = msgspec.structs.replace(error, tries=tries)
            if tries <= self._retries:
                self._defer(line, error, span)
                return
        self._other_ends += 1
        looks_like_stop = error.signal in signals.ENDING_NAMES or self._drain.is_deaf()
        if not self.is_believing and not looks_like_stop:
            # Whoever dies or drains now confirms nothing, so this speaks against nobody yet.
            if self._standing.is_still_open():
                self._in_hand.remove(line)
                self._hold_back(line, verdict, error)
            return
        moment_s = signals.moment_after(looks_like_stop)
        if not self._drain.is_possible:
            moment_s = 0.0
        self._in_hand.remove(line)
        self._waiting.append(WaitingFailure(line, verdict, error, time.monotonic(), moment_s))
        if not moment_s:
            self.judge_waiting()

    def judge_waiting(self) -> None:
        """Settle the failures whose moment is over, unless a stop explains them."""
        now = time.monotonic()
        if not any(one.judged_at <= now for one in self._waiting):
            return
        # Whoever took this process for dead and closed the attempt may have removed what a task was
        # writing. So a failure is believed only while the attempt is open; else the loop ends.
        if not self._standing.is_still_open():
            return
        self._drain.look()
        left: list[WaitingFailure] = []
        for one in self._waiting:
            if self._drain.cause_of(one.failed_at, one.moment_s) is not Cause.OTHER:
                left.append(one)
            elif self.is_believing:
                self._fail(one)
            else:
                self._hold_back(one.line, one.verdict, one.error)
        self._waiting = left

    def waits_for_s(self) -> float | None:
        """In how many seconds the next waiting failure can be judged; None where there is none."""
        if not self._waiting:
            return None
        return min(one.judged_at for one in self._waiting) - time.monotonic()

    @property
    def is_full(self) -> bool:
        """Whether so many failures wait that nothing may be run before some are judged."""
        most = MOST_WAITING
        if not self.is_believing:
            most = min(MOST_WAITING, self._patience)
        return len(self._waiting) >= most

    def _fail(self, one: WaitingFailure) -> None:
        """A task has failed for good."""
        line = one.line
        error = one.error
        self._journal.append(msgspec.structs.replace(one.verdict, error=error))
        self._doing.failed += 1
        self.exit_code = error.exit_code or 1
        publish_failed_task(
            self._layout,
            FailedTask(
                key=line.key,
                task=line.task,
                round=line.round,
                attempt=self._attempt,
                at=time.time(),
                error=error,
            ),
        )

    def _hold_back(self, line: TaskLine, verdict: JournalLine, error: Error) -> None:
        """Let go of a failed task without a verdict, by a line in the journal."""
        # The caller has looked whether the attempt is open: whoever took this process for dead and
        # closed it may have removed what the task was writing.
        held = msgspec.structs.replace(verdict, state=LineState.HELD, error=error, line=line)
        self._journal.append(held)
        # A file system in trouble says nothing of a process that has completed tasks.
        if error.kind is not ErrorKind.IO or not self._doing.complete:
            self._row = self.failures_in_a_row + 1
            self._complete_before = self._doing.complete
        self._complete_at_failure = self._doing.complete
        self.last_error = error
        when = "later" if error.kind is ErrorKind.IO else "elsewhere"
        told = f"{error.type}: {cut(error.message, LOGGED)}" if error.message else error.type
        say(f"gpuspool: task {line.key} failed here ({told}); it is tried {when}")

    def _defer(self, line: TaskLine, error: Error, span: Span) -> None:
        """Give a failed task back to the backlog, for another try. span: of the one that failed."""
        wait_s = min(FIRST_RETRY_S * 2 ** (error.tries - 1), LONGEST_RETRY_S)
        wait_s *= random.uniform(1 - RETRY_SPREAD, 1 + RETRY_SPREAD)
        self._in_hand.remove(line)
        # This task is claimed, has no verdict, and is not in hand. So from now on calls must say
        # what is.
        self.is_announcing = True
        self._may_wait = False
        self._journal.append(msgspec.structs.replace(_deferred(line, span), error=error))
        self._backlog.defer(line, wait_s)
        say(
            f"gpuspool: task {line.key} failed ({error.type}), try {error.tries}; "
            f"it is tried again in {wait_s:.1f} s"
        )

    def end_stretch(self, seconds: float, calls: int) -> None:
        """So many calls are over, which took so long in all: decide whether lines may wait."""
        is_tiny = seconds < TINY_S * calls
        self._may_wait = is_tiny and not self.is_announcing

    def release(self) -> list[TaskLine]:
        """The tasks in hand that were not settled; none is in hand afterwards."""
        left = list(self._in_hand)
        self._in_hand.clear()
        return left

    def release_given_back(self) -> list[TaskLine]:
        """The tasks whose calls asked for a fresh process; none is kept afterwards."""
        left = self._given_back
        self._given_back = []
        return left

    def release_waiting(self) -> list[TaskLine]:
        """The tasks whose failures do not count; none waits afterwards."""
        left = [one.line for one in self._waiting]
        self._waiting.clear()
        return left


def _deferred(line: TaskLine, span: Span) -> JournalLine:
    """That a call of a task is over, and gave no verdict."""
    return JournalLine(
        task=line.task,
        round=line.round,
        state=LineState.DEFERRED,
        start=span.start,
        seconds=span.seconds,
    )


def _refused_restart(line: TaskLine, error: Error) -> Error:
    """The failure of a task whose job asks for a fresh process where that cannot be the answer."""
    why = "although this process is a fresh one"
    if line.restarts >= MOST_RESTARTS:
        why = f"for the {MOST_RESTARTS + 1}th time in this task"
    message = f"the job asks for a fresh process {why}: {error.message or 'it does not say why'}"
    return msgspec.structs.replace(error, kind=ErrorKind.EXCEPTION, message=message)
