"""How a run stands, from files alone.

It needs no torch, no GPU and no orchestrator, and writes nothing. It reads the manifests, the
journals, and a heartbeat for each rank, but no claims: a view without them will do, and the files
opened grow with the ranks and not with the tasks.

`status` gives the facts, of which `table` draws what people see. The command line (`status`,
`wait`, `list`) and the Python API call it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from typing import Any

from gpuspool.orchestrator.report.advice import next_command, state_in_words
from gpuspool.orchestrator.report.naming import Namer
from gpuspool.orchestrator.report.outlook import InHand
from gpuspool.orchestrator.report.parents import LIVE, Beats, is_at_work, parent_rows
from gpuspool.orchestrator.report.ranks import Ranks, note_long_calls
from gpuspool.orchestrator.report.signs import last_sign
from gpuspool.orchestrator.text.forecast import Outlook
from gpuspool.orchestrator.text.words import count_of
from gpuspool.spool.ledger import Ledger, run_state
from gpuspool.spool.liveness import FailureDetector
from gpuspool.spool.states import Life, Phase, RunState
from gpuspool.spool.view import Control, View, read_control

# Of the object that `gpuspool status --json` prints. A field that is added leaves it as it is.
SCHEMA_VERSION = 2


def status(
    view: View,
    detector: FailureDetector | None = None,
    *,
    names_tasks: bool = True,
    named: str | os.PathLike[str] | None = None,
    outlook: Callable[[Mapping[str, InHand]], Outlook] | None = None,
) -> dict[str, Any]:
    """What `gpuspool status --json` prints, of a view that was just refreshed.

    detector: keep one if you look again and again, since a lease takes time to run out and only
    the looks of the same detector count. names_tasks: the rows have the keys of the tasks in hand,
    for which manifests are searched. named: how the user named the spool, for commands to type; its
    path where that is None. outlook: tells how long a running run takes yet, by what the attempts
    have in hand; such as that of a `Prospect`. Raises OSError.
    """
    if detector is None:
        detector = FailureDetector(view)
    beats = Beats(view)
    control = read_control(view.layout)
    parents = parent_rows(detector, beats, control)
    lives = {attempt: detector.life(attempt) for attempt in view.open_attempts}
    held = doubtful(view)
    in_doubt = [task for task, _ in held]
    ranks = Ranks(view, lives, beats, parents, in_doubt).rows(names_tasks=names_tasks)
    _add_slots_waiting(view, parents, ranks)
    at_work = [row for row in parents if is_at_work(row)]
    is_heard_of = _is_heard_of(view, parents, ranks, lives, beats)
    is_live = is_heard_of or bool(at_work)
    is_live |= any(life is not Life.DEAD for life in lives.values())
    state = run_state(view.ledger, is_live, not is_heard_of)
    # Of a run whose every task has a verdict nobody who is silent does anything that is waited for.
    is_over = state in (RunState.COMPLETE, RunState.FAILED)
    goes_on = is_heard_of if is_over else is_live
    began_at, ended_at = _times(view, parents, goes_on, is_over)
    is_draining = _is_draining(view, control, at_work, lives)
    epochs = [intent.epoch for intent in view.intents.values() if intent is not None]
    now: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "spool": str(view.layout.root),
        "job": view.latest_job().spec,
        "state": state,
        "says": "",
        "next": "",
        "epoch": max([*epochs, control.newest, detector.parents.newest]),
        "is_draining": is_draining,
        "ending": None,
        "message": None,
        "began_at": began_at,
        "ended_at": ended_at,
        "elapsed_s": _elapsed_s(began_at, ended_at, goes_on, ranks),
        "left_s": None,
        "tasks_per_s": None,
        "parents": parents,
        "left_alone": 0 if at_work else _left_alone(detector, lives),
        "tasks": _tasks(view.ledger, ranks),
        "doubtful": len(held),
        "excused": sum(view.held[key][-1].is_excused for key in held),
        "ran_twice": view.ledger.duplicates,
        "damage": [str(damage) for damage in view.damage],
        "ranks": ranks,
    }
    if parents and not is_live:
        now["ending"] = parents[-1]["state"]
        now["message"] = parents[-1]["message"]
    if outlook is not None and state is RunState.RUNNING:
        found = outlook(_in_hand(ranks))
        note_long_calls(ranks, found.longest_s)
        if not is_draining:
            if found.left_s is not None and _is_left_known(view.ledger, len(held)):
                now["left_s"] = round(found.left_s, 1)
            now["tasks_per_s"] = found.tasks_per_s
    now["says"] = state_in_words(now)
    task = _worth_explaining(now, held)
    name = None if task is None else Namer(view).name_of(task)
    now["next"] = next_command(now, os.fspath(named or view.layout.root), name)
    return now


# What is in doubt waits until its places have proved themselves, for as long as that takes, and
# some of it fails. Where that is most of what is left, the pace of the others tells nothing.
def _is_left_known(ledger: Ledger, n_doubtful: int) -> bool:
    return 2 * n_doubtful < ledger.tasks - ledger.n_finished


def _worth_explaining(now: dict[str, Any], held: list[tuple[int, int]]) -> int | None:
    """The task of which the story tells most: one that failed where a run stopped, or one that may
    hang; None for none.
    """
    if now["state"] == RunState.STOPPED:
        return min(held)[0] if held else None
    long = [row for row in now["ranks"] if row["times_longest"] is not None]
    task: int | None = max(long, key=lambda row: row["task_s"])["task"] if long else None
    return task


def _is_draining(
    view: View, control: Control, at_work: list[dict[str, Any]], lives: Mapping[str, Life]
) -> bool:
    """Whether all parents that may be at work drain, or all workers where there is no such parent.

    at_work: the rows of these parents.
    """
    if at_work:
        return all(row["is_draining"] for row in at_work)
    intents = [view.intents.get(name) for name, life in lives.items() if life is not Life.DEAD]
    epochs = [intent.epoch for intent in intents if intent is not None]
    return bool(epochs) and all(map(control.stops, epochs))


def _is_heard_of(
    view: View,
    parents: list[dict[str, Any]],
    ranks: list[dict[str, Any]],
    lives: Mapping[str, Life],
    beats: Beats,
) -> bool:
    """Whether somebody is proved to be at work, or was heard of lately."""
    return (
        bool(view.unsettled)
        or any(row["state"] == LIVE for row in parents)
        or any(row["is_proved_alive"] for row in ranks)
        or any(beats.is_fresh(name) for name, life in lives.items() if life is not Life.DEAD)
    )


def _tasks(ledger: Ledger, ranks: list[dict[str, Any]]) -> dict[str, int]:
    """How many tasks there are of each kind. `ranks` are the rows of the table."""
    in_hand = sum(row["in_hand"] for row in ranks)
    # A worker may have finished the task that its last heartbeat names. No more run than are left.
    unfinished = ledger.tasks - ledger.n_finished
    running = min(in_hand, unfinished)
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


def doubtful_text(count: int) -> str:
    """That so many tasks failed, and may yet complete."""
    tasks = count_of(count, "task has", "tasks have")
    return f"{tasks} failed somewhere, with no verdict yet"


def _left_alone(detector: FailureDetector, lives: Mapping[str, Life]) -> int:
    """How many workers live here whose parent is dead. Asked where no parent may be at work."""
    # The parent of the seed API's attempts is in their intents alone.
    alive = [attempt for attempt, life in lives.items() if life is Life.ALIVE]
    return sum(detector.parent_life(attempt) is Life.DEAD for attempt in alive)


def _add_slots_waiting(
    view: View, parents: list[dict[str, Any]], ranks: list[dict[str, Any]]
) -> None:
    """Tell of each parent how many of its slots have had no worker yet, since the first rank of a
    start imports the job alone.
    """
    first: dict[int, list[str]] = {}
    for row in ranks:
        if row["epoch"] is not None:
            first.setdefault(row["epoch"], []).append(row["state"])
    for parent in parents:
        states = first.get(parent["epoch"], [])
        is_alone = parent["state"] == LIVE and states in (["starting"], [str(Phase.LOADING)])
        parent["slots_waiting"] = 0
        if is_alone and not parent["is_draining"] and view.ledger.n_finished < view.ledger.tasks:
            parent["slots_waiting"] = len(parent["slots"]) - 1


# The present start goes on since the oldest parent at work began, or the last one did where only
# its workers are left. One that is over began with the newest parent, or with whoever was at work
# beside that, and lasted until the last of them had ended. Who was killed did not say when, so what
# its attempts left tells. Of a run whose every task has a verdict a silent parent is one of these:
# its host may have crashed long ago, and nobody would have to find out.
def _times(
    view: View, parents: list[dict[str, Any]], goes_on: bool, is_over: bool
) -> tuple[float | None, float | None]:
    """When the present start, else the last one, began and ended, in Unix seconds, where known.

    goes_on: somebody may be at work on it. is_over: every task has a verdict.
    """
    there = [row for row in parents if row["since"] is not None and is_at_work(row)]
    if any(row["state"] == LIVE or not is_over for row in there):
        return min(row["since"] for row in there), None
    began_at, ended_at = _last_start(view, parents)
    if goes_on or began_at is None:
        return began_at, None
    return began_at, None if ended_at is None else max(began_at, ended_at)


def _last_start(view: View, parents: list[dict[str, Any]]) -> tuple[float | None, float | None]:
    """When the last start began, and when the last that was at work on it was heard of."""
    known = [row for row in parents if row["since"] is not None]
    if not known:
        begun = [
            (intent.epoch, intent.at) for intent in view.intents.values() if intent is not None
        ]
        epoch = max((epoch for epoch, _ in begun), default=-1)
        began_at = min((at for one, at in begun if one == epoch), default=None)
        return began_at, last_sign(view, epoch)
    began_at, ended_at = known[-1]["since"], _end_of(view, known[-1])
    for row in reversed(known[:-1]):
        end = _end_of(view, row)
        if end is not None and end > began_at:
            began_at = min(began_at, row["since"])
            ended_at = end if ended_at is None else max(ended_at, end)
        elif row["ended_at"] is None:
            # A run that is killed again and again has many such parents, of which each costs a look
            # at the journals of its attempts.
            break
    return began_at, ended_at


def _end_of(view: View, row: dict[str, Any]) -> float | None:
    """When a parent ended, by what it said, else by the last sign of its attempts."""
    said: float | None = row["ended_at"]
    return last_sign(view, row["epoch"]) if said is None else said


def _elapsed_s(
    began_at: float | None, ended_at: float | None, goes_on: bool, ranks: list[dict[str, Any]]
) -> float | None:
    """How long a run has taken. ranks: the rows of the table."""
    if began_at is None or (ended_at is None and not goes_on):
        return None
    until = ended_at
    if until is None:
        # Where the clock of this host is behind, what the ranks told last is newer than now.
        ages_s = [row["beat_age_s"] for row in ranks if row["beat_age_s"] is not None]
        until = time.time() - min([0.0, *ages_s])
    return round(max(0.0, until - began_at), 1)


def _in_hand(ranks: list[dict[str, Any]]) -> dict[str, InHand]:
    """What attempts are at, as far as it is known since when."""
    return {
        row["attempt"]: InHand(row["in_hand"], row["task_s"])
        for row in ranks
        if row["task_s"] is not None
    }
