"""All calls of a spool: which task, when, for how long, and what came of it.

Journals tell of each call that ended. Of a call that did not, the closing of its attempt tells, or
the attempt itself, if it is still at it. All of it is kept as numbers in arrays, 21 bytes for each
call, since a run may have millions.

The tasks of one call have one `start` in the journal, and each has its share of the call's seconds.
They are laid one behind the other, in the order of their lines, so that no two calls of an attempt
ever overlap: an attempt does one thing at a time.

Clocks are set now and then while a run goes on. A clock that goes back would lay a call over those
before it, and one that was wrong by years at boot would make the picture years long. Of an
attempt's own calls it is known that each begins after the one before. So such a jump is found, and
what came before it is moved: a clock is set when it is put right, and what it said last counts.

Guarantees: nothing is written, and no line of a spool makes this raise, whatever it says. Reads no
further than the view did, so that all figures of a page agree.
"""

from __future__ import annotations

import array
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from enum import IntEnum

from gpuspool.spool.journal import JournalReader
from gpuspool.spool.manifest import Damage
from gpuspool.spool.records import Closing, Record
from gpuspool.spool.states import LineState, Phase
from gpuspool.spool.view import View

# A clock that went back by less than this was not set: what is told of a call is rounded, and two
# clocks are involved.
ROUNDING_S = 1.0

# An attempt that has no call for longer than this had a clock that was wrong by years. Machines do
# sleep for a night or a holiday, and that time did pass.
LONGEST_PAUSE_S = 30 * 86400.0

# Moments outside of these, 1970 and the year 5138, are no moments, and a call takes no 30 years.
LATEST = 1e11
LONGEST_S = 1e9


class Outcome(IntEnum):
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
    start: float = 0.0
    seconds: float = 0.0
    batch: tuple[int, ...] = ()


@dataclass
class Calls:
    """The calls of one attempt, in order; none begins before the one before it has ended.

    begins: in Unix seconds. durations: in seconds; a double that tells a moment of today is exact
    to a quarter of a microsecond, so the difference of two moments would be too coarse for the
    shortest calls. outcomes: of each its `Outcome`. jumps: how its clock was set: before which
    call, and how many seconds were added to all times before that.
    """

    attempt: str
    tasks: array.array[int] = field(default_factory=lambda: array.array("i"))
    begins: array.array[float] = field(default_factory=lambda: array.array("d"))
    durations: array.array[float] = field(default_factory=lambda: array.array("d"))
    outcomes: bytearray = field(default_factory=bytearray)
    jumps: list[tuple[int, float]] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.tasks)

    @property
    def moved_s(self) -> float:
        """So much was added to the first of them, and belongs to whatever came before it."""
        return sum(delta for _, delta in self.jumps)

    @property
    def end(self) -> float:
        """When the last one ended, in Unix seconds; 0 where there is none."""
        return self.begins[-1] + self.durations[-1] if self.begins else 0.0

    def rows(self) -> Iterator[tuple[int, float, float, int]]:
        """(task, begin, duration, outcome) of each, in order."""
        return zip(self.tasks, self.begins, self.durations, self.outcomes, strict=True)

    def are_all_complete(self) -> bool:
        return self.outcomes.count(Outcome.COMPLETE) == len(self.outcomes)

    def durations_of(self, *outcomes: Outcome) -> Iterable[float]:
        """How long each took of which one of these came, in seconds."""
        if self.are_all_complete():
            return self.durations if Outcome.COMPLETE in outcomes else ()
        pairs = zip(self.durations, self.outcomes, strict=True)
        return [seconds for seconds, outcome in pairs if outcome in outcomes]

    def total_s(self, *outcomes: Outcome) -> float:
        """How long those took together of which one of these came."""
        return math.fsum(self.durations_of(*outcomes))

    def add(self, task: int, begin: float, end: float, outcome: Outcome) -> None:
        """Add the last call, such as one that did not end."""
        begin = max(begin, self.end)
        self.tasks.append(task)
        self.begins.append(begin)
        self.durations.append(max(0.0, end - begin))
        self.outcomes.append(outcome)

    def lay_out(self) -> None:
        """Move what came before a clock was set; see the top of this module.

        What overlaps by less than a clock is ever set is only rounded, and begins a little later.
        """
        begins = self.begins
        end = begins[0] if begins else 0.0
        for number, (begin, duration) in enumerate(zip(begins, self.durations, strict=True)):
            pause_s = begin - end
            if pause_s < 0.0:
                if pause_s < -ROUNDING_S:
                    self.jumps.append((number, pause_s))
                else:
                    begins[number] = begin = end
            elif pause_s > LONGEST_PAUSE_S:
                self.jumps.append((number, pause_s))
            end = begin + duration
        # From the last jump back to the first, so that each part is moved by all jumps behind it.
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
    LineState.COMPLETE: Outcome.COMPLETE,
    LineState.FAILED: Outcome.FAILED,
    LineState.HELD: Outcome.FAILED,
    LineState.DEFERRED: Outcome.AGAIN,
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
    # This loop is passed once for each call, a million times for a million tasks. So everything is
    # bound to a local name before, and what nearly all lines say is asked first.
    add_task = calls.tasks.append
    add_begin = calls.begins.append
    add_duration = calls.durations.append
    add_outcome = calls.outcomes.append
    complete = LineState.COMPLETE
    n_tasks = view.ledger.tasks
    end_at = journal.offset
    start = end = 0.0
    reader = JournalReader(view.layout, attempt, _ignore)
    for at, line in reader.read(CallLine):
        if at >= end_at:
            break
        state = line.state
        outcome = 0
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
        if not 0 <= line.task < n_tasks:
            continue
        if line.start == start:
            begin = end
        else:
            begin = start = line.start
        end = begin + seconds
        add_task(line.task)
        add_begin(begin)
        add_duration(seconds)
        add_outcome(outcome)
    calls.lay_out()
    return calls


def _ignore(damage: Damage) -> None:
    """The view has told of it."""


@dataclass(frozen=True)
class OpenCall:
    """The call that an attempt was in when it died, or is in now. start: in Unix seconds."""

    task: int
    start: float


def call_at_death(closing: Closing) -> OpenCall | None:
    """The call in which an attempt died, as far as its closing tells."""
    for failure in (*closing.held, *closing.failures):
        if 0.0 < failure.start < LATEST:
            return OpenCall(failure.task, failure.start)
    if closing.killed is not None and 0.0 < closing.killed_start < LATEST:
        return OpenCall(closing.killed, closing.killed_start)
    return None


def call_in_hand(view: View, attempt: str) -> OpenCall | None:
    """The call that an open attempt is in, by its `started` line, else by its heartbeat."""
    started = view.started.get(attempt)
    if started is not None and 0.0 < started.start < LATEST:
        return OpenCall(started.tasks[0], started.start)
    beat = view.heartbeat(attempt)
    if beat is None or beat.task is None or beat.task_since is None:
        return None
    if beat.state is not Phase.RUNNING or not 0.0 < beat.task_since < LATEST:
        return None
    return OpenCall(beat.task, beat.task_since)
