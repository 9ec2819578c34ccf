"""All calls of a spool: which task, when, for how long, and what came of it.

Journals tell of each call that ended. Of a call that did not, the closing of its attempt tells, or
the attempt itself, if it is still at it. All of it is kept as numbers in arrays, 22 bytes for each
call, since a run may have millions.

The tasks of one call have one `start` in the journal, and each has its share of the call's seconds.
They are laid one behind the other, in the order of their lines, so that no two calls of an attempt
ever overlap: an attempt does one thing at a time.

Lines stand in the order of their calls, but for those that say that a task failed: a worker waits
for some seconds whether a stop explains the failure, goes on with other calls meanwhile, and only
then writes the line. Such a line is put where its call was, by its `start`.

Clocks are set now and then while a run goes on. A clock that goes back would lay a call over those
before it, and one that was wrong by years at boot would make the picture years long. A call whose
line was written at once begins after the one before it. So a jump is found by such calls, and what
came before is moved: a clock is set when it is put right, and what it said last counts.

Guarantees: nothing is written. A line that no attempt can have written, such as one of a task that
the run does not have, is passed over, wherever it stands; only a file system that fails makes this
raise, by an OSError. Reads no further than the view did, so that all figures of a page agree.
"""

from __future__ import annotations

import array
import bisect
import itertools
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from enum import IntEnum

from gpuspool.spool.journal import JournalReader
from gpuspool.spool.ledger import Ledger
from gpuspool.spool.manifest import Damage
from gpuspool.spool.records import Closing, Record
from gpuspool.spool.states import LineState, Phase, Verdict
from gpuspool.spool.view import View

# A clock that went back by less than this was not set: what is told of a call is rounded, and two
# clocks are involved.
ROUNDING_S = 1.0

# An attempt that has no call for longer than this had a clock that was wrong by years. Machines do
# sleep for a night or a holiday, and that time did pass.
LONGEST_PAUSE_S = 30 * 86400.0

# So long after it ended a call may seem to lie in the next one: the line has its seconds rounded.
TOUCH_S = 1e-5

# A gap that is shorter than a call by such a part of it holds the call: two clocks are involved.
FIT_PART = 0.1

# Moments outside of these, 1970 and the year 5138, are no moments, and a call takes no 30 years.
LATEST = 1e11
LONGEST_S = 1e9


class CallOutcome(IntEnum):
    """What came of a call, as the page has it.

    AGAIN: no verdict, and the task needs another call. LOST: its process died in it. IN_HAND: it
    goes on.
    """

    COMPLETE = 0
    FAILED = 1
    AGAIN = 2
    LOST = 3
    IN_HAND = 4


class CallLine(Record, frozen=True, kw_only=True):
    """What is taken from a journal line; the rest is skipped, not decoded."""

    state: LineState
    task: int = -1
    round: int = 0
    start: float = 0.0
    seconds: float = 0.0
    batch: tuple[int, ...] = ()


