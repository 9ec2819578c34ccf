"""How a run stands in words, and which command is worth typing now. Pure: of the facts alone.

`status` asks for both.
"""

from __future__ import annotations

from typing import Any

from gpuspool.orchestrator.report.naming import Name, explain_command
from gpuspool.orchestrator.text.progress import duration
from gpuspool.orchestrator.text.words import quoted_path
from gpuspool.spool.parents import LOST
from gpuspool.spool.states import Ending, Reason, RunState

# Why a run stopped that is not finished, by how its last parent ended.
_STOPPED: dict[str, str] = {
    Ending.DRAINED: "drained",
    Ending.STOPPED: "drained by order",
    Ending.INTERRUPTED: "interrupted",
    Ending.TOO_MANY_FAILED: "too many failed",
    Ending.LOAD: "the job does not load",
    Ending.GAVE_UP: "every rank gave up",
    Ending.STUCK: "stuck",
    Ending.BROKEN: "nothing ever completed",
    Ending.OUTAGE: "everything failed for long",
    LOST: "its host was lost",
    "failed": "an error",
    "dead": "killed",
}

# Those of them after which the same would happen again. Where tasks failed, the story of one tells
# why, since failures do not stand in logs; else what the workers said does.
_TASKS_TELL = (Ending.BROKEN, Ending.OUTAGE)
_LOGS_TELL = (Ending.LOAD, Ending.GAVE_UP, Ending.STUCK, *_TASKS_TELL)


def state_in_words(now: dict[str, Any]) -> str:
    """How a run stands, for people: "finished, 12 failed", "stopped (drained)"."""
    match RunState(now["state"]):
        case RunState.COMPLETE:
            return "complete"
        case RunState.FAILED:
            return f"finished, {now['tasks']['failed']:,} failed"
        case RunState.RUNNING:
            return "draining" if now["is_draining"] else "running"
        case RunState.SILENT:
            ages = [row["silent_s"] for row in (*now["parents"], *now["ranks"])]
            known = [age_s for age_s in ages if age_s is not None]
            return f"silent for {duration(min(known))}" if known else "silent"
        case RunState.STOPPED:
            if not now["ranks"] and not now["parents"]:
                return "not started"
            why = _STOPPED.get(now["ending"] or "")
            return f"stopped ({why})" if why else "stopped"


def next_command(now: dict[str, Any], spool: str, named: Name | None) -> str:
    """The command worth typing now, as a shell takes it.

    spool: as the user named it. named: a task whose story is worth reading, if there is one.
    """
    name = quoted_path(spool)
    match RunState(now["state"]):
        case RunState.COMPLETE:
            return f"gpuspool results {name}"
        case RunState.FAILED:
            return f"gpuspool failed {name}"
        case RunState.RUNNING:
            # Nobody ends a worker that hangs while no parent is there, and a wait would not end.
            if now["is_draining"] and now["left_alone"]:
                return f"gpuspool resume {name}"
            if now["is_draining"]:
                return f"gpuspool wait {name}"
            if _fails_to_load(now):
                return f"gpuspool logs {name} --last 20"
            if named is not None:
                return explain_command(spool, named)
            return f"gpuspool status --watch {name}"
        case RunState.SILENT:
            return f"gpuspool wait {name}"
        case RunState.STOPPED:
            if now["ending"] in _TASKS_TELL and named is not None:
                return explain_command(spool, named)
            if now["ending"] in _LOGS_TELL:
                return f"gpuspool logs {name} --last 20"
            if now["ending"] == Ending.TOO_MANY_FAILED:
                return f"gpuspool failed {name}"
            return f"gpuspool resume {name}"


def _fails_to_load(now: dict[str, Any]) -> bool:
    """Whether nothing completes, and every process so far could not load the job."""
    ranks = now["ranks"]
    if now["tasks"]["complete"] or not ranks:
        return False
    return all(Reason.LOAD in (row["ended"], row["restart_cause"]) for row in ranks)
