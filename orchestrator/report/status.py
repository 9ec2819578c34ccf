"""How a run stands, from files alone: no torch, no GPU, no orchestrator needed, nothing written."""

from __future__ import annotations

import time
from typing import Any

from gpuspool.orchestrator.text.printable import printable
from gpuspool.spool.holder import is_holder_alive, read_holder
from gpuspool.spool.layout import rank_of
from gpuspool.spool.ledger import run_state
from gpuspool.spool.liveness import FailureDetector
from gpuspool.spool.states import Life
from gpuspool.spool.view import View


def status(view: View, detector: FailureDetector | None = None) -> dict[str, Any]:
    """What `gpuspool status --json` prints. Who looks again and again keeps one detector, so that
    leases can run out.
    """
    detector = detector or FailureDetector(view)
    open_attempts = view.open_attempts
    lives = {attempt: detector.life(attempt) for attempt in open_attempts}
    is_live = is_holder_alive(view.layout) or any(life is not Life.DEAD for life in lives.values())
    ledger = view.ledger
    ranks = [_rank(view, attempt, lives.get(attempt)) for attempt in _newest(view)]
    complete, failed = ledger.n_complete, ledger.n_failed
    running = min(sum(row["task"] is not None for row in ranks), ledger.tasks - complete - failed)
    holder = read_holder(view.layout)
    return {
        "schema_version": 1,
        "spool": str(view.layout.root),
        "job": view.latest_job().spec,
        "state": run_state(ledger, is_live),
        "epoch": view.next_epoch() - 1,
        "orchestrator": None if holder is None else {"host": holder.host, "pid": holder.pid},
        "tasks": {
            "total": ledger.tasks,
            "complete": complete,
            "failed": failed,
            "running": running,
            "waiting": ledger.tasks - complete - failed - running,
        },
        "ran_twice": ledger.duplicates,
        "damage": [str(damage) for damage in view.damage],
        "ranks": ranks,
    }


def _newest(view: View) -> list[str]:
    """Each rank's last attempt."""
    newest = {rank_of(attempt): attempt for attempt in view.attempts}
    return [newest[rank] for rank in sorted(newest)]


def _rank(view: View, attempt: str, life: str | None) -> dict[str, Any]:
    beat, who, intent = view.heartbeat(attempt), view.identity(attempt), view.intents.get(attempt)
    closing = view.closed.get(attempt)
    if closing is not None:
        state: str = closing.state
    elif life is Life.DEAD:
        state = "lost"
    else:
        state = beat.state if beat is not None else "starting"
    is_running = life is not None and life is not Life.DEAD and beat is not None
    return {
        "rank": rank_of(attempt),
        "attempt": attempt,
        "state": state,
        "device": intent.device if intent is not None else None,
        "host": who.host if who is not None else None,
        "pid": who.pid if who is not None else None,
        "task": beat.task if is_running and beat is not None else None,
        "beat_age_s": round(time.time() - beat.at, 1) if is_running and beat is not None else None,
        "done": view.finished_by.get(attempt, 0) - view.failed_by.get(attempt, 0),
        "failed": view.failed_by.get(attempt, 0),
        "is_proved_alive": life is Life.ALIVE,
    }


def status_text(now: dict[str, Any]) -> str:
    """The same for people."""
    tasks = now["tasks"]
    lines = [
        f"{now['job']}  {now['state']}  {tasks['complete']} complete, {tasks['failed']} failed, "
        f"{tasks['running']} running, {tasks['waiting']} waiting of {tasks['total']}",
        f"{'rank':>4}  {'state':9} {'device':24} {'host':12} {'pid':>7} {'task':>8} {'done':>8} {'failed':>6}  beat",
    ]
    for row in now["ranks"]:
        beat = "" if row["beat_age_s"] is None else f"{row['beat_age_s']:.0f} s ago"
        cells = {name: "" if row[name] is None else row[name] for name in row}
        lines.append(
            "{rank:>4}  {state:9} {device:24.24} {host:12.12} {pid:>7} {task:>8} {done:>8} {failed:>6}  ".format(
                **cells
            )
            + beat
        )
    lines += [f"damaged: {text}" for text in now["damage"]]
    return printable("\n".join(lines))
