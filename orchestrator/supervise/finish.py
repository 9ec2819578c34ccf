"""The end of an epoch: missing copies are made, leftovers removed, summary.json written, and one
honest line said.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from gpuspool.spool.closing import FailedTask, publish_copies
from gpuspool.spool.errors import (
    EXIT_COMPLETE,
    EXIT_DRAINED,
    EXIT_INTERRUPTED,
    EXIT_SOME_FAILED,
    NotFinished,
)
from gpuspool.spool.exits import describe_exit
from gpuspool.spool.layout import (
    OUT_MARK,
    PROBE_NAME,
    STATES,
    SUBDIRS,
    parse_hidden,
    parse_hidden_output,
    rank_of,
)
from gpuspool.spool.publish import (
    listdir,
    read_record,
    remove_quietly,
    remove_tree_quietly,
    rename,
    replace,
)
from gpuspool.spool.records import Closing
from gpuspool.spool.view import View

EXIT_OF = {"drained": EXIT_DRAINED, "interrupted": EXIT_INTERRUPTED}


class Outcome(msgspec.Struct, frozen=True):
    """How an epoch ended: finished, drained, interrupted, too many failed, load, gave up, stuck."""

    how: str
    exit_code: int
    message: str


def finish(
    view: View, how: str, epoch: int, seconds: float, sick: Mapping[str, list[int]]
) -> Outcome:
    """All that is left to do when nothing of the run is alive here any more. `sick`: devices, with
    their ranks.
    """
    told = {(state, name) for state in STATES for name in listdir(view.layout.subdir(state))}
    for closing in view.closed.values():
        if (closing.state, view.layout.status(closing.state, closing.attempt).name) not in told:
            publish_copies(view.layout, closing)
    file_away_old_failures(view)
    if not view.open_attempts:
        remove_leftovers(view)
    ledger = view.ledger
    if how == "finished":
        code = EXIT_SOME_FAILED if ledger.n_failed else EXIT_COMPLETE
    else:
        code = EXIT_OF.get(how, NotFinished.exit_code)
    outcome = Outcome(
        how,
        code,
        _message(view, how, epoch, seconds) + "".join(_sick(view, *item) for item in sick.items()),
    )
    summary = _summary(view, outcome, epoch, seconds) | {"sick_devices": sick}
    replace(
        view.layout.summary,
        msgspec.json.format(msgspec.json.encode(summary), indent=2) + b"\n",
        durable=True,
    )
    return outcome


def _sick(view: View, device: str, ranks: list[int]) -> str:
    """One line about a device on which nothing came off, with the last that was heard of it."""
    ends = [view.closed[a] for a in view.attempts if a in view.closed and rank_of(a) in ranks]
    last = max((end for end in ends if end.state == "failed"), key=lambda end: end.at)
    why = last.reason if last.exit_code is None else describe_exit(last.exit_code)
    if last.error is not None:
        why = f"{last.error.type}: {last.error.message}"
    names = ", ".join(f"rank {rank}" for rank in ranks)
    return (
        f"\nLook at device {device} ({names}, host {os.uname().nodename}): what ran on it came to nothing, others did "
        f"its tasks. The last was {last.attempt}, log {view.layout.log(last.attempt)}: {why}"
    )


def _short(path: str | os.PathLike[str]) -> str:
    """As seen from the current folder, while there is one."""
    try:
        return os.path.relpath(path)
    except OSError:
        return os.fspath(path)


def _message(view: View, how: str, epoch: int, seconds: float) -> str:
    ledger, root = view.ledger, _short(view.layout.root)
    failed = ledger.n_failed
    counts = f"{ledger.n_complete} of {ledger.tasks} tasks complete"
    if failed:
        counts += f", {failed} failed (`gpuspool failed {root}` tells why, `gpuspool retry {root}` runs them again)"
    if ledger.duplicates:
        counts += f"; {ledger.duplicates} ran twice and were counted once"
    go_on = f"Go on with the same command or `gpuspool resume {root}`."
    if how == "finished":
        return (
            f"{counts}, in {seconds:.1f} s. Outputs: {_short(view.run.out or view.layout.outputs)}"
        )
    if how == "too many failed":
        retry = f"`gpuspool retry {root}`"
        return f"stopped early, since --max-failed is reached: {counts}. {retry}, or go on with a higher --max-failed."
    if how in ("drained", "interrupted"):
        return f"{how} with {counts}. {go_on}"
    if how == "load":
        return f"no rank could load the job {view.run.job.spec}; nothing is lost.\n{_first_error(view, epoch)}\n{go_on}"
    why = (
        "every rank failed too often"
        if how == "gave up"
        else "no rank has anything to do: try `gpuspool verify`"
    )
    return f"not finished: {why}; {counts}.\n{_first_error(view, epoch)}\n{go_on}"


def _first_error(view: View, epoch: int) -> str:
    """What the last attempt of the lowest rank that failed in this epoch said."""
    intents = [
        intent for intent in view.intents.values() if intent is not None and intent.epoch == epoch
    ]
    for attempt in sorted(
        sorted((intent.attempt for intent in intents), reverse=True), key=rank_of
    ):
        closing = view.closed.get(attempt)
        if closing is not None and closing.error is not None:
            device = closing.stats.device if closing.stats else "?"
            text = closing.error.traceback or f"{closing.error.type}: {closing.error.message}"
            return f"{attempt} on device {device}, log {view.layout.log(attempt)}:\n{text.rstrip()}"
        if closing is not None and closing.state == "failed":
            return f"{attempt} ended ({closing.reason}), see {view.layout.log(attempt)}"
    return ""


def _summary(view: View, outcome: Outcome, epoch: int, seconds: float) -> dict[str, Any]:
    ledger = view.ledger
    return {
        "how": outcome.how,
        "exit_code": outcome.exit_code,
        "epoch": epoch,
        "seconds": round(seconds, 3),
        "at": time.time(),
        "tasks": {
            "total": ledger.tasks,
            "complete": ledger.n_complete,
            "failed": ledger.n_failed,
            "ran_twice": ledger.duplicates,
        },
        "attempts": [_attempt(view, name) for name in view.attempts],
        "damage": [str(damage) for damage in view.damage],
    }


def _attempt(view: View, name: str) -> dict[str, Any]:
    closing = view.closed.get(name)
    row: dict[str, Any] = {
        "attempt": name,
        "rank": rank_of(name),
        "state": closing.state if closing else "open",
        "reason": closing.reason if closing else "",
        "finished": view.finished_by.get(name, 0),
    }
    stats = closing.stats if closing else None
    if stats is not None:
        row |= {"seconds": stats.seconds, "busy_s": stats.busy_s, "device": stats.device}
        row |= {"device_name": stats.device_name, "peak_memory_bytes": stats.peak_memory_bytes}
    return row


def remove_leftovers(view: View) -> None:
    """Hidden files of processes that died between writing and linking. Only while no attempt is
    open.
    """
    folders = [view.layout.root, *(view.layout.subdir(name) for name in SUBDIRS)]
    folders += [
        Path(entry.path) for entry in os.scandir(view.layout.subdir("claims")) if entry.is_dir()
    ]
    for folder in folders:
        for entry in os.scandir(folder):
            hidden = parse_hidden(entry.name)
            if hidden is not None and entry.is_file(follow_symlinks=False):
                remove_quietly(Path(entry.path))
            elif hidden is not None and hidden[0] == PROBE_NAME:
                remove_tree_quietly(Path(entry.path))
    dirty = {name for name, closing in view.closed.items() if _is_dirty(closing)}
    if dirty:
        _remove_hidden_outputs(Path(view.run.out or view.layout.outputs), dirty)


def _is_dirty(closing: Closing) -> bool:
    """Whether hidden outputs of this attempt may be left."""
    is_clean = closing.by == closing.attempt and closing.state != "failed"
    return not is_clean or (closing.stats is not None and closing.stats.left_behind > 0)


def _remove_hidden_outputs(out: Path, attempts: set[str]) -> None:
    for folder, folders, files in os.walk(out):
        for name in [*folders, *files]:
            if parse_hidden_output(name) in attempts:
                path = Path(folder, name)
                with contextlib.suppress(OSError):
                    remove_tree_quietly(path) if path.is_dir() else path.unlink()
        folders[:] = [name for name in folders if not name.startswith(OUT_MARK)]


def file_away_old_failures(view: View) -> None:
    """Move what failed-tasks/ tells of earlier rounds, or of tasks that are complete now, to their
    rounds' folders.
    """
    for filename in listdir(view.layout.failed_tasks):
        path = view.layout.failed_tasks / filename
        record = read_record(path, FailedTask) if path.is_file() else None
        if record is None or not 0 <= record.task < view.ledger.tasks:
            continue
        if view.ledger.complete[record.task] or record.round < view.ledger.round_of(record.task):
            folder = view.layout.failed_round(record.round)
            folder.mkdir(exist_ok=True)
            rename(path, folder / filename)
