"""Closing attempts and sweeping: how nothing is lost when anything dies.

The order of a close: keep the attempt from beginning if it has not; make its journal durable; read
everything; then one link(2) of `manifests/<attempt>.orphans.jsonl`, the commit instant. Who loses
the link adopts what is there. The status record and the failed-tasks view are copies that anybody
may make again.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

from gpuspool.spool.blame import Witness, blame, place_of, scene_of, time_out
from gpuspool.spool.codec import pretty
from gpuspool.spool.journal import link_empty_journal
from gpuspool.spool.layout import Layout, parse_attempt
from gpuspool.spool.manifest import publish_manifest, publish_orphans
from gpuspool.spool.publish import fsync_file, publish
from gpuspool.spool.records import Closing, Error, Lost, Record, TaskLine
from gpuspool.spool.timeouts import read_stacks
from gpuspool.spool.view import View


class FailedTask(Record, frozen=True, kw_only=True):
    """failed-tasks/: a copy, for people."""

    key: str
    task: int
    round: int
    attempt: str
    at: float
    error: Error


def publish_closing(layout: Layout, closing: Closing, orphans: list[TaskLine]) -> bool:
    """Close an attempt and make the copies. False: it was closed by somebody else, whose word
    stands.
    """
    if not publish_orphans(layout, closing, orphans):
        return False
    publish_copies(layout, closing)
    return True


def publish_copies(layout: Layout, closing: Closing) -> None:
    """The failed tasks and, last, the status record that follow from a closing; harmless to repeat."""
    for lost in closing.lost:
        failed = FailedTask(
            key=lost.key,
            task=lost.task,
            round=lost.round,
            attempt=closing.attempt,
            at=closing.at,
            error=lost.error,
        )
        publish_failed_task(layout, failed)
    publish(layout.status(closing.state, closing.attempt), pretty(closing))


def publish_failed_task(layout: Layout, record: FailedTask) -> None:
    publish(layout.failed_task(record.key), pretty(record), durable=False)


def orphans_of(view: View, attempt: str) -> list[TaskLine]:
    """What an attempt claimed and did not finish, each task once."""
    tasks = (t for t in view.claimed_by(attempt) if not view.ledger.is_done(t.task, t.round))
    return list({(t.task, t.round): t for t in tasks}.values())


def close_dead(
    view: View,
    attempt: str,
    *,
    by: str,
    state: str = "failed",
    reason: str = "lost",
    witness: Witness | None = None,
    exit_code: int | None = None,
    is_overdue: bool = False,
) -> Closing | None:
    """Close an attempt that is proved dead; returns what closed it, which may be somebody else's
    word.

    `is_overdue`: its parent killed it for taking too long. None: it had not begun when it was
    judged, and has since; judge again. Raises OSError where its journal cannot be made durable:
    then nobody may say what it finished.
    """
    if attempt in view.journals:
        fsync_file(view.layout.journal(attempt))
    elif not link_empty_journal(view.layout, attempt):
        view.refresh()
        return None
    view.refresh()
    if attempt in view.closed:
        return view.closed[attempt]
    orphans, started, scene = (
        orphans_of(view, attempt),
        view.started.get(attempt),
        scene_of(view, attempt),
    )
    stacks = read_stacks(view.layout, attempt)
    lost: list[Lost] = []
    suspects = 0
    error: Error | None = None
    if stacks or is_overdue:
        state, reason, options = "failed", "timeout", view.options_of(attempt)
        error = Error(
            kind="timeout",
            type="Timeout",
            message=f"it took too long; {place_of(scene)}",
            traceback=stacks,
        )
        orphans, lost, suspects = time_out(orphans, started, options, stacks, scene)
    elif witness is not None:
        orphans, lost, suspects = blame(orphans, started, witness, scene)
    closing = Closing(
        attempt=attempt,
        state=state,
        reason=reason,
        by=by,
        at=time.time(),
        exit_code=exit_code if witness is None else witness.exit_code,
        suspects=suspects,
        lost=lost,
        error=error,
    )
    publish_closing(view.layout, closing, orphans)
    return view.refresh().closed.get(attempt)


def lost_tasks(view: View, idle: str = "") -> list[TaskLine]:
    """The tasks that must be swept, on a view that was just refreshed; also finds the unreadable
    ones.

    A task is swept when it has no verdict, is unclaimed nowhere, and no open attempt (other than
    the idle one that asks) holds a claim on its newest round.
    """
    view.ledger.unreadable = set()
    missing = dict.fromkeys(view.ledger.missing())
    best: dict[int, TaskLine] = {}
    held: set[int] = set()
    for name, manifest in view.manifests.items():
        for start, stop, is_held in _parts(view, name, idle):
            for task in manifest.tasks(start, stop):
                if task.task not in missing:
                    continue
                if is_held and task.round >= view.ledger.round_of(task.task):
                    held.add(task.task)
                known = best.get(task.task)
                if known is None or _weight(task) > _weight(known):
                    best[task.task] = task
    view.ledger.unreadable = missing.keys() - best.keys()
    return [best[task] for task in missing if task in best and task not in held]


def _parts(view: View, manifest: str, idle: str) -> Iterator[tuple[int, int, bool]]:
    """(start, stop, whether it is unclaimed or claimed by an attempt that may still run it) of a
    manifest's parts.

    Who claims has a journal, and journals are read after claims: a name without one is nobody, a
    damaged claim's say.
    """
    chain = view.chains[manifest]
    for claim in chain.claims:
        is_somebody = claim.attempt in view.journals or _has_journal(view, claim.attempt)
        is_held = claim.attempt not in view.closed and claim.attempt != idle and is_somebody
        yield claim.start, claim.stop, is_held
    yield chain.next, chain.end, True


def _has_journal(view: View, attempt: str) -> bool:
    """By its name: what a network file system lists may be older."""
    return parse_attempt(attempt) is not None and view.layout.journal(attempt).exists()


def _weight(task: TaskLine) -> tuple[int, int, int, bool]:
    return (task.round, task.crashes, task.kills, task.careful)


def mend_claims(view: View) -> int:
    """Claim anew what a power cut gave back: claims are not synced. Returns how many claims were
    made.

    A place beyond the last claim was claimed before if its task is done, held by an open attempt,
    or unclaimed in another manifest too; or if a claim that the chain no longer reaches holds it,
    since who skips claims takes such for part of the chain. The chain is extended over it in the
    name of a closed attempt; a sweep then finds what lies between. At the start of an epoch, when
    the dead are closed and before anybody is started.
    """
    nobody = next(iter(view.closed), None)
    if nobody is None:
        return 0
    known = {
        (task.task, task.round)
        for attempt in view.open_attempts
        for task in view.claimed_by(attempt)
    }
    mended = 0
    for name, chain in view.chains.items():
        last = chain.last_stray()
        for place in range(chain.next, chain.end):
            task = view.manifests[name].task(place)
            if task is not None:
                if (task.task, task.round) in known or view.ledger.is_done(task.task, task.round):
                    last = max(last, place)
                known.add((task.task, task.round))
        for stop in (
            last,
            last + 1,
        ):  # in two claims: no other starts behind the second, so who skips finds its end
            if chain.next < stop:
                mended += chain.take(nobody, stop) is not None
    return mended


def sweep(view: View, idle: str = "") -> int:
    """Publish what fell between all chairs as the next sweep manifest; returns how many tasks.
    Refreshes the view.
    """
    tasks = lost_tasks(view.refresh(), idle)
    if not tasks:
        return 0
    publish_manifest(view.layout, view.next_numbered("sweep"), tasks)
    view.refresh()
    return len(tasks)
