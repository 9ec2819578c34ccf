"""What the attempts of a run used over time, as they told it in usage/."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from gpuspool.orchestrator.page.axis import Axis
from gpuspool.orchestrator.page.lives import Attempt
from gpuspool.orchestrator.page.sums import POINTS
from gpuspool.spool.records import Usage


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
    together. cpu: cores, of all together. gpu_mem_total: bytes, of the devices that were held at
    one time, at most. gpu_mem_most: of the devices of a rank, by whoever used them.
    """

    gpu: tuple[list[float | None], list[float | None], list[float | None]] | None
    gpu_mem: list[float | None] | None
    gpu_mem_total: int
    rss: list[float | None] | None
    cpu: list[float | None] | None
    gpu_mean: float | None
    gpu_mem_most: int
    rss_most: int


def used_by(attempts: Sequence[Attempt], axis: Axis) -> Used:
    """What these attempts told in usage/. Raises OSError."""
    found = _Sums(axis)
    for attempt in attempts:
        found.take(attempt)
    gpu = found.curve("gpu")
    gpu_mem, rss, cpu = (found.curve(name) for name in ("gpu_mem", "rss", "cpu"))
    return Used(
        gpu=(gpu.means(), gpu.least(), gpu.most()) if gpu is not None else None,
        gpu_mem=gpu_mem.totals() if gpu_mem is not None else None,
        gpu_mem_total=_most_at_once(found.devices),
        rss=rss.totals() if rss is not None else None,
        cpu=cpu.totals() if cpu is not None else None,
        gpu_mean=found.gpu_sum / found.gpu_weight if found.gpu_weight else None,
        gpu_mem_most=found.gpu_mem_most,
        rss_most=found.rss_most,
    )


@dataclass(frozen=True)
class _Held:
    """That an attempt held a device, or several, with so much memory."""

    device: str
    n_bytes: int
    began: float
    ended: float


class _Sums:
    """Takes in what attempts told, line by line."""

    def __init__(self, axis: Axis) -> None:
        self._axis = axis
        self._curves: dict[str, Curve] = {}
        self.gpu_sum = self.gpu_weight = 0.0
        self.gpu_mem_most = self.rss_most = 0
        self.devices: list[_Held] = []

    def curve(self, name: str) -> Curve | None:
        """None where nobody told of it."""
        return self._curves.get(name)

    def take(self, attempt: Attempt) -> None:
        offset = self._axis.offset(attempt.began)
        before = attempt.began
        memory = 0
        for told_at, line in attempt.usage.lines():
            at = min(told_at, attempt.ended)
            if at < before:
                continue
            self._take_line(attempt, line, before - offset, at - offset)
            memory = line.gpu_mem_total or memory
            before = at
        if memory:
            held = _Held(_device(attempt), memory, attempt.began, attempt.ended)
            self.devices.append(held)
        if attempt.closing is not None and attempt.closing.stats is not None:
            stats = attempt.closing.stats
            self.rss_most = max(self.rss_most, stats.peak_memory_bytes)
            self.gpu_mem_most = max(self.gpu_mem_most, stats.peak_device_memory_bytes)

    def _take_line(self, attempt: Attempt, line: Usage, start: float, stop: float) -> None:
        """What held between two places of the axis."""
        # Of a device that several ranks share, each tells what all of them use.
        memory = None if line.gpu_mem is None else line.gpu_mem / _sharers(attempt)
        values = {"gpu": line.gpu, "gpu_mem": memory, "rss": line.rss, "cpu": line.cpu}
        for name, value in values.items():
            if value is not None:
                if name not in self._curves:
                    self._curves[name] = Curve(self._axis)
                self._curves[name].add(start, stop, float(value))
        if line.gpu is not None:
            self.gpu_sum += line.gpu * (stop - start)
            self.gpu_weight += stop - start
        self.gpu_mem_most = max(self.gpu_mem_most, line.gpu_mem or 0)
        self.rss_most = max(self.rss_most, line.rss)


def _most_at_once(devices: Sequence[_Held]) -> int:
    """The most memory that devices had together which were held at one time, each counted once."""
    changes: list[tuple[float, int, _Held]] = []
    for one in devices:
        changes += [(one.began, 1, one), (one.ended, -1, one)]
    # Whoever ends at a moment has let go before the next one begins.
    changes.sort(key=lambda change: change[:2])
    holders: dict[str, int] = {}
    sizes: dict[str, int] = {}
    most = 0
    for _, step, one in changes:
        holders[one.device] = holders.get(one.device, 0) + step
        if holders[one.device] > 0:
            sizes[one.device] = one.n_bytes
        else:
            sizes.pop(one.device, None)
        most = max(most, sum(sizes.values()))
    return most


def _device(attempt: Attempt) -> str:
    """The device, or devices, of an attempt, which other ranks and later starts may have too."""
    intent = attempt.intent
    if intent is None:
        return attempt.name
    if intent.device_uuids and all(intent.device_uuids):
        return ",".join(intent.device_uuids)
    return intent.place


def _sharers(attempt: Attempt) -> int:
    """How many ranks the device of an attempt has."""
    return attempt.intent.options.ranks_per_gpu if attempt.intent is not None else 1
