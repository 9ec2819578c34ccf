"""Looking at a run: `status`, `list`, `explain`, `wait`, `results`, `failed`, `logs`, `verify`.

And `doctor`.

Each of them reads the files of a spool: they need no GPU and no orchestrator, work from any host
that sees the folder, in the middle of a run and long after it, and write nothing. (`doctor` looks
at a folder in which a spool may be made, and removes what it tries there.) Of a run that was given
to Slurm, and that is not finished while nothing of it lives, `status`, `wait` and `logs` that are
followed also ask squeue.

Where `spool` is None the only ./spool-* is meant. All raise UsageError where there is no spool,
SpoolError where it is damaged beyond reading or of another format, and OSError where the file
system does.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from gpuspool.orchestrator.api.in_queue import SlurmQueue, unheard
from gpuspool.orchestrator.plan.locate import find_spool, find_spools
from gpuspool.orchestrator.report.explain import explain_attempt, explain_rank, explain_task
from gpuspool.orchestrator.report.failures import Groups, failed_results, group_failures
from gpuspool.orchestrator.report.finding import is_attempt
from gpuspool.orchestrator.report.logs import Logs, task_log_chunks
from gpuspool.orchestrator.report.naming import Name, Namer
from gpuspool.orchestrator.report.outlook import Prospect
from gpuspool.orchestrator.report.queued import is_queued
from gpuspool.orchestrator.report.results import Result, Results
from gpuspool.orchestrator.report.status import doubtful
from gpuspool.orchestrator.report.status import status as status_of
from gpuspool.orchestrator.report.story import Story, story_json
from gpuspool.orchestrator.report.verify import Findings
from gpuspool.orchestrator.report.verify import verify as verify_view
from gpuspool.spool.errors import GpuspoolError, UsageError
from gpuspool.spool.layout import Layout, rank_of
from gpuspool.spool.liveness import FailureDetector
from gpuspool.spool.parents import does_any_parent_live_here
from gpuspool.spool.publish import read_bytes
from gpuspool.spool.states import UNDER_WAY, RunState
from gpuspool.spool.view import View, load_view, open_view

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

    `["state"]` is a `RunState`: complete, failed, running, silent or stopped.
    """
    return next(follow_status(spool))


def follow_status(spool: Spool = None) -> Iterator[dict[str, Any]]:
    """How a run stands, again at each `next`, without end.

    Whoever looks more than once should look like this: only the looks of one failure detector let
    a lease run out, which is the proof that an attempt on another host is dead.
    """
    root = find_spool(spool)
    prospects: list[Prospect] = []
    view = open_view(
        root, reads_claims=False, prepare=lambda view: prospects.append(Prospect(view))
    )
    return _follow_status(view, root, prospects[0])


def _follow_status(
    view: View, named: Path | None = None, prospect: Prospect | None = None
) -> Iterator[dict[str, Any]]:
    detector = FailureDetector(view)
    outlook = None if prospect is None else prospect.outlook
    queue = SlurmQueue(view, named)
    while True:
        yield queue.with_look(status_of(view, detector, named=named, outlook=outlook))
        view.refresh()


def may_change(now: dict[str, Any]) -> bool:
    """Whether a run with this status may yet change without anybody's doing."""
    return now["state"] in UNDER_WAY or is_queued(now)


def is_under_way(spool: Spool = None) -> bool:
    """Whether anything of a run may be alive. Slurm is not asked."""
    view = _view(spool)
    return status_of(view, names_tasks=False)["state"] in UNDER_WAY


def list_spools(folder: str | os.PathLike[str] = ".") -> list[dict[str, Any]]:
    """How the runs of all ./spool-* of a folder stand, by name, as `gpuspool list --json` prints.

    If the folder is a spool itself, that one alone. Of a run that cannot be read there are `spool`
    and `error`; of all others what `status` returns. Raises UsageError where there is no such
    folder.
    """
    return [_brief_status(root) for root in find_spools(folder)]


def _brief_status(root: Path) -> dict[str, Any]:
    try:
        return status_of(_view(root), names_tasks=False, named=root)
    except (GpuspoolError, OSError) as error:
        return {"spool": os.path.abspath(root), "error": str(error)}


def wait(spool: Spool = None, timeout_s: float | None = None) -> dict[str, Any]:
    """Wait until a run has ended; returns its status then, as `status` does.

    It has ended when every task has a verdict and no parent of this host is at work any more, or
    when nothing of it is alive and Slurm has no element of it pending or running. timeout_s:
    seconds after which to return anyway; None to wait without limit. If a task has no verdict then,
    the state is in `UNDER_WAY`, or STOPPED with what Slurm has of the run in `queued`.
    """
    return wait_and_tell(spool, timeout_s, unheard)


