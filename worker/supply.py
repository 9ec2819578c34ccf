"""Where the next tasks come from: the rank's own manifest first, then whichever manifest has the most left.

Claims are sized by `claim_size`: small enough that the tail of a run is shared, large enough that claims are rare.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

from spool.claims import Chain, claim_size
from spool.layout import Layout, is_manifest, rank_name
from spool.manifest import Manifest, Report, load_manifest
from spool.publish import listdir
from spool.records import TaskLine


def weight(task: TaskLine) -> float:
    """What a task counts for in rates: its cost, and 1 for one that is said to cost nothing (an empty file)."""
    return task.cost or 1.0


class Supply:
    """Claims tasks for one attempt; without `steals` only those planned for its rank."""

    def __init__(self, layout: Layout, rank: int, attempt: str, report: Report, steals: bool = True) -> None:
        self.layout = layout
        self.attempt = attempt
        self._report = report
        self._steals = steals
        self._own = rank_name(rank)
        self._manifests: dict[str, Manifest] = {}
        self._chains: dict[str, Chain] = {}
        self._add(self._own)

    def take(self, batch: int, seconds_per_cost: float | None) -> list[TaskLine] | None:
        """The tasks of one new claim (perhaps none that can be read); None where nothing is unclaimed anywhere."""
        for name in self._candidates():
            chain = self._chains[name].advance()
            while chain.left:
                claim = chain.take(self.attempt, chain.next + self._size(name, batch, seconds_per_cost))
                if claim is not None:
                    return list(self._manifests[name].tasks(claim.start, claim.stop))
        return None

    def _candidates(self) -> Iterator[str]:
        """Own first; then the fuller of two at random; then, before giving up, every manifest there is."""
        if self._own in self._chains and self._chains[self._own].left:
            yield self._own
        if not self._steals:
            return
        self._discover()
        others = [name for name, chain in self._chains.items() if chain.left]
        pair = random.sample(others, min(2, len(others)))
        yield from sorted(pair, key=self._left, reverse=True)
        yield from sorted(others, key=self._left, reverse=True)

    def _left(self, name: str) -> int:
        return self._chains[name].advance().left

    def _size(self, name: str, batch: int, seconds_per_cost: float | None) -> int:
        chain = self._chains[name]
        first = self._manifests[name].task(chain.next)
        cost = 1.0 if first is None else weight(first)
        return claim_size(chain.left, batch, None if seconds_per_cost is None else seconds_per_cost * cost)

    def _discover(self) -> None:
        for filename in listdir(self.layout.manifests):
            name = filename.removesuffix(".jsonl")
            if name not in self._manifests and name != filename and is_manifest(name):
                self._add(name)

    def _add(self, name: str) -> None:
        manifest = load_manifest(self.layout, name, self._report)
        if manifest is not None:
            self._manifests[name] = manifest
            self._chains[name] = Chain(self.layout, name, len(manifest))
