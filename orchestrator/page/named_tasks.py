"""The tasks that a page names: the slowest calls, the failed tasks, and the keys of all others.

How many are named does not depend on how many there are, but for the keys, where each call is
drawn; and there are so many of these at most, since each needs a call.
"""

from __future__ import annotations

import heapq
import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from gpuspool.orchestrator.page.reading import Reading
from gpuspool.orchestrator.page.shown import MESSAGE_LETTERS, end_of, told
from gpuspool.orchestrator.report.failures import each_failure
from gpuspool.orchestrator.report.keys import SEARCHED, keys_of, read_keys
from gpuspool.orchestrator.report.naming import Namer, explain_command, logs_command, redo_command
from gpuspool.orchestrator.text.groups import How, how_of
from gpuspool.orchestrator.text.printable import printable
from gpuspool.orchestrator.text.words import quoted_path
from gpuspool.spool.layout import rank_of
from gpuspool.spool.records import Error, Record
from gpuspool.spool.view import View

# So many of the slowest calls are named.
SLOWEST = 20

# So many failed tasks are named, with their tracebacks; `gpuspool failed --json` has all.
MOST_FAILED = 500

# So many kinds of failures are named. Those who fix the first ones will look again.
MOST_KINDS = 50


class TaskCost(Record, frozen=True, kw_only=True):
    """What names a task and weighs it, of a manifest line; the rest is skipped, not decoded."""

    task: int
    key: str
    cost: float = 0.0


def keys_of_calls(reading: Reading) -> list[str | None]:
    """The key of each task that has a call, in the order of their numbers."""
    tasks = reading.tasks_called()
    if len(tasks) == reading.view.ledger.tasks:
        return [None if key is None else told(key) for key in read_keys(reading.view)]
    keys = keys_of(reading.view, tasks)
    return [told(keys[task]) if task in keys else None for task in sorted(tasks)]


def slowest_calls(reading: Reading, hosts: Sequence[str]) -> list[dict[str, Any]]:
    """The slowest of all calls. hosts: of each attempt, as it is shown."""
    numbered = enumerate(attempt.calls for attempt in reading.attempts)
    slowest = heapq.nlargest(
        SLOWEST,
        itertools.chain.from_iterable(
            zip(calls.durations, itertools.repeat(number), itertools.count())
            for number, calls in numbered
        ),
    )
    rows: list[dict[str, Any]] = []
    for seconds, number, at in slowest:
        attempt = reading.attempts[number]
        calls = attempt.calls
        rows.append(
            {
                "task": calls.tasks[at],
                "seconds": seconds,
                "outcome": calls.outcomes[at],
                "rank": rank_of(attempt.name),
                "attempt": attempt.name,
                "host": hosts[number],
                "began_at": calls.begins[at],
            }
        )
    return rows


def failures(reading: Reading) -> dict[str, Any]:
    """Each kind of failure with how often it happened; the first failed tasks, with all that is
    known of them.
    """
    view, named = reading.view, quoted_path(reading.named)
    counts: Counter[How] = Counter()
    first: dict[How, Error] = {}

    def counted() -> Iterator[tuple[int, Error, int | None]]:
        for task, error, rank in each_failure(view):
            how = how_of(error)
            if how in first or len(first) < MOST_KINDS:
                counts[how] += 1
                first.setdefault(how, error)
            yield task, error, rank

    told_first = heapq.nsmallest(MOST_FAILED, counted(), key=lambda failure: failure[0])
    kinds = [
        {
            "count": count,
            "kind": str(first[how].kind),
            "type": told(first[how].type),
            "where": told(first[how].where),
            "message": told(first[how].message),
        }
        for how, count in counts.most_common()
    ]
    return {
        "count": view.ledger.n_failed,
        "kinds": kinds,
        "n_other": view.ledger.n_failed - sum(counts.values()),
        "named": [_failure(view, task, error, rank) for task, error, rank in told_first],
        "retry": f"gpuspool retry {named}",
        "all": f"gpuspool failed {named} --json",
    }


def _failure(view: View, task: int, error: Error, rank: int | None) -> dict[str, Any]:
    line = view.failed_lines.get(task)
    attempts = error.attempts or ([] if line is None else [line.attempt])
    told_by = error.told_attempt or (attempts[-1] if attempts else "")
    return {
        "task": task,
        "kind": str(error.kind),
        "type": told(error.type),
        "where": told(error.where),
        "message": printable(error.message)[:MESSAGE_LETTERS],
        "traceback": end_of(printable(error.traceback or error.log_tail)),
        "is_log": not error.traceback and bool(error.log_tail),
        "tries": error.tries,
        "rank": rank,
        "host": told(error.host or view.host_of(told_by)),
        "device": told(error.device),
        "attempts": [told(name) for name in attempts],
    }


def name_tasks(reading: Reading, rows: Sequence[dict[str, Any]]) -> None:
    """Put into rows of tasks how each is called, what it was said to cost, and what to type."""
    known = _known(reading.view, {row["task"] for row in rows})
    namer = Namer(reading.view)
    for row in rows:
        line = known.get(row["task"])
        key = None if line is None else line.key
        row["key"] = None if key is None else told(key)
        row["cost"] = None if line is None else line.cost
        name = namer.name_of(row["task"], key)
        row["explain"] = explain_command(reading.named, name)
        row["redo"] = redo_command(reading.named, key)
        row["logs"] = logs_command(reading.named, name)


def _known(view: View, tasks: set[int]) -> dict[int, TaskCost]:
    """Key and cost of some tasks, as far as a readable line has them."""
    found: dict[int, TaskCost] = {}
    if len(tasks) <= SEARCHED:
        for task in tasks:
            lines = (manifest.find(task, TaskCost) for manifest in view.manifests.values())
            line = next(filter(None, lines), None)
            if line is not None:
                found[task] = line
        return found
    missing = set(tasks)
    for manifest in view.manifests.values():
        if not missing:
            break
        for line in manifest.records(TaskCost):
            if line.task in missing:
                found[line.task] = line
                missing.remove(line.task)
    return found