def wait_and_tell(
    spool: Spool, timeout_s: float | None, tell: Callable[[str], object]
) -> dict[str, Any]:
    """As `wait`. tell: is called with what people should know meanwhile."""
    root = find_spool(spool)
    view = _view(root)
    detector = FailureDetector(view)
    queue = SlurmQueue(view, root, tell)
    began = time.monotonic()
    ended_at: float | None = None
    while True:
        left_s = math.inf
        if timeout_s is not None:
            left_s = timeout_s - (time.monotonic() - began)
        # What is in hand is no matter until people are told.
        now = status_of(view, detector, names_tasks=False, named=root)
        now = queue.with_look(now, left_s)
        if _has_ended(view, now) and not is_queued(now):
            if ended_at is None:
                ended_at = time.monotonic()
            now = _confirmed(view, detector, now, time.monotonic() - ended_at)
            if now["state"] not in UNDER_WAY:
                return queue.with_last_look(now)
        else:
            ended_at = None
        waited_s = time.monotonic() - began
        look_again_s = pause_s(waited_s)
        if timeout_s is not None:
            if waited_s > timeout_s:
                last = {**status_of(view, detector, named=root), "state": now["state"]}
                return queue.with_last_look(last)
            look_again_s = min(look_again_s, max(timeout_s - waited_s, SHORTEST_LOOK_S))
        time.sleep(look_again_s)
        view.refresh()


def _has_ended(view: View, now: dict[str, Any]) -> bool:
    return now["state"] not in UNDER_WAY and not does_any_parent_live_here(view.layout)


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
    now = {**status_of(fresh, detector), "next": now["next"]}
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


def failed_and_doubtful(spool: Spool = None) -> tuple[Iterator[Result], Doubtful]:
    """As `failed`, one by one; and the tasks that failed somewhere and have no verdict yet."""
    view = _view(spool)
    return failed_results(view), _doubtful_tasks(view)


def failed_groups(spool: Spool = None, most_with_tasks: int = 0) -> tuple[Groups, Doubtful]:
    """The failed tasks in groups, as `gpuspool failed` shows them; and the doubtful ones.

    most_with_tasks: of so many groups the keys and payloads of the first few tasks are looked up.
    """
    view = _view(spool)
    return group_failures(view, most_with_tasks), _doubtful_tasks(view)


class Doubtful(NamedTuple):
    """How many tasks failed somewhere and have no verdict yet, and how the first is named."""

    n_tasks: int
    first: Name | None


def _doubtful_tasks(view: View) -> Doubtful:
    tasks = [task for task, _ in doubtful(view)]
    return Doubtful(len(tasks), Namer(view).name_of(min(tasks)) if tasks else None)


def explain(
    spool: Spool = None, key: str | None = None, rank: int | None = None, attempt: str | None = None
) -> dict[str, Any]:
    """What happened to one task or one rank, how it stands, and what happens next.

    As `gpuspool explain --json` prints it; docs/options.md lists the fields. Name one of the three.
    Raises UsageError for what the run does not have.

    key: of a task; `#INDEX` and the path of its input name it too.
    rank: its attempts, one after the other.
    attempt: one of these, such as `rank-0003.a01`.
    """
    root = find_spool(spool)
    return story_json(tell(root, key, rank, attempt), str(Layout(root).root))


def tell(spool: Spool, key: str | None, rank: int | None, attempt: str | None) -> Story:
    """As `explain`, as the story that people are told."""
    if sum(one is not None for one in (key, rank, attempt)) != 1:
        raise UsageError("name one task, or one rank, or one attempt.")
    view = load_view(find_spool(spool), reads_claims=False)
    if key is not None:
        return explain_task(view, key)
    if attempt is not None:
        if not is_attempt(attempt):
            raise UsageError(f"{attempt!r:.120} is no attempt. They are named as rank-0003.a01.")
        return explain_attempt(view, attempt)
    assert rank is not None, "one of the three"
    return explain_rank(view, rank)


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
    key: only what was printed while the task with this key ran. `#INDEX` and the path of its input
        name it too.
    last: only so many lines of each attempt, its last ones.
    follow: wait for what is printed from now on, until the run has ended.
    """
    if key is not None:
        if rank is not None or last is not None or follow:
            raise UsageError("--task shows all that one task printed, and takes no other option.")
        narrow = load_view(find_spool(spool), reads_claims=False)
        return task_log_chunks(narrow.refresh_manifests(), key)
    view = _view(spool)
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
            if not may_change(now):
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
