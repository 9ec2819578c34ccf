"""Looking at a run: `status`, `wait`, `results`, `failed`, `logs`, `verify`; and `doctor`.

Each of them reads the files of a spool and nothing else: they need no GPU and no orchestrator, work
from any host that sees the folder, in the middle of a run and long after it, and write nothing.
(`doctor` looks at a folder in which a spool may be made, and removes what it tries there.)

Where `spool` is None the only ./spool-* is meant. All raise UsageError where there is no spool,
SpoolError where it is damaged beyond reading or of another format, and OSError where the file
system does.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpuspool.orchestrator.plan.locate import find_spool
from gpuspool.orchestrator.report.failures import Groups, failed_results, group_failures
from gpuspool.orchestrator.report.logs import Logs, task_log_chunks
from gpuspool.orchestrator.report.results import Result, Results
from gpuspool.orchestrator.report.status import doubtful
from gpuspool.orchestrator.report.status import status as status_of
from gpuspool.orchestrator.report.verify import Findings
from gpuspool.orchestrator.report.verify import verify as verify_view
from gpuspool.spool.errors import UsageError
from gpuspool.spool.layout import rank_of
from gpuspool.spool.liveness import FailureDetector
from gpuspool.spool.parents import is_anybody_alive_here
from gpuspool.spool.publish import read_bytes
from gpuspool.spool.states import UNDER_WAY, RunState
from gpuspool.spool.view import View, open_view

if TYPE_CHECKING:
    from gpuspool.orchestrator.supervise.doctor import Check
    from gpuspool.orchestrator.supervise.hosts.together import Diagnosis

# Between two looks of `wait` lies a tenth of the time that it has waited so far, at least and at
# most so many seconds: whoever waits for a second hears of the end at once, and whoever waits for
# hours does not keep a file server busy. A look lists four folders and reads a file for each rank.
LOOKS_PER_WAIT = 10
SHORTEST_LOOK_S = 0.2
LONGEST_LOOK_S = 2.0

# Between two looks at logs that are followed lie so many seconds: soon for people, and rare for a
# file server. A look lists the attempts and asks each log for what is new.
FOLLOW_LOOK_S = 0.5

Spool = str | os.PathLike[str] | None


def _view(spool: Spool) -> View:
    """A view of the spool that reads no claims: only `verify` and the sweep need them."""
    return open_view(find_spool(spool), reads_claims=False)


def status(spool: Spool = None) -> dict[str, Any]:
    """How a run stands, as `gpuspool status --json` prints it; docs/options.md lists the fields.

    `["state"]` is a `RunState`: complete, failed, running or stopped.
    """
    return next(follow_status(spool))


def follow_status(spool: Spool = None) -> Iterator[dict[str, Any]]:
    """How a run stands, again at each `next`, without end.

    Whoever looks more than once should look like this: only the looks of one failure detector let
    a lease run out, which is the proof that an attempt on another host is dead.
    """
    return _follow_status(_view(spool))


def _follow_status(view: View) -> Iterator[dict[str, Any]]:
    detector = FailureDetector(view)
    while True:
        yield status_of(view, detector)
        view.refresh()


def wait(spool: Spool = None, timeout_s: float | None = None) -> dict[str, Any]:
    """Wait until a run has ended; returns its status then, as `status` does.

    It has ended when every task has a verdict and no parent of this host is at work any more, or
    when nothing of it is alive. timeout_s: seconds after which to return anyway, with a status
    whose state is in `UNDER_WAY` if a task has no verdict yet; None to wait without limit.
    """
    view = _view(spool)
    detector = FailureDetector(view)
    began = time.monotonic()
    ended_at: float | None = None
    while True:
        # What is in hand is no matter until people are told.
        now = status_of(view, detector, names_tasks=False)
        if _has_ended(view, now):
            if ended_at is None:
                ended_at = time.monotonic()
            now = _confirmed(view, detector, now, time.monotonic() - ended_at)
            if now["state"] not in UNDER_WAY:
                return now
        else:
            ended_at = None
        waited_s = time.monotonic() - began
        look_again_s = pause_s(waited_s)
        if timeout_s is not None:
            if waited_s > timeout_s:
                return {**status_of(view, detector), "state": now["state"]}
            look_again_s = min(look_again_s, max(timeout_s - waited_s, SHORTEST_LOOK_S))
        time.sleep(look_again_s)
        view.refresh()


def _has_ended(view: View, now: dict[str, Any]) -> bool:
    return now["state"] not in UNDER_WAY and not is_anybody_alive_here(view.layout)


# That every task has a verdict rests on what was read, and is certain. That some have none rests on
# what was not found, and a network file system may show a spool as it was a minute ago. So before
# `wait` says so everything is read anew. If the orchestrator ended in order, its summary says how
# many verdicts there are. If fewer are seen, they are waited for.
def _confirmed(
    view: View, detector: FailureDetector, now: dict[str, Any], ended_s: float
) -> dict[str, Any]:
    """The status of a run that seems to have ended, for `ended_s` so far, after a second look.

    Its state is RUNNING where the two looks differ, or where verdicts may only not be visible yet.
    """
    if now["state"] == RunState.COMPLETE:
        return now
    fresh = view.again()
    now = status_of(fresh, detector)
    if not _has_ended(fresh, now):
        return {**now, "state": RunState.RUNNING}
    told = _verdicts_told(fresh)
    is_short = told is None or fresh.ledger.n_finished < told
    if now["state"] == RunState.STOPPED and is_short and ended_s < fresh.staleness_s:
        return {**now, "state": RunState.RUNNING}
    return now


def _verdicts_told(view: View) -> int | None:
    """How many verdicts the last orchestrator counted when it ended; None where it did not say."""
    try:
        summary = json.loads(read_bytes(view.layout.summary) or b"")
        if summary["epoch"] != view.next_epoch() - 1:
            return None
        return int(summary["tasks"]["complete"] + summary["tasks"]["failed"])
    except (ValueError, LookupError, TypeError):
        return None


def pause_s(waited_s: float) -> float:
    """How long `wait` pauses once it has waited so long."""
    return min(max(waited_s / LOOKS_PER_WAIT, SHORTEST_LOOK_S), LONGEST_LOOK_S)


def results(spool: Spool = None) -> Iterator[Result]:
    """One `Result` for each task, in input order, read from the journals as they are asked for."""
    return iter(Results(_view(spool)))


def failed(spool: Spool = None) -> list[Result]:
    """The results of the tasks that failed for good, in input order; each has an `error`."""
    return list(failed_results(_view(spool)))


def failed_and_doubtful(spool: Spool = None) -> tuple[Iterator[Result], list[int]]:
    """As `failed`, one by one; and the tasks that failed somewhere and have no verdict yet."""
    view = _view(spool)
    return failed_results(view), _doubtful_tasks(view)


def failed_groups(spool: Spool = None, most_with_tasks: int = 0) -> tuple[Groups, list[int]]:
    """The failed tasks in groups, as `gpuspool failed` shows them; and the doubtful ones.

    most_with_tasks: of so many groups the keys and payloads of the first few tasks are looked up.
    """
    view = _view(spool)
    return group_failures(view, most_with_tasks), _doubtful_tasks(view)


def _doubtful_tasks(view: View) -> list[int]:
    return sorted(task for task, _ in doubtful(view))


def logs(
    spool: Spool = None,
    rank: int | None = None,
    key: str | None = None,
    last: int | None = None,
    follow: bool = False,
) -> Iterator[str]:
    """What the workers printed, attempt by attempt, in pieces to be joined.

    Before what an attempt printed stands a line `==> rank-0000.a00 <==`. Raises UsageError for a
    rank or a task that the run does not have.

    rank: only the attempts of this rank.
    key: only what was printed while the task with this key ran.
    last: only so many lines of each attempt, its last ones.
    follow: wait for what is printed from now on, until the run has ended.
    """
    view = _view(spool)
    if key is not None:
        if rank is not None or last is not None or follow:
            raise UsageError("what one task printed is shown whole: name a task, or the others.")
        return task_log_chunks(view, key)
    if rank is not None and not any(rank_of(attempt) == rank for attempt in view.attempts):
        started = sorted({rank_of(attempt) for attempt in view.attempts})
        known = f"0 to {started[-1]}" if started else "none yet"
        raise UsageError(
            f"{view.layout.root} has no log of rank {rank}. Ranks that have started: {known}."
        )
    return _attempt_logs(view, rank, last, follow)


def _attempt_logs(view: View, rank: int | None, last: int | None, follow: bool) -> Iterator[str]:
    logs = Logs(view, rank, last)
    yield from logs.new_text()
    if follow:
        # What was printed before a look that finds the run ended is read after it.
        for now in _follow_status(view):
            yield from logs.new_text()
            if now["state"] not in UNDER_WAY:
                break
            time.sleep(FOLLOW_LOOK_S)
    yield from logs.rest()


def verify(spool: Spool = None) -> Findings:
    """Check every file of a spool against the format.

    Findings have `problems`, which are damage or contradictions, and `notes`, which are what a
    crash leaves and the protocol deals with. `counts` tells what was found: tasks in `total`, and
    how many are `complete` and `failed`.
    """
    return verify_view(open_view(find_spool(spool)))


def doctor(
    folder: str | os.PathLike[str], hosts: int | None = None, wait_s: float | None = None
) -> list[Check]:
    """Try whether a folder's file system keeps what a spool relies on.

    A check has a `name`, a `state` ("ok", "warning" or "problem") and a `detail` for people. With a
    problem no spool should live in that folder; a warning costs speed or comfort. Everything is
    tried in hidden folders that are removed again. Raises UsageError for what is not a folder, and
    OSError where nothing can be made in it.

    hosts: so many copies of this call run at the same time, on as many hosts. They meet in the
    folder and find out what they see of each other; each returns the same checks. Default: what
    Slurm says of the step that this process is part of, else 1, which looks alone.
    wait_s: how long to wait for the others. Default 120.
    """
    return diagnose(folder, hosts, wait_s).checks


def diagnose(
    folder: str | os.PathLike[str], hosts: int | None = None, wait_s: float | None = None
) -> Diagnosis:
    """As `doctor`, with all that the command line tells."""
    from gpuspool.orchestrator.supervise.hosts import together

    if not Path(folder).is_dir():
        raise UsageError(
            f"{os.fspath(folder)} is not a folder. Name one on the file system that spools shall "
            "live on."
        )
    if hosts is not None and hosts < 1:
        raise UsageError(f"--hosts {hosts}: at least this host looks at the folder.")
    expected = together.expected_by_slurm(os.environ)
    if hosts is not None:
        expected = together.expected_by_number(hosts)
    return together.examine(Path(folder), expected, together.WAIT_S if wait_s is None else wait_s)
