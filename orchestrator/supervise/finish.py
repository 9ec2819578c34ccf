"""The end of an epoch: copies that are missing are made, leftovers removed, summary.json written,
and one honest message made for people.

Called once by the loop, when nothing of the run is alive on this host any more. Nothing depends on
it: killed in the middle, the next epoch's end does it all.
"""

from __future__ import annotations

import os
import time
from collections.abc import Collection, Mapping
from typing import Any, Literal, assert_never

import msgspec

from gpuspool.orchestrator.plan.differences import keeps_nothing
from gpuspool.orchestrator.supervise.leftovers import remove_all_from_out, remove_own_from_out
from gpuspool.orchestrator.supervise.repair import make_way
from gpuspool.orchestrator.supervise.rulings import how_it_failed
from gpuspool.orchestrator.text.groups import Groups, describe
from gpuspool.orchestrator.text.printable import one_line, recordable
from gpuspool.orchestrator.text.progress import took
from gpuspool.orchestrator.text.words import count_of, short_path, to_type
from gpuspool.spool.blame import read_tail
from gpuspool.spool.closing import FailedTask, failures_of, publish_copies
from gpuspool.spool.codec import pretty
from gpuspool.spool.errors import (
    EXIT_COMPLETE,
    EXIT_DRAINED,
    EXIT_INTERRUPTED,
    EXIT_NOT_FINISHED,
    EXIT_SOME_FAILED,
    DevicesChanged,
)
from gpuspool.spool.exits import describe_exit
from gpuspool.spool.layout import STATES, parse_slurm_script, rank_of
from gpuspool.spool.open_folder import out_of
from gpuspool.spool.publish import listdir, make_subfolder, read_record, rename, replace
from gpuspool.spool.records import Closing, Record
from gpuspool.spool.states import AttemptState, Ending, ErrorKind, Reason
from gpuspool.spool.view import View


class Outcome(msgspec.Struct, frozen=True):
    """How an epoch ended, the exit code that says so, and what people are told."""

    how: Ending
    exit_code: int
    message: str


class _Summary(Record, frozen=True, kw_only=True):
    """What is read again of summary.json, to keep it."""

    how: str
    epoch: int
    seconds: float
    at: float
    tasks: dict[str, int]
    attempts: list[dict[str, Any]]
    sick_devices: dict[str, list[int]]


# So many groups of failures beside the largest are named in a last line.
OTHERS_NAMED = 2


def finish(
    view: View,
    ending: Ending,
    epoch: int,
    seconds: float,
    sick: Mapping[str, list[int]],
    is_alone: bool = True,
    closed: Collection[str] = (),
) -> Outcome:
    """Do all that is left to do, and tell how the epoch ended after so many seconds.

    `sick` are the devices whose last attempt failed for nothing, with their ranks. `is_alone`: no
    other parent of the run may be alive. Who leaves others at work leaves to them what is to be
    said of the whole, unless every task has a verdict. `closed` are the attempts that this parent
    has closed. Raises OSError.
    """
    # The summary comes last, so that whoever sees it finds all that it speaks of.
    _make_missing_copies(view)
    groups = Groups()
    told = file_away_old_failures(view, groups)
    _make_missing_failures(view, told, groups)
    if is_alone:
        remove_all_from_out(view)
    else:
        remove_own_from_out(view, epoch, closed)
    message = _message(view, ending, epoch, seconds)
    for device, ranks in sick.items():
        message += "\n" + _about_device(view, device, ranks, epoch)
    n_wrong = _wrong_lengths(view, epoch)
    if n_wrong:
        message += "\n" + _about_wrong_lengths(n_wrong)
    # What to type next comes last. Where the run is to go on, the message says how.
    next_steps = [_about_failures(view, groups)]
    if ending is not Ending.FINISHED:
        next_steps.append(_go_on(view, ending))
    message = "\n".join([message, *filter(None, next_steps)])
    outcome = Outcome(ending, _exit_code(view, ending), message)
    if is_alone or ending is Ending.FINISHED:
        sum_up(view, outcome, epoch, seconds, sick)
    return outcome


def sum_up(
    view: View, outcome: Outcome, epoch: int, seconds: float, sick: Mapping[str, list[int]]
) -> None:
    """Replace summary.json, by rename(2). Takes what `finish` took and returned. Raises OSError."""
    summary = _summary(view, outcome, epoch, seconds)
    summary["sick_devices"] = sick
    _keep_what_was(view, summary)
    data = msgspec.json.format(msgspec.json.encode(summary), indent=2) + b"\n"
    replace(view.layout.summary, data, durable=True)


