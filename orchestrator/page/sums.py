"""What many calls amount to: how many a second, how long, how busy ranks were, what they used.

Each figure is a list of as many numbers as a picture is wide, however long the run was.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from gpuspool.orchestrator.page.axis import Axis
from gpuspool.orchestrator.page.calls import Outcome
from gpuspool.orchestrator.page.lives import Attempt
from gpuspool.spool.ledger import Ledger

# How many points the curves over time have.
POINTS = 400

# How many bins a rank has where there are too many calls to draw each.
RANK_BINS = 800

# How many bars the histogram has.
BARS = 60


def completions(attempts: Sequence[Attempt], axis: Axis, ledger: Ledger) -> list[int]:
    """How many tasks were completed in each of `POINTS` parts of the axis; each task once."""
    counts = [0] * POINTS
    scale = (POINTS - 1e-9) / axis.length if axis.length > 0 else 0.0
    # A task may have run twice, and what was redone counts from then on.
    seen = bytearray(ledger.tasks)
    for attempt in attempts:
        calls = attempt.calls
        offset = axis.offset(attempt.began)
        for task, begin, duration, outcome in calls.rows():
            if outcome or seen[task]:
                continue
            seen[task] = 1
            at = int((begin + duration - offset) * scale)
            counts[min(POINTS - 1, max(0, at))] += 1
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
            ended[last] += 1
            if outcome:
                failed[last] += outcome in (Outcome.FAILED, Outcome.LOST)
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


class Curve:
    """The mean over time of what several attempts told at moments, and its extremes.

    What is told at a moment holds since the moment before.
    """

    def __init__(self, axis: Axis) -> None:
        self._width = axis.length / POINTS if axis.length > 0 else 1.0
        self._sums = [0.0] * POINTS
        self._weights = [0.0] * POINTS
        self._most = [-math.inf] * POINTS
        self._least = [math.inf] * POINTS

    def add(self, start: float, stop: float, value: float) -> None:
        """That a value held between two places of the axis."""
        width = self._width
        first = min(POINTS - 1, max(0, int(start / width)))
        last = min(POINTS - 1, max(0, int(stop / width)))
        for number in range(first, last + 1):
            overlap = min(stop, width * (number + 1)) - max(start, width * number)
            overlap = max(overlap, 1e-9)
            self._sums[number] += value * overlap
            self._weights[number] += overlap
            self._most[number] = max(self._most[number], value)
            self._least[number] = min(self._least[number], value)

    def means(self) -> list[float | None]:
        """The mean in each part, None where nobody told anything."""
        pairs = zip(self._sums, self._weights, strict=True)
        return [_round(total / weight) if weight else None for total, weight in pairs]

    def totals(self) -> list[float | None]:
        """The sum over all who told, on average over the time of each part."""
        pairs = zip(self._sums, self._weights, strict=True)
        return [_round(total / self._width) if weight else None for total, weight in pairs]

    def least(self) -> list[float | None]:
        return [None if value == math.inf else _round(value) for value in self._least]

    def most(self) -> list[float | None]:
        return [None if value == -math.inf else _round(value) for value in self._most]


def _round(value: float) -> float:
    """Four digits are more than a picture shows."""
    return float(f"{value:.4g}")


@dataclass
class Used:
    """What attempts used over time: each a list of `POINTS` numbers; None where nobody told it.

    gpu: percent, of all ranks the mean, the least and the most. gpu_mem, rss: bytes, of all ranks
    together. cpu: cores, of all together.
    """

    gpu: tuple[list[float | None], list[float | None], list[float | None]] | None
    gpu_mem: list[float | None] | None
    gpu_mem_total: float
    rss: list[float | None] | None
    cpu: list[float | None] | None
    gpu_mean: float | None
    gpu_mem_most: int
    rss_most: int


def used_by(attempts: Sequence[Attempt], axis: Axis) -> Used:
    """What these attempts told in usage/."""
    curves = {name: Curve(axis) for name in ("gpu", "gpu_mem", "rss", "cpu")}
    told: set[str] = set()
    gpu_sum = gpu_weight = 0.0
    totals: dict[str, int] = {}
    gpu_mem_most = rss_most = 0
    for attempt in attempts:
        offset = axis.offset(attempt.began)
        before = attempt.began
        for line in attempt.usage:
            at = min(line.at, attempt.ended)
            # A clock that was set back tells nothing of the time in between.
            if at < before:
                before = at
                continue
            # Of a device that several ranks share, each tells what all of them use.
            memory = None if line.gpu_mem is None else line.gpu_mem / _sharers(attempt)
            values = {"gpu": line.gpu, "gpu_mem": memory, "rss": line.rss, "cpu": line.cpu}
            for name, value in values.items():
                if value is not None and 0 <= value < math.inf:
                    told.add(name)
                    curves[name].add(before - offset, at - offset, float(value))
            if line.gpu is not None:
                gpu_sum += line.gpu * (at - before)
                gpu_weight += at - before
            if line.gpu_mem_total:
                totals[_slot(attempt)] = line.gpu_mem_total
            gpu_mem_most = max(gpu_mem_most, line.gpu_mem or 0)
            rss_most = max(rss_most, line.rss)
            before = at
        if attempt.closing is not None and attempt.closing.stats is not None:
            rss_most = max(rss_most, attempt.closing.stats.peak_memory_bytes)
            gpu_mem_most = max(gpu_mem_most, attempt.closing.stats.peak_device_memory_bytes)
    gpu = curves["gpu"]
    return Used(
        gpu=(gpu.means(), gpu.least(), gpu.most()) if "gpu" in told else None,
        gpu_mem=curves["gpu_mem"].totals() if "gpu_mem" in told else None,
        gpu_mem_total=float(sum(totals.values())),
        rss=curves["rss"].totals() if "rss" in told else None,
        cpu=curves["cpu"].totals() if "cpu" in told else None,
        gpu_mean=gpu_sum / gpu_weight if gpu_weight else None,
        gpu_mem_most=gpu_mem_most,
        rss_most=rss_most,
    )


def _slot(attempt: Attempt) -> str:
    """The place in which an attempt ran: of two on one device, its memory is there once."""
    return attempt.intent.place if attempt.intent is not None else attempt.name


def _sharers(attempt: Attempt) -> int:
    """How many ranks the device of an attempt has."""
    return attempt.intent.options.ranks_per_gpu if attempt.intent is not None else 1
