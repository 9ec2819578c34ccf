"""Sweeping: publishing tasks again that are finished by nobody, held by nobody and offered nowhere.

Such a task is stranded. It takes a claim that was lost or damaged, or one that its closer could not
see yet; closing alone gives back all that a dead attempt is known to have held.
"""

from __future__ import annotations

from collections.abc import Iterator

from gpuspool.spool.claims import NOBODY
from gpuspool.spool.layout import parse_attempt
from gpuspool.spool.manifest import publish_manifest
from gpuspool.spool.records import Claim, TaskLine
from gpuspool.spool.view import View


def sweep(view: View) -> int:
    """Publish the stranded tasks as the next sweep manifest, by link(2); returns how many.

    The view is refreshed before and after. Of two sweeps at once one wins the name, and the other
    finds nothing left.
    """
    if not stranded_tasks(view.refresh()):
        return 0
    # That a task is stranded rests on what was not found, and this view may have kept what a
    # network file system once showed of an older state. So a second view reads everything anew.
    fresh = view.again()
    tasks = stranded_tasks(fresh)
    if tasks:
        publish_manifest(view.layout, fresh.next_numbered("sweep"), tasks)
    view.refresh()
    return len(tasks)


def stranded_tasks(view: View) -> list[TaskLine]:
    """The tasks that must be swept, in order, on a view that was just refreshed.

    A task is stranded when it has no verdict, no unclaimed position of a manifest offers its newest
    round, no open attempt holds a claim on that, and it is not held back: what becomes of a task
    that failed somewhere is left to a ruling. An attempt that is idle says in its journal which
    claims it does not hold any more, however it came by them. Of several lines that describe the
    task, the one with the newest round and the longest history of failures is kept: what was learnt
    about a task must not be forgotten.

    The whole of the view's order of reading is for this: manifests, then claims, then journals,
    each of which only grows. What looks stranded in that order really is.
    """
    unfinished = set(view.ledger.unfinished())
    if not unfinished:
        return []
    best: dict[int, TaskLine] = {}
    held: set[int] = set()
    # What failed without a verdict is no stranded task: a ruling says what becomes of it.
    unfinished.difference_update(task for task, _ in view.unruled())
    for task, is_held in _lines(view):
        if task.task not in unfinished:
            continue
        if is_held and task.round >= view.ledger.round_of(task.task):
            held.add(task.task)
        known = best.get(task.task)
        if known is None or _history(task) > _history(known):
            best[task.task] = task
    # A task that no line describes is not in `best`: it is unreadable and so has failed, which the
    # view sees to.
    return [best[task] for task in sorted(best.keys() - held)]


def _lines(view: View) -> Iterator[tuple[TaskLine, bool]]:
    """(task line, whether somebody has it) for each readable line of all manifests."""
    for name, manifest in view.manifests.items():
        for start, stop, claimer, is_held in _parts(view, name):
            for task in manifest.tasks(start, stop):
                let_go = view.has_let_go(claimer, task)
                yield task, is_held and not let_go


def _parts(view: View, manifest: str) -> Iterator[tuple[int, int, str, bool]]:
    """(start, stop, who claimed these positions, whether somebody has them), claim by claim, and
    the rest of the manifest.

    Positions that nobody has claimed count as held: whoever claims them next runs their tasks.
    """
    chain = view.chains[manifest]
    for claim in chain.claims:
        yield claim.start, claim.stop, claim.attempt, _may_run(view, claim)
    yield chain.next, chain.end, NOBODY, True


def _may_run(view: View, claim: Claim) -> bool:
    """Whether the attempt that made a claim may still run its tasks.

    Who claims has a journal, and journals are read after claims. So a name without one is nobody's:
    it stands in a damaged claim. Where the journal of a closed attempt was not read whole, nobody
    knows yet what it finished. That a journal is missing is looked up by its name as well, since
    what a network file system lists may be older.
    """
    attempt = claim.attempt
    if attempt in view.unsettled:
        return True
    if attempt in view.closed or view.is_released(attempt, claim.number):
        return False
    if attempt in view.journals:
        return True
    return parse_attempt(attempt) is not None and view.layout.journal(attempt).exists()


def _history(task: TaskLine) -> tuple[int, int, int, bool]:
    """How much is known of a task by this line; the greater, the more."""
    return (task.round, len(task.failed_in), task.kills, task.careful)
