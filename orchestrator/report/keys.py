"""The keys of tasks, read from the manifests without the payloads beside them."""

from __future__ import annotations

from gpuspool.spool.layout import is_added, is_planned
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


def _take(manifest: Manifest, keys: list[str | None]) -> None:
    n_tasks = len(keys)
    for line in manifest.records(TaskKey):
        if 0 <= line.task < n_tasks:
            keys[line.task] = line.key


def tasks_of(view: View, key: str) -> set[int]:
    """The tasks that have this key: one, or none where the run has no such task."""
    found = set()
    for manifest in view.manifests.values():
        for line in manifest.records(TaskKey):
            if line.key == key:
                found.add(line.task)
    return found
