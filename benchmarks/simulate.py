"""How claims share tasks out, in virtual time.

    python -m benchmarks.simulate

The clock, the file system and the job are simulated; claims are kept in memory. The plan, and who
claims from whom and how much, are decided by the code that a run uses: the worker's own Supply and
Rate. The lower bound is max((sum of the tasks + what late ranks miss) / sum of the ranks' speeds,
longest task on the fastest rank). The calls counted are those that touch names: opens of claims,
whether or not they exist, listings, and CALLS for each claim that is made.
"""

from __future__ import annotations

import argparse
import heapq
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import msgspec
import numpy as np

from gpuspool.orchestrator.plan.create import plan
from gpuspool.spool.claims import NEAR, RECENT, ChainEnd
from gpuspool.spool.layout import Layout, attempt_name, rank_name
from gpuspool.spool.manifest import Damage
from gpuspool.spool.records import Claim, TaskLine
from gpuspool.worker.supply import Rate, Supply

# The calls that touch names when a claim is made: stat of its folder, create, link, unlink, and the
# listing that follows.
CALLS = 5
# How long it takes to make a claim. A local disk needs a tenth of this, so figures are cautious.
CLAIM_S = 0.001
SEED = 7
A_TASK = TaskLine(task=0, key="", payload=msgspec.Raw(b"0"), cost=1.0)


@dataclass
class Outcome:
    """The result of one case. All times are virtual."""

    makespan_s: float
    bound_s: float
    tasks: int
    claims: int
    calls: int

    @property
    def ratio(self) -> float:
        return self.makespan_s / self.bound_s


@dataclass
class Calls:
    claims: int = 0
    names: int = 0


@dataclass
class Planned:
    """A manifest in place of the worker's: the cost at each position, and the seconds of all
    positions before it.
    """

    costs: np.ndarray
    before: np.ndarray
    claims: list[Claim] = field(default_factory=list)
    # No task of it is doubtful.
    is_as_planned = True

    def __len__(self) -> int:
        return len(self.costs)

    def task(self, position: int) -> TaskLine:
        return msgspec.structs.replace(A_TASK, cost=float(self.costs[position]))

    def tasks(self, start: int, stop: int) -> Iterator[TaskLine]:
        """A claim's tasks are looked at as a whole: its two ends, and no lines."""
        return iter((self, start, stop))  # type: ignore[arg-type]


class Followed(ChainEnd):
    """The claims on a manifest as far as one rank has read them."""

    def __init__(self, planned: Planned, calls: Calls) -> None:
        self.planned, self.end, self.read, self.calls = planned, len(planned.costs), 0, calls

    @property
    def _recent(self) -> list[Claim]:  # type: ignore[override]
        """All of them: asked for right after `look` only."""
        return self.planned.claims

    @property
    def next(self) -> int:
        return self.planned.claims[self.read - 1].stop if self.read else 0

    def look(self) -> Followed:
        unread = len(self.planned.claims) - self.read
        self.calls.names += unread if unread < NEAR else NEAR + 1 + min(unread - NEAR, RECENT)
        self.read = len(self.planned.claims)
        self.calls.names += self.unclaimed > 0
        return self

    def take(self, attempt: str, stop: int, number: int = 0) -> Claim:
        claim = Claim(attempt=attempt, start=self.next, stop=stop, at=0.0, number=number)
        self.planned.claims.append(claim)
        self.read += 1
        self.calls.names += CALLS
        self.calls.claims += 1
        return claim


class VirtualSupply(Supply):
    """The worker's own Supply, except that manifests and claims come from memory."""

    def __init__(self, rank: int, planned: dict[str, Planned], calls: Calls) -> None:
        super().__init__(Layout("nowhere"), rank, attempt_name(rank, 0), _unexpected)
        self._virtual = planned
        self._calls = calls

    def _discover(self) -> None:
        self._calls.names += 1
        self._names = dict.fromkeys(self._virtual)

    def _manifest(self, name: str) -> Planned:  # type: ignore[override]
        self._loaded[name] = self._virtual[name]  # type: ignore[assignment]
        return self._virtual[name]

    def _new_chain(self, name: str, end: int) -> Followed:
        chain = Followed(self._virtual[name], self._calls)
        assert chain.end == end
        return chain


def _unexpected(damage: Damage) -> None:
    raise AssertionError(damage)


