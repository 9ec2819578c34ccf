"""When each attempt lived, and where its time went, by cause.

An attempt that closed itself tells both in its closing. One that was killed, or lives, told last in
usage/; what came after that is told by its calls, and by the call in which it died. What nobody
told counts as such, so that the causes of an attempt always add up to how long it lived.

The seconds are those of a clock that nobody sets. When it began and ended is by the clock of its
host, moved as `Calls` moved its calls.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from gpuspool.orchestrator.page.calls import (
    LATEST,
    ROUNDING_S,
    CallOutcome,
    Calls,
    OpenCall,
    call_at_death,
    call_in_hand,
    verdict_by_death,
)
from gpuspool.orchestrator.page.told_usage import ToldUsage, age_s, sane
from gpuspool.spool.records import Closing, Intent
from gpuspool.spool.states import BY_PARENT
from gpuspool.spool.view import View

# Seconds in records are rounded to a microsecond or a few, so their sums differ by some such part.
ROUNDED = 1e-3

# The time of an attempt is divided into so many parts for its pauses: a page is little wider.
MOST_PAUSES = 400

_NOTHING: Mapping[str, float] = {}


class Standing(StrEnum):
    """How an attempt stands that nobody has closed: as `status` tells it of ranks."""

    RUNNING = "running"
    SILENT = "silent"
    LOST = "lost"


class Cause(StrEnum):
    """What a rank's time went into, in the order of the page.

    DONE: calls that completed their tasks. AGAIN: calls that failed, or whose tasks needed another
    call. LOST: the call in which a process died. HAND: the call that goes on. From START to CLOSE
    as in `idle_s`, see docs/jobs.md. UNTOLD: nobody told.
    """

    DONE = "done"
    AGAIN = "again"
    LOST = "lost"
    HAND = "hand"
    START = "start"
    LOAD = "load"
    INPUTS = "inputs"
    PUBLISH = "publish"
    WORK = "work"
    CLOSE = "close"
    UNTOLD = "untold"


IDLE = (Cause.START, Cause.LOAD, Cause.INPUTS, Cause.PUBLISH, Cause.WORK, Cause.CLOSE)


# What is a call of the job.
CALLS = (Cause.DONE, Cause.AGAIN, Cause.LOST, Cause.HAND)


@dataclass
class Attempt:
    """One attempt of a rank. spent: seconds by cause; they add up to `seconds`.

    standing: None of one that was closed. began, ended: in Unix seconds; of one that runs, it has
    ended now. pauses: (until when, the cause of most of the time between calls), in order; the last
    one reaches to its end.
    """

    name: str
    calls: Calls
    intent: Intent | None
    closing: Closing | None
    usage: ToldUsage
    standing: Standing | None
    began: float
    ended: float
    spent: dict[Cause, float]
    pauses: list[tuple[float, Cause]]

    @property
    def seconds(self) -> float:
        return sum(self.spent.values())

    @property
    def busy_s(self) -> float:
        return sum(self.spent.get(cause, 0.0) for cause in CALLS)


def read_attempts(
    view: View, calls: list[Calls], standings: Mapping[str, Standing], now: float
) -> list[Attempt]:
    """All attempts of a view that left any trace in time, in the order of ranks.

    standings: of the open ones. now: in Unix seconds. The call in which an attempt died, or is now,
    is added to its calls. Raises OSError.
    """
    found = [_Reader(view, one, standings, now).read() for one in calls]
    return [attempt for attempt in found if attempt is not None]


class _Reader:
    """Finds out about one attempt."""

    def __init__(
        self, view: View, calls: Calls, standings: Mapping[str, Standing], now: float
    ) -> None:
        self._view = view
        self._calls = calls
        self._name = calls.attempt
        self._intent = view.intents.get(self._name)
        self._closing = view.closed.get(self._name)
        self._usage = ToldUsage(view.layout, calls)
        self._standing: Standing | None = None
        if self._closing is None:
            self._standing = standings.get(self._name, Standing.LOST)
        self._now = now

    def read(self) -> Attempt | None:
        calls = self._calls
        open_call = self._open_call()
        began, ended = self._span(open_call)
        if began is None or ended is None:
            return None
        if open_call is not None:
            goes_on = self._standing in (Standing.RUNNING, Standing.SILENT)
            outcome = CallOutcome.IN_HAND if goes_on else CallOutcome.LOST
            tells = verdict_by_death(self._view, open_call)
            calls.add(open_call.task, max(open_call.start, began), ended, outcome, tells)
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
            standing=self._standing,
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
            found = call_at_death(self._view, self._closing)
        else:
            found = call_in_hand(self._view, self._name)
        if found is None or found.start < self._calls.end - ROUNDING_S:
            return None
        return found

    # An attempt that closed itself knows how old it was. Of one that its parent saw die, the parent
    # knows when. One that somebody found dead later, or of which nothing was heard lately, may have
    # died long before: then it lived until the last moment at which anything was heard of it.
    def _span(self, open_call: OpenCall | None) -> tuple[float | None, float | None]:
        """When it began and ended; None where nothing tells."""
        closing = self._closing
        ended: float | None = None
        if self._standing is Standing.RUNNING:
            ended = self._now
        elif closing is not None and closing.by in (BY_PARENT, self._name):
            ended = closing.at if 0.0 < closing.at < LATEST else None
        if ended is None:
            ended = self._last_sign(open_call)
        if closing is not None and closing.stats is not None and ended is not None:
            return ended - sane(closing.stats.seconds), ended
        began = self._began()
        if began is not None and ended is not None and ended < began:
            ended = began
        return began, ended

    def _began(self) -> float | None:
        """When it began, by what it told first, else by its intent, else by its first call."""
        if self._usage.first is not None:
            at, line = self._usage.first
            return at - age_s(line)
        if self._intent is not None and 0.0 < self._intent.at < LATEST:
            return self._intent.at + self._calls.moved_s()
        return self._calls.begins[0] if len(self._calls) else None

    # As `report.signs`, which reads no more than the end of a journal, and knows nothing of usage/.
    def _last_sign(self, open_call: OpenCall | None) -> float | None:
        """When it was last heard of, in Unix seconds."""
        signs: list[float] = []
        beat = self._view.heartbeat(self._name)
        if beat is not None and 0.0 < beat.at < LATEST:
            signs.append(beat.at)
        if self._usage.last is not None:
            signs.append(self._usage.last[0])
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
        again = calls.total_s(CallOutcome.FAILED, CallOutcome.AGAIN)
        lost = calls.total_s(CallOutcome.LOST)
        in_hand = calls.total_s(CallOutcome.IN_HAND)
        idle = _NOTHING
        if closing is not None and closing.stats is not None:
            seconds = sane(closing.stats.seconds)
            busy = sane(closing.stats.busy_s)
            idle = closing.stats.idle_s
        else:
            seconds = lived_s
            # By its journal: the last line in usage/ may be a minute old, and the calls are not.
            busy = calls.total_s(CallOutcome.COMPLETE) + again + lost + in_hand
            if self._usage.last is not None:
                _, last = self._usage.last
                idle = last.idle_s
                busy = max(busy, sane(last.busy_s))
        spent = {
            Cause.DONE: max(0.0, busy - again - lost - in_hand),
            Cause.AGAIN: again,
            Cause.LOST: lost,
            Cause.HAND: in_hand,
        }
        for cause in IDLE:
            spent[cause] = sane(idle.get(cause, 0.0))
        told = sum(spent.values())
        # What is told is rounded, so less than this is nothing.
        if seconds - told > ROUNDED * seconds:
            spent[Cause.UNTOLD] = seconds - told
        return {cause: seconds for cause, seconds in spent.items() if seconds > 0.0}

    def _pauses(
        self, began: float, ended: float, spent: Mapping[Cause, float]
    ) -> list[tuple[float, Cause]]:
        """What it waited for, from moment to moment."""
        calls = self._calls
        first = calls.begins[0] if len(calls) else ended
        last = calls.end if len(calls) else ended
        return _without_repeats(
            [
                *_pauses_before(began, first, spent),
                *self._pauses_between(first, last),
                (last, _usual_pause(spent)),
                *self._pauses_after(last, ended, spent),
            ]
        )

    def _pauses_between(self, first: float, last: float) -> list[tuple[float, Cause]]:
        """From its first call to its last: what most of the time went into from line to line of
        usage/; of many lines in one part of that time, the first one tells.
        """
        pauses: list[tuple[float, Cause]] = []
        width = (last - first) / MOST_PAUSES
        before = _NOTHING
        part = -1
        for at, line in self._usage.lines() if width > 0.0 else ():
            if first < at < last:
                now = int((at - first) / width)
                if now <= part:
                    continue
                part = now
                pauses.append((at, _most(before, line.idle_s)))
            before = line.idle_s
        return pauses

    def _pauses_after(
        self, last: float, ended: float, spent: Mapping[Cause, float]
    ) -> list[tuple[float, Cause]]:
        """Behind its last call: it waits for work, or for nothing that anybody tells of."""
        close_s = spent.get(Cause.CLOSE, 0.0)
        waits = Cause.WORK in spent or (self._closing is not None and self._closing.stats)
        pauses = [(max(last, ended - close_s), Cause.WORK if waits else Cause.UNTOLD)]
        if close_s:
            pauses.append((ended, Cause.CLOSE))
        return pauses


def _pauses_before(
    began: float, first: float, spent: Mapping[Cause, float]
) -> list[tuple[float, Cause]]:
    """Up to its first call it starts and loads, and then waits for its first task."""
    pauses: list[tuple[float, Cause]] = []
    start_s = spent.get(Cause.START, 0.0)
    load_s = spent.get(Cause.LOAD, 0.0)
    if start_s:
        pauses.append((min(began + start_s, first), Cause.START))
    if load_s:
        pauses.append((min(began + start_s + load_s, first), Cause.LOAD))
    waited = max((Cause.WORK, Cause.INPUTS), key=lambda cause: spent.get(cause, 0.0))
    pauses.append((first, waited if waited in spent else Cause.UNTOLD))
    return pauses


def _usual_pause(spent: Mapping[Cause, float]) -> Cause:
    """What most of the time between calls went into, where no line of usage/ tells more."""
    most = max((Cause.INPUTS, Cause.PUBLISH), key=lambda cause: spent.get(cause, 0.0))
    if spent.get(most, 0.0):
        return most
    return Cause.WORK if Cause.WORK in spent else Cause.UNTOLD


def _most(before: Mapping[str, float], now: Mapping[str, float]) -> Cause:
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
