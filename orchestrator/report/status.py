"""How a run stands, from files alone.

It needs no torch, no GPU and no orchestrator, and writes nothing. It reads the manifests, the
journals, and a heartbeat for each rank, but no claims: a view without them will do, and the files
opened grow with the ranks and not with the tasks.

The command line (`status`, `wait`) and the Python API call this.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

from gpuspool.orchestrator.report.keys import keys_at_hand
from gpuspool.orchestrator.report.parents import (
    LIVE,
    SILENT,
    Beats,
    is_at_work,
    parent_rows,
    parents_text,
)
from gpuspool.orchestrator.text.printable import one_line
from gpuspool.orchestrator.text.words import count_of
from gpuspool.spool.layout import rank_of
from gpuspool.spool.ledger import Ledger, run_state
from gpuspool.spool.liveness import FailureDetector
from gpuspool.spool.records import Closing, Heartbeat
from gpuspool.spool.states import Life
from gpuspool.spool.view import View

# Of the object that `gpuspool status --json` prints. A field that is added leaves it as it is.
SCHEMA_VERSION = 2

# The tasks of a run in the first line of `status_text`.
_COUNTS = "{complete} complete, {failed} failed, {running} running, {waiting} waiting of {total}"

# The table of `status_text`: a line for the names of its columns, and one for each rank.
_NAMES = (
    f"{'rank':>4}  {'state':9} {'device':24} {'host':12} {'pid':>7} {'done':>8} "
    f"{'failed':>6}  {'beat':10} task"
)
_ROW = (
    "{rank:>4}  {state:9} {device:24.24} {host:12.12} {pid:>7} {done:>8} "
    "{failed:>6}  {beat:10} {key}"
)


def status(
    view: View, detector: FailureDetector | None = None, *, names_tasks: bool = True
) -> dict[str, Any]:
    """What `gpuspool status --json` prints, of a view that was just refreshed.

    detector: keep one if you look again and again, since a lease takes time to run out and only
    the looks of the same detector count. names_tasks: the rows have the keys of the tasks in hand,
    for which manifests are searched. Raises OSError.
    """
    if detector is None:
        detector = FailureDetector(view)
    beats = Beats(view)
    parents = parent_rows(detector, beats)
    lives = {attempt: detector.life(attempt) for attempt in view.open_attempts}
    newest = _newest_of_each_rank(view)
    held = doubtful(view)
    ranks = [_rank(view, attempt, lives.get(attempt), beats) for attempt in newest]
    _count_by_rank(view, ranks)
    if names_tasks:
        _name_tasks(view, ranks)
    n_left_alone = 0
    if not any(map(is_at_work, parents)):
        # The parent of the seed API's attempts is in their intents alone.
        alive = [attempt for attempt, life in lives.items() if life is Life.ALIVE]
        n_left_alone = sum(detector.parent_life(attempt) is Life.DEAD for attempt in alive)
    is_running = bool(view.unsettled) or any(row["state"] == LIVE for row in parents)
    is_running |= any(row["is_proved_alive"] for row in ranks)
    is_running |= any(beats.is_fresh(name) for name, life in lives.items() if life is not Life.DEAD)
    is_live = is_running or any(map(is_at_work, parents))
    is_live |= any(life is not Life.DEAD for life in lives.values())
    return {
        "schema_version": SCHEMA_VERSION,
        "spool": str(view.layout.root),
        "job": view.latest_job().spec,
        "state": run_state(view.ledger, is_live, not is_running),
        "epoch": view.next_epoch() - 1,
        "parents": parents,
        "left_alone": n_left_alone,
        "tasks": _tasks(view.ledger, ranks),
        "doubtful": len(held),
        "excused": sum(view.held[key][-1].is_excused for key in held),
        "ran_twice": view.ledger.duplicates,
        "damage": [str(damage) for damage in view.damage],
        "ranks": ranks,
    }


def _tasks(ledger: Ledger, ranks: list[dict[str, Any]]) -> dict[str, int]:
    """How many tasks there are of each kind. `ranks` are the rows of the table."""
    n_at_work = sum(row["task"] is not None for row in ranks)
    # A worker may have finished the task that its last heartbeat names. No more run than are left.
    unfinished = ledger.tasks - ledger.n_finished
    running = min(n_at_work, unfinished)
    return {
        "total": ledger.tasks,
        "complete": ledger.n_complete,
        "failed": ledger.n_failed,
        "running": running,
        "waiting": unfinished - running,
    }


def doubtful(view: View) -> list[tuple[int, int]]:
    """The (task, round) of those that failed somewhere in their newest round, without a verdict."""
    ledger = view.ledger
    return [
        (task, round_)
        for task, round_ in view.held
        if round_ == ledger.round_of(task) and not ledger.is_finished_in(task, round_)
    ]


def _newest_of_each_rank(view: View) -> list[str]:
    """Each rank's last attempt, in the order of ranks."""
    newest = {rank_of(attempt): attempt for attempt in view.attempts}
    return [newest[rank] for rank in sorted(newest)]


