"""The tasks of a bench, FOLDER/lines, and the traces that they leave, FOLDER/trace/*.

A task that is traced appends one line, "INDEX START END PID", with one write when it ends. So the
runner has evidence of its own: it counts what ran, how often and when, whatever a system says of
itself.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

# The sleeps of the bench "skew": their mean, and the standard deviation of their logarithm.
MEAN_S = 0.020
SIGMA = 1.2
STRAGGLERS = 2


class Execution(NamedTuple):
    """One execution of one task."""

    task: int
    start: float
    end: float
    pid: int


def write_tasks(folder: Path, seconds: Sequence[float]) -> None:
    """FOLDER/lines for all, the same with costs in FOLDER/costs.jsonl, and the folder for traces.

    Line by line: what this process holds at its largest is counted as held by the processes that it
    starts.
    """
    (folder / "trace").mkdir(exist_ok=True)
    with open(folder / "lines", "w") as lines, open(folder / "costs.jsonl", "w") as costs:
        for index, duration in enumerate(seconds):
            lines.write(f"{index} {duration:.6g}\n")
            if duration:
                costs.write(f'{{"payload":"{index} {duration:.6g}","cost":{duration:.6g}}}\n')


def skewed(n: int, mean_s: float, straggler_s: float) -> list[float]:
    """Lognormal durations, the same each time, with two stragglers at the very end."""
    source = random.Random(1)
    mu = math.log(mean_s) - SIGMA**2 / 2
    return [source.lognormvariate(mu, SIGMA) for _ in range(n)] + [straggler_s] * STRAGGLERS


def read_traces(folder: Path) -> list[Execution]:
    """Every execution that came to its end, by end."""
    found = []
    for file in (folder / "trace").iterdir():
        for line in file.read_text().splitlines():
            index, start, end, pid = line.split()
            found.append(Execution(int(index), float(start), float(end), int(pid)))
    return sorted(found, key=lambda execution: execution.end)


def count_traces(folder: Path) -> int:
    """How many executions have ended; cheap enough to be asked often."""
    return sum(file.read_bytes().count(b"\n") for file in (folder / "trace").iterdir())


def twice_and_lost(executions: Sequence[Execution], n: int) -> tuple[int, int]:
    """(how many tasks ended more than once, how many never did)."""
    times = Counter(execution.task for execution in executions)
    return sum(count > 1 for count in times.values()), n - len(times)


def makespan(executions: Sequence[Execution]) -> float:
    """First task's start to last task's end."""
    return executions[-1].end - min(execution.start for execution in executions)


def lower_bound(seconds: Sequence[float], workers: int) -> float:
    """No schedule can be shorter."""
    return max(sum(seconds) / workers, max(seconds))


def bound_of_late(executions: Sequence[Execution], workers: int) -> float:
    """What no schedule of these executions can beat, if each worker begins when it really did."""
    first: dict[int, float] = {}
    for one in executions:
        first[one.pid] = min(first.get(one.pid, one.start), one.start)
    late = sum(first.values()) - len(first) * min(first.values())
    return (sum(one.end - one.start for one in executions) + late) / workers


def schedule(seconds: Sequence[float], workers: int) -> float:
    """The makespan of handing tasks out one by one in this order, without any cost: arithmetic."""
    free = [0.0] * workers
    for duration in seconds:
        earliest = free.index(min(free))
        free[earliest] += duration
    return max(free)


def share_inside(executions: Sequence[Execution]) -> float:
    """The part of the workers' time, each from its first start to its last end, that was spent
    inside tasks.
    """
    first: dict[int, float] = {}
    last: dict[int, float] = {}
    inside = 0.0
    for one in executions:
        first[one.pid] = min(first.get(one.pid, one.start), one.start)
        last[one.pid] = max(last.get(one.pid, one.end), one.end)
        inside += one.end - one.start
    whole = sum(last[pid] - first[pid] for pid in first)
    return inside / whole if whole > 0 else 0.0
