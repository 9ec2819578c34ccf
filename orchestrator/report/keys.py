"""The keys of tasks, read from the manifests without the payloads beside them."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

from gpuspool.spool.layout import is_added, is_planned, rank_name
from gpuspool.spool.manifest import Manifest
from gpuspool.spool.records import Record
from gpuspool.spool.view import View


class TaskKey(Record, frozen=True, kw_only=True):
    """What names a task in a manifest line; the rest is skipped, which costs less than decoding."""

    task: int
    key: str


def read_keys(view: View) -> list[str | None]:
    """The key of each task of a run, by its index; None where no readable line has it.

    Whatever manifest describes a task gives it the same key. So those that were planned or added
    are enough, and the others are read only if a line of these cannot be.
    """
    keys: list[str | None] = [None] * view.ledger.tasks
    first = {name for name in view.manifests if is_planned(name) or is_added(name)}
    for name in sorted(first):
        _take(view.manifests[name], keys)
    if None in keys:
        for name in sorted(view.manifests.keys() - first):
            _take(view.manifests[name], keys)
    return keys


def keys_at_hand(view: View, at_hand: Mapping[int, int]) -> dict[int, str]:
    """The keys of the tasks that ranks have in hand, as far as a readable line has them.

    at_hand: task -> rank. Most tasks stand in the manifest of their rank, where they are found
    without decoding anything. Only for the others all manifests are walked through.
    """
    found: dict[int, str] = {}
    for task, rank in at_hand.items():
        own = view.manifests.get(rank_name(rank))
        line = None if own is None else own.find(task, TaskKey)
        if line is not None:
            found[task] = line.key
    missing = at_hand.keys() - found.keys()
    every = itertools.chain.from_iterable(
        manifest.records(TaskKey) for manifest in view.manifests.values()
    )
    while missing and (line := next(every, None)) is not None:
        if line.task in missing:
            found[line.task] = line.key
            missing.remove(line.task)
    return found


def _take(manifest: Manifest, keys: list[str | None]) -> None:
    n_tasks = len(keys)
    for line in manifest.records(TaskKey):
        if 0 <= line.task < n_tasks:
            keys[line.task] = line.key
