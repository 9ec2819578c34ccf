"""Where the next tasks come from: the rank's own manifest first, then whichever manifest has the
most left.

Claims are sized by `claim_size`: small enough that the tail of a run is shared, large enough that
claims are rare.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping

from gpuspool.spool.claims import ChainEnd, claim_size
from gpuspool.spool.layout import Layout, is_manifest, rank_name
from gpuspool.spool.manifest import Manifest, OnDamage, load_manifest
from gpuspool.spool.publish import listdir
from gpuspool.spool.records import TaskLine

# left of the own manifest, and others are helped that have more: a long task may be last in each
TAIL_BATCHES = 4
AHEAD_BATCHES = 2  # left for each who draws from a manifest, or nothing of it is claimed ahead


def weight(task: TaskLine) -> float:
    """What a task counts for in rates: its cost, and 1 for one that is said to cost nothing (an
    empty file).
    """
    return task.cost or 1.0


class Rate:
    """Seconds for each unit of cost on this rank. It forgets by halves, so that claims fit what the
    rank does now.
    """

    def __init__(self) -> None:
        self._seconds = self._cost = 0.0

    def add(self, seconds: float, cost: float) -> None:
        self._seconds += seconds
        self._cost += cost

    def learn(self) -> float | None:
        """The rate for the next claim; None while nothing is known."""
        if self._cost <= 0:
            return None
        rate = self._seconds / self._cost
        self._seconds, self._cost = self._seconds / 2, self._cost / 2
        return rate


class Supply:
    """Claims tasks for one attempt; without `steals` only those planned for its rank."""

    def __init__(
        self,
        layout: Layout,
        rank: int,
        attempt: str,
        report: OnDamage,
        steals: bool = True,
        planned: Mapping[str, int] | None = None,
    ) -> None:
        """`planned`: the checksums of manifests that were."""
        self.layout = layout
        self._planned = planned or {}
        self.attempt = attempt
        self._report = report
        self._steals = steals
        self._own = rank_name(rank)
        self._manifests: dict[str, Manifest] = {}
        self._chains: dict[str, ChainEnd] = {}
        self._add(self._own)

    def take(
        self, batch: int, seconds_per_cost: float | None, is_ahead: bool = False
    ) -> Iterator[TaskLine] | None:
        """The tasks of one new claim (perhaps none that can be read); None where nothing is
        unclaimed anywhere.

        `is_ahead`: there is work in hand still. Then only where so much is left that nobody will
        miss it.
        """
        for name in self._candidates(batch):
            chain = self._look(name)
            while chain.unclaimed:
                claimers = chain.claimers(self.attempt)
                if is_ahead and chain.unclaimed <= AHEAD_BATCHES * batch * claimers:
                    return None
                seconds: tuple[float, float] | None = None
                if seconds_per_cost is not None:
                    first, last = self._cost(name, chain.next), self._cost(name, chain.end - 1)
                    seconds = (seconds_per_cost * first, seconds_per_cost * last)
                claim = chain.take(
                    self.attempt, chain.next + claim_size(chain.unclaimed, batch, seconds, claimers)
                )
                if claim is not None:
                    return self._manifests[name].tasks(claim.start, claim.stop)
        return None

    def _candidates(self, batch: int) -> Iterator[str]:
        """Own first. Near its end the fullest of it and two others at random, so that all come to
        their ends together; then, before giving up, every manifest there is.
        """
        own = self._left(self._own)
        if own > TAIL_BATCHES * batch or (own and not self._steals):
            yield self._own
        if not self._steals:
            return
        self._discover()
        left = [name for name in self._chains if self._left(name)]
        others = [name for name in left if name != self._own]
        near = [name for name in left if name == self._own] + random.sample(
            others, min(2, len(others))
        )
        yield from sorted(near, key=self._cost_left, reverse=True)
        yield from sorted(left, key=self._cost_left, reverse=True)

    def _left(self, name: str) -> int:
        """As far as was read; nothing where there is no such manifest yet."""
        return self._chains[name].unclaimed if name in self._chains else 0

    def _cost_left(self, name: str) -> float:
        """By its next task, the longest of those that are left: rather too much than too little."""
        chain = self._look(name)
        return chain.unclaimed * self._cost(name, chain.next) if chain.unclaimed else 0.0

    def _look(self, name: str) -> ChainEnd:
        return self._chains[name].look()

    def look_closely(self) -> None:
        """Somebody found places that nobody claimed: from now on read every claim, from the first
        on.
        """
        for chain in self._chains.values():
            chain.look_closely()

    def _cost(self, name: str, place: int) -> float:
        """1 for what cannot be read."""
        task = self._manifests[name].task(place)
        return 1.0 if task is None else weight(task)

    def _discover(self) -> None:
        for filename in listdir(self.layout.manifests):
            name = filename.removesuffix(".jsonl")
            if name not in self._manifests and name != filename and is_manifest(name):
                self._add(name)

    def _add(self, name: str) -> None:
        manifest = load_manifest(self.layout, name, self._report, self._planned.get(name))
        if manifest is not None:
            self._manifests[name] = manifest
            self._chains[name] = ChainEnd(self.layout, name, len(manifest))