def _rank(view: View, attempt: str, life: Life | None, beats: Beats) -> dict[str, Any]:
    """One row. `life`: None for an attempt that is closed."""
    heartbeat = view.heartbeat(attempt)
    identity = view.identity(attempt)
    intent = view.intents.get(attempt)
    row: dict[str, Any] = {
        "rank": rank_of(attempt),
        "attempt": attempt,
        "state": _state(view.closed.get(attempt), life, heartbeat),
        "device": None,
        "host": None,
        "pid": None,
        "task": None,
        "key": None,
        "beat_age_s": None,
        "done": 0,
        "failed": 0,
        "is_proved_alive": life is Life.ALIVE,
    }
    if intent is not None:
        row["device"] = intent.device
    if life is Life.ELSEWHERE and not beats.is_fresh(attempt):
        row["state"] = SILENT
    if identity is not None:
        row["host"] = identity.host
        row["pid"] = identity.pid
    # What a heartbeat says holds only as long as its writer may live.
    if heartbeat is not None and life in (Life.ALIVE, Life.ELSEWHERE):
        row["task"] = heartbeat.task
        row["beat_age_s"] = round(time.time() - heartbeat.at, 1)
    return row


def _count_by_rank(view: View, ranks: list[dict[str, Any]]) -> None:
    """Count in each row what all attempts of its rank completed, and which failed tasks failed
    there last.
    """
    done: Counter[int] = Counter()
    for attempt in view.attempts:
        done[rank_of(attempt)] += view.completed(attempt)
    failed = Counter(_ranks_of_failed(view))
    for row in ranks:
        row["done"] = done[row["rank"]]
        row["failed"] = failed[row["rank"]]


def _ranks_of_failed(view: View) -> Iterator[int]:
    """For each failed task, as far as that is known, the rank on which it failed last."""
    ledger = view.ledger
    rank_at = {task: rank_of(line.attempt) for task, line in view.failed_lines.items()}
    for closing in view.closed.values():
        for failure in closing.failures:
            if failure.round == ledger.round_of(failure.task):
                rank_at[failure.task] = rank_of(closing.attempt)
    for ruling in view.rulings.values():
        for failure in ruling.failures:
            rank = failure.error.rank
            if rank is not None and failure.round == ledger.round_of(failure.task):
                rank_at[failure.task] = rank
    return (rank_at[task] for task in ledger.failed() if task in rank_at)


def _name_tasks(view: View, ranks: list[dict[str, Any]]) -> None:
    """Put into each row the key of the task in hand."""
    at_hand = {row["task"]: row["rank"] for row in ranks if row["task"] is not None}
    keys = keys_at_hand(view, at_hand)
    for row in ranks:
        row["key"] = keys.get(row["task"])


def _state(closing: Closing | None, life: Life | None, heartbeat: Heartbeat | None) -> str:
    """How an attempt ended, that it died, or what it is at: the name of an `AttemptState` or a
    `Phase`, "lost", or "starting".
    """
    if closing is not None:
        return closing.state
    if life is Life.DEAD:
        return "lost"
    if heartbeat is None:
        return "starting"
    return heartbeat.state


def status_text(now: dict[str, Any]) -> str:
    """What `gpuspool status` prints for people, of what `status` returned."""
    counts = _COUNTS.format(**now["tasks"])
    lines = [f"{now['job']}  {now['state']}  {counts}"]
    lines += parents_text(now["parents"])
    if now["left_alone"]:
        lines.append(_left_alone_text(now))
    if now["doubtful"]:
        text = doubtful_text(now["doubtful"])
        if now["excused"]:
            text += f"; {now['excused']} of them for a file system in trouble"
        lines.append(text)
    lines.append(_NAMES)
    lines += [_row_text(row) for row in now["ranks"]]
    lines += [f"damaged: {text}" for text in now["damage"]]
    return "\n".join(map(one_line, lines))


def doubtful_text(count: int) -> str:
    """That so many tasks failed, and may yet complete."""
    tasks = count_of(count, "task has", "tasks have")
    return f"{tasks} failed somewhere, with no verdict yet"


def _left_alone_text(now: dict[str, Any]) -> str:
    """That workers go on without a parent, and what can be done about it."""
    workers = count_of(now["left_alone"], "worker goes", "workers go")
    return (
        f"{workers} on although what started them is gone: `gpuspool drain {now['spool']}` stops "
        "them, and the run's own command takes over"
    )


def _row_text(row: dict[str, Any]) -> str:
    cells = {name: "" if value is None else value for name, value in row.items()}
    if row["key"] is None and row["task"] is not None:
        cells["key"] = f"number {row['task']}"
    age_s = row["beat_age_s"]
    beat = ""
    if age_s is not None:
        beat = f"{age_s:.0f} s ago"
    return _ROW.format(beat=beat, **cells)