def _exit_code(view: View, ending: Ending) -> int:
    match ending:
        case Ending.FINISHED:
            return EXIT_SOME_FAILED if view.ledger.n_failed else EXIT_COMPLETE
        case Ending.DRAINED:
            return EXIT_DRAINED
        case Ending.INTERRUPTED:
            return EXIT_INTERRUPTED
        case (
            Ending.STOPPED
            | Ending.TOO_MANY_FAILED
            | Ending.LOAD
            | Ending.GAVE_UP
            | Ending.STUCK
            | Ending.BROKEN
            | Ending.OUTAGE
        ):
            return EXIT_NOT_FINISHED
        case _:
            assert_never(ending)


def _make_missing_copies(view: View) -> None:
    """Publish the status records, and what goes with them, of closings that have none.

    Whoever closed an attempt may have died before it made them.
    """
    layout = view.layout
    # The folders are listed once instead of asking for each record whether it is there: a run may
    # have thousands of attempts, and on a network each question is a round trip.
    told = {state: set(listdir(layout.subdir(state))) for state in STATES}
    for closing in view.closed.values():
        path = layout.status(closing.state, closing.attempt)
        if path.name not in told[closing.state]:
            publish_copies(layout, closing)


def _make_missing_failures(view: View, told: set[int], groups: Groups) -> None:
    """Make the files of failed-tasks/ that are missing or cannot be read, by rename(2).

    told: the failed tasks that have one. groups: where the others are counted. A worker may have
    died between a line and its file, and these files are not synced, so a power cut may have
    emptied them. Raises OSError.
    """
    # Journals are read again only if a file is missing, which the ledger tells without reading.
    owed = set(view.ledger.failed()) - told - view.ledger.unreadable
    if owed:
        for record in failures_of(view, view.attempts, owed):
            path = view.layout.failed_task(record.key)
            make_way(path)
            replace(path, pretty(record), durable=False)
            groups.add(record.error)


def file_away_old_failures(view: View, groups: Groups | None = None) -> set[int]:
    """Move files of failed-tasks/ that are no longer true to the folders of their rounds.

    Those are the ones of earlier rounds, and of tasks that are complete now. By rename(2). Returns
    the tasks of the files that stay. groups: where what these say is counted. Raises OSError.
    """
    told: set[int] = set()
    for filename in listdir(view.layout.failed_tasks):
        path = view.layout.failed_tasks / filename
        # The folders of earlier rounds are in there too.
        if not path.is_file():
            continue
        record = read_record(path, FailedTask)
        if record is None:
            continue
        if _is_overtaken(view, record):
            folder = view.layout.failed_round(record.round)
            make_subfolder(folder)
            rename(path, folder / filename)
        else:
            told.add(record.task)
            if groups is not None:
                groups.add(record.error)
    return told


def _is_overtaken(view: View, record: FailedTask) -> bool:
    ledger = view.ledger
    if not 0 <= record.task < ledger.tasks:
        return False
    return bool(ledger.complete[record.task]) or record.round < ledger.round_of(record.task)


def _message(view: View, ending: Ending, epoch: int, seconds: float) -> str:
    """What happened, with the counts."""
    counts = _counts(view)
    match ending:
        case Ending.FINISHED:
            out = short_path(out_of(view.layout, view.run))
            return f"{counts}, in {took(seconds)}. Outputs: {out}"
        case Ending.TOO_MANY_FAILED:
            return f"stopped early, since --max-failed is reached: {counts}."
        case Ending.DRAINED | Ending.INTERRUPTED | Ending.STOPPED:
            return f"{ending} with {counts}."
        case Ending.LOAD | Ending.GAVE_UP | Ending.STUCK | Ending.BROKEN | Ending.OUTAGE:
            what = _what_went_wrong(view, ending, counts)
            why = _why_it_failed(view, ending, epoch)
            return f"{what}\n{why}" if why else what
        case _:
            assert_never(ending)


def _what_went_wrong(
    view: View,
    ending: Literal[Ending.LOAD, Ending.GAVE_UP, Ending.STUCK, Ending.BROKEN, Ending.OUTAGE],
    counts: str,
) -> str:
    """Why the orchestrator could not go on, although nobody had told it to stop."""
    match ending:
        case Ending.LOAD:
            return f"no rank could load the job {view.run.job.spec}; nothing is lost."
        case Ending.GAVE_UP:
            return f"not finished: every rank failed too often; {counts}."
        case Ending.BROKEN:
            return (
                f"stopped early: every task that was tried failed, so the job {view.run.job.spec} "
                f"or what it needs is to blame, and no task has a verdict; {counts}. "
                "(With --keep-going each failure is the task's at once.)"
            )
        case Ending.OUTAGE:
            return f"stopped: for long nothing was finished and tasks only failed; {counts}."
        case Ending.STUCK:
            why = "no rank has anything to do: try `gpuspool verify`"
            return f"not finished: {why}; {counts}."
        case _:
            assert_never(ending)