@dataclass
class Calls:
    """The calls of one attempt, in order; none begins before the one before it has ended.

    begins: in Unix seconds. durations: in seconds; a double that tells a moment of today is exact
    to a quarter of a microsecond, so the difference of two moments would be too coarse for the
    shortest calls. outcomes: of each its `CallOutcome`. tells: of each 1 if its task may have its
    verdict from it, by round and outcome; once `verdicts.mark_verdicts` was called, if it has.
    jumps: how its clock was set: before which call, and how many seconds were added to all times
    before that.
    """

    attempt: str
    tasks: array.array[int] = field(default_factory=lambda: array.array("i"))
    begins: array.array[float] = field(default_factory=lambda: array.array("d"))
    durations: array.array[float] = field(default_factory=lambda: array.array("d"))
    outcomes: bytearray = field(default_factory=bytearray)
    tells: bytearray = field(default_factory=bytearray)
    jumps: list[tuple[int, float]] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.tasks)

    def moved_s(self, busy_s: float = 0.0) -> float:
        """So much was added to the times of the call that came after so many seconds in calls.

        It belongs to all that the same clock told then. Without any such seconds: to the first one.
        """
        if not self.jumps:
            return 0.0
        over_s = itertools.accumulate(self.durations)
        n_over = sum(1 for _ in itertools.takewhile(lambda at_s: at_s <= busy_s + 1e-3, over_s))
        return sum(delta for number, delta in self.jumps if number > n_over)

    @property
    def end(self) -> float:
        """When the last one ended, in Unix seconds; 0 where there is none."""
        return self.begins[-1] + self.durations[-1] if self.begins else 0.0

    def rows(self) -> Iterator[tuple[int, float, float, int]]:
        """(task, begin, duration, outcome) of each, in order."""
        return zip(self.tasks, self.begins, self.durations, self.outcomes, strict=True)

    def are_all_complete(self) -> bool:
        return self.outcomes.count(CallOutcome.COMPLETE) == len(self.outcomes)

    def durations_of(self, *outcomes: CallOutcome) -> Iterable[float]:
        """How long each took of which one of these came, in seconds."""
        if self.are_all_complete():
            return self.durations if CallOutcome.COMPLETE in outcomes else ()
        pairs = zip(self.durations, self.outcomes, strict=True)
        return [seconds for seconds, outcome in pairs if outcome in outcomes]

    def total_s(self, *outcomes: CallOutcome) -> float:
        """How long those took together of which one of these came."""
        return math.fsum(self.durations_of(*outcomes))

    def add(self, task: int, begin: float, end: float, outcome: CallOutcome, tells: bool) -> None:
        """Add the last call, such as one that did not end."""
        begin = max(begin, self.end)
        self.tasks.append(task)
        self.begins.append(begin)
        self.durations.append(max(0.0, end - begin))
        self.outcomes.append(outcome)
        self.tells.append(tells)

    def begin_of_next(self, begin: float, *, proves_jump: bool) -> float:
        """Where the next call begins, which by its line began before this one ended, or years
        later.

        proves_jump: its line was written at once, so that its clock was set before it. What
        overlaps by less than a clock is ever set is only rounded, and begins a little later.
        """
        pause_s = begin - self.end
        if not proves_jump or -ROUNDING_S <= pause_s < 0.0:
            return self.end
        self.jumps.append((len(self), pause_s))
        return begin

    def insert_late(
        self, task: int, start: float, seconds: float, outcome: CallOutcome, tells: bool
    ) -> bool:
        """Put a call whose line came late where it was; returns False where it can have no place.

        That is the first gap from its start on that holds it. The other tasks of its own call,
        which have the same start, lie before it then. Nothing that came before the last jump is
        looked at, since other clocks are not compared.
        """
        begins, durations = self.begins, self.durations
        first = self.jumps[-1][0] if self.jumps else 0
        at = bisect.bisect_right(begins, start, first)
        # What begins earlier may reach over the start.
        cursor = start
        while at < len(begins):
            if at > first:
                cursor = max(cursor, begins[at - 1] + durations[at - 1])
            gap = begins[at] - cursor
            if gap >= seconds - max(FIT_PART * seconds, TOUCH_S):
                break
            at += 1
        else:
            return False
        self.tasks.insert(at, task)
        begins.insert(at, cursor)
        durations.insert(at, max(0.0, min(seconds, gap)))
        self.outcomes.insert(at, outcome)
        self.tells.insert(at, tells)
        return True

    def move_what_came_before_jumps(self) -> None:
        """From the last jump back to the first: each part is moved by all jumps behind it."""
        begins = self.begins
        behind = len(begins)
        delta = 0.0
        for number, jump_s in [*reversed(self.jumps), (0, 0.0)]:
            if delta:
                for at in range(number, behind):
                    begins[at] += delta
            behind = number
            delta += jump_s


# What a line means as a call. Lines of other states tell of no call that is over.
_OUTCOMES = {
    LineState.COMPLETE: CallOutcome.COMPLETE,
    LineState.FAILED: CallOutcome.FAILED,
    LineState.HELD: CallOutcome.FAILED,
    LineState.DEFERRED: CallOutcome.AGAIN,
}


def read_calls(view: View) -> list[Calls]:
    """The calls of each attempt of a view that was just refreshed, in the order of attempts.

    Those that did not end are not among them. Raises OSError.
    """
    return [_read(view, attempt) for attempt in view.attempts]


