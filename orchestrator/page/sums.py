"""What many calls amount to: how many a second, how long they took, how busy ranks were.

Each figure is a list of as many numbers as a picture is wide, however long the run was.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from gpuspool.orchestrator.page.axis import Axis
from gpuspool.orchestrator.page.calls import CallOutcome
from gpuspool.orchestrator.page.lives import Attempt

# How many points the curves over time have.
POINTS = 400

# How many bins a rank has where there are too many calls to draw each.
RANK_BINS = 800

# How many bars the histogram has.
BARS = 60


def completions(attempts: Sequence[Attempt], axis: Axis) -> list[int]:
    """How many tasks were completed in each of `POINTS` parts of the axis; each task once.

    A task counts when the call ended from which it has its verdict; see `verdicts`.
    """
    counts = [0] * POINTS
    scale = (POINTS - 1e-9) / axis.length if axis.length > 0 else 0.0
    last = POINTS - 1
    for attempt in attempts:
        calls = attempt.calls
        offset = axis.offset(attempt.began)
        rows = zip(calls.begins, calls.durations, calls.outcomes, calls.tells, strict=True)
        for begin, duration, outcome, tells in rows:
            if outcome or not tells:
                continue
            at = int((begin + duration - offset) * scale)
            counts[min(last, max(0, at))] += 1
    return counts


@dataclass(frozen=True)
class Times:
    """How long the calls of complete tasks took, in seconds.

    edges: of the bars, one more than there are; counts: how many calls fall between them.
    """

    count: int
    least: float
    median: float
    p90: float
    p99: float
    most: float
    total: float
    edges: list[float]
    counts: list[int]


def times_of(seconds: list[float]) -> Times | None:
    """What so many calls took; None where there are none. The list is sorted in place."""
    if not seconds:
        return None
    seconds.sort()
    least, most = seconds[0], seconds[-1]
    edges = _edges(least, most)
    counts = [0] * (len(edges) - 1)
    at = 0
    for number, edge in enumerate(edges[1:-1]):
        behind = _first_from(seconds, edge, at)
        counts[number] = behind - at
        at = behind
    counts[-1] = len(seconds) - at
    return Times(
        count=len(seconds),
        least=least,
        median=_quantile(seconds, 0.5),
        p90=_quantile(seconds, 0.9),
        p99=_quantile(seconds, 0.99),
        most=most,
        total=math.fsum(seconds),
        edges=edges,
        counts=counts,
    )


def _first_from(values: list[float], edge: float, start: int) -> int:
    """Where in sorted values, from `start` on, the first one stands that is at least `edge`."""
    stop = len(values)
    while start < stop:
        middle = (start + stop) // 2
        if values[middle] < edge:
            start = middle + 1
        else:
            stop = middle
    return start


def _edges(least: float, most: float) -> list[float]:
    """The edges of the bars: of one width where the times are alike, else growing by a factor."""
    if most <= least:
        # One thin bar in the middle, and not one that fills all.
        width = max(least, 1e-6) / BARS
        return [max(0.0, least + width * (number - BARS / 2)) for number in range(BARS + 1)]
    floor = max(least, most * 1e-7, 1e-6)
    if most / floor < 10.0:
        width = (most - least) / BARS
        return [*(least + width * number for number in range(BARS)), most]
    factor = math.log(most / floor) / BARS
    return [least, *(floor * math.exp(factor * number) for number in range(1, BARS)), most]


def _quantile(values: list[float], share: float) -> float:
    """The value below which this share of sorted values lies."""
    place = share * (len(values) - 1)
    low = math.floor(place)
    high = min(low + 1, len(values) - 1)
    return values[low] + (values[high] - values[low]) * (place - low)


def rank_bins(attempts: Iterable[Attempt], axis: Axis) -> dict[str, list[int]]:
    """Of one rank, in each of `RANK_BINS` parts of the axis: how busy it was in percent, how many
    calls ended, and how many of them failed.
    """
    width = axis.length / RANK_BINS if axis.length > 0 else 1.0
    busy = [0.0] * RANK_BINS
    ended = [0] * RANK_BINS
    failed = [0] * RANK_BINS
    last_bin = RANK_BINS - 1
    for attempt in attempts:
        calls = attempt.calls
        offset = axis.offset(attempt.began)
        rows = zip(calls.begins, calls.durations, calls.outcomes, strict=True)
        for begin, duration, outcome in rows:
            start = begin - offset
            first = min(last_bin, max(0, int(start / width)))
            last = min(last_bin, max(0, int((start + duration) / width)))
            if outcome != CallOutcome.IN_HAND:
                ended[last] += 1
            if outcome:
                failed[last] += outcome in (CallOutcome.FAILED, CallOutcome.LOST)
            if first == last:
                busy[first] += duration
                continue
            busy[first] += width * (first + 1) - start
            busy[last] += start + duration - width * last
            for number in range(first + 1, last):
                busy[number] += width
    shares = [min(100, max(0, round(100 * seconds / width))) for seconds in busy]
    # A bin in which anything ran shall be seen.
    return {
        "busy": [
            max(share, 1) if seconds else share for share, seconds in zip(shares, busy, strict=True)
        ],
        "ended": ended,
        "failed": failed,
    }
