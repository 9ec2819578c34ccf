"""How a run stands, from files alone.

It needs no torch, no GPU and no orchestrator, and writes nothing. It reads the manifests, the
journals, and a heartbeat for each rank, but no claims: a view without them will do, and the files
opened grow with the ranks and not with the tasks.

The command line (`status`, `wait`) and the Python API call this.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

from gpuspool.orchestrator.text.printable import one_line
from gpuspool.orchestrator.text.words import count_of
from gpuspool.spool.holder import is_holder_alive, read_holder
from gpuspool.spool.layout import rank_of
from gpuspool.spool.ledger import Ledger, run_state
from gpuspool.spool.liveness import FailureDetector
from gpuspool.spool.records import Closing, Heartbeat
from gpuspool.spool.states import Life
from gpuspool.spool.view import View

# Of the object that `gpuspool status --json` prints. A field that is added leaves it as it is.
SCHEMA_VERSION = 1

# The tasks of a run in the first line of `status_text`.
_COUNTS = "{complete} complete, {failed} failed, {running} running, {waiting} waiting of {total}"

# The table of `status_text`: a line for the names of its columns, and one for each rank.
_NAMES = (
    f"{'rank':>4}  {'state':9} {'device':24} {'host':12} {'pid':>7} {'task':>8} {'done':>8} "
    f"{'failed':>6}  beat"
)
_ROW = (
    "{rank:>4}  {state:9} {device:24.24} {host:12.12} {pid:>7} {task:>8} {done:>8} "
    "{failed:>6}  {beat}"
)


def status(view: View, detector: FailureDetector | None = None) -> dict[str, Any]:
    """What `gpuspool status --json` prints, of a view that was just refreshed.

    detector: keep one if you look again and again, since a lease takes time to run out and only
    the looks of the same detector count. Raises OSError.
    """
    if detector is None:
        detector = FailureDetector(view)
    lives = {attempt: detector.life(attempt) for attempt in view.open_attempts}
    newest = _newest_of_each_rank(view)
    doubtful = _doubtful(view)
    ranks = [_rank(view, attempt, lives.get(attempt)) for attempt in newest]
    return {
        "schema_version": SCHEMA_VERSION,
        "spool": str(view.layout.root),
        "job": view.latest_job().spec,
        "state": run_state(view.ledger, _is_live(view, lives.values())),
        "epoch": view.next_epoch() - 1,
        "orchestrator": _orchestrator(view),
        "tasks": _tasks(view.ledger, ranks),
        "doubtful": len(doubtful),
        "excused": sum(view.held[key][-1].is_excused for key in doubtful),
        "ran_twice": view.ledger.duplicates,
        "damage": [str(damage) for damage in view.damage],
        "ranks": ranks,
    }


def _is_live(view: View, lives: Iterable[Life]) -> bool:
    """Whether the orchestrator, or any worker that is open, may still be at work.

    So it looks too as long as the journal of a closed worker was not seen whole.
    """
    if is_holder_alive(view.layout) or view.unsettled:
        return True
    return any(life is not Life.DEAD for life in lives)


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


def _doubtful(view: View) -> list[tuple[int, int]]:
    """The (task, round) of those that failed somewhere in their newest round, without a verdict."""
    ledger = view.ledger
    return [
        (task, round_)
        for task, round_ in view.held
        if round_ == ledger.round_of(task) and not ledger.is_finished_in(task, round_)
    ]


def _orchestrator(view: View) -> dict[str, Any] | None:
    """Who announced itself last as the orchestrator of this spool, alive or not."""
    holder = read_holder(view.layout)
    if holder is None:
        return None
    return {"host": holder.host, "pid": holder.pid}


def _newest_of_each_rank(view: View) -> list[str]:
    """Each rank's last attempt, in the order of ranks."""
    newest = {rank_of(attempt): attempt for attempt in view.attempts}
    return [newest[rank] for rank in sorted(newest)]


def _rank(view: View, attempt: str, life: Life | None) -> dict[str, Any]:
    """One row. `life`: None for an attempt that is closed."""
    heartbeat = view.heartbeat(attempt)
    identity = view.identity(attempt)
    intent = view.intents.get(attempt)
    n_failed = view.failed_by.get(attempt, 0)
    row = {
        "rank": rank_of(attempt),
        "attempt": attempt,
        "state": _state(view.closed.get(attempt), life, heartbeat),
        "device": None,
        "host": None,
        "pid": None,
        "task": None,
        "beat_age_s": None,
        "done": view.finished_by.get(attempt, 0) - n_failed,
        "failed": n_failed,
        "is_proved_alive": life is Life.ALIVE,
    }
    if intent is not None:
        row["device"] = intent.device
    if identity is not None:
        row["host"] = identity.host
        row["pid"] = identity.pid
    # What a heartbeat says holds only as long as its writer may live.
    if heartbeat is not None and life in (Life.ALIVE, Life.ELSEWHERE):
        row["task"] = heartbeat.task
        row["beat_age_s"] = round(time.time() - heartbeat.at, 1)
    return row


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
    if now["doubtful"]:
        tasks = count_of(now["doubtful"], "task has", "tasks have")
        text = f"{tasks} failed somewhere, with no verdict yet"
        if now["excused"]:
            text += f"; {now['excused']} of them for a file system in trouble"
        lines.append(text)
    lines.append(_NAMES)
    lines += [_row_text(row) for row in now["ranks"]]
    lines += [f"damaged: {text}" for text in now["damage"]]
    return "\n".join(map(one_line, lines))


def _row_text(row: dict[str, Any]) -> str:
    cells = {name: "" if value is None else value for name, value in row.items()}
    age_s = row["beat_age_s"]
    beat = ""
    if age_s is not None:
        beat = f"{age_s:.0f} s ago"
    return _ROW.format(beat=beat, **cells)
