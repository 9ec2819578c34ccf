"""The keys of tasks, read from the manifests without the payloads beside them; and the payloads of
few.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Mapping

import msgspec

from gpuspool.spool.layout import is_original, rank_name
from gpuspool.spool.manifest import Manifest
from gpuspool.spool.records import Record
from gpuspool.spool.view import View

# So many tasks are searched for one by one in the bytes of all manifests; for more of them every
# line is decoded once instead. A search passes some 5 GB a second and decoding some 200 MB.
SEARCHED = 16


class TaskKey(Record, frozen=True, kw_only=True):
    """What names a task in a manifest line; the rest is skipped, which costs less than decoding."""

    task: int
    key: str


class TaskInput(Record, frozen=True, kw_only=True):
    """What a person knows a task by: its key, and what it was given, as JSON."""

    task: int
    key: str
    payload: msgspec.Raw = msgspec.Raw(b"null")


def read_keys(view: View) -> list[str | None]:
    """The key of each task of a run, by its index; None where no readable line has it.

    Whatever manifest describes a task gives it the same key. So those that were planned or added
    are enough, and the others are read only if a line of these cannot be.
    """
    keys: list[str | None] = [None] * view.ledger.tasks
    first = set(filter(is_original, view.manifests))
    for name in sorted(first):
        _take(view.manifests[name], keys)
    if None in keys:
        for name in sorted(view.manifests.keys() - first):
            _take(view.manifests[name], keys)
    return keys


def keys_of(view: View, tasks: Collection[int]) -> dict[int, str]:
    """The keys of these tasks, as far as a readable line has them; no other is held."""
    found: dict[int, str] = {}
    first_planned = sorted(view.manifests, key=lambda name: not is_original(name))
    for name in first_planned:
        if len(found) == len(tasks):
            break
        for line in view.manifests[name].records(TaskKey):
            if line.task in tasks:
                found[line.task] = line.key
    return found


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


def inputs_of(view: View, tasks: Mapping[int, int | None]) -> dict[int, TaskInput]:
    """Key and payload of some tasks, as far as a readable line has them.

    tasks: task -> the rank on which it was, None where that is not known: most stand in the
    manifest of that rank, where they are found without decoding anything.
    """
    found: dict[int, TaskInput] = {}
    if len(tasks) <= SEARCHED:
        for task, rank in tasks.items():
            line = _find(view, task, rank)
            if line is not None:
                found[task] = line
        return found
    missing = set(tasks)
    first_planned = sorted(view.manifests, key=lambda name: not is_original(name))
    for name in first_planned:
        if not missing:
            break
        for line in view.manifests[name].records(TaskInput):
            if line.task in missing:
                # The copy lets go of the lines that were decoded with it.
                found[line.task] = msgspec.structs.replace(line, payload=line.payload.copy())
                missing.remove(line.task)
    return found


def _find(view: View, task: int, rank: int | None) -> TaskInput | None:
    names = list(view.manifests)
    if rank is not None and rank_name(rank) in view.manifests:
        names.insert(0, rank_name(rank))
    for name in names:
        line = view.manifests[name].find(task, TaskInput)
        if line is not None:
            return line
    return None


def _take(manifest: Manifest, keys: list[str | None]) -> None:
    n_tasks = len(keys)
    for line in manifest.records(TaskKey):
        if 0 <= line.task < n_tasks:
            keys[line.task] = line.key
