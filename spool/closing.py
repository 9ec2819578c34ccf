"""Closing attempts: how nothing is lost when anything dies.

A closing is one record: the first line of `manifests/<attempt>.orphans.jsonl`. The link(2) that
gives that manifest its name is the commit instant: before it the attempt is open, after it the
tasks in the manifest are anybody's to claim. Who loses the link adopts what is there. The status
record and the failed-tasks folder are copies that anybody may make again.

A worker that ends in peace closes itself with `publish_closing`. Attempts that are proved dead are
closed by `close_attempts`.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Iterable, Iterator, Mapping, Set

import msgspec

from gpuspool.spool.blame import Scene, judge, scene_of
from gpuspool.spool.codec import pretty
from gpuspool.spool.death import Death, TimedOut, Told, ending_of, exit_code_of
from gpuspool.spool.journal import JournalReader, link_empty_journal
from gpuspool.spool.layout import Layout
from gpuspool.spool.manifest import publish_orphans
from gpuspool.spool.publish import fsync_file, listdir, publish
from gpuspool.spool.records import Closing, Count, Error, JournalLine, Record, TaskFailure, TaskLine
from gpuspool.spool.states import ErrorKind, LineState
from gpuspool.spool.view import View


class FailedTask(Record, frozen=True, kw_only=True):
    """failed-tasks/: a copy, for people."""

    key: str
    task: int
    round: Count
    attempt: str
    at: float
    error: Error


def publish_closing(layout: Layout, closing: Closing, orphans: list[TaskLine]) -> bool:
    """Close an attempt by the link(2) of its orphans manifest, and make the copies.

    False: it was closed by somebody else, whose word stands.
    """
    if not publish_orphans(layout, closing, orphans):
        return False
    publish_copies(layout, closing)
    return True


def publish_copies(layout: Layout, closing: Closing) -> None:
    """Make the copies that follow from a closing; harmless to repeat.

    The status record comes last, so that where it stands the failed tasks stand too.
    """
    for failure in closing.failures:
        publish_failed_task(layout, copy_of(failure, closing.attempt, closing.at))
    publish(layout.status(closing.state, closing.attempt), pretty(closing))


def copy_of(failure: TaskFailure, attempt: str, at: float) -> FailedTask:
    """The copy for a task that a closing or a ruling failed at some time."""
    return FailedTask(
        key=failure.key,
        task=failure.task,
        round=failure.round,
        attempt=attempt,
        at=at,
        error=failure.error,
    )


def publish_missing_failures(view: View, attempts: Iterable[str]) -> None:
    """Publish the failed-tasks files that the journals of these attempts owe, by link(2).

    A worker writes the line of a failed task, then this copy of it, and may die in between.
    """
    told = set(listdir(view.layout.failed_tasks))
    owing = [attempt for attempt in attempts if view.failed_by.get(attempt)]
    failed = set(view.ledger.failed())
    for record in failures_of(view, owing, failed):
        if view.layout.failed_task(record.key).name not in told:
            publish_failed_task(view.layout, record)


def failures_of(view: View, attempts: Iterable[str], tasks: Set[int]) -> list[FailedTask]:
    """The copies for those of these tasks of which these attempts tell the failure that counts.

    That is the failure of the newest round, in their journals or closings, or in a ruling. A task
    whose key no readable manifest line tells has no copy.
    """
    told: list[FailedTask] = []
    for attempt in attempts:
        told += (failure for failure in _failures_told(view, attempt) if failure.task in tasks)
    for ruling in view.rulings.values():
        for failure in ruling.failures:
            if failure.task in tasks:
                told.append(copy_of(failure, failure.error.told_attempt, ruling.at))
    found: dict[int, FailedTask] = {}
    for one in told:
        if one.round >= view.ledger.failed_round.get(one.task, 0):
            found[one.task] = one
    keys = _keys_of(view, {task for task, failure in found.items() if not failure.key})
    records: list[FailedTask] = []
    for task, record in found.items():
        key = record.key or keys.get(task)
        if key is not None:
            records.append(msgspec.structs.replace(record, key=key))
    return records


def _failures_told(view: View, attempt: str) -> Iterator[FailedTask]:
    """What an attempt tells of failed tasks; a journal line has no key, so that is "" then."""
    if view.failed_by.get(attempt):
        for _, line in JournalReader(view.layout, attempt, view.report).read(JournalLine):
            if line.state is LineState.FAILED and line.error is not None:
                yield FailedTask(
                    key="",
                    task=line.task,
                    round=line.round,
                    attempt=attempt,
                    at=line.start + line.seconds,
                    error=line.error,
                )
    closing = view.closed.get(attempt)
    if closing is not None:
        for failure in closing.failures:
            yield copy_of(failure, attempt, closing.at)


def _keys_of(view: View, tasks: Set[int]) -> dict[int, str]:
    """The keys of some tasks, as far as a readable manifest line tells them."""
    keys: dict[int, str] = {}
    if tasks:
        for manifest in view.manifests.values():
            for line in manifest.tasks():
                if line.task in tasks:
                    keys[line.task] = line.key
    return keys


def publish_failed_task(layout: Layout, record: FailedTask) -> None:
    """Publish, by link(2), the copy of a failure that people look at."""
    publish(layout.failed_task(record.key), pretty(record), durable=False)


def close_attempts(view: View, deaths: Mapping[str, Death], by: str) -> dict[str, Closing]:
    """Close attempts that are proved dead; returns what closed each, which may be another's word.

    by: who closes. All of them are closed in one pass, whatever their number:

    1. Make each journal durable, so that what it says stays said. An attempt that never began gets
       an empty journal, which keeps it from beginning: its first act is to link its own.
    2. Read everything, once. A dead process adds nothing to its claims and its journal, so what is
       read now is final for each of them.
    3. Link each orphans manifest: the commit instant of that closing. Killed between two of them,
       the rest are open still, and whoever comes next closes them.
    4. Read the closings back: where somebody else was faster, theirs is the one that counts.
    5. Publish the failed-tasks files that the dead still owed: copies, for people.

    An attempt that had not begun when it was judged and has since is left out of what is returned:
    judge it again. Where the journal of one attempt cannot be made durable nobody may say what that
    attempt finished: it stays open, the others are closed, and the OSError is raised at the end.
    What was closed then stands in `view.closed`.
    """
    ready: list[str] = []
    trouble: OSError | None = None
    for attempt in deaths:
        try:
            if _seal_off(view, attempt):
                ready.append(attempt)
        except OSError as error:
            trouble = error
    view.refresh()
    # The (task, round) of what this pass fails or holds back. Another dead attempt may hold the
    # same task, and must not give it back.
    failed: set[tuple[int, int]] = set()
    for attempt in ready:
        if attempt not in view.closed:
            _close(view, attempt, deaths[attempt], by, failed)
    publish_missing_failures(view.refresh(), ready)
    if trouble is not None:
        raise trouble
    return {attempt: view.closed[attempt] for attempt in ready if attempt in view.closed}


def _seal_off(view: View, attempt: str) -> bool:
    """Make an attempt's journal durable, or keep it from beginning. False: it began just now."""
    if attempt in view.journals:
        try:
            fsync_file(view.layout.journal(attempt))
        except OSError as error:
            # A link in its place is no journal. Nothing was read of it, so nothing is to be kept.
            if error.errno != errno.ELOOP:
                raise
        return True
    return link_empty_journal(view.layout, attempt)


