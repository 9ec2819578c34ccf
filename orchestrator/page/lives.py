"""When each attempt lived, and where its time went, by cause.

An attempt that closed itself tells both in its closing. One that was killed, or lives, told last in
usage/; what came after that is told by its calls, and by the call in which it died. What nobody
told counts as such, so that the causes of an attempt always add up to how long it lived.

The seconds are those of a clock that nobody sets. When it began and ended is by the clock of its
host, moved as `Calls` moved its calls.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from gpuspool.orchestrator.page.calls import (
    LATEST,
    LONGEST_S,
    ROUNDING_S,
    Calls,
    OpenCall,
    Outcome,
    call_at_death,
    call_in_hand,
)
from gpuspool.spool.records import Closing, Intent, Usage
from gpuspool.spool.states import BY_PARENT, Life
from gpuspool.spool.usage import all_usage
from gpuspool.spool.view import View

# Seconds in records are rounded to a microsecond or a few, so their sums differ by some such part.
ROUNDED = 1e-3

_NOTHING: dict[str, float] = {}


class Cause(StrEnum):
    """What a rank's time went into, in the order of the page.

    DONE: calls that completed their tasks. AGAIN: calls that failed, or whose tasks needed another
    call. LOST: the call in which a process died. From START to CLOSE as in `idle_s`, see
    docs/jobs.md. UNTOLD: nobody told.
    """

    DONE = "done"
    AGAIN = "again"
    LOST = "lost"
    START = "start"
    LOAD = "load"
    INPUTS = "inputs"
    PUBLISH = "publish"
    WORK = "work"
    CLOSE = "close"
    UNTOLD = "untold"


IDLE = (Cause.START, Cause.LOAD, Cause.INPUTS, Cause.PUBLISH, Cause.WORK, Cause.CLOSE)


@dataclass
class Attempt:
    """One attempt of a rank. spent: seconds by cause; they add up to `seconds`.

    began, ended: in Unix seconds; of one that lives, it has ended now. pauses: (until when, the
    cause of most of the time between calls), in order; the last one reaches to its end.
    """

    name: str
    calls: Calls
    intent: Intent | None
    closing: Closing | None
    usage: list[Usage]
    is_alive: bool
    began: float
    ended: float
    spent: dict[Cause, float]
    pauses: list[tuple[float, Cause]]

    @property
    def seconds(self) -> float:
        return sum(self.spent.values())

    @property
    def busy_s(self) -> float:
        return sum(self.spent.get(cause, 0.0) for cause in (Cause.DONE, Cause.AGAIN, Cause.LOST))


def read_attempts(
    view: View, calls: list[Calls], lives: dict[str, Life], now: float
) -> list[Attempt]:
    """All attempts of a view that left any trace in time, in the order of ranks.

    lives: what is known of the open ones. now: in Unix seconds. The call in which an attempt died,
    or is now, is added to its calls. Raises OSError.
    """
    found = [_Reader(view, one, lives, now).read() for one in calls]
    return [attempt for attempt in found if attempt is not None]


class _Reader:
    """Finds out about one attempt."""

    def __init__(self, view: View, calls: Calls, lives: dict[str, Life], now: float) -> None:
        self._view = view
        self._calls = calls
        self._name = calls.attempt
        self._intent = view.intents.get(self._name)
        self._closing = view.closed.get(self._name)
        self._usage = [
            line for line in all_usage(view.layout, self._name) if 0.0 < line.at < LATEST
        ]
        life = lives.get(self._name)
        self._is_alive = self._closing is None and life is not None and life is not Life.DEAD
        self._now = now

    def read(self) -> Attempt | None:
        calls = self._calls
        open_call = self._open_call()
        began, ended = self._span(open_call)
        if began is None or ended is None:
            return None
        if open_call is not None:
            is_lost = not self._is_alive
            outcome = Outcome.LOST if is_lost else Outcome.IN_HAND
            calls.add(open_call.task, max(open_call.start, began), ended, outcome)
        if len(calls):
            began = min(began, calls.begins[0])
            ended = max(ended, calls.end)
        spent = self._spent(ended - began)
        return Attempt(
            name=self._name,
            calls=calls,
            intent=self._intent,
            closing=self._closing,
            usage=self._usage,
            is_alive=self._is_alive,
            began=began,
            ended=ended,
            spent=spent,
            pauses=self._pauses(began, ended, spent),
        )

    def _open_call(self) -> OpenCall | None:
        """The call that has no end in the journal, if it began after all that have.

        A heartbeat may be some seconds old, and its call may have ended since.
        """
        if self._closing is not None:
            found = call_at_death(self._closing)
        else:
            found = call_in_hand(self._view, self._name)
        if found is None or found.start < self._calls.end - ROUNDING_S:
            return None
        return found

    # An attempt that closed itself knows how old it was. Of one that its parent saw die, the parent
    # knows when. One that somebody found dead later may have died long before: then it lived until
    # the last moment at which anything was heard of it.
    def _span(self, open_call: OpenCall | None) -> tuple[float | None, float | None]:
        """When it began and ended; None where nothing tells."""
        closing, calls = self._closing, self._calls
        ended: float | None = None
        if self._is_alive:
            ended = self._now
        elif closing is not None and closing.by in (BY_PARENT, self._name):
            ended = closing.at if 0.0 < closing.at < LATEST else None
        if ended is None:
            ended = self._last_sign(open_call)
        began: float | None = None
        if closing is not None and closing.stats is not None and ended is not None:
            return ended - _sane(closing.stats.seconds), ended
        if self._usage:
            first = self._usage[0]
            age = _sane(first.busy_s) + sum(map(_sane, first.idle_s.values()))
            began = first.at - age + calls.moved_s
        elif self._intent is not None and 0.0 < self._intent.at < LATEST:
            began = self._intent.at + calls.moved_s
        elif len(calls):
            began = calls.begins[0]
        if began is not None and ended is not None and ended < began:
            ended = began
        return began, ended

    def _last_sign(self, open_call: OpenCall | None) -> float | None:
        signs: list[float] = []
        beat = self._view.heartbeat(self._name)
        if beat is not None and 0.0 < beat.at < LATEST:
            signs.append(beat.at)
        if self._usage:
            signs.append(self._usage[-1].at)
        if len(self._calls):
            signs.append(self._calls.end)
        if open_call is not None:
            signs.append(open_call.start)
        if not signs and self._intent is not None and 0.0 < self._intent.at < LATEST:
            signs.append(self._intent.at)
        return max(signs, default=None)

    def _spent(self, lived_s: float) -> dict[Cause, float]:
        """Where its time went. lived_s: how long it lived by the clock of its host."""
        calls, closing = self._calls, self._closing
        again = calls.total_s(Outcome.FAILED, Outcome.AGAIN)
        lost = calls.total_s(Outcome.LOST)
        in_hand = calls.total_s(Outcome.IN_HAND)
        idle: dict[str, float] = _NOTHING
        if closing is not None and closing.stats is not None:
            seconds = _sane(closing.stats.seconds)
            busy = _sane(closing.stats.busy_s)
            idle = closing.stats.idle_s
        else:
            seconds = lived_s
            # By its journal: the last line in usage/ may be a minute old, and the calls are not.
            busy = calls.total_s(Outcome.COMPLETE) + again + lost + in_hand
            if self._usage:
                last = self._usage[-1]
                idle = last.idle_s
                busy = max(busy, _sane(last.busy_s))
        spent = {Cause.DONE: max(0.0, busy - again - lost), Cause.AGAIN: again, Cause.LOST: lost}
        for cause in IDLE:
            spent[cause] = _sane(idle.get(cause, 0.0))
        told = sum(spent.values())
        # What is told is rounded, so less than this is nothing.
        if seconds - told > ROUNDED * seconds:
            spent[Cause.UNTOLD] = seconds - told
        return {cause: seconds for cause, seconds in spent.items() if seconds > 0.0}

    def _pauses(
        self, began: float, ended: float, spent: dict[Cause, float]
    ) -> list[tuple[float, Cause]]:
        """What it waited for, from moment to moment.

        It starts and loads, and then waits for its first task. From the first call on each line in
        usage/ tells what most of the time went into since the one before. Behind the last call it
        waits for work, or for nothing that anybody tells of.
        """
        calls = self._calls
        pauses: list[tuple[float, Cause]] = []
        start_s = spent.get(Cause.START, 0.0)
        first = calls.begins[0] if len(calls) else ended
        last = calls.end if len(calls) else ended
        load_s = spent.get(Cause.LOAD, 0.0)
        if start_s:
            pauses.append((min(began + start_s, first), Cause.START))
        if load_s:
            pauses.append((min(began + start_s + load_s, first), Cause.LOAD))
        waited = max((Cause.WORK, Cause.INPUTS), key=lambda cause: spent.get(cause, 0.0))
        pauses.append((first, waited if waited in spent else Cause.UNTOLD))
        before = _NOTHING
        for line in self._usage:
            if first < line.at < last:
                pauses.append((line.at, _most(before, line.idle_s)))
            before = line.idle_s
        between = {cause: spent.get(cause, 0.0) for cause in (Cause.INPUTS, Cause.PUBLISH)}
        most = max(between, key=lambda cause: between[cause])
        if not between[most]:
            most = Cause.WORK if Cause.WORK in spent else Cause.UNTOLD
        pauses.append((last, most))
        close_s = spent.get(Cause.CLOSE, 0.0)
        waits = Cause.WORK in spent or (self._closing is not None and self._closing.stats)
        pauses.append((max(last, ended - close_s), Cause.WORK if waits else Cause.UNTOLD))
        if close_s:
            pauses.append((ended, Cause.CLOSE))
        return _without_repeats(pauses)


def _sane(seconds: float) -> float:
    """A duration that somebody told, 0 where nothing can take so long."""
    return seconds if 0.0 <= seconds < LONGEST_S else 0.0


def _most(before: dict[str, float], now: dict[str, float]) -> Cause:
    """What an attempt has waited for longest between two moments."""
    grown = {cause: now.get(cause, 0.0) - before.get(cause, 0.0) for cause in IDLE}
    most = max(IDLE, key=lambda cause: grown[cause])
    return most if grown[most] > 0.0 else Cause.UNTOLD


def _without_repeats(pauses: list[tuple[float, Cause]]) -> list[tuple[float, Cause]]:
    """The same, with neighbours of one cause as one, and none that ends before the one before."""
    found: list[tuple[float, Cause]] = []
    for until, cause in pauses:
        if found and found[-1][1] is cause:
            found[-1] = (max(found[-1][0], until), cause)
        elif not found or until > found[-1][0]:
            found.append((until, cause))
    return found
