"""What a parent does about attempts that it finds open when it starts.

Those of other parents go on beside its own. Those that lost theirs and live on this host are
adopted, and no twin is started in their place. Where any of them run another job than this epoch's
(`--keep-done`), the parents that run it are ordered to finish what is in hand and to end, on
whatever host: all the rest is for the new code. Called once, by the loop, before its first look.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from gpuspool.orchestrator.supervise.drain import NEW_CODE, order_drain
from gpuspool.orchestrator.supervise.telling import Telling
from gpuspool.orchestrator.supervise.workers import Workers
from gpuspool.spool.code import conflicts, read_code
from gpuspool.spool.records import Code, Intent, Job, Parent
from gpuspool.spool.states import Life
from gpuspool.spool.view import View


def adopt(view: View, workers: Workers, job: Job, older: Collection[int], telling: Telling) -> None:
    """Take over the open attempts that others started, and tell of each. Raises OSError.

    older: the epochs of the parents before this one that may be alive.
    """
    others = workers.others
    others.detector.look()
    lives = {attempt: workers.life(attempt) for attempt in others.open()}
    living = [attempt for attempt, life in lives.items() if life is not Life.DEAD]
    how = "goes on"
    # The order is published before anybody is signalled: workers of other hosts hear of it in no
    # other way. It names the newest epoch that runs the old code. No number behind that will do:
    # several starts with the new code may come in one after the other, and each would end those
    # before it.
    attempts = [*living, *_last_of_each(view, older)]
    parents = [others.detector.parents.known.get(epoch) for epoch in older]
    behind = _newest_behind(view, attempts, parents, job)
    if behind is not None:
        order_drain(view.layout, behind, NEW_CODE)
        workers.tell_to_stop()
        how = "stops for the new code once its tasks in hand are done"
    elsewhere: dict[int, list[str]] = {}
    tell_of_adopted(workers, telling, how)
    for attempt in living:
        is_here = lives[attempt] is Life.ALIVE
        if not is_here and others.detector.parent_life(attempt) is Life.ELSEWHERE:
            intent = view.intents.get(attempt)
            elsewhere.setdefault(-1 if intent is None else intent.epoch, []).append(attempt)
    for attempts in elsewhere.values():
        _tell_of_waiting(view, telling, attempts, others.lease_s(attempts[0]))


def tell_of_adopted(workers: Workers, telling: Telling, how: str = "goes on") -> None:
    """Tell of each attempt that is adopted since this was called last. Raises OSError."""
    for attempt in workers.others.newly_adopted():
        telling.tell("adopted", f"{attempt} outlived its parent and {how}", attempt=attempt)


def _tell_of_waiting(view: View, telling: Telling, attempts: list[str], lease_s: float) -> None:
    """Tell of attempts of one parent elsewhere, of which nothing is proved at the first look."""
    intent = view.intents.get(attempts[0])
    where = "elsewhere" if intent is None else f"on host {intent.parent.host}"
    text = (
        f"{', '.join(attempts)} {where}: goes on beside this, and counts as alive until its beat "
        f"has stood still for {lease_s:.0f} s"
    )
    telling.tell("waiting", text, attempts=attempts)


def _last_of_each(view: View, epochs: Collection[int]) -> list[str]:
    """The last attempt of each of these epochs, closed or not.

    A parent whose slots are all empty, since they wait to be started again, has its code too.
    """
    last: dict[int, str] = {}
    for attempt, intent in view.intents.items():
        if intent is not None and intent.epoch in epochs:
            last[intent.epoch] = attempt
    return list(last.values())


def _newest_behind(
    view: View, attempts: Iterable[str], parents: Iterable[Parent | None], job: Job
) -> int | None:
    """The newest epoch of those of these attempts and parents that run other code.

    None where none does.
    """
    new = read_code(view.layout, job.code)
    behind: list[int] = []
    for attempt in attempts:
        intent = view.intents.get(attempt)
        if intent is not None and _is_behind(view, attempt, intent, job, new):
            behind.append(intent.epoch)
    # A parent that has not started anybody yet has its code all the same.
    for parent in parents:
        if parent is not None and _is_parent_behind(view, parent, job, new):
            behind.append(parent.epoch)
    return max(behind, default=None)


def _is_behind(view: View, attempt: str, intent: Intent, job: Job, new: Code | None) -> bool:
    if intent.job.sha256 != job.sha256:
        return True
    beat = view.heartbeat(attempt)
    return _differs(view, beat.code if beat is not None else intent.job.code, new)


def _is_parent_behind(view: View, parent: Parent, job: Job, new: Code | None) -> bool:
    if parent.job_sha256 != job.sha256:
        return True
    return _differs(view, parent.code, new)


def _differs(view: View, code: str, new: Code | None) -> bool:
    """Whether what is known of the code of some process contradicts what is known of the new."""
    old = read_code(view.layout, code)
    return new is not None and old is not None and bool(conflicts(old, new))