def _about_failures(view: View, groups: Groups) -> str:
    """The largest group of failures, what the others are, and the commands to type next; "" if
    none failed.
    """
    n_failed = view.ledger.n_failed
    if not n_failed:
        return ""
    root = view.layout.root
    them = "it" if n_failed == 1 else "them"
    text = f"{to_type('failed', root)} tells why, {to_type('retry', root)} runs {them} again"
    text += f"{_after_a_fix(view)}."
    by_size = groups.by_size()
    if not by_size:
        return text
    count, error = by_size[0]
    who = f"{count:,} of the {n_failed:,} failed tasks"
    if n_failed == 1:
        who = "The failed task"
    elif count == n_failed:
        who = f"All {n_failed:,} failed tasks" if n_failed > 2 else "Both failed tasks"
    what = describe(error, is_example=groups.is_mixed(error)).rstrip(".")
    others = [f"{n:,} {one_line(other.type)}" for n, other in by_size[1:]]
    if len(others) > OTHERS_NAMED:
        n_more = len(others) - OTHERS_NAMED
        others[OTHERS_NAMED:] = [count_of(n_more, "other kind")]
    also = f"; also {', '.join(others)}" if others else ""
    return f"{who}: {what}{also}. {text}"


def _go_on(view: View, ending: Ending) -> str:
    """How to go on with a run that was not finished."""
    root = view.layout.root
    if ending is Ending.TOO_MANY_FAILED:
        higher = to_type("resume", root, "--max-failed", "N")
        return f"Or go on with a higher --max-failed: {higher}."
    is_submitted = any(map(parse_slurm_script, listdir(view.layout.slurm)))
    if is_submitted and ending in (Ending.DRAINED, Ending.INTERRUPTED, Ending.STOPPED):
        # Without --slurm it would work where it is typed, which is often the login node.
        return f"{to_type('resume', root, '--slurm')} goes on: it submits what is missing."
    hint = ""
    if ending in (Ending.LOAD, Ending.GAVE_UP, Ending.BROKEN, Ending.OUTAGE):
        hint = _after_a_fix(view)
    return f"Go on with the same command or {to_type('resume', root)}{hint}."


def _after_a_fix(view: View) -> str:
    """What has to be said to go on with other code; "" where nothing has."""
    return "" if keeps_nothing(view) else "; after a fix of the job add --keep-done"


def _counts(view: View) -> str:
    ledger = view.ledger
    counts = f"{ledger.n_complete} of {ledger.tasks} tasks complete"
    if ledger.n_failed:
        counts += f", {ledger.n_failed} failed"
    if ledger.duplicates:
        counts += f"; {ledger.duplicates} ran twice and were counted once"
    return counts


def _why_it_failed(view: View, ending: Ending, epoch: int) -> str:
    """What was said last of what is to blame: of a task where tasks failed, else of an attempt."""
    if ending is Ending.BROKEN or ending is Ending.OUTAGE:
        is_finished = view.ledger.is_finished_in
        for key in reversed([key for key in view.held if not is_finished(*key)]):
            failure = how_it_failed(view, key, view.held[key][-1])
            error, line = failure.error, failure.line
            if line is not None:
                text = f"{error.type}: {error.message}"
                # Of an excused failure the message says more, namely what explains it.
                if error.traceback and error.kind is not ErrorKind.IO:
                    text = error.traceback
                return f"The last that failed was task {line.key}:\n{text.rstrip()}"
    return _first_error(view, epoch)


def _first_error(view: View, epoch: int) -> str:
    """What the last attempt of the lowest rank that failed in this epoch said; "" if none did."""
    attempts = _attempts_of(view, epoch)
    # The newest first, and then by rank: sorting keeps the order of equals.
    attempts.sort(reverse=True)
    attempts.sort(key=rank_of)
    for attempt in attempts:
        closing = view.closed.get(attempt)
        if closing is not None and _has_error(closing):
            return _last_words(view, closing)
    return ""


def _attempts_of(view: View, epoch: int) -> list[str]:
    found: list[str] = []
    for intent in view.intents.values():
        if intent is not None and intent.epoch == epoch:
            found.append(intent.attempt)
    return found


def _has_error(closing: Closing) -> bool:
    # Whoever drained itself counts too: this is asked of an epoch that nobody told to drain.
    was_stopped = closing.reason is Reason.DRAINED
    return closing.error is not None or _is_failed(closing) or was_stopped


def _is_failed(closing: Closing) -> bool:
    return closing.state is AttemptState.FAILED


