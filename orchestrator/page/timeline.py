"""The timeline of a page: each attempt with what it waited for, and each of its calls.

All moments on it are whole numbers of a unit on the one axis. Those that are shown as a clock are
told as such beside them: where the axis is cut, one place is the end of one start and the beginning
of the next.
"""

from __future__ import annotations

import array
import math
import sys
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from gpuspool.orchestrator.page.calls import CallOutcome
from gpuspool.orchestrator.page.lives import Attempt, Cause, Standing
from gpuspool.orchestrator.page.reading import Reading
from gpuspool.orchestrator.page.shown import MESSAGE_LETTERS, told
from gpuspool.orchestrator.page.sums import rank_bins
from gpuspool.orchestrator.report.endings import ending
from gpuspool.orchestrator.report.ranks import why_ended
from gpuspool.spool.layout import parse_attempt, rank_of

# Times on the axis are whole numbers of a unit, a power of ten in seconds. It is fine enough to
# tell the digits of a usual call that a page shows, and to draw the call in its place if the axis
# is made a hundred times as long. A finer one would only make the file larger.
UNITS_A_CALL = 200
UNITS_AN_AXIS = 1e5
# What four bytes hold.
MOST_UNITS = 2.0**32 - 1
LEAST_UNIT_S = 1e-6

_WHY = {
    Standing.RUNNING: "",
    Standing.SILENT: "nothing was heard of it lately",
    Standing.LOST: "its process is gone",
}


class Timeline:
    """Puts it together. unit: in seconds. columns: see `each_call`."""

    def __init__(self, reading: Reading, hosts: Sequence[str], usual_s: float | None) -> None:
        """hosts: of each attempt, as it is shown. usual_s: how long a usual call took, if any."""
        self._reading = reading
        self._hosts = hosts
        self._axis = axis = reading.axis
        finest = (axis.length if usual_s is None else usual_s) / UNITS_A_CALL
        finest = min(finest, axis.length / UNITS_AN_AXIS)
        finest = max(finest, LEAST_UNIT_S, axis.length / MOST_UNITS)
        self.unit = 10.0 ** math.ceil(math.log10(finest) - 1e-9)
        self.columns: list[bytes] = []

    def attempts(self) -> tuple[list[dict[str, Any]], list[str]]:
        """What is told of each attempt, and the causes that their pauses are numbered by."""
        causes = list(Cause)
        number = {cause: at for at, cause in enumerate(causes)}
        rows: list[dict[str, Any]] = []
        for attempt, host in zip(self._reading.attempts, self._hosts, strict=True):
            offset = self._axis.offset(attempt.began)
            closing, intent = attempt.closing, attempt.intent
            stats = None if closing is None else closing.stats
            rank, which = parse_attempt(attempt.name) or (-1, 0)
            pauses = [
                [self._units(until - offset), number[cause]] for until, cause in attempt.pauses
            ]
            rows.append(
                {
                    "name": attempt.name,
                    "rank": rank,
                    "number": which,
                    "epoch": None if intent is None else intent.epoch,
                    "host": host,
                    "device": told("" if intent is None else intent.device),
                    "device_name": told("" if stats is None else stats.device_name),
                    "began": self._units(attempt.began - offset),
                    "ended": self._units(attempt.ended - offset),
                    "began_at": attempt.began,
                    "seconds": attempt.seconds,
                    "busy_s": attempt.busy_s,
                    "done": self._reading.view.completed(attempt.name),
                    "failed": attempt.calls.outcomes.count(CallOutcome.FAILED),
                    "state": _state(attempt),
                    "why": told(why_of(attempt)),
                    "says": told("" if closing is None else ending(closing), MESSAGE_LETTERS),
                    "pauses": pauses,
                }
            )
        return rows, [cause.value for cause in causes]

    def _units(self, seconds: float) -> int:
        return max(0, round(seconds / self.unit))

    # Three columns of four bytes a call, of numbers that are mostly small, or alike, since few
    # bytes are left of such once they are compressed. Of the calls of each attempt, in order: how
    # long after the end of the one before, or the beginning of the attempt, it began; how long it
    # took; how much its task's number exceeds that of the one before. A call that is rounded never
    # begins before the last has ended.
    def each_call(self) -> dict[str, Any]:
        """Each call, of which most stands in `columns`."""
        gaps = array.array("I")
        durations = array.array("I")
        steps = array.array("i")
        odd: list[list[int]] = []
        scale = 1.0 / self.unit
        for attempt in self._reading.attempts:
            calls = attempt.calls
            offset = self._axis.offset(attempt.began)
            last = self._units(attempt.began - offset)
            task = 0
            if not calls.are_all_complete():
                base = len(gaps)
                odd += [[base + at, one] for at, one in enumerate(calls.outcomes) if one]
            for begin, duration in zip(calls.begins, calls.durations, strict=True):
                start = begin - offset
                first = round(start * scale)
                stop = round((start + duration) * scale)
                if first < last:
                    first = last
                if stop < first:
                    stop = first
                gaps.append(first - last)
                durations.append(stop - first)
                last = stop
            for one in calls.tasks:
                steps.append(one - task)
                task = one
        self.columns = [_planes(column) for column in (gaps, durations, steps)]
        return {"counts": [len(attempt.calls) for attempt in self._reading.attempts], "odd": odd}

    def bins(self) -> dict[str, Any]:
        """By rank, what `rank_bins` says."""
        by_rank: dict[int, list[Attempt]] = defaultdict(list)
        for attempt in self._reading.attempts:
            by_rank[rank_of(attempt.name)].append(attempt)
        return {str(rank): rank_bins(by_rank[rank], self._axis) for rank in sorted(by_rank)}


def _planes(column: array.array[int]) -> bytes:
    """A column of numbers of four bytes: the lowest byte of each, then the next byte of each, …

    So what is alike lies together: compressed, it is a quarter shorter than the same as text.
    """
    if sys.byteorder == "big":
        column.byteswap()
    data = column.tobytes()
    return b"".join(data[byte::4] for byte in range(4))


def _state(attempt: Attempt) -> str:
    """How it ended, or how it stands where nobody has closed it."""
    if attempt.closing is not None:
        return str(attempt.closing.state)
    assert attempt.standing is not None
    return attempt.standing.value


def why_of(attempt: Attempt) -> str:
    """Why an attempt ended, in a word or two; "" of one that lives."""
    if attempt.standing is not None:
        return _WHY[attempt.standing]
    return "" if attempt.closing is None else why_ended(attempt.closing)