def _close(view: View, attempt: str, death: Death, by: str, failed: set[tuple[int, int]]) -> None:
    """Publish the closing of a dead attempt, on a view that was refreshed after it died.

    failed: the (task, round) that closings since that refresh failed; those of this one are added.
    """
    scene = scene_of(view, attempt)
    orphans = [task for task in orphans_of(view, attempt) if (task.task, task.round) not in failed]
    started = view.started.get(attempt)
    is_leaving = attempt in view.leaving
    judgement = judge(death, orphans, started, view.options_of(attempt), scene, is_leaving)
    state, reason = ending_of(death)
    closing = Closing(
        attempt=attempt,
        state=state,
        reason=reason,
        by=by,
        at=time.time(),
        exit_code=exit_code_of(death),
        suspects=judgement.suspects,
        failures=_with_starts(view, attempt, judgement.failures),
        held=_with_starts(view, attempt, judgement.held),
        killed=judgement.killed,
        killed_start=0.0 if judgement.killed is None else view.start_of(attempt, judgement.killed),
        error=_error_of(death, scene),
        journal_bytes=_bytes_read(view, attempt),
    )
    publish_closing(view.layout, closing, judgement.orphans)
    said = [*judgement.failures, *judgement.held]
    failed.update((failure.task, failure.round) for failure in said)


def _error_of(death: Death, scene: Scene) -> Error | None:
    """What a closing tells of an attempt in which a call took too long; None for other deaths."""
    match death:
        case TimedOut(stacks):
            message = f"it took too long; {scene}"
        case Told(stacks) if stacks:
            message = f"it was told to stop, and its call took too long; {scene}"
        case _:
            return None
    return Error(kind=ErrorKind.TIMEOUT, type="Timeout", message=message, traceback=stacks)


def _with_starts(view: View, attempt: str, failures: list[TaskFailure]) -> list[TaskFailure]:
    """These tasks that an attempt took along, with the time at which their call began."""
    return [
        msgspec.structs.replace(failure, start=view.start_of(attempt, failure.task))
        for failure in failures
    ]


def _bytes_read(view: View, attempt: str) -> int | None:
    """How far the journal of an attempt was read; None where it was not seen."""
    journal = view.journals.get(attempt)
    if journal is None:
        return None
    return journal.offset


def orphans_of(view: View, attempt: str) -> list[TaskLine]:
    """What an attempt claimed, did not finish and did not let go, each task once for each round."""
    orphans: dict[tuple[int, int], TaskLine] = {}
    for task in view.claimed_by(attempt):
        is_over = view.ledger.is_finished_in(task.task, task.round)
        if not is_over and not view.has_let_go(attempt, task):
            orphans[task.task, task.round] = task
    return list(orphans.values())