def _last_words(view: View, closing: Closing) -> str:
    """The error of an attempt that failed, and where its log is."""
    log = view.layout.log(closing.attempt)
    if closing.reason is Reason.DRAINED:
        return f"{closing.attempt} was told to stop by a signal of somebody else, see {log}"
    if closing.error is None:
        return f"{closing.attempt} ended ({closing.reason}), see {log}"
    device = "?"
    if closing.stats is not None:
        device = closing.stats.device
    text = closing.error.traceback or _why(view, closing)
    return f"{closing.attempt} on device {device}, log {log}:\n{text.rstrip()}"


def _about_device(view: View, device: str, ranks: list[int], epoch: int) -> str:
    """One line about a device on which the last attempts failed, and what the very last said."""
    last = _last_failure(view, ranks, epoch)
    names = ", ".join(f"rank {rank}" for rank in ranks)
    host = os.uname().nodename
    log = view.layout.log(last.attempt)
    if last.error is not None and last.error.type == DevicesChanged.__name__:
        # The job chose another device. Where it chose that of a rank, this rank worked.
        return f"Nothing was done on device {device} ({names}, host {host}): {_why(view, last)}"
    return (
        f"Look at device {one_line(device)} ({names}, host {host}): the last attempts on it "
        f"failed, while others did its tasks. The last was {last.attempt}, log {log}: "
        f"{_why(view, last)}"
    )


def _wrong_lengths(view: View, epoch: int) -> int:
    """How many batches of this epoch came back with the wrong number of results, as far as told."""
    count = 0
    for attempt in _attempts_of(view, epoch):
        closing = view.closed.get(attempt)
        if closing is not None and closing.stats is not None:
            count += closing.stats.wrong_lengths
    return count


def _about_wrong_lengths(count: int) -> str:
    """What a job gets wrong though its tasks, tried again alone, may all be complete."""
    batches = count_of(count, "batch", "batches")
    return (
        f"For {batches} the job returned another number of results than it got tasks. It must be "
        "one each, in order: check the job, also where its tasks are complete by now."
    )


def _last_failure(view: View, ranks: list[int], epoch: int) -> Closing:
    """The closing of the last attempt of these ranks that failed in this epoch.

    If none failed, that of the last one that was told to stop. There must be one.
    """
    failed: list[Closing] = []
    stopped: list[Closing] = []
    for attempt in _attempts_of(view, epoch):
        closing = view.closed.get(attempt)
        if closing is None or rank_of(attempt) not in ranks:
            continue
        if _is_failed(closing):
            failed.append(closing)
        elif closing.reason is Reason.DRAINED:
            stopped.append(closing)
    return max(failed or stopped, key=lambda closing: closing.at)


def _why(view: View, closing: Closing) -> str:
    """Why an attempt failed, in a few words."""
    if closing.error is not None:
        return one_line(f"{closing.error.type}: {closing.error.message}")
    if closing.exit_code is not None:
        return describe_exit(closing.exit_code, read_tail(view.layout, closing.attempt))
    if closing.reason is Reason.DRAINED:
        return "it was told to stop by a signal of somebody else"
    return closing.reason


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
        "damage": [recordable(str(damage)) for damage in view.damage],
    }


def _keep_what_was(view: View, summary: dict[str, Any]) -> None:
    """Keep what the summary that is there tells of the run, if nothing has happened since.

    Whoever gives the command of a finished run again starts nothing, and what the run took and
    which devices were sick in it must not be replaced by how long it took to see that.
    """
    before = read_record(view.layout.summary, _Summary)
    if before is None:
        return
    now = msgspec.to_builtins(summary)
    if before.tasks != now["tasks"] or before.attempts != now["attempts"]:
        return
    summary["epoch"] = before.epoch
    summary["seconds"] = before.seconds
    summary["sick_devices"] = before.sick_devices
    if before.how == now["how"]:
        summary["at"] = before.at


def _attempt(view: View, name: str) -> dict[str, Any]:
    closing = view.closed.get(name)
    row: dict[str, Any] = {
        "attempt": name,
        "rank": rank_of(name),
        "state": "open",
        "reason": "",
        "finished": view.finished_by.get(name, 0),
    }
    if closing is None:
        return row
    row["state"] = closing.state
    row["reason"] = closing.reason
    stats = closing.stats
    if stats is not None:
        row["seconds"] = stats.seconds
        row["busy_s"] = stats.busy_s
        row["device"] = stats.device
        row["device_name"] = stats.device_name
        row["peak_memory_bytes"] = stats.peak_memory_bytes
        return row
    # It was killed, or was lost. What it told last is a moment old, and all that there is.
    usage = view.usage(name)
    if usage is not None:
        row["seconds"] = round(usage.busy_s + sum(usage.idle_s.values()), 3)
        row["busy_s"] = usage.busy_s
    return row