def _read(view: View, attempt: str) -> Calls:
    calls = Calls(attempt)
    journal = view.journals.get(attempt)
    if journal is None:
        return calls
    intent = view.intents.get(attempt)
    born = 0.0 if intent is None else intent.at
    # This loop is passed once for each call, a million times for a million tasks. So everything is
    # bound to a local name before, and what nearly all lines say is asked first.
    add_task = calls.tasks.append
    add_begin = calls.begins.append
    add_duration = calls.durations.append
    add_outcome = calls.outcomes.append
    add_tells = calls.tells.append
    complete = LineState.COMPLETE
    late_states = (LineState.FAILED, LineState.HELD)
    ledger = view.ledger
    n_tasks = ledger.tasks
    redone = ledger.redone
    end_at = journal.offset
    start = end = 0.0
    reader = JournalReader(view.layout, attempt, _ignore)
    for at, line in reader.read(CallLine):
        if at >= end_at:
            break
        state = line.state
        outcome = CallOutcome.COMPLETE
        if state is not complete:
            if state not in _OUTCOMES:
                continue
            outcome = _OUTCOMES[state]
        seconds = line.seconds
        if line.batch:
            seconds *= 1 + len(line.batch)
        # Earlier versions did not tell it of every call.
        if not 0.0 < line.start < LATEST or not 0.0 <= seconds < LONGEST_S:
            continue
        task = line.task
        if not 0 <= task < n_tasks:
            continue
        tells = True
        if outcome:
            tells = outcome is CallOutcome.FAILED and _may_have_failed(ledger, task, line.round)
        elif redone:
            tells = line.round >= redone.get(task, 0)
        if line.start == start:
            begin = end
        else:
            begin = line.start
            if not end <= begin <= end + LONGEST_PAUSE_S and len(calls):
                is_late = state in late_states and begin < end
                # A moment before this process was planned is by another clock.
                has_place = is_late and begin >= born - ROUNDING_S
                if has_place and calls.insert_late(task, begin, seconds, outcome, tells):
                    continue
                begin = calls.begin_of_next(begin, proves_jump=not is_late)
            start = line.start
        end = begin + seconds
        add_task(task)
        add_begin(begin)
        add_duration(seconds)
        add_outcome(outcome)
        add_tells(tells)
    calls.move_what_came_before_jumps()
    return calls


def _may_have_failed(ledger: Ledger, task: int, round_: int) -> bool:
    """Whether a task that failed in this round may have its verdict from that."""
    if ledger.failed_round.get(task) != round_:
        return False
    return ledger.verdict(task) is Verdict.FAILED


def _ignore(damage: Damage) -> None:
    """The view has told of it."""


@dataclass(frozen=True)
class OpenCall:
    """The call that an attempt was in when it died, or is in now.

    start: in Unix seconds. round: of a task whose failure the closing tells, else None.
    """

    task: int
    start: float
    round: int | None = None


def call_at_death(view: View, closing: Closing) -> OpenCall | None:
    """The call in which an attempt died, as far as its closing tells."""
    found = [
        OpenCall(failure.task, failure.start, failure.round)
        for failure in (*closing.held, *closing.failures)
    ]
    if closing.killed is not None:
        found.append(OpenCall(closing.killed, closing.killed_start))
    return next((one for one in found if _can_be(view, one)), None)


def call_in_hand(view: View, attempt: str) -> OpenCall | None:
    """The call that an open attempt is in, by its `started` line, else by its heartbeat."""
    started = view.started.get(attempt)
    if started is not None:
        found = OpenCall(started.tasks[0], started.start)
        if _can_be(view, found):
            return found
    beat = view.heartbeat(attempt)
    if beat is None or beat.task is None or beat.task_since is None:
        return None
    found = OpenCall(beat.task, beat.task_since)
    return found if beat.state is Phase.RUNNING and _can_be(view, found) else None


def _can_be(view: View, found: OpenCall) -> bool:
    """Whether the run has such a task, and there is such a moment.

    A task may have been added, and begun, since the view was refreshed; and nothing proves what a
    heartbeat says.
    """
    return 0 <= found.task < view.ledger.tasks and 0.0 < found.start < LATEST


def verdict_by_death(view: View, found: OpenCall) -> bool:
    """Whether a task may have its verdict from the call in which its attempt died."""
    return found.round is not None and _may_have_failed(view.ledger, found.task, found.round)