def simulate(
    seconds: np.ndarray,
    speeds: Sequence[float],
    *,
    costs: np.ndarray | None = None,
    starts: Sequence[float] = (),
) -> Outcome:
    """Run tasks of so many seconds, in input order, on ranks of these speeds and starting times.

    costs: what the run is told of each task; without it, all tasks cost the same.
    """
    random.seed(SEED)
    ranks, calls = len(speeds), Calls()
    planned = _plan(seconds, np.ones(len(seconds)) if costs is None else costs, ranks)
    supplies = [VirtualSupply(rank, planned, calls) for rank in range(ranks)]
    rates = [Rate() for _ in range(ranks)]
    ready = list(zip(starts or [0.0] * ranks, range(ranks), strict=True))
    heapq.heapify(ready)
    end = 0.0
    while ready:
        now, rank = heapq.heappop(ready)
        taken = supplies[rank].take(1, rates[rank].learn())
        if taken is None:
            continue
        manifest, start, stop = taken  # type: ignore[misc]
        took = float(manifest.before[stop] - manifest.before[start]) / speeds[rank]
        rates[rank].add(took, float(manifest.costs[start:stop].sum()))
        end = max(end, now + CLAIM_S + took)
        heapq.heappush(ready, (now + CLAIM_S + took, rank))
    late = sum(start * speed for start, speed in zip(starts, speeds, strict=False))
    bound = max((float(seconds.sum()) + late) / sum(speeds), float(seconds.max()) / max(speeds))
    return Outcome(end, bound, len(seconds), calls.claims, calls.names)


def _plan(seconds: np.ndarray, costs: np.ndarray, ranks: int) -> dict[str, Planned]:
    manifests = {}
    for rank, tasks in enumerate(plan(costs.tolist(), ranks)):
        mine = np.fromiter(tasks, dtype=np.int64, count=len(tasks))
        before = np.concatenate(([0.0], np.cumsum(seconds[mine])))
        manifests[rank_name(rank)] = Planned(costs[mine], before)
    return manifests


def lognormal(tasks: int, mean_s: float, sigma: float, seed: int = SEED) -> np.ndarray:
    """Seconds of so many tasks; one seed always gives the same ones."""
    values = np.random.default_rng(seed).lognormal(0.0, sigma, tasks)
    return values * (mean_s / np.exp(sigma**2 / 2))


def skewed() -> np.ndarray:
    """The bench "skew": 1,600 sleeps with a mean of 20 ms, and two stragglers of 4 s at the end."""
    return np.concatenate((lognormal(1600, 0.020, 1.2), [4.0, 4.0]))


def guided(seconds: np.ndarray, ranks: int) -> float:
    """The makespan of guided self-scheduling: each free rank takes a W-th of what is left."""
    before = np.concatenate(([0.0], np.cumsum(seconds)))
    ready, start, end = [0.0] * ranks, 0, 0.0
    while start < len(seconds):
        now = heapq.heappop(ready)
        stop = start + max(1, (len(seconds) - start) // ranks)
        done = now + CLAIM_S + float(before[stop] - before[start])
        heapq.heappush(ready, done)
        start, end = stop, max(end, done)
    return end


def cases() -> dict[str, Callable[[], Outcome]]:
    skew, plain = skewed(), lognormal(20_000, 0.020, 1.2)
    many = lognormal(10_000_000, 0.020, 1.2)
    return {
        "skew, costs known, 2 ranks": lambda: simulate(skew, [1.0] * 2, costs=skew),
        "skew, costs known, 8 ranks": lambda: simulate(skew, [1.0] * 8, costs=skew),
        "skew, 2 ranks": lambda: simulate(skew, [1.0] * 2),
        "skew, 8 ranks": lambda: simulate(skew, [1.0] * 8),
        "20k, one of 8 four times slower": lambda: simulate(plain, [1.0] * 7 + [0.25]),
        "20k, the same, costs known": lambda: simulate(plain, [1.0] * 7 + [0.25], costs=plain),
        "20k, one of 8 begins late": lambda: simulate(plain, [1.0] * 8, starts=[0.0] * 7 + [20.0]),
        "1M of 5 us, 2 ranks": lambda: simulate(np.full(1_000_000, 5e-6), [1.0] * 2),
        "1M, 64 ranks": lambda: simulate(many[:1_000_000], [1.0] * 64),
        "10M, 1,024 ranks": lambda: simulate(many, [1.0] * 1024),
        "10M, 1,024 ranks, costs known": lambda: simulate(many, [1.0] * 1024, costs=many),
        "10M, 1,024 ranks, half of them half as fast": lambda: simulate(many, [1.0, 0.5] * 512),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="", metavar="TEXT", help="cases whose name holds this")
    only = parser.parse_args().only
    print(
        "| case | makespan, s | / lower bound | claims a task | calls a task |\n"
        "|---|---|---|---|---|"
    )
    for name, run in cases().items():
        if only in name:
            out = run()
            rates = f"{out.claims / out.tasks:.4f} | {out.calls / out.tasks:.3f}"
            print(f"| {name} | {out.makespan_s:.2f} | {out.ratio:.3f} | {rates} |", flush=True)


if __name__ == "__main__":
    main()
